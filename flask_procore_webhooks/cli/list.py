"""``list``: the newest events in the inbox."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
from flask.cli import with_appcontext

from ..inbox.filters import Filter
from ..inbox.queries import newest
from ._options import as_json as as_json_option
from ._options import command
from ._options import endpoints_named
from ._options import filters
from ._options import one_endpoint
from ._output import print_json
from ._output import print_table
from ._output import shortened
from ._output import UNREADABLE

COLUMNS = ("id", "status", "attempts", "repeats", "received_at", "type", "event_id")


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
        dict(row) for each in found for row in newest(each.store, wanted, limit=limit)
    ]
    rows.sort(key=lambda row: (row["received_at"], row["id"]), reverse=True)
    if as_json:
        print_json(rows[:limit])
    elif rows:
        columns = COLUMNS if len(found) == 1 else (*COLUMNS, "endpoint")
        print_table(columns, (_cells(row, columns) for row in rows[:limit]))
    else:
        click.echo("No events.")


def _cells(row: Mapping[str, Any], columns: tuple[str, ...]) -> list[Any]:
    shown = {**row, "type": shortened(row["type"] or UNREADABLE, 40)}
    return [shown[name] for name in columns]
