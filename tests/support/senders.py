"""Simulated senders over hours and days, against a real app, on a virtual clock.

Deliveries pass the app's WSGI stack as bytes, and are verified, recorded and run as in
production. Only time is virtual: the inbox's clock advances during ``World.sleep`` of a
subscriber, and between the actions of actors.

A subscriber's sleep runs the rest of the simulation inside its call: senders time out,
retry and deliver other events, other runners run them, leases are renewed. Actions thus
overlap as in production, in one thread and in a reproducible order. (If a sleep starts
inside another, the outer sleep ends after the inner.)

Runners call ``run_due`` of :class:`Worker` objects, the loop of the background thread
and of the command ``worker``:

* ``background``: one runner, which polls after each answered delivery, as the thread
  does when a request wakes it;
* ``worker``: two runners, which poll after their interval, without wake-ups.

Polls that find no due event, or no inbox, have no effect and are left out: a runner
polls when an event is due, and after an outage. Apps have ``DISPATCH = "worker"`` in
both modes: requests then act as in production, except for waking the thread, for which
``Runner.told`` stands in.
"""

from __future__ import annotations

import random
from abc import ABC
from abc import abstractmethod
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import field
from datetime import datetime
from datetime import timedelta

from flask import Flask

from flask_procore_webhooks.dispatching.background import POLL
from flask_procore_webhooks.dispatching.worker import LONGEST_OUTAGE_WAIT
from flask_procore_webhooks.dispatching.worker import Worker
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.errors import InboxUnavailable
from flask_procore_webhooks.inbox.due import seconds_to_work
from flask_procore_webhooks.running.held import RENEWALS
from flask_procore_webhooks.running.leases import LeaseRenewer
from support.values import Clock

HOUR = 3600.0


class Actor(ABC):
    """A part of the simulation with its own schedule."""

    @abstractmethod
    def next_at(self) -> datetime | None:
        """The time of the actor's next action, unless an event changes it."""

    @abstractmethod
    def act(self) -> None: ...

    def told(self) -> None:  # noqa: B027
        """Called after each answered delivery."""

    def inbox_is_back(self) -> None:  # noqa: B027
        """Called at the end of an outage."""


class World:
    """One app with its senders, its runners and their common clock.

    :param limit: seconds after which the app's server kills a request, as gunicorn does
        after 30; ``None`` for servers that do not.
    """

    def __init__(self, app: Flask, clock: Clock, limit: float | None = None) -> None:
        self.app = app
        self.clock = clock
        self.limit = limit
        self.actors: list[Actor] = []
        self._deadlines: list[datetime] = []
        (self.endpoint,) = endpoints(app).values()

    def runs(self, mode: str) -> None:
        """Set up the runner of events for the dispatch mode."""
        if mode == "background":
            self.actors.append(Runner(self, poll=POLL, is_woken=True))
        elif mode == "worker":
            self.actors += [Runner(self, poll=1.0) for _ in range(2)]

    def run_for(self, seconds: float) -> None:
        """Run the actors in order of time for ``seconds``."""
        self._run_until(self.clock.time + timedelta(seconds=seconds))

    def sleep(self, seconds: float) -> None:
        """Sleep in a subscriber; the other actors act meanwhile."""
        end = self.clock.time + timedelta(seconds=seconds)
        killed = self._deadlines[-1] if self._deadlines else end
        step = timedelta(seconds=self.endpoint.settings.lease / RENEWALS)
        while self.clock.time < min(end, killed):
            self._run_until(min(end, killed, self.clock.time + step))
            self._renew_leases()
        if killed < end:
            raise SystemExit("the server kills requests that take so long")

    def deliver(self, body: bytes, timestamp: int) -> int | None:
        """Deliver; return the status, or ``None`` if the server killed the request."""
        headers = self.endpoint.credentials.headers(body, timestamp=timestamp)
        limit = timedelta(seconds=self.limit or 10 * 24 * HOUR)
        self._deadlines.append(self.clock.time + limit)
        client = self.app.test_client()
        try:
            return client.post(
                self.endpoint.path, data=body, headers=headers
            ).status_code
        except SystemExit:
            return None
        finally:
            self._deadlines.pop()
            for actor in self.actors:
                actor.told()

    def _renew_leases(self) -> None:
        """Renew the leases in place of the lease thread, which uses the real clock."""
        renewer = self.endpoint.store.database.parts.get(LeaseRenewer)
        for held in list(renewer._held) if renewer else []:
            with suppress(InboxUnavailable):
                held.renew()

    def _run_until(self, end: datetime) -> None:
        while True:
            coming = [(at, a) for a in self.actors if (at := a.next_at()) is not None]
            at, actor = min(coming, key=lambda each: each[0], default=(end, None))
            if actor is None or at > end:
                break
            self.clock.time = max(self.clock.time, at)
            actor.act()
        self.clock.time = max(self.clock.time, end)


