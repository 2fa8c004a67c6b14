"""The inbox on each database: what is recorded once, claimed once, and never lost."""

from __future__ import annotations

import json
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import closing
from contextlib import contextmanager
from datetime import datetime
from datetime import timedelta
from datetime import timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from flask import Flask
from sqlalchemy import orm
from sqlalchemy.dialects import mssql
from sqlalchemy.dialects import mysql
from sqlalchemy.dialects import oracle
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.schema import CreateIndex
from sqlalchemy.schema import CreateTable
from support.hosts import KINDS
from support.hosts import run_host
from support.inboxes import due_rows
from support.outages import locked
from support.outages import relay_to
from support.services import MARIADB
from support.services import own_database
from support.services import POSTGRESQL
from support.values import Clock
from werkzeug.test import TestResponse

from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.errors import InboxUnavailable
from flask_procore_webhooks.inbox import claims
from flask_procore_webhooks.inbox import jobs
from flask_procore_webhooks.inbox import queries
from flask_procore_webhooks.inbox.claims import Claim
from flask_procore_webhooks.inbox.claims import Settlement
from flask_procore_webhooks.inbox.jobs import Receipt
from flask_procore_webhooks.inbox.record import record as record_event
from flask_procore_webhooks.inbox.status import Status
from flask_procore_webhooks.inbox.store import Store
from flask_procore_webhooks.inbox.tables import define_tables
from flask_procore_webhooks.running.worker import Worker
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import payload

MakeApp = Callable[..., Flask]


@pytest.fixture
def app(
    make_app: MakeApp, webhooks: ProcoreWebhooks, database_url: str
) -> Iterator[Flask]:
    """An app with an inbox of its own, on each database in turn."""
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI=database_url)
    app.register_blueprint(webhooks)
    yield app
    _dispose(app)


@pytest.fixture
def store(endpoint: Endpoint) -> Store:
    return endpoint.store


def _dispose(app: Flask) -> None:
    for endpoint in endpoints(app).values():
        endpoint.store.database.engine.dispose()


def event(id: str = "evt_1", body: bytes = b"{}", **fields: Any) -> Event:
    return Event(id, fields.pop("type", "RFIs.update"), body=body, **fields)


def row(store: Store, id: str = "evt_1") -> dict[str, Any]:
    found = queries.find(store, id)
    assert found is not None
    return dict(found)


# Recorded once


def test_event_is_recorded_once_and_its_repeats_are_counted(store: Store) -> None:
    first = record_event(store, event())
    again = [record_event(store, event()) for _ in range(3)]
    other = record_event(store, event(body=b"[]"))
    last = record_event(store, event())

    assert (first.is_new, first.status, first.is_conflict) == (True, "pending", False)
    assert all(not each.is_new and not each.is_conflict for each in [*again, last])
    assert (other.is_new, other.is_conflict) == (False, True)
    assert {each.row_id for each in [first, *again, other, last]} == {first.row_id}
    kept = row(store)
    assert (kept["repeats"], kept["conflicts"], kept["body"]) == (5, 1, b"{}")
    assert queries.counts(store) == {("pending", "RFIs.update"): 1}
    totals = queries.totals(store)
    assert (totals["repeats"], totals["conflicts"], totals["attempts"]) == (5, 1, 0)


@pytest.mark.parametrize("body", [b"", b"{} ", b"\0", b"{}" * 50_000])
def test_one_byte_more_or_less_is_a_conflict(store: Store, body: bytes) -> None:
    record_event(store, event())
    assert record_event(store, event(body=body)).is_conflict
    assert row(store)["body"] == b"{}"


STRANGE_IDS = [
    "evt_A",
    "evt_a",
    "EVT_A",
    "evt_A ",
    " evt_A",
    "evt_A\t",
    "evt_A\n",
    "évt",
    "ÉVT",
    "e\N{COMBINING ACUTE ACCENT}vt",
    "evt",
    "straße",
    "strasse",
    "\N{KELVIN SIGN}",
    "K",
    "k",
    "\N{PILE OF POO}",
    "\ud800",
    "\udfff",
    "a\0b",
    "a\0c",
    "a",
    "x" * 80,
    "x" * 81,
    "x" * 82,
    "x" * 5000,
    "sha256:",
    "sha256:" + "0" * 64,
    "01",
    "1",
    "1.0",
    "%",
    "_",
    "evt\\_A",
    "'; DROP TABLE procore_webhook_event; --",
    "-1",
    "null",
]


def test_ids_are_compared_exactly(
    app: Flask, store: Store, webhooks: ProcoreWebhooks
) -> None:
    """By case, by accents, by spaces at the end, by what no column can hold."""
    ran: list[bytes] = []
    webhooks.on()(lambda event: ran.append(event.body))
    client = app.test_client()

    def send(id: str) -> dict[str, Any]:
        body = json.dumps({"id": id, "type": "RFIs.update"}).encode()
        answer = deliver(client, body)
        assert answer.status_code == 200, id
        return dict(answer.json or {})

    assert [send(id) for id in STRANGE_IDS] == [{"received": True}] * len(STRANGE_IDS)
    duplicate = {"received": True, "duplicate": True}
    assert [send(id) for id in STRANGE_IDS] == [duplicate] * len(STRANGE_IDS)
    assert len(ran) == len(set(ran)) == len(STRANGE_IDS)

    for id in STRANGE_IDS:
        found = queries.find(store, id)
        assert found is not None, id
        assert json.loads(found["body"])["id"] == id
        assert (found["repeats"], found["conflicts"]) == (1, 0)


