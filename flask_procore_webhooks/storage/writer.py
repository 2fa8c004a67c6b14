"""Writer: a lone item is written by its caller, items that meet by one thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from collections.abc import Sequence
from typing import Generic
from typing import TypeVar

from ..runtime import has_threads
from ..runtime import start_thread

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Calls in a batch at most.
LARGEST_BATCH = 64
#: Seconds that a call waits for the start of its batch. After that, the batch before it
#: is left alone: it may hang on a connection that a firewall dropped.
LONGEST_WAIT = 2.5
#: Seconds from its start after which a call waits no longer. Procore waits 5 s.
LONGEST_CALL = 4.75
#: Seconds without a call after which the thread ends.
IDLE = 2.0
LATE = "the batch of this delivery did not end in time"


class _Call(Generic[Item, Result]):
    __slots__ = ("ended", "item", "outcome")

    def __init__(self, item: Item) -> None:
        self.item = item
        self.outcome: Result | Exception | None = None
        #: Locked until the batch has ended; ``None`` if the caller runs the batch.
        self.ended: threading.Lock | None = None


class Writer(Generic[Item, Result]):
    """One function for many items, called with one item at a time.

    A caller runs the function itself while no other call runs. Calls that arrive during
    a batch form the next one, and a thread runs it.

    :param work: processes a batch and returns the outcome of each item. An exception as
        an outcome is raised by that item's call; ``None`` puts the item into another
        batch. It raises nothing itself.
    """

    def __init__(
        self, work: Callable[[list[Item]], Sequence[Result | Exception | None]]
    ) -> None:
        self._work = work
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        #: The batch that the next one waits for.
        self._running: list[_Call[Item, Result]] | None = None
        self._waiting: list[_Call[Item, Result]] = []
        self._thread: threading.Thread | None = None

    def __call__(self, item: Item) -> Result:
        """Return what ``work`` returns for ``item``.

        :raises TimeoutError: the batch of this call did not end in time.
        """
        ends = time.monotonic() + LONGEST_CALL
        call: _Call[Item, Result] = _Call(item)
        while call.outcome is None:
            if batch := self._join(call):
                self._run(batch)
            else:
                self._wait(call, ends)
            # Again if the work says so, or the thread was interrupted.
            if call.outcome is None and time.monotonic() > ends:
                raise TimeoutError(LATE)
        if isinstance(call.outcome, Exception):
            raise call.outcome
        return call.outcome

    def _join(self, call: _Call[Item, Result]) -> list[_Call[Item, Result]] | None:
        """Return a batch for the caller to run, or ``None``: the thread will run it."""
        with self._lock:
            if self._running is None and not self._waiting:
                self._running = [call]
                return self._running
            if not self._has_thread():
                return [call]
            call.ended = threading.Lock()
            call.ended.acquire()
            # The end of the running batch wakes the thread.
            self._waiting.append(call)
        return None

    def _has_thread(self) -> bool:
        if self._thread is None or not self._thread.is_alive():
            if not has_threads():
                return False
            try:
                self._thread = start_thread("webhook inserts", self._serve)
            except RuntimeError:  # too many threads, or the interpreter ends
                return False
        return True

    def _wait(self, call: _Call[Item, Result], ends: float) -> None:
        """Return when the batch of the call has ended.

        :raises TimeoutError: it did not end in time.
        """
        assert call.ended is not None
        left = max(0.0, ends - time.monotonic())
        try:
            if call.ended.acquire(timeout=min(LONGEST_WAIT, left)):
                return
            if self._has_to_run(call):
                self._run([call])
                return
            if call.ended.acquire(timeout=max(0.0, ends - time.monotonic())):
                return
            raise TimeoutError(LATE)
        except BaseException:
            # Also an interruption (gevent.Timeout).
            self._leave(call)
            raise

    def _has_to_run(self, call: _Call[Item, Result]) -> bool:
        """Have another thread run the waiting calls, if this call is one of them.

        :return: whether there is no thread, so that the caller has to run its call.
        """
        with self._lock:
            if call not in self._waiting:
                return False
            self._running = self._thread = None
            # The thread ends now, or after the batch that hangs.
            self._changed.notify_all()
            if self._has_thread():
                return False
            self._waiting.remove(call)
            return True

    def _leave(self, call: _Call[Item, Result]) -> None:
        with self._lock:
            if call in self._waiting:
                self._waiting.remove(call)

    def _serve(self) -> None:
        """Run the batches, in the thread."""
        try:
            while batch := self._next_batch():
                self._run(batch)
        finally:
            with self._lock:
                if self._thread is threading.current_thread():
                    self._thread = None

    def _next_batch(self) -> list[_Call[Item, Result]] | None:
        """Wait for calls; ``None`` once the thread is idle, or replaced."""
        with self._lock:
            while self._thread is threading.current_thread():
                if self._waiting and self._running is None:
                    self._running = self._waiting[:LARGEST_BATCH]
                    del self._waiting[:LARGEST_BATCH]
                    return self._running
                if not self._changed.wait(IDLE) and not self._waiting:
                    self._thread = None
        return None

    def _run(self, batch: list[_Call[Item, Result]]) -> None:
        try:
            outcomes = self._work([call.item for call in batch])
            for call, outcome in zip(batch, outcomes, strict=True):
                call.outcome = outcome
        finally:
            # Also after SystemExit of a worker timeout: no call may wait on.
            with self._lock:
                if self._running is batch:
                    self._running = None
                    if self._waiting:
                        self._changed.notify()
            for call in batch:
                if call.ended is not None:
                    call.ended.release()
