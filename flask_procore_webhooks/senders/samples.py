"""Samples: payloads, bytes and headers as the senders make them."""

from __future__ import annotations

import json
import secrets
import uuid
from collections.abc import Callable
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from datetime import datetime
from datetime import timezone
from typing import Any

from ..config import Settings
from .payload import SHORT_REASONS
from .procore import PROCORE
from .prudra import PRUDRA
from .signature import sign
from .source import Source

CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
USER_AGENT = "flask-procore-webhooks"


def payload(type: str, *, format: str = "signed", **fields: Any) -> dict[str, Any]:
    """Return a payload of ``type`` with a new id.

    :param type: ``"resource.created"``, ``"RFIs.update"``, ``"payment.received"``.
    :param format: ``"signed"`` for the envelope ``{id, type, data, created}``,
        ``"v2"``, ``"v3"`` or ``"v4"`` for Procore's own, ``"prudra"`` for Prudra's.
    :param fields: values to set. ``id`` is the event's id in every format. A key of the
        format's top level is set there; every other key is set in the part that
        describes the resource.
    :raises ValueError: the format is unknown.
    """
    return sample(type, format, fields)


def sample(type: str, format: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Like :func:`payload`, for fields of any name."""
    if format not in FORMATS:
        raise ValueError(f"format is one of {', '.join(FORMATS)}, not {format!r}")
    return FORMATS[format](type, dict(fields))


def source_of(format: str) -> Source:
    """The source that sends the format."""
    return PRUDRA if format == "prudra" else PROCORE


def to_bytes(payload: bytes | Mapping[str, Any]) -> bytes:
    """Return the body to send: bytes as they are, anything else as compact JSON."""
    if isinstance(payload, bytes):
        return payload
    return json.dumps(payload, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Credentials:
    """The credentials of a sender."""

    source: Source
    secret: bytes | None = field(default=None, repr=False)
    authorization: bytes | None = field(default=None, repr=False)

    @classmethod
    def of(cls, source: Source, settings: Settings) -> Credentials:
        """The current secret, the current ``Authorization`` value, or both."""
        return cls(
            source,
            next(iter(settings.secrets), None),
            next(iter(settings.authorizations), None),
        )

    @property
    def format(self) -> str:
        """The payload format of the sender; v4 for Procore, which signs nothing."""
        if self.source is PRUDRA:
            return "prudra"
        return "signed" if self.secret else "v4"

    def headers(
        self,
        body: bytes,
        *,
        timestamp: int | str | None = None,
        instead: Mapping[str, str | None] | None = None,
    ) -> dict[str, str]:
        """Return the headers that make ``body`` authentic.

        :param instead: replace headers of the same name; ``None`` leaves a header out.
        """
        headers = {"Content-Type": "application/json", "User-Agent": USER_AGENT}
        if self.secret:
            headers |= sign(body, self.secret, timestamp=timestamp, source=self.source)
        if self.authorization:
            headers["Authorization"] = self.authorization.decode("latin-1")
        return _replaced(headers, instead or {})


def _signed(type: str, fields: dict[str, Any]) -> dict[str, Any]:
    now = datetime.now(timezone.utc)
    envelope = {
        "id": f"evt_{uuid.uuid4().hex}",
        "type": type,
        "created": int(now.timestamp()),
    }
    return _with_inner(envelope, "data", _resource(), fields)


def _prudra(type: str, fields: dict[str, Any]) -> dict[str, Any]:
    if "id" in fields:
        fields["eventId"] = fields.pop("id")
    envelope = {"type": type, "eventId": f"evt_{uuid.uuid4().hex}"}
    return _with_inner(envelope, "payload", {"vaultId": "vlt_1001"}, fields)


def _v4(type: str, fields: dict[str, Any]) -> dict[str, Any]:
    resource_type, reason = _resource_and_reason(type)
    ids = {name: str(value) for name, value in _resource().items()}
    return {
        "id": _ulid(),
        "reason": reason,
        "timestamp": _iso_now(),
        **ids,
        "resource_type": resource_type,
        "payload_version": "v4.0",
        **fields,
    }


def _v2(type: str, fields: dict[str, Any]) -> dict[str, Any]:
    resource_name, event_type = _resource_and_reason(type)
    names = ("user_id", "company_id", "project_id", "application_id", "operation_id")
    # The ULID comes before the id where both are sent: a given id replaces both.
    ids = {} if "id" in fields else {"id": _nineteen_digits(), "ulid": _ulid()}
    return {
        **ids,
        "timestamp": _iso_now(),
        "metadata": dict.fromkeys(f"source_{name}" for name in names),
        **_resource(),
        "api_version": "v2.0",
        "event_type": event_type,
        "resource_name": resource_name,
        **fields,
    }


def _v3(type: str, fields: dict[str, Any]) -> dict[str, Any]:
    newer = {"api_version": "v3.0", "related_resources": []}
    return _v2(type, newer | fields)


FORMATS: dict[str, Callable[[str, dict[str, Any]], dict[str, Any]]] = {
    "signed": _signed,
    "v2": _v2,
    "v3": _v3,
    "v4": _v4,
    "prudra": _prudra,
}


def _with_inner(
    envelope: dict[str, Any], name: str, inner: dict[str, Any], fields: dict[str, Any]
) -> dict[str, Any]:
    own = {key: value for key, value in fields.items() if key in (*envelope, name)}
    others = {key: value for key, value in fields.items() if key not in own}
    return {**envelope, name: {**inner, **others}, **own}


def _replaced(
    headers: Mapping[str, str], instead: Mapping[str, str | None]
) -> dict[str, str]:
    named = {name.lower() for name in instead}
    kept = {name: v for name, v in headers.items() if name.lower() not in named}
    return kept | {name: v for name, v in instead.items() if v is not None}


def _resource() -> dict[str, int]:
    return {
        "resource_id": 4001,
        "company_id": 2001,
        "project_id": 3001,
        "user_id": 1001,
    }


def _resource_and_reason(type: str) -> tuple[str, str]:
    resource, _, reason = type.rpartition(".")
    if not resource:
        return type, "update"
    return resource, SHORT_REASONS.get(reason, reason)


def _nineteen_digits() -> int:
    return 10**18 + secrets.randbelow(8 * 10**18)


def _ulid() -> str:
    return "01" + "".join(secrets.choice(CROCKFORD) for _ in range(24))


def _iso_now() -> str:
    now = datetime.now(timezone.utc)
    return now.isoformat(timespec="microseconds").replace("+00:00", "Z")
