"""Engines of inboxes: an engine on the host's pool, or one of our own."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from operator import attrgetter
from typing import Any

from sqlalchemy import create_engine
from sqlalchemy import Engine
from sqlalchemy import make_url
from sqlalchemy import QueuePool
from sqlalchemy import URL
from sqlalchemy.exc import ArgumentError

#: Seconds to wait for a server, for a lock on a SQLite file, and for a free connection.
#: The last two may add up, and Procore waits 5 s.
PATIENCE = 4
SQLITE_PATIENCE = 2
PREPARE = "prepare_threshold"
LIBPQ = ("psycopg", "psycopg2")
HAVE_CONNECT_TIMEOUT = (*LIBPQ, "pymysql", "mysqldb")


class HostEngine(Engine):
    """An engine of our own on the host's pool, whose statements commit by themselves.

    ``host.execution_options()`` would share the host's listeners, and a listener that
    begins a transaction, as SQLite's savepoints need, would undo the autocommit.
    """

    def __init__(self, host: Engine) -> None:
        self._host = host
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

    def _ignore_pool(self, pool: Any) -> None:
        """Engine sets its pool; ours is the host's."""

    #: The host engine's current pool. Looked up each time, because
    #: ``Engine.dispose()`` replaces it.
    pool = property(attrgetter("_host.pool"), _ignore_pool)

    def dispose(self, close: bool = True) -> None:
        """Replace the host's pool, so that the host too makes new connections."""
        self._host.dispose(close)


def is_sqlite_file(url: URL) -> bool:
    return url.get_backend_name() == "sqlite" and not is_in_memory(url)


def is_in_memory(url: URL) -> bool:
    """Whether the database lives in the memory of this process and ends with it."""
    named = ":memory:" in (url.database or ":memory:")
    in_memory = named or "memory" in url.query.get("mode", "")
    return url.get_backend_name() == "sqlite" and in_memory


def checked_url(text: str) -> URL:
    """Return the URL of an engine of our own.

    :raises ValueError: not a database URL, or ``prepare_threshold`` is not an integer.
    """
    try:
        url = make_url(text)
    except ArgumentError as error:
        raise ValueError(str(error)) from None
    _psycopg_arguments(url)
    return url


def own_engine(url: URL) -> Engine:
    """Make an engine whose errors hold no bodies and whose waits end before Procore's.

    The timeouts are for the connection and for a connection that a firewall dropped.
    """
    options: dict[str, Any] = {"hide_parameters": True, "isolation_level": "AUTOCOMMIT"}
    if url.get_backend_name() == "sqlite":
        return create_engine(url, **options, **_sqlite_options(url))
    if url.get_driver_name() in HAVE_CONNECT_TIMEOUT:
        patience = {"connect_timeout": str(PATIENCE)}
        if url.get_driver_name() in LIBPQ:
            # For a connection that a firewall dropped; in milliseconds.
            patience["tcp_user_timeout"] = str(PATIENCE * 1000)
        url = url.update_query_dict({**patience, **url.query})
    url, connect_args = _psycopg_arguments(url)
    options |= {"pool_timeout": PATIENCE, "connect_args": connect_args}
    return create_engine(url, **options)


def tune_sqlite(connection: Any, record: Any) -> None:
    """Set up a connection to a SQLite file that is the inbox's own."""
    cursor = connection.cursor()
    # Readers and the writer do not wait for each other; commits still reach the disk.
    # It fails while another process opens the file, and that process sets the mode. A
    # wait for it would double the wait of a delivery that meets a locked file.
    cursor.execute("PRAGMA busy_timeout=0")
    with suppress(sqlite3.OperationalError):
        cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute(f"PRAGMA busy_timeout={SQLITE_PATIENCE * 1000:.0f}")
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
    value = None if threshold.lower() == "none" else int(threshold)
    return url.difference_update_query([PREPARE]), {PREPARE: value}


def _sqlite_options(url: URL) -> dict[str, Any]:
    connect_args: dict[str, Any] = {"timeout": SQLITE_PATIENCE}
    options = {"pool_timeout": SQLITE_PATIENCE, "connect_args": connect_args}
    if is_sqlite_file(url):
        return options
    # Each connection to memory is a database of its own, so threads share one.
    connect_args["check_same_thread"] = False
    return options | {"poolclass": QueuePool, "pool_size": 1, "max_overflow": 0}
