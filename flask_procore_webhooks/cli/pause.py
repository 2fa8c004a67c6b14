"""``pause`` and ``resume``: stop and restart the runs of events."""

from __future__ import annotations

import click
from flask.cli import with_appcontext

from ..dispatching.dispatch import notify_others
from ..endpoint import Endpoint
from ..inbox.due import is_paused
from ..inbox.due import pause_of
from ..operations.pauses import pause
from ..operations.pauses import resume
from ._actor import actor
from ._options import all_events
from ._options import command
from ._options import endpoints_named
from ._options import one_endpoint
from ._output import on_one_line
from ._output import text

SOON = {
    "background": "events run again within half a minute",
    "worker": "events run again at the next poll of a worker",
    "celery": "the next sweep publishes the events that have waited",
}


@command("pause")
@click.option("--reason", metavar="TEXT", help="Why, for the journal.")
@all_events
@one_endpoint
@with_appcontext
def pause_events(reason: str | None, every: bool, endpoint: str | None) -> None:
    """Pause: events are recorded, and none runs until resume."""
    for each in _pausable(endpoint, every):
        former = pause_of(each.store)
        if former and not reason:
            what = f"paused already, by {former.actor} since {text(former.since)}"
        else:
            pause(each.store, actor(), reason)
            what = "paused; events are recorded and wait for resume"
        click.echo(on_one_line(f"{each.name}: {what}"))


@command("resume")
@all_events
@one_endpoint
@with_appcontext
def resume_events(every: bool, endpoint: str | None) -> None:
    """End a pause."""
    for each in _pausable(endpoint, every):
        if not is_paused(each.store):
            click.echo(f"{each.name}: is not paused")
            continue
        resume(each.store, actor())
        notify_others(each, each.dispatch, [])
        click.echo(f"{each.name}: resumed; {SOON[each.dispatch]}")


def _pausable(name: str | None, every: bool) -> list[Endpoint]:
    """The endpoints to pause; of several, one is named or ``--all`` is given."""
    found = endpoints_named(name)
    if len(found) > 1 and not every:
        names = ", ".join(each.name for each in found)
        raise click.UsageError(f"Name an --endpoint ({names}) or give --all.")
    inline = [each.name for each in found if each.dispatch == "inline"]
    if inline:
        raise click.ClickException(
            f'{", ".join(inline)} runs events in its requests (DISPATCH is "inline"),'
            " which cannot be paused."
        )
    return found
