"""Types of option values; an invalid value is refused with one sentence."""

from __future__ import annotations

import json
import math
import re
import time
from contextlib import suppress
from datetime import date as day_of_calendar
from datetime import datetime
from datetime import timedelta
from datetime import timezone
from typing import Any

import click
from werkzeug.urls import iri_to_uri

from ..config.values import CONTROL
from ..config.values import to_bytes
from ..config.values import to_date
from ..senders.payload import to_datetime
from ._http import check_url

#: Seconds of each unit of a relative time.
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
SHORT_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[Tt ](\d\d:\d\d))?((?:[+-]\d\d:?\d\d|[Zz])?)", re.ASCII
)
NO_TIME = "is not in Unix seconds or ISO 8601, and not a time ago like -8h."
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def url(value: str) -> str:
    """An http or https URL, encoded as ASCII like a browser does."""
    try:
        check_url(value)
        return iri_to_uri(value)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from None


def json_object(value: str) -> dict[str, Any]:
    try:
        fields = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"not JSON: {error}.") from None
    if not isinstance(fields, dict):
        raise click.BadParameter('not a JSON object, as in {"resource_id": 7}.')
    return fields


def secret(value: str) -> bytes:
    """Text to bytes, as the settings read it."""
    if not value.strip() or CONTROL.search(value):
        raise click.BadParameter("empty, or with control characters in it.")
    return to_bytes(value)


def header(value: str) -> tuple[str, str | None]:
    """``Name: value`` as a pair; the value is ``None`` if it is empty."""
    name, colon, content = value.partition(":")
    if not colon or not HEADER_NAME.fullmatch(name) or CONTROL.search(content):
        # The rest may be a secret.
        start = re.split(r"[:\s]", value, maxsplit=1)[0]
        shown = start != value and HEADER_NAME.fullmatch(start)
        what = f"the header {start}" if shown else "it"
        raise click.BadParameter(f'{what} is not in one line as "Name: value".')
    # Like WSGI: one byte in each character.
    return name, to_bytes(content.strip()).decode("latin-1") or None


def unix_time(value: str) -> float:
    """Unix seconds, ISO 8601, or a time ago: ``-400`` (seconds), ``-30m``, ``-8h``."""
    if _is_relative(value):
        return time.time() + _seconds_from_now(value)
    try:
        seconds = float(value)
    except ValueError:
        when = to_datetime(_with_seconds(value.strip()))
        seconds = math.nan if when is None else when.timestamp()
    if not math.isfinite(seconds):
        raise click.BadParameter(f"{value!r} {NO_TIME}")
    return seconds


def _is_relative(value: str) -> bool:
    """Whether the text is a time from now, as ``-8h``."""
    return value[:1] in ("+", "-")


def _seconds_from_now(value: str) -> float:
    """Seconds of a relative time: negative for ``-400``, ``-30m``, ``-8h``."""
    with suppress(ValueError):
        seconds = _in_seconds(value)
        if math.isfinite(seconds):
            return seconds
    raise click.BadParameter(f"{value!r} {NO_TIME}")


def _in_seconds(value: str) -> float:
    """A number with or without a unit.

    :raises ValueError: the text is not such a number.
    """
    number, unit = (value[:-1], UNITS[value[-1]]) if value[-1:] in UNITS else (value, 1)
    return float(number) * unit


def duration(value: str) -> float:
    """Seconds, as in ``43200``, ``12h`` or ``3d``."""
    with suppress(ValueError):
        seconds = _in_seconds(value)
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    raise click.BadParameter(f"{value!r} is not a time like 43200, 12h or 3d.")


def rate(value: str) -> float:
    """Events a second, as in ``10/s``, ``600/m`` or ``5/h``."""
    number, _, unit = value.partition("/")
    with suppress(ValueError, KeyError):
        events = float(number) / UNITS[unit]
        if math.isfinite(events) and events > 0:
            return events
    raise click.BadParameter(f"{value!r} is not a rate like 10/s, 600/m or 5/h.")


def date(value: str) -> datetime:
    """Like :func:`unix_time`, as a datetime; refuses years outside 1 to 9999."""
    try:
        return datetime.fromtimestamp(unix_time(value), timezone.utc)
    except (ValueError, OverflowError, OSError):
        problem = f"{value!r} is not in the years 1 to 9999."
        raise click.BadParameter(problem) from None


def day(value: str) -> day_of_calendar | timedelta:
    """A day, as in ``2026-11-26``, or how long ago it is, as in ``-3d``."""
    if (found := to_date(value)) is not None:
        return found
    with suppress(click.BadParameter):
        if _is_relative(value):
            date(value)  # refuses other years
            return timedelta(seconds=-_seconds_from_now(value))
    problem = "is not a day like 2026-11-26, and not a time ago like -3d."
    raise click.BadParameter(f"{value!r} {problem}")


def with_unit(seconds: float) -> str:
    """Seconds in the largest unit that has no fraction: ``6h``, ``90m``, ``0.5s``."""
    units = [unit for unit, size in UNITS.items() if seconds and seconds % size == 0]
    unit = units[-1] if units else "s"
    return f"{seconds / UNITS[unit]:g}{unit}"


def _with_seconds(value: str) -> str:
    """Complete a date, or a time without seconds; other text stays as it is."""
    found = SHORT_TIME.fullmatch(value)
    if found is None:
        return value
    date, minute, zone = found.groups()
    return f"{date}T{minute or '00:00'}:00{zone}"
