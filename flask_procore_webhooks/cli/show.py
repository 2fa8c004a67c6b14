"""``show``: all about one event."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import click
from flask.cli import with_appcontext

from ..endpoint import Endpoint
from ..inbox.operations import journal_of
from ..inbox.queries import find
from ..inbox.queries import jobs_of
from ._options import as_json as as_json_option
from ._options import command
from ._options import endpoints_named
from ._options import one_endpoint
from ._output import print_field
from ._output import print_json
from ._output import printable
from ._output import text


@command()
@click.argument("event_id")
@click.option("--body", is_flag=True, help="Write the exact bytes of the body only.")
@one_endpoint
@as_json_option
@with_appcontext
def show(event_id: str, body: bool, endpoint: str | None, as_json: bool) -> None:
    """Show one event: attempts, receipts, error, body.

    EVENT_ID is the event's id or the id of its row.
    """
    if body and as_json:
        raise click.UsageError("--body writes the body only: remove --json.")
    found = [
        (each, row)
        for each in endpoints_named(endpoint)
        if (row := find(each.store, event_id))
    ]
    if not found:
        raise click.ClickException(f"There is no event {event_id!r} in the inbox.")
    if body:
        click.echo(found[0][1]["body"] or b"", nl=False)
        return
    shown = [_with_receipts(each, row) for each, row in found]
    if as_json:
        print_json([_for_machines(row) for row in shown])
        return
    for row in shown:
        _print_event(row)


def _with_receipts(endpoint: Endpoint, row: Mapping[str, Any]) -> dict[str, Any]:
    shown = {name: row[name] for name in row if name not in ("lease", "body")}
    shown["receipts"] = [dict(each) for each in jobs_of(endpoint.store, row["id"])]
    shown["journal"] = journal_of(endpoint.store, row["id"])
    return {**shown, "body": row["body"]}


def _for_machines(row: dict[str, Any]) -> dict[str, Any]:
    """The body as text, or in base64 if it is not UTF-8."""
    body, text, coded = row["body"], None, None
    try:
        text = None if body is None else body.decode("utf-8")
    except UnicodeDecodeError:
        coded = base64.b64encode(body).decode("ascii")
    return {**row, "body": text, "body_base64": coded}


def _print_event(row: dict[str, Any]) -> None:
    body, receipts = row.pop("body") or b"", row.pop("receipts")
    journal = row.pop("journal")
    for name, value in row.items():
        print_field(name, value)
    for each in receipts:
        line = f"{each['subscriber']} {each['ending']} {text(each['finished_at'])}"
        print_field("receipt", line)
    for each in journal:
        print_field(each["action"], f"{text(each['at'])} by {each['actor']}")
    click.echo(printable(body.decode("utf-8", "backslashreplace")))
