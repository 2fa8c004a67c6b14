"""Endpoints of one database share engine, pool, batch, lease thread and polls."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from support.waiting import wait_until

from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.inbox import batches
from flask_procore_webhooks.inbox import due
from flask_procore_webhooks.inbox.record import Recorder
from flask_procore_webhooks.operations.pauses import pause
from flask_procore_webhooks.operations.pauses import resume
from flask_procore_webhooks.running.leases import LeaseRenewer
from flask_procore_webhooks.running.leases import renewing
from flask_procore_webhooks.running.worker import Worker
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import payload

MakeApp = Callable[..., Flask]


def mount(app: Flask, number: int, **arguments: Any) -> list[ProcoreWebhooks]:
    """Register ``number`` endpoints: ``tenant0``, ``tenant1`` …"""
    made = [
        ProcoreWebhooks(f"tenant{n}", url_prefix=f"/hooks/{n}", **arguments)
        for n in range(number)
    ]
    for webhooks in made:
        app.register_blueprint(webhooks)
    return made


@contextmanager
def statements(engine: sa.Engine) -> Iterator[list[str]]:
    """The statements on an engine, while the block runs."""
    seen: list[str] = []

    def note(c: Any, cursor: Any, statement: str, *rest: Any) -> None:
        seen.append(statement)

    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)


@pytest.fixture
def tenants(make_app: MakeApp, database_url: str) -> Iterator[Flask]:
    app = make_app(
        PROCORE_WEBHOOK_DATABASE_URI=database_url, PROCORE_WEBHOOK_DISPATCH="worker"
    )
    mount(app, 3)
    yield app
    next(iter(endpoints(app).values())).store.database.engine.dispose()


def test_endpoints_with_one_url_share_engine_batch_and_lease_thread(
    tenants: Flask,
) -> None:
    mounted = list(endpoints(tenants).values())
    databases = {id(endpoint.store.database) for endpoint in mounted}
    assert len(databases) == 1
    parts = mounted[0].store.database.parts
    for endpoint in mounted:
        answer = deliver(
            tenants.test_client(), payload("RFIs.update"), endpoint=endpoint.name
        )
        assert answer.status_code == 200
    recorder = parts[Recorder]
    threads = []
    for endpoint in mounted:
        (claim,) = batches.claim_due(endpoint.store, 1, 600)
        with renewing(endpoint.store, [claim], 600):
            threads.append(threading.current_thread())
        assert endpoint.store.database.parts[Recorder] is recorder
        assert endpoint.store.database.parts[LeaseRenewer] is parts[LeaseRenewer]
    leases = [t for t in threading.enumerate() if t is parts[LeaseRenewer]._thread]
    assert len(leases) == 1


def test_endpoints_with_one_id_have_an_event_each_in_one_batch(
    tenants: Flask,
) -> None:
    """An id is unique per endpoint, also among rows of one statement."""
    mounted = list(endpoints(tenants).values())
    recorder = Recorder(mounted[0].store)
    mounted[0].store.database.parts[Recorder] = recorder
    mounted[0].store.database.create_tables()
    started, go, work = threading.Event(), threading.Event(), recorder.insert._work

    def wait_first(rows: list[dict[str, Any]]) -> list[int | Exception]:
        if not started.is_set():
            started.set()
            assert go.wait(30)
        return work(rows)

    recorder.insert._work = wait_first
    sent = payload("RFIs.update", id="evt_1")

    def send(endpoint: str) -> int:
        client = tenants.test_client()
        return deliver(client, sent, endpoint=endpoint).status_code

    with ThreadPoolExecutor(7) as pool:
        first = pool.submit(send, "tenant0")
        assert started.wait(30)
        names = ["tenant0", "tenant1", "tenant2"] * 2
        others = [pool.submit(send, name) for name in names]
        wait_until(lambda: len(recorder.insert._waiting) == 6)
        go.set()
        assert {call.result(60) for call in [first, *others]} == {200}
    c = mounted[0].store.columns
    look = sa.select(c.endpoint, c.event_id, c.repeats).order_by(c.endpoint)
    assert [tuple(row) for row in mounted[0].store.rows(look)] == [
        ("tenant0", "evt_1", 2),
        ("tenant1", "evt_1", 1),
        ("tenant2", "evt_1", 1),
    ]


def test_one_query_finds_pauses_and_due_times_of_all_endpoints(tenants: Flask) -> None:
    first, second, third = (each.store for each in endpoints(tenants).values())
    deliver(tenants.test_client(), payload("RFIs.update"), endpoint="tenant0")
    deliver(tenants.test_client(), payload("RFIs.update"), endpoint="tenant1")
    pause(second, "tests")
    first.traits()  # asked once, before the first poll
    with statements(first.database.engine) as seen:
        waits = due.seconds_to_work([first, second, third])
    assert waits == {"tenant0": 0.0, "tenant1": None, "tenant2": None}
    assert len(seen) == 1
    resume(second, "tests")
    assert due.seconds_to_work([second, third]) == {"tenant1": 0.0, "tenant2": None}


@pytest.mark.parametrize("count", [200])
def test_an_event_costs_as_many_statements_at_many_endpoints_as_at_one(
    make_app: MakeApp, database_url: str, count: int
) -> None:
    """Counted from the delivery to the worker's next sleep, with Flask-SQLAlchemy."""
    costs = []
    for number in (1, count):
        app = make_app(
            SQLALCHEMY_DATABASE_URI=database_url, PROCORE_WEBHOOK_DISPATCH="worker"
        )
        db = SQLAlchemy(app)
        ran: list[str] = []
        webhooks = mount(app, number, db=db)[-1]

        @webhooks.on(name="note")
        def note(event: Event, ran: list[str] = ran) -> None:
            ran.append(event.id)

        with app.app_context():
            db.create_all()
        name = f"tenant{number - 1}"
        worker = Worker(endpoints(app).values(), poll=1)
        for _ in range(2):  # the first event includes one-time queries
            deliver(app.test_client(), payload("RFIs.update"), endpoint=name)
            worker.run_all()
        engine = endpoints(app)[name].store.database.engine
        with statements(engine) as seen:
            answer = deliver(app.test_client(), payload("RFIs.update"), endpoint=name)
            worker.run_all()
        assert answer.status_code == 200 and len(ran) == 3
        costs.append(len(seen))
        with app.app_context():
            db.engine.dispose()
    assert costs[1] <= 1.5 * costs[0], costs


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_thirty_endpoints_need_few_connections(
    make_app: MakeApp, database_url: str
) -> None:
    """The role may have 20 connections; a pool for each endpoint would need 30."""
    admin = sa.create_engine(database_url, isolation_level="AUTOCOMMIT")
    role = f"procore_webhooks_{uuid.uuid4().hex[:12]}"
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 20")
        connection.exec_driver_sql(f"GRANT ALL ON SCHEMA public TO {role}")
    try:
        url = sa.make_url(database_url).set(username=role)
        app = make_app(
            PROCORE_WEBHOOK_DATABASE_URI=url.render_as_string(hide_password=False),
            PROCORE_WEBHOOK_DISPATCH="worker",
        )
        mount(app, 30)

        def send(endpoint: str) -> int:
            client = app.test_client()
            sent = payload("RFIs.update")
            return deliver(client, sent, endpoint=endpoint).status_code

        names = [endpoint.name for endpoint in endpoints(app).values()]
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(send, names)) == {200}
        endpoints(app)["tenant0"].store.database.engine.dispose()
    finally:
        with admin.connect() as connection:
            connection.exec_driver_sql(f"DROP OWNED BY {role} CASCADE")
            connection.exec_driver_sql(f"DROP ROLE {role}")
        admin.dispose()


