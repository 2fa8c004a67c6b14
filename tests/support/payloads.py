"""Recorded payloads, the events they become, and bodies without a JSON object."""

from __future__ import annotations

import hashlib
from datetime import datetime
from datetime import timezone
from pathlib import Path
from typing import Any

from flask_procore_webhooks import Event
from flask_procore_webhooks.senders.payload import read_event
from flask_procore_webhooks.senders.procore import PROCORE
from flask_procore_webhooks.senders.prudra import PRUDRA

PAYLOADS = Path(__file__).parents[1] / "payloads"

CHANGED = datetime(2026, 5, 4, 10, 11, 12, 345678, tzinfo=timezone.utc)

IDS = {
    "resource_id": "4001",
    "company_id": "2001",
    "project_id": "3001",
    "user_id": "1001",
}

#: The event expected of each file in ``payloads``, except ``data`` and ``payload``.
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


def sample(name: str) -> bytes:
    return (PAYLOADS / f"{name}.json").read_bytes()


def read(name: str) -> Event:
    return read_event(sample(name), PRUDRA if name == "prudra" else PROCORE)


def sha256(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def nested(depth: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    """A JSON object of ``depth`` levels, the object included."""
    inner = opening * (depth - 1) + b"1" + closing * (depth - 1)
    return b'{"id":"%d","a":%b}' % (depth, inner)
