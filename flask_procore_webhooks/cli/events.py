"""Commands to look into the inbox: ``list``, ``show``, ``stats``."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import click
from flask.cli import with_appcontext

from ..browse import counts
from ..browse import Filter
from ..browse import find
from ..browse import newest
from ..browse import receipts_of
from ..browse import totals
from ..endpoint import Endpoint
from ..upkeep import is_paused
from ..upkeep import journal_of
from .options import as_json as as_json_option
from .options import command
from .options import endpoints_named
from .options import filters
from .options import one_endpoint
from .output import on_one_line
from .output import print_field
from .output import print_json
from .output import print_table
from .output import printable
from .output import shortened
from .output import text

COLUMNS = ("id", "status", "attempts", "repeats", "received_at", "type", "event_id")
UNREADABLE = "(unreadable)"


@command("list")
@filters
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True)
@one_endpoint
@as_json_option
@with_appcontext
def list_events(
    wanted: Filter, limit: int, endpoint: str | None, as_json: bool
) -> None:
    """List the newest events in the inbox. Times are in UTC."""
    found = endpoints_named(endpoint)
    rows = [
        dict(row) for each in found for row in newest(each.inbox, wanted, limit=limit)
    ]
    rows.sort(key=lambda row: (row["received_at"], row["id"]), reverse=True)
    if as_json:
        print_json(rows[:limit])
    elif rows:
        columns = COLUMNS if len(found) == 1 else (*COLUMNS, "endpoint")
        print_table(columns, (_cells(row, columns) for row in rows[:limit]))
    else:
        click.echo("No events.")


@command()
@click.argument("event_id")
@click.option("--body", is_flag=True, help="Only the body, the exact bytes.")
@one_endpoint
@as_json_option
@with_appcontext
def show(event_id: str, body: bool, endpoint: str | None, as_json: bool) -> None:
    """Show one event: attempts, receipts, error, body. EVENT_ID or the row's id."""
    found = [
        (each, row)
        for each in endpoints_named(endpoint)
        if (row := find(each.inbox, event_id))
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
        _print_stats(**numbers)


def _cells(row: Mapping[str, Any], columns: tuple[str, ...]) -> list[Any]:
    shown = {**row, "type": shortened(row["type"] or UNREADABLE, 40)}
    return [shown[name] for name in columns]


def _with_receipts(endpoint: Endpoint, row: Mapping[str, Any]) -> dict[str, Any]:
    shown = {name: row[name] for name in row if name not in ("lease", "body")}
    shown["receipts"] = [dict(each) for each in receipts_of(endpoint.inbox, row["id"])]
    shown["journal"] = journal_of(endpoint.inbox, row["id"])
    return {**shown, "body": row["body"]}


def _for_machines(row: dict[str, Any]) -> dict[str, Any]:
    """The body as text, or in base64 where it is none."""
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


def _stats(endpoint: Endpoint) -> dict[str, Any]:
    sums = totals(endpoint.inbox)
    oldest = sums["oldest_due"]
    age = None
    if oldest is not None:
        age = (endpoint.inbox.naive_now() - oldest).total_seconds()
        age = round(max(0.0, age), 1)
    return {
        "events": [
            {"status": status, "type": type, "events": number}
            for (status, type), number in sorted(counts(endpoint.inbox).items())
        ],
        "attempts": int(sums["attempts"]),
        "repeats": int(sums["repeats"]),
        "conflicts": int(sums["conflicts"]),
        "oldest_due_seconds": age,
        "paused": is_paused(endpoint.inbox),
    }


def _print_stats(
    events: list[dict[str, Any]],
    oldest_due_seconds: float | None,
    paused: bool,
    **sums: int,
) -> None:
    for count in events:
        type = on_one_line(count["type"] or UNREADABLE)
        click.echo(f"  {count['status']:<8} {type:<32} {count['events']:>8}")
    for name, number in sums.items():
        click.echo(f"  {name}: {number}")
    unfinished = oldest_due_seconds is not None
    click.echo(f"  oldest due: {f'{oldest_due_seconds} s ago' if unfinished else '-'}")
    if paused:
        click.secho("  paused: nothing is run until resume", fg="yellow")
