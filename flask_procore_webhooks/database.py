"""Where the inbox lives: whose engine, whose tables, whose session.

The inbox always uses connections of its own from the engine, whatever a subscriber
does to the host's session. Only receipts go through that session.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextlib import contextmanager
from contextlib import nullcontext
from contextlib import suppress
from typing import Any
from typing import Protocol

from flask import current_app
from flask import Flask
from flask import has_app_context
from sqlalchemy import Connection
from sqlalchemy import create_engine
from sqlalchemy import Engine
from sqlalchemy import event
from sqlalchemy import inspect
from sqlalchemy import make_url
from sqlalchemy import MetaData
from sqlalchemy import QueuePool
from sqlalchemy import Table
from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError

from .forks import in_child
from .forks import remember_forks
from .sessions import SessionSource
from .tables import define_tables
from .tables import Tables

#: The embedded default, in the app's instance folder.
DEFAULT_URI = "sqlite:///procore_webhooks.db"

#: Seconds to wait for a server, for a lock on a file, and for a free connection. The
#: last two may add up, and Procore waits 5.
PATIENCE = 4
SQLITE_PATIENCE = 2
#: How a transaction begins. In MariaDB's own isolation level, the gaps between the rows
#: that are taken are locked too, and new events wait for them. In SQLite, one that
#: begins with a look may not write after another has.
_MYSQL = ("SET TRANSACTION ISOLATION LEVEL READ COMMITTED", "START TRANSACTION")
BEGIN = {
    "mysql": _MYSQL,
    "mariadb": _MYSQL,
    "postgresql": ("BEGIN ISOLATION LEVEL READ COMMITTED",),
    "sqlite": ("BEGIN IMMEDIATE",),
}
PREPARE = "prepare_threshold"
HAVE_CONNECT_TIMEOUT = ("psycopg", "psycopg2", "pymysql", "mysqldb")


_own_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


class FlaskSQLAlchemy(Protocol):
    """The part of ``flask_sqlalchemy.SQLAlchemy`` that is used."""

    @property
    def metadata(self) -> MetaData: ...
    @property
    def session(self) -> Any: ...
    @property
    def engine(self) -> Engine: ...


class Database:
    """The engine, tables and session of one endpoint.

    :param find_engine: called once, at the first use, when the host is set up; each
        statement on what it returns is a transaction of its own.
    :param session: the host's, or ``None`` where subscribers have none.
    :param creates_tables: whether missing tables are created at the first use.
    """

    def __init__(
        self,
        tables: Tables,
        find_engine: Callable[[], Engine],
        session: SessionSource | None = None,
        creates_tables: bool = False,
    ) -> None:
        self.tables = tables
        self.session = session
        self._find_engine = find_engine
        self._creates_tables = creates_tables
        self._found: Engine | None = None
        self._engine: Engine | None = None
        self._lock = threading.Lock()
        remember_forks(self)

    @property
    def engine(self) -> Engine:
        """The inbox's engine, with the tables if they are ours to create."""
        if self._engine is None:
            # Several threads may get here: none waits for another's attempt to connect.
            self._engine = self._open()
        return self._engine

    @property
    def url(self) -> URL:
        """Where it is, known without a connection."""
        return self._found_engine.url

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        """A connection on which each statement is a transaction of its own."""
        with self._connect() as connection:
            yield connection
            _commit_what_is_open(connection)

    def _connect(self) -> Connection:
        engine = self.engine
        try:
            return engine.connect()
        except engine.dialect.loaded_dbapi.Error:
            # Drivers that ask the server for autocommit meet a dead connection here,
            # which SQLAlchemy takes for no disconnect: the others are as dead.
            engine.dispose()
            return engine.connect()

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """One transaction on a connection of its own, committed at the end."""
        with self._connect() as connection:
            if _is_in_transaction(connection):
                yield connection
                connection.connection.commit()
                return
            # In words, because a connection that is given another isolation level may
            # come back to the pool without autocommit (SQLAlchemy 2.0.16).
            for words in BEGIN.get(connection.dialect.name, ("BEGIN",)):
                connection.exec_driver_sql(words)
            try:
                yield connection
                connection.exec_driver_sql("COMMIT")
            except BaseException:
                _roll_back(connection)
                raise

    def create_tables(self) -> list[str]:
        """Create the tables that are missing; safe to repeat and to race.

        :return: the names of the tables created now.
        """
        engine = self._found_engine
        missing = missing_tables(engine, self.tables)
        for table in self.tables:
            _create(engine, table)
        return missing

    def missing_tables(self) -> list[str]:
        return missing_tables(self.engine, self.tables)

    def after_fork(self) -> None:
        """Give up the lock, which another thread may have held in the parent."""
        self._lock = threading.Lock()

    def _open(self) -> Engine:
        if self._creates_tables:
            self.create_tables()
        return self._found_engine

    @property
    def _found_engine(self) -> Engine:
        if self._found is None:
            with self._lock:
                self._found = self._found or self._find_engine()
        return self._found


def _commit_what_is_open(connection: Connection) -> None:
    if _is_in_transaction(connection):
        connection.connection.commit()


def _is_in_transaction(connection: Connection, *, unknown: bool = False) -> bool:
    """Whether there is a transaction that SQLAlchemy knows nothing of.

    With ``autocommit=False``, as Python 3.12 has it, ``sqlite3`` always has one.

    :param unknown: the answer for drivers that do not say.
    """
    driver: Any = connection.connection.dbapi_connection
    return bool(getattr(driver, "in_transaction", unknown))


