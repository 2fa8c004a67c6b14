"""PROCORE: Procore's own deliveries, and those of gateways that sign for it."""

from __future__ import annotations

from .source import ENQUEUED
from .source import Shape
from .source import Source

#: Procore v4.0: text ids, ``""`` for an absent one, no metadata.
V4 = Shape(
    marks=frozenset({"resource_type", "reason"}),
    resource=("resource_type", "reason"),
    is_flat=True,
    version="payload_version",
    default_version="v4.0",
)

#: Procore v2.0 and v3.0: integer ids, and a ULID beside the event's id.
V2 = Shape(
    marks=frozenset({"resource_name", "event_type"}),
    id=("ulid", "id"),
    resource=("resource_name", "event_type"),
    is_flat=True,
    application=("metadata", "source_application_id"),
    version="api_version",
)

#: The signed envelope: ``{id, type, data, created}``.
ENVELOPE = Shape(marks=frozenset({"type", "data"}), timestamp="created")

#: Procore sends an ``Authorization`` value and signs nothing; gateways and relays in
#: front of the app sign with these headers.
PROCORE = Source(
    name="procore",
    signature_header="X-Procore-Signature",
    timestamp_header="X-Procore-Timestamp",
    signature_prefix="",
    timeout=5.0,
    shapes=(V4, V2, ENVELOPE, ENQUEUED),
)
