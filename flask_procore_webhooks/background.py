"""A thread in this process that runs what this process has recorded, and more.

It is started at the first request of the process, never at import: a server may fork
after that, and no thread goes along.
"""

from __future__ import annotations

import atexit
import logging
import sys
import threading
import time
import weakref
from contextlib import suppress

from flask import current_app
from flask import Flask
from flask import request

from .endpoint import Endpoint
from .endpoint import endpoints
from .errors import InboxUnavailable
from .forks import remember_forks
from .worker import Worker

log = logging.getLogger("flask_procore_webhooks")

#: Where an app keeps its :class:`Background`.
EXTENSION = "procore_webhooks_background"

#: In the WSGI environment of a request that nobody sent: it starts no thread.
KNOCK = "flask_procore_webhooks.knock"

#: Seconds between two looks for what other processes have left.
POLL = 30.0
#: Seconds that the end of the process waits for the run that is going on.
GRACE = 5.0

NO_THREADS = (
    "no thread can be started here, so nothing runs the subscribers of what is recorded"
    ' (%s): run "flask procore-webhooks worker" beside it and set DISPATCH to "worker"'
)


class Background:
    """The worker thread of one app in one process."""

    def __init__(self, app: Flask) -> None:
        self._endpoints = endpoints(app)
        self._worker: Worker | None = None
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._lock = threading.Lock()
        _backgrounds.add(self)
        remember_forks(self)

    @property
    def was_started(self) -> bool:
        return self._worker is not None

    def wake(self) -> None:
        """Have the thread look for work; start it if it is not running."""
        if not self._is_alive():
            with self._lock:
                if not self._is_alive():
                    self._start()
        if self._worker:
            self._worker.wake()

    def tell_to_stop(self) -> None:
        """Begin no other run, and no other thread."""
        self._stopped = True
        if self._worker:
            self._worker.stop()

    def stop(self, deadline: float) -> None:
        """End after the run that is going on; give back what is left at the deadline.

        :param deadline: by the monotonic clock.
        """
        self.tell_to_stop()
        if self._worker is None or self._thread is None:
            return
        self._thread.join(max(0.0, deadline - time.monotonic()))
        # If the database is away, it is free when its lease is over.
        with suppress(InboxUnavailable):
            self._worker.give_back()

    def after_fork(self) -> None:
        """Forget the thread: it is the parent's."""
        self._worker = self._thread = None
        self._stopped = False
        self._lock = threading.Lock()

    def _is_alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _start(self) -> None:
        mounted = [each for each in self._endpoints.values() if runs_here(each)]
        if self._stopped or not mounted:
            return
        self._worker = Worker(mounted, poll=POLL)
        thread = threading.Thread(
            target=self._worker.run, name="procore webhooks", daemon=True
        )
        try:
            thread.start()
            self._thread = thread
        except RuntimeError as error:
            log.error(NO_THREADS, error)


_backgrounds: weakref.WeakSet[Background] = weakref.WeakSet()


def background_of(app: Flask) -> Background:
    """The app's own, made at the first call."""
    found: Background | None = app.extensions.get(EXTENSION)
    # Of two threads that come here first, one is given what the other has set.
    return found or app.extensions.setdefault(EXTENSION, Background(app))


def start_once(*_: object) -> None:
    """Start the current app's thread at its first request in this process.

    Without waiting for a delivery: earlier processes may have left something to do.
    """
    if KNOCK in request.environ:
        return
    background = background_of(current_app)
    if not background.was_started:
        background.wake()


def runs_here(endpoint: Endpoint) -> bool:
    return endpoint.dispatch == "background"


def warn_of_no_threads() -> None:
    """Say so in the log where the server is known to run no threads."""
    uwsgi = sys.modules.get("uwsgi")
    options = getattr(uwsgi, "opt", {})
    if uwsgi and not ({"enable-threads", "threads"} & set(options)):
        log.error(NO_THREADS, "uWSGI without enable-threads")


def stop_all(grace: float = GRACE) -> None:
    """End every thread of this process, within ``grace`` seconds for all together."""
    deadline = time.monotonic() + grace
    backgrounds = list(_backgrounds)
    for background in backgrounds:
        background.tell_to_stop()
    for background in backgrounds:
        background.stop(deadline)


atexit.register(stop_all)
