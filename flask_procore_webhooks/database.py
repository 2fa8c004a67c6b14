"""Where the inbox lives: whose engine, whose tables, whose session.

The inbox always uses connections of its own from the engine, whatever a subscriber
does to the host's session. Only receipts go through that session.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from typing import Protocol

from flask import Flask
from sqlalchemy import Connection
from sqlalchemy import create_engine
from sqlalchemy import Engine
from sqlalchemy import event
from sqlalchemy import inspect
from sqlalchemy import make_url
from sqlalchemy import MetaData
from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from .tables import define_tables
from .tables import Tables

#: Returns the session that subscribers use, the same one all through one run.
SessionSource = Callable[[], Session]

#: The embedded default, in the app's instance folder.
DEFAULT_URI = "sqlite:///procore_webhooks.db"

#: Seconds to wait for a lock or a free connection: less than Procore's 5.
PATIENCE = 4


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

    :param find_engine: called once, at the first use, when the host is set up.
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
        self._engine: Engine | None = None
        self._lock = threading.Lock()

    @property
    def engine(self) -> Engine:
        """The inbox's engine: each statement is a transaction of its own."""
        if self._engine is None:
            with self._lock:
                self._engine = self._engine or self._open()
        return self._engine

    def connect(self) -> Connection:
        return self.engine.connect()

    def create_tables(self) -> list[str]:
        """Create the tables that are missing; safe to repeat and to race.

        :return: the names of the tables created now.
        """
        engine = self._engine or self._find_engine()
        missing = missing_tables(engine, self.tables)
        try:
            self.tables.event.metadata.create_all(engine, tables=list(self.tables))
        except SQLAlchemyError:
            # Another process may have created them since they were looked for.
            if missing_tables(engine, self.tables):
                raise
        return missing

    def missing_tables(self) -> list[str]:
        return missing_tables(self.engine, self.tables)

    def _open(self) -> Engine:
        engine = self._find_engine()
        if self._creates_tables:
            self.create_tables()
        return engine.execution_options(isolation_level="AUTOCOMMIT")


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
        with app.app_context():
            return db.engine

    return Database(define_tables(db.metadata), find_engine, db.session)


def session_database(
    app: Flask, metadata: MetaData, session: SessionSource
) -> Database:
    """Plain SQLAlchemy: the engine is the one that ``session`` is bound to."""
    tables = define_tables(metadata)

    def find_engine() -> Engine:
        with app.app_context(), session_scope(session) as current:
            bind = current.get_bind(clauseelement=tables.event.select())
            return bind.engine

    return Database(tables, find_engine, session)


def own_database(
    app: Flask, metadata: MetaData, uri: str | None, *, creates_tables: bool
) -> Database:
    """An engine of our own; by default a SQLite file in the instance folder."""

    def find_engine() -> Engine:
        host_uri = app.config.get("SQLALCHEMY_DATABASE_URI")
        return own_engine(_in_instance(app, make_url(uri or host_uri or DEFAULT_URI)))

    tables = define_tables(metadata)
    return Database(tables, find_engine, creates_tables=creates_tables)


def _in_instance(app: Flask, url: URL) -> URL:
    """Read a relative SQLite path from the instance folder, as Flask-SQLAlchemy does."""
    if not is_sqlite_file(url):
        return url
    os.makedirs(app.instance_path, exist_ok=True)
    return url.set(database=os.path.join(app.instance_path, str(url.database)))


def is_sqlite_file(url: URL) -> bool:
    sqlite = url.get_backend_name() == "sqlite"
    return sqlite and url.database not in (None, "", ":memory:")


def own_engine(url: URL) -> Engine:
    """An engine that keeps bodies out of its errors and never waits past the sender."""
    if url.get_backend_name() != "sqlite":
        return create_engine(url, hide_parameters=True, pool_timeout=PATIENCE)
    engine = create_engine(
        url, hide_parameters=True, connect_args={"timeout": PATIENCE}
    )
    event.listen(engine, "connect", _tune_sqlite)
    return engine


@contextmanager
def session_scope(session: SessionSource) -> Iterator[Session]:
    """Give the current session, and end it: rolled back unless it was committed."""
    current = session()
    try:
        yield current
    finally:
        current.rollback()
        end = getattr(session, "remove", None) or current.close
        end()


def _tune_sqlite(connection: Any, record: Any) -> None:
    cursor = connection.cursor()
    # Readers and the writer do not wait for each other; commits still reach the disk.
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()
