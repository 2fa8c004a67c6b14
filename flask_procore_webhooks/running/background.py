"""Background: a worker thread in the server process.

It is started at the first request of the process, never at import: a server may fork
after the import, and a fork copies no thread.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
from contextlib import suppress

from ..endpoint import AppState
from ..endpoint import Endpoint
from ..errors import InboxUnavailable
from .worker import Worker

log = logging.getLogger("flask_procore_webhooks")

#: WSGI environ key of the internal request made by ``check``: a list to which the view
#: adds its endpoint's name. The request is not logged and starts no background thread.
PROBE = "flask_procore_webhooks.probe"

#: Seconds between two polls for events that other processes have left.
POLL = 30.0
#: Seconds that the end of the process waits for the running event.
GRACE = 5.0

NO_THREADS = (
    "no thread can be started here, so nothing runs the subscribers of recorded events"
    ' (%s): set DISPATCH to "worker" and start "flask procore-webhooks worker"'
)


class BackgroundThread(threading.Thread):
    """The thread that runs the events of one app in this process."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(name="procore webhooks", target=worker.run, daemon=True)
        self.worker = worker
        self.pid = os.getpid()


class Background:
    """Starts and wakes the background thread of one app in one process."""

    def __init__(self, state: AppState) -> None:
        self._state = state
        self._thread: BackgroundThread | None = None
        self._lock = threading.Lock()

    @property
    def was_started(self) -> bool:
        return self._thread is not None

    def wake(self) -> None:
        """Wake the thread to poll for due events; start it if it does not run."""
        if self._thread is None or not self._thread.is_alive():
            with self._lock:
                if self._thread is None or not self._thread.is_alive():
                    self._start()
        if self._thread is not None:
            self._thread.worker.wake()

    def _start(self) -> None:
        endpoints = self._state.endpoints.values()
        mounted = [endpoint for endpoint in endpoints if runs_here(endpoint)]
        was_stopped = self._thread is not None and self._thread.worker.is_stopping
        if was_stopped or not mounted:
            return
        thread = BackgroundThread(Worker(mounted, poll=POLL, mode="background"))
        try:
            thread.start()
            self._thread = thread
        except RuntimeError as error:
            log.error(NO_THREADS, error)


def background_of(state: AppState) -> Background:
    """The app's background in this process."""
    return state.runtime.part(Background, lambda: Background(state))


def runs_here(endpoint: Endpoint) -> bool:
    return endpoint.dispatch == "background"


def warn_threads_disabled() -> None:
    """Log an error where the server is known to run no threads."""
    uwsgi = sys.modules.get("uwsgi")
    options = getattr(uwsgi, "opt", {})
    if uwsgi and not ({"enable-threads", "threads"} & set(options)):
        log.error(NO_THREADS, "uWSGI without enable-threads")


def stop_all(grace: float = GRACE) -> None:
    """End every background thread of this process within ``grace`` seconds altogether.

    A thread ends after its running event; claims that are left are released.
    """
    deadline = time.monotonic() + grace
    threads = [
        thread
        for thread in threading.enumerate()
        if isinstance(thread, BackgroundThread) and thread.pid == os.getpid()
    ]
    for thread in threads:
        thread.worker.stop()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
        # If the database is away, the claims are free when their lease ends.
        with suppress(InboxUnavailable):
            thread.worker.release()


atexit.register(stop_all)