def test_event_is_found_by_its_row_id_too(store: Store) -> None:
    recorded = record_event(store, event("evt_1"))
    number = str(recorded.row_id)
    assert row(store, number)["event_id"] == "evt_1"

    # An id that looks like a row id comes first.
    record_event(store, event(number))
    assert row(store, number)["event_id"] == number
    for nobody in ("", "evt_2", "9" * 18, "9" * 40, "é", "\0", "\ud800", "²"):
        assert queries.find(store, nobody) is None


def test_events_of_two_endpoints_are_kept_apart(
    make_app: MakeApp, database_url: str
) -> None:
    app = make_app(
        PROCORE_WEBHOOK_DATABASE_URI=database_url,
        SANDBOX_SECRET="a secret of the sandbox",
        SANDBOX_DATABASE_URI=database_url,
    )
    ProcoreWebhooks("one").init_app(app)
    ProcoreWebhooks("One", url_prefix="/two", config_prefix="SANDBOX_").init_app(app)
    one, two = (endpoint.store for endpoint in endpoints(app).values())
    client = app.test_client()
    sent = payload("RFIs.update", id="evt_1")

    for name in ("one", "One"):
        answer = deliver(client, sent, endpoint=name)
        assert answer.json == {"received": True}
    assert deliver(client, sent, endpoint="one").json["duplicate"]

    assert (row(one)["repeats"], row(two)["repeats"]) == (1, 0)
    assert row(one)["id"] != row(two)["id"]
    assert [each["endpoint"] for each in queries.newest(one)] == ["one"]
    assert queries.find(two, str(row(one)["id"])) is None
    assert due_rows(one, ignore_backoff=True) == []
    record_event(one, event("evt_2"))
    assert due_rows(two, ignore_backoff=True) == []
    _dispose(app)


def test_row_ids_are_not_reused(store: Store) -> None:
    """A receipt that is left behind must not be taken for one of another event."""
    table = store.columns.id.table
    given = []
    for _ in range(3):
        given.append(record_event(store, event()).row_id)
        with store.connection() as connection:
            connection.execute(sa.delete(table))

    assert len(set(given)) == 3


# Dead, quarantined, ignored


def test_redelivery_revives_a_dead_event_with_new_attempts(
    store: Store, clock: Clock
) -> None:
    row_id = record_event(store, event()).row_id
    for _ in range(3):
        claim = _claim(store, row_id, ignore_backoff=True)
        claims.settle(store, claim, Settlement(Status.PENDING, error="failed", wait=60))
    claims.settle(
        store,
        _claim(store, row_id, ignore_backoff=True),
        Settlement(Status.DEAD, error="gave up"),
    )
    assert row(store)["attempts"] == 4
    assert claims.claim(store, row_id, 60, ignore_backoff=True) is None

    clock.forward(3600)
    assert record_event(store, event()).status is Status.PENDING

    revived = row(store)
    assert (revived["status"], revived["attempts"]) == ("pending", 0)
    assert (revived["repeats"], revived["finished_at"]) == (1, None)
    assert revived["due_at"] == _naive(clock.time)
    assert due_rows(store) == [row_id]
    assert _claim(store, row_id).attempt == 1


@pytest.mark.parametrize("status", [Status.DONE, Status.IGNORED])
def test_redelivery_revives_only_dead_events(store: Store, status: Status) -> None:
    row_id = record_event(store, event()).row_id
    claims.settle(store, _claim(store, row_id), Settlement(status))
    before = row(store)

    assert record_event(store, event()).status is status
    assert row(store) == {**before, "repeats": 1}
    assert claims.claim(store, row_id, 60, ignore_backoff=True) is None


@pytest.mark.parametrize("status", [Status.DEAD, Status.IGNORED])
def test_redelivery_that_would_not_run_revives_nothing(
    store: Store, status: Status
) -> None:
    row_id = record_event(store, event()).row_id
    claims.settle(
        store, _claim(store, row_id), Settlement(Status.DEAD, error="gave up")
    )
    before = row(store)

    assert record_event(store, event(), status).status is Status.DEAD
    assert row(store) == {**before, "repeats": 1}


def test_running_event_is_left_alone_by_its_redelivery(store: Store) -> None:
    claim = _claim(store, record_event(store, event()).row_id)
    before = row(store)

    assert record_event(store, event()).status is Status.RUNNING
    assert row(store) == {**before, "repeats": 1}
    assert claims.settle(store, claim, Settlement(Status.DONE))


