"""Events that the app records itself: ``webhooks.enqueue``."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from support.counts import in_memory
from support.hosts import Host
from support.hosts import KINDS
from support.hosts import run_host
from support.inboxes import by_id
from support.inboxes import row
from support.inboxes import statuses
from support.sites import at_once
from support.waiting import wait_until

from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import PrudraWebhooks
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.storage.store import Store
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import drain
from flask_procore_webhooks.testing import payload

MakeApp = Callable[..., Flask]


@pytest.fixture(params=KINDS)
def host(
    request: pytest.FixtureRequest, make_app: MakeApp, database_url: str
) -> Iterator[Host]:
    with run_host(make_app(), request.param, database_url) as host:
        yield host


@pytest.fixture
def calls(webhooks: ProcoreWebhooks) -> list[Event]:
    calls: list[Event] = []
    webhooks.on()(calls.append)
    return calls


# Fields


@pytest.mark.parametrize("make", [ProcoreWebhooks, PrudraWebhooks])
def test_run_reads_the_event_that_was_returned(
    make_app: MakeApp, make: type[ProcoreWebhooks]
) -> None:
    app, webhooks, calls = make_app(), make(), list[Event]()
    app.register_blueprint(webhooks)
    webhooks.on("Submittals", "update")(calls.append)
    with app.app_context():
        event = webhooks.enqueue(
            "Submittals.updated",
            resource_id=12,
            project_id="3001",
            company_id=7,
            data={"Grüße": [1, None, {"deep": True}]},
        )
    assert (event.type, event.reason) == ("Submittals.update", "update")
    ids = event.resource_id, event.project_id, event.company_id, event.user_id
    assert ids == ("12", "3001", "7", None)
    assert event.data == {"Grüße": [1, None, {"deep": True}]}
    assert event.id.startswith("enqueue:") and len(event.id) == 40
    assert event.origin == "enqueue" and event.received_at is not None

    assert drain(app) == 1
    assert calls == [replace(event, attempt=1)]


def test_event_without_data_has_the_whole_payload(
    app: Flask, webhooks: ProcoreWebhooks
) -> None:
    with app.app_context():
        event = webhooks.enqueue("Projects.create", id="sweep:1", project_id=1)
    assert event.data == event.payload
    assert event.data["project_id"] == 1 and event.id == "sweep:1"
    assert event.timestamp is not None


def test_type_without_a_reason_matches_any_reason(
    app: Flask, webhooks: ProcoreWebhooks, calls: list[Event]
) -> None:
    with app.app_context():
        webhooks.enqueue("sweep")
    drain(app)
    assert [(each.type, each.resource_type, each.reason) for each in calls] == [
        ("sweep", "sweep", None)
    ]


def test_row_names_the_origin(
    app: Flask, webhooks: ProcoreWebhooks, store: Store
) -> None:
    with app.app_context():
        webhooks.enqueue("RFIs.update", id="a")
    deliver(app.test_client(), payload("RFIs.update", id="b"))
    origins = {id: row["origin"] for id, row in by_id(store).items()}
    assert origins == {"a": "enqueue", "b": "delivery"}
    assert in_memory(store)["enqueued"] == in_memory(store)["recorded"] == 1


def test_loop_filter_does_not_apply(make_app: MakeApp) -> None:
    app, webhooks = make_app(PROCORE_WEBHOOK_IGNORE_USER_IDS=["1"]), ProcoreWebhooks()
    app.register_blueprint(webhooks)
    (endpoint,) = endpoints(app).values()
    with app.app_context():
        webhooks.enqueue("RFIs.update", id="a", data={"user_id": 1})
    assert statuses(endpoint.store) == {"a": "pending"}


# The caller's transaction


def test_event_exists_exactly_if_the_caller_commits(host: Host) -> None:
    calls: list[str] = []
    host.webhooks.on("Submittals")(lambda event: calls.append(event.id))
    with host.app.app_context():
        host.note("first")
        host.webhooks.enqueue("Submittals.update", id="a")
        assert statuses(host.store) == {}
        host.session.rollback()
        assert statuses(host.store) == {}
        host.note("second")
        host.webhooks.enqueue("Submittals.update", id="b")
        host.session.commit()
    assert host.notes() == ["second"]
    assert statuses(host.store) == {"b": "pending"}
    assert drain(host.app) == 1
    assert calls == ["b"]


def test_second_event_of_one_id_changes_nothing(host: Host) -> None:
    with host.app.app_context():
        first = host.webhooks.enqueue("RFIs.update", id="a", data=1)
        again = host.webhooks.enqueue("RFIs.delete", id="a", data=2)
        host.session.commit()
        before = row(host.store, "a")
        third = host.webhooks.enqueue("RFIs.delete", id="a", data=3)
        host.session.commit()
    assert first.data == again.data == third.data == 1
    assert first.reason == third.reason == "update"
    assert row(host.store, "a") == before
    assert in_memory(host.store) == {"enqueued": 1}


def test_received_event_of_the_same_id_is_returned(host: Host) -> None:
    sent = payload("RFIs.create", resource_id=5)
    host.deliver(sent)
    with host.app.app_context():
        event = host.webhooks.enqueue("RFIs.update", id=sent["id"])
        host.session.commit()
    found = event.origin, event.reason, event.resource_id
    assert found == ("delivery", "create", "5")
    assert len(statuses(host.store)) == 1


def test_transactions_with_one_id_record_one_event(host: Host) -> None:
    def sweep(number: int) -> str:
        with host.app.app_context():
            event = host.webhooks.enqueue("RFIs.update", id="hourly", data=number)
            host.session.commit()
            host.session.remove()
            return event.id

    count = 4 if host.engine.dialect.name != "sqlite" else 1
    assert set(at_once(sweep, range(count))) == {"hourly"}
    assert list(statuses(host.store)) == ["hourly"]


def test_subscriber_enqueues_in_its_own_commit(host: Host) -> None:
    @host.webhooks.on("RFIs")
    def plan(event: Event) -> None:
        host.webhooks.enqueue("Reports.update", id=f"report:{event.id}")
        if host.notes() == []:
            raise ValueError("the first attempt")

    ran: list[str] = []
    host.webhooks.on("Reports")(lambda event: ran.append(event.id))
    host.app.config["PROCORE_WEBHOOK_DISPATCH"] = "worker"
    sent = payload("RFIs.update")
    host.deliver(sent)
    drain(host.app)
    assert list(statuses(host.store)) == [sent["id"]]
    with host.app.app_context():
        host.note("go on")
        host.session.commit()
    drain(host.app, advance=100)
    drain(host.app)
    assert ran == [f"report:{sent['id']}"]


def test_enqueue_without_a_session_is_committed_at_once(
    app: Flask, webhooks: ProcoreWebhooks, store: Store
) -> None:
    with app.app_context():
        first = webhooks.enqueue("RFIs.update", id="a", data=1)
        again = webhooks.enqueue("RFIs.delete", id="a", data=2)
    assert statuses(store) == {"a": "pending"}
    assert again == first
    assert (row(store, "a")["repeats"], row(store, "a")["conflicts"]) == (0, 0)


def test_pending_writes_of_a_session_in_memory_are_not_committed(
    make_app: MakeApp,
) -> None:
    """Such a database has one connection, which the inbox shares."""
    with run_host(make_app(), "flask_sqlalchemy", "sqlite://") as host:
        with host.app.app_context():
            host.note("one")
            host.webhooks.enqueue("RFIs.update", id="a")
            host.session.rollback()
            assert host.notes() == []
        assert statuses(host.store) == {}


# After the commit


@pytest.fixture
def committed(make_app: MakeApp, tmp_path: Any) -> Iterator[Host]:
    url = f"sqlite:///{tmp_path / 'host.db'}"
    with run_host(make_app(), "flask_sqlalchemy", url) as host:
        yield host


def test_background_runs_the_event_after_the_commit(committed: Host) -> None:
    host, calls = committed, list[str]()
    host.app.config["PROCORE_WEBHOOK_DISPATCH"] = "background"
    host.webhooks.on()(lambda event: calls.append(event.id))
    host.app.test_client().get("/")
    with host.app.app_context():
        host.webhooks.enqueue("RFIs.update", id="a")
        with pytest.raises(AssertionError):
            wait_until(lambda: calls, 0.3)
        host.session.commit()
    wait_until(lambda: calls == ["a"], 10)


def test_process_that_does_not_serve_starts_no_thread(committed: Host) -> None:
    host = committed
    host.app.config["PROCORE_WEBHOOK_DISPATCH"] = "background"
    with host.app.app_context():
        host.webhooks.enqueue("RFIs.update", id="a")
        host.session.commit()
    assert host.endpoint.state.runtime.parts.keys().isdisjoint({"background"})
    assert statuses(host.store) == {"a": "pending"}
    assert drain(host.app) == 1


def test_celery_gets_one_message_after_the_outermost_commit(committed: Host) -> None:
    celery = pytest.importorskip("celery")
    signals = pytest.importorskip("celery.signals")
    from flask_procore_webhooks.dispatching.tasks import register_tasks

    host, sent = committed, list[Any]()

    def note(body: Any = None, **_: object) -> None:
        sent.append(body[0])

    host.app.config["PROCORE_WEBHOOK_DISPATCH"] = "celery"
    host.app.extensions["celery"] = celery.Celery("host", broker="memory://")
    register_tasks()
    signals.before_task_publish.connect(note)
    try:
        with host.app.app_context():
            with host.session.begin_nested():
                host.webhooks.enqueue("RFIs.update", id="a")
            host.webhooks.enqueue("RFIs.update", id="b")
            assert sent == []
            host.session.commit()
            ids = [row(host.store, each)["id"] for each in "ab"]
            assert sent == [[host.endpoint.name, each] for each in ids]
            # A rollback forgets; the next commit sends only its own.
            host.webhooks.enqueue("RFIs.update", id="c")
            host.session.rollback()
            host.webhooks.enqueue("RFIs.update", id="d")
            host.session.commit()
        assert sent[2:] == [[host.endpoint.name, row(host.store, "d")["id"]]]
    finally:
        signals.before_task_publish.disconnect(note)


def test_workers_are_notified_after_the_commit(
    make_app: MakeApp, postgresql_url: str
) -> None:
    psycopg = pytest.importorskip("psycopg", "3.2")
    url = sa.make_url(postgresql_url).set(drivername="postgresql")
    listener = psycopg.connect(
        url.render_as_string(hide_password=False), autocommit=True
    )
    listener.execute("LISTEN procore_webhooks")

    def received() -> list[str]:
        return [each.payload for each in listener.notifies(timeout=0.5)]

    app = make_app(PROCORE_WEBHOOK_DISPATCH="worker")
    with run_host(app, "flask_sqlalchemy", postgresql_url) as host:
        with app.app_context():
            host.webhooks.enqueue("RFIs.update")
            assert received() == []
            host.session.commit()
            assert received() == ["procore_webhooks"]
    listener.close()


# Errors


def test_enqueue_needs_an_app_context(webhooks: ProcoreWebhooks) -> None:
    with pytest.raises(RuntimeError, match="inside of 'with app.app_context"):
        webhooks.enqueue("RFIs.update")


def test_enqueue_needs_a_registered_blueprint(app: Flask) -> None:
    with app.app_context(), pytest.raises(RuntimeError, match="has 0 endpoints"):
        ProcoreWebhooks("other").enqueue("RFIs.update")


def test_blueprint_registered_twice_uses_the_endpoint_of_its_name(
    app: Flask, webhooks: ProcoreWebhooks, store: Store
) -> None:
    app.register_blueprint(webhooks, name="second", url_prefix="/second")
    with app.app_context():
        assert webhooks.enqueue("RFIs.update").endpoint == store.endpoint


@pytest.mark.parametrize(
    ("type", "data", "message"),
    [
        ("", None, "names no resource"),
        (".update", None, "names no resource"),
        ("RFIs.update", object(), "no JSON value"),
        ("RFIs.update", float("nan"), "no JSON value"),
        ("RFIs.update", "x" * 2**20, "over MAX_BYTES"),
        ("RFIs.update", "\ud800", "no JSON value"),
    ],
)
def test_event_that_cannot_be_read_again_is_refused(
    app: Flask,
    webhooks: ProcoreWebhooks,
    store: Store,
    type: str,
    data: object,
    message: str,
) -> None:
    with app.app_context(), pytest.raises(ValueError, match=message):
        webhooks.enqueue(type, data=data)
    assert statuses(store) == {}


def test_deeply_nested_data_is_refused(app: Flask, webhooks: ProcoreWebhooks) -> None:
    data: list[Any] = []
    for _ in range(200):
        data = [data]
    with app.app_context(), pytest.raises(ValueError, match="nested too deeply"):
        webhooks.enqueue("RFIs.update", data=data)
