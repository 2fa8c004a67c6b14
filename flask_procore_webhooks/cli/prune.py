"""``prune``: remove old bodies and events."""

from __future__ import annotations

from datetime import datetime
from datetime import timedelta
from datetime import timezone

import click
from flask.cli import with_appcontext

from ..endpoint import Endpoint
from ..inbox.operations import IDS_KEPT
from ..inbox.operations import prune_bodies
from ..inbox.operations import prune_rows
from ..inbox.operations import prune_seen
from ..storage.store import Store
from ._options import as_json as as_json_option
from ._options import command
from ._options import endpoints_named
from ._options import one_endpoint
from ._output import print_json
from ._output import Progress


@command()
@click.option("--dead", is_flag=True, help="Also dead events; they are kept otherwise.")
@one_endpoint
@as_json_option
@with_appcontext
def prune(dead: bool, endpoint: str | None, as_json: bool) -> None:
    """Remove events that finished longer than RETENTION ago.

    Bodies first; ids and receipts are kept four times as long, so that a late copy of
    an event is still a repeat. It works in small batches and is safe to stop and to
    repeat.
    """
    counts = {each.name: _prune(each, dead) for each in endpoints_named(endpoint)}
    if as_json:
        print_json(counts)
        return
    for name, numbers in counts.items():
        click.echo(
            f"{name}: removed {numbers['bodies']} bodies and {numbers['events']} events"
        )


def _prune(endpoint: Endpoint, dead: bool) -> dict[str, int]:
    store, retention = endpoint.store, endpoint.settings.retention
    bodies = Progress(f"{endpoint.name}, bodies removed")
    for count in prune_bodies(store, _ago(store, retention), dead=dead):
        bodies.add(count)
    events = Progress(f"{endpoint.name}, events removed")
    for count in prune_rows(store, _ago(store, IDS_KEPT * retention), dead=dead):
        events.add(count)
    prune_seen(store)
    return {"bodies": bodies.count, "events": events.count}


def _ago(store: Store, seconds: float) -> datetime:
    try:
        return store.now() - timedelta(seconds=seconds)
    except OverflowError:  # before the first year of the calendar
        return datetime.min.replace(tzinfo=timezone.utc)
