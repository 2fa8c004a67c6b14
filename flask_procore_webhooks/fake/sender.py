"""The sender: attempts, pauses, exponential backoff, and the flush of a queue.

A failure pauses the queue of a hook, and its first delivery is tried again; see
https://developers.procore.com/documentation/content/webhooks.
"""

from __future__ import annotations

import math
import random
import threading
from dataclasses import dataclass
from datetime import datetime
from datetime import timedelta
from typing import NamedTuple
from typing import TYPE_CHECKING

from ..log import log
from .model import Attempt
from .model import Delivery
from .model import Hook
from .model import Reply
from .switches import Clock
from .transport import origin
from .transport import post
from .world import World

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

#: The most attempts of deliveries that were made during one call.
LONGEST_CHAIN = 1000


@dataclass
class Pause:
    """The pause of a hook or a URL after failures."""

    since: datetime
    due: datetime
    failures: int = 1


class Step(NamedTuple):
    """What the sender does next: an attempt, or a flush if there is no delivery."""

    due: datetime
    number: int
    hook: Hook
    delivery: Delivery | None


@dataclass
class Chain:
    """Counts attempts of deliveries that were queued during one call."""

    last: int
    left: float

    def check(self, row: Delivery) -> None:
        """Count the attempt.

        :raises RuntimeError: there are too many.
        """
        self.left -= row.number > self.last
        if self.left < 0:
            raise RuntimeError(
                "Deliveries cause ever more events: a subscriber changes what it "
                "subscribes to"
            )


