"""The targets by name, each with its seeds."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from .deliveries import body_seeds
from .deliveries import Deliver
from .deliveries import signature_seeds
from .deliveries import verify_signature
from .options import read_config
from .options import read_value
from .options import setting_seeds
from .options import value_seeds
from .readers import payload_seeds
from .readers import read_payload

PAYLOADS = Path(__file__).parents[1] / "payloads"


class Target(NamedTuple):
    #: Makes the function that gets each input.
    make: Callable[[], Callable[[bytes], None]]
    #: The first inputs, made of real payloads.
    seeds: Callable[[list[bytes]], Iterable[bytes]]


TARGETS = {
    "signature": Target(lambda: verify_signature, signature_seeds),
    "payload": Target(lambda: read_payload, payload_seeds),
    "body": Target(Deliver, body_seeds),
    "options": Target(lambda: read_value, value_seeds),
    "settings": Target(lambda: read_config, setting_seeds),
}


def seeds(name: str) -> list[bytes]:
    payloads = [path.read_bytes() for path in sorted(PAYLOADS.glob("*.json"))]
    return list(TARGETS[name].seeds(payloads))
