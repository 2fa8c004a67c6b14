"""``trigger``: send signed samples to any receiver."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from typing import BinaryIO
from urllib.parse import urlsplit

import click
from flask import current_app

from ..endpoint import Endpoint
from ..endpoint import endpoints
from ..senders.procore import PROCORE
from ..senders.samples import Credentials
from ..senders.samples import FORMATS
from ..senders.samples import sample
from ..senders.samples import source_of
from ..senders.samples import to_bytes
from ._http import Answer
from ._http import send
from ._options import command
from ._options import endpoints_named
from ._options import given_credentials
from ._options import has_app
from ._options import with_app_if_any
from ._output import printable
from ._output import shortened
from ._values import header
from ._values import json_object
from ._values import secret as secret_value
from ._values import unix_time
from ._values import url as url_value

#: Characters of an answer that are shown.
SHOWN = 500


@command()
@click.argument("type", required=False)
@click.option(
    "--url", type=url_value, metavar="URL", required=True, help="The receiver."
)
@click.option(
    "--format",
    "format",
    type=click.Choice(list(FORMATS)),
    help="Format of the payload. Default: prudra for a Prudra endpoint, signed with a"
    " secret, v4 without a secret.",
)
@click.option(
    "--data", type=json_object, metavar="JSON", help="Values to set in the payload."
)
@click.option("--file", type=click.File("rb"), help="Send the bytes of this file.")
@click.option("--count", type=click.IntRange(1), default=1, help="Number of events.")
@click.option("--repeat", type=click.IntRange(1), default=1, help="Copies of each.")
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    help="Seconds to wait for an answer. Default: the sender's own timeout.",
)
@click.option(
    "--timestamp",
    type=unix_time,
    metavar="TIME",
    help="Time to sign: Unix seconds, ISO 8601, or -400 for 400 s ago.",
)
@click.option(
    "--secret",
    type=secret_value,
    metavar="TEXT",
    envvar="PROCORE_WEBHOOK_TRIGGER_SECRET",
    show_envvar=True,
    help="Sign with this secret instead of the app's.",
)
@click.option(
    "--authorization",
    type=secret_value,
    metavar="TEXT",
    envvar="PROCORE_WEBHOOK_TRIGGER_AUTHORIZATION",
    show_envvar=True,
    help="Send this Authorization value instead of the app's.",
)
@click.option(
    "-H",
    "--header",
    "headers",
    type=header,
    multiple=True,
    help='"Name: value" to add or replace; "Name:" leaves the header out.',
)
@click.option(
    "--endpoint",
    help="The endpoint whose secret signs. Default: the one at the URL's path.",
)
@with_app_if_any
def trigger(
    type: str | None,
    url: str,
    format: str | None,
    data: dict[str, Any] | None,
    file: BinaryIO | None,
    count: int,
    repeat: int,
    timeout: float | None,
    timestamp: float | None,
    secret: bytes | None,
    authorization: bytes | None,
    headers: tuple[tuple[str, str | None], ...],
    endpoint: str | None,
) -> None:
    """Send a signed sample of TYPE: resource.created, RFIs.update, payment.received.

    The receiver is this app, if it is running, or any other. The command fails unless
    every answer is 2xx and in time. It works without an app as python -m
    flask_procore_webhooks trigger.
    """
    sender = _sender(url, format, secret, authorization, endpoint)
    stamp = None if timestamp is None else int(timestamp)

    def deliver(body: bytes) -> Answer:
        sent = sender.headers(body, timestamp=stamp, instead=dict(headers))
        return send(url, body, sent, timeout=timeout or sender.source.timeout)

    bodies = _bodies(type, format or sender.format, data, file, count)
    _deliver_all(deliver, (body for body in bodies for _ in range(repeat)))


def _deliver_all(deliver: Callable[[bytes], Answer], bodies: Iterable[bytes]) -> None:
    answers = []
    for body in bodies:
        answers.append(deliver(body))
        _print_answer(answers[-1])
    refused = [answer for answer in answers if not answer.accepted]
    if refused:
        count = f"{len(refused)} of {len(answers)} " if len(answers) > 1 else ""
        advice = _advice(refused[-1].status)
        raise click.ClickException(f"{count}not delivered{advice}.")


def _sender(
    url: str,
    format: str | None,
    secret: bytes | None,
    authorization: bytes | None,
    name: str | None,
) -> Credentials:
    """Credentials for signing: the options, else those of the endpoint at ``url``."""
    found = _endpoints_at(url, format, name)
    secret, authorization = given_credentials(secret, authorization)
    given = secret is not None or authorization is not None
    if len(found) != 1 and not given:
        raise click.UsageError("Name the endpoint whose secret signs: --endpoint.")
    source = found[0].source if len(found) == 1 else PROCORE
    if given:
        sender = Credentials(source, secret, authorization)
    else:
        # Not the random secret of tests: the receiver's process has another one.
        sender = Credentials.of(source, found[0].settings)
        if not (sender.secret or sender.authorization):
            raise click.UsageError(
                f"{found[0].name} has no secret; give --secret or --authorization, or"
                f" set {found[0].config_prefix}SECRET."
            )
    return replace(sender, source=source_of(format)) if format else sender


def _endpoints_at(url: str, format: str | None, name: str | None) -> list[Endpoint]:
    """The endpoints of that name and format, or the one at the URL's path."""
    found = endpoints_named(name)
    if len(found) > 1 and format:
        found = [each for each in found if each.source is source_of(format)] or found
    path = urlsplit(url).path.rstrip("/")
    at_path = [each for each in found if path.endswith(each.path.rstrip("/"))]
    return sorted(at_path, key=lambda each: len(each.path))[-1:] or found


def _bodies(
    type: str | None,
    format: str,
    data: dict[str, Any] | None,
    file: BinaryIO | None,
    count: int,
) -> Iterator[bytes]:
    if file is not None:
        if count > 1 or data is not None:
            raise click.UsageError(
                "--file is sent as it is: remove --count and --data."
            )
        return iter([file.read()])
    if type is None:
        raise click.UsageError("Give a TYPE, such as RFIs.update, or a --file.")
    return (to_bytes(sample(type, format, data or {})) for _ in range(count))


def _print_answer(answer: Answer) -> None:
    text = shortened(" ".join(answer.text.split()), SHOWN)
    line = f"{answer.status or '---'}  {answer.seconds * 1000:.0f} ms  {text}"
    click.secho(printable(line.rstrip()), fg="green" if answer.accepted else "red")


def _advice(status: int) -> str:
    if status in (404, 405) and has_app():
        paths = ", ".join(each.path for each in endpoints(current_app).values())
        return f"; this app would receive at {paths}"
    if status in (401, 500, 503):
        return "; the receiver's log says why"
    return ""
