"""How the commands print."""

from __future__ import annotations

import json
from datetime import datetime

import click


def print_json(value: object) -> None:
    """Print for machines: times as ISO 8601 in UTC."""
    click.echo(json.dumps(value, indent=2, default=_for_machines))


def cell(value: object, width: int) -> str:
    """Return ``value`` as text of exactly ``width`` characters."""
    shown = printable(text(value))
    return (shown if len(shown) <= width else shown[: width - 1] + "…").ljust(width)


def text(value: object) -> str:
    """Return a cell of the inbox as people read it; times are in UTC."""
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    return str(value)


def _for_machines(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat() + "Z"
    return str(value)


def printable(text: str) -> str:
    """Keep what strangers wrote from steering the terminal."""
    return "".join(
        char if char.isprintable() or char == "\n" else ascii(char)[1:-1]
        for char in text
    )