class Runner(Actor):
    """A worker that polls when an event is due.

    :param is_woken: poll after each delivery; otherwise at the next interval.
    """

    def __init__(self, world: World, *, poll: float, is_woken: bool = False) -> None:
        self.world = world
        self.poll = poll
        self.is_woken = is_woken
        self.worker = Worker([world.endpoint], poll=poll)
        self._looks_at: datetime | None = world.clock.time
        self._is_running = False

    def next_at(self) -> datetime | None:
        return None if self._is_running else self._looks_at

    def told(self) -> None:
        self._look_in(0.0 if self.is_woken else self.poll)

    def inbox_is_back(self) -> None:
        self._look_in(LONGEST_OUTAGE_WAIT)

    def act(self) -> None:
        self._is_running, self._looks_at = True, None
        try:
            self.worker.run_due()
            store = self.world.endpoint.store
            wait = seconds_to_work([store])[store.endpoint]
        except InboxUnavailable:
            wait = None
        finally:
            self._is_running = False
        if wait is not None:
            self._look_in(wait)

    def _look_in(self, seconds: float) -> None:
        at = self.world.clock.time + timedelta(seconds=seconds)
        self._looks_at = min(at, self._looks_at or at)


@dataclass(eq=False)
class Queued:
    """One event in a sender's queue."""

    body: bytes
    happened: datetime
    #: Time and status of each attempt; ``None`` for a timeout.
    answers: list[tuple[datetime, int | None]] = field(default_factory=list)
    ended: datetime | None = None

    @property
    def statuses(self) -> list[int | None]:
        return [status for _, status in self.answers]

    @property
    def seconds(self) -> float:
        """Seconds from the event to the end of its deliveries."""
        assert self.ended
        return (self.ended - self.happened).total_seconds()


class Sender(Actor):
    """Sends one delivery at a time and waits ``timeout`` seconds for its answer."""

    timeout: float

    def __init__(self, world: World) -> None:
        self.world = world
        self.delivered: list[Queued] = []
        self.discarded: list[Queued] = []
        self._in_flight: tuple[datetime, Queued] | None = None
        world.actors.append(self)

    def next_at(self) -> datetime | None:
        if self._in_flight:
            return self._in_flight[0] + timedelta(seconds=self.timeout)
        return self.sends_at()

    def act(self) -> None:
        if self._in_flight:
            # The timeout has passed without an answer: abort the delivery.
            self._answered(self._in_flight[1], None)
        elif queued := self.next_queued():
            self._send(queued)

    @abstractmethod
    def sends_at(self) -> datetime | None: ...

    @abstractmethod
    def next_queued(self) -> Queued | None: ...

    @abstractmethod
    def timestamp(self, queued: Queued) -> int: ...

    @abstractmethod
    def succeeded(self, queued: Queued) -> None: ...

    @abstractmethod
    def failed(self, queued: Queued) -> None: ...

    def now(self) -> datetime:
        return self.world.clock.time

    def in_seconds(self, seconds: float) -> datetime:
        return self.now() + timedelta(seconds=seconds)

    def _send(self, queued: Queued) -> None:
        mine = self._in_flight = self.now(), queued
        status = self.world.deliver(queued.body, self.timestamp(queued))
        if self._in_flight is mine:
            self._answered(queued, status)

    def _answered(self, queued: Queued, status: int | None) -> None:
        assert self._in_flight
        queued.answers.append((self._in_flight[0], status))
        self._in_flight = None
        if status is not None and 200 <= status < 300:
            queued.ended = self.now()
            self.delivered.append(queued)
            self.succeeded(queued)
        else:
            self.failed(queued)


