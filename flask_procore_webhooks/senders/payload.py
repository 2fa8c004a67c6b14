"""Bytes to an Event: strict JSON, ids, times, the key of an event."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from datetime import datetime
from datetime import timezone
from typing import Any

from ..errors import BadPayload
from ..event import Event
from .source import Shape
from .source import Source

#: An id that every database stores and compares exactly as it was sent.
PLAIN_ID = re.compile(r"[!-~]{1,80}")
ISO_8601 = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d+))?(?:([+-]\d\d):?(\d\d)|[Zz])?",
    re.ASCII,
)
#: Levels of nested objects and lists. Python's own limit depends on the depth of the
#: stack where the bytes are read, and an event must be the same wherever it is read.
DEEPEST = 100
TOO_DEEP = "the JSON is nested too deeply"
#: Digits of an integer. Python's own limit may be switched off.
MOST_DIGITS = 1000
MANY_DIGITS = re.compile(rf"(?<!\d)\d{{{MOST_DIGITS + 1}}}")
SHORT_REASONS = {"created": "create", "updated": "update", "deleted": "delete"}
ID_NAMES = ("resource_id", "company_id", "project_id", "user_id")


def parse(body: bytes) -> dict[str, Any]:
    """Return the JSON object in ``body``.

    Stricter than :func:`json.loads`, so that every reader of the stored bytes sees the
    same object: UTF-8 only, no repeated keys, no NaN, no infinite numbers, at most
    ``DEEPEST`` levels.

    :raises BadPayload: for any other bytes; no other exception is raised.
    """
    try:
        text = body.decode("utf-8")
        decode = _decode_counting_digits if MANY_DIGITS.search(text) else _decode
        payload = decode(text)
    except RecursionError:
        raise BadPayload(TOO_DEEP) from None
    except ValueError as error:
        raise BadPayload(_without_content(error)) from None
    if not isinstance(payload, dict):
        raise BadPayload("the JSON is not an object")
    # With so few brackets it cannot be too deep.
    if text.count("{") + text.count("[") > DEEPEST and _is_too_deep(payload):
        raise BadPayload(TOO_DEEP)
    return payload


def event_key(sent_id: str | None, timestamp: str, body: bytes) -> str:
    """Return the key of an event: its id if every database can hold it, else a digest.

    Without an id, the key is the digest of what was authenticated, the timestamp header
    and the body, so that a repeated delivery has the same key.
    """
    if sent_id is None:
        return digest(timestamp.encode("utf-8", "replace") + b"." + body)
    if PLAIN_ID.fullmatch(sent_id) and not sent_id.startswith("sha256:"):
        return sent_id
    return digest(sent_id.encode("utf-8", "surrogatepass"))


def digest(content: bytes) -> str:
    """Return ``sha256:`` and the hex digest: a key in place of the content."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def normalize_reason(reason: str) -> str:
    """Return a reason in lower case; ``created`` becomes ``create``, and so on.

    Formats of one sender differ in the spelling: Procore writes ``update`` and
    ``CREATED``, gateways ``resource.updated``.
    """
    lower = reason.lower()
    return SHORT_REASONS.get(lower, lower)


def read_event(
    body: bytes, source: Source, timestamp: str = "", endpoint: str = ""
) -> Event:
    """Read an authentic ``body`` of ``source``.

    If the object wraps an event, the fields are those of the inner object; ``payload``
    is the whole object. An object of unknown shape, and one whose type is no text, has
    an empty type and is its data.

    :param timestamp: the timestamp header as sent, part of the key without an id.
    :param endpoint: the name of the receiving endpoint.
    :raises BadPayload: the body is not a JSON object.
    """
    payload = parse(body)
    found, shape = source.find_event(payload)
    fields = _read_fields(found, shape)
    if not fields["type"]:
        fields["data"] = found
    fields["id"] = event_key(fields["id"], timestamp, body)
    # The constructor of a frozen class sets its fields one by one, which takes as long
    # as parsing the body.
    event = object.__new__(Event)
    vars(event).update(_DEFAULTS, **fields, payload=payload, body=body)
    vars(event).update(source=source.name, endpoint=endpoint)
    return event


