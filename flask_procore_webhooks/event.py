"""Event: what happened at the sender."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class Event:
    """What happened at the sender. Ids are text or ``None``, whatever type was sent."""

    #: The key under which the event is handled once: the sender's id, or ``sha256:…``.
    #: Serves as an idempotency key for effects outside the database.
    id: str
    #: ``"RFIs.update"``, ``"resource.updated"``, ``"payment.received"``; may be empty.
    type: str
    #: ``"RFIs"``, ``"Purchase Order Contracts"``: Procore's plural display name.
    resource_type: str | None = None
    #: ``"create"``, ``"update"``, ``"delete"`` or another reason, in lower case.
    reason: str | None = None
    resource_id: str | None = None
    company_id: str | None = None
    project_id: str | None = None
    user_id: str | None = None
    #: OAuth client id of the app that made the change; Procore v2.0 and v3.0 only.
    application_id: str | None = None
    #: When it happened: aware, UTC.
    timestamp: datetime | None = None
    #: ``"v2.0"``, ``"v4.0"`` …, as sent; ``None`` for the envelopes.
    payload_version: str | None = None
    #: The part that describes the resource; the whole object if there is no such part.
    data: Any = field(default=None, repr=False, hash=False)
    #: The whole JSON object.
    payload: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)
    #: The exact bytes that were authentic.
    body: bytes = field(default=b"", repr=False)
    #: ``"procore"`` or ``"prudra"``.
    source: str = ""
    #: Name of the blueprint that received the event.
    endpoint: str = ""
    #: Number of the run, from 1; a run whose process was killed counts. 0 before.
    attempt: int = 0
