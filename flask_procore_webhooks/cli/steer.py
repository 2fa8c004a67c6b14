"""Commands to change what is in the inbox: ``replay``, ``prune``, ``pause``."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from datetime import timedelta
from datetime import timezone

import click
from flask.cli import with_appcontext

from ..browse import EVERY_EVENT
from ..browse import Filter
from ..browse import find
from ..browse import pages
from ..dispatch import tell_others
from ..endpoint import Endpoint
from ..inbox import Inbox
from ..process import process
from ..states import Status
from ..upkeep import BATCH
from ..upkeep import IDS_KEPT
from ..upkeep import is_paused
from ..upkeep import pause
from ..upkeep import prune_bodies
from ..upkeep import prune_rows
from ..upkeep import replay
from ..upkeep import resume
from .options import all_events
from .options import as_json as as_json_option
from .options import command
from .options import endpoints_named
from .options import filters
from .options import one_endpoint
from .options import whole_endpoints
from .output import print_json
from .output import Progress

#: An endpoint and row ids, some at a time.
Chosen = tuple[Endpoint, Iterator[list[int]]]

AFTERWARDS = {
    "background": "the app's threads run them within half a minute",
    "worker": "workers run them as soon as they look",
    "celery": "Celery's workers run them, at the latest after the next sweep",
    "inline": "they were run here, because DISPATCH is inline; what failed waits for"
    " the sender's next delivery, or for worker --once",
}

SOON = {
    "background": "within half a minute events are run again",
    "worker": "workers run events again as soon as they look",
    "celery": "the next sweep hands over what has waited",
}


@command("replay")
@click.argument("event_ids", nargs=-1)
@filters
@all_events
@click.option("--anew", is_flag=True, help="Also the subscribers that had finished.")
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
    """Run finished events again: those named, or those that the filters mean.

    Of a dead event, the subscribers that have not finished are run; of a done one, all.
    Without --status, filters mean dead events. What was done is noted for each event.
    """
    if not (event_ids or every or wanted != EVERY_EVENT):
        raise click.UsageError("Name events, give a filter, or say --all.")
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


@command()
@click.option("--dead", is_flag=True, help="Dead events too; they are kept otherwise.")
@one_endpoint
@as_json_option
@with_appcontext
def prune(dead: bool, endpoint: str | None, as_json: bool) -> None:
    """Remove what has been finished for longer than RETENTION.

    Bodies first; ids and receipts are kept four times as long, so that a late copy of
    an event is still a duplicate. In small batches, safe to stop and to repeat.
    """
    counts = {each.name: _prune(each, dead) for each in endpoints_named(endpoint)}
    if as_json:
        print_json(counts)
        return
    for name, numbers in counts.items():
        click.echo(
            f"{name}: removed {numbers['bodies']} bodies and {numbers['events']} events"
        )


@command("pause")
@all_events
@one_endpoint
@with_appcontext
def pause_events(every: bool, endpoint: str | None) -> None:
    """Let events come in, and have nobody run them until resume."""
    for each in _pausable(endpoint, every):
        pause(each.inbox, _actor())
        click.echo(f"{each.name}: paused; events come in and wait for resume")


@command("resume")
@all_events
@one_endpoint
@with_appcontext
def resume_events(every: bool, endpoint: str | None) -> None:
    """End a pause."""
    for each in _pausable(endpoint, every):
        resume(each.inbox, _actor())
        tell_others(each, [])
        click.echo(f"{each.name}: resumed; {SOON[each.dispatch]}")


def _named(mounted: list[Endpoint], event_ids: tuple[str, ...]) -> list[Chosen]:
    """The rows of those events, by endpoint, some at a time."""
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
    """Where an event of that id is; or, where there is none, the row of that id."""
    found = [(each, row) for each in mounted if (row := find(each.inbox, event_id))]
    by_row_id = [(each, row) for each, row in found if str(row["id"]) == event_id]
    by_event_id = [pair for pair in found if pair not in by_row_id]
    return [(each, row["id"]) for each, row in by_event_id or by_row_id]


def _filtered(mounted: list[Endpoint], wanted: Filter) -> list[Chosen]:
    wanted = replace(wanted, status=wanted.status or Status.DEAD.value)
    return [(each, pages(each.inbox, wanted, BATCH)) for each in mounted]


def _replay(
    endpoint: Endpoint, chosen: Iterator[list[int]], anew: bool
) -> dict[str, int]:
    seen, progress = 0, Progress(f"{endpoint.name}, replayed")
    for rows in chosen:
        seen += len(rows)
        progress.add(replay(endpoint.inbox, rows, _actor(), anew=anew))
        if endpoint.dispatch == "inline":
            for row in rows:
                process(endpoint, row)
        else:
            tell_others(endpoint, rows)
    return {"replayed": progress.count, "skipped": seen - progress.count}


def _print_replayed(endpoint: Endpoint, replayed: int, skipped: int) -> None:
    click.echo(f"{endpoint.name}: replayed {replayed}")
    if replayed:
        paused = is_paused(endpoint.inbox)
        then = "it is paused: nothing is run until resume"
        click.echo(f"  {then if paused else AFTERWARDS[endpoint.dispatch]}")
    if skipped:
        click.echo(f"  skipped {skipped}, not finished yet or without their bodies")


def _prune(endpoint: Endpoint, dead: bool) -> dict[str, int]:
    inbox, retention = endpoint.inbox, endpoint.settings.retention
    bodies = Progress(f"{endpoint.name}, bodies removed")
    for count in prune_bodies(inbox, _ago(inbox, retention), dead=dead):
        bodies.add(count)
    events = Progress(f"{endpoint.name}, events removed")
    for count in prune_rows(inbox, _ago(inbox, IDS_KEPT * retention), dead=dead):
        events.add(count)
    return {"bodies": bodies.count, "events": events.count}


def _ago(inbox: Inbox, seconds: float) -> datetime:
    try:
        return inbox.now() - timedelta(seconds=seconds)
    except OverflowError:  # as far as the calendar goes
        return datetime.min.replace(tzinfo=timezone.utc)


def _pausable(endpoint: str | None, every: bool) -> list[Endpoint]:
    found = whole_endpoints(endpoint, every)
    inline = [each.name for each in found if each.dispatch == "inline"]
    if inline:
        raise click.ClickException(
            f"{', '.join(inline)} runs events in the requests themselves (DISPATCH is"
            ' "inline"): there is nobody to pause.'
        )
    return found


def _actor() -> str:
    """Who is asking, for the journal."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # of a container's user without an entry
        name = "?"
    return f"{name}@{socket.gethostname()}"
