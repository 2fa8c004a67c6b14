from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable
from collections.abc import Iterator
from datetime import datetime
from datetime import timedelta
from datetime import timezone
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from hypothesis import given
from hypothesis import strategies as st
from support.inboxes import rows
from support.values import SECRET

from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import PrudraWebhooks
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.errors import BadPayload
from flask_procore_webhooks.senders.payload import event_key
from flask_procore_webhooks.senders.payload import parse
from flask_procore_webhooks.senders.payload import read_event
from flask_procore_webhooks.senders.payload import to_datetime
from flask_procore_webhooks.senders.payload import unreadable_event
from flask_procore_webhooks.senders.procore import PROCORE
from flask_procore_webhooks.senders.prudra import PRUDRA
from flask_procore_webhooks.senders.source import Source
from flask_procore_webhooks.testing import deliver

PAYLOADS = Path(__file__).parents[1] / "payloads"

NOON = datetime(2026, 5, 4, 12, 0, 0, tzinfo=timezone.utc)
CHANGED = datetime(2026, 5, 4, 10, 11, 12, 345678, tzinfo=timezone.utc)
IDS = {
    "resource_id": "4001",
    "company_id": "2001",
    "project_id": "3001",
    "user_id": "1001",
}
#: What each file in ``payloads`` has to become, ``data`` and ``payload`` apart.
EXPECTED: dict[str, dict[str, Any]] = {
    "v2": {
        **IDS,
        "id": "01JZ0000000000000000000ABC",
        "type": "RFIs.update",
        "resource_type": "RFIs",
        "reason": "update",
        "application_id": "0123456789abcdef" * 4,
        "timestamp": CHANGED,
        "payload_version": "v2.0",
    },
    "v2_of_2020": {
        **IDS,
        "type": "Purchase Order Contracts.create",
        "resource_type": "Purchase Order Contracts",
        "reason": "create",
        "application_id": None,
        "timestamp": datetime(2020, 6, 1, 8, 9, 10, tzinfo=timezone.utc),
        "payload_version": "v2",
    },
    "v2_of_a_company": {
        "id": "9223372036854775807",
        "type": "Departments.delete",
        "resource_type": "Departments",
        "reason": "delete",
        "resource_id": "4003",
        "company_id": "598000000000001",
        "project_id": None,
        "user_id": None,
        "application_id": None,
        "timestamp": datetime(2026, 5, 4, 10, 11, 12, tzinfo=timezone.utc),
        "payload_version": "v2.0",
    },
    "v3": {
        **IDS,
        "id": "01JZ0000000000000000000ABD",
        "type": "Direct Cost Line Items.create",
        "resource_type": "Direct Cost Line Items",
        "reason": "create",
        "resource_id": "4002",
        "application_id": None,
        "timestamp": CHANGED,
        "payload_version": "v3.0",
    },
    "v4": {
        "id": "01JZ0000000000000000000ABE",
        "type": "Projects.update",
        "resource_type": "Projects",
        "reason": "update",
        "resource_id": "598000000000002",
        "company_id": "598000000000001",
        "project_id": None,
        "user_id": "10010001",
        "application_id": None,
        "timestamp": CHANGED,
        "payload_version": "v4.0",
    },
    "v4_workflow": {
        "id": "01JZ0000000000000000000ABF",
        "type": "Workflow Instance.current_step_assignees_changed",
        "resource_type": "Workflow Instance",
        "reason": "current_step_assignees_changed",
        "resource_id": "598000000000003",
        "company_id": "598000000000001",
        "project_id": "598000000000002",
        "user_id": None,
        "application_id": None,
        "timestamp": CHANGED,
        "payload_version": "v4.0",
    },
    "signed": {
        **IDS,
        "id": "evt_0001",
        "type": "resource.updated",
        "resource_type": "resource",
        "reason": "update",
        "application_id": None,
        "timestamp": datetime(2026, 5, 4, 10, 11, 12, tzinfo=timezone.utc),
        "payload_version": None,
    },
    "prudra": {
        "id": "evt_0002",
        "type": "payment.received",
        "resource_type": "payment",
        "reason": "received",
        "resource_id": None,
        "company_id": None,
        "project_id": None,
        "user_id": None,
        "application_id": None,
        "timestamp": None,
        "payload_version": None,
    },
}
#: Where the part that describes the resource is; else it is the whole object.
INNER = {"signed": "data", "prudra": "payload"}

