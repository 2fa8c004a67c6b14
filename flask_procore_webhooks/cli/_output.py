"""Output of the commands."""

from __future__ import annotations

import io
import json
import logging
import sys
import time
import warnings
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import contextmanager
from contextlib import redirect_stderr
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import datetime
from typing import TextIO

import click

#: The key in the context of a command that is silenced.
SILENCE = "flask_procore_webhooks.silence"
NAME_WIDTH = 17
#: Shown in the place of an empty type.
NO_TYPE = "(no type)"


@dataclass(frozen=True)
class Silence:
    """What was in force before :func:`silence`."""

    stdout: TextIO
    #: The level up to which logging was disabled.
    disabled: int


@contextmanager
def silence() -> Iterator[Silence]:
    """Print and log nothing but what :func:`print_json` prints."""
    before = Silence(sys.stdout, logging.root.manager.disable)
    with (
        redirect_stdout(io.StringIO()),
        redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield before
        finally:
            logging.disable(before.disabled)


def silenced() -> Silence | None:
    """What was in force before the current command was silenced, if it is."""
    context = click.get_current_context(silent=True)
    found: Silence | None = context.meta.get(SILENCE) if context else None
    return found


def print_json(value: object) -> None:
    """Print JSON, also in a silenced command; times are ISO 8601 in UTC."""
    before = silenced()
    document = json.dumps(value, indent=2, default=_iso_8601)
    click.echo(document, file=before.stdout if before else None)


def print_table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; each column is as wide as its widest cell."""
    table = [names, *([on_one_line(text(cell)) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


def print_field(name: str, value: object) -> None:
    """Print a name and its value; further lines of the value are indented."""
    lines = printable(text(value)).split("\n")
    indented = ("\n" + " " * NAME_WIDTH).join(lines)
    click.echo(f"{name:<{NAME_WIDTH}}{indented}")


class Progress:
    """Prints the progress of a long command to standard error, once a second."""

    def __init__(self, what: str) -> None:
        self.count = 0
        self._what = what
        self._printed_at = time.monotonic()

    def add(self, number: int) -> None:
        self.count += number
        if time.monotonic() - self._printed_at > 1:
            self._printed_at = time.monotonic()
            click.echo(f"{self._what}: {self.count} so far", err=True)


def text(value: object) -> str:
    """Return a value of the inbox as text; times as ``2026-11-26 09:30:00Z``."""
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%SZ}"
    return str(value)


def shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def first_line(text: str | None) -> str | None:
    """The first line that holds anything."""
    return (text or "").strip().partition("\n")[0].strip() or None


def on_one_line(text: str) -> str:
    """Like :func:`printable`, with escaped line breaks."""
    return printable(text).replace("\n", "\\n")


def printable(text: str) -> str:
    """Escape control characters and what the terminal's encoding lacks."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    safe = "".join(_printable(text))
    return safe.encode(encoding, "backslashreplace").decode(encoding)


def _printable(text: str) -> Iterator[str]:
    for char in text:
        yield char if char.isprintable() or char == "\n" else ascii(char)[1:-1]


def _iso_8601(when: datetime) -> str:
    return when.isoformat() + "Z"
