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


@dataclass(eq=False)
class _Call(Generic[Item, Result]):
    item: Item
    #: Held until the call is done, or leads a group.
    turn: threading.Lock = field(default_factory=lambda: threading.Lock())
    outcome: Result | Exception | None = None
    #: The calls to do, its own among them, once it leads.
    group: list[_Call[Item, Result]] = field(default_factory=list)


class Grouped(Generic[Item, Result]):
    """One function for many items, called with one item at a time.

    :param work: does the items and returns what each call gets; an exception in the
        place of a result is raised by that call. It must not raise one itself.
    """

    def __init__(self, work: Callable[[list[Item]], list[Result | Exception]]) -> None:
        self._work = work
        self._lock = threading.Lock()
        self._led = False
        self._waiting: list[_Call[Item, Result]] = []
        remember_forks(self)

    def __call__(self, item: Item) -> Result:
        call: _Call[Item, Result] = _Call(item)
        with self._lock:
            leads, self._led = not self._led, True
            if leads:
                call.group = [call]
            else:
                call.turn.acquire()
                self._waiting.append(call)
        if not leads:
            call.turn.acquire()
        if call.group:
            self._lead(call.group)
        if call.outcome is None:
            return self(item)  # who was to do it was interrupted
        if isinstance(call.outcome, Exception):
            raise call.outcome
        return call.outcome

    def after_fork(self) -> None:
        """Forget the calls of the parent's threads, which do not go on here."""
        self._lock, self._led, self._waiting = threading.Lock(), False, []

    def _lead(self, group: list[_Call[Item, Result]]) -> None:
        start = time.monotonic()
        try:
            outcomes = self._work([call.item for call in group])
            for call, outcome in zip(group, outcomes, strict=True):
                call.outcome = outcome
        finally:
            # Whatever happens, SystemExit of a worker timeout too, nobody waits on.
            failure = group[0].outcome
            if isinstance(failure, Exception) and time.monotonic() - start > LATE:
                self._refuse(failure)
            self._hand_over()
            for call in group[1:]:
                call.turn.release()

    def _refuse(self, failure: Exception) -> None:
        """Give everybody who waits the failure that they would wait for, too."""
        with self._lock:
            refused, self._waiting = self._waiting, []
        for call in refused:
            call.outcome = failure
            call.turn.release()

    def _hand_over(self) -> None:
        """Let one of those who wait lead the next group."""
        with self._lock:
            group = self._waiting[:LARGEST_GROUP]
            del self._waiting[:LARGEST_GROUP]
            self._led = bool(group)
        if group:
            group[0].group = group
            group[0].turn.release()
