"""Isolation of deliveries in tests: contexts, sessions and transactions of the suite.

A delivery in a test sees none of the contexts that the suite has pushed. It takes part
in the transaction of a rollback fixture.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import ExitStack
from contextlib import suppress
from contextvars import Context
from contextvars import copy_context
from functools import partial
from typing import Any
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy import Engine
from sqlalchemy import NestedTransaction
from sqlalchemy import URL

from ..endpoint import Endpoint
from ..storage.database import SessionSource

T = TypeVar("T")


def apart(mounted: list[Endpoint], call: Callable[[], T]) -> T:
    """Return ``call()``, made outside of every context that the suite has pushed.

    Neither ``g`` nor the request, the logged-in user or the SQLAlchemy session of the
    test is seen by the call, and each of them is as it was afterwards. A transaction
    that the test rolls back at its end includes what the call writes.
    """
    outside = Context()
    for variable, value in copy_context().items():
        # Of Flask's own variables; they cannot be unset in a copy.
        if not variable.name.startswith("flask."):
            outside.run(variable.set, value)
    with ExitStack() as stack:
        for endpoint in mounted:
            source = host_session(endpoint)
            if source is not None:
                stack.enter_context(_set_aside(source))
                stack.enter_context(_joined(endpoint, source))
        return outside.run(call)


def url_of_host(endpoint: Endpoint) -> URL | None:
    """The URL of the database of ``db=`` or ``session=``, without a connection.

    The test's session and the fixtures that come later see no change.
    """
    source = host_session(endpoint)
    if source is None:
        return None
    with _set_aside(source):
        bind = _bind(endpoint, source)
    return None if bind is None else bind.engine.url


def host_session(endpoint: Endpoint) -> SessionSource | None:
    """The session of ``db=`` or ``session=``; ``None`` without both."""
    mount = endpoint.mount
    return mount.session if mount.db is None else mount.db.session


@contextmanager
def _set_aside(source: SessionSource) -> Iterator[None]:
    """Keep the test's session, which a teardown function of the app would remove.

    A fixture may have replaced ``db.session`` by one that is the same in all contexts.
    """
    registry: Any = getattr(source, "registry", None)
    mine = None
    # Flask-SQLAlchemy's registry raises without an app context.
    with suppress(RuntimeError):
        mine = registry() if registry and registry.has() else None
    if mine is None:
        yield
        return
    registry.clear()
    try:
        yield
    finally:
        registry.set(mine)


@contextmanager
def _joined(endpoint: Endpoint, source: SessionSource) -> Iterator[None]:
    """Let the inbox take part in the transaction that a rollback fixture has begun.

    On a connection of its own, the inbox would wait for locks of that transaction, and
    its rows would outlive the test.
    """
    connection = _bound_to(endpoint, source)
    if connection is None:
        yield
        return
    database = endpoint.store.database
    driver: Any = connection.connection.dbapi_connection
    if getattr(driver, "in_transaction", True) is False:
        # sqlite3 begins a transaction with the first change; a savepoint before that
        # would be the transaction.
        connection.exec_driver_sql("BEGIN")
    before, database.joined = database.joined, partial(_savepoints, connection)
    try:
        # In a savepoint, sessions of the default join_transaction_mode begin savepoints
        # of their own, which a failed attempt rolls back.
        with connection.begin_nested():
            yield
    finally:
        database.joined = before


def _bound_to(endpoint: Endpoint, source: SessionSource) -> Connection | None:
    """The connection in a transaction to which the sessions of ``source`` are bound."""
    bind = _bind(endpoint, source)
    if isinstance(bind, Connection) and bind.in_transaction():
        return bind
    return None


def _bind(endpoint: Endpoint, source: SessionSource) -> Engine | Connection | None:
    """What the sessions of ``source`` are bound to; ``None`` if nothing is known."""
    bind: Engine | Connection | None = None
    # A session that only a request has is bound to nothing here.
    with suppress(Exception), endpoint.app.app_context():
        bind = source().get_bind(clause=endpoint.mount.tables.event)
        if remove := getattr(source, "remove", None):
            remove()
    return bind


@contextmanager
def _savepoints(connection: Connection) -> Iterator[Connection]:
    """A connection for the inbox, which ends with a savepoint of its own released."""
    statements: Any = _Savepoints(connection)
    try:
        yield statements
    except BaseException:
        statements.outermost.rollback()
        raise
    statements.release()


class _Savepoints:
    """A connection on which each statement is a savepoint of a test's transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.outermost = connection.begin_nested()
        self._inner: list[NestedTransaction] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, *statement: Any) -> Any:
        return self._try(self._connection.execute, statement)

    def scalar(self, *statement: Any) -> Any:
        return self._try(self._connection.scalar, statement)

    def exec_driver_sql(self, *statement: Any) -> Any:
        return self._try(self._connection.exec_driver_sql, statement)

    def release(self) -> None:
        """Release every savepoint, after the results have been read."""
        while self._inner:
            self._inner.pop().commit()
        self.outermost.commit()

    def _try(self, execute: Callable[..., Any], statement: tuple[Any, ...]) -> Any:
        savepoint = self._connection.begin_nested()
        try:
            result = execute(*statement)
        except BaseException:
            savepoint.rollback()
            raise
        self._inner.append(savepoint)
        return result
