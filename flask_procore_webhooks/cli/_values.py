"""Types of option values; an invalid value is refused with one sentence."""

from __future__ import annotations

import json
import math
import re
import time
from datetime import datetime
from datetime import timezone
from typing import Any

import click
from werkzeug.urls import iri_to_uri

from ..config.values import CONTROL
from ..config.values import to_bytes
from ..senders.payload import to_datetime
from ._http import check_url

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
    """Unix seconds, ISO 8601, or ``-400`` for 400 seconds ago."""
    try:
        seconds = float(value)
    except ValueError:
        when = to_datetime(value)
        seconds = math.nan if when is None else when.timestamp()
    if not math.isfinite(seconds):
        raise click.BadParameter(f"{value!r} is not in Unix seconds or ISO 8601.")
    return seconds + (time.time() if value[0] in "+-" else 0.0)


def date(value: str) -> datetime:
    """Like :func:`unix_time`, as a datetime; refuses years outside 1 to 9999."""
    try:
        return datetime.fromtimestamp(unix_time(value), timezone.utc)
    except (ValueError, OverflowError, OSError):
        problem = f"{value!r} is not in the years 1 to 9999."
        raise click.BadParameter(problem) from None
