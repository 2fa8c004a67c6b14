"""``replay``: run finished events again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import click
from flask.cli import with_appcontext

from ..endpoint import Endpoint
from ..inbox.due import is_paused
from ..inbox.filters import EVERY_EVENT
from ..inbox.filters import Filter
from ..inbox.operations import BATCH
from ..inbox.operations import replay
from ..inbox.queries import find
from ..inbox.queries import pages
from ..inbox.status import Status
from ..running.dispatch import notify_others
from ..running.run import process
from ._actor import actor
from ._options import all_events
from ._options import as_json as as_json_option
from ._options import command
from ._options import endpoints_named
from ._options import filters
from ._options import one_endpoint
from ._output import print_json
from ._output import Progress

#: An endpoint and batches of row ids.
Chosen = tuple[Endpoint, Iterator[list[int]]]

AFTERWARDS = {
    "background": "the app's threads run them within half a minute",
    "worker": "workers run them at their next poll",
    "celery": "Celery's workers run them, at the latest after the next sweep",
    "inline": "they were run here, because DISPATCH is inline; failed events wait for"
    " the sender's next delivery, or for worker --once",
}


@command("replay")
@click.argument("event_ids", nargs=-1)
@filters
@all_events
@click.option("--anew", is_flag=True, help="Also subscribers that have finished.")
@one_endpoint
@as_json_option
@with_appcontext
def replay_events(
    event_ids: tuple[str, ...],
    wanted: Filter,
    every: bool,
    anew: bool,
    endpoint: str | None,
    as_json: bool,
) -> None:
    """Run finished events again, selected by id or by filters.

    Of a dead event, the subscribers without a receipt run; of a done event, all.
    Without --status, filters select dead events. The journal records each replay.
    """
    if not (event_ids or every or wanted != EVERY_EVENT):
        raise click.UsageError("Name events, give a filter, or give --all.")
    if event_ids and (every or wanted != EVERY_EVENT):
        raise click.UsageError("Name events or give a filter, not both.")
    mounted = endpoints_named(endpoint)
    chosen = _named(mounted, event_ids) if event_ids else _filtered(mounted, wanted)
    counts = {each.name: _replay(each, rows, anew) for each, rows in chosen}
    if as_json:
        print_json(counts)
        return
    for each in mounted:
        if each.name in counts:
            _print_replayed(each, **counts[each.name])


def _named(mounted: list[Endpoint], event_ids: tuple[str, ...]) -> list[Chosen]:
    """The rows of the named events, by endpoint, in batches."""
    found = {each: _rows_of(mounted, each) for each in event_ids}
    if missing := [event_id for event_id, places in found.items() if not places]:
        names = ", ".join(sorted(missing))
        raise click.ClickException(f"There is no such event in the inbox: {names}.")
    places = [place for places in found.values() for place in places]
    rows = {each.name: [row for e, row in places if e is each] for each in mounted}
    return [
        (each, iter(_parts(rows[each.name]))) for each in mounted if rows[each.name]
    ]


def _parts(rows: list[int]) -> list[list[int]]:
    return [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]


def _rows_of(mounted: list[Endpoint], event_id: str) -> list[tuple[Endpoint, int]]:
    """The rows with that event id; if there is no such event, the row with that id."""
    found = [(each, row) for each in mounted if (row := find(each.store, event_id))]
    by_row_id = [(each, row) for each, row in found if str(row["id"]) == event_id]
    by_event_id = [pair for pair in found if pair not in by_row_id]
    return [(each, row["id"]) for each, row in by_event_id or by_row_id]


def _filtered(mounted: list[Endpoint], wanted: Filter) -> list[Chosen]:
    wanted = replace(wanted, statuses=wanted.statuses or (Status.DEAD.value,))
    return [(each, pages(each.store, wanted, BATCH)) for each in mounted]


def _replay(
    endpoint: Endpoint, chosen: Iterator[list[int]], anew: bool
) -> dict[str, int]:
    seen, progress = 0, Progress(f"{endpoint.name}, replayed")
    for rows in chosen:
        seen += len(rows)
        progress.add(replay(endpoint.store, rows, actor(), rerun_all=anew))
        if endpoint.dispatch == "inline":
            for row in rows:
                process(endpoint, row)
        else:
            notify_others(endpoint, endpoint.dispatch, rows)
    return {"replayed": progress.count, "skipped": seen - progress.count}


def _print_replayed(endpoint: Endpoint, replayed: int, skipped: int) -> None:
    click.echo(f"{endpoint.name}: replayed {replayed}")
    if replayed:
        paused = is_paused(endpoint.store)
        then = "the endpoint is paused: no event runs until resume"
        click.echo(f"  {then if paused else AFTERWARDS[endpoint.dispatch]}")
    if skipped:
        click.echo(f"  skipped {skipped}: not finished yet, or their bodies are pruned")
