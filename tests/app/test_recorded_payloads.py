"""Payloads of every shape, delivered to an app: the answer, the event and its row."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from collections.abc import Iterator
from datetime import datetime
from datetime import timedelta

import pytest
from flask import Flask
from support.inboxes import rows
from support.payloads import EXPECTED
from support.payloads import IDS
from support.payloads import nested
from support.payloads import QUARANTINED
from support.payloads import read
from support.payloads import sample
from support.payloads import sha256
from support.values import SECRET

from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import PrudraWebhooks
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.senders.payload import event_key
from flask_procore_webhooks.testing import deliver

STRANGE_TEXTS = {
    "a NUL": "a\0b",
    "nothing but a NUL": "\0",
    "a lone high surrogate": "\ud800",
    "a lone low surrogate": "a\udfffb",
    "surrogates the wrong way round": "\ude00\ud83d",
    "an emoji": "\U0001f3d7",
    "a noncharacter": "\uffff",
    "right to left": "\u202e3001",
    "accents": "e\u0301é",
    "long": "x" * 500,
    "long, four bytes each": "\U0001f3d7" * 500,
    "growing in lower case": "İ" * 300,
    "line breaks": "a\r\nb\u2028c",
    "a quote": "a'\"`\\;--",
    "percent signs": "%s %(a)s :a {0}",
}


@pytest.fixture
def on_database(
    make_app: Callable[..., Flask], database_url: str, webhooks: ProcoreWebhooks
) -> Iterator[Endpoint]:
    """An endpoint on each kind of database; the first delivery creates its tables."""
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI=database_url)
    app.register_blueprint(webhooks)
    (endpoint,) = endpoints(app).values()
    yield endpoint
    endpoint.store.database.engine.dispose()


# Shapes


@pytest.mark.parametrize("name", EXPECTED)
def test_payload_reaches_a_subscriber_and_the_inbox_as_the_same_event(
    name: str, make_app: Callable[..., Flask]
) -> None:
    blueprint = PrudraWebhooks() if name == "prudra" else ProcoreWebhooks()
    app = make_app(PRUDRA_WEBHOOK_SECRET=SECRET)
    app.register_blueprint(blueprint)
    seen: list[Event] = []
    blueprint.on()(lambda event: seen.append(event))

    answer = deliver(app.test_client(), sample(name))

    assert (answer.status_code, answer.json) == (200, {"received": True})
    (event,) = seen
    expected = dataclasses.replace(
        read(name),
        id=event.id,
        attempt=1,
        received_at=event.received_at,
        source=blueprint.source.name,
        endpoint=blueprint.name,
    )
    assert event == expected
    assert event.id == EXPECTED[name].get("id", event.id)
    (row,) = rows(endpoints(app)[blueprint.name].store)
    assert row.event_id == event.id
    assert row.body == sample(name)
    columns = ("type", "resource_type", "reason", *IDS)
    assert [getattr(row, c) for c in columns] == [getattr(event, c) for c in columns]
    at = event.timestamp and event.timestamp.replace(tzinfo=None)
    assert row.event_at == at
    assert event.received_at == row.received_at.replace(tzinfo=timezone.utc)


def test_event_is_frozen(endpoint: Endpoint) -> None:
    event = endpoint.read(sample("v4"))[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.id = "another"  # type: ignore[misc]


# Event ids


def test_ids_of_different_spelling_are_different_events_on_every_database(
    on_database: Endpoint,
) -> None:
    client = on_database.app.test_client()
    spellings = ["a", "A", "á", "a ", " a", "a\0", "01", "1", "1.0", "ß", "ss"]
    for spelling in spellings:
        answer = deliver(client, {"type": "a.b", "id": spelling})
        assert answer.json == {"received": True}, spelling
    for spelling in spellings:
        answer = deliver(client, {"type": "a.b", "id": spelling})
        assert answer.json == {"received": True, "duplicate": True}, spelling


@pytest.mark.parametrize(
    "body", [b'{"type":"test","data":{}}', b"[]", b"\xff", b"{}", b""]
)
def test_repeated_delivery_without_an_id_is_one_event(
    body: bytes, endpoint: Endpoint
) -> None:
    client = endpoint.app.test_client()
    now = int(endpoint.store.now().timestamp())
    first, second = (deliver(client, body, timestamp=now) for _ in range(2))
    assert (first.status_code, second.status_code) == (200, 200)
    (row,) = rows(endpoint.store)
    assert row.event_id == sha256(b"%d.%b" % (now, body))
    assert (row.repeats, row.conflicts) == (1, 0)


def test_equal_bodies_without_an_id_signed_at_different_times_are_two_events(
    endpoint: Endpoint,
) -> None:
    client = endpoint.app.test_client()
    now = int(endpoint.store.now().timestamp())
    for timestamp in (now, now - 1):
        answer = deliver(client, {"type": "test", "data": {}}, timestamp=timestamp)
        assert answer.json == {"received": True}
    assert len(rows(endpoint.store)) == 2


# Time


def test_first_and_the_last_times_are_recorded_on_every_database(
    on_database: Endpoint,
) -> None:
    client = on_database.app.test_client()
    edges = {
        "0001-01-01T00:00:00Z": datetime(1, 1, 1),
        "0001-01-01T00:00:00-14:00": datetime(1, 1, 1, 14),
        "9999-12-31T23:59:59.999999Z": datetime.max,
        "9999-12-31T23:59:59.999999+14:00": datetime.max - timedelta(hours=14),
        "1969-12-31T23:59:59.5Z": datetime(1969, 12, 31, 23, 59, 59, 500_000),
        -1: datetime(1969, 12, 31, 23, 59, 59),
        0: datetime(1970, 1, 1),
        253402300799: datetime(9999, 12, 31, 23, 59, 59),
    }
    for number, sent in enumerate(edges):
        payload = {"id": number, "type": "a.b", "created": sent}
        assert deliver(client, payload).json == {"received": True}, sent
    assert [row.event_at for row in rows(on_database.store)] == list(edges.values())


# Bodies without a JSON object


@pytest.mark.parametrize("case", QUARANTINED)
def test_body_without_json_object_is_quarantined_and_kept_unchanged(
    case: str, endpoint: Endpoint, webhooks: ProcoreWebhooks
) -> None:
    ran: list[Event] = []
    webhooks.on()(lambda event: ran.append(event))
    body, reason = QUARANTINED[case]
    client = endpoint.app.test_client()
    for _ in range(2):
        answer = deliver(client, body, timestamp=int(endpoint.store.now().timestamp()))
        assert answer.status_code == 200
        assert answer.json == {"received": True, "quarantined": True}
    assert ran == []
    assert {row.status for row in rows(endpoint.store)} == {"quarantined"}
    row = rows(endpoint.store)[0]
    assert row.body == body
    assert reason in row.error
    assert row.finished_at is not None


def test_body_without_json_object_is_kept_on_every_database(
    on_database: Endpoint,
) -> None:
    client = on_database.app.test_client()
    for body, _ in QUARANTINED.values():
        answer = deliver(client, body)
        assert answer.json == {"received": True, "quarantined": True}
    for row, (body, reason) in zip(
        rows(on_database.store), QUARANTINED.values(), strict=True
    ):
        assert (row.status, row.body) == ("quarantined", body)
        assert reason in row.error


def test_json_of_any_depth_is_answered_200(
    endpoint: Endpoint, webhooks: ProcoreWebhooks
) -> None:
    """View, run and subscribers parse the body at different stack depths."""
    ran: list[str] = []
    webhooks.on()(lambda event: ran.append(event.id))
    limit = sys.getrecursionlimit()
    client = endpoint.app.test_client()
    for depth in (*range(95, 106), *range(limit - 150, limit + 1)):
        answer = deliver(client, nested(depth))
        assert answer.status_code == 200
        readable = {"received": True} | ({"quarantined": True} if depth > 100 else {})
        assert answer.json == readable
    found = rows(endpoint.store)
    assert {(row.status, row.error) for row in found if row.event_id not in ran} == {
        ("quarantined", "the JSON is nested too deeply")
    }
    assert [row.event_id for row in found if row.status == "done"] == ran
    assert ran == ["95", "96", "97", "98", "99", "100"]


# Texts that a database may refuse


def test_strange_text_is_recorded_and_run_on_every_database(
    on_database: Endpoint,
) -> None:
    blueprint = on_database.app.blueprints[on_database.name]
    assert isinstance(blueprint, ProcoreWebhooks)
    seen: list[Event] = []
    blueprint.on()(lambda event: seen.append(event))
    client = on_database.app.test_client()

    for case, text in STRANGE_TEXTS.items():
        names = ("id", "reason", "resource_type", *IDS, "payload_version", text)
        body = json.dumps(dict.fromkeys(names, text)).encode()
        first, second = (deliver(client, body) for _ in range(2))
        assert first.json == {"received": True}, case
        assert second.json == {"received": True, "duplicate": True}, case

    found = rows(on_database.store)
    assert [event.resource_type for event in seen] == list(STRANGE_TEXTS.values())
    for event, row, text in zip(seen, found, STRANGE_TEXTS.values(), strict=True):
        assert event.payload[text] == event.project_id == text
        assert (row.status, row.body, row.repeats) == ("done", event.body, 1)
        assert row.event_id == event.id == event_key(text, "", b"")
        for column in ("type", "resource_type", "reason", *IDS):
            assert getattr(row, column)
            assert "\0" not in getattr(row, column)