QUARANTINED = {
    "nothing": (b"", "not JSON: Expecting value at character 0"),
    "white space": (b" \r\n\t", "not JSON"),
    "text": (b"hello", "not JSON"),
    "a form": (b"id=1&type=a.b", "not JSON"),
    "half": (b'{"id": "1", "type": "a.', "not JSON"),
    "more after it": (b'{"id": "1"} {"id": "2"}', "not JSON: Extra data"),
    "single quotes": (b"{'id': '1'}", "not JSON"),
    "bad UTF-8": (b'{"id": "\xff\xfe"}', "not UTF-8"),
    "Latin-1": ('{"name": "Zürich"}'.encode("latin-1"), "not UTF-8"),
    "a surrogate in UTF-8": (b'{"id": "\xed\xa0\x80"}', "not UTF-8"),
    "an overlong NUL": (b'{"id": "\xc0\x80"}', "not UTF-8"),
    "UTF-16": ('{"id": "1"}'.encode("utf-16"), "not UTF-8"),
    "UTF-16 without a mark": ('{"id": "1"}'.encode("utf-16-le"), "not JSON"),
    "UTF-32": ('{"id": "1"}'.encode("utf-32-be"), "not JSON"),
    "a byte order mark": (b'\xef\xbb\xbf{"id": "1"}', "not JSON"),
    "a raw NUL": (b'{"id": "a\0b"}', "not JSON: Invalid control character"),
    "a NUL behind it": (b'{"id": "1"}\0', "not JSON: Extra data"),
    "compressed": (b"\x1f\x8b\x08\x00\x00\x00\x00\x00", "not UTF-8"),
    "a list": (b'[{"id": "1"}]', "not an object"),
    "null": (b"null", "not an object"),
    "true": (b"true", "not an object"),
    "text in quotes": (b'"resource.created"', "not an object"),
    "a number": (b"42", "not an object"),
    "a fraction": (b"-1.5e3", "not an object"),
    "NaN": (b'{"id": NaN}', "NaN is not JSON"),
    "Infinity": (b'{"id": Infinity}', "Infinity is not JSON"),
    "-Infinity": (b'{"a": [-Infinity]}', "-Infinity is not JSON"),
    "1e999": (b'{"id": 1e999}', "a number is infinite"),
    "-1e999": (b'{"id": -1e999}', "a number is infinite"),
    "5,000 digits": (b'{"id": ' + b"9" * 5000 + b"}", "more than 1000 digits"),
    "500,000 digits": (b'{"id": -' + b"9" * 500_000 + b"}", "more than 1000 digits"),
    "deep lists": (b"[" * 100_000, "nested too deeply"),
    "deep lists, closed": (
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "nested too deeply",
    ),
    "deep objects": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
    "a key twice": (b'{"id": "1", "id": "2"}', "repeats a key"),
    "a key twice, escaped": (b'{"id": "1", "\\u0069d": "2"}', "repeats a key"),
    "a key twice, inside": (b'{"a": [{"b": 1, "b": 1}]}', "repeats a key"),
}

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


def sample(name: str) -> bytes:
    return (PAYLOADS / f"{name}.json").read_bytes()


def read(name: str) -> Event:
    return read_event(sample(name), PRUDRA if name == "prudra" else PROCORE)


def procore(payload: object) -> Event:
    return read_event(json.dumps(payload).encode(), PROCORE)


