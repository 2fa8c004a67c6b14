"""``replay``: run events again, or sooner."""

from __future__ import annotations

import click
from flask.cli import with_appcontext

from ..dispatching.dispatch import notify_others
from ..inbox.due import is_paused
from ..operations.journal import REPLAY
from ..running.run import process
from ._changes import change
from ._changes import changing
from ._options import command
from ._selected import Change
from ._selected import Request
from ._values import rate as rate_value

AFTERWARDS = {
    "background": "the app's threads run them within half a minute",
    "worker": "workers run them at their next poll",
    "celery": "Celery's workers run them, at the latest after the next sweep",
    "inline": "they were run here, because DISPATCH is inline; failed events wait for"
    " the sender's next delivery, or for worker --once",
}


@command("replay")
@click.option("--anew", is_flag=True, help="Also jobs that have finished.")
@click.option(
    "--rate",
    type=rate_value,
    metavar="N/s",
    help="Let so many events become due at a time: 10/s, 600/m or 5/h.",
)
@changing
@with_appcontext
def replay_events(request: Request) -> None:
    """Run events again that are dead, or selected by id or by filters.

    Without --status, filters select dead jobs. Their attempts begin anew, and jobs that
    have finished stay so without --anew. Jobs that wait (--status pending) become due
    now. Events with the status unmatched, ignored or quarantined become pending. With
    --status and --subscriber, events that have no job of the subscriber get one.

    The journal records each batch; progress shows what has become of it.
    """
    done = change(REPLAY, request, _hand_over)
    if request.as_json:
        return
    for each in done:
        if each.summary.events:
            click.echo(f"  {each.endpoint.name}: {_afterwards(each)}")


def _hand_over(each: Change, rows: list[int]) -> None:
    endpoint = each.endpoint
    if each.operation.rate:
        # The others are not due yet.
        rows = rows[:1]
    if endpoint.dispatch != "inline":
        notify_others(endpoint, endpoint.dispatch, rows)
        return
    for row in rows:
        process(endpoint, row)


def _afterwards(each: Change) -> str:
    if is_paused(each.endpoint.store):
        return "the endpoint is paused: no event runs until resume"
    if each.operation.rate:
        seconds = (each.summary.events - 1) / each.operation.rate
        return (
            f"they become due one after the other, the last in {seconds:,.0f} s; this"
            " command need not go on"
        )
    return AFTERWARDS[each.endpoint.dispatch]
