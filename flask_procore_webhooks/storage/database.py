"""Databases of inboxes: whose engine, whose tables, whose session.

The inbox uses connections of its own, whatever a subscriber does to the host's session.
Only the end of a job is written through that session.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from collections.abc import Hashable
from contextlib import AbstractContextManager
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from typing import Protocol

from flask import Flask
from sqlalchemy import Connection
from sqlalchemy import Engine
from sqlalchemy import event
from sqlalchemy import MetaData
from sqlalchemy import URL
from sqlalchemy.orm import Session
from sqlalchemy.orm import sessionmaker

from ..runtime import keep
from ..runtime import Runtime
from ..schema.gaps import find_gaps
from ..schema.gaps import Gaps
from ..schema.tables import define_tables
from ..schema.tables import Tables
from .connections import context_of
from .engines import checked_url
from .engines import create_private_file
from .engines import HostEngine
from .engines import is_in_memory
from .engines import is_sqlite_file
from .engines import own_engine
from .engines import tune_sqlite
from .servers import fault_of
from .servers import safe_message
from .servers import Traits
from .upgrade import Changes
from .upgrade import is_current
from .upgrade import upgrade

#: The embedded default, in the app's instance folder.
DEFAULT_URI = "sqlite:///procore_webhooks.db"

#: Attribute of a host's engine: the process that has replaced the pool.
REPLACED_BY = "_procore_webhooks_pool_replaced_by"

#: Returns the session that subscribers use, the same one throughout a run.
SessionSource = Callable[[], Session]


class FlaskSQLAlchemy(Protocol):
    """The part of ``flask_sqlalchemy.SQLAlchemy`` that is used."""

    @property
    def metadata(self) -> MetaData: ...
    @property
    def session(self) -> Any: ...
    @property
    def engine(self) -> Engine: ...


@dataclass(frozen=True)
class Mount:
    """How an endpoint is mounted on a database; it holds nothing of a process."""

    #: Hooks of a host's pool may need its context.
    app: Flask
    tables: Tables
    #: Equal for endpoints of one app that share a database.
    key: Hashable
    #: Returns the engine; each statement on it is a transaction of its own.
    find_engine: Callable[[Runtime], Engine]
    #: The host's Flask-SQLAlchemy, whose ``session`` is looked up at each use.
    db: FlaskSQLAlchemy | None = None
    #: The host's session, for plain SQLAlchemy.
    session: SessionSource | None = None
    #: Whether missing tables are created at the first use.
    creates_tables: bool = False


class Database:
    """The engine and tables that endpoints with one mount key share in a process."""

    def __init__(self, mount: Mount, runtime: Runtime) -> None:
        self.mount = mount
        self.tables = mount.tables
        #: The engine once the tables are there, see :meth:`open`.
        self.opened: Engine | None = None
        #: Whether no rows of older tables are left.
        self.is_carried_over = False
        #: Known after the first connection.
        self.traits: Traits | None = None
        #: Whether the host's wait for a lock on its SQLite file is shortened for us.
        self.limits_waits = False
        #: What the endpoints share: the batch of deliveries, the lease renewer.
        self.parts: dict[Hashable, Any] = {}
        #: Set while a delivery of a test takes part in the transaction of the test:
        #: gives a connection whose statements are savepoints of it.
        self.joined: Callable[[], AbstractContextManager[Connection]] | None = None
        self.runtime = runtime
        self._found: Engine | None = None

    @property
    def engine(self) -> Engine:
        """The engine, with the tables if they are ours to create."""
        return self.opened or self.open()

    @property
    def url(self) -> URL:
        """The database's URL, known without a connection."""
        return self.find_engine().url

    def open(self) -> Engine:
        """Create or upgrade the tables if they are ours, and return the engine."""
        engine = self.find_engine()
        if self.mount.creates_tables and not is_current(engine, self.tables):
            self.upgrade()
        self.is_carried_over |= self.mount.creates_tables
        is_sqlite = engine.dialect.name == "sqlite"
        self.limits_waits = is_sqlite and isinstance(engine, HostEngine)
        self.opened = engine
        return engine

    def explain(self, error: Exception) -> str:
        """Say what failed and what to do, without a body or a part of the password."""
        # Asked only when the error names a table: while the database is down or locked,
        # another question would double the sender's wait.
        text = str(getattr(error, "orig", ""))
        # MariaDB and MySQL name only the column.
        named = "Unknown column" in text or any(t.name in text for t in self.tables)
        if named and not fault_of(error):
            with suppress(Exception):
                if (gaps := self.find_gaps()).stop_deliveries:
                    return gaps.advice
        return safe_message(error, None if self._found is None else self._found.url)

    def find_engine(self) -> Engine:
        """Return the engine without connecting. Safe to repeat and to race."""
        if self._found is None:
            self._found = self.mount.find_engine(self.runtime)
        return self._found

    def upgrade(self) -> Changes:
        """Add what is missing, and carry the rows of older tables over.

        Safe to repeat and to race.
        """
        return upgrade(self.find_engine(), self.tables)

    def create_tables(self) -> list[str]:
        """Like :meth:`upgrade`; return the names of the tables created now."""
        return self.upgrade().created

    def find_gaps(self) -> Gaps:
        """What the tables in the database lack."""
        return find_gaps(self.engine, self.tables)

    def missing_tables(self) -> list[str]:
        return self.find_gaps().table_names


