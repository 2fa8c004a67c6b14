"""Runtime: all that belongs to one app in one process. A forked child has its own."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from collections.abc import Hashable
from contextlib import suppress
from contextvars import Context
from math import inf
from typing import Any
from typing import NoReturn
from typing import TypeVar

from .log import log

T = TypeVar("T")

#: What belongs to a parent process. A child must neither close nor collect it: both
#: would end connections that the parent still uses.
_kept: list[object] = []


class Runtime:
    """The engines, connections, batches and threads of one app in one process.

    Each part is made at its first use, never at import: a server may fork, or patch
    locks for gevent, after the import.

    :param parent: the runtime of the process that forked this one.
    """

    def __init__(self, parent: Runtime | None = None) -> None:
        self.parent = parent
        #: Every part that exists, by its key.
        self.parts: dict[Hashable, Any] = {}
        self._lock = threading.RLock()

    def part(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the part of that key; the first call makes it.

        :param make: connects to nothing, because other threads wait meanwhile.
        """
        found: T | None = self.parts.get(key)
        if found is None:
            with self._lock:
                found = self.parts.get(key)
                if found is None:
                    found = self.parts[key] = make()
        return found


class Alarms:
    """Calls functions at given times, in a thread that ends when none is left."""

    def __init__(self) -> None:
        self._alarms: dict[object, tuple[float, Callable[[], float]]] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def set(self, owner: object, when: float, work: Callable[[], float]) -> None:
        """Call ``work`` at a time of the monotonic clock, in place of an earlier alarm.

        :param work: returns quickly, with the next time or infinity.
        :raises RuntimeError: no thread can be started.
        """
        with self._changed:
            self._alarms[owner] = when, work
            if self._thread is None:
                self._thread = start_thread("webhook alarms", self._run)
            self._changed.notify()

    def _run(self) -> None:
        while due := self._next():
            owner, (when, work) = due
            following = work()
            with self._changed:
                if self._alarms.get(owner) == (when, work):
                    self._alarms[owner] = following, work

    def _next(self) -> tuple[object, tuple[float, Callable[[], float]]] | None:
        """Wait for the next alarm; ``None`` if there is none."""
        with self._changed:
            while True:
                for owner, (when, _) in list(self._alarms.items()):
                    if when == inf:
                        del self._alarms[owner]
                if not self._alarms:
                    self._thread = None
                    return None
                first = min(self._alarms.items(), key=lambda alarm: alarm[1][0])
                seconds = first[1][0] - time.monotonic()
                if seconds <= 0:
                    return first
                self._changed.wait(seconds)


def start_thread(name: str, work: Callable[[], object]) -> threading.Thread:
    """Start a daemon thread apart from the context of the caller.

    Error reporters attach the context in which a thread was started, for example the
    request, to every error of the thread.

    :raises RuntimeError: no thread can be started.
    """
    thread = threading.Thread(target=work, name=name, daemon=True)
    Context().run(thread.start)
    return thread


def keep(inherited: object) -> None:
    """Reference what belongs to a parent process until this process ends."""
    _kept.append(inherited)


def end_forked_child() -> NoReturn:
    """End a process that a subscriber or receiver forked and that returned from it.

    The child shares the parent's connections, so nothing is rolled back or closed. Its
    exit code is that of a ``SystemExit``, 1 after another exception, else 0.
    """
    error = sys.exc_info()[1]
    code: object = None
    if isinstance(error, SystemExit):
        code = error.code
    elif error is not None:
        log.exception("The process %s, forked by a subscriber, failed", os.getpid())
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))
