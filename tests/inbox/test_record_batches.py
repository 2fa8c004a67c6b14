"""Deliveries that arrive together are inserted in one batch."""

from __future__ import annotations

import threading
from collections.abc import Callable
from collections.abc import Iterable
from concurrent.futures import as_completed
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import pytest
import sqlalchemy as sa
from flask import current_app
from flask import Flask
from support.outages import relay_to
from support.waiting import wait_until

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.errors import InboxUnavailable
from flask_procore_webhooks.event import Event
from flask_procore_webhooks.inbox.inserts import LARGEST_STATEMENT
from flask_procore_webhooks.inbox.record import record as record_event
from flask_procore_webhooks.inbox.record import Recorder
from flask_procore_webhooks.inbox.status import Status
from flask_procore_webhooks.operations import queries
from flask_procore_webhooks.senders.samples import payload
from flask_procore_webhooks.senders.samples import to_bytes
from flask_procore_webhooks.storage import writer
from flask_procore_webhooks.storage.servers import Traits
from flask_procore_webhooks.storage.store import Store
from flask_procore_webhooks.storage.store import TransientError


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even on a slow machine, no call starts a batch beside a running batch."""
    monkeypatch.setattr(writer, "LONGEST_WAIT", 60)
    monkeypatch.setattr(writer, "LONGEST_CALL", 60)


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except BaseException as error:
        return error


@pytest.fixture
def store(endpoint: Endpoint) -> Store:
    endpoint.store.database.create_tables()
    return endpoint.store


def new_event(endpoint: Endpoint, **fields: Any) -> Event:
    return endpoint.read(to_bytes(payload("RFIs.update", **fields)))[0]


def statements(store: Store) -> list[str]:
    """A list that receives the inserts of events from now on."""
    seen: list[str] = []

    @sa.event.listens_for(store.database.engine, "before_cursor_execute")
    def note(c: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.startswith("INSERT") and "procore_webhook_event" in statement:
            seen.append(statement)

    return seen


def record_together(
    store: Store, events: Iterable[Event], record: Callable[..., Any] = record_event
) -> list[Any]:
    """Record the first event; the others arrive during its commit."""
    first, *others = events
    entered, go = threading.Event(), threading.Event()
    insert = store.database.parts.setdefault(Recorder, Recorder(store)).insert
    insert_batch = insert._work

    def slow_for_the_first(rows: list[dict[str, Any]]) -> list[int | Exception]:
        if not entered.is_set():
            entered.set()
            assert go.wait(30)
        return insert_batch(rows)

    insert._work = slow_for_the_first
    with ThreadPoolExecutor(len(others) + 1) as pool:
        calls = [pool.submit(record, store, first)]
        assert entered.wait(30)
        calls += [pool.submit(record, store, each) for each in others]
        wait_until(lambda: len(insert._waiting) == len(others))
        go.set()
        return [outcome(lambda each=each: each.result(60)) for each in calls]


def test_large_bodies_are_inserted_by_separate_statements(
    store: Store, endpoint: Endpoint
) -> None:
    note = "x" * (LARGEST_STATEMENT // 2)
    events = [new_event(endpoint, id=f"evt_{n}", note=note) for n in range(4)]
    seen = statements(store)
    recorded = record_together(store, events)
    assert len({each.row_id for each in recorded}) == len(seen) == 4


def test_concurrent_events_are_inserted_by_one_statement(
    store: Store, endpoint: Endpoint
) -> None:
    events = [new_event(endpoint, resource_id=number) for number in range(12)]
    seen = statements(store)
    recorded = record_together(store, events)
    assert len(seen) == 2
    assert all(each.is_new for each in recorded)
    for event, each in zip(events, recorded, strict=True):
        row = queries.find(store, event.id)
        assert row and row["id"] == each.row_id
        assert (row["body"], row["status"]) == (event.body, "pending")
        assert row["resource_id"] == event.resource_id


def test_repeats_within_a_batch_are_recognised(
    store: Store, endpoint: Endpoint
) -> None:
    there = new_event(endpoint)
    record_event(store, there)
    new = new_event(endpoint)
    other_body = endpoint.read(
        to_bytes(payload("RFIs.update", id=there.id, resource_id=8))
    )[0]
    dead = new_event(endpoint)
    record_event(store, dead, Status.DEAD, "gone")
    group = [new_event(endpoint), there, new, other_body, new, dead, new]
    recorded = record_together(store, group)
    assert recorded[0].is_new
    assert [recorded[i].is_new for i in (1, 3, 5)] == [False] * 3
    assert [recorded[i].is_conflict for i in (1, 3, 5)] == [False, True, False]
    assert recorded[5].status is Status.PENDING
    copies = [recorded[i] for i in (2, 4, 6)]
    assert sorted(each.is_new for each in copies) == [False, False, True]
    assert len({each.row_id for each in copies}) == 1
    row = queries.find(store, new.id)
    assert row and row["repeats"] == 2


def test_refused_row_does_not_fail_other_rows_of_its_batch(
    store: Store, endpoint: Endpoint
) -> None:
    with store.connection() as connection:
        if connection.dialect.name == "sqlite":
            # SQLite columns have no size; the trigger stands for any limit.
            connection.exec_driver_sql(
                "CREATE TRIGGER no_monsters BEFORE INSERT ON procore_webhook_event"
                " WHEN NEW.reason = 'monster' BEGIN SELECT RAISE(ABORT, 'no'); END"
            )
        elif connection.dialect.name == "postgresql":
            connection.exec_driver_sql(
                "ALTER TABLE procore_webhook_event"
                " ADD CONSTRAINT no_monsters CHECK (reason <> 'monster')"
            )
        else:
            connection.exec_driver_sql(
                "CREATE TRIGGER no_monsters BEFORE INSERT ON procore_webhook_event"
                " FOR EACH ROW BEGIN IF NEW.reason = 'monster' THEN"
                " SIGNAL SQLSTATE '45000'; END IF; END"
            )
    good = [new_event(endpoint) for _ in range(5)]
    bad = endpoint.read(to_bytes(payload("RFIs.monster")))[0]
    recorded = record_together(store, [*good[:2], bad, *good[2:]])
    refused = recorded.pop(2)
    assert isinstance(refused, InboxUnavailable)
    assert all(each.is_new for each in recorded)
    assert queries.find(store, bad.id) is None
    assert all(queries.find(store, each.id) for each in good)


@pytest.mark.parametrize("before", [1, 3])
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_silent_connection_delays_only_one_delivery(
    make_app: Callable[..., Flask],
    webhooks: ProcoreWebhooks,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    before: int,
) -> None:
    """Of the pool after one event, kept for direct inserts after several."""
    monkeypatch.setattr(writer, "LONGEST_WAIT", 0.5)
    with relay_to(database_url) as relay:
        app = make_app(PROCORE_WEBHOOK_DATABASE_URI=relay.url)
        app.register_blueprint(webhooks)
        (endpoint,) = endpoints(app).values()
        store = endpoint.store
        for _ in range(before):
            record_event(store, new_event(endpoint))
        relay.forget()
        with ThreadPoolExecutor(4) as pool:
            calls = [
                pool.submit(record_event, store, new_event(endpoint)) for _ in range(4)
            ]
            others = list(islice(as_completed(calls, 60), 3))
            (hanging,) = [each for each in calls if each not in others]
            assert not hanging.done()
            relay.cut()
            assert isinstance(outcome(hanging.result), InboxUnavailable)
        assert [each.result().is_new for each in others] == [True] * 3
        store.database.engine.dispose()


@pytest.mark.server
def test_all_calls_of_a_batch_fail_without_a_database(
    make_app: Callable[..., Flask], webhooks: ProcoreWebhooks
) -> None:
    nowhere = "postgresql+psycopg://nobody@127.0.0.1:1/nothing"
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI=nowhere)
    app.register_blueprint(webhooks)
    (endpoint,) = endpoints(app).values()
    endpoint.store.database.traits = Traits(skips_locked=True, escapes_text=False)
    events = [new_event(endpoint) for _ in range(4)]
    recorded = record_together(endpoint.store, events)
    assert [type(each) for each in recorded] == [TransientError] * 4


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_hook_of_the_pool_has_the_context_of_the_app(
    make_app: Callable[..., Flask], webhooks: ProcoreWebhooks, database_url: str
) -> None:
    """Hosts take passwords that expire from the configuration of the current app."""
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI=database_url)
    app.register_blueprint(webhooks)
    (endpoint,) = endpoints(app).values()
    store = endpoint.store
    store.database.create_tables()
    engine = store.database.engine
    sa.event.listen(
        engine, "do_connect", lambda *_: current_app.config["SECRET_KEY"] and None
    )
    engine.dispose()
    events = [new_event(endpoint) for _ in range(8)]

    def record_with_context(store: Store, event: Event) -> Any:
        with app.app_context():
            return record_event(store, event)

    recorded = record_together(store, events, record_with_context)
    assert [each.is_new for each in recorded] == [True] * 8
    engine.dispose()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_transaction_that_a_listener_begins_is_committed(
    store: Store, endpoint: Endpoint
) -> None:
    """SQLAlchemy's recipe for SQLite, which hosts apply to every engine."""

    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    engine = store.database.engine
    sa.event.listen(engine, "begin", begin)
    events = [new_event(endpoint) for _ in range(3)]
    for event in events:
        assert record_event(store, event).is_new
    sa.event.remove(engine, "begin", begin)
    engine.dispose()
    assert all(queries.find(store, event.id) for event in events)