def test_unreadable_event_stays_quarantined(
    app: Flask, endpoint: Endpoint, webhooks: ProcoreWebhooks
) -> None:
    ran: list[Event] = []
    webhooks.on()(ran.append)
    now = int(time.time())
    answers = [deliver(app.test_client(), b"\xff{", timestamp=now) for _ in range(3)]

    assert [answer.json for answer in answers] == [
        {"received": True, "quarantined": True}
    ] * 3
    (kept,) = queries.newest(endpoint.store)
    assert (kept["status"], kept["repeats"], kept["due_at"]) == ("dead", 2, None)
    assert row(endpoint.store, kept["event_id"])["body"] == b"\xff{"
    assert ran == []


@pytest.mark.parametrize(
    ("config", "fields"),
    [
        ({"IGNORE_USER_IDS": [42]}, {"user_id": 42}),
        ({"IGNORE_USER_IDS": ["42"]}, {"user_id": 42}),
        (
            {"IGNORE_APPLICATION_IDS": ["our-app"]},
            {"metadata": {"source_application_id": "our-app"}},
        ),
    ],
)
def test_ignored_event_is_recorded_as_ignored(
    make_app: MakeApp,
    webhooks: ProcoreWebhooks,
    database_url: str,
    config: dict[str, Any],
    fields: dict[str, Any],
) -> None:
    config = {f"PROCORE_WEBHOOK_{key}": value for key, value in config.items()}
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI=database_url, **config)
    app.register_blueprint(webhooks)
    (endpoint,) = endpoints(app).values()
    ran: list[str] = []
    webhooks.on()(lambda event: ran.append(event.id))
    ours = payload("RFIs.update", format="v2", id="ours", **fields)
    theirs = payload("RFIs.update", format="v2", id="theirs", user_id=43)

    for sent in (ours, ours, theirs):
        assert deliver(app.test_client(), sent).status_code == 200

    assert ran == ["theirs"]
    kept = row(endpoint.store, "ours")
    assert (kept["status"], kept["attempts"], kept["repeats"]) == ("ignored", 0, 1)
    assert kept["finished_at"] and kept["due_at"] is None
    _dispose(app)


# Claims and leases


def _claim(store: Store, row_id: int, seconds: float = 60, **options: Any) -> Claim:
    claim = claims.claim(store, row_id, seconds, **options)
    assert claim is not None
    return claim


def test_claim_is_exclusive_until_its_lease_expires(store: Store, clock: Clock) -> None:
    row_id = record_event(store, event(body=b"[7]")).row_id
    first = _claim(store, row_id, 60)

    assert (first.event_id, first.attempt, first.body) == ("evt_1", 1, b"[7]")
    assert claims.claim(store, row_id, 60) is None
    assert claims.claim(store, row_id, 60, ignore_backoff=True) is None
    assert due_rows(store) == due_rows(store, ignore_backoff=True) == []

    clock.forward(59.9)
    assert claims.claim(store, row_id, 60) is None
    clock.forward(0.2)
    assert due_rows(store) == [row_id]
    second = _claim(store, row_id, 60)
    assert second.attempt == 2
    assert second.lease != first.lease


@pytest.mark.parametrize("status", list(Status))
def test_claim_with_a_lost_lease_cannot_be_settled(
    store: Store, clock: Clock, status: Status
) -> None:
    row_id = record_event(store, event()).row_id
    stale = _claim(store, row_id)
    clock.forward(61)
    current = _claim(store, row_id)
    before = row(store)

    assert not claims.settle(store, stale, Settlement(status, error="of the stale one"))
    assert row(store) == before
    assert claims.settle(store, current, Settlement(Status.DONE))
    assert not claims.settle(store, current, Settlement(Status.PENDING))
    assert not claims.settle(store, stale, Settlement(Status.PENDING))
    assert row(store)["status"] == "done"


def test_claim_with_an_expired_unclaimed_lease_can_be_settled(
    store: Store, clock: Clock
) -> None:
    claim = _claim(store, record_event(store, event()).row_id)
    clock.forward(3600)
    assert claims.settle(store, claim, Settlement(Status.DONE))


def test_pending_event_is_claimed_before_its_time_only_with_early(
    store: Store, clock: Clock
) -> None:
    row_id = record_event(store, event()).row_id
    claims.settle(
        store,
        _claim(store, row_id),
        Settlement(Status.PENDING, error="failed", wait=600),
    )

    kept = row(store)
    assert (kept["status"], kept["error"], kept["lease"]) == ("pending", "failed", None)
    assert kept["due_at"] == _naive(clock.time + timedelta(seconds=600))
    assert claims.claim(store, row_id, 60) is None
    assert (due_rows(store), due_rows(store, ignore_backoff=True)) == ([], [row_id])
    clock.forward(600)
    assert due_rows(store) == [row_id]
    assert _claim(store, row_id).attempt == 2


def test_events_are_due_in_the_order_of_their_times(store: Store, clock: Clock) -> None:
    rows = []
    for number in range(5):
        rows.append(record_event(store, event(f"evt_{number}")).row_id)
        clock.forward(0.001)
    waits = _claim(store, rows[0])
    claims.settle(store, waits, Settlement(Status.PENDING, wait=1))
    claims.settle(store, _claim(store, rows[1]), Settlement(Status.DONE))
    _claim(store, rows[2])

    assert due_rows(store) == rows[3:]
    assert due_rows(store, limit=1) == rows[3:4]
    clock.forward(2)
    assert due_rows(store) == [*rows[3:], rows[0]]


