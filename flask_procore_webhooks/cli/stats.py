"""``stats``: counts of the events."""

from __future__ import annotations

from typing import Any

import click
from flask.cli import with_appcontext

from ..endpoint import Endpoint
from ..inbox.due import pause_of
from ..inbox.queries import counts
from ..inbox.queries import totals
from ._options import as_json as as_json_option
from ._options import command
from ._options import endpoints_named
from ._options import one_endpoint
from ._output import on_one_line
from ._output import print_json
from ._output import text
from ._output import UNREADABLE
from ._processes import alive
from ._processes import hanging_runs
from ._processes import HangingRun
from ._processes import longest_run
from ._processes import Process
from ._processes import processes


@command()
@one_endpoint
@as_json_option
@with_appcontext
def stats(endpoint: str | None, as_json: bool) -> None:
    """Count the events, and show the oldest due one, the pause and the processes."""
    shown = {each.name: _stats(each) for each in endpoints_named(endpoint)}
    if as_json:
        print_json(shown)
        return
    for name, numbers in shown.items():
        click.secho(name, bold=True)
        _print_stats(**numbers)


def _stats(endpoint: Endpoint) -> dict[str, Any]:
    store = endpoint.store
    sums = totals(store)
    oldest = sums["oldest_due"]
    age = None
    if oldest is not None:
        age = (store.db_now() - oldest).total_seconds()
        age = round(max(0.0, age), 1)
    pause, found = pause_of(store), processes(endpoint)
    return {
        "events": [
            {"status": status, "type": type, "events": number}
            for (status, type), number in sorted(counts(store).items())
        ],
        "attempts": int(sums["attempts"]),
        "repeats": int(sums["repeats"]),
        "conflicts": int(sums["conflicts"]),
        "oldest_due_seconds": age,
        "paused": pause is not None,
        "paused_by": pause and pause.actor,
        "paused_since": pause and pause.since,
        "processes": found,
        "longest_run": longest_run(alive(found)),
        "hanging_runs": hanging_runs(endpoint, found),
    }


def _print_stats(
    events: list[dict[str, Any]],
    oldest_due_seconds: float | None,
    paused: bool,
    paused_by: str | None,
    paused_since: object,
    processes: list[Process],
    longest_run: dict[str, Any] | None,
    hanging_runs: list[HangingRun],
    **sums: int,
) -> None:
    for count in events:
        type = on_one_line(count["type"] or UNREADABLE)
        click.echo(f"  {count['status']:<8} {type:<32} {count['events']:>8}")
    for name, number in sums.items():
        click.echo(f"  {name}: {number}")
    unfinished = oldest_due_seconds is not None
    click.echo(f"  oldest due: {f'{oldest_due_seconds} s ago' if unfinished else '-'}")
    for process in processes:
        click.echo(on_one_line(f"  {_described(process)}"))
    if longest_run:
        click.echo(
            on_one_line(
                f"  longest run: {longest_run.get('subscriber')}, event"
                f" {longest_run.get('event')}, {longest_run.get('seconds')} s"
            )
        )
    for run in hanging_runs:
        where = f"in process {run['pid']} of {run['host']}, for longer than LEASE"
        what = f"{run['subscriber']}, event {run['event']}, {run['seconds']} s"
        click.secho(on_one_line(f"  hanging run: {what}, {where}"), fg="yellow")
    if paused:
        who = f"by {on_one_line(str(paused_by))} since {text(paused_since)} UTC"
        click.secho(f"  paused: no event runs until resume ({who})", fg="yellow")


def _described(process: Process) -> str:
    numbers = [
        f", {process[name]} {name}"
        for name in ("threads", "runs")
        if process[name] is not None
    ]
    return (
        f"{process['mode']} {process['host']}:{process['pid']}{''.join(numbers)}, seen"
        f" {process['seen_seconds']} s ago"
    )
