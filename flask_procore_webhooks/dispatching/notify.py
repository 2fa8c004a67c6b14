"""LISTEN/NOTIFY: wake idle workers on PostgreSQL as soon as an event is committed.

An optimisation only: workers find missed notifications by polling. Without it, an event
waits for the next poll, 0.5 s on average with the default of ``--poll``. It needs
psycopg 3.2 or newer, and a direct connection: a pooler cannot listen.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
from contextlib import closing
from contextlib import contextmanager
from importlib import import_module
from selectors import BaseSelector
from selectors import DefaultSelector
from selectors import EVENT_READ
from typing import Any

from sqlalchemy import bindparam
from sqlalchemy import func
from sqlalchemy import select
from sqlalchemy import URL

from ..inbox.completion import ASYNC_COMMIT
from ..log import log
from ..storage.database import Database
from ..storage.store import Store

#: The channel of NOTIFY; the payload is the name of an endpoint.
CHANNEL = "procore_webhooks"
#: Seconds between two notifications of a process for one endpoint. A notified worker
#: polls again after them.
INTERVAL = 0.02
#: Seconds in which a failed notification is tried again.
LONGEST_NOTIFY = 0.5
#: Seconds between two attempts to listen.
RETRY = 5.0
#: Seconds after which a silent connection is checked.
SILENCE = 60.0
#: Seconds of one wait for notifications; a listener stops within them.
SLICE = 0.5

NOTIFY = select(func.pg_notify(CHANNEL, bindparam("endpoint")), ASYNC_COMMIT)

NO_LISTENING = (
    "New events wait for the next poll: there is a pooler in front of PostgreSQL, and"
    " only a direct connection can listen"
)
OLD_PSYCOPG = "New events wait for the next poll: LISTEN needs psycopg 3.2 or newer"


class RateLimit:
    """Rate limit for NOTIFY of one endpoint in one process."""

    def __init__(self) -> None:
        self.has_failed = False
        self._last = float("-inf")

    def allows(self) -> bool:
        """Whether to notify now; approximate, two threads may both get ``True``."""
        now = time.monotonic()
        if now - self._last < INTERVAL:
            return False
        self._last = now
        return True


def notify(store: Store) -> None:
    """Wake the workers for an event that is committed; never raises.

    Not in the transaction of the event: from NOTIFY until its commit has reached the
    disk, PostgreSQL holds a lock on which every other notifying transaction waits.
    """
    parts, key = store.database.parts, (RateLimit, store.endpoint)
    limit: RateLimit = parts.get(key) or parts.setdefault(key, RateLimit())
    if not limit.allows():
        return
    try:
        # The delivery has been recorded, and its answer waits for this.
        until = time.monotonic() + LONGEST_NOTIFY
        values = {"endpoint": store.endpoint}
        store.run(lambda connection: connection.execute(NOTIFY, values), until=until)
        limit.has_failed = False
    except Exception as error:
        if not limit.has_failed:
            limit.has_failed = True
            text = store.database.explain(error)
            log.warning("New events wait for the next poll: %s", text)


@contextmanager
def listening(stores: Collection[Store], wake: Callable[[], None]) -> Iterator[None]:
    """Call ``wake`` at each notification for the endpoints until the block ends.

    One connection and one thread for each database.
    """
    by_url: dict[URL, list[Store]] = {}
    for store in stores:
        url = store.database.url
        if url.get_backend_name() == "postgresql":
            by_url.setdefault(url, []).append(store)
    listeners = [Listener(group, wake) for group in by_url.values()]
    try:
        for listener in listeners:
            listener.start()
        yield
    finally:
        for listener in listeners:
            listener.stop()


class Listener:
    """A thread that listens for the endpoints of one database."""

    def __init__(self, stores: list[Store], wake: Callable[[], None]) -> None:
        self._store, self._database = stores[0], stores[0].database
        self._names = {store.endpoint for store in stores}
        self._wake = wake
        self._stopping = threading.Event()
        self._has_failed = False
        self._thread = threading.Thread(
            target=self._run, name="webhook listener", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(2 * SLICE)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with closing(self._connect()) as connection:
                    if reason := _refusal(self._database, connection):
                        log.warning(reason)
                        return
                    connection.execute(f"LISTEN {CHANNEL}")
                    self._listen(connection)
            except Exception as error:
                self._warn_once(error)
                self._stopping.wait(RETRY)

    def _connect(self) -> Any:
        """A connection that listens: made like the host's own, but outside its pool."""
        return self._store.detached().connection.dbapi_connection

    def _listen(self, connection: Any) -> None:
        if self._has_failed:
            self._has_failed = False
            log.info("Notifications of new events arrive again")
        # For events that were committed before LISTEN.
        self._wake()
        with DefaultSelector() as selector:
            selector.register(connection, EVENT_READ)
            self._read(connection, selector)

    def _read(self, connection: Any, selector: BaseSelector) -> None:
        checked_at = time.monotonic()
        while not self._stopping.is_set():
            # While it waits, psycopg itself wakes ten times a second.
            names = set[str]()
            if selector.select(SLICE):
                found = connection.notifies(timeout=INTERVAL, stop_after=1)
                names = {notification.payload for notification in found}
            if self._names & names:
                self._wake()
                # For events that were committed since, without a notification.
                self._stopping.wait(INTERVAL)
                self._wake()
            elif time.monotonic() - checked_at > SILENCE:
                # A firewall may have dropped a connection that was silent for long.
                connection.execute("SELECT 1")
                checked_at = time.monotonic()
                # The driver may have consumed notifications that came meanwhile.
                self._wake()

    def _warn_once(self, error: Exception) -> None:
        if not self._has_failed and not self._stopping.is_set():
            self._has_failed = True
            text = self._database.explain(error)
            log.warning("New events wait for the next poll: %s", text)


def _refusal(database: Database, connection: Any) -> str | None:
    """Why this connection cannot listen.

    A pooler has process ids of its own. In its transaction mode, the pooler's next
    client would receive our notifications.
    """
    if database.url.get_driver_name() != "psycopg":
        return OLD_PSYCOPG
    major, minor, *_ = import_module("psycopg").__version__.split(".")
    if (int(major), int(minor)) < (3, 2):
        return OLD_PSYCOPG
    backend = connection.execute("SELECT pg_backend_pid()").fetchone()[0]
    return NO_LISTENING if backend != connection.info.backend_pid else None
