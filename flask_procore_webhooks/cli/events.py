"""Commands to look into the inbox: ``list``, ``show``, ``stats``."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timezone
from typing import Any

import click
from flask.cli import with_appcontext

from ..browse import counts
from ..browse import find
from ..browse import newest
from ..browse import totals
from ..endpoint import Endpoint
from ..inbox import Status
from .options import as_json as as_json_option
from .options import command
from .options import endpoints_named
from .options import one_endpoint
from .output import cell
from .output import print_json
from .output import printable
from .output import text

COLUMNS = {
    "id": 6,
    "endpoint": 18,
    "event_id": 28,
    "type": 24,
    "status": 8,
    "attempts": 8,
    "repeats": 7,
    "received_at": 19,
}


@command("list")
@click.option("--status", type=click.Choice([str(status) for status in Status]))
@click.option("--type", help="Only events of this type, as in RFIs.update.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True)
@one_endpoint
@as_json_option
@with_appcontext
def list_events(
    status: str | None,
    type: str | None,
    limit: int,
    endpoint: str | None,
    as_json: bool,
) -> None:
    """List the newest events in the inbox."""
    rows = [
        row
        for each in endpoints_named(endpoint)
        for row in newest(each.inbox, status=status, type=type, limit=limit)
    ]
    rows = sorted(rows, key=lambda row: -row["id"])[:limit]
    if as_json:
        print_json([dict(row) for row in rows])
        return
    click.echo("  ".join(name.ljust(width) for name, width in COLUMNS.items()))
    for row in rows:
        click.echo("  ".join(cell(row[name], width) for name, width in COLUMNS.items()))


@command()
@click.argument("event_id")
@one_endpoint
@as_json_option
@with_appcontext
def show(event_id: str, endpoint: str | None, as_json: bool) -> None:
    """Show one event: attempts, receipts, error, body. EVENT_ID or the row's id."""
    found = [
        (each, row)
        for each in endpoints_named(endpoint)
        if (row := find(each.inbox, event_id))
    ]
    if not found:
        raise click.ClickException(f"There is no event {event_id!r} in the inbox.")
    shown = [_with_receipts(each, row) for each, row in found]
    if as_json:
        print_json(shown)
        return
    for row in shown:
        _print_event(row)


@command()
@one_endpoint
@as_json_option
@with_appcontext
def stats(endpoint: str | None, as_json: bool) -> None:
    """Count the events by status and type, and say how old the oldest due one is."""
    shown = {each.name: _stats(each) for each in endpoints_named(endpoint)}
    if as_json:
        print_json(shown)
        return
    for name, numbers in shown.items():
        click.secho(name, bold=True)
        for count in numbers.pop("events"):
            type = printable(count["type"] or "(unreadable)")
            click.echo(f"  {count['status']:<8} {type:<32} {count['events']:>8}")
        for label, number in numbers.items():
            click.echo(f"  {label.replace('_', ' ')}: {number}")


def _stats(endpoint: Endpoint) -> dict[str, Any]:
    sums = totals(endpoint.inbox)
    oldest = sums["oldest_due"]
    age = None
    if oldest is not None:
        now = endpoint.inbox.now().astimezone(timezone.utc).replace(tzinfo=None)
        age = round(max(0.0, (now - oldest).total_seconds()), 1)
    return {
        "events": [
            {"status": status, "type": type, "events": number}
            for (status, type), number in sorted(counts(endpoint.inbox).items())
        ],
        "attempts": int(sums["attempts"]),
        "repeats": int(sums["repeats"]),
        "conflicts": int(sums["conflicts"]),
        "oldest_due_seconds": age,
    }


def _with_receipts(endpoint: Endpoint, row: Mapping[str, Any]) -> dict[str, Any]:
    shown = {key: value for key, value in row.items() if key != "lease"}
    shown["receipts"] = endpoint.inbox.receipts(row["id"])
    shown["body"] = (row["body"] or b"").decode("utf-8", "backslashreplace")
    return shown


def _print_event(row: dict[str, Any]) -> None:
    body, receipts = row.pop("body"), row.pop("receipts")
    for name, value in row.items():
        click.echo(f"{name:<14} {printable(text(value))}")
    for subscriber, finished_at in receipts.items():
        click.echo(f"{'receipt':<14} {subscriber} {text(finished_at)}")
    click.echo(printable(body))
