"""``list``: the events in the inbox."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
from flask.cli import with_appcontext

from ..endpoint import Endpoint
from ..inbox.status import Status
from ..operations.filters import Filter
from ..operations.queries import count_events
from ..operations.queries import newest
from ._options import as_json as as_json_option
from ._options import command
from ._options import endpoints_named
from ._options import filters
from ._options import one_endpoint
from ._output import first_line
from ._output import NO_TYPE
from ._output import print_json
from ._output import print_table
from ._output import shortened

COLUMNS = ("id", "status", "attempts", "due_at", "received_at", "type", "resource_id")
#: Characters of a type, an id, and the first line of an error.
WIDTHS = {"type": 40, "resource_id": 20, "event_id": 80, "error": 60}
#: In the place of the type of a quarantined event.
UNREADABLE = "(unreadable)"


@command("list")
@filters
@click.option("--oldest-first", is_flag=True, help="The oldest first.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True)
@one_endpoint
@as_json_option
@with_appcontext
def list_events(
    wanted: Filter, oldest_first: bool, limit: int, endpoint: str | None, as_json: bool
) -> None:
    """List events, the newest first. Times are in UTC.

    "attempts" is the largest number of attempts of one of the event's jobs. "due_at" is
    when the event is tried next; while it runs, the end of its lease.
    """
    found = endpoints_named(endpoint)
    rows = _rows(found, wanted, limit, oldest_first)
    if as_json:
        print_json(rows)
        return
    if rows:
        _print_rows(rows, len(found) > 1)
    counts = [count_events(each.store, wanted) for each in found]
    _print_total(len(rows), counts, oldest_first)


def _rows(
    found: list[Endpoint], wanted: Filter, limit: int, oldest_first: bool
) -> list[dict[str, Any]]:
    rows = [
        dict(row)
        for each in found
        for row in newest(each.store, wanted, limit=limit, oldest_first=oldest_first)
    ]
    rows.sort(key=lambda row: (row["received_at"], row["id"]), reverse=not oldest_first)
    return rows[:limit]


def _print_rows(rows: list[dict[str, Any]], with_endpoint: bool) -> None:
    more = ("endpoint", "event_id", "error") if with_endpoint else ("event_id", "error")
    columns = (*COLUMNS, *more)
    print_table(columns, ([_cell(row, name) for name in columns] for row in rows))


def _cell(row: Mapping[str, Any], name: str) -> object:
    value, is_quarantined = row[name], row["status"] == Status.QUARANTINED
    if name == "type":
        value = value or (UNREADABLE if is_quarantined else NO_TYPE)
    elif name == "error":
        value = first_line(value)
    return shortened(value, WIDTHS[name]) if value and name in WIDTHS else value


def _print_total(
    shown: int, counts: list[tuple[int, bool]], oldest_first: bool
) -> None:
    # A page may have events that are older than those that were counted.
    total = max(shown, sum(number for number, _ in counts))
    if not total:
        click.echo("No events.")
        return
    more = "+" if any(has_more for _, has_more in counts) else ""
    order = "oldest" if oldest_first else "newest"
    click.echo(f"{shown} of {total:,}{more}, {order} first")
