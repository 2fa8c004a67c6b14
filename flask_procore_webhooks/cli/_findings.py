"""A finding of ``check``: an error or a warning."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """A problem; deliveries fail while an error is not solved."""

    text: str
    error: bool = True


def warning(text: str) -> Finding:
    """A problem with which deliveries are still answered 2xx."""
    return Finding(text, error=False)
