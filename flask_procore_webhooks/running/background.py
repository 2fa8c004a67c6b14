"""Background: worker threads in the server process.

The first is started when the process begins to serve, at its first request at the
latest, never at import: a server may fork after the import, and a fork copies no
thread. Others are started as work waits.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from contextlib import suppress

from ..endpoint import AppState
from ..endpoint import at_least_once_warnings
from ..endpoint import Endpoint
from ..log import log
from ..runtime import has_threads
from ..runtime import OwnedThread
from ..serving import call_when_serving
from ..serving import is_serving
from .pool import Pool

#: WSGI environ key of the internal request made by ``check``: a list to which the view
#: adds its endpoint's name. The request is not logged and starts no background thread.
PROBE = "flask_procore_webhooks.probe"

NAME = "procore webhooks"
#: Seconds between two polls for events that other processes have left.
POLL = 30.0
#: Seconds that the end of the process waits for the running event.
GRACE = 5.0

NO_THREADS = (
    "no thread can be started here, so nothing runs the subscribers of recorded events"
    ' (%s): set DISPATCH to "worker" and start "flask procore-webhooks worker"'
)

NO_SIGN = (
    "the first request has started the thread that runs events: %s gives no sign when"
    " it begins to serve, and until then, events that earlier processes left have"
    " waited. Call webhooks.start(app) in the server's hook for started workers"
)


class BackgroundPool(Pool):
    """The background threads of one app in one process."""

    mode = "background"

    def report(self, error: RuntimeError) -> None:
        if not self.is_running:
            log.error(NO_THREADS, error)


class Background:
    """Starts and wakes the background threads of one app in one process."""

    def __init__(self, state: AppState) -> None:
        self._state = state
        self.pool: BackgroundPool | None = None
        self._lock = threading.Lock()

    @property
    def was_started(self) -> bool:
        return self.pool is not None and bool(self.pool.threads)

    @property
    def is_exhausted(self) -> bool:
        """Whether too many threads hang in subscribers to go on as configured."""
        return self.pool is not None and self.pool.is_exhausted

    def wake(self) -> None:
        """Wake a thread to poll for due events; start one if all are busy."""
        if pool := self.pool or self._new_pool():
            pool.wake()

    def _new_pool(self) -> BackgroundPool | None:
        with self._lock:
            endpoints = self._state.endpoints.values()
            mounted = [endpoint for endpoint in endpoints if runs_here(endpoint)]
            if self.pool is None and mounted:
                size = max(endpoint.settings.threads for endpoint in mounted)
                self.pool = BackgroundPool(mounted, size, poll=POLL, name=NAME)
            return self.pool


def background_of(state: AppState) -> Background:
    """The app's background in this process."""
    return state.runtime.part(Background, lambda: Background(state))


def prepare_process(state: AppState) -> None:
    """Prepare this process to serve: afterwards, the thread runs what is due.

    A forked process leaves its parent's connections; a setup that weakens the promise
    is logged; the thread starts, because earlier processes may have left events.
    """
    if state.runtime.parent is not None:
        state.leave_parent()
    state.prepared_pid = os.getpid()
    for endpoint in state.endpoints.values():
        # A host that cannot name its tables has errors of its own for that.
        with suppress(Exception):
            for text in at_least_once_warnings(endpoint):
                log.warning("%s: %s", endpoint.name, text)
    background = background_of(state)
    if not background.was_started:
        background.wake()


def start_when_serving(state: AppState) -> None:
    """Start the thread without a request where the server gives a sign of serving.

    Safe to repeat: each registration in the app calls it.
    """
    if state.is_watched:
        return
    state.is_watched = True
    call_when_serving(state, _start)


def _start(state: AppState) -> None:
    if state.prepared_pid != os.getpid():
        prepare_process(state)


def warn_unannounced(state: AppState, server: str | None) -> None:
    """Log that the first request has started the thread, under a real server.

    :param server: the server's name, if it gives one.
    """
    mounted = any(runs_here(endpoint) for endpoint in state.endpoints.values())
    if mounted and server and not is_serving():
        log.warning(NO_SIGN, server)


def runs_here(endpoint: Endpoint) -> bool:
    return endpoint.dispatch == "background"


def warn_threads_disabled() -> None:
    """Log an error where the server is known to run no threads."""
    if not has_threads():
        log.error(NO_THREADS, "uWSGI without enable-threads")


def stop_all(grace: float = GRACE) -> None:
    """End every background thread of this process within ``grace`` seconds altogether.

    A thread ends after its running event; claims that are left are released. A thread
    whose call was abandoned is left to the end of the process.
    """
    deadline, pid = time.monotonic() + grace, os.getpid()
    # Threads of the pools, and those that go on without an abandoned call.
    threads = [each for each in threading.enumerate() if isinstance(each, OwnedThread)]
    states = {each.owner for each in threads if isinstance(each.owner, AppState)}
    found = [background_of(each).pool for each in states]
    pools = [pool for pool in found if pool is not None and pool.pid == pid]
    for pool in pools:
        pool.stop()
    for pool in pools:
        pool.end(max(0.0, deadline - time.monotonic()))


atexit.register(stop_all)
