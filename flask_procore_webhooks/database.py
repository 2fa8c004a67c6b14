"""Where the inbox lives: whose engine, whose tables, whose session.

The inbox always uses connections of its own from the engine, whatever a subscriber
does to the host's session. Only receipts go through that session.
"""

from __future__ import annotations

import os
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
from sqlalchemy import Engine
from sqlalchemy import event
from sqlalchemy import inspect
from sqlalchemy import make_url
from sqlalchemy import MetaData
from sqlalchemy import Table
from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError

from .engines import HostEngine
from .engines import is_in_memory
from .engines import is_sqlite_file
from .engines import own_engine
from .engines import tune_sqlite
from .forks import remember_forks
from .sessions import SessionSource
from .tables import define_tables
from .tables import Tables

#: The embedded default, in the app's instance folder.
DEFAULT_URI = "sqlite:///procore_webhooks.db"

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
        #: Whether there may be connections that are those of the parent process.
        self._inherits = False
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
        self._engine = None
        self._inherits = True

    def leave_parent(self) -> None:
        """Use no connection that was made before this process was forked.

        Two processes that share one read each other's answers. A host's engine may have
        some though the inbox had none: ``db.create_all()`` in an app factory.
        """
        if self._inherits:
            # What keeps it from being found is told where the inbox is used.
            with suppress(Exception):
                self._find()

    def _open(self) -> Engine:
        if self._creates_tables:
            self.create_tables()
        return self._found_engine

    @property
    def _found_engine(self) -> Engine:
        if self._found is None or self._inherits:
            return self._find()
        return self._found

    def _find(self) -> Engine:
        with self._lock:
            found = self._found = self._found or self._find_engine()
            # What is in memory is this process's own copy already.
            if self._inherits and not is_in_memory(found.url):
                found.dispose(close=False)
            self._inherits = False
        return found


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
            return HostEngine(db.engine)

    return Database(define_tables(db.metadata), find_engine, db.session)


def session_database(
    app: Flask, metadata: MetaData, session: SessionSource
) -> Database:
    """Plain SQLAlchemy: the engine is the one that ``session`` is bound to."""
    tables = define_tables(metadata)

    def find_engine() -> Engine:
        with context_of(app):
            bind = session().get_bind(clause=tables.event)
            return HostEngine(bind.engine)

    return Database(tables, find_engine, session)


def context_of(app: Flask) -> AbstractContextManager[object]:
    """The app's context: the one there is, as hosts end their session with it."""
    if has_app_context() and current_app == app:
        return nullcontext()
    return app.app_context()


def own_database(
    app: Flask, metadata: MetaData, uri: URL | None, *, creates_tables: bool
) -> Database:
    """An engine of our own; by default a SQLite file in the instance folder."""

    def find_engine() -> Engine:
        host_uri = app.config.get("SQLALCHEMY_DATABASE_URI")
        url = _in_instance(app, make_url(uri or host_uri or DEFAULT_URI))
        engine = own_engine(url)
        if url.get_backend_name() == "sqlite" and (uri or not host_uri):
            event.listen(engine, "connect", tune_sqlite)
        # Nobody else closes its connections.
        weakref.finalize(app, engine.dispose)
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