def unreadable_event(
    body: bytes, source: Source, timestamp: str = "", endpoint: str = ""
) -> Event:
    """Return the event that stands for an authentic body that is no JSON object."""
    id = event_key(None, timestamp, body)
    return Event(id, type="", body=body, source=source.name, endpoint=endpoint)


def text_id(value: object) -> str | None:
    """Return an id as text, or ``None`` for a value that identifies nothing.

    Procore's v4.0 sends ``""`` for an absent project, its v2.0 sends integers of 19
    digits. A boolean, a fraction, an object and 0 identify nothing.
    """
    if isinstance(value, str):
        return value if value.strip() else None
    if isinstance(value, int) and not isinstance(value, bool) and value:
        return str(value)
    return None


def to_datetime(value: object) -> datetime | None:
    """Return an aware UTC time from ISO 8601 text or Unix seconds, else ``None``."""
    try:
        # Python 3.10 reads neither "Z" nor fractions of other than 3 or 6 digits.
        if isinstance(value, str) and (match := ISO_8601.fullmatch(value.strip())):
            date, time, fraction, hours, minutes = match.groups()
            micro = (fraction or "")[:6].ljust(6, "0")
            offset = f"{hours}:{minutes}" if hours else "+00:00"
            when = datetime.fromisoformat(f"{date}T{time}.{micro}{offset}")
            return when.astimezone(timezone.utc)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return datetime.fromtimestamp(value, timezone.utc)
    except (ValueError, OverflowError, OSError):
        pass
    return None


def _read_fields(payload: Mapping[str, Any], shape: Shape) -> dict[str, Any]:
    """Return the fields of the event that the sender decides."""
    data = payload.get(shape.data)
    holder = payload if shape.is_flat else data
    fields = _read_type(payload, shape)
    fields["data"] = payload if data is None and shape.is_flat else data
    if shape.timestamp is not None:
        fields["timestamp"] = to_datetime(payload.get(shape.timestamp))
    fields["id"] = None
    for name in shape.id:
        fields["id"] = fields["id"] or text_id(payload.get(name))
    if shape.has_ids and isinstance(holder, dict):
        for name in ID_NAMES:
            fields[name] = text_id(holder.get(name))
    if shape.application is not None:
        key, name = shape.application
        inner = payload.get(key)
        if isinstance(inner, dict):
            fields["application_id"] = text_id(inner.get(name))
    if shape.version is not None:
        sent, default = payload.get(shape.version), shape.default_version
        is_text = isinstance(sent, str) and sent.strip()
        fields["payload_version"] = sent if is_text else default
    return fields


def _read_type(payload: Mapping[str, Any], shape: Shape) -> dict[str, Any]:
    if shape.resource is None:
        type = _text(payload.get("type")) or ""
        resource_type, dot, reason = type.rpartition(".")
        if not dot:
            resource_type, reason = type, ""
        reason = normalize_reason(reason)
    else:
        resource_key, reason_key = shape.resource
        resource_type = _text(payload.get(resource_key)) or ""
        reason = normalize_reason(_text(payload.get(reason_key)) or "")
        type = ".".join(filter(None, (resource_type, reason)))
    return {
        "type": type,
        "resource_type": resource_type or None,
        "reason": reason or None,
    }


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def _without_content(error: ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "the body is not UTF-8"
    if isinstance(error, json.JSONDecodeError):
        return f"the body is not JSON: {error.msg} at character {error.pos}"
    return f"the JSON is refused: {error}"


def _is_too_deep(payload: dict[str, Any]) -> bool:
    level: list[Any] = [payload]
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return False
    return True


def _inside(outer: dict[str, Any] | list[Any]) -> list[Any]:
    values = outer.values() if isinstance(outer, dict) else outer
    return [value for value in values if isinstance(value, (dict, list))]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object repeats a key")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number is infinite")
    return number


def _integer(text: str) -> int:
    # Python's own limit names the length in its message.
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a number has more than {MOST_DIGITS} digits")
    return int(text)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


#: Of the fields that :func:`read_event` does not read.
_DEFAULTS = vars(Event("", ""))
_HOOKS: dict[str, Any] = {
    "object_pairs_hook": _unique,
    "parse_float": _finite,
    "parse_constant": _no_constant,
}
_decode = json.JSONDecoder(**_HOOKS).decode
_decode_counting_digits = json.JSONDecoder(**_HOOKS, parse_int=_integer).decode
