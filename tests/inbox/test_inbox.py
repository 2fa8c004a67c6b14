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
from support.outages import locked
from support.outages import relay_to
from support.services import MARIADB
from support.services import own_database
from support.services import POSTGRESQL
from support.values import Clock
from werkzeug.test import TestResponse

from flask_procore_webhooks import browse
from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.errors import InboxUnavailable
from flask_procore_webhooks.inbox import Claim
from flask_procore_webhooks.inbox import Inbox
from flask_procore_webhooks.states import Status
from flask_procore_webhooks.tables import define_tables
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import payload
from flask_procore_webhooks.worker import Worker

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
def inbox(endpoint: Endpoint) -> Inbox:
    return endpoint.inbox


def _dispose(app: Flask) -> None:
    for endpoint in endpoints(app).values():
        endpoint.inbox.database.engine.dispose()


def event(id: str = "evt_1", body: bytes = b"{}", **fields: Any) -> Event:
    return Event(id, fields.pop("type", "RFIs.update"), body=body, **fields)


def row(inbox: Inbox, id: str = "evt_1") -> dict[str, Any]:
    found = browse.find(inbox, id)
    assert found is not None
    return dict(found)


# Recorded once


def test_an_event_is_recorded_once_and_its_repeats_are_counted(inbox: Inbox) -> None:
    first = inbox.record(event())
    again = [inbox.record(event()) for _ in range(3)]
    other = inbox.record(event(body=b"[]"))
    last = inbox.record(event())

    assert (first.fresh, first.status, first.conflict) == (True, "pending", False)
    assert all(not each.fresh and not each.conflict for each in [*again, last])
    assert (other.fresh, other.conflict) == (False, True)
    assert {each.row_id for each in [first, *again, other, last]} == {first.row_id}
    kept = row(inbox)
    assert (kept["repeats"], kept["conflicts"], kept["body"]) == (5, 1, b"{}")
    assert browse.counts(inbox) == {("pending", "RFIs.update"): 1}
    totals = browse.totals(inbox)
    assert (totals["repeats"], totals["conflicts"], totals["attempts"]) == (5, 1, 0)


@pytest.mark.parametrize("body", [b"", b"{} ", b"\0", b"{}" * 50_000])
def test_one_byte_more_or_less_is_a_conflict(inbox: Inbox, body: bytes) -> None:
    inbox.record(event())
    assert inbox.record(event(body=body)).conflict
    assert row(inbox)["body"] == b"{}"


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


