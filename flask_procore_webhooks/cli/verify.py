"""``verify``: check a captured request and name the reason of a refusal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import fields
from typing import BinaryIO

import click
from flask.cli import with_appcontext
from werkzeug.datastructures import Headers

from ..endpoint import Endpoint
from ..errors import DeliveryError
from ..errors import PayloadTooLarge
from ..senders.signature import is_timestamp
from ..senders.signature import verify
from ._options import command
from ._options import endpoints_named
from ._options import one_endpoint
from ._output import print_field
from ._output import printable
from ._values import header
from ._values import unix_time

#: Fields of an event that the sender did not send, or that are too long to show.
OURS = ("endpoint", "source", "attempt", "data", "payload", "body")


@command("verify")
@click.argument("body", type=click.File("rb"))
@click.option(
    "-H",
    "--header",
    "lines",
    type=header,
    multiple=True,
    help='"Name: value", as sent.',
)
@click.option(
    "--headers",
    "file",
    type=click.File("r", encoding="latin-1"),
    help="A file with one header a line.",
)
@click.option(
    "--at",
    type=unix_time,
    metavar="TIME",
    help="Time of receipt: Unix seconds or ISO 8601. Default: now.",
)
@one_endpoint
@with_appcontext
def verify_request(
    body: BinaryIO,
    lines: tuple[tuple[str, str | None], ...],
    file: Iterator[str] | None,
    at: float | None,
    endpoint: str | None,
) -> None:
    """Check a captured request: which check refuses it, and why.

    BODY is a file with the exact bytes of the body, or - for standard input. The
    command fails when no endpoint of the app accepts the request.
    """
    headers = _joined([*_read_headers(file), *lines])
    content, now = body.read(), time.time() if at is None else at
    checked = endpoints_named(endpoint)
    if not any([_judge(each, headers, content, now) for each in checked]):
        raise SystemExit(1)


def _judge(endpoint: Endpoint, headers: Headers, body: bytes, now: float) -> bool:
    # A wrong secret is reported also for an old capture.
    refused = _refusal(endpoint, headers, body, _signed_at(endpoint, headers, now))
    refused = refused or _refusal(endpoint, headers, body, now)
    if refused is None:
        click.secho(f"{endpoint.name}: authentic", fg="green")
        _print_event(endpoint, headers, body)
        return True
    click.secho(f"{endpoint.name}: {refused.status}, {refused.reason}", fg="red")
    for hint in _hints(endpoint, headers, body, now):
        click.echo(f"  {hint}")
    return False


def _refusal(
    endpoint: Endpoint, headers: Headers, body: bytes, now: float
) -> DeliveryError | None:
    limit = endpoint.settings.max_bytes
    if len(body) > limit:
        return PayloadTooLarge(f"the body is over MAX_BYTES ({limit})")
    settings = endpoint.settings_in_force or endpoint.settings
    try:
        verify(headers, body, endpoint.source, settings, now)
    except DeliveryError as refused:
        return refused
    return None


def _hints(
    endpoint: Endpoint, headers: Headers, body: bytes, now: float
) -> Iterator[str]:
    """Changes that would make the same request authentic."""
    signed_at = _signed_at(endpoint, headers, now)
    whole = body.rstrip(b"\r\n")
    if not _refusal(endpoint, headers, body, signed_at):
        yield "It was authentic when it was signed; --at says when it was received."
    elif not _refusal(endpoint, headers, whole, signed_at):
        yield "It is authentic without the line break at the end of the body."
    elif not _refusal(endpoint, headers, body + b"\n", signed_at):
        yield "It is authentic with a line break at the end of the body."


def _signed_at(endpoint: Endpoint, headers: Headers, now: float) -> float:
    """The time in the timestamp header, or ``now`` without one."""
    stamp = headers.get(endpoint.source.timestamp_header, "")
    return float(stamp) if is_timestamp(stamp) else now


def _print_event(endpoint: Endpoint, headers: Headers, body: bytes) -> None:
    stamp = headers.get(endpoint.source.timestamp_header, "")
    event, unreadable = endpoint.read(body, stamp)
    if unreadable:
        click.echo(printable(f"  quarantined: {unreadable}"))
    for each in fields(event):
        value = getattr(event, each.name)
        if each.name not in OURS and value not in (None, ""):
            print_field(f"  {each.name}", value)


def _read_headers(file: Iterator[str] | None) -> Iterator[tuple[str, str | None]]:
    """The headers in a file; other lines, such as the request line, are skipped."""
    for line in file or ():
        name, colon, value = line.partition(":")
        if colon and " " not in name.strip():
            yield name.strip(), value.strip()


def _joined(pairs: list[tuple[str, str | None]]) -> Headers:
    """Headers as a server passes them on: repeated headers joined by a comma."""
    headers = Headers()
    for name, value in pairs:
        earlier = headers.get(name)
        headers[name] = (value or "") if earlier is None else f"{earlier},{value or ''}"
    return headers
