"""Errors that another try can mend: every statement is tried again, within seconds."""

from __future__ import annotations

import ast
import sqlite3
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from contextlib import contextmanager
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from soak.outages import private_server
from sqlalchemy.orm import scoped_session
from sqlalchemy.orm import sessionmaker
from support.hosts import KINDS
from support.hosts import run_host
from support.inboxes import dispose
from support.inboxes import event as new_event
from support.inboxes import row
from support.locks import wait_for_lock_wait
from support.outages import relay_to
from werkzeug.test import TestResponse

import flask_procore_webhooks
from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.errors import InboxUnavailable
from flask_procore_webhooks.inbox.record import record
from flask_procore_webhooks.storage.servers import Fault
from flask_procore_webhooks.storage.servers import fault_of
from flask_procore_webhooks.storage.store import Store
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import payload

MakeApp = Callable[..., Flask]
READ_ONLY = {
    "postgresql": "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "mysql": "SET SESSION TRANSACTION READ ONLY",
}
MINE = ["own", *KINDS]


@contextmanager
def app_on(url: str, kind: str, make_app: MakeApp, **config: Any) -> Iterator[Flask]:
    """An app with an inbox at ``url``, on an engine of its own or on a host's."""
    config.setdefault("PROCORE_WEBHOOK_DISPATCH", "worker")
    if kind != "own":
        with run_host(make_app(**config), kind, url) as host:
            yield host.app
        return
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI=url, **config)
    ProcoreWebhooks().init_app(app)
    store = store_of(app)
    yield app
    store.columns.id.table.metadata.drop_all(store.database.find_engine())
    dispose(app)


def store_of(app: Flask) -> Store:
    (endpoint,) = endpoints(app).values()
    return endpoint.store


def url_of(request: pytest.FixtureRequest, driver: str) -> str:
    backend = driver.partition("+")[0]
    fixture = {"mysql": "mariadb_url"}.get(backend, f"{backend}_url")
    url = sa.make_url(request.getfixturevalue(fixture))
    return url.set(drivername=driver).render_as_string(False)