def sha256(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


@pytest.fixture
def on_database(
    make_app: Callable[..., Flask], database_url: str, webhooks: ProcoreWebhooks
) -> Iterator[Endpoint]:
    """An endpoint on each kind of database, its tables made by the first delivery."""
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI=database_url)
    app.register_blueprint(webhooks)
    (endpoint,) = endpoints(app).values()
    yield endpoint
    endpoint.store.database.engine.dispose()


# The shapes


def test_every_payload_file_has_an_expectation() -> None:
    assert {path.stem for path in PAYLOADS.glob("*.json")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_payload_becomes_the_event_that_the_table_of_shapes_promises(
    name: str,
) -> None:
    event = read(name)
    found = {field: getattr(event, field) for field in EXPECTED[name]}
    assert found == EXPECTED[name]
    whole = json.loads(sample(name))
    assert event.payload == whole
    assert event.data == (whole[INNER[name]] if name in INNER else whole)
    assert event.body == sample(name)
    assert event.attempt == 0


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


def test_id_beyond_what_a_float_can_hold_keeps_every_digit() -> None:
    assert read("v2_of_a_company").id == str(2**63 - 1)
    event = procore({"event_type": "update", "id": 10**18 + 1, "resource_id": 2**63})
    assert (event.id, event.resource_id) == ("1000000000000000001", str(2**63))


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("create", "create"),
        ("UPDATE", "update"),
        ("Deleted", "deleted"),
        ("STARTED", "started"),
        ("RESPONSE_RECEIVED", "response_received"),
        ("a reason of next year", "a reason of next year"),
        ("", None),
        (" ", None),
        (None, None),
        (["update"], None),
        ({"update": 1}, None),
        (7, None),
        (True, None),
    ],
)
@pytest.mark.parametrize("key_", ["reason", "event_type"])
def test_unknown_reasons_are_kept_in_lower_case(
    key_: str, sent: object, kept: str | None
) -> None:
    resource = {"reason": "resource_type", "event_type": "resource_name"}[key_]
    event = procore({"id": "1", key_: sent, resource: "RFIs"})
    assert event.reason == kept
    assert event.type == (f"RFIs.{kept}" if kept else "RFIs")


@pytest.mark.parametrize(
    ("sent", "resource_type", "reason"),
    [
        ("resource.created", "resource", "create"),
        ("resource.updated", "resource", "update"),
        ("resource.deleted", "resource", "delete"),
        ("RESOURCE.CREATED", "RESOURCE", "create"),
        ("resource.archived", "resource", "archived"),
        ("a.b.c.Created", "a.b.c", "create"),
        ("Daily Log/Entries.updated", "Daily Log/Entries", "update"),
        ("ping", "ping", None),
        (".created", None, "create"),
        ("resource.", "resource", None),
        (".", None, None),
        ("", None, None),
        (None, None, None),
        (["resource.created"], None, None),
        ({"a": 1}, None, None),
        (1.5, None, None),
    ],
)
def test_type_of_an_envelope_is_kept_as_sent_and_split_at_its_last_dot(
    sent: object, resource_type: str | None, reason: str | None
) -> None:
    event = procore({"id": "1", "type": sent, "data": {}})
    assert event.type == (sent if isinstance(sent, str) else "")
    assert (event.resource_type, event.reason) == (resource_type, reason)


