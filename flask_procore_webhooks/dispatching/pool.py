"""Pool: the threads that run the events of one app in one process.

Threads are started while work waits, up to the pool's size. A thread whose call hangs
is replaced; as long as such threads live, the pool has at most twice its size.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress
from types import FrameType
from typing import Any

from ..endpoint import Endpoint
from ..errors import InboxUnavailable
from ..log import log
from ..running.failures import interrupt
from ..running.gate import Gate
from ..runtime import OwnedThread
from .crew import Crew
from .worker import Worker

#: Signals that end :meth:`Pool.run`.
SIGNALS = (signal.SIGTERM, signal.SIGINT)

EXHAUSTED = (
    "%d threads hang in subscribers that exceeded their timeout, and no more are added:"
    " restart this process, and give the subscribers' own calls a timeout"
)


class WorkerThread(OwnedThread):
    """A thread of a pool, with its worker; it works for the app."""

    def __init__(self, pool: Pool, worker: Worker, work: Callable[[], object]) -> None:
        super().__init__(pool.name, work, pool.state)
        self.pool = pool
        self.worker = worker


class Pool(Crew):
    """Workers that share the events of some endpoints, a thread for each.

    :param endpoints: of one app.
    :param size: threads that can run events at the same time.
    :param poll: seconds between two polls of a worker without a notification.
    """

    def __init__(
        self,
        endpoints: Collection[Endpoint],
        size: int,
        *,
        poll: float,
        name: str = "procore webhooks worker",
    ) -> None:
        self.endpoints = endpoints
        self.state = next(iter(endpoints)).state
        self.size = size
        self.poll = poll
        self.name = name
        self.is_stopping = False
        #: Why a thread ended without being stopped.
        self.failure: Exception | None = None
        self.threads: list[WorkerThread] = []
        self.pid = os.getpid()
        #: Runs of threads that have ended.
        self._ran = 0
        self._is_once = False
        self._has_warned = False
        self._lock = threading.Lock()
        self._was_signalled = threading.Event()

    @property
    def ran(self) -> int:
        """The runs so far."""
        return self._ran + sum(thread.worker.ran for thread in self.threads)

    def runs(self, own: int) -> list[int]:
        return [thread.worker.ran for thread in self.threads]

    @property
    def is_running(self) -> bool:
        """Whether a run has not ended yet."""
        return any(thread.is_alive() for thread in self.threads) or bool(self._rests)

    @property
    def is_exhausted(self) -> bool:
        """Whether more threads hang than the pool replaces, or did when it stopped."""
        did = self.is_stopping and self._has_warned
        return did or self._hanging() > self.size

    def has_room(self) -> bool:
        is_idle = any(each.worker.is_idle for each in self.threads)
        return is_idle or len(self.threads) < self.size

    def wake(self) -> None:
        """Wake an idle thread; start one more if all are busy."""
        workers = [each.worker for each in self.threads]
        idle = next((each for each in workers if each.is_idle), None)
        if idle is not None:
            idle.wake()
            return
        # Between its poll and its sleep, a worker is not idle yet.
        for worker in workers:
            worker.wake()
        self._start_if_needed()

    def wake_all(self) -> None:
        """Wake every thread."""
        for thread in self.threads:
            thread.worker.wake()

    def check(self) -> None:
        """Start a thread if the others hang, and log when too many do."""
        if not any(each.worker.is_idle for each in self.threads):
            self._start_if_needed()
        is_exhausted = self.is_exhausted
        if is_exhausted and not self._has_warned:
            log.error(EXHAUSTED, self._hanging())
            self._was_signalled.set()
        self._has_warned = is_exhausted

    def released(self, endpoint: Endpoint, rows: list[int]) -> None:
        if rows:
            self.wake()

    def needs(self, worker: object) -> bool:
        """Whether the worker goes on; it ends when enough others are usable."""
        if len(self.threads) <= self.size:
            return True
        with self._lock:
            usable = [each for each in self._alive() if not each.worker.is_abandoned]
            if len(usable) <= self.size:
                return True
            others = [each for each in usable if each.worker is not worker]
            if all(each.worker.is_slow for each in others):
                return True
            self._forget([each for each in usable if each.worker is worker])
            return False

    def stop(self) -> None:
        """Let every worker end after its running event, and start no other."""
        # Within the lock: a thread that is being started now is in the list then.
        with self._lock:
            self.is_stopping = True
        for thread in self.threads:
            thread.worker.stop()

    def end(self, grace: float) -> None:
        """Stop; release after ``grace`` seconds what still runs."""
        self.stop()
        deadline = time.monotonic() + grace
        for thread in self.threads:
            if not thread.worker.is_abandoned:
                thread.join(max(0.0, deadline - time.monotonic()))
        if gate := self._gate:
            gate.wait_for_rests(max(0.0, deadline - time.monotonic()))
        # If the database is away, the claims are free when their lease ends.
        for thread in self.threads:
            with suppress(InboxUnavailable):
                thread.worker.release()
        for run in self._rests:
            with suppress(InboxUnavailable):
                interrupt(run.endpoint, run.claim)

    def run(self, once: bool) -> None:
        """Start every thread; return when they have ended, or at a signal.

        Also when the pool is exhausted.

        :param once: the threads end when nothing is due.
        """
        self._is_once = once
        with self._lock:
            for _ in range(self.size):
                self._start()
        while self._goes_on():
            if self._was_signalled.wait(0.05 if once else 1.0):
                return

    @contextmanager
    def ends_on_signals(self) -> Iterator[None]:
        before = {each: signal.signal(each, self._end) for each in SIGNALS}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def report(self, error: RuntimeError) -> None:
        """No thread can be started."""
        log.error("A thread cannot be started: %s", error)

    @property
    def _rests(self) -> list[Any]:
        """Runs that go on without the call that was abandoned."""
        gate = self._gate
        return list(gate.rests) if gate else []

    @property
    def _gate(self) -> Gate | None:
        return self.state.runtime.parts.get(Gate)

    def _goes_on(self) -> bool:
        usable = [each for each in self._alive() if not each.worker.is_abandoned]
        return bool(usable or self._rests)

    def _hanging(self) -> int:
        """The threads whose call was abandoned and has not returned."""
        return len(self._gate.hanging) if self._gate else 0

    def _alive(self) -> list[WorkerThread]:
        return [each for each in self.threads if each.is_alive()]

    def _start_if_needed(self) -> None:
        with self._lock:
            self._forget([each for each in self.threads if not each.is_alive()])
            usable = [each for each in self.threads if not each.worker.is_abandoned]
            all_hang = all(each.worker.is_slow for each in usable)
            has_room = len(usable) + self._hanging() < 2 * self.size
            if not has_room or len(usable) >= self.size and not all_hang:
                return
            try:
                self._start()
            except RuntimeError as error:
                self.report(error)

    def _start(self) -> None:
        if self.is_stopping:
            return
        worker = Worker(self.endpoints, poll=self.poll, crew=self)
        work = worker.run_all if self._is_once else worker.run
        thread = WorkerThread(self, worker, lambda: self._watch(worker, work))
        thread.start()
        self.threads = [*self.threads, thread]

    def _forget(self, threads: list[WorkerThread]) -> None:
        self._ran += sum(thread.worker.ran for thread in threads)
        self.threads = [each for each in self.threads if each not in threads]

    def _watch(self, worker: Worker, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:
            self.failure = error
        if worker.is_abandoned and not self.is_stopping:
            # Its call has returned. The pool may have had no room for another thread.
            with self._lock:
                self._forget([each for each in self.threads if each.worker is worker])
            self.check()

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._was_signalled.set()
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
