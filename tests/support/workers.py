"""Worker threads, and settings of hosts whose events wait for workers."""

from __future__ import annotations

import threading
from collections.abc import Collection
from collections.abc import Iterator
from contextlib import contextmanager

from flask_procore_webhooks.dispatching.worker import Worker
from flask_procore_webhooks.endpoint import Endpoint
from support.waiting import PATIENCE
from support.waiting import wait_until

#: Settings with short times, for quick tests.
SETTINGS = {
    "PROCORE_WEBHOOK_DISPATCH": "worker",
    "PROCORE_WEBHOOK_MAX_ATTEMPTS": 3,
    "PROCORE_WEBHOOK_RETRY_BASE": 0.1,
    "PROCORE_WEBHOOK_RETRY_CAP": 0.1,
}


class CountingWorker(Worker):
    """A worker that counts its sleeps: a sleep follows each poll without work."""

    def __init__(self, endpoints: Collection[Endpoint], *, poll: float) -> None:
        super().__init__(endpoints, poll=poll, sleep=self._count_and_sleep)
        self.sleeps = 0

    def _count_and_sleep(self, seconds: float) -> None:
        self.sleeps += 1
        self._alarm.wait(seconds)


def look_again(*workers: CountingWorker) -> None:
    """Wait until each worker has completed a poll that began after this call."""
    # A poll may be running now; the next poll sees all earlier commits.
    enough = [(worker, worker.sleeps + 2) for worker in workers]

    def have_looked() -> bool:
        late = [worker for worker, sleeps in enough if worker.sleeps < sleeps]
        for worker in late:
            worker.wake()
        return not late

    wait_until(have_looked)


@contextmanager
def running(*workers: Worker) -> Iterator[list[threading.Thread]]:
    """Run the loop of each worker in a thread; stop them at the end of the block."""
    threads = [threading.Thread(target=worker.run, daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    try:
        yield threads
    finally:
        for worker in workers:
            worker.stop()
        for thread in threads:
            thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)


@contextmanager
def working(
    *mounted: Endpoint, poll: float = 0.1, workers: int = 1
) -> Iterator[list[CountingWorker]]:
    """Run ``workers`` workers of the endpoints, as :func:`running` does."""
    started = [CountingWorker(mounted, poll=poll) for _ in range(workers)]
    with running(*started):
        yield started
