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
    :param is_testing: whether the app is in a test now.
    """

    def __init__(
        self,
        parent: Runtime | None = None,
        is_testing: Callable[[], bool] = lambda: False,
    ) -> None:
        self.parent = parent
        self.is_testing = is_testing
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
        self.alarms: dict[object, tuple[float, Callable[[], float]]] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        #: The time that the thread waits for; before every time while it calls.
        self._wakes_at = -inf

    def set(self, owner: object, when: float, work: Callable[[], float]) -> None:
        """Call ``work`` at a time of the monotonic clock, in place of an earlier alarm.

        :param work: returns quickly, with the next time or infinity. An error is
            logged, and it is called again after a second.
        :raises RuntimeError: no thread can be started.
        """
        with self._changed:
            self.alarms[owner] = when, work
            if self._thread is None or not self._thread.is_alive():
                self._thread = start_thread("webhook alarms", self._run)
            elif when < self._wakes_at:
                self._changed.notify()

    def discard(self, owner: object) -> None:
        """Remove the owner's alarm."""
        with self._changed:
            self.alarms.pop(owner, None)

    def _run(self) -> None:
        # The waiting thread references no owner, so that an owner can be collected.
        while self._wait():
            self._call()

    def _wait(self) -> bool:
        """Wait for the next alarm; ``False`` if there is none."""
        with self._changed:
            while self.alarms:
                self._wakes_at = min(when for when, _ in self.alarms.values())
                seconds = self._wakes_at - time.monotonic()
                if seconds <= 0:
                    self._wakes_at = -inf
                    return True
                self._changed.wait(min(seconds, threading.TIMEOUT_MAX))
            self._thread = None
            return False

    def _call(self) -> None:
        with self._changed:
            if not self.alarms:
                return
            owner, alarm = min(self.alarms.items(), key=lambda each: each[1][0])
        try:
            following = alarm[1]()
        except Exception:
            log.exception("An alarm failed, and is repeated")
            following = time.monotonic() + 1.0
        with self._changed:
            if self.alarms.get(owner) == alarm:
                self.alarms[owner] = following, alarm[1]
                if following == inf:
                    del self.alarms[owner]


class OwnedThread(threading.Thread):
    """A daemon thread that works for an object, apart from the context of its caller.

    Error reporters attach the context in which a thread was started, for example the
    request, to every error of the thread.
    """

    def __init__(
        self, name: str, work: Callable[[], object], owner: object = None
    ) -> None:
        super().__init__(name=name, target=work, daemon=True)
        self.owner = owner

    def start(self) -> None:
        Context().run(super().start)


def start_thread(
    name: str, work: Callable[[], object], owner: object = None
) -> OwnedThread:
    """Start a thread that works for ``owner``.

    :raises RuntimeError: no thread can be started.
    """
    thread = OwnedThread(name, work, owner)
    thread.start()
    return thread


def has_threads() -> bool:
    """Whether threads run in this process; under uWSGI only if it is told so."""
    uwsgi = sys.modules.get("uwsgi")
    options = getattr(uwsgi, "opt", {})
    return uwsgi is None or bool({"enable-threads", "threads"} & set(options))


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