def _roll_back(connection: Connection) -> None:
    """End a transaction that was begun in words.

    Not left to the pool: psycopg2 rolls nothing back that it has not begun, and the
    next who gets the connection would be in the same transaction.
    """
    # SQLite has ended it itself after some errors.
    if connection.invalidated or not _is_in_transaction(connection, unknown=True):
        return
    try:
        connection.exec_driver_sql("ROLLBACK")
    except Exception:
        connection.invalidate()


def _leave_connections() -> None:
    """They are the parent's: two processes must not share one."""
    for engine in list(_own_engines):
        engine.dispose(close=False)


in_child(_leave_connections)


def _create(engine: Engine, table: Table) -> None:
    try:
        table.create(engine, checkfirst=True)
    except SQLAlchemyError:
        # Another process may have created it since it was looked for.
        if not inspect(engine).has_table(table.name, schema=table.schema):
            raise


def advice(missing: Iterable[str]) -> str:
    return (
        f"missing tables: {', '.join(missing)}; create them with your migrations (flask"
        " db migrate, flask db upgrade) or, if you have none, with the command init-db"
    )


def missing_tables(engine: Engine, tables: Tables) -> list[str]:
    inspector = inspect(engine)
    return [
        table.fullname
        for table in tables
        if not inspector.has_table(table.name, schema=table.schema)
    ]


def host_database(app: Flask, db: FlaskSQLAlchemy) -> Database:
    """Tables on ``db.metadata``, writes through ``db.session``."""

    def find_engine() -> Engine:
        with context_of(app):
            return _autocommitting(db.engine)

    return Database(define_tables(db.metadata), find_engine, db.session)


def session_database(
    app: Flask, metadata: MetaData, session: SessionSource
) -> Database:
    """Plain SQLAlchemy: the engine is the one that ``session`` is bound to."""
    tables = define_tables(metadata)

    def find_engine() -> Engine:
        with context_of(app):
            bind = session().get_bind(clause=tables.event)
            return _autocommitting(bind.engine)

    return Database(tables, find_engine, session)


def context_of(app: Flask) -> AbstractContextManager[object]:
    """The app's context: the one there is, as hosts end their session with it."""
    if has_app_context() and current_app == app:
        return nullcontext()
    return app.app_context()


def _autocommitting(host: Engine) -> Engine:
    """An engine of our own on the host's pool, whose statements commit by themselves.

    Not ``host.execution_options()``: that would share the host's listeners, and one
    that begins a transaction itself, as SQLite's savepoints need, would undo them.
    """
    options = {**host.get_execution_options(), "isolation_level": "AUTOCOMMIT"}
    return Engine(
        host.pool,
        host.dialect,
        host.url,
        execution_options=options,
        # Bodies are among the parameters, and the host may log its statements.
        hide_parameters=True,
        echo=host.echo,
        logging_name=host.logging_name,
    )


def own_database(
    app: Flask, metadata: MetaData, uri: URL | None, *, creates_tables: bool
) -> Database:
    """An engine of our own; by default a SQLite file in the instance folder."""

    def find_engine() -> Engine:
        host_uri = app.config.get("SQLALCHEMY_DATABASE_URI")
        url = _in_instance(app, make_url(uri or host_uri or DEFAULT_URI))
        engine = own_engine(url)
        if url.get_backend_name() == "sqlite" and (uri or not host_uri):
            event.listen(engine, "connect", _tune_sqlite)
        # Nobody else closes its connections.
        weakref.finalize(app, engine.dispose)
        if not is_in_memory(url):
            _own_engines.add(engine)
        return engine

    tables = define_tables(metadata)
    return Database(tables, find_engine, creates_tables=creates_tables)


def _in_instance(app: Flask, url: URL) -> URL:
    """Read a relative SQLite path from the instance folder, like Flask-SQLAlchemy."""
    scheme = "file:" if "uri" in url.query else ""
    path = (url.database or "").removeprefix(scheme)
    if not is_sqlite_file(url) or os.path.isabs(path):
        return url
    os.makedirs(app.instance_path, exist_ok=True)
    return url.set(database=scheme + os.path.join(app.instance_path, path))


def is_sqlite_file(url: URL) -> bool:
    return url.get_backend_name() == "sqlite" and not is_in_memory(url)


def is_in_memory(url: URL) -> bool:
    """Whether the database is this process's own, gone when it ends."""
    named = ":memory:" in (url.database or ":memory:")
    in_memory = named or "memory" in url.query.get("mode", "")
    return url.get_backend_name() == "sqlite" and in_memory


def checked_url(text: str) -> URL:
    """The URL of an engine of our own.

    :raises ValueError: a part of it is no number that has to be one.
    :raises sqlalchemy.exc.ArgumentError: it is none.
    """
    url = make_url(text)
    _psycopg_arguments(url)
    return url


def own_engine(url: URL) -> Engine:
    """An engine that keeps bodies out of its errors and never waits past the sender."""
    options: dict[str, Any] = {"hide_parameters": True, "isolation_level": "AUTOCOMMIT"}
    if url.get_backend_name() == "sqlite":
        return create_engine(url, **options, **_sqlite_options(url))
    if url.get_driver_name() in HAVE_CONNECT_TIMEOUT:
        patience = {"connect_timeout": str(PATIENCE)}
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


def _tune_sqlite(connection: Any, record: Any) -> None:
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
