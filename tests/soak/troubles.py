"""What subscribers do to their process: hang, crash and fork.

The choices depend on the event's id, so that a seed repeats them. A file in the folder
``SOAK_MARKS`` remembers each call that has hung or crashed, whatever became of its
process.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from flask import current_app


def hang(id: str, seconds: float, work: Callable[[], None]) -> None:
    """Do ``work``, and once for each id hang before or after it."""
    if not _is_new(f"{id}.hung"):
        work()
    elif random.Random(id).random() < 0.5:
        work()
        time.sleep(seconds)
    else:
        # The late work of a call that has timed out.
        time.sleep(seconds)
        work()


def crash(id: str) -> None:
    """End the process once for each id, for some ids twice."""
    times = 2 if random.Random(id).random() < 0.3 else 1
    if any(_is_new(f"{id}.crashed{number}") for number in range(times)):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.kill(os.getpid(), signal.SIGSEGV)
        # The signal may be delivered to another thread.
        time.sleep(5)


def fork(id: str) -> None:
    """Fork; the child leaves in one of four ways, and the parent waits for it."""
    way = random.Random(id).randrange(4)
    child = os.fork()
    if child == 0:
        if way == 0:
            os._exit(0)
        if way == 1:
            sys.exit(3)
        if way == 2:
            raise ValueError("of the child")
        return
    with suppress(ChildProcessError):
        os.waitpid(child, 0)


def _is_new(mark: str) -> bool:
    try:
        Path(current_app.config["SOAK_MARKS"], mark).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
