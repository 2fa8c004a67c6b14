"""Engines of inboxes: an engine on the host's pool, or one of our own."""

from __future__ import annotations

import os
import secrets
import sqlite3
import time
from contextlib import suppress
from operator import attrgetter
from typing import Any
from urllib.parse import unquote

from sqlalchemy import Connection
from sqlalchemy import create_engine
from sqlalchemy import Engine
from sqlalchemy import event
from sqlalchemy import ExceptionContext
from sqlalchemy import make_url
from sqlalchemy import NullPool
from sqlalchemy import QueuePool
from sqlalchemy import StaticPool
from sqlalchemy import URL
from sqlalchemy.exc import ArgumentError

from .servers import AT_SIGN_ADVICE
from .servers import Fault
from .servers import fault_of
from .servers import is_ambiguous

#: Seconds to wait for a server in one try. A delivery tries again while it has time.
CONNECT_TIMEOUT = 2
#: Seconds after which a dropped connection to PostgreSQL is given up, and that a thread
#: waits for a free connection.
PATIENCE = 4
#: Seconds to wait for a lock on a SQLite file in one try. Short, because every delivery
#: of a batch has a deadline of its own.
SQLITE_WAIT = 0.25
#: Seconds to wait for a free connection of the host's pool.
POOL_WAIT = 0.5
PREPARE = "prepare_threshold"
LIBPQ = ("psycopg", "psycopg2")
HAVE_CONNECT_TIMEOUT = (*LIBPQ, "pymysql", "mysqldb")


class HostEngine(Engine):
    """An engine of our own on the host's pool, whose statements commit by themselves.

    ``host.execution_options()`` would share the host's listeners, and a listener that
    begins a transaction, as SQLite's savepoints need, would undo the autocommit.
    """

    def __init__(self, host: Engine) -> None:
        self.host = host
        options = {**host.get_execution_options(), "isolation_level": "AUTOCOMMIT"}
        super().__init__(
            host.pool,
            host.dialect,
            host.url,
            execution_options=options,
            # Bodies are among the parameters, and the host may log its statements.
            hide_parameters=True,
            echo=host.echo,
            logging_name=host.logging_name,
        )
        # It belongs to the dialect, which is the host's: see the listener.
        if not event.contains(host, "handle_error", drop_failed_connections):
            event.listen(host, "handle_error", drop_failed_connections)

    def _ignore_pool(self, pool: Any) -> None:
        """Engine sets its pool; ours is the host's."""

    #: The host engine's current pool. Looked up each time, because
    #: ``Engine.dispose()`` replaces it.
    pool = property(attrgetter("host.pool"), _ignore_pool)

    def dispose(self, close: bool = True) -> None:
        """Replace the host's pool, so that the host too makes new connections."""
        self.host.dispose(close)


class _SpareEngine(HostEngine):
    """A host's engine without its pool: each connection is closed after its use."""

    def __init__(self, host: Engine) -> None:
        super().__init__(host)
        pool: Any = host.pool
        self._spare_pool = NullPool(
            pool._creator, dialect=pool._dialect, _dispatch=pool.dispatch
        )

    pool = property(attrgetter("_spare_pool"), HostEngine._ignore_pool)


def is_exhausted(pool: Any) -> bool:
    """Whether the next connection of the pool has to wait for another's return."""
    most = getattr(pool, "_max_overflow", -1)
    return bool(most >= 0 and pool.overflow() >= most and pool.checkedin() == 0)


def connect_beside(engine: HostEngine) -> Connection:
    """Connect although the pool is exhausted; wait for it at most ``POOL_WAIT``.

    The host's requests may hold every connection for longer than a sender waits, and
    a delivery's own request may hold one of them. After the wait, the connection is one
    that the pool does not count.
    """
    deadline = time.monotonic() + POOL_WAIT
    while is_exhausted(engine.pool) and time.monotonic() < deadline:
        time.sleep(0.01)
    if not is_exhausted(engine.pool):
        return engine.connect()
    return _SpareEngine(engine.host).connect()


def drop_failed_connections(context: ExceptionContext) -> None:
    """A listener: take a read-only or closing server for a lost connection.

    The connection is closed, and so are the others of its pool at their next use: after
    a failover they lead to the same server. The host's own statements are the host's.
    """
    fault = fault_of(context.original_exception)
    is_ours = isinstance(context.engine, HostEngine) or getattr(
        context.engine, "is_of_inbox", False
    )
    if is_ours and fault in (Fault.CONNECTION, Fault.READ_ONLY):
        context.is_disconnect = True


def is_sqlite_file(url: URL) -> bool:
    return url.get_backend_name() == "sqlite" and not is_in_memory(url)


def is_in_memory(url: URL) -> bool:
    """Whether the database lives in the memory of this process and ends with it."""
    named = ":memory:" in (url.database or ":memory:")
    in_memory = named or "memory" in url.query.get("mode", "")
    return url.get_backend_name() == "sqlite" and in_memory


def checked_url(text: str | URL) -> URL:
    """Return the URL of an engine of our own.

    :raises ValueError: not a database URL, or ``prepare_threshold`` is not an integer.
        Its text holds nothing of the URL.
    """
    try:
        url = make_url(text)
    except ArgumentError:
        raise ValueError("the database URL cannot be parsed") from None
    except ValueError:
        # What follows the host's colon is not a port.
        raise ValueError(AT_SIGN_ADVICE) from None
    if is_ambiguous(url) or isinstance(text, str) and _has_lost_at_signs(text, url):
        raise ValueError(AT_SIGN_ADVICE)
    _psycopg_arguments(url)
    return url


