"""Cut: end the database connection of a call that hangs, and reject its completion."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterable
from contextlib import closing
from contextlib import nullcontext
from contextlib import suppress
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError
from sqlalchemy.exc import ResourceClosedError

from ..runtime import start_thread
from ..storage.engines import is_in_memory
from ..storage.store import Store
from .held import Claim
from .held import is_held
from .held import NotHeld
from .held import write_held
from .jobs import Job
from .jobs import state_of
from .record import LONGEST_ERROR
from .status import JobState

#: Milliseconds that PostgreSQL waits for a lock of an abandoned call.
LOCK_WAIT = 10_000
#: In ``Connection.info``: a lock that is held while the connection is cut.
IN_CUT = "procore_webhooks_in_cut"
#: Seconds that the rollback of a SQLite file waits for a statement to end by itself,
#: and that it is tried for.
GRACE, LONGEST_ROLLBACK = 0.5, 10.0

#: Ends a server's process of that id, if it serves the client port ``port`` of this
#: role: behind a pooler, the driver's id is not the id of a process.
_END_BACKEND = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = {id}"
    " AND client_port = {port} AND usename = current_user"
    " AND datname = current_database()"
)
_FIND_THREAD = (
    "SELECT id FROM information_schema.processlist WHERE id = {id}"
    " AND user = SUBSTRING_INDEX(USER(), '@', 1)"
    " AND (host = 'localhost' OR SUBSTRING_INDEX(host, ':', -1) = '{port}')"
)


def abandon(
    store: Store, claim: Claim, job: Job, others: Iterable[Job], seconds: float
) -> JobState | None:
    """Record that a call exceeded its time limit: its completion will be rejected.

    The lease is renewed too: it may have ended if the call had locked a SQLite file.

    :param job: of the call, as it is after the attempt that has failed.
    :param others: of the same event without rows.
    :param seconds: of the lease, from now.
    :return: the state of the job: that of ``job``, or another one if the subscriber has
        finished; ``None``, with nothing changed, when the lease has passed on.
    """
    error = job.failure.text if job.failure else None
    text = store.text(error, LONGEST_ERROR)

    def changes() -> dict[str, Any]:
        return {"error": text, "due_at": store.db_now() + timedelta(seconds=seconds)}

    try:
        # The call may hold its uncommitted row.
        write_held(store, claim, [job, *others], changes, lock_wait=LOCK_WAIT)
    except (IntegrityError, NotHeld):
        state = state_of(store, claim.row_id, job.subscriber)
        # Held, the row is of a try whose answer was lost; else of a later run.
        is_passed_on = state in (None, job.state) and not is_held(store, claim)
        return None if is_passed_on else state
    return job.state


def cut(connection: Connection) -> None:
    """End the connection: the database rolls its transaction back and frees its locks.

    The thread that uses the connection gets an error, now or when it uses the
    connection again. Without the right to end connections, the client's socket is shut
    down: the server notices that at its next read or write.

    A database in memory is left as it is: its threads share the connection.
    """
    if connection.closed or connection.invalidated:
        return
    driver: Any = connection.connection.dbapi_connection
    if driver is None or is_in_memory(connection.engine.url):
        return
    if connection.dialect.name == "sqlite":
        _end_sqlite(connection, driver)
        return
    client = _socket_of(driver)
    try:
        _end_at_server(connection, driver, client)
    finally:
        if client is not None:
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
            client.close()


def _end_sqlite(connection: Connection, driver: Any) -> None:
    """Roll the transaction back, and let SQLite reject later writes.

    The connection stays open: closing it while its thread is in a statement would crash
    the process. The pool closes it when the thread has returned it.
    """
    pooled, is_done = connection.connection, threading.Event()
    in_cut = connection.info.setdefault(IN_CUT, threading.RLock())
    event.listen(connection.engine.pool, "close", _wait_for_cut)
    pooled.invalidate(soft=True)
    for name in ("before_cursor_execute", "commit"):
        event.listen(connection, name, _refuse)
    start_thread("webhook cut", lambda: _interrupt(driver, is_done))
    try:
        with in_cut:
            if pooled.dbapi_connection is driver:
                _roll_back(driver)
    finally:
        is_done.set()


def _refuse(*_: Any) -> None:
    raise ResourceClosedError("the connection was ended: the call took too long")


def _wait_for_cut(_: Any, record: Any) -> None:
    """A listener of pools: close no connection that another thread is cutting."""
    with record.info.get(IN_CUT) or nullcontext():
        return


def _interrupt(driver: Any, is_done: threading.Event) -> None:
    """Interrupt the thread's statements, which the rollback waits for.

    Not at once: while a result is not read to its end, an interrupt would also make
    the rollback fail.
    """
    while not is_done.wait(GRACE):
        with suppress(Exception):
            driver.interrupt()


def _roll_back(driver: Any) -> None:
    deadline = time.monotonic() + LONGEST_ROLLBACK
    while True:
        try:
            driver.execute("PRAGMA query_only = 1").close()
            driver.rollback()
            return
        except driver.OperationalError:
            # Interrupted like the statement of the thread, which ends now.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _end_at_server(
    connection: Connection, driver: Any, client: socket.socket | None
) -> None:
    """End the connection by a statement on a new connection."""
    name, server_id = connection.dialect.name, _server_id(driver)
    if server_id is None or name not in ("postgresql", "mysql", "mariadb"):
        return
    values = {"id": server_id, "port": _port(client)}
    # The pool itself may have no connection left.
    pool = connection.engine.pool.recreate()
    try:
        with closing(pool.connect()) as other, closing(other.cursor()) as cursor:
            is_postgresql = name == "postgresql"
            find = _END_BACKEND if is_postgresql else _FIND_THREAD
            cursor.execute(find.format(**values))
            is_known = cursor.fetchone() is not None
            if is_known and not is_postgresql:
                cursor.execute(f"KILL CONNECTION {server_id}")
    finally:
        pool.dispose()
    if not is_known and hasattr(driver, "cancel"):
        # Through a pooler: ends the statement that runs now.
        driver.cancel()


def _server_id(driver: Any) -> int | None:
    """The id of the connection at its server, as the driver knows it."""
    with suppress(Exception):
        return int(driver.info.backend_pid)  # psycopg, psycopg2
    with suppress(Exception):
        return int(driver.thread_id())  # PyMySQL, mysqlclient
    with suppress(Exception):
        return int(driver.connection_id)  # the connectors of MySQL and MariaDB
    return None


def _socket_of(driver: Any) -> socket.socket | None:
    """A second handle of the driver's socket, so that closing it twice does no harm."""
    with suppress(Exception):
        user = driver if hasattr(driver, "fileno") else driver._sock
        return socket.socket(fileno=os.dup(user.fileno()))
    return None


def _port(client: socket.socket | None) -> int:
    """The client's port; -1 for a socket in the file system, as PostgreSQL has it."""
    if client is not None and client.family in (socket.AF_INET, socket.AF_INET6):
        return int(client.getsockname()[1])
    return -1
