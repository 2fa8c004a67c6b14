"""Waiting for other threads and processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from collections.abc import Iterable
from typing import Any

PATIENCE = 60.0

#: Code for apps in other processes: the batches of workers grow (1, 2, 4, 8 …) even
#: on a slow machine.
LARGE_BATCHES = f"""
from flask_procore_webhooks.dispatching.crew import Crew
Crew.batch_seconds = {PATIENCE}
"""
#: And a worker keeps its batch during a long event, as with ``whole_batches``.
WHOLE_BATCHES = f"""
{LARGE_BATCHES}
from flask_procore_webhooks.running import held
held.LONGEST_WAIT = {PATIENCE}
"""


def wait_until(
    condition: Callable[[], object],
    seconds: float = PATIENCE,
    report: Callable[[], object] = lambda: "",
    pause: float = 0.01,
) -> None:
    """Return when ``condition`` is true; fail if it is not true in time.

    :param report: returns text for the failure, such as the output of a process.
    :param pause: seconds between two looks.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not true after {seconds} s: {report()}"
        time.sleep(pause)


def in_threads(
    work: Callable[[Any], None], arguments: Iterable[Any], seconds: float = 30
) -> None:
    """Call ``work`` with each argument in a thread; fail after ``seconds``."""
    threads = [
        threading.Thread(target=work, args=(argument,), daemon=True)
        for argument in arguments
    ]
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    assert not any(thread.is_alive() for thread in threads)
