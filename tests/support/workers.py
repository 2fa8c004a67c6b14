"""Worker threads, and the events of hosts whose events wait for workers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.running.worker import Worker
from support.waiting import PATIENCE

#: As much as a busy machine may need; tests end as soon as what they wait for is there.
SETTINGS = {
    "PROCORE_WEBHOOK_DISPATCH": "worker",
    "PROCORE_WEBHOOK_MAX_ATTEMPTS": 3,
    "PROCORE_WEBHOOK_RETRY_BASE": 0.1,
    "PROCORE_WEBHOOK_RETRY_CAP": 0.1,
}


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
) -> Iterator[list[Worker]]:
    """Run so many workers of these endpoints, as :func:`running` does."""
    crew = [Worker(mounted, poll=poll) for _ in range(workers)]
    with running(*crew):
        yield crew
