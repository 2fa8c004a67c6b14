from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Callable
from datetime import datetime
from datetime import timedelta
from datetime import timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.payloads import EXPECTED
from support.payloads import nested
from support.payloads import PAYLOADS
from support.payloads import QUARANTINED
from support.payloads import read
from support.payloads import sample
from support.payloads import sha256

from flask_procore_webhooks import Event
from flask_procore_webhooks.errors import BadPayload
from flask_procore_webhooks.senders.payload import event_key
from flask_procore_webhooks.senders.payload import parse
from flask_procore_webhooks.senders.payload import read_event
from flask_procore_webhooks.senders.payload import to_datetime
from flask_procore_webhooks.senders.payload import unreadable_event
from flask_procore_webhooks.senders.procore import PROCORE
from flask_procore_webhooks.senders.prudra import PRUDRA
from flask_procore_webhooks.senders.source import Source

NOON = datetime(2026, 5, 4, 12, 0, 0, tzinfo=timezone.utc)
#: The key of the resource's data where that is not ``data``.
INNER = {"prudra": "payload"}


def procore(payload: object) -> Event:
    return read_event(json.dumps(payload).encode(), PROCORE)


# Shapes


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
    assert event.data == whole.get(INNER.get(name, "data"), whole)
    assert event.body == sample(name)
    assert event.attempt == 0


def test_id_beyond_what_a_float_can_hold_keeps_every_digit() -> None:
    assert read("v2_of_a_company").id == str(2**63 - 1)
    event = procore({"event_type": "update", "id": 10**18 + 1, "resource_id": 2**63})
    assert (event.id, event.resource_id) == ("1000000000000000001", str(2**63))


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("create", "create"),
        ("UPDATE", "update"),
        ("Deleted", "delete"),
        ("CREATED", "create"),
        ("uPdAtEd", "update"),
        ("COMPLETED", "completed"),
        ("recreated", "recreated"),
        ("created ", "created "),
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
def test_reasons_are_kept_in_lower_case_with_one_spelling_for_each(
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
        ("Document Upload.Created", "Document Upload", "create"),
        ("Document Upload.COMPLETED", "Document Upload", "completed"),
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
    ("sent", "reason"),
    [
        ("vault.created", "create"),
        ("vault.updated", "update"),
        ("withdrawal.DELETED", "delete"),
        ("payment.Received", "received"),
    ],
)
def test_prudra_reasons_are_spelt_like_those_of_procore(sent: str, reason: str) -> None:
    event = read_event(json.dumps({"type": sent}).encode(), PRUDRA)
    assert (event.type, event.reason) == (sent, reason)


@pytest.mark.parametrize("resource", ["Document Upload.Created", " RFIs ", "rfis", "É"])
def test_resource_type_is_kept_as_sent(resource: str) -> None:
    event = procore({"id": "1", "resource_type": resource, "reason": "CREATED"})
    assert (event.resource_type, event.reason) == (resource, "create")
    assert event.type == f"{resource}.create"


@pytest.mark.parametrize("name", ["v2", "v3", "v4"])
@pytest.mark.parametrize(
    "data", [{"related_resources": []}, {"id": "9", "resource_id": "9"}, [1], "text", 0]
)
def test_data_of_a_procore_payload_is_the_data_of_the_event(
    name: str, data: object
) -> None:
    whole = json.loads(sample(name))
    plain, event = procore(whole), procore({**whole, "data": data})
    assert (plain.data, event.data) == (whole, data)
    assert (event.id, event.resource_id) == (plain.id, plain.resource_id)


@pytest.mark.parametrize("name", ["v2", "v3", "v4"])
def test_procore_payload_with_null_data_is_its_own_data(name: str) -> None:
    whole = {**json.loads(sample(name)), "data": None}
    assert procore(whole).data == whole


# Wrapped events

