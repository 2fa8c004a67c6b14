"""``errors``: failed jobs, grouped by subscriber, class and masked message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
from flask.cli import with_appcontext

from ..operations.filters import Filter
from ..operations.queries import Incident
from ..operations.queries import incidents
from ..operations.queries import MOST_GROUPED
from ._options import as_json as as_json_option
from ._options import command
from ._options import endpoints_named
from ._options import filters
from ._options import one_endpoint
from ._output import NO_TYPE
from ._output import on_one_line
from ._output import print_json
from ._output import text

#: Types that are printed of each group.
SHOWN_TYPES = 5


@command("errors")
@filters
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True)
@one_endpoint
@as_json_option
@with_appcontext
def show_errors(
    wanted: Filter, limit: int, endpoint: str | None, as_json: bool
) -> None:
    """Group the errors of dead jobs, and of jobs that wait for their next attempt.

    A group has one subscriber, one class of exceptions and one message, in which
    numbers, ids and quoted text are masked. --error takes the message. The most
    frequent group is first. Times are in UTC.
    """
    groups, is_cut = [], False
    for each in endpoints_named(endpoint):
        found, has_more = incidents(each.store, wanted)
        groups += found
        is_cut = is_cut or has_more
    groups.sort(key=lambda group: group.count, reverse=True)
    if as_json:
        print_json([_for_machines(group) for group in groups[:limit]])
        return
    for group in groups[:limit]:
        _print_group(group)
    _print_total(min(limit, len(groups)), groups)
    if is_cut:
        click.echo(
            f"There are more: only the newest {MOST_GROUPED:,} dead jobs, and the first"
            f" {MOST_GROUPED:,} events that wait, were read."
        )


def _for_machines(group: Incident) -> Mapping[str, Any]:
    return {
        "endpoint": group.endpoint,
        "subscriber": group.subscriber,
        "error_class": group.error_class,
        "message": group.message,
        "count": group.count,
        "first_seen": group.first_seen,
        "last_seen": group.last_seen,
        "types": sorted(group.types),
    }


def _print_group(group: Incident) -> None:
    error = ": ".join(filter(None, (group.error_class, group.message)))
    click.secho(on_one_line(f"{group.count:,}  {group.subscriber}"), bold=True)
    click.echo(on_one_line(f"    {error or '-'}"))
    types = sorted(type or NO_TYPE for type in group.types)
    more = f" and {len(types) - SHOWN_TYPES} more" if len(types) > SHOWN_TYPES else ""
    seen = f"{text(group.first_seen)} to {text(group.last_seen)}"
    listed = ", ".join(types[:SHOWN_TYPES])
    click.echo(on_one_line(f"    {seen}, {listed}{more}, as in {group.event_id}"))


def _print_total(shown: int, groups: list[Incident]) -> None:
    if not groups:
        click.echo("No errors.")
        return
    jobs = sum(group.count for group in groups)
    click.echo(f"{shown} of {len(groups):,} groups, {jobs:,} jobs")
