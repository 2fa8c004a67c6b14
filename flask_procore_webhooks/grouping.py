"""Calls that come at the same time are done together, by one of them.

No thread of its own: the first caller works for itself; who comes meanwhile waits, and
then one of those works for all of them. A lone caller pays for a lock and no more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import field
from typing import Generic
from typing import TypeVar

from .forks import remember_forks

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Calls that are done together at most.
LARGEST_GROUP = 64
#: Seconds after which a failure is everybody's: who waits has no time left to try.
LATE = 1.0
#: Seconds after which who waits goes on without the one that works: it may hang on a
#: connection that a firewall has forgotten, and others are as good as new.
LONGEST_WAIT = 2.5


@dataclass(eq=False)
class _Call(Generic[Item, Result]):
    item: Item
    #: Held until the call is done, or leads a group.
    turn: threading.Lock = field(default_factory=lambda: threading.Lock())
    outcome: Result | Exception | None = None
    #: When a group took it in, by the monotonic clock.
    taken_at: float = float("-inf")
    #: The calls to do, its own first, once it leads.
    group: list[_Call[Item, Result]] = field(default_factory=list)


class Grouped(Generic[Item, Result]):
    """One function for many items, called with one item at a time.

    :param work: does the items and returns what each call gets; an exception in the
        place of a result is raised by that call. It must not raise one itself. It may
        be given an item again while it hangs with it.
    """

    def __init__(self, work: Callable[[list[Item]], list[Result | Exception]]) -> None:
        self._work = work
        self._lock = threading.Lock()
        #: Who works, and will hand over to one of those who wait.
        self._leader: _Call[Item, Result] | None = None
        self._waiting: list[_Call[Item, Result]] = []
        remember_forks(self)

    def __call__(self, item: Item) -> Result:
        """What ``work`` gives for ``item``.

        :raises TimeoutError: it hangs, also with those who went on without the first.
        """
        call: _Call[Item, Result] = _Call(item)
        with self._lock:
            if self._leader is None:
                self._leader, call.group = call, [call]
            else:
                call.turn.acquire()
                self._waiting.append(call)
        if not call.group:
            self._wait(call)
        if call.group:
            self._lead(call)
        if call.outcome is None:
            return self(item)  # who was to do it was interrupted
        if isinstance(call.outcome, Exception):
            raise call.outcome
        return call.outcome

    def after_fork(self) -> None:
        """Forget the calls of the parent's threads, which do not go on here."""
        self._lock, self._leader, self._waiting = threading.Lock(), None, []

    def _wait(self, call: _Call[Item, Result]) -> None:
        """Return when the call is done, or is to lead."""
        try:
            if call.turn.acquire(timeout=LONGEST_WAIT):
                return
            # Of several who have waited for long, one leads the others.
            just_taken = time.monotonic() - call.taken_at < LATE
            if just_taken:
                if call.turn.acquire(timeout=LATE):
                    return
                raise TimeoutError("one who took over for another hangs, too")
        except BaseException:
            # A timeout of the host's, say: nobody may count on this call any more.
            self._leave(call)
            raise
        self._take_over(call)

    def _take_over(self, call: _Call[Item, Result]) -> None:
        """Lead those who wait, in the place of one that hangs."""
        with self._lock:
            if call.group:
                return
            if call in self._waiting:
                self._waiting.remove(call)
            self._leader = call
            call.group = [call, *self._take(LARGEST_GROUP - 1)]

    def _leave(self, call: _Call[Item, Result]) -> None:
        with self._lock:
            if call in self._waiting:
                self._waiting.remove(call)
            # It may have been made the leader just now.
            self._waiting[:0] = call.group[1:]
        self._hand_over(call)

    def _lead(self, leader: _Call[Item, Result]) -> None:
        group, start = leader.group, time.monotonic()
        try:
            outcomes = self._work([call.item for call in group])
            for call, outcome in zip(group, outcomes, strict=True):
                call.outcome = outcome
        finally:
            # Whatever happens, SystemExit of a worker timeout too, nobody waits on.
            failure = leader.outcome
            if isinstance(failure, Exception) and time.monotonic() - start > LATE:
                self._refuse(leader, failure)
            self._hand_over(leader)
            for call in group[1:]:
                call.turn.release()

    def _refuse(self, leader: _Call[Item, Result], failure: Exception) -> None:
        """Give everybody who waits the failure that they would wait for, too."""
        with self._lock:
            refused = self._take(len(self._waiting)) if self._leader is leader else []
        for call in refused:
            call.outcome = failure
            call.turn.release()

    def _hand_over(self, leader: _Call[Item, Result]) -> None:
        """Let one of those who wait lead the next group, unless one has taken over."""
        with self._lock:
            if self._leader is not leader:
                return
            group = self._take(LARGEST_GROUP)
            self._leader = group[0] if group else None
            if group:
                group[0].group = group
                group[0].turn.release()

    def _take(self, number: int) -> list[_Call[Item, Result]]:
        """The first of those who wait; under the lock."""
        taken, now = self._waiting[:number], time.monotonic()
        del self._waiting[:number]
        for call in taken:
            call.taken_at = now
        return taken
