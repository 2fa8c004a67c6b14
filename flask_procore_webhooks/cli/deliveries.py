"""Commands that make and examine deliveries: ``trigger``, ``verify``."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import click
from flask.cli import with_appcontext
from werkzeug.datastructures import Headers

from ..endpoint import Endpoint
from ..errors import DeliveryError
from ..samples import Credentials
from ..samples import FORMATS
from ..samples import payload
from ..samples import to_bytes
from ..sources import PROCORE
from ..sources import PRUDRA
from ..verify import verify
from .options import command
from .options import endpoints_named
from .options import one_endpoint
from .output import printable
from .sender import Answer
from .sender import send


@command()
@click.argument("type")
@click.option("--url", required=True, help="The receiver, ours or any other.")
@click.option("--format", "format", type=click.Choice(list(FORMATS)), default=None)
@click.option("--data", help="JSON object of values to set in the payload.")
@click.option("--file", type=click.File("rb"), help="Send exactly these bytes.")
@click.option("--count", type=click.IntRange(1), default=1, help="Different events.")
@click.option("--repeat", type=click.IntRange(1), default=1, help="Copies of each.")
@click.option("--timeout", type=float, help="Seconds; the sender's, if left out.")
@click.option(
    "--secret",
    envvar="PROCORE_WEBHOOK_TRIGGER_SECRET",
    help="Sign with this instead of the app's. Better given in the environment.",
)
@click.option(
    "--authorization",
    envvar="PROCORE_WEBHOOK_TRIGGER_AUTHORIZATION",
    help="Send this Authorization value instead of the app's.",
)
@one_endpoint
@with_appcontext
def trigger(
    type: str,
    url: str,
    format: str | None,
    data: str | None,
    file: Any,
    count: int,
    repeat: int,
    timeout: float | None,
    secret: str | None,
    authorization: str | None,
    endpoint: str | None,
) -> None:
    """Send a signed sample of TYPE: resource.created, RFIs.update, payment.received.

    The receiver may be ours or any other. Ends with an error when it refuses one.
    """
    if secret or authorization:
        source = PRUDRA if format == "prudra" else PROCORE
        key = secret.encode() if secret else None
        credentials = Credentials(source, key, authorization)
    else:
        credentials = Credentials.of(_endpoint_for(url, format, endpoint))
    source = credentials.source
    format = format or ("prudra" if source is PRUDRA else "signed")
    bodies = [file.read()] if file else _samples(type, format, data, count)
    accepted = True
    for body in bodies:
        for _ in range(repeat):
            headers = credentials.headers(body)
            answer = _send(url, body, headers, timeout or source.timeout)
            accepted = accepted and answer.accepted
            _print_answer(answer)
    if not accepted:
        raise SystemExit(1)


@command("verify")
@click.argument("body", type=click.File("rb"))
@click.option("-H", "--header", "lines", multiple=True, help='"Name: value", as sent.')
@click.option("--at", type=float, help="Unix seconds of receipt; now, if left out.")
@one_endpoint
@with_appcontext
def verify_request(
    body: Any, lines: tuple[str, ...], at: float | None, endpoint: str | None
) -> None:
    """Say why a captured request is refused: which check fails, and why.

    BODY is a file with the exact bytes of the body, or - for standard input.
    """
    content, headers = body.read(), _parse_headers(lines)
    now = time.time() if at is None else at
    failed = False
    for each in endpoints_named(endpoint):
        try:
            verify(headers, content, each.source, each.settings, now)
        except DeliveryError as error:
            failed = True
            click.secho(f"{each.name}: {error.status}, {error.reason}", fg="red")
        else:
            stamp = headers.get(each.source.timestamp_header, "")
            event, unreadable = each.read_any(content, stamp)
            click.secho(f"{each.name}: authentic", fg="green")
            click.echo(f"  quarantined: {unreadable}" if unreadable else f"  {event}")
    if failed:
        raise SystemExit(1)


def _endpoint_for(url: str, format: str | None, name: str | None) -> Endpoint:
    """The endpoint whose secret is meant: named, or at that path, or the only one."""
    found = endpoints_named(name)
    if len(found) > 1:
        path = urlsplit(url).path.rstrip("/")
        at_path = [e for e in found if path.endswith(e.path.rstrip("/"))]
        found = at_path or found
    if len(found) > 1 and format == "prudra":
        found = [each for each in found if each.source is PRUDRA]
    if len(found) != 1:
        raise click.UsageError("Say with --endpoint whose secret is to sign.")
    return found[0]


def _samples(type: str, format: str, data: str | None, count: int) -> Iterator[bytes]:
    fields = _fields(data)
    for _ in range(count):
        yield to_bytes(payload(type, format=format, **fields))


def _fields(data: str | None) -> dict[str, Any]:
    try:
        fields = json.loads(data or "{}")
    except ValueError as error:
        raise click.BadParameter(f"not JSON: {error}", param_hint="--data") from None
    if not isinstance(fields, dict):
        raise click.BadParameter("not a JSON object", param_hint="--data")
    return fields


def _send(url: str, body: bytes, headers: Mapping[str, str], timeout: float) -> Answer:
    try:
        return send(url, body, headers, timeout=timeout)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--url") from None


def _parse_headers(lines: tuple[str, ...]) -> Headers:
    pairs = [line.partition(":") for line in lines]
    return Headers([(name.strip(), value.strip()) for name, _, value in pairs])


def _print_answer(answer: Answer) -> None:
    status = str(answer.status) if answer.status else "---"
    text = printable(answer.body.strip())
    click.secho(
        f"{status}  {answer.seconds * 1000:.0f} ms  {text}",
        fg="green" if answer.accepted else "red",
    )
