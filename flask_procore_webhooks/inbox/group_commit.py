"""Group commit: calls that arrive while a batch runs form the next batch.

A batch is run by the thread of one of its calls, the leader. A lone call is a batch of
its own and pays for a lock. Measured under load beside a hand-written view that commits
each delivery by itself: p99 0.26 of it (``benchmarks/results``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import field
from typing import Generic
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Calls in a batch at most.
LARGEST_BATCH = 64
#: If a batch fails after more than this many seconds, every waiting call gets the same
#: error: there is no time for a retry before the sender's timeout.
LATE = 1.0
#: Seconds after which a waiting call starts the next batch although the running one has
#: not ended: that one may hang on a connection that a firewall dropped.
LONGEST_WAIT = 2.5


@dataclass(eq=False)
class _Call(Generic[Item, Result]):
    item: Item
    outcome: Result | Exception | None = None
    #: The calls of its batch, if it leads one.
    batch: list[_Call[Item, Result]] = field(default_factory=list)
    #: Released when the call has an outcome or leads a batch; ``None`` for a call that
    #: never waits.
    turn: threading.Lock | None = None

    def wake(self) -> None:
        if self.turn is not None:
            self.turn.release()


class GroupCommit(Generic[Item, Result]):
    """One function for many items, called with one item at a time.

    :param work: processes a batch and returns the outcome of each item; an exception as
        an outcome is raised by that item's call. It raises nothing itself.
    """

    def __init__(self, work: Callable[[list[Item]], list[Result | Exception]]) -> None:
        self._work = work
        self._lock = threading.Lock()
        self._leader: _Call[Item, Result] | None = None
        self._waiting: list[_Call[Item, Result]] = []

    def __call__(self, item: Item) -> Result:
        """Return what ``work`` returns for ``item``.

        :raises TimeoutError: the batch of this call did not end in time.
        """
        call: _Call[Item, Result] = _Call(item)
        with self._lock:
            if self._leader is None:
                self._leader, call.batch = call, [call]
            else:
                call.turn = threading.Lock()
                call.turn.acquire()
                self._waiting.append(call)
        if call.turn is not None:
            self._wait(call, call.turn)
        if call.batch:
            self._run_batch(call)
        if call.outcome is None:
            return self(item)  # the leader of its batch was interrupted
        if isinstance(call.outcome, Exception):
            raise call.outcome
        return call.outcome

    def _wait(self, call: _Call[Item, Result], turn: threading.Lock) -> None:
        """Return when the call has an outcome or leads a batch."""
        try:
            if turn.acquire(timeout=LONGEST_WAIT) or self._start_next(call):
                return
            # Another call has taken this one into its batch, maybe just now.
            if not turn.acquire(timeout=LATE):
                raise TimeoutError("the batch of this delivery did not end in time")
        except BaseException:
            # An interrupted call (gevent.Timeout) must not be left as a leader.
            self._leave(call)
            raise

    def _start_next(self, call: _Call[Item, Result]) -> bool:
        """Lead the waiting calls beside a batch that hangs; ``False`` if in a batch."""
        with self._lock:
            if call in self._waiting:
                self._waiting.remove(call)
                self._leader = call
                call.batch = [call, *self._take(LARGEST_BATCH - 1)]
            return bool(call.batch)

    def _leave(self, call: _Call[Item, Result]) -> None:
        with self._lock:
            if call in self._waiting:
                self._waiting.remove(call)
            # It may lead a batch since just now.
            self._waiting[:0] = call.batch[1:]
        self._end_batch(call)

    def _run_batch(self, leader: _Call[Item, Result]) -> None:
        batch, start = leader.batch, time.monotonic()
        try:
            outcomes = self._work([call.item for call in batch])
            for call, outcome in zip(batch, outcomes, strict=True):
                call.outcome = outcome
        finally:
            # Also after SystemExit of a worker timeout: no call may wait on.
            is_late = time.monotonic() - start > LATE
            failed = isinstance(leader.outcome, Exception)
            self._end_batch(leader, leader.outcome if is_late and failed else None)
            for call in batch[1:]:
                call.wake()

    def _end_batch(
        self, leader: _Call[Item, Result], failure: Result | Exception | None = None
    ) -> None:
        """Make a waiting call the leader of the next batch.

        :param failure: given to every waiting call instead.
        """
        with self._lock:
            if self._leader is not leader:
                return  # another call has started a batch beside this one
            calls: list[_Call[Item, Result]] = []
            if self._waiting:
                calls = self._take(len(self._waiting) if failure else LARGEST_BATCH)
            self._leader = calls[0] if calls and not failure else None
            if self._leader is not None:
                self._leader.batch = calls
            if failure:
                for call in calls:
                    call.outcome = failure
        for call in calls if failure else calls[:1]:
            call.wake()

    def _take(self, number: int) -> list[_Call[Item, Result]]:
        taken = self._waiting[:number]
        del self._waiting[:number]
        return taken