def _has_lost_at_signs(text: str, url: URL) -> bool:
    """Whether the text has more ``@`` than the parts that were read from it."""
    known = f"@{url.username}{url.database}{[*url.query.values()]}"
    return text.count("@") > known.count("@")


def own_engine(url: URL) -> Engine:
    """Make an engine whose errors hold no bodies and whose waits end before Procore's.

    The timeouts are for the connection and for a connection that a firewall dropped.
    """
    engine = _new_engine(url)
    engine.is_of_inbox = True  # type: ignore[attr-defined]
    event.listen(engine, "handle_error", drop_failed_connections)
    return engine


def _new_engine(url: URL) -> Engine:
    options: dict[str, Any] = {"hide_parameters": True, "isolation_level": "AUTOCOMMIT"}
    if url.get_backend_name() == "sqlite":
        return create_engine(url, **options, **_sqlite_options(url))
    if url.get_driver_name() in HAVE_CONNECT_TIMEOUT:
        patience = {"connect_timeout": str(CONNECT_TIMEOUT)}
        if url.get_driver_name() in LIBPQ:
            # For a connection that a firewall dropped; in milliseconds.
            patience["tcp_user_timeout"] = str(PATIENCE * 1000)
        url = url.update_query_dict({**patience, **url.query})
    url, connect_args = _psycopg_arguments(url)
    options |= {"pool_timeout": PATIENCE, "connect_args": connect_args}
    return create_engine(url, **options)


def create_private_file(url: URL) -> None:
    """Create the SQLite file, readable by its owner only, unless it exists.

    SQLite gives ``-wal`` and ``-shm`` the mode of the file. The file appears by a link:
    closing a descriptor of the file itself would drop every lock that another thread of
    this process has on it.
    """
    path = sqlite_path(url)
    if path is None or "mode" in url.query or os.path.exists(path):
        return
    draft = f"{path}.{secrets.token_hex(8)}"
    # A folder that is missing or not writable is reported by SQLite.
    with suppress(OSError):
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        try:
            os.link(draft, path)
        finally:
            os.unlink(draft)


def sqlite_path(url: URL) -> str | None:
    """The path of a SQLite file; ``None`` for another database."""
    if not is_sqlite_file(url):
        return None
    path = url.database or ""
    return unquote(path.removeprefix("file:")) if "uri" in url.query else path


def tune_sqlite(connection: Any, record: Any) -> None:
    """Set up a connection to a SQLite file that is the inbox's own."""
    cursor = connection.cursor()
    # Readers and the writer do not wait for each other; commits still reach the disk.
    # It fails while another process opens the file, and that process sets the mode. A
    # wait for it would double the wait of a delivery that meets a locked file.
    cursor.execute("PRAGMA busy_timeout=0")
    with suppress(sqlite3.OperationalError):
        cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute(f"PRAGMA busy_timeout={SQLITE_WAIT * 1000:.0f}")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


def _psycopg_arguments(url: URL) -> tuple[URL, dict[str, Any]]:
    """Move ``prepare_threshold`` from the URL to ``connect_args``.

    psycopg needs an integer or ``None`` there, not a string. ``none`` is for poolers
    that do not support prepared statements.
    """
    threshold = url.query.get(PREPARE)
    # In this order: get_driver_name() imports the dialect.
    if not isinstance(threshold, str) or url.get_driver_name() != "psycopg":
        return url, {}
    try:
        value = None if threshold.lower() == "none" else int(threshold)
    except ValueError:
        raise ValueError(f"{PREPARE} must be a whole number or none") from None
    return url.difference_update_query([PREPARE]), {PREPARE: value}


def _sqlite_options(url: URL) -> dict[str, Any]:
    connect_args: dict[str, Any] = {"timeout": SQLITE_WAIT}
    options = {"pool_timeout": PATIENCE, "connect_args": connect_args}
    if is_sqlite_file(url):
        return options
    # Each connection to memory is a database of its own, so threads share one.
    connect_args["check_same_thread"] = False
    return options | {"poolclass": QueuePool, "pool_size": 1, "max_overflow": 0}


def is_autocommit(host: Engine) -> bool:
    """Whether the host's engine is configured for AUTOCOMMIT; without a connection."""
    levels = (
        host.get_execution_options().get("isolation_level"),
        getattr(host.dialect, "_on_connect_isolation_level", None),
    )
    return "AUTOCOMMIT" in levels


def commits_by_itself(host: Engine) -> bool:
    """Whether the host's engine is in AUTOCOMMIT: its transactions have no effect.

    Asks the driver, which may be set up so by ``connect_args``, on a connection of its
    own: one that the inbox has used is in SQLAlchemy's default mode. Errors of the
    database are raised.
    """
    pool = host.pool if isinstance(host.pool, StaticPool) else host.pool.recreate()
    # A connection of the host's engine, so that its hooks are called.
    with Connection(host, pool.connect()) as connection:
        found = is_in_autocommit(connection)
    if pool is not host.pool:
        pool.dispose()
    return found


def is_in_autocommit(connection: Connection) -> bool:
    """Whether each statement of the driver is a transaction of its own."""
    connection.exec_driver_sql("SELECT 1")
    driver: Any = connection.connection.dbapi_connection
    if connection.dialect.name == "sqlite":
        # A hook may begin transactions instead of the driver.
        return not driver.in_transaction and (
            driver.isolation_level is None
            or getattr(driver, "autocommit", None) is True
        )
    if hasattr(driver, "get_autocommit"):
        return bool(driver.get_autocommit())
    return bool(getattr(driver, "autocommit", False))