class Sender:
    """Makes the attempts that are due on the clock of the fake."""

    def __init__(self, world: World, clock: Clock) -> None:
        self._world = world
        self._clock = clock
        self._apps: dict[str, WSGIApplication] = {}
        self._pauses: dict[str, Pause] = {}
        self._in_flight: set[str] = set()
        self._sending = threading.RLock()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def receive(self, url: str, app: WSGIApplication) -> None:
        """Call the app in process for every destination with this scheme and host."""
        self._apps[origin(url)] = app

    # Attempts

    def deliver(self, longest_chain: float = LONGEST_CHAIN) -> int:
        """Make every attempt that is due now; return how many were made.

        :raises RuntimeError: the deliveries cause ever more events.
        """
        with self._sending:
            chain = self._chain(longest_chain)
            # Each delivery at most once, so that attempts without a wait end, too.
            made: set[str] = set()
            while True:
                step = self._next(made)
                if step is None or step.due > self._clock.now():
                    return len(made)
                if step.delivery is not None:
                    chain.check(step.delivery)
                    made.add(step.delivery.id)
                self._do(step)

    def advance(self, delta: timedelta) -> int:
        """Move the clock, and make each attempt at its own time on the way.

        :return: how many attempts were made.
        :raises RuntimeError: the deliveries cause ever more events.
        """
        with self._sending:
            chain = self._chain(LONGEST_CHAIN)
            end, made = self._clock.now() + delta, 0
            while True:
                step = self._next(set())
                if step is None or step.due > end:
                    break
                self._clock.set(max(step.due, self._clock.now()))
                if step.delivery is not None:
                    chain.check(step.delivery)
                    made += 1
                self._do(step)
            self._clock.set(max(end, self._clock.now()))
            return made

    def _chain(self, longest: float) -> Chain:
        with self._world.lock:
            rows = self._world.deliveries
            return Chain(rows[-1].number if rows else 0, longest)

    def _next(self, excluded: set[str]) -> Step | None:
        """The next step of all hooks."""
        with self._world.lock:
            steps = map(self._step, self._world.hooks.values())
            known = [step for step in steps if step is not None]
            wanted = [
                s for s in known if not s.delivery or s.delivery.id not in excluded
            ]
            return min(wanted, key=lambda step: step[:2], default=None)

    def _step(self, hook: Hook) -> Step | None:
        if hook.status != "active" or hook.id in self._in_flight or not hook.queue:
            return None
        head = hook.queue[0]
        pause = self._pauses.get(self._key(hook))
        if pause is None:
            return Step(head.enqueued, head.number, hook, head)
        deadline = self._deadline(pause)
        if deadline <= pause.due:
            return Step(deadline, head.number, hook, None)
        return Step(pause.due, head.number, hook, head)

    def _do(self, step: Step) -> None:
        hook, row = step.hook, step.delivery
        if row is None:
            self._flush(hook)
            return
        self._in_flight.add(hook.id)
        started = self._clock.now()
        try:
            reply = self._post(hook, row)
        finally:
            self._in_flight.discard(hook.id)
        completed = self._clock.now()
        with self._world.lock:
            id = self._world.ids.row()
            row.attempts.append(Attempt(id, reply, started, completed))
            self._settle(hook, row, reply, completed)

    def _post(self, hook: Hook, row: Delivery) -> Reply:
        switches = self._world.switches
        named = switches.delivery_header
        headers = {**hook.headers, **({named: row.id} if named else {})}
        url, timeout = hook.destination_url, switches.timeout
        try:
            return post(url, row.body, headers, self._apps, timeout)
        except Exception:
            # An app in process that raised, as one does with PROPAGATE_EXCEPTIONS.
            log.exception("The destination of hook %s raised an error", hook.id)
            return Reply(500)

    def _settle(self, hook: Hook, row: Delivery, reply: Reply, now: datetime) -> None:
        if reply.succeeded:
            row.status = "delivered"
            if row in hook.queue:
                hook.queue.remove(row)
            self._pauses.pop(self._key(hook), None)
            return
        if row not in hook.queue:
            # Flushed, or its hook deleted, while the attempt was made.
            return
        row.status = "retrying"
        switches, key = self._world.switches, self._key(hook)
        pause = self._pauses.get(key)
        if pause is None:
            pause = self._pauses[key] = Pause(now, now)
        else:
            pause.failures += 1
        # From 2 ** 64 on, the longest wait is the shorter one anyway.
        factor = switches.backoff ** min(pause.failures - 1, 64)
        wait = min(switches.first_wait * factor, switches.longest_wait)
        wait *= 1 + random.uniform(0, switches.jitter)
        pause.due = now + timedelta(seconds=wait)
        if now >= self._deadline(pause):
            self._flush(hook)

    # Flushes

    def discard(self, hook: Hook, status: str | None = None) -> int:
        """Flush the queue of the hook; return how many deliveries were in it."""
        with self._world.lock:
            rows = [*hook.queue]
            hook.queue.clear()
            self._pauses.pop(self._key(hook), None)
            for row in rows:
                self._world.finish(row, status or self._world.switches.flush_status)
            return len(rows)

    def _flush(self, failing: Hook) -> None:
        """Flush every queue that the failures of the hook have paused."""
        with self._world.lock:
            key = self._key(failing)
            for hook in [*self._world.hooks.values()]:
                if self._key(hook) == key:
                    self.discard(hook)
                    if self._world.switches.disables_after_flush:
                        hook.status = "disabled"

    def _deadline(self, pause: Pause) -> datetime:
        return pause.since + timedelta(seconds=self._world.switches.gives_up_after)

    def _key(self, hook: Hook) -> str:
        by_url = self._world.switches.pause_scope == "url"
        return hook.destination_url if by_url else hook.id

    # Real time

    def start(self, every: float) -> bool:
        """Deliver in a thread at that interval; false if a thread runs already."""
        if self._thread is not None:
            return False
        self._stop.clear()
        self._thread = threading.Thread(
            target=self._send_on, args=(every,), name="fake-procore", daemon=True
        )
        self._thread.start()
        return True

    def stop(self) -> bool:
        """End the thread after its attempt; false without a thread."""
        thread, self._thread = self._thread, None
        if thread is None:
            return False
        self._stop.set()
        thread.join()
        return True

    def _send_on(self, every: float) -> None:
        while not self._stop.wait(every):
            # Events of other threads are no chain.
            self.deliver(math.inf)
