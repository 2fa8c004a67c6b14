"""The engines of inboxes: one beside the host's on its pool, or one of our own."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from typing import Any

from sqlalchemy import create_engine
from sqlalchemy import Engine
from sqlalchemy import make_url
from sqlalchemy import Pool
from sqlalchemy import QueuePool
from sqlalchemy import URL
from sqlalchemy.exc import ArgumentError

#: Seconds to wait for a server, for a lock on a file, and for a free connection. The
#: last two may add up, and Procore waits 5.
PATIENCE = 4
SQLITE_PATIENCE = 2
PREPARE = "prepare_threshold"
LIBPQ = ("psycopg", "psycopg2")
HAVE_CONNECT_TIMEOUT = (*LIBPQ, "pymysql", "mysqldb")


class HostEngine(Engine):
    """An engine of our own on the host's pool, whose statements commit by themselves.

    Not ``host.execution_options()``: that would share the host's listeners, and one
    that begins a transaction itself, as SQLite's savepoints need, would undo them.
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

    @property
    def pool(self) -> Pool:
        """The host's of the moment: it has another after each of its ``dispose()``."""
        return self._host.pool

    @pool.setter
    def pool(self, pool: Pool) -> None:
        pass

    def dispose(self, close: bool = True) -> None:
        """Have the host make new connections, too."""
        self._host.dispose(close)


def is_sqlite_file(url: URL) -> bool:
    return url.get_backend_name() == "sqlite" and not is_in_memory(url)


def is_in_memory(url: URL) -> bool:
    """Whether the database is this process's own, gone when it ends."""
    named = ":memory:" in (url.database or ":memory:")
    in_memory = named or "memory" in url.query.get("mode", "")
    return url.get_backend_name() == "sqlite" and in_memory


def checked_url(text: str) -> URL:
    """The URL of an engine of our own.

    :raises ValueError: it is none, or a part of it is no number that has to be one.
    """
    try:
        url = make_url(text)
    except ArgumentError as error:
        raise ValueError(str(error)) from None
    _psycopg_arguments(url)
    return url


def own_engine(url: URL) -> Engine:
    """An engine that keeps bodies out of its errors and never waits past the sender."""
    options: dict[str, Any] = {"hide_parameters": True, "isolation_level": "AUTOCOMMIT"}
    if url.get_backend_name() == "sqlite":
        return create_engine(url, **options, **_sqlite_options(url))
    if url.get_driver_name() in HAVE_CONNECT_TIMEOUT:
        patience = {"connect_timeout": str(PATIENCE)}
        if url.get_driver_name() in LIBPQ:
            # Of a connection that a firewall has forgotten; in milliseconds.
            patience["tcp_user_timeout"] = str(PATIENCE * 1000)
        url = url.update_query_dict({**patience, **url.query})
    url, connect_args = _psycopg_arguments(url)
    options |= {"pool_timeout": PATIENCE, "connect_args": connect_args}
    return create_engine(url, **options)


def _psycopg_arguments(url: URL) -> tuple[URL, dict[str, Any]]:
    """Take what psycopg reads as no text out of the URL: ``prepare_threshold=none``.

    That is for poolers which know nothing of what it prepares by itself.
    """
    threshold = url.query.get(PREPARE)
    # In this order: to name the driver is to import its dialect.
    if not isinstance(threshold, str) or url.get_driver_name() != "psycopg":
        return url, {}
    value = None if threshold.lower() == "none" else int(threshold)
    return url.difference_update_query([PREPARE]), {PREPARE: value}


def _sqlite_options(url: URL) -> dict[str, Any]:
    connect_args: dict[str, Any] = {"timeout": SQLITE_PATIENCE}
    options = {"pool_timeout": SQLITE_PATIENCE, "connect_args": connect_args}
    if is_sqlite_file(url):
        return options
    # In memory each connection is a database, so threads take turns with one.
    connect_args["check_same_thread"] = False
    return options | {"poolclass": QueuePool, "pool_size": 1, "max_overflow": 0}


def tune_sqlite(connection: Any, record: Any) -> None:
    """Set up a SQLite file that was named for us; the host's own stays as it is."""
    cursor = connection.cursor()
    # Readers and the writer do not wait for each other; commits still reach the disk.
    # Fails where another process is opening the file, which then sets the mode for all;
    # to wait for it would double the wait of a delivery that meets a locked file.
    cursor.execute("PRAGMA busy_timeout=0")
    with suppress(sqlite3.OperationalError):
        cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute(f"PRAGMA busy_timeout={SQLITE_PATIENCE * 1000:.0f}")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()
