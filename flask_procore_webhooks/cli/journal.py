"""``journal``: what operators did."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import click
from flask.cli import with_appcontext

from ..operations.journal import entries
from ._options import as_json as as_json_option
from ._options import command
from ._options import endpoints_named
from ._options import one_endpoint
from ._output import print_json
from ._output import print_table
from ._output import shortened
from ._values import date

COLUMNS = ("at", "endpoint", "actor", "action", "batch", "expected", "actual", "filter")
#: Options whose names differ from those of their fields.
OPTIONS = {"statuses": "status"} | {
    f"{name}_id": name for name in ("project", "company", "user", "resource")
}
OF_EVENTS = ("at", "endpoint", "actor", "action", "event", "former")


@command("journal")
@click.option("--batch", metavar="ID", help="Only this batch, with each of its events.")
@click.option(
    "--since",
    type=date,
    metavar="TIME",
    help="At this time or later: 2026-11-26, 2026-11-26T09:30, or -8h.",
)
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True)
@one_endpoint
@as_json_option
@with_appcontext
def show_journal(
    batch: str | None,
    since: datetime | None,
    limit: int,
    endpoint: str | None,
    as_json: bool,
) -> None:
    """Show who did what and when, latest first. Times are in UTC.

    EXPECTED is how many jobs, and events without jobs, were to be changed when the
    operation began; ACTUAL how many were. Without ACTUAL it is going on, or was
    interrupted.
    """
    rows = [
        row
        for each in endpoints_named(endpoint)
        for row in entries(each.store, batch=batch, since=since, limit=limit)
    ]
    rows.sort(key=lambda row: (row["at"], row["id"]), reverse=True)
    rows = rows[:limit]
    if as_json:
        print_json(rows)
    elif not rows:
        click.echo("No entries.")
    else:
        _print(COLUMNS, [row for row in rows if row["event"] is None])
        _print(OF_EVENTS, [row for row in rows if row["event"] is not None])


def _print(columns: Sequence[str], rows: list[dict[str, Any]]) -> None:
    if rows:
        print_table(columns, ([_cell(row, name) for name in columns] for row in rows))


def _cell(row: Mapping[str, Any], name: str) -> object:
    value = row[name]
    if name == "former" and value is not None:
        jobs = value.get("jobs") or []
        return shortened("; ".join(map(_job, jobs)) or str(value.get("status")), 100)
    if name == "filter" and value is not None:
        return shortened(_options(value), 100)
    return value


def _job(job: Mapping[str, Any]) -> str:
    error = f", {job['error_class']}: {job['error']}" if job["error_class"] else ""
    return f"{job['subscriber']} {job['state']}, attempts {job['attempts']}{error}"


def _options(given: Mapping[str, Any]) -> str:
    """The options as they are typed, and row ids as numbers."""
    return " ".join(part for each in given.items() for part in _typed(*each))


def _typed(name: str, value: Any) -> Iterator[str]:
    option = f"--{OPTIONS.get(name, name).replace('_', '-')}"
    if name == "rows":
        yield f"rows {json.dumps(value)}"
    elif isinstance(value, list):
        for each in value:
            yield f"{option} {each}"
    elif isinstance(value, bool):
        yield from [option] if value else []
    elif name == "rate":
        yield f"{option} {value:g}/s"
    else:
        yield f"{option} {shlex.quote(str(value))}"
