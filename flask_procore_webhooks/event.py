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
    #: ``"RFIs.update"``, ``"resource.updated"``, ``"payment.received"``. Empty for an
    #: object of unknown shape, and for a body that is no JSON object.
    type: str
    #: ``"RFIs"``, ``"Purchase Order Contracts"``: Procore's plural display name.
    resource_type: str | None = None
    #: ``"create"``, ``"update"``, ``"delete"`` or another reason, in lower case:
    #: ``created`` becomes ``create`` in every format, and so on.
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
    #: The part that describes the resource; the object that is the event if it has no
    #: such part, and the whole object if its shape is unknown.
    data: Any = field(default=None, repr=False, hash=False)
    #: The whole JSON object as sent, with a wrapper around the event if there is one.
    payload: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)
    #: The exact bytes that were authentic.
    body: bytes = field(default=b"", repr=False)
    #: ``"procore"`` or ``"prudra"``.
    source: str = ""
    #: Name of the blueprint that received the event.
    endpoint: str = ""
    #: Number of the attempt of this subscriber's job, from 1; 0 outside of a run. An
    #: attempt whose process was killed counts if nothing ran beside it.
    attempt: int = 0
    #: ``"delivery"``; ``"reconcile"`` if it was found in Procore's list of deliveries;
    #: ``"enqueue"`` if the app recorded it itself.
    origin: str = "delivery"
    #: When it was recorded: aware, UTC. ``None`` outside of a run.
    received_at: datetime | None = None
