"""Group commit: calls that arrive while a batch runs form the next batch.

A batch is run by the thread of one of its calls, the leader. A lone call is a batch of
its own and pays for a lock. Measured under load beside a hand-written view that commits
each delivery by itself: p99 0.26 of it (``benchmarks/results``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from typing import Generic
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Calls in a batch at most.
LARGEST_BATCH = 64
#: Seconds after which a waiting call starts the next batch although the running one has
#: not ended: that one may hang on a connection that a firewall dropped.
LONGEST_WAIT = 2.5
#: Seconds from its start after which a call waits no longer. Procore waits 5 s.
LONGEST_CALL = 4.75


@dataclass(eq=False)
class _Call(Generic[Item, Result]):
    item: Item
    #: When it waits no longer, by the monotonic clock.
    ends: float
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

    :param work: processes a batch and returns the outcome of each item. An exception as
        an outcome is raised by that item's call; ``None`` puts the item into another
        batch. It raises nothing itself.
    """

    def __init__(
        self, work: Callable[[list[Item]], Sequence[Result | Exception | None]]
    ) -> None:
        self._work = work
        self._lock = threading.Lock()
        self._leader: _Call[Item, Result] | None = None
        self._waiting: list[_Call[Item, Result]] = []

    def __call__(self, item: Item) -> Result:
        """Return what ``work`` returns for ``item``.

        :raises TimeoutError: the batch of this call did not end in time.
        """
        call: _Call[Item, Result] = _Call(item, time.monotonic() + LONGEST_CALL)
        # Again if the leader of its batch was interrupted, or the work says so.
        while call.outcome is None:
            self._join(call)
            if call.turn is not None:
                self._wait(call, call.turn)
            if call.batch:
                self._run_batch(call)
        if isinstance(call.outcome, Exception):
            raise call.outcome
        return call.outcome

    def _join(self, call: _Call[Item, Result]) -> None:
        """Lead a batch of one, or wait for the next batch."""
        call.batch, call.turn = [], None
        with self._lock:
            if self._leader is None:
                self._leader, call.batch = call, [call]
            else:
                call.turn = threading.Lock()
                call.turn.acquire()
                self._waiting.append(call)

    def _wait(self, call: _Call[Item, Result], turn: threading.Lock) -> None:
        """Return when the call has an outcome or leads a batch."""
        try:
            left = max(0.0, call.ends - time.monotonic())
            if turn.acquire(timeout=min(LONGEST_WAIT, left)) or self._start_next(call):
                return
            # Another call has taken this one into its batch, maybe just now.
            if not turn.acquire(timeout=max(0.0, call.ends - time.monotonic())):
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
        batch = leader.batch
        try:
            outcomes = self._work([call.item for call in batch])
            for call, outcome in zip(batch, outcomes, strict=True):
                call.outcome = outcome
        finally:
            # Also after SystemExit of a worker timeout: no call may wait on.
            self._end_batch(leader)
            for call in batch[1:]:
                call.wake()

    def _end_batch(self, leader: _Call[Item, Result]) -> None:
        """Make a waiting call the leader of the next batch."""
        with self._lock:
            if self._leader is not leader:
                return  # another call has started a batch beside this one
            calls = self._take(LARGEST_BATCH) if self._waiting else []
            self._leader = calls[0] if calls else None
            if self._leader is not None:
                self._leader.batch = calls
        for call in calls[:1]:
            call.wake()

    def _take(self, number: int) -> list[_Call[Item, Result]]:
        taken = self._waiting[:number]
        del self._waiting[:number]
        return taken