class Procore(Sender):
    """A hook: one queue, paused by any failure, and discarded after 12 hours.

    If the app verifies signatures, a gateway signs each attempt.
    """

    timeout = 5.0
    first_wait, longest_wait, patience = 1.0, HOUR, 12 * HOUR

    def __init__(self, world: World) -> None:
        super().__init__(world)
        #: Lengths of the pauses in seconds.
        self.pauses: list[float] = []
        self._queue: deque[Queued] = deque()
        self._wait = self.first_wait
        self._failing_since: datetime | None = None
        self._retries_at: datetime | None = None

    def sends(self, bodies: Iterable[tuple[float, bytes]]) -> None:
        """Queue bodies, each with the seconds until its event."""
        happen = sorted(bodies, key=lambda each: each[0])
        self._queue += [Queued(body, self.in_seconds(at)) for at, body in happen]

    def sends_at(self) -> datetime | None:
        if self._failing_since and self._retries_at:
            return min(self._retries_at, self._gives_up_at())
        return self._queue[0].happened if self._queue else None

    def next_queued(self) -> Queued | None:
        if self._failing_since and self.now() >= self._gives_up_at():
            self._discard()
            return None
        return self._queue[0]

    def timestamp(self, queued: Queued) -> int:
        return int(self.now().timestamp())

    def succeeded(self, queued: Queued) -> None:
        self._queue.remove(queued)
        self._resume()

    def failed(self, queued: Queued) -> None:
        self._failing_since = self._failing_since or self.now()
        self._retries_at = self.in_seconds(self._wait)
        self._wait = min(self._wait * 2, self.longest_wait)

    def _gives_up_at(self) -> datetime:
        assert self._failing_since
        return self._failing_since + timedelta(seconds=self.patience)

    def _discard(self) -> None:
        while self._queue and self._queue[0].happened <= self.now():
            self._queue[0].ended = self.now()
            self.discarded.append(self._queue.popleft())
        self._resume()

    def _resume(self) -> None:
        if self._failing_since:
            pause = self.now() - self._failing_since
            self.pauses.append(pause.total_seconds())
        self._failing_since = self._retries_at = None
        self._wait = self.first_wait


class Prudra(Sender):
    """The deliveries of one event: up to six attempts, then the event is given up.

    Each event has its own sender, because Prudra delivers events independently.

    :param resigns: whether each attempt is signed anew, or the first signature is sent
        again.
    """

    timeout = 10.0
    waits = (5.0, 10.0, 20.0, 40.0, 80.0)

    def __init__(
        self, world: World, body: bytes, after: float = 0.0, *, resigns: bool = True
    ) -> None:
        super().__init__(world)
        self.queued = Queued(body, self.in_seconds(after))
        self.resigns = resigns
        self._sends_at: datetime | None = self.queued.happened

    def sends_at(self) -> datetime | None:
        return self._sends_at

    def next_queued(self) -> Queued | None:
        self._sends_at = None
        return self.queued

    def timestamp(self, queued: Queued) -> int:
        signed_at = self.now() if self.resigns else queued.happened
        return int(signed_at.timestamp())

    def succeeded(self, queued: Queued) -> None:
        """The deliveries of the event are complete."""

    def failed(self, queued: Queued) -> None:
        failures = len(queued.answers)
        if failures <= len(self.waits):
            self._sends_at = self.in_seconds(self.waits[failures - 1])
        else:
            queued.ended = self.now()
            self.discarded.append(queued)

    def replay(self) -> None:
        """Request one more delivery of the discarded event."""
        self.discarded.remove(self.queued)
        self._sends_at = self.now()


def shuffled(
    stream: Iterable[tuple[float, bytes]], rnd: random.Random
) -> list[tuple[float, bytes]]:
    """The stream with copies of about every third event, and out of order."""
    copied = []
    for at, body in stream:
        copied.append((at + rnd.uniform(0, 600), body))
        if rnd.random() < 1 / 3:
            copies = rnd.randint(1, 4)
            copied += [(at + rnd.uniform(0, 2 * HOUR), body) for _ in range(copies)]
    return copied


class Outage(Actor):
    """An outage of the inbox from ``start`` to ``end``, in seconds from now.

    The event table is renamed meanwhile, so that runs cannot be settled.
    """

    def __init__(self, world: World, start: float, end: float) -> None:
        self.world = world
        self._times = deque(
            world.clock.time + timedelta(seconds=each) for each in (start, end)
        )
        world.actors.append(self)

    def next_at(self) -> datetime | None:
        return self._times[0] if self._times else None

    def act(self) -> None:
        self._times.popleft()
        away = bool(self._times)
        database = self.world.endpoint.store.database
        table = database.tables.event.name
        names = (table, f"{table}_away") if away else (f"{table}_away", table)
        with database.engine.connect() as connection:
            connection.exec_driver_sql("ALTER TABLE {} RENAME TO {}".format(*names))
        if not away:
            for actor in self.world.actors:
                actor.inbox_is_back()
