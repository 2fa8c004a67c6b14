"""Workers on PostgreSQL are told of new events, so that they need not wait for a poll.

Nothing depends on it: what nobody was told of, or nobody heard, the poll finds.
"""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time
import weakref
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
from contextlib import closing
from contextlib import contextmanager
from typing import Any

from sqlalchemy import bindparam
from sqlalchemy import func
from sqlalchemy import select
from sqlalchemy import URL

from .database import Database
from .inbox import Inbox
from .statements import NO_WAIT
from .store import explain

log = logging.getLogger("flask_procore_webhooks")

#: Of NOTIFY; what is said on it is the name of an endpoint.
CHANNEL = "procore_webhooks"
#: Seconds in which each process tells once. Whoever was told looks again after them.
TELLING_INTERVAL = 0.02
#: Seconds between two attempts to listen, and between two looks whether a silent
#: connection is alive.
RETRY = 5.0
SILENCE = 60.0
#: Seconds that the end of a worker waits for a thread that is listening.
GRACE = 1.0

NO_LISTENING = (
    "New events wait for the next poll: there is a pooler in front of PostgreSQL, and"
    " only a direct connection can listen"
)


# Telling


TELLING = select(func.pg_notify(CHANNEL, bindparam("endpoint")), NO_WAIT)


class Teller:
    """Says when it is time to tell of an endpoint's events."""

    def __init__(self) -> None:
        self.has_failed = False
        self._told_at = float("-inf")

    def is_time(self) -> bool:
        """Whether nobody is telling just now; two threads may be told so at once."""
        now = time.monotonic()
        if now - self._told_at < TELLING_INTERVAL:
            return False
        self._told_at = now
        return True


_tellers: weakref.WeakKeyDictionary[Inbox, Teller] = weakref.WeakKeyDictionary()


def tell(inbox: Inbox) -> None:
    """Wake the workers: there is an event that is due, and it is committed.

    Not in the transaction of the event: from NOTIFY until its commit has reached the
    disk, PostgreSQL holds a lock that makes all others that notify wait in line.
    """
    teller = _tellers.get(inbox) or _tellers.setdefault(inbox, Teller())
    if not teller.is_time():
        return
    try:
        if inbox.database.url.get_backend_name() != "postgresql":
            return
        with inbox.connection() as connection:
            connection.execute(TELLING, {"endpoint": inbox.endpoint})
        teller.has_failed = False
    except Exception as error:
        if not teller.has_failed:
            teller.has_failed = True
            log.warning("Workers find new events at their poll: %s", explain(error))


# Listening


@contextmanager
def listening(inboxes: Collection[Inbox], wake: Callable[[], None]) -> Iterator[None]:
    """Call ``wake`` whenever somebody tells of an event, until the block ends.

    One connection and one thread for each database, whoever waits to be woken.
    """
    sharing: dict[URL, list[Inbox]] = {}
    for inbox in inboxes:
        if _can_listen(inbox.database.url):
            sharing.setdefault(inbox.database.url, []).append(inbox)
    listeners = [Listener(group, wake) for group in sharing.values()]
    try:
        for listener in listeners:
            listener.start()
        yield
    finally:
        for listener in listeners:
            listener.stop()


class Listener:
    """A thread that hears what is told of endpoints in one database."""

    def __init__(self, inboxes: list[Inbox], wake: Callable[[], None]) -> None:
        self._database = inboxes[0].database
        self._read = READERS[self._database.url.get_driver_name()]
        self._names = {inbox.endpoint for inbox in inboxes}
        self._wake = wake
        self._stopping = False
        self._has_failed = False
        #: A byte from one to the other ends every wait.
        self._ear, self._mouth = socket.socketpair()
        self._thread = threading.Thread(
            target=self._run, name="webhook wake-up", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        self._mouth.send(b"!")
        if self._thread.ident is not None:
            self._thread.join(GRACE)
        if not self._thread.is_alive():
            self._ear.close()
            self._mouth.close()

    def _run(self) -> None:
        while not self._stopping:
            try:
                with closing(_connect(self._database)) as connection:
                    if _is_pooled(connection):
                        log.warning(NO_LISTENING)
                        return
                    _execute(connection, f"LISTEN {CHANNEL}")
                    self._listen(connection)
            except Exception as error:
                self._warn_once(error)
                self._wait(RETRY)

    def _listen(self, connection: Any) -> None:
        if self._has_failed:
            self._has_failed = False
            log.info("Told of new events again")
        # Somebody may have told before anybody listened.
        self._wake()
        while not self._stopping:
            if not self._wait(SILENCE, connection):
                # A firewall may have forgotten a connection that was silent for long.
                _execute(connection, "SELECT 1")
                # The driver may have put aside what was told just then.
                self._wake()
            elif self._names & set(self._read(connection)):
                self._wake()
                # Nobody tells of what was committed since.
                self._wait(TELLING_INTERVAL)
                self._wake()

    def _warn_once(self, error: Exception) -> None:
        if not self._has_failed and not self._stopping:
            self._has_failed = True
            log.warning("New events wait for the next poll: %s", explain(error))

    def _wait(self, seconds: float, *others: Any) -> bool:
        """Wait for one of ``others`` or the end; whether there was one in time."""
        # Not select(), which knows no more than 1024 open files.
        with selectors.DefaultSelector() as selector:
            for each in (self._ear, *others):
                selector.register(each, selectors.EVENT_READ)
            return bool(selector.select(seconds))


def _connect(database: Database) -> Any:
    """A connection that listens: made as the host makes its own, not in its pool."""
    pooled = database.engine.raw_connection()
    pooled.detach()
    connection: Any = pooled.dbapi_connection
    try:
        connection.rollback()
        connection.autocommit = True
    except BaseException:
        connection.close()
        raise
    return connection


def _is_pooled(connection: Any) -> bool:
    """Whether a pooler, which has process ids of its own, is in between.

    In transaction mode, its next client would be sent what was meant for us.
    """
    with closing(connection.cursor()) as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return bool(cursor.fetchone()[0] != connection.info.backend_pid)


def _execute(connection: Any, statement: str) -> None:
    with closing(connection.cursor()) as cursor:
        cursor.execute(statement)


def _read_psycopg(connection: Any) -> Iterator[str]:
    # Its method notifies() waits for ever before version 3.2.
    connection.pgconn.consume_input()
    while notify := connection.pgconn.notifies():
        yield notify.extra.decode("utf-8", "replace")


def _read_psycopg2(connection: Any) -> Iterator[str]:
    connection.poll()
    while connection.notifies:
        yield connection.notifies.pop(0).payload


READERS = {"psycopg": _read_psycopg, "psycopg2": _read_psycopg2}


def _can_listen(url: URL) -> bool:
    return url.get_backend_name() == "postgresql" and url.get_driver_name() in READERS