def test_receipt_is_written_once(store: Store, clock: Clock) -> None:
    row_id = record_event(store, event()).row_id
    other = _claim(store, record_event(store, event("evt_2")).row_id)
    claim = _claim(store, row_id)
    jobs.finish(store, claim.row_id, Receipt("a:b"))
    first = _naive(clock.time)
    clock.forward(60)
    jobs.finish(store, claim.row_id, Receipt("a:b"))
    jobs.finish(store, claim.row_id, Receipt("A:B"))
    jobs.finish(store, other.row_id, Receipt("a:b"))

    later = _naive(clock.time)
    assert jobs.receipts(store, row_id) == {"a:b": first, "A:B": later}
    assert jobs.receipts(store, other.row_id) == {"a:b": later}
    assert jobs.receipts(store, 999_999) == {}


# What is kept


def test_body_of_one_mebibyte_is_kept_byte_for_byte(
    app: Flask, endpoint: Endpoint, webhooks: ProcoreWebhooks
) -> None:
    limit = endpoint.settings.max_bytes
    every = bytes(range(256))
    unreadable = (b"\0\xff" + every * (limit // 256))[:limit]
    start, end = b'{"id": "evt_1", "type": "a.b", "data": "', b'\\u0000 "}\r\n'
    text = "\N{PILE OF POO}\N{LATIN SMALL LETTER E WITH ACUTE}".encode()
    readable = start + text * ((limit - len(start) - len(end)) // len(text)) + end
    seen: list[bytes] = []
    webhooks.on()(lambda event: seen.append(event.body))

    assert deliver(app.test_client(), unreadable).status_code == 200
    assert deliver(app.test_client(), readable).status_code == 200

    (second, first) = queries.newest(endpoint.store)
    assert row(endpoint.store, first["event_id"])["body"] == unreadable
    assert row(endpoint.store, second["event_id"])["body"] == readable
    assert seen == [readable]


LONG = {
    "long": "x" * 5000,
    "emoji": "\N{PILE OF POO}" * 5000,
    "accents": "é" * 5000,
    "NUL": "a\0b" * 2000,
    "surrogates": "a\ud800b" * 2000,
    "spaces": " x " * 2000,
    "short": "RFIs",
}


@pytest.fixture(params=["psycopg", "psycopg2", "mariadb"])
def narrow_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A database, or a connection, whose character set is not all of Unicode."""
    if request.param == "mariadb":
        with own_database(*MARIADB) as url:
            yield f"{url}?charset=utf8"
        return
    latin = "ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
    with own_database(*POSTGRESQL, latin) as url:
        driver = f"postgresql+{request.param}"
        made = sa.make_url(url).set(drivername=driver)
        yield made.render_as_string(hide_password=False)


def test_text_outside_the_database_encoding_is_escaped(
    make_app: Callable[..., Flask], narrow_url: str
) -> None:
    app, webhooks, calls = make_app(), ProcoreWebhooks(), []
    app.config["PROCORE_WEBHOOK_DATABASE_URI"] = narrow_url
    app.config["PROCORE_WEBHOOK_DISPATCH"] = "worker"
    app.register_blueprint(webhooks)
    webhooks.on(name="first")(lambda event: calls.append(event.type))

    @webhooks.on(name="fails")
    def fails(event: Event) -> None:
        raise ValueError("нет 😀")

    webhooks.on(name="last")(lambda event: calls.append(event.type))
    (endpoint,) = endpoints(app).values()
    type_ = "Протоколы 😀.update"
    for _ in range(2):
        sent = payload(type_, id="evt_1", format="v4")
        assert deliver(app.test_client(), sent).status_code == 200
    assert Worker([endpoint], poll=1).run_due() == 1

    found = queries.find(endpoint.store, "evt_1")
    assert found is not None
    # The subscribers read the body, which is kept byte for byte.
    assert calls == [type_] * 2
    assert found["type"].endswith(r" \U0001f600.update")
    assert found["status"] == "pending"
    assert found["error"].endswith(r" \U0001f600")
    assert set(jobs.receipts(endpoint.store, found["id"])) == {"first", "last"}
    _dispose(app)


@pytest.mark.parametrize("text", LONG.values(), ids=LONG.keys())
def test_any_text_that_a_sender_writes_is_recorded(
    app: Flask, endpoint: Endpoint, webhooks: ProcoreWebhooks, text: str
) -> None:
    """Cut for the table; a subscriber sees it whole."""
    seen: list[Event] = []
    webhooks.on()(seen.append)
    sent = payload(
        "RFIs.update",
        format="v4",
        id="evt_1",
        resource_type=text,
        reason=text,
        **dict.fromkeys(("resource_id", "company_id", "project_id", "user_id"), text),
    )

    assert deliver(app.test_client(), sent).status_code == 200
    kept = row(endpoint.store)
    (event,) = seen
    assert event.resource_type == text
    assert event.user_id == text
    sizes = {"type": 255, "resource_type": 160, "reason": 80, "user_id": 80}
    for column, size in sizes.items():
        assert 0 < len(kept[column]) <= size
        assert "\0" not in kept[column]
    plain = text.replace("\0", "\N{REPLACEMENT CHARACTER}").replace("\ud800", "?")
    assert kept["resource_type"] == plain[:160]
    assert kept["user_id"] == kept["project_id"] == plain[:80]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (0, datetime(1970, 1, 1)),
        (-1, datetime(1969, 12, 31, 23, 59, 59)),
        (-62135596800, datetime(1, 1, 1)),
        (253402300799, datetime(9999, 12, 31, 23, 59, 59)),
        (1767225599.123456, datetime(2025, 12, 31, 23, 59, 59, 123456)),
        ("9999-12-31T23:59:59.999999Z", datetime(9999, 12, 31, 23, 59, 59, 999999)),
        ("0001-01-01T00:00:00+14:00", None),
        ("2026-03-29T02:30:00+05:30", datetime(2026, 3, 28, 21)),
        (10**300, None),
        ("yesterday", None),
    ],
    ids=str,
)
def test_any_time_that_a_sender_writes_is_recorded(
    app: Flask, endpoint: Endpoint, sent: object, kept: datetime | None
) -> None:
    delivered = payload("resource.updated", id="evt_1", created=sent)

    assert deliver(app.test_client(), delivered).status_code == 200
    assert row(endpoint.store)["event_at"] == kept


def test_times_are_utc_in_any_local_time_zone(
    app: Flask, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        before = datetime.now(timezone.utc)
        sent = payload("RFIs.update", id="evt_1", created=int(before.timestamp()))
        assert deliver(app.test_client(), sent).status_code == 200
        after = datetime.now(timezone.utc)
        kept = row(endpoint.store)
    finally:
        monkeypatch.undo()
        time.tzset()

    assert _naive(before) <= kept["received_at"] <= kept["finished_at"] <= _naive(after)
    assert kept["event_at"] == _naive(before).replace(microsecond=0)


def test_times_keep_their_microseconds(store: Store, clock: Clock) -> None:
    clock.time = datetime(2026, 2, 3, 4, 5, 6, 789012, timezone.utc)
    record_event(store, event(timestamp=clock.time))
    kept = row(store)
    assert kept["received_at"] == kept["due_at"] == _naive(clock.time)
    assert kept["event_at"] == _naive(clock.time)


def _naive(when: datetime) -> datetime:
    return when.astimezone(timezone.utc).replace(tzinfo=None)


# Tables


def _fails_in_a_transaction(store: Store) -> None:
    table = store.columns.id.table
    with pytest.raises(InboxUnavailable, match="on purpose"):
        with store.transaction() as connection:
            connection.execute(sa.delete(table))
            raise RuntimeError("on purpose")
    with pytest.raises(IntegrityError):
        with store.transaction() as connection:
            again = connection.execute(sa.select(table)).one()._asdict()
            connection.execute(sa.insert(table).values(again))


def test_failed_transaction_is_rolled_back(store: Store) -> None:
    record_event(store, event())
    for _ in range(2):
        _fails_in_a_transaction(store)
    assert record_event(store, event("evt_2")).is_new
    store.database.engine.dispose()
    assert row(store) and row(store, "evt_2")


def test_psycopg2_leaves_no_failed_transaction(
    postgresql_url: str, make_app: MakeApp
) -> None:
    """It rolls nothing back that it has not begun itself."""
    url = sa.make_url(postgresql_url).set(drivername="postgresql+psycopg2")
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI=url.render_as_string(False))
    app.register_blueprint(ProcoreWebhooks())
    (endpoint,) = endpoints(app).values()
    store = endpoint.store
    try:
        record_event(store, event())
        _fails_in_a_transaction(store)
        assert record_event(store, event("evt_2")).is_new
        store.database.engine.dispose()
        assert row(store) and row(store, "evt_2")
    finally:
        store.columns.id.table.metadata.drop_all(store.database.engine)
        store.database.engine.dispose()


def test_creating_tables_again_changes_nothing(store: Store) -> None:
    assert sorted(store.database.create_tables()) == [
        "procore_webhook_event",
        "procore_webhook_journal",
        "procore_webhook_receipt",
    ]
    record_event(store, event())
    assert store.database.create_tables() == []
    engine = store.database.engine
    store.columns.id.table.metadata.create_all(engine)
    store.columns.id.table.metadata.create_all(engine)
    assert row(store)["status"] == "pending"


def test_tables_can_be_created_concurrently(
    make_app: MakeApp, database_url: str
) -> None:
    """As the workers of a server do when the first deliveries come."""
    apps = []
    for _ in range(8):
        app = make_app(PROCORE_WEBHOOK_DATABASE_URI=database_url)
        ProcoreWebhooks().init_app(app)
        apps.append(app)
    sent = payload("RFIs.update", id="evt_1")
    barrier = threading.Barrier(len(apps))
    statuses: list[int] = []

    def work(app: Flask) -> None:
        barrier.wait(10)
        statuses.append(deliver(app.test_client(), sent).status_code)

    _in_threads(work, apps)
    again = [deliver(app.test_client(), sent).status_code for app in apps]

    # 503 to who met the event in another's hands, and to nobody for want of a table.
    assert set(statuses) <= {200, 503}
    assert 200 in statuses
    assert again == [200] * len(apps)
    (endpoint,) = endpoints(apps[0]).values()
    assert row(endpoint.store)["attempts"] == 1
    for app in apps:
        _dispose(app)


def test_tables_created_by_another_process_meanwhile_are_used(
    store: Store, database_url: str
) -> None:
    """After we have looked for them, and before we create them."""
    other = sa.create_engine(database_url, poolclass=sa.NullPool)
    theirs = {table.name: table for table in define_tables(sa.MetaData())}

    def be_faster(table: sa.Table, connection: Any, **options: Any) -> None:
        theirs[table.name].create(other)

    for table in store.database.tables:
        sa.event.listen(table, "before_create", be_faster)

    store.database.create_tables()
    assert store.database.missing_tables() == []
    assert record_event(store, event()).is_new


DIALECTS = {
    "sqlite": sqlite.dialect(),
    "postgresql": postgresql.dialect(),
    "mysql": mysql.dialect(),
    "mariadb": mysql.dialect(is_mariadb=True),
    "oracle": oracle.dialect(),
    "mssql": mssql.dialect(),
}


@pytest.mark.parametrize("name", DIALECTS)
def test_tables_compile_for_every_dialect(name: str) -> None:
    dialect = DIALECTS[name]
    tables = define_tables(sa.MetaData())
    text = "".join(str(CreateTable(table).compile(dialect=dialect)) for table in tables)
    indexes = {index.name: index for index in tables.event.indexes}
    due = indexes["ix_procore_webhook_event_due"]
    index_text = str(CreateIndex(due).compile(dialect=dialect))

    assert "UNIQUE (endpoint, event_id)" in text
    partial = "WHERE due_at IS NOT NULL" in index_text
    assert partial == (name in ("sqlite", "postgresql"))
    exact = "CHARACTER SET ascii COLLATE ascii_bin" in text
    assert exact == (name in ("mysql", "mariadb"))
    assert ("LONGBLOB" in text) == (name in ("mysql", "mariadb"))
    assert ("AUTOINCREMENT" in text) == (name == "sqlite")


def test_defining_the_tables_twice_defines_them_once() -> None:
    metadata = sa.MetaData(schema="hooks")
    assert define_tables(metadata) is define_tables(metadata)
    assert sorted(metadata.tables) == [
        "hooks.procore_webhook_event",
        "hooks.procore_webhook_journal",
        "hooks.procore_webhook_receipt",
    ]


def test_alembic_finds_nothing_to_migrate_in_tables_just_created(store: Store) -> None:
    store.database.create_tables()
    metadata = store.columns.id.table.metadata
    engine = store.database.engine
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_constraints_and_the_index_are_in_the_database(store: Store) -> None:
    store.database.create_tables()
    inspector = sa.inspect(store.database.engine)
    table = "procore_webhook_event"
    unique = inspector.get_unique_constraints(table)
    indexes = {index["name"]: index for index in inspector.get_indexes(table)}
    receipt = inspector.get_pk_constraint("procore_webhook_receipt")

    assert [each["column_names"] for each in unique] == [["endpoint", "event_id"]]
    assert receipt["constrained_columns"] == ["event", "subscriber"]
    due = indexes[f"ix_{table}_due"]
    assert due["column_names"] == ["endpoint", "due_at"]
    where = {
        key: str(value)
        for key, value in due.get("dialect_options", {}).items()
        if key.endswith("_where")
    }
    if store.database.engine.dialect.name in ("sqlite", "postgresql"):
        assert "due_at IS NOT NULL" in "".join(where.values())
    else:
        assert where == {}


def test_due_events_are_found_by_the_index_of_live_rows(
    store: Store, clock: Clock
) -> None:
    """Among many finished events, without looking at them."""
    table = store.columns.id.table
    first = record_event(store, event())
    finished = {**row(store), "status": "done", "due_at": None}
    del finished["id"]
    rows = [{**finished, "event_id": f"evt_{n}"} for n in range(2, 3000)]
    with store.connection() as connection:
        connection.execute(sa.insert(table), rows)
        name = connection.dialect.name
        if name != "sqlite":
            verb = "ANALYZE" if name == "postgresql" else "ANALYZE TABLE"
            connection.execute(sa.text(f"{verb} procore_webhook_event"))

    statements: list[tuple[str, Any]] = []

    def keep(connection: Any, cursor: Any, text: str, values: Any, *more: Any) -> None:
        statements.append((text, values))

    sa.event.listen(store.database.engine, "before_cursor_execute", keep)
    assert due_rows(store) == [first.row_id]
    sa.event.remove(store.database.engine, "before_cursor_execute", keep)

    ((text, values),) = statements
    explain = "EXPLAIN QUERY PLAN" if name == "sqlite" else "EXPLAIN"
    with store.connection() as connection:
        plan = connection.exec_driver_sql(f"{explain} {text}", values).all()
    assert "ix_procore_webhook_event_due" in str(plan)


# The database is not there


def _refused_for_now(answer: TestResponse) -> bool:
    return (answer.status_code, answer.json, answer.headers["Retry-After"]) == (
        503,
        {"error": "Unavailable"},
        "5",
    )


@pytest.mark.parametrize("kind", ["own", *KINDS])
@pytest.mark.parametrize("server", ["postgresql", "mariadb"])
def test_outage_is_answered_503_until_the_database_is_back(
    request: pytest.FixtureRequest,
    make_app: MakeApp,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    server: str,
) -> None:
    url = request.getfixturevalue(f"{server}_url")
    with relay_to(url) as relay, _app_on(relay.url, kind, make_app) as (app, store):
        client = app.test_client()
        assert deliver(client, payload("RFIs.update")).status_code == 200

        relay.cut()
        lost = [payload("RFIs.update") for _ in range(3)]
        assert all(_refused_for_now(deliver(client, sent)) for sent in lost)
        assert "cannot be used" in caplog.text
        with pytest.raises(InboxUnavailable):
            due_rows(store)

        relay.mend()
        for sent in lost:
            assert deliver(client, sent).json == {"received": True}
            assert row(store, sent["id"])["status"] == "done"


@contextmanager
def _app_on(url: str, kind: str, make_app: MakeApp) -> Iterator[tuple[Flask, Store]]:
    if kind != "own":
        with run_host(make_app(), kind, url) as host:
            yield host.app, host.endpoint.store
        return
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI=url)
    ProcoreWebhooks().init_app(app)
    (endpoint,) = endpoints(app).values()
    yield app, endpoint.store
    endpoint.store.columns.id.table.metadata.drop_all(endpoint.store.database.engine)
    _dispose(app)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://postgres@127.0.0.1:{port}/nothing",
        "mysql+pymysql://root@127.0.0.1:{port}/nothing",
        "sqlite:///{folder}",
        "sqlite:///{folder}/missing/inbox.db",
        "sqlite:////proc/inbox.db",
    ],
)
def test_unreachable_database_is_answered_503(
    make_app: MakeApp,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    url: str,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI=url.format(port=port, folder=tmp_path))
    ProcoreWebhooks().init_app(app)

    for _ in range(2):
        assert _refused_for_now(deliver(app.test_client(), payload("RFIs.update")))
    assert "the inbox cannot be used: " in caplog.text


@pytest.mark.slow
def test_silent_server_is_answered_503_in_time(make_app: MakeApp) -> None:
    """Longer than the sender would; as when a firewall swallows every packet."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql+psycopg://postgres@127.0.0.1:{silent.getsockname()[1]}/x"
        app = make_app(PROCORE_WEBHOOK_DATABASE_URI=url)
        ProcoreWebhooks().init_app(app)
        answers: list[TestResponse] = []

        def work(number: int) -> None:
            answers.append(deliver(app.test_client(), payload("RFIs.update")))

        # Each at the same time as the others: none waits for another's attempt.
        _in_threads(work, range(3), seconds=9)

    assert len(answers) == 3
    assert all(map(_refused_for_now, answers))


@pytest.mark.parametrize("kind", KINDS)
def test_missing_tables_are_answered_503_and_named_in_the_log(
    make_app: MakeApp,
    database_url: str,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    with run_host(make_app(), kind, database_url, create=False) as host:
        sent = payload("RFIs.update")
        assert _refused_for_now(host.deliver(sent))
        assert (
            "missing tables: procore_webhook_event, procore_webhook_receipt,"
            " procore_webhook_journal; create them with your migrations"
            " (flask db migrate, flask db upgrade) or, if you have none, with the"
            " command init-db"
        ) in caplog.text

        host.note_table.metadata.create_all(host.engine)
        assert host.deliver(sent).json == {"received": True}
        host.note_table.metadata.drop_all(host.engine)


def test_missing_receipt_table_is_named_in_the_log(
    app: Flask,
    endpoint: Endpoint,
    webhooks: ProcoreWebhooks,
    caplog: pytest.LogCaptureFixture,
) -> None:
    webhooks.on()(lambda event: None)
    endpoint.store.database.create_tables()
    endpoint.store.database.tables.receipt.drop(endpoint.store.database.engine)

    assert _refused_for_now(deliver(app.test_client(), payload("RFIs.update")))
    assert "missing tables: procore_webhook_receipt;" in caplog.text


@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("kind", ["own", *KINDS])
@pytest.mark.parametrize("server", ["postgresql", "mariadb"])
def test_closed_pooled_connections_lose_no_delivery(
    request: pytest.FixtureRequest,
    make_app: MakeApp,
    server: str,
    kind: str,
    connections: int,
) -> None:
    """As it does with idle ones, at a restart, or when an administrator says so."""
    url = request.getfixturevalue(f"{server}_url")
    with _app_on(url, kind, make_app) as (app, store):
        assert deliver(app.test_client(), payload("RFIs.update")).status_code == 200
        idle = [store.database.engine.connect() for _ in range(connections)]
        for connection in idle:
            connection.close()
        _close_all_others(url)

        for _ in range(connections + 1):
            answer = deliver(app.test_client(), payload("RFIs.update"))
            assert answer.json == {"received": True}


def _close_all_others(url: str) -> None:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            return
        others = connection.exec_driver_sql(
            "SELECT id FROM information_schema.processlist"
            " WHERE db = database() AND id <> connection_id()"
        )
        for (number,) in others.all():
            connection.exec_driver_sql(f"KILL {number}")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["own", "flask_sqlalchemy"])
def test_locked_sqlite_file_is_answered_503_within_the_sender_timeout(
    make_app: MakeApp, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "inbox.db"
    with _app_on(f"sqlite:///{path}", kind, make_app) as (app, store):
        client = app.test_client()
        assert deliver(client, payload("RFIs.update")).status_code == 200
        sent = [payload("RFIs.update") for _ in range(3)]
        answers: list[TestResponse] = []

        def work(each: dict[str, Any]) -> None:
            answers.append(deliver(app.test_client(), each))

        with locked(path):
            _in_threads(work, sent, seconds=8)
        assert len(answers) == 3
        assert all(map(_refused_for_now, answers))

        assert [deliver(client, each).json for each in sent] == [{"received": True}] * 3


def test_readers_of_the_embedded_file_do_not_block_deliveries(
    make_app: MakeApp, tmp_path: Path
) -> None:
    path = tmp_path / "inbox.db"
    with _app_on(f"sqlite:///{path}", "own", make_app) as (app, store):
        assert deliver(app.test_client(), payload("RFIs.update")).status_code == 200
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            look = "SELECT count(*) FROM procore_webhook_event"
            assert reader.execute(look).fetchone() == (1,)
            assert deliver(app.test_client(), payload("RFIs.update")).status_code == 200
            assert reader.execute(look).fetchone() == (1,)


@pytest.mark.slow
def test_initially_locked_sqlite_file_is_opened_later(
    make_app: MakeApp, tmp_path: Path
) -> None:
    path = tmp_path / "inbox.db"
    with _app_on(f"sqlite:///{path}", "own", make_app) as (app, store):
        sent = payload("RFIs.update")
        answers: list[TestResponse] = []

        def work(each: dict[str, Any]) -> None:
            answers.append(deliver(app.test_client(), each))

        with locked(path):
            _in_threads(work, [sent], seconds=7)
        assert list(map(_refused_for_now, answers)) == [True]
        assert deliver(app.test_client(), sent).json == {"received": True}


def _in_threads(
    work: Callable[[Any], None], arguments: Any, seconds: float = 30
) -> None:
    threads = [
        threading.Thread(target=work, args=(argument,), daemon=True)
        for argument in arguments
    ]
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    assert not any(thread.is_alive() for thread in threads)


# Hosts whose SQLite driver does not commit by itself


def _begins_itself(url: str) -> sa.Engine:
    """As SQLAlchemy's documentation has it, for savepoints and migrations on SQLite."""
    engine = sa.create_engine(url)

    @sa.event.listens_for(engine, "connect")
    def leave_it_to_us(connection: Any, record: Any) -> None:
        connection.isolation_level = None

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    return engine


def _always_in_a_transaction(url: str) -> sa.Engine:
    if sys.version_info < (3, 12):
        pytest.skip("sqlite3 has this since Python 3.12")
    return sa.create_engine(url, connect_args={"autocommit": False})


@pytest.mark.parametrize("make_engine", [_begins_itself, _always_in_a_transaction])
def test_answer_2xx_follows_the_commit_with_any_host_driver(
    make_app: MakeApp, tmp_path: Path, make_engine: Callable[[str], sa.Engine]
) -> None:
    engine = make_engine(f"sqlite:///{tmp_path / 'host.db'}")
    session = orm.scoped_session(orm.sessionmaker(engine))
    metadata = sa.MetaData()
    note = sa.Table("note", metadata, sa.Column("text", sa.String))
    webhooks = ProcoreWebhooks(metadata=metadata, session=session)
    app = make_app(PROCORE_WEBHOOK_DISPATCH="worker")
    app.register_blueprint(webhooks)
    metadata.create_all(engine)

    @webhooks.on()
    def write(event: Event) -> None:
        session.execute(note.insert().values(text=event.id))

    sent = [payload("RFIs.update") for _ in range(3)]
    for each in sent:
        assert deliver(app.test_client(), each).status_code == 200
    assert _committed(tmp_path, "SELECT status FROM procore_webhook_event") == [
        "pending"
    ] * len(sent)

    (endpoint,) = endpoints(app).values()
    assert Worker([endpoint], poll=1).run_all() == len(sent)
    assert _committed(tmp_path, "SELECT status FROM procore_webhook_event") == [
        "done"
    ] * len(sent)
    written = _committed(tmp_path, "SELECT text FROM note")
    assert sorted(written) == sorted(each["id"] for each in sent)
    engine.dispose()


def _committed(folder: Path, look: str) -> list[Any]:
    """What another process finds in the file."""
    with closing(sqlite3.connect(folder / "host.db")) as connection:
        return [value for (value,) in connection.execute(look)]
