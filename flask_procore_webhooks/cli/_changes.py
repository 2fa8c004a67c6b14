"""Replay and discard: look, ask, change, report."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click

from ..operations.changes import perform
from ..operations.changes import Summary
from ..operations.journal import new_batch
from ._actor import actor
from ._options import all_events
from ._options import as_json as as_json_option
from ._options import filters
from ._options import group_path
from ._options import one_endpoint
from ._output import print_json
from ._output import Progress
from ._preview import as_json
from ._preview import described
from ._preview import events
from ._preview import print_preview
from ._selected import Change
from ._selected import chosen
from ._selected import Request

dry_run = click.option("--dry-run", is_flag=True, help="Only show what would change.")
yes = click.option("--yes", "-y", is_flag=True, help="Do not ask.")
_OPTIONS = (
    as_json_option,
    one_endpoint,
    yes,
    dry_run,
    click.option("--batch", metavar="ID", help="Go on with an interrupted batch."),
    all_events,
    filters,
    click.argument("event_ids", nargs=-1),
)
_DONE = {"replay": "replayed", "discard": "discarded"}


def changing(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the arguments and options of :class:`Request`, which the function gets."""

    @functools.wraps(function)
    def with_request(**options: Any) -> Any:
        return function(Request(**options))

    command: Callable[..., Any] = with_request
    for option in _OPTIONS:
        command = option(command)
    return command


def change(
    action: str, request: Request, notify: Callable[[Change, list[int]], None]
) -> list[Change]:
    """Preview, ask, change and report; return what was changed.

    :param notify: is called with the rows of the events of each part.
    """
    changes = chosen(action, request)
    total = sum(each.summary.events for each in changes)
    batch = request.batch or new_batch()
    if request.dry_run or not (total or request.batch):
        _report(changes, action, None, request)
        return []
    if not request.as_json:
        print_preview(changes, is_new=request.batch is None)
    units = sum(each.summary.units for each in changes)
    if total > 1 and not request.yes:
        question = f"{action.capitalize()} {events(total)}?"
        confirm(question, as_json=request.as_json)
    goes_on = request.batch is not None
    selected = [each for each in changes if each.summary.events or goes_on]
    done = [_perform(each, batch, notify) for each in selected]
    _report(done, action, batch, request, total=units)
    return done


def confirm(question: str, *, as_json: bool, look: str = "--dry-run") -> None:
    """Ask; a "no" ends the command.

    :param look: what shows the changes and makes none.
    :raises click.UsageError: nobody can answer.
    """
    if as_json or not sys.stdin.isatty():
        raise click.UsageError(f"{question} Give --yes, or {look} to look.")
    click.confirm(question, abort=True)


def _perform(
    each: Change, batch: str, notify: Callable[[Change, list[int]], None]
) -> Change:
    store, changed = each.endpoint.store, Summary()
    verb = _DONE[each.operation.action]
    progress = Progress(f"{each.endpoint.name}, {verb}")
    expected = each.summary.units
    for rows in perform(
        store, each.operation, batch, actor(), expected=expected, summary=changed
    ):
        progress.add(len(rows))
        if rows:
            notify(each, rows)
    return replace(each, summary=changed)


def _report(
    changes: list[Change],
    action: str,
    batch: str | None,
    request: Request,
    *,
    total: int = 0,
) -> None:
    if request.as_json:
        print_json(
            {
                "batch": batch,
                "dry_run": request.dry_run,
                "endpoints": {
                    each.endpoint.name: as_json(each.summary) for each in changes
                },
            }
        )
    elif batch is None:
        print_preview(changes, is_new=request.batch is None)
        if not any(each.summary.events for each in changes):
            click.echo(f"Nothing to {action}.")
    else:
        for each in changes:
            text = described(each.summary, left_out=False)
            click.echo(f"{each.endpoint.name}: {_DONE[action]} {text}")
        changed = sum(each.summary.units for each in changes)
        if changed < total:
            click.echo(f"  {total - changed} fewer than shown: they changed meanwhile")
        click.echo(
            f"Batch {batch}: see how it goes with {group_path()} progress {batch}"
        )