@contextmanager
def operator(url: str) -> Iterator[sa.Connection]:
    """A connection of somebody else, in autocommit."""
    engine = sa.create_engine(url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        yield connection


@contextmanager
def delivering(app: Flask) -> Iterator[Future[TestResponse]]:
    """A delivery in another thread."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(deliver, app.test_client(), payload("RFIs.update"))


# The mechanism


def test_every_statement_goes_through_the_retries() -> None:
    package = Path(flask_procore_webhooks.__file__).parent
    direct = [
        f"{file.stem}:{node.lineno}"
        for folder in ("inbox", "running")
        for file in (package / folder).glob("*.py")
        if file.stem != "store"
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in ("connection", "transaction")
        and isinstance(node.value, ast.Name)
        and node.value.id == "store"
    ]
    assert direct == []


def pymysql_error(number: int) -> Exception:
    errors = pytest.importorskip("pymysql.err")
    return errors.OperationalError(number, "text")  # type: ignore[no-any-return]


def psycopg_error(sqlstate: str) -> Exception:
    errors = pytest.importorskip("psycopg.errors")
    return errors.lookup(sqlstate)("text")  # type: ignore[no-any-return]


@pytest.mark.server
@pytest.mark.parametrize(
    ("make", "code", "fault"),
    [
        *((psycopg_error, code, Fault.LOCK) for code in ("40001", "40P01", "55P03")),
        *((psycopg_error, code, Fault.CONNECTION) for code in ("57P01", "08006")),
        (psycopg_error, "25006", Fault.READ_ONLY),
        *((psycopg_error, code, None) for code in ("42P01", "53100", "42501", "28P01")),
        *((pymysql_error, code, Fault.LOCK) for code in (1205, 1213, 1020)),
        *((pymysql_error, code, Fault.CONNECTION) for code in (1053, 1927, 2013)),
        *((pymysql_error, code, Fault.READ_ONLY) for code in (1290, 1836, 1792)),
        *((pymysql_error, code, None) for code in (1146, 1021, 1142, 1045)),
    ],
)
def test_errors_are_known_by_their_codes(
    make: Callable[[Any], Exception], code: Any, fault: Fault | None
) -> None:
    assert fault_of(sa.exc.DBAPIError("statement", {}, make(code))) is fault
    assert fault_of(make(code)) is fault


def test_locked_and_broken_sqlite_files_are_told_apart(tmp_path: Path) -> None:
    def error_of(path: Path, statement: str) -> sqlite3.Error:
        with closing(sqlite3.connect(path, timeout=0)) as connection:
            with pytest.raises(sqlite3.Error) as raised:
                connection.execute(statement)
        return raised.value

    path = tmp_path / "a.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("CREATE TABLE t (a)")
        other.execute("BEGIN EXCLUSIVE")
        assert fault_of(error_of(path, "INSERT INTO t VALUES (1)")) is Fault.LOCK
    assert fault_of(error_of(path, "INSERT INTO missing VALUES (1)")) is None
    (tmp_path / "b.db").write_bytes(b"no database" * 100)
    assert fault_of(error_of(tmp_path / "b.db", "CREATE TABLE t (a)")) is None


# Locks


@pytest.mark.parametrize("kind", MINE)
def test_lock_timeout_is_tried_again(
    postgresql_url: str, make_app: MakeApp, kind: str
) -> None:
    """A role or database may have a lock_timeout."""
    waits = postgresql_url + "?options=-c%20lock_timeout%3D50"
    with app_on(waits, kind, make_app) as app:
        store = store_of(app)
        store.retry_seconds = 60.0  # a look at the locks meets few of the short waits
        record(store, new_event())
        with operator(postgresql_url) as other, ThreadPoolExecutor(1) as pool:
            other.exec_driver_sql("BEGIN")
            other.exec_driver_sql("SELECT * FROM procore_webhook_event FOR UPDATE")
            repeat = pool.submit(record, store, new_event())
            wait_for_lock_wait(other)
            time.sleep(0.2)  # longer than the lock_timeout
            other.exec_driver_sql("COMMIT")
            assert not repeat.result(30).is_new


def deliver_crosswise(apps: list[Flask], rounds: int, events: int) -> list[int]:
    """Deliver the same events to two apps at once, in opposite orders."""
    statuses: list[int] = []
    for number in range(rounds):
        sent = [payload("RFIs.update", id=f"{number}_{n}") for n in range(events)]
        barrier = threading.Barrier(2 * events)

        def send(
            app: Flask, each: dict[str, Any], barrier: threading.Barrier = barrier
        ) -> int:
            client = app.test_client()
            barrier.wait(60)
            return deliver(client, each).status_code

        with ThreadPoolExecutor(2 * events) as pool:
            calls = [pool.submit(send, apps[0], each) for each in sent]
            calls += [pool.submit(send, apps[1], each) for each in reversed(sent)]
            statuses += [call.result(60) for call in calls]
    return statuses


@pytest.mark.slow
@pytest.mark.parametrize("server", ["postgresql", "mariadb"])
def test_same_events_at_two_servers_at_once_are_all_accepted(
    request: pytest.FixtureRequest, make_app: MakeApp, server: str
) -> None:
    url = request.getfixturevalue(f"{server}_url")
    with ExitStack() as stack:
        apps = [stack.enter_context(app_on(url, "own", make_app)) for _ in range(2)]
        store_of(apps[0]).database.create_tables()
        statuses = deliver_crosswise(apps, rounds=12, events=30)
        assert statuses == [200] * 720
        rows = store_of(apps[0]).rows(sa.text("SELECT * FROM procore_webhook_event"))
        assert len(rows) == 360


# Read-only after a failover


def make_pool_read_only(engine: sa.Engine, connections: int) -> None:
    """Sessions opened while the server was a standby stay read-only in a pool."""
    opened = [engine.connect() for _ in range(connections)]
    for connection in opened:
        connection.exec_driver_sql(READ_ONLY[engine.dialect.name])
        connection.close()


DRIVERS = ["postgresql+psycopg", "postgresql+psycopg2", "mysql+pymysql"]


@pytest.mark.parametrize("kind", MINE)
@pytest.mark.parametrize("driver", DRIVERS)
def test_read_only_sessions_in_a_pool_refuse_no_delivery(
    request: pytest.FixtureRequest, make_app: MakeApp, driver: str, kind: str
) -> None:
    with app_on(url_of(request, driver), kind, make_app) as app:
        client = app.test_client()
        assert deliver(client, payload("RFIs.update")).status_code == 200
        make_pool_read_only(store_of(app).database.engine, 4)
        for _ in range(6):
            assert deliver(client, payload("RFIs.update")).status_code == 200


@pytest.mark.parametrize("kind", MINE)
@pytest.mark.parametrize("driver", DRIVERS[:2])
def test_read_only_database_is_named_and_used_again_without_a_restart(
    request: pytest.FixtureRequest,
    make_app: MakeApp,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    driver: str,
    kind: str,
) -> None:
    url = url_of(request, driver)
    switch = f"ALTER DATABASE {sa.make_url(url).database}"
    with app_on(url, kind, make_app) as app, operator(url) as other:
        client, sent = app.test_client(), payload("RFIs.update")
        assert deliver(client, payload("RFIs.update")).status_code == 200
        other.exec_driver_sql(f"{switch} SET default_transaction_read_only = on")
        store_of(app).database.engine.dispose()
        with monkeypatch.context() as patch:
            patch.setattr(Store, "retry_seconds", 0.2)
            assert deliver(client, sent).status_code == 503
        assert "the database is read-only: after a failover" in caplog.text
        # A switch while a delivery is tried again.
        with delivering(app) as delivery:
            time.sleep(0.3)
            other.exec_driver_sql(f"{switch} RESET default_transaction_read_only")
            assert delivery.result(30).status_code == 200
        assert deliver(client, sent).status_code == 200


@pytest.mark.slow
@pytest.mark.server
def test_read_only_mariadb_is_used_again_without_a_restart(
    make_app: MakeApp,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with private_server("mariadb") as server:
        if server is None:
            pytest.skip("MariaDB is not installed")
        with operator(server.direct_url) as other:
            other.exec_driver_sql("CREATE USER app@'127.0.0.1'")
            other.exec_driver_sql("GRANT ALL ON soak.* TO app@'127.0.0.1'")
            url = sa.make_url(server.url).set(username="app").render_as_string(False)
            with app_on(url, "own", make_app) as app:
                client, sent = app.test_client(), payload("RFIs.update")
                assert deliver(client, payload("RFIs.update")).status_code == 200
                other.exec_driver_sql("SET GLOBAL read_only = 1")
                with monkeypatch.context() as patch:
                    patch.setattr(Store, "retry_seconds", 0.2)
                    assert deliver(client, sent).status_code == 503
                assert "the database is read-only" in caplog.text
                with delivering(app) as delivery:
                    time.sleep(0.3)
                    other.exec_driver_sql("SET GLOBAL read_only = 0")
                    assert delivery.result(30).status_code == 200
                assert deliver(client, sent).status_code == 200


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("server", ["postgresql", "mariadb"])
def test_session_with_a_read_only_connection_gets_a_new_one(
    request: pytest.FixtureRequest, make_app: MakeApp, server: str, kind: str
) -> None:
    url = request.getfixturevalue(f"{server}_url")
    with run_host(make_app(), kind, url) as host:
        met: list[str] = []

        @host.webhooks.on(name="writer")
        def writer(event: Event) -> None:
            if not met:
                met.append(event.id)
                statement = READ_ONLY[host.engine.dialect.name]
                host.session.execute(sa.text(statement))
                host.session.commit()
            host.note(event.id)

        assert host.deliver().status_code == 500
        pool: Any = host.engine.pool
        assert pool.checkedout() == 0
        with host.engine.connect() as connection:
            connection.execute(sa.insert(host.note_table).values(text="writable"))
            connection.rollback()
        assert host.deliver().status_code == 200
        assert host.notes() == [host.payload["id"]]


# Connections


@pytest.mark.parametrize("kind", MINE)
@pytest.mark.parametrize("server", ["postgresql", "mariadb"])
def test_restart_of_the_server_refuses_no_delivery(
    request: pytest.FixtureRequest, make_app: MakeApp, server: str, kind: str
) -> None:
    with relay_to(request.getfixturevalue(f"{server}_url")) as relay:
        with app_on(relay.url, kind, make_app) as app:
            client = app.test_client()
            assert deliver(client, payload("RFIs.update")).status_code == 200
            relay.cut()
            with delivering(app) as delivery:
                time.sleep(0.5)
                assert not delivery.done()
                relay.mend()
                assert delivery.result(30).status_code == 200


@pytest.mark.parametrize("kind", KINDS)
def test_exhausted_pool_of_the_host_refuses_no_delivery(
    make_app: MakeApp, database_url: str, kind: str
) -> None:
    """The host's requests hold every connection, maybe the delivery's own request."""
    engine = sa.create_engine(database_url, pool_size=1, max_overflow=0)
    session = scoped_session(sessionmaker(engine))
    metadata = sa.MetaData()
    app = make_app(PROCORE_WEBHOOK_DISPATCH="worker")
    app.register_blueprint(ProcoreWebhooks(metadata=metadata, session=session))
    metadata.create_all(engine)

    @app.before_request
    def hold() -> None:
        session.execute(sa.text("SELECT 1"))

    @app.teardown_request
    def release(error: BaseException | None) -> None:
        session.remove()

    sent = payload("RFIs.update")
    for _ in range(2):
        assert deliver(app.test_client(), sent).status_code == 200
    pool: Any = engine.pool
    assert (pool.size(), pool.checkedout()) == (1, 0)
    engine.dispose()


# SQLite


@pytest.mark.slow
@pytest.mark.parametrize("kind", MINE)
def test_deliveries_outwait_a_locked_sqlite_file(
    make_app: MakeApp, tmp_path: Path, kind: str
) -> None:
    """Each delivery of a batch waits for its own time, not for its leader's."""
    path = tmp_path / "inbox.db"
    with app_on(f"sqlite:///{path}", kind, make_app) as app:
        assert deliver(app.test_client(), payload("RFIs.update")).status_code == 200
        with ThreadPoolExecutor(4) as pool, closing(sqlite3.connect(path)) as other:

            def send() -> tuple[int, float]:
                start = time.monotonic()
                answer = deliver(app.test_client(), payload("RFIs.update"))
                return answer.status_code, time.monotonic() - start

            other.isolation_level = None
            other.execute("BEGIN IMMEDIATE")
            first = pool.submit(send)
            time.sleep(1.5)
            later = [pool.submit(send) for _ in range(3)]
            status, seconds = first.result(30)
            assert (status, seconds < 5) == (503, True)
            assert not any(each.done() for each in later)
            other.execute("COMMIT")
            assert [each.result(30)[0] for each in later] == [200] * 3
            assert all(each.result()[1] < 5 for each in later)


def test_host_keeps_its_own_wait_for_a_lock(make_app: MakeApp, tmp_path: Path) -> None:
    with run_host(make_app(), KINDS[0], f"sqlite:///{tmp_path / 'a.db'}") as host:
        look = sa.text("PRAGMA busy_timeout")
        with host.engine.connect() as connection:
            before = connection.scalar(look)
        assert host.deliver().status_code == 200
        with host.engine.connect() as connection:
            assert connection.scalar(look) == before


# The end of the retries


@pytest.mark.usefixtures("short_retries")
def test_batch_that_is_inserted_row_by_row_has_an_end(store: Store) -> None:
    record(store, new_event())
    recorder = next(p for p in store.database.parts.values() if hasattr(p, "insert"))
    row_of = dict(row(store))
    past, later = time.monotonic() - 1, time.monotonic() + 60
    outcomes = recorder._insert_singly([(row_of, past), (row_of, later)], past)
    assert isinstance(outcomes[0], InboxUnavailable) and outcomes[1] is None
