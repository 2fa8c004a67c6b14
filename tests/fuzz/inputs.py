"""The parts of an input: header lines, an empty line, and a body."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Input:
    """Lines of ``Name: value``, and the rest after the first empty line."""

    fields: dict[str, str]
    body: bytes

    @classmethod
    def read(cls, data: bytes) -> Input:
        head, _, body = data.partition(b"\n\n")
        pairs = [line.partition(b": ") for line in head.split(b"\n")]
        # Like WSGI: one byte in each character.
        texts = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, colon, value in pairs
            if colon
        }
        return cls(texts, body)

    def take(self, name: str, default: str = "") -> str:
        return self.fields.pop(name, default)


def write(body: bytes = b"", **fields: str) -> bytes:
    """The input with these parts; ``_`` in a name stands for ``-``."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return "\n".join(lines).encode("latin-1") + b"\n\n" + body


def number(text: str, default: float) -> float:
    """Any float, infinities and NaN included."""
    try:
        return float(text)
    except ValueError:
        return default
