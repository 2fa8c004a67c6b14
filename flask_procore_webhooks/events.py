"""Bytes to :class:`Event`: one reader for each payload shape. No HTTP and no SQL.

Procore's shapes are described at
https://developers.procore.com/documentation/content/webhooks: v2.0 and v3.0 name the
resource in ``resource_name`` and ``event_type``, v4.0 in ``resource_type`` and
``reason``. Gateways and relays send the signed envelope ``{id, type, data, created}``,
Prudra sends ``{type, eventId, payload}``. The sets of resources, reasons and keys are
open: what is not known here is passed on, never refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from datetime import datetime
from datetime import timezone
from typing import Any
from typing import TypedDict

from .errors import BadPayload

#: An id that every database stores and compares exactly as it was sent.
PLAIN_ID = re.compile(r"[!-~]{1,80}")
ISO_8601 = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d+))?(?:([+-]\d\d):?(\d\d)|[Zz])?",
    re.ASCII,
)
#: Objects and lists inside each other. Python's own limit depends on where on its stack
#: the bytes are read, and an event has to be the same one wherever that is.
DEEPEST = 100
TOO_DEEP = "the JSON is nested too deeply"
ENVELOPE_REASONS = {"created": "create", "updated": "update", "deleted": "delete"}


@dataclass(frozen=True)
class Event:
    """What happened at the sender. Ids are text or ``None``, whatever was sent."""

    #: The key under which it is handled once: the sender's id, or ``sha256:…``.
    #: Good as an idempotency key for effects outside the database.
    id: str
    #: ``"RFIs.update"``, ``"resource.updated"``, ``"payment.received"``; may be empty.
    type: str
    #: ``"RFIs"``, ``"Purchase Order Contracts"``: Procore's plural display name.
    resource_type: str | None = None
    #: ``"create"``, ``"update"``, ``"delete"`` or any other, in lower case.
    reason: str | None = None
    resource_id: str | None = None
    company_id: str | None = None
    project_id: str | None = None
    user_id: str | None = None
    #: OAuth client id of the app that made the change; Procore v2/v3 only.
    application_id: str | None = None
    #: When it happened: aware, UTC.
    timestamp: datetime | None = None
    #: ``"v2.0"``, ``"v4.0"`` …, as sent; ``None`` for the envelopes.
    payload_version: str | None = None
    #: The part that describes the resource; the whole object where it is not apart.
    data: Any = field(default=None, repr=False, hash=False)
    #: The whole JSON object.
    payload: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)
    #: The exact bytes that were authentic.
    body: bytes = field(default=b"", repr=False)
    #: ``"procore"`` or ``"prudra"``.
    source: str = ""
    #: Name of the blueprint that received it.
    endpoint: str = ""
    #: 1 for the first run, or more where a process was killed before it; 0 until then.
    attempt: int = 0


class Fields(TypedDict, total=False):
    """What a reader finds in a payload: the part of Event that the sender decides."""

    id: str | None
    type: str
    resource_type: str | None
    reason: str | None
    resource_id: str | None
    company_id: str | None
    project_id: str | None
    user_id: str | None
    application_id: str | None
    timestamp: datetime | None
    payload_version: str | None
    data: Any


Reader = Callable[[Mapping[str, Any]], Fields]


def parse(body: bytes) -> dict[str, Any]:
    """Return the JSON object in ``body``.

    Stricter than :func:`json.loads`, so that every reader of the stored bytes sees the
    same object: UTF-8 only, no repeated keys, no NaN, no infinite numbers, no more than
    ``DEEPEST`` levels.

    :raises BadPayload: it is anything else; never another exception, for any bytes.
    """
    try:
        payload = _decode(body.decode("utf-8"))
    except RecursionError:
        raise BadPayload(TOO_DEEP) from None
    except ValueError as error:
        raise BadPayload(_without_content(error)) from None
    if not isinstance(payload, dict):
        raise BadPayload("the JSON is not an object")
    if _is_too_deep(payload):
        raise BadPayload(TOO_DEEP)
    return payload


def key(sent_id: str | None, timestamp: str, body: bytes) -> str:
    """Return the key of an event: its id if every database can hold it, else a digest.

    Without an id it is made of what was authenticated, the timestamp header and the
    body, so that the same delivery sent again is the same event.
    """
    if sent_id is None:
        return _digest(timestamp.encode("utf-8", "replace") + b"." + body)
    if PLAIN_ID.fullmatch(sent_id) and not sent_id.startswith("sha256:"):
        return sent_id
    return _digest(sent_id.encode("utf-8", "surrogatepass"))


def read_event(
    body: bytes, reader: Reader, timestamp: str = "", **received: str
) -> Event:
    """Read an authentic ``body``.

    :param timestamp: the timestamp header as sent, part of the key when there is no id.
    :param received: ``source`` and ``endpoint`` of the event.
    :raises BadPayload: the body is not a JSON object.
    """
    payload = parse(body)
    fields: dict[str, Any] = {**reader(payload), **received}
    fields["id"] = key(fields.get("id"), timestamp, body)
    return Event(**fields, payload=payload, body=body)


def unreadable(body: bytes, timestamp: str = "", **received: str) -> Event:
    """The event that stands for an authentic body that is not a JSON object."""
    fields: dict[str, Any] = {"id": key(None, timestamp, body), **received}
    return Event(**fields, type="", body=body)


def read_procore(payload: Mapping[str, Any]) -> Fields:
    """Read any shape that reaches a Procore endpoint, told apart by its keys."""
    if "resource_type" in payload or "reason" in payload:
        return read_v4(payload)
    if "resource_name" in payload or "event_type" in payload:
        return read_v2(payload)
    return read_envelope(payload)


def read_v2(payload: Mapping[str, Any]) -> Fields:
    """Procore v2.0 and v3.0: integer ids, and a ULID beside the event's id."""
    metadata = _object(payload.get("metadata"))
    fields = _read_resource(payload, "resource_name", "event_type")
    fields["id"] = text_id(payload.get("ulid")) or text_id(payload.get("id"))
    fields["application_id"] = text_id(metadata.get("source_application_id"))
    fields["payload_version"] = _text(payload.get("api_version"))
    return fields


