"""For tests of apps: real deliveries through the real app.

A delivery is bytes with real headers. It goes through the app's WSGI stack and is
verified, recorded and run as in production. The pytest plug-in offers the same as the
fixture ``procore_webhooks``.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from contextlib import ExitStack
from contextlib import suppress
from contextvars import Context
from contextvars import copy_context
from copy import copy
from functools import partial
from typing import Any
from typing import TypeVar
from urllib.parse import urlsplit

from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Connection
from sqlalchemy import NestedTransaction
from werkzeug.test import TestResponse

from .endpoint import Endpoint
from .endpoint import endpoints
from .inbox.database import context_of
from .inbox.database import SessionSource
from .inbox.queries import newest
from .running import dispatch
from .running.sessions import end_session
from .senders.procore import PROCORE
from .senders.prudra import PRUDRA
from .senders.samples import Credentials
from .senders.samples import payload
from .senders.samples import to_bytes
from .senders.signature import sign

T = TypeVar("T")

__all__ = ["PROCORE", "PRUDRA", "Deliveries", "deliver", "drain", "payload", "sign"]


def deliver(
    client: FlaskClient,
    payload: bytes | Mapping[str, Any],
    *,
    endpoint: str | None = None,
    timestamp: int | str | None = None,
    headers: Mapping[str, str | None] | None = None,
) -> TestResponse:
    """Deliver ``payload`` to the client's app, authentic for its endpoint.

    The delivery is a request of its own, whatever contexts the suite has pushed: it has
    its own app context, ``g`` and session of SQLAlchemy. It has no cookies of
    ``client``, and comes over https.

    :param payload: a body as bytes, or what :func:`payload` returns.
    :param endpoint: the endpoint's name; needed where the app has several.
    :param timestamp: Unix seconds to sign; now, if left out.
    :param headers: replace headers of the same name, for example to make a forgery;
        ``None`` leaves a header out.
    :raises LookupError: the app has no such endpoint, or several and none was named.
    """
    target = _endpoint(client.application, endpoint)
    body = to_bytes(payload)
    sender = Credentials.of(target.source, target.settings)
    sent = sender.headers(body, timestamp=timestamp, instead=headers)
    path, base_url = _address(target)

    def post() -> TestResponse:
        return _sender_client(client).post(
            path, base_url=base_url, data=body, headers=sent
        )

    return _apart(list(endpoints(target.app).values()), post)


def drain(app: Flask, *, advance: float = 0.0, early: bool = False) -> int:
    """Run every recorded event that is due, each once; return how many were run.

    It runs like :func:`deliver` in contexts of its own.

    :param advance: seconds; also the events that will be due within them.
    :param early: also every event that waits for its next attempt.
    """

    mounted = list(endpoints(app).values())

    def run() -> int:
        return dispatch.drain(mounted, ignore_backoff=early, ahead=advance)

    return _apart(mounted, run)


class Deliveries:
    """The fixture ``procore_webhooks``: the helpers, bound to one app."""

    payload = staticmethod(payload)
    sign = staticmethod(sign)

    def __init__(self, app: Flask) -> None:
        self.app = app

    def deliver(
        self,
        payload: bytes | Mapping[str, Any],
        *,
        endpoint: str | None = None,
        timestamp: int | str | None = None,
        headers: Mapping[str, str | None] | None = None,
    ) -> TestResponse:
        """Deliver ``payload`` to the app; see :func:`deliver`."""
        return deliver(
            self.app.test_client(),
            payload,
            endpoint=endpoint,
            timestamp=timestamp,
            headers=headers,
        )

    def drain(self, *, advance: float = 0.0, early: bool = False) -> int:
        """Run every recorded event that is due; see :func:`drain`."""
        return drain(self.app, advance=advance, early=early)

    def events(self, endpoint: str | None = None) -> list[Mapping[str, Any]]:
        """The newest 100 rows of the inbox, newest first, without bodies."""
        target = _endpoint(self.app, endpoint)
        return _apart([target], lambda: newest(target.store, limit=100))


def _endpoint(app: Flask, name: str | None) -> Endpoint:
    mounted = list(endpoints(app).values())
    found = [each for each in mounted if name in (None, each.name)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(each.name for each in mounted) or "none"
    raise LookupError(f"Name one endpoint= of the app; it has: {names}.")


def _apart(mounted: list[Endpoint], call: Callable[[], T]) -> T:
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
            mount = endpoint.mount
            source = mount.session if mount.db is None else mount.db.session
            if source is not None:
                stack.enter_context(_set_aside(source))
                stack.enter_context(_joined(endpoint, source))
        return outside.run(call)


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
    database = endpoint.store.database
    if connection is None or database.joined is not None:
        yield
        return
    driver: Any = connection.connection.dbapi_connection
    if getattr(driver, "in_transaction", True) is False:
        # sqlite3 begins a transaction with the first change; a savepoint before that
        # would be the transaction.
        connection.exec_driver_sql("BEGIN")
    database.joined = partial(_savepoints, connection)
    try:
        # In a savepoint, sessions of the default join_transaction_mode begin savepoints
        # of their own, which a failed attempt rolls back.
        with connection.begin_nested():
            yield
    finally:
        database.joined = None


def _bound_to(endpoint: Endpoint, source: SessionSource) -> Connection | None:
    """The connection in a transaction to which the sessions of ``source`` are bound."""
    bind: object = None
    # A session that only a request has is bound to no connection of the test.
    with suppress(Exception), context_of(endpoint.app):
        bind = source().get_bind(clause=endpoint.mount.tables.event)
        if hasattr(source, "registry"):
            end_session(source)
    if isinstance(bind, Connection) and bind.in_transaction():
        return bind
    return None


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


def _sender_client(client: FlaskClient) -> FlaskClient:
    """A client of the same class that is new: without cookies and preserved contexts.

    A sender of webhooks has no cookies, and the contexts that ``with client:``
    preserves end where they were pushed.
    """
    sender = copy(client)
    FlaskClient.__init__(
        sender, client.application, client.response_wrapper, use_cookies=False
    )
    sender.environ_base = dict(client.environ_base)
    return sender


def _address(endpoint: Endpoint) -> tuple[str, str]:
    """The path that a sender posts to, and the URL of the app's root; over https."""
    config = endpoint.app.config
    trusted = [host.lstrip(".") for host in config.get("TRUSTED_HOSTS") or ()]
    host = config.get("SERVER_NAME") or next(iter(trusted), "localhost")
    adapter = endpoint.app.url_map.bind(host, url_scheme="https")
    url = urlsplit(adapter.build(f"{endpoint.blueprint}.receive", force_external=True))
    root = config["APPLICATION_ROOT"].lstrip("/")
    # With host_matching, a rule without a host builds a URL without one.
    return url.path, f"https://{url.netloc or host}/{root}"