def test_a_session_that_is_replaced_after_registration_is_used(
    make_app: MakeApp,
) -> None:
    """Fixtures that roll back each test often replace ``db.session``."""
    app = make_app(SQLALCHEMY_DATABASE_URI="sqlite:///app.db")
    db = SQLAlchemy(app)

    class Note(db.Model):  # type: ignore[name-defined,misc]
        id = sa.Column(sa.Integer, primary_key=True)

    webhooks = ProcoreWebhooks(db=db)
    app.register_blueprint(webhooks)
    sessions: list[object] = []

    @webhooks.on()
    def add(event: Event) -> None:
        db.session.add(Note())
        sessions.append(db.session.registry)

    with app.app_context():
        db.create_all()
    deliver(app.test_client(), payload("RFIs.update"))
    db.session = db._make_scoped_session({})
    answer = deliver(app.test_client(), payload("RFIs.update"))
    assert answer.status_code == 200
    with app.app_context():
        assert db.session.query(Note).count() == 2
        assert len(set(map(id, sessions))) == 2
        db.engine.dispose()


def test_many_endpoints_are_polled_one_by_one_without_a_table_function(
    tenants: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CockroachDB, and MariaDB before 10.6, have no such function."""
    stores = [each.store for each in endpoints(tenants).values()]
    deliver(tenants.test_client(), payload("RFIs.update"), endpoint="tenant1")
    stores[0].traits()
    monkeypatch.setattr(due, "NAMED", {})
    traits = stores[0].database.traits
    assert traits is not None
    stores[0].database.traits = traits._replace(skips_locked=False)
    with statements(stores[0].database.engine) as seen:
        waits = due.seconds_to_work(stores)
    assert waits == {"tenant0": None, "tenant1": 0.0, "tenant2": None}
    assert len(seen) == 3
