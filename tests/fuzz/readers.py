"""Target: every reader of the bytes that a sender has sent."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from collections.abc import Mapping
from datetime import timezone
from typing import Any

from flask_procore_webhooks import BadPayload
from flask_procore_webhooks import Event
from flask_procore_webhooks.senders.payload import normalize_reason
from flask_procore_webhooks.senders.payload import parse
from flask_procore_webhooks.senders.payload import read_event
from flask_procore_webhooks.senders.payload import to_datetime
from flask_procore_webhooks.senders.payload import TOO_DEEP
from flask_procore_webhooks.senders.payload import unreadable_event
from flask_procore_webhooks.senders.procore import PROCORE
from flask_procore_webhooks.senders.prudra import PRUDRA
from flask_procore_webhooks.senders.source import Shape
from flask_procore_webhooks.senders.source import Source

EVENT_ID = re.compile(r"[!-~]{1,80}")
IDS = ("resource_id", "company_id", "project_id", "user_id", "application_id")
TEXTS = ("type", "resource_type", "reason", "payload_version")


def payload_seeds(payloads: list[bytes]) -> Iterator[bytes]:
    yield from payloads
    for body in payloads:
        yield b'{"payload": ' + body + b"}"
        yield b'{"id": 1, "event": {"payload": ' + body + b'}, "status": "failed"}'
        yield json.dumps(json.loads(body), indent=1).encode("utf-16")
    yield b'{"id": "sha256:1", "timestamp": 1e400, "type": "RFIs.UPDATED"}'
    yield b'{"id": "\\ud800", "created": "2026-05-04T10:11:12+14:00"}'


def read_payload(data: bytes) -> None:
    """Any bytes become an event or a BadPayload; each reading gives the same."""
    for source in (PROCORE, PRUDRA):
        try:
            event = read_event(data, source, "1767225600", "fuzz")
        except BadPayload as bad:
            assert _is_one_line(str(bad)), bad
            _check(unreadable_event(data, source, "1767225600", "fuzz"), data, source)
            continue
        _check(event, data, source)
        assert read_event(data, source, "1767225600", "fuzz") == event
        assert dict(event.payload) == json.loads(data) == parse(data)
        if _fits_any(event.payload, source):
            _check_wrapped(event, source)
    to_datetime(data.decode("utf-8", "surrogateescape"))


def _check_wrapped(event: Event, source: Source) -> None:
    """In a wrapper, the event has the same fields."""
    try:
        wrapped = read_event(b'{"id": 7, "payload": %b}' % event.body, source)
    except BadPayload as bad:
        assert str(bad) == TOO_DEEP
        return
    for name in ("type", "resource_type", "reason", "data", "timestamp", *IDS):
        assert getattr(wrapped, name) == getattr(event, name), name


def _check(event: Event, data: bytes, source: Source) -> None:
    assert event.body == data and EVENT_ID.fullmatch(event.id), event.id
    for name in IDS:
        value = getattr(event, name)
        assert value is None or (isinstance(value, str) and value.strip()), name
    for name in TEXTS:
        value = getattr(event, name)
        assert value is None or isinstance(value, str), name
    assert event.reason is None or event.reason == normalize_reason(event.reason)
    if not event.type and event.data not in (None, event.payload):
        assert _fits_any(event.data, source), "data"
    assert event.timestamp is None or event.timestamp.tzinfo is timezone.utc
    assert isinstance(hash(event), int) and repr(event).isprintable()
    try:
        event.id = "another"  # type: ignore[misc]
    except dataclasses.FrozenInstanceError:
        return
    raise AssertionError("an event can be changed")


def _fits_any(payload: Mapping[str, Any], source: Source) -> bool:
    return any(_fits(payload, shape) for shape in source.shapes)


def _fits(payload: Mapping[str, Any], shape: Shape) -> bool:
    """Whether the payload has a value for each mark of the shape."""
    return all(payload.get(mark) not in (None, "") for mark in shape.marks)


def _is_one_line(text: str) -> bool:
    return text.isprintable() and len(text) < 300