@pytest.mark.parametrize(
    "sent", ["vault.created", "vault.updated", "withdrawal.DELETED"]
)
def test_prudra_reasons_are_not_translated_to_procore_reasons(sent: str) -> None:
    event = read_event(json.dumps({"type": sent}).encode(), PRUDRA)
    assert event.type == sent
    assert event.reason == sent.partition(".")[2].lower()


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"reason": None},
        {"event_type": None},
        {"type": None},
        {"metadata": [], "event_type": "x"},
        {"metadata": "x", "event_type": "x"},
        {"metadata": {"source_application_id": 7.5}, "event_type": "x"},
        {"data": None, "type": "x"},
        {"data": [1], "type": "x"},
        {"data": "text", "type": "x"},
        {"": {"": ""}},
    ],
)
@pytest.mark.parametrize("source", [PROCORE, PRUDRA])
def test_object_without_known_keys_is_an_event(
    payload: dict[str, object], source: Source
) -> None:
    body = json.dumps(payload).encode()
    event = read_event(body, source, "1767225600")
    assert event.id == sha256(b"1767225600." + body)
    assert event.resource_id is event.project_id is event.application_id is None
    assert event.payload == payload


def test_unknown_keys_change_only_the_payload() -> None:
    known = json.loads(sample("v4"))
    more = {**known, "schema": {"next": ["year"]}, "type": "x", "event_type": "delete"}
    fields = {"payload", "data", "body"}
    before, after = (dataclasses.asdict(procore(p)) for p in (known, more))
    assert {k: before[k] for k in before.keys() - fields} == {
        k: after[k] for k in after.keys() - fields
    }
    assert after["payload"] == more


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("4001", "4001"),
        ("04001", "04001"),
        (4001, "4001"),
        (-1, "-1"),
        (2**63 - 1, str(2**63 - 1)),
        (10**40, str(10**40)),
        ("", None),
        (" ", None),
        ("\u3000\t", None),
        (None, None),
        (0, None),
        (-0.0, None),
        (True, None),
        (False, None),
        (4001.0, None),
        (1.5, None),
        ([4001], None),
        ({"id": 4001}, None),
    ],
)
@pytest.mark.parametrize(
    "field", ["resource_id", "company_id", "project_id", "user_id"]
)
@pytest.mark.parametrize("shape", ["reason", "event_type", "data"])
def test_ids_of_any_json_type_become_text_or_none(
    shape: str, field: str, sent: object, kept: str | None
) -> None:
    if shape == "data":
        event = procore({"id": "1", "type": "resource.created", "data": {field: sent}})
    else:
        event = procore({"id": "1", shape: "create", field: sent})
    assert getattr(event, field) == kept


def test_valid_ulid_takes_precedence_over_id() -> None:
    update = {"event_type": "update", "id": 7}
    assert procore({**update, "ulid": "01JZ"}).id == "01JZ"
    for unusable in ("", " ", None, True, 0, 1.5, ["01JZ"], {"a": "01JZ"}):
        assert procore({**update, "ulid": unusable}).id == "7"