def test_ids_that_differ_at_all_are_different_events(
    app: Flask, inbox: Inbox, webhooks: ProcoreWebhooks
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
        found = browse.find(inbox, id)
        assert found is not None, id
        assert json.loads(found["body"])["id"] == id
        assert (found["repeats"], found["conflicts"]) == (1, 0)


def test_an_event_is_found_by_its_row_id_too(inbox: Inbox) -> None:
    recorded = inbox.record(event("evt_1"))
    number = str(recorded.row_id)
    assert row(inbox, number)["event_id"] == "evt_1"

    # An id that looks like a row id comes first.
    inbox.record(event(number))
    assert row(inbox, number)["event_id"] == number
    for nobody in ("", "evt_2", "9" * 18, "9" * 40, "é", "\0", "\ud800", "²"):
        assert browse.find(inbox, nobody) is None


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
    one, two = (endpoint.inbox for endpoint in endpoints(app).values())
    client = app.test_client()
    sent = payload("RFIs.update", id="evt_1")

    for name in ("one", "One"):
        answer = deliver(client, sent, endpoint=name)
        assert answer.json == {"received": True}
    assert deliver(client, sent, endpoint="one").json["duplicate"]

    assert (row(one)["repeats"], row(two)["repeats"]) == (1, 0)
    assert row(one)["id"] != row(two)["id"]
    assert [each["endpoint"] for each in browse.newest(one)] == ["one"]
    assert browse.find(two, str(row(one)["id"])) is None
    assert one.due(early=True) == []
    one.record(event("evt_2"))
    assert two.due(early=True) == []
    _dispose(app)


def test_row_ids_are_never_given_twice(inbox: Inbox) -> None:
    """A receipt that is left behind must not be taken for one of another event."""
    table = inbox.columns.id.table
    given = []
    for _ in range(3):
        given.append(inbox.record(event()).row_id)
        with inbox.database.connect() as connection:
            connection.execute(sa.delete(table))

    assert len(set(given)) == 3


# Dead, quarantined, ignored


def test_a_redelivery_revives_a_dead_event_with_new_attempts(
    inbox: Inbox, clock: Clock
) -> None:
    row_id = inbox.record(event()).row_id
    for _ in range(3):
        claim = _claim(inbox, row_id, early=True)
        inbox.settle(claim, Status.PENDING, error="failed", wait=60)
    inbox.settle(_claim(inbox, row_id, early=True), Status.DEAD, error="gave up")
    assert row(inbox)["attempts"] == 4
    assert inbox.claim(row_id, 60, early=True) is None

    clock.forward(3600)
    assert inbox.record(event()).status is Status.PENDING

    revived = row(inbox)
    assert (revived["status"], revived["attempts"]) == ("pending", 0)
    assert (revived["repeats"], revived["finished_at"]) == (1, None)
    assert revived["due_at"] == _naive(clock.time)
    assert inbox.due() == [row_id]
    assert _claim(inbox, row_id).attempt == 1


@pytest.mark.parametrize("status", [Status.DONE, Status.IGNORED])
def test_a_redelivery_revives_nothing_else(inbox: Inbox, status: Status) -> None:
    row_id = inbox.record(event()).row_id
    inbox.settle(_claim(inbox, row_id), status)
    before = row(inbox)

    assert inbox.record(event()).status is status
    assert row(inbox) == {**before, "repeats": 1}
    assert inbox.claim(row_id, 60, early=True) is None


@pytest.mark.parametrize("status", [Status.DEAD, Status.IGNORED])
def test_a_redelivery_that_nobody_would_run_revives_nothing(
    inbox: Inbox, status: Status
) -> None:
    row_id = inbox.record(event()).row_id
    inbox.settle(_claim(inbox, row_id), Status.DEAD, error="gave up")
    before = row(inbox)

    assert inbox.record(event(), status).status is Status.DEAD
    assert row(inbox) == {**before, "repeats": 1}


def test_a_running_event_is_left_alone_by_its_redelivery(inbox: Inbox) -> None:
    claim = _claim(inbox, inbox.record(event()).row_id)
    before = row(inbox)

    assert inbox.record(event()).status is Status.RUNNING
    assert row(inbox) == {**before, "repeats": 1}
    assert inbox.settle(claim, Status.DONE)


def test_what_cannot_be_read_stays_quarantined(
    app: Flask, endpoint: Endpoint, webhooks: ProcoreWebhooks
) -> None:
    ran: list[Event] = []
    webhooks.on()(ran.append)
    now = int(time.time())
    answers = [deliver(app.test_client(), b"\xff{", timestamp=now) for _ in range(3)]

    assert [answer.json for answer in answers] == [
        {"received": True, "quarantined": True}
    ] * 3
    (kept,) = browse.newest(endpoint.inbox)
    assert (kept["status"], kept["repeats"], kept["due_at"]) == ("dead", 2, None)
    assert row(endpoint.inbox, kept["event_id"])["body"] == b"\xff{"
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
def test_our_own_changes_are_recorded_and_ignored(
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
    kept = row(endpoint.inbox, "ours")
    assert (kept["status"], kept["attempts"], kept["repeats"]) == ("ignored", 0, 1)
    assert kept["finished_at"] and kept["due_at"] is None
    _dispose(app)


# Claims and leases


def _claim(inbox: Inbox, row_id: int, seconds: float = 60, **options: Any) -> Claim:
    claim = inbox.claim(row_id, seconds, **options)
    assert claim is not None
    return claim


def test_one_claim_holds_until_its_lease_is_over(inbox: Inbox, clock: Clock) -> None:
    row_id = inbox.record(event(body=b"[7]")).row_id
    first = _claim(inbox, row_id, 60)

    assert (first.event_id, first.attempt, first.body) == ("evt_1", 1, b"[7]")
    assert inbox.claim(row_id, 60) is None
    assert inbox.claim(row_id, 60, early=True) is None
    assert inbox.due() == inbox.due(early=True) == []

    clock.forward(59.9)
    assert inbox.claim(row_id, 60) is None
    clock.forward(0.2)
    assert inbox.due() == [row_id]
    second = _claim(inbox, row_id, 60)
    assert second.attempt == 2
    assert second.lease != first.lease


@pytest.mark.parametrize("status", list(Status))
def test_who_has_lost_the_lease_cannot_settle(
    inbox: Inbox, clock: Clock, status: Status
) -> None:
    row_id = inbox.record(event()).row_id
    stale = _claim(inbox, row_id)
    clock.forward(61)
    current = _claim(inbox, row_id)
    before = row(inbox)

    assert not inbox.settle(stale, status, error="of the stale one")
    assert row(inbox) == before
    assert inbox.settle(current, Status.DONE)
    assert not inbox.settle(current, Status.PENDING)
    assert not inbox.settle(stale, Status.PENDING)
    assert row(inbox)["status"] == "done"


def test_who_has_outlived_the_lease_alone_can_still_settle(
    inbox: Inbox, clock: Clock
) -> None:
    claim = _claim(inbox, inbox.record(event()).row_id)
    clock.forward(3600)
    assert inbox.settle(claim, Status.DONE)


def test_a_pending_event_waits_unless_it_is_asked_for_early(
    inbox: Inbox, clock: Clock
) -> None:
    row_id = inbox.record(event()).row_id
    inbox.settle(_claim(inbox, row_id), Status.PENDING, error="failed", wait=600)

    kept = row(inbox)
    assert (kept["status"], kept["error"], kept["lease"]) == ("pending", "failed", None)
    assert kept["due_at"] == _naive(clock.time + timedelta(seconds=600))
    assert inbox.claim(row_id, 60) is None
    assert (inbox.due(), inbox.due(early=True)) == ([], [row_id])
    clock.forward(600)
    assert inbox.due() == [row_id]
    assert _claim(inbox, row_id).attempt == 2


def test_events_are_due_in_the_order_of_their_times(inbox: Inbox, clock: Clock) -> None:
    rows = []
    for number in range(5):
        rows.append(inbox.record(event(f"evt_{number}")).row_id)
        clock.forward(0.001)
    waits = _claim(inbox, rows[0])
    inbox.settle(waits, Status.PENDING, wait=1)
    inbox.settle(_claim(inbox, rows[1]), Status.DONE)
    _claim(inbox, rows[2])

    assert inbox.due() == rows[3:]
    assert inbox.due(limit=1) == rows[3:4]
    clock.forward(2)
    assert inbox.due() == [*rows[3:], rows[0]]


def test_a_receipt_is_written_once(inbox: Inbox, clock: Clock) -> None:
    row_id = inbox.record(event()).row_id
    other = _claim(inbox, inbox.record(event("evt_2")).row_id)
    claim = _claim(inbox, row_id)
    inbox.commit_receipt(claim, "a:b")
    first = _naive(clock.time)
    clock.forward(60)
    inbox.commit_receipt(claim, "a:b")
    inbox.commit_receipt(claim, "A:B")
    inbox.commit_receipt(other, "a:b")

    later = _naive(clock.time)
    assert inbox.receipts(row_id) == {"a:b": first, "A:B": later}
    assert inbox.receipts(other.row_id) == {"a:b": later}
    assert inbox.receipts(999_999) == {}


# What is kept


def test_a_body_of_one_mebibyte_is_kept_byte_for_byte(
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

    (second, first) = browse.newest(endpoint.inbox)
    assert row(endpoint.inbox, first["event_id"])["body"] == unreadable
    assert row(endpoint.inbox, second["event_id"])["body"] == readable
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


def test_text_that_the_database_does_not_take_is_kept_in_ascii(
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

    found = browse.find(endpoint.inbox, "evt_1")
    assert found is not None
    # The subscribers read the body, which is kept byte for byte.
    assert calls == [type_] * 2
    assert found["type"].endswith(r" \U0001f600.update")
    assert found["status"] == "pending"
    assert found["error"].endswith(r" \U0001f600")
    assert set(endpoint.inbox.receipts(found["id"])) == {"first", "last"}
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
    kept = row(endpoint.inbox)
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
    assert row(endpoint.inbox)["event_at"] == kept


def test_times_are_utc_on_a_machine_that_lives_elsewhere(
    app: Flask, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        before = datetime.now(timezone.utc)
        sent = payload("RFIs.update", id="evt_1", created=int(before.timestamp()))
        assert deliver(app.test_client(), sent).status_code == 200
        after = datetime.now(timezone.utc)
        kept = row(endpoint.inbox)
    finally:
        monkeypatch.undo()
        time.tzset()

    assert _naive(before) <= kept["received_at"] <= kept["finished_at"] <= _naive(after)
    assert kept["event_at"] == _naive(before).replace(microsecond=0)


def test_times_keep_their_microseconds(inbox: Inbox, clock: Clock) -> None:
    clock.time = datetime(2026, 2, 3, 4, 5, 6, 789012, timezone.utc)
    inbox.record(event(timestamp=clock.time))
    kept = row(inbox)
    assert kept["received_at"] == kept["due_at"] == _naive(clock.time)
    assert kept["event_at"] == _naive(clock.time)


def _naive(when: datetime) -> datetime:
    return when.astimezone(timezone.utc).replace(tzinfo=None)


# Tables


def _fails_in_a_transaction(inbox: Inbox) -> None:
    table = inbox.columns.id.table
    with pytest.raises(InboxUnavailable, match="on purpose"):
        with inbox.transaction() as connection:
            connection.execute(sa.delete(table))
            raise RuntimeError("on purpose")
    with pytest.raises(IntegrityError):
        with inbox.transaction() as connection:
            again = connection.execute(sa.select(table)).one()._asdict()
            connection.execute(sa.insert(table).values(again))


def test_a_transaction_that_fails_is_over(inbox: Inbox) -> None:
    inbox.record(event())
    for _ in range(2):
        _fails_in_a_transaction(inbox)
    assert inbox.record(event("evt_2")).fresh
    inbox.database.engine.dispose()
    assert row(inbox) and row(inbox, "evt_2")


def test_psycopg2_is_in_no_transaction_that_failed(
    postgresql_url: str, make_app: MakeApp
) -> None:
    """It rolls nothing back that it has not begun itself."""
    url = sa.make_url(postgresql_url).set(drivername="postgresql+psycopg2")
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI=url.render_as_string(False))
    app.register_blueprint(ProcoreWebhooks())
    (endpoint,) = endpoints(app).values()
    inbox = endpoint.inbox
    try:
        inbox.record(event())
        _fails_in_a_transaction(inbox)
        assert inbox.record(event("evt_2")).fresh
        inbox.database.engine.dispose()
        assert row(inbox) and row(inbox, "evt_2")
    finally:
        inbox.columns.id.table.metadata.drop_all(inbox.database.engine)
        inbox.database.engine.dispose()


def test_creating_tables_again_changes_nothing(inbox: Inbox) -> None:
    assert sorted(inbox.database.create_tables()) == [
        "procore_webhook_event",
        "procore_webhook_journal",
        "procore_webhook_receipt",
    ]
    inbox.record(event())
    assert inbox.database.create_tables() == []
    engine = inbox.database.engine
    inbox.columns.id.table.metadata.create_all(engine)
    inbox.columns.id.table.metadata.create_all(engine)
    assert row(inbox)["status"] == "pending"


def test_many_may_create_the_tables_at_once(
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
    assert row(endpoint.inbox)["attempts"] == 1
    for app in apps:
        _dispose(app)


def test_tables_that_another_creates_in_between_are_taken(
    inbox: Inbox, database_url: str
) -> None:
    """After we have looked for them, and before we create them."""
    other = sa.create_engine(database_url, poolclass=sa.NullPool)
    theirs = {table.name: table for table in define_tables(sa.MetaData())}

    def be_faster(table: sa.Table, connection: Any, **options: Any) -> None:
        theirs[table.name].create(other)

    for table in inbox.database.tables:
        sa.event.listen(table, "before_create", be_faster)

    inbox.database.create_tables()
    assert inbox.database.missing_tables() == []
    assert inbox.record(event()).fresh


DIALECTS = {
    "sqlite": sqlite.dialect(),
    "postgresql": postgresql.dialect(),
    "mysql": mysql.dialect(),
    "mariadb": mysql.dialect(is_mariadb=True),
    "oracle": oracle.dialect(),
    "mssql": mssql.dialect(),
}


@pytest.mark.parametrize("name", DIALECTS)
def test_the_tables_compile_for_every_dialect(name: str) -> None:
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


def test_alembic_finds_nothing_to_migrate_in_tables_just_created(inbox: Inbox) -> None:
    inbox.database.create_tables()
    metadata = inbox.columns.id.table.metadata
    engine = inbox.database.engine
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_the_constraints_and_the_index_are_in_the_database(inbox: Inbox) -> None:
    inbox.database.create_tables()
    inspector = sa.inspect(inbox.database.engine)
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
    if inbox.database.engine.dialect.name in ("sqlite", "postgresql"):
        assert "due_at IS NOT NULL" in "".join(where.values())
    else:
        assert where == {}


def test_what_is_due_is_found_through_the_index_of_live_rows(
    inbox: Inbox, clock: Clock
) -> None:
    """Among many finished events, without looking at them."""
    table = inbox.columns.id.table
    first = inbox.record(event())
    finished = {**row(inbox), "status": "done", "due_at": None}
    del finished["id"]
    rows = [{**finished, "event_id": f"evt_{n}"} for n in range(2, 3000)]
    with inbox.database.connect() as connection:
        connection.execute(sa.insert(table), rows)
        name = connection.dialect.name
        if name != "sqlite":
            verb = "ANALYZE" if name == "postgresql" else "ANALYZE TABLE"
            connection.execute(sa.text(f"{verb} procore_webhook_event"))

    statements: list[tuple[str, Any]] = []

    def keep(connection: Any, cursor: Any, text: str, values: Any, *more: Any) -> None:
        statements.append((text, values))

    sa.event.listen(inbox.database.engine, "before_cursor_execute", keep)
    assert inbox.due() == [first.row_id]
    sa.event.remove(inbox.database.engine, "before_cursor_execute", keep)

    ((text, values),) = statements
    explain = "EXPLAIN QUERY PLAN" if name == "sqlite" else "EXPLAIN"
    with inbox.database.connect() as connection:
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
def test_an_outage_is_answered_503_and_over_when_it_is_over(
    request: pytest.FixtureRequest,
    make_app: MakeApp,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    server: str,
) -> None:
    url = request.getfixturevalue(f"{server}_url")
    with relay_to(url) as relay, _app_on(relay.url, kind, make_app) as (app, inbox):
        client = app.test_client()
        assert deliver(client, payload("RFIs.update")).status_code == 200

        relay.cut()
        lost = [payload("RFIs.update") for _ in range(3)]
        assert all(_refused_for_now(deliver(client, sent)) for sent in lost)
        assert "cannot be used" in caplog.text
        with pytest.raises(InboxUnavailable):
            inbox.due()

        relay.mend()
        for sent in lost:
            assert deliver(client, sent).json == {"received": True}
            assert row(inbox, sent["id"])["status"] == "done"


@contextmanager
def _app_on(url: str, kind: str, make_app: MakeApp) -> Iterator[tuple[Flask, Inbox]]:
    if kind != "own":
        with run_host(make_app(), kind, url) as host:
            yield host.app, host.endpoint.inbox
        return
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI=url)
    ProcoreWebhooks().init_app(app)
    (endpoint,) = endpoints(app).values()
    yield app, endpoint.inbox
    endpoint.inbox.columns.id.table.metadata.drop_all(endpoint.inbox.database.engine)
    _dispose(app)


@pytest.mark.parametrize(
    "url",
    [
        pytest.param(
            "postgresql+psycopg://postgres@127.0.0.1:{port}/nothing",
            marks=pytest.mark.server,
        ),
        pytest.param(
            "mysql+pymysql://root@127.0.0.1:{port}/nothing",
            marks=pytest.mark.server,
        ),
        "sqlite:///{folder}",
        "sqlite:///{folder}/missing/inbox.db",
        "sqlite:////proc/inbox.db",
    ],
)
def test_a_database_that_was_never_there_is_answered_503(
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
    assert "the inbox of 'procore_webhooks' cannot be used: " in caplog.text


@pytest.mark.server
@pytest.mark.slow
def test_a_server_that_says_nothing_is_not_waited_for(make_app: MakeApp) -> None:
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


def test_a_missing_receipt_table_alone_is_named_too(
    app: Flask,
    endpoint: Endpoint,
    webhooks: ProcoreWebhooks,
    caplog: pytest.LogCaptureFixture,
) -> None:
    webhooks.on()(lambda event: None)
    endpoint.inbox.database.create_tables()
    endpoint.inbox.database.tables.receipt.drop(endpoint.inbox.database.engine)

    assert _refused_for_now(deliver(app.test_client(), payload("RFIs.update")))
    assert "missing tables: procore_webhook_receipt;" in caplog.text


@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("kind", ["own", *KINDS])
@pytest.mark.parametrize("server", ["postgresql", "mariadb"])
def test_connections_that_the_server_has_closed_cost_no_delivery(
    request: pytest.FixtureRequest,
    make_app: MakeApp,
    server: str,
    kind: str,
    connections: int,
) -> None:
    """As it does with idle ones, at a restart, or when an administrator says so."""
    url = request.getfixturevalue(f"{server}_url")
    with _app_on(url, kind, make_app) as (app, inbox):
        assert deliver(app.test_client(), payload("RFIs.update")).status_code == 200
        idle = [inbox.database.engine.connect() for _ in range(connections)]
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
def test_a_locked_sqlite_file_is_not_waited_for_longer_than_the_sender_waits(
    make_app: MakeApp, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "inbox.db"
    with _app_on(f"sqlite:///{path}", kind, make_app) as (app, inbox):
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


def test_who_reads_the_embedded_file_keeps_no_delivery_waiting(
    make_app: MakeApp, tmp_path: Path
) -> None:
    path = tmp_path / "inbox.db"
    with _app_on(f"sqlite:///{path}", "own", make_app) as (app, inbox):
        assert deliver(app.test_client(), payload("RFIs.update")).status_code == 200
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            look = "SELECT count(*) FROM procore_webhook_event"
            assert reader.execute(look).fetchone() == (1,)
            assert deliver(app.test_client(), payload("RFIs.update")).status_code == 200
            assert reader.execute(look).fetchone() == (1,)


@pytest.mark.slow
def test_a_sqlite_file_that_is_locked_from_the_start_is_opened_later(
    make_app: MakeApp, tmp_path: Path
) -> None:
    path = tmp_path / "inbox.db"
    with _app_on(f"sqlite:///{path}", "own", make_app) as (app, inbox):
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
def test_what_was_answered_2xx_is_committed_whatever_the_hosts_driver_does(
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