def host_mount(app: Flask, db: FlaskSQLAlchemy) -> Mount:
    """Tables on ``db.metadata``; subscribers write through ``db.session``."""

    def find_engine(runtime: Runtime) -> Engine:
        with context_of(app):
            # A fixture may put a connection in the place of an engine.
            return _host_engine(runtime, db.engine.engine)

    return Mount(app, define_tables(db.metadata), ("db", id(db)), find_engine, db=db)


def session_mount(app: Flask, metadata: MetaData, session: SessionSource) -> Mount:
    """Plain SQLAlchemy: the engine that ``session`` is bound to."""
    tables = define_tables(metadata)

    def find_engine(runtime: Runtime) -> Engine:
        with context_of(app):
            bind = session().get_bind(clause=tables.event)
            return _host_engine(runtime, bind.engine)

    key = "session", id(metadata), id(session)
    return Mount(app, tables, key, find_engine, session=session)


def own_mount(
    app: Flask, metadata: MetaData, uri: URL | None, *, creates_tables: bool
) -> Mount:
    """An engine of our own; by default a SQLite file in the instance folder.

    Endpoints with one URL share one engine.
    """

    def find_engine(runtime: Runtime) -> Engine:
        host_uri = app.config.get("SQLALCHEMY_DATABASE_URI")
        url = _in_instance(app, checked_url(uri or host_uri or DEFAULT_URI))
        # The host's own file stays as the host set it up.
        tunes = url.get_backend_name() == "sqlite" and bool(uri or not host_uri)

        key = ("engine", url, tunes)
        if runtime.parent is not None and is_in_memory(url):
            # A fork has copied the database; a new engine would have an empty one.
            inherited: Engine | None = runtime.parent.parts.get(key)
            if inherited is not None:
                return inherited

        def make() -> Engine:
            engine = own_engine(url)
            if tunes:
                event.listen(engine, "do_connect", lambda *_: create_private_file(url))
                event.listen(engine, "connect", tune_sqlite)
            weakref.finalize(app, _dispose, engine, os.getpid())
            return engine

        return runtime.part(key, make)

    mount_key = ("own", id(metadata), uri)
    tables = define_tables(metadata)
    return Mount(app, tables, mount_key, find_engine, creates_tables=creates_tables)


def argument_problems(
    db: FlaskSQLAlchemy | None, metadata: MetaData | None, session: SessionSource | None
) -> list[str]:
    """The problems of a blueprint's arguments that do not fit together."""
    problems = []
    if db is not None and (metadata is not None or session is not None):
        problems.append("Pass either db= or metadata= and session=, not both.")
    if session is not None and metadata is None:
        problems.append("Pass metadata= with session=: the tables are defined on it.")
    if isinstance(session, (Session, sessionmaker)):
        problems.append(
            "session= is a single session, or makes a new session at each call; pass a"
            " scoped_session, or a callable that returns the session in use."
        )
    return problems


def _host_engine(runtime: Runtime, host: Engine) -> Engine:
    """The process's engine on the pool of ``host``.

    Connections must not cross a fork: two processes that share one read each other's
    answers. The host's pool may hold some (for example from ``db.create_all()`` in an
    app factory), so a forked process replaces it: once, also if several apps use it.
    """

    def make() -> Engine:
        replaced_by = getattr(host, REPLACED_BY, None)
        # A fork has copied a database in memory.
        is_shared = runtime.parent is not None and not is_in_memory(host.url)
        if is_shared and replaced_by != os.getpid():
            keep(host.pool)
            host.dispose(close=False)
            setattr(host, REPLACED_BY, os.getpid())
        return HostEngine(host)

    return runtime.part(("host engine", host), make)


def _dispose(engine: Engine, pid: int) -> None:
    """Close the connections of a collected app in the process that made them."""
    if os.getpid() == pid:
        engine.dispose()
    else:
        keep(engine)


def _in_instance(app: Flask, url: URL) -> URL:
    """Resolve a relative SQLite path in the instance folder, like Flask-SQLAlchemy."""
    scheme = "file:" if "uri" in url.query else ""
    path = (url.database or "").removeprefix(scheme)
    if not is_sqlite_file(url) or os.path.isabs(path):
        return url
    # The file holds what was sent; a folder that is there keeps its mode.
    os.makedirs(app.instance_path, 0o700, exist_ok=True)
    return url.set(database=scheme + os.path.join(app.instance_path, path))