def test_event_is_frozen(endpoint: Endpoint) -> None:
    event = endpoint.read(sample("v4"))[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.id = "another"  # type: ignore[misc]


# The key


@pytest.mark.parametrize(
    "plain", ["1", "!", "~", "evt_0001", "01JZ", "a/b:c%s", "x" * 80]
)
def test_portable_id_is_the_event_id(plain: str) -> None:
    assert event_key(plain, "1767225600", b"body") == plain


@pytest.mark.parametrize(
    "strange",
    [
        "x" * 81,
        "x" * 100_000,
        "a b",
        " 1",
        "1 ",
        "1\n",
        "é",
        "ＩＤ",
        "a\0b",
        "\x7f",
        "\ud800",
        "sha256:",
        "sha256:" + "0" * 64,
        "sha256:anything",
    ],
)
def test_unportable_id_is_replaced_by_its_digest(strange: str) -> None:
    found = event_key(strange, "1767225600", b"body")
    assert found == sha256(strange.encode("utf-8", "surrogatepass"))
    assert found == event_key(strange, "1767225601", b"another body")


def test_sender_cannot_choose_the_digest_of_another_event_as_id() -> None:
    victim = event_key(None, "1767225600", b"body")
    assert event_key(victim, "1767225600", b"forged") != victim


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


def test_id_key_of_another_payload_format_is_not_the_event_id() -> None:
    """Neither a resource's id nor one deeper inside identifies the event."""
    inner = {"id": "9", "ulid": "9", "eventId": "9", "resource_id": "9"}
    for outer in (
        {"type": "a.b", "data": inner},
        {"reason": "update", "data": inner, "ulid": "9", "eventId": "9"},
        {"event_type": "update", "metadata": inner, "eventId": "9"},
    ):
        assert procore(outer).id.startswith("sha256:")


# Time


@pytest.mark.parametrize(
    ("sent", "microseconds"),
    [
        ("2026-05-04T12:00:00Z", 0),
        ("2026-05-04t12:00:00z", 0),
        ("2026-05-04 12:00:00", 0),
        ("2026-05-04T12:00:00", 0),
        (" 2026-05-04T12:00:00Z\n", 0),
        ("2026-05-04T12:00:00+00:00", 0),
        ("2026-05-04T12:00:00-0000", 0),
        ("2026-05-04T14:00:00+02:00", 0),
        ("2026-05-04T04:30:00-0730", 0),
        ("2026-05-05T02:00:00+14:00", 0),
        ("2026-05-04T12:00:00.1Z", 100_000),
        ("2026-05-04T12:00:00.12Z", 120_000),
        ("2026-05-04T12:00:00.123Z", 123_000),
        ("2026-05-04T12:00:00.1234Z", 123_400),
        ("2026-05-04T12:00:00.12345Z", 123_450),
        ("2026-05-04T12:00:00.123456Z", 123_456),
        ("2026-05-04T12:00:00.1234567Z", 123_456),
        ("2026-05-04T12:00:00.12345678Z", 123_456),
        ("2026-05-04T12:00:00.123456789+00:00", 123_456),
        ("2026-05-04T12:00:00." + "9" * 10_000, 999_999),
        (1777896000, 0),
        (1777896000.25, 250_000),
    ],
)
def test_time_is_read_from_text_or_seconds_as_aware_utc(
    sent: object, microseconds: int
) -> None:
    when = to_datetime(sent)
    assert when == NOON + timedelta(microseconds=microseconds)
    assert when.tzinfo is timezone.utc


@pytest.mark.parametrize(
    "sent",
    [
        None,
        "",
        "now",
        "yesterday",
        "2026-05-04",
        "12:00:00",
        "2026-05-04T12:00Z",
        "2026-05-04T12:00:00.Z",
        "2026-05-04T12:00:00,5Z",
        "2026-05-04T12:00:00Z.",
        "2026-05-04T12:00:00ZZ",
        "2026-05-04T12:00:00 UTC",
        "2026-13-01T12:00:00Z",
        "2026-02-30T12:00:00Z",
        "2026-05-04T25:00:00Z",
        "2026-05-04T12:60:00Z",
        "2026-05-04T12:00:61Z",
        "2026-05-04T12:00:00+99:00",
        "2026-05-04T12:00:00+25:00",
        "2026-05-04T12:00:00+2:00",
        "2026-05-04T12:00:00+02:",
        "0000-01-01T00:00:00Z",
        "10000-01-01T00:00:00Z",
        "-2026-05-04T12:00:00Z",
        "0001-01-01T00:00:00+00:01",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-00:01",
        "9999-12-31T23:59:59-14:00",
        "٢٠٢٦-05-04T12:00:00Z",
        "2026-05-04T12:00:00Z\0",
        "\ud800",
        "2026-05-04T12:00:00Z" * 1000,
        "1777896000",
        True,
        False,
        10**12,
        -(10**12),
        10**30,
        10**400,
        1e300,
        float("inf"),
        float("-inf"),
        float("nan"),
        [1777896000],
        {"time": 1777896000},
    ],
)
def test_invalid_time_is_read_as_none(sent: object) -> None:
    assert to_datetime(sent) is None


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


@given(st.one_of(st.text(), st.integers(), st.floats(), st.datetimes().map(str)))
def test_to_datetime_accepts_any_value(value: object) -> None:
    when = to_datetime(value)
    assert when is None or when.utcoffset() == timedelta(0)


# What is no JSON object


@pytest.mark.parametrize("case", QUARANTINED)
def test_error_for_a_body_without_json_object_omits_its_content(case: str) -> None:
    body, reason = QUARANTINED[case]
    with pytest.raises(BadPayload, match=reason) as caught:
        parse(body)
    assert len(caught.value.reason) < 100
    # Errors of the codec and of the JSON reader carry the whole body with them.
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@pytest.mark.parametrize("case", QUARANTINED)
def test_body_without_json_object_is_dead_and_kept_unchanged(
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
    assert {row.status for row in rows(endpoint.store)} == {"dead"}
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
        assert (row.status, row.body) == ("dead", body)
        assert reason in row.error


def nested(depth: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    """An object with ``depth`` levels, itself the first."""
    inner = opening * (depth - 1) + b"1" + closing * (depth - 1)
    return b'{"id":"%d","a":%b}' % (depth, inner)


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_json_is_read_up_to_a_depth_of_one_hundred(
    opening: bytes, closing: bytes
) -> None:
    for depth in (1, 2, 50, 99, 100):
        assert read_event(nested(depth, opening, closing), PROCORE).id
    for depth in (101, 102, 500, 5000):
        with pytest.raises(BadPayload, match="nested too deeply"):
            parse(nested(depth, opening, closing))


def test_wide_json_is_not_counted_as_deep() -> None:
    wide = b'{"id":"1","a":[' + b"[],{}," * 20_000 + b"[[]]]}"
    assert len(parse(wide)["a"]) == 40_001


def test_depth_limit_does_not_depend_on_the_python_stack() -> None:
    def read_below(frames: int, body: bytes) -> Event | str:
        if frames:
            return read_below(frames - 1, body)
        try:
            return read_event(body, PROCORE)
        except BadPayload as bad:
            return bad.reason

    for depth in (100, 101):
        body = nested(depth)
        assert read_below(0, body) == read_below(sys.getrecursionlimit() // 2, body)


def test_json_of_any_depth_is_answered_200(
    endpoint: Endpoint, webhooks: ProcoreWebhooks
) -> None:
    """The view, the run and each subscriber's turn read at different stack depths."""
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
        ("dead", "the JSON is nested too deeply")
    }
    assert [row.event_id for row in found if row.status == "done"] == ran
    assert ran == ["95", "96", "97", "98", "99", "100"]


@pytest.mark.parametrize(
    "number", ["0", "-0", "1e3", "1E-999", "0.1", "9" * 1000, "1" + "0" * 308 + ".5"]
)
def test_numbers_that_python_holds_are_readable(number: str) -> None:
    assert parse(b'{"n": %b}' % number.encode()) == {"n": json.loads(number)}


def test_number_limit_does_not_depend_on_int_max_str_digits() -> None:
    limit = sys.get_int_max_str_digits()
    reasons = set()
    try:
        for each in (0, 4300, 640):
            sys.set_int_max_str_digits(each)
            with pytest.raises(BadPayload) as caught:
                parse(QUARANTINED["5,000 digits"][0])
            reasons.add(caught.value.reason)
    finally:
        sys.set_int_max_str_digits(limit)
    assert len(reasons) == 1


@given(st.binary())
def test_parse_accepts_any_body(body: bytes) -> None:
    try:
        assert isinstance(parse(body), dict)
    except BadPayload as bad:
        assert bad.reason
        assert unreadable_event(body, PROCORE, "1").id == sha256(b"1." + body)


# Text that a database may choke on


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


def test_event_repr_omits_the_payload() -> None:
    body = b'{"id": "1", "type": "a.b", "data": {"phone": "555-0100"}}'
    assert "555-0100" not in repr(read_event(body, PROCORE))
