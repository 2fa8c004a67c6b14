"""Waiting for what a thread or another process is about to do."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 60.0

#: For apps that run in processes of their own: batches of workers grow (1, 2, 4, 8 …)
#: even while the machine is slow.
LARGE_BATCHES = f"""
from flask_procore_webhooks.running import worker
worker.BATCH_SECONDS = {PATIENCE}
"""


def wait_until(
    condition: Callable[[], object],
    seconds: float = PATIENCE,
    report: Callable[[], object] = lambda: "",
) -> None:
    """Return when ``condition`` is true; fail if it is not true in time.

    :param report: gives what the failure shows, such as the output of a process.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not true after {seconds} s: {report()}"
        time.sleep(0.01)
