"""PRUDRA: the deliveries of Prudra, ``{type, eventId, payload}``."""

from __future__ import annotations

from .source import ENQUEUED
from .source import Shape
from .source import Source

#: Its ``payload`` describes what happened, and is no wrapper.
ENVELOPE = Shape(
    marks=frozenset({"type", "payload"}),
    id=("eventId",),
    timestamp=None,
    data="payload",
    has_ids=False,
)

PRUDRA = Source(
    name="prudra",
    signature_header="X-Prudra-Signature",
    timestamp_header="X-Prudra-Timestamp",
    signature_prefix="sha256=",
    timeout=10.0,
    shapes=(ENVELOPE, ENQUEUED),
)
