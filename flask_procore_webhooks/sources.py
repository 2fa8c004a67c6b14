"""Senders and their rules: header names, signature prefix, payload reader."""

from __future__ import annotations

from dataclasses import dataclass

from .events import read_procore
from .events import read_prudra
from .events import Reader


@dataclass(frozen=True)
class Source:
    """A kind of sender."""

    name: str
    signature_header: str
    timestamp_header: str
    #: Written before the hex digest when we sign; with and without it is accepted.
    signature_prefix: str
    #: Seconds that the sender waits for an answer.
    timeout: float
    read: Reader


#: Procore itself sends an ``Authorization`` value and signs nothing; gateways and
#: relays in front of it sign with these headers.
PROCORE = Source(
    name="procore",
    signature_header="X-Procore-Signature",
    timestamp_header="X-Procore-Timestamp",
    signature_prefix="",
    timeout=5.0,
    read=read_procore,
)

PRUDRA = Source(
    name="prudra",
    signature_header="X-Prudra-Signature",
    timestamp_header="X-Prudra-Timestamp",
    signature_prefix="sha256=",
    timeout=10.0,
    read=read_prudra,
)