def read_v4(payload: Mapping[str, Any]) -> Fields:
    """Procore v4.0: text ids, ``""`` where there is none, no metadata."""
    fields = _read_resource(payload, "resource_type", "reason")
    fields["id"] = text_id(payload.get("id"))
    fields["payload_version"] = _text(payload.get("payload_version")) or "v4.0"
    return fields


def read_envelope(payload: Mapping[str, Any]) -> Fields:
    """The signed envelope: ``{id, type, data, created}``."""
    data = payload.get("data")
    fields = _read_dotted_type(payload)
    reason = fields["reason"]
    fields["reason"] = ENVELOPE_REASONS.get(reason or "", reason)
    fields.update(_ids(_object(data)))
    fields["id"] = text_id(payload.get("id"))
    fields["timestamp"] = to_datetime(payload.get("created"))
    fields["data"] = data
    return fields


def read_prudra(payload: Mapping[str, Any]) -> Fields:
    """Prudra: ``{type, eventId, payload}``."""
    fields = _read_dotted_type(payload)
    fields["id"] = text_id(payload.get("eventId"))
    fields["data"] = payload.get("payload")
    return fields


def text_id(value: object) -> str | None:
    """Return an id as text, or ``None`` for what identifies nothing.

    Procore's v4.0 sends ``""`` for an absent project, its v2.0 sends integers of 19
    digits. A boolean, a fraction or an object is no id, and neither is 0.
    """
    if isinstance(value, str):
        return value if value.strip() else None
    if isinstance(value, int) and not isinstance(value, bool) and value:
        return str(value)
    return None


def to_datetime(value: object) -> datetime | None:
    """Return an aware UTC time from ISO 8601 text or Unix seconds, else ``None``."""
    try:
        if isinstance(value, str):
            return _from_iso(value)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return datetime.fromtimestamp(value, timezone.utc)
    except (ValueError, OverflowError, OSError):
        pass
    return None


def _read_resource(payload: Mapping[str, Any], resource: str, reason: str) -> Fields:
    resource_type = _text(payload.get(resource))
    lower = (_text(payload.get(reason)) or "").lower() or None
    return {
        "type": ".".join(filter(None, (resource_type, lower))),
        "resource_type": resource_type,
        "reason": lower,
        "timestamp": to_datetime(payload.get("timestamp")),
        "data": payload,
        **_ids(payload),
    }


def _read_dotted_type(payload: Mapping[str, Any]) -> Fields:
    type_ = _text(payload.get("type")) or ""
    before, dot, after = type_.rpartition(".")
    if not dot:
        before, after = type_, ""
    return {
        "type": type_,
        "resource_type": before or None,
        "reason": after.lower() or None,
    }


def _ids(source: Mapping[str, Any]) -> Fields:
    return {
        "resource_id": text_id(source.get("resource_id")),
        "company_id": text_id(source.get("company_id")),
        "project_id": text_id(source.get("project_id")),
        "user_id": text_id(source.get("user_id")),
    }


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _from_iso(text: str) -> datetime | None:
    # Python 3.10 reads neither "Z" nor fractions of other than 3 or 6 digits.
    match = ISO_8601.fullmatch(text.strip())
    if match is None:
        return None
    date, time, fraction, hours, minutes = match.groups()
    micro = (fraction or "")[:6].ljust(6, "0")
    offset = f"{hours}:{minutes}" if hours else "+00:00"
    when = datetime.fromisoformat(f"{date}T{time}.{micro}{offset}")
    return when.astimezone(timezone.utc)


def _digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


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
    # Python's own limit names the length in its message and may be switched off.
    if len(text) > 1000:
        raise ValueError("a number has more than 1000 digits")
    return int(text)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


_decode = json.JSONDecoder(
    object_pairs_hook=_unique,
    parse_float=_finite,
    parse_int=_integer,
    parse_constant=_no_constant,
).decode
