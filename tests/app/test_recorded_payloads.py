"""Payloads of every shape, delivered to an app: the answer, the event and its row."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from collections.abc import Iterator
from datetime import datetime
from datetime import timedelta
from datetime import timezone

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
from flask_procore_webhooks import resource_created
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.log import MOST_LINES
from flask_procore_webhooks.senders.payload import event_key
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import payload

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


@pytest.mark.parametrize("key", ["payload", "event"])
def test_wrapped_event_is_a_repeat_of_the_plain_one(
    key: str, endpoint: Endpoint, webhooks: ProcoreWebhooks
) -> None:
    seen: list[Event] = []
    webhooks.on("Projects", "update")(lambda event: seen.append(event))
    client, plain = endpoint.app.test_client(), json.loads(sample("v4"))
    wrapped = {"id": "delivery-1", key: plain, "status": "failed"}

    answers = [deliver(client, body).json for body in (wrapped, wrapped, plain)]

    assert answers[0] == {"received": True}
    assert answers[1:] == [{"received": True, "duplicate": True}] * 2
    (row,) = rows(endpoint.store)
    assert (row.event_id, row.type, row.status) == (
        plain["id"],
        "Projects.update",
        "done",
    )
    assert (row.repeats, row.conflicts) == (2, 1)
    (event,) = seen
    assert (event.data, event.payload) == (plain, wrapped)


@pytest.mark.parametrize("name", ["v4", "v2"])
def test_created_in_capitals_fires_the_signal_of_creations(
    name: str, app: Flask, endpoint: Endpoint
) -> None:
    """Procore's own spelling of a Document Upload."""
    seen: list[Event] = []
    resource_created.connect(lambda app, event: seen.append(event), name="x")
    sent = payload("Document Upload.CREATED", format=name)
    assert deliver(app.test_client(), sent).json == {"received": True}
    (event,) = seen
    assert (event.type, event.reason) == ("Document Upload.create", "create")
    (row,) = rows(endpoint.store)
    assert (row.type, row.reason) == (event.type, event.reason)


# Objects of unknown shape


def unknown(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [text for text in caplog.messages if "unknown shape" in text]


def test_object_of_unknown_shape_is_recorded_with_a_warning_for_each_shape(
    endpoint: Endpoint, webhooks: ProcoreWebhooks, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[Event] = []
    webhooks.on()(lambda event: ran.append(event))
    client = endpoint.app.test_client()
    for sent in ({"id": 1, "b": 2}, {"b": 3, "id": 2}, {"c": 1}, {}, {"id": 3, "b": 4}):
        assert deliver(client, sent).json == {"received": True}
    assert [event.data for event in ran] == [event.payload for event in ran]
    found = rows(endpoint.store)
    assert {(row.type, row.status, row.error) for row in found} == {("", "done", None)}
    assert unknown(caplog) == [
        "procore_webhooks recorded an object of unknown shape, with an empty type. Its"
        f" keys: {keys}. This is logged once for each shape."
        for keys in ("'b', 'id'", "'c'", "none")
    ]


def test_warnings_of_unknown_shapes_are_bounded_and_hold_no_values(
    endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    client = endpoint.app.test_client()
    wide = {f"{number:03}{'x' * 99}": "the-secret" for number in range(300)}
    deliver(client, {**wide, "\nforged": 1})
    (line,) = unknown(caplog)
    assert len(line) < 1500 and "\n" not in line and "the-secret" not in line
    for number in range(MOST_LINES + 20):
        deliver(client, {f"key{number}": number})
    assert len(unknown(caplog)) == MOST_LINES


def test_repeat_of_an_object_of_unknown_shape_is_not_logged_again(
    endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        deliver(endpoint.app.test_client(), {"id": "1", "a": 2})
    assert len(unknown(caplog)) == 1


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