#: Around an event, as relays and Procore's lists of deliveries have it.
WRAPPERS: dict[str, Callable[[object], dict[str, object]]] = {
    "payload": lambda inner: {"payload": inner},
    "event": lambda inner: {"event": inner},
    "a relay's": lambda inner: {
        "id": "relay-1",
        "source": "relay",
        "attempt": 2,
        "type": "webhook",
        "timestamp": "2020-01-01T00:00:00Z",
        "payload": inner,
    },
    "with nulls": lambda inner: {
        "resource_type": None,
        "reason": "",
        "data": None,
        "payload": inner,
    },
    "two": lambda inner: {"payload": {"id": "2", "event": inner}, "id": "1"},
    "nine": lambda inner: functools.reduce(
        lambda wrapped, _: {"payload": wrapped}, range(9), {"payload": inner}
    ),
    "the second key": lambda inner: {"payload": {"a": 1}, "event": inner},
    "a delivery of v1": lambda inner: {
        "id": 77,
        "event_id": 78,
        "event": inner,
        "outcome": "discarded",
        "response_status": 503,
        "response_headers": {"Content-Type": "text/html"},
        "response_body": None,
        "response_error": None,
        "started_at": "2026-05-04T10:11:13Z",
        "completed_at": "2026-05-04T10:11:18Z",
    },
    "a delivery of v2": lambda inner: {
        "id": "77",
        "status": "discarded",
        "payload": inner,
        "delivery_attempts": [
            {
                "id": "79",
                "success": False,
                "response_status": 503,
                "response_body": "",
                "response_headers": {},
                "started_at": "2026-05-04T10:11:13Z",
                "completed_at": "2026-05-04T10:11:18Z",
            }
        ],
    },
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", sorted(EXPECTED.keys() - {"prudra", "v2_of_2020"}))
def test_wrapped_event_has_the_fields_of_the_event_inside(
    name: str, wrapper: str
) -> None:
    inner = json.loads(sample(name))
    whole = WRAPPERS[wrapper](inner)
    event = procore(whole)
    assert event.payload == whole
    expected = procore(inner)
    assert event == dataclasses.replace(expected, payload=whole, body=event.body)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("wrong", [778, ["RFIs.update"], {"a": 1}, " "])
def test_wrapped_event_whose_type_is_no_text_is_its_data(
    wrong: object, wrapper: str
) -> None:
    inner = {**json.loads(sample("signed")), "type": wrong}
    event = procore(WRAPPERS[wrapper](inner))
    assert (event.type, event.data) == ("", inner) == ("", procore(inner).data)


@pytest.mark.parametrize("wrapper", ["payload", "event", "two", "nine"])
def test_wrapped_prudra_event_has_the_fields_of_the_event_inside(wrapper: str) -> None:
    inner = json.loads(sample("prudra"))
    whole = WRAPPERS[wrapper](inner)
    event = read_event(json.dumps(whole).encode(), PRUDRA)
    assert (event.id, event.type) == (inner["eventId"], inner["type"])
    assert (event.data, event.payload) == (inner["payload"], whole)


def test_wrapped_event_without_an_id_does_not_take_the_id_of_its_wrapper() -> None:
    inner = json.loads(sample("v2_of_2020"))
    body = json.dumps(WRAPPERS["a delivery of v2"](inner)).encode()
    event = read_event(body, PROCORE, "1767225600")
    assert event.type == "Purchase Order Contracts.create"
    assert event.id == sha256(b"1767225600." + body)


def test_payload_of_prudra_is_no_wrapper() -> None:
    inner = {**json.loads(sample("prudra")), "reason": "x", "resource_type": "y"}
    whole = {"type": "transfer.failed", "eventId": "outer", "payload": inner}
    event = read_event(json.dumps(whole).encode(), PRUDRA)
    assert (event.id, event.type, event.data) == ("outer", "transfer.failed", inner)


@pytest.mark.parametrize("name", ["v2", "v4", "signed"])
@pytest.mark.parametrize("key", ["payload", "event"])
def test_event_with_an_event_inside_is_no_wrapper(name: str, key: str) -> None:
    whole = {**json.loads(sample(name)), key: json.loads(sample("v3"))}
    assert (procore(whole).id, procore(whole).type) == (
        EXPECTED[name]["id"],
        EXPECTED[name]["type"],
    )


def test_shape_that_fits_counts_more_than_single_keys_of_another_shape() -> None:
    whole = {**json.loads(sample("signed")), "reason": "of a relay", "event_type": 1}
    assert (procore(whole).id, procore(whole).type) == ("evt_0001", "resource.updated")


# Objects of unknown shape


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"id": "1", "resource_id": 4001},
        {"data": {"resource_id": 4001}},
        {"payload": {"a": 1}},
        {"payload": {"reason": "update"}},
        {"payload": [json.loads(sample("v4"))]},
        {"event": "rfis.created", "data": {}},
        {"payload": json.dumps(json.loads(sample("v4")))},
        {"deliveries": [{"id": "77", "payload": json.loads(sample("v4"))}]},
        {"type": ["a.b"], "data": {"a": 1}},
        {"type": " ", "data": {"a": 1}},
        {"resource_type": None, "reason": None},
        {"payload": {"payload": {"payload": None}}},
    ],
    ids=json.dumps,
)
@pytest.mark.parametrize("source", [PROCORE, PRUDRA])
def test_object_of_unknown_shape_has_an_empty_type_and_is_its_data(
    payload: dict[str, object], source: Source
) -> None:
    event = read_event(json.dumps(payload).encode(), source)
    assert (event.type, event.resource_type, event.reason) == ("", None, None)
    assert event.data == event.payload == payload


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


# Event ids


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


def test_id_key_of_another_payload_format_is_not_the_event_id() -> None:
    """A resource's id and nested ids do not identify the event."""
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


@given(st.one_of(st.text(), st.integers(), st.floats(), st.datetimes().map(str)))
def test_to_datetime_accepts_any_value(value: object) -> None:
    when = to_datetime(value)
    assert when is None or when.utcoffset() == timedelta(0)


# Bodies without a JSON object


@pytest.mark.parametrize("case", QUARANTINED)
def test_error_for_a_body_without_json_object_omits_its_content(case: str) -> None:
    body, reason = QUARANTINED[case]
    with pytest.raises(BadPayload, match=reason) as caught:
        parse(body)
    assert len(caught.value.reason) < 100
    # Errors of the codec and of the JSON decoder contain the whole body.
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


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


def test_event_repr_omits_the_payload() -> None:
    body = b'{"id": "1", "type": "a.b", "data": {"phone": "555-0100"}}'
    assert "555-0100" not in repr(read_event(body, PROCORE))
