"""Recording on each database: once, byte for byte, with the right status."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from collections.abc import Iterator
from datetime import datetime
from datetime import timezone
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from support.inboxes import claim_one
from support.inboxes import dispose
from support.inboxes import done
from support.inboxes import due_rows
from support.inboxes import event
from support.inboxes import jobs
from support.inboxes import row
from support.inboxes import states
from support.services import MARIADB
from support.services import own_database
from support.services import POSTGRESQL
from support.values import Clock

from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.dispatching.worker import Worker
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.inbox import claims
from flask_procore_webhooks.inbox.claims import Settlement
from flask_procore_webhooks.inbox.jobs import Failure
from flask_procore_webhooks.inbox.jobs import Job
from flask_procore_webhooks.inbox.record import record as record_event
from flask_procore_webhooks.inbox.status import JobState
from flask_procore_webhooks.inbox.status import Status
from flask_procore_webhooks.operations import queries
from flask_procore_webhooks.storage.store import Store
from flask_procore_webhooks.storage.store import to_db_time
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import payload

MakeApp = Callable[..., Flask]


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
    assert queries.count_events(store) == (1, False)


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
    """Case, accents, trailing spaces and unstorable characters all count."""
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

    # An event id takes precedence over an equal row id.
    record_event(store, event(number))
    assert row(store, number)["event_id"] == number
    for unknown in ("", "evt_2", "9" * 18, "9" * 40, "é", "\0", "\ud800", "²"):
        assert queries.find(store, unknown) is None


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
    assert due_rows(one, hurry=True) == []
    record_event(one, event("evt_2"))
    assert due_rows(two, hurry=True) == []
    dispose(app)


def test_row_ids_are_not_reused(store: Store) -> None:
    """A leftover job must not be attributed to a new event."""
    table = store.columns.id.table
    given = []
    for _ in range(3):
        given.append(record_event(store, event()).row_id)
        with store.connection() as connection:
            connection.execute(sa.delete(table))

    assert len(set(given)) == 3


# Dead, quarantined, ignored


def test_redelivery_revives_the_dead_jobs_of_an_event(
    store: Store, clock: Clock
) -> None:
    """They have all attempts before them; what is finished stays."""
    row_id = record_event(store, event()).row_id
    now, failure = store.db_now(), Failure("ValueError", "broken")
    dead = Job("a:b", attempts=4, first_at=now, failure=failure)
    ended = [dead.ended(JobState.DEAD, now, now), done(store, "c:d")]
    ended.append(Job("e:f").ended(JobState.SUPPRESSED, now))
    end = Settlement(Status.DEAD, "gave up", jobs=ended)
    assert claims.settle(store, claim_one(store, row_id), end)
    assert row(store)["parked_at"] is not None
    assert claims.claim(store, row_id, 60, hurry=True) is None

    clock.forward(3600)
    assert record_event(store, event()).status is Status.PENDING

    revived = row(store)
    assert (revived["status"], revived["repeats"]) == ("pending", 1)
    assert (revived["finished_at"], revived["parked_at"]) == (None, None)
    assert revived["due_at"] == to_db_time(clock.time)
    assert due_rows(store) == [row_id]
    found = claim_one(store, row_id).jobs
    assert (found["a:b"].state, found["a:b"].version) == (JobState.PENDING, 2)
    assert (found["a:b"].attempt, found["a:b"].first_at) == (1, None)
    assert found["c:d"].state is JobState.DONE
    assert found["e:f"].state is JobState.SUPPRESSED
    # The former error is still to be read.
    assert jobs(store)["a:b"]["error"] == "broken"


def test_redelivery_makes_an_unmatched_event_pending(store: Store) -> None:
    row_id = record_event(store, event()).row_id
    claims.settle(store, claim_one(store, row_id), Settlement(Status.UNMATCHED))
    assert row(store)["parked_at"] is not None

    assert record_event(store, event()).status is Status.PENDING
    assert row(store)["parked_at"] is None
    assert due_rows(store) == [row_id]


@pytest.mark.parametrize("status", [Status.DONE, Status.IGNORED])
def test_redelivery_revives_only_dead_events(store: Store, status: Status) -> None:
    row_id = record_event(store, event()).row_id
    claims.settle(store, claim_one(store, row_id), Settlement(status))
    before = row(store)

    assert record_event(store, event()).status is status
    assert row(store) == {**before, "repeats": 1}
    assert claims.claim(store, row_id, 60, hurry=True) is None


@pytest.mark.parametrize("status", [Status.DEAD, Status.IGNORED])
def test_redelivery_that_would_not_run_revives_nothing(
    store: Store, status: Status
) -> None:
    row_id = record_event(store, event()).row_id
    claims.settle(
        store, claim_one(store, row_id), Settlement(Status.DEAD, error="gave up")
    )
    before = row(store)

    assert record_event(store, event(), status).status is Status.DEAD
    assert row(store) == {**before, "repeats": 1}


def test_running_event_is_left_alone_by_its_redelivery(store: Store) -> None:
    claim = claim_one(store, record_event(store, event()).row_id)
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
    assert (kept["status"], kept["repeats"]) == ("quarantined", 2)
    assert kept["due_at"] is None and kept["parked_at"] is not None
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
    assert (kept["status"], kept["repeats"]) == ("ignored", 1)
    assert kept["finished_at"] and kept["due_at"] is None
    dispose(app)


# Values


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
    """A database or connection whose character set lacks part of Unicode."""
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
    # Subscribers read the event from the body, which is stored byte for byte.
    assert calls == [type_] * 2
    assert found["type"].endswith(r" \U0001f600.update")
    assert found["status"] == "pending"
    assert found["error"].endswith(r" \U0001f600")
    assert states(endpoint.store) == {
        "first": "done",
        "fails": "pending",
        "last": "done",
    }
    assert jobs(endpoint.store)["fails"]["error"].endswith(r" \U0001f600")
    dispose(app)


@pytest.mark.parametrize("text", LONG.values(), ids=LONG.keys())
def test_any_text_that_a_sender_writes_is_recorded(
    app: Flask, endpoint: Endpoint, webhooks: ProcoreWebhooks, text: str
) -> None:
    """The table stores a truncated text; subscribers get the whole text."""
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

    assert (
        to_db_time(before)
        <= kept["received_at"]
        <= kept["finished_at"]
        <= to_db_time(after)
    )
    assert kept["event_at"] == to_db_time(before).replace(microsecond=0)


def test_times_keep_their_microseconds(store: Store, clock: Clock) -> None:
    clock.time = datetime(2026, 2, 3, 4, 5, 6, 789012, timezone.utc)
    record_event(store, event(timestamp=clock.time))
    kept = row(store)
    assert kept["received_at"] == kept["due_at"] == to_db_time(clock.time)
    assert kept["event_at"] == to_db_time(clock.time)


def test_text_outside_the_database_encoding_is_found_and_compared(
    make_app: Callable[..., Flask], narrow_url: str
) -> None:
    """Filters and ``latest_only`` compare the stored text."""
    app, webhooks, ran = make_app(), ProcoreWebhooks(), []
    app.config["PROCORE_WEBHOOK_DATABASE_URI"] = narrow_url
    app.config["PROCORE_WEBHOOK_DISPATCH"] = "worker"
    app.register_blueprint(webhooks)
    webhooks.on("Überstunden", "gelöscht", latest_only=True)(
        lambda event: ran.append(event.id)
    )
    (endpoint,) = endpoints(app).values()
    for number in (1, 2):
        sent = payload("Überstunden.gelöscht", id=f"evt_{number}", format="v4")
        assert deliver(app.test_client(), sent).status_code == 200
    Worker([endpoint], poll=1).run_all()
    assert ran == ["evt_2"]
    wanted = queries.Filter(resource_type="Überstunden", reason="gelöscht")
    assert len(queries.newest(endpoint.store, wanted)) == 2
    assert queries.newest(endpoint.store, queries.Filter(type="Протоколы")) == []
    dispose(app)
