"""``stats``: numbers of the inbox, and conditions for a monitor."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Any
from typing import TypedDict

import click
from flask.cli import with_appcontext

from ..endpoint import Endpoint
from ..inbox.due import pause_of
from ..operations.numbers import history
from ..operations.numbers import live_numbers
from ..operations.numbers import next_retry
from ..operations.numbers import seconds_due
from ..operations.numbers import unmatched_types
from ..operations.numbers import WINDOWS
from ._conditions import Condition
from ._conditions import condition
from ._options import as_json as as_json_option
from ._options import command
from ._options import endpoints_named
from ._options import one_endpoint
from ._output import NO_TYPE
from ._output import on_one_line
from ._output import print_json
from ._output import print_table
from ._output import text
from ._processes import alive
from ._processes import hanging_runs
from ._processes import HangingRun
from ._processes import longest_run
from ._processes import Process
from ._processes import processes

#: Types of unmatched events that are printed.
SHOWN_TYPES = 10


class Numbers(TypedDict):
    """The numbers of one endpoint."""

    #: By status; at most 10,000 each.
    events: dict[str, int]
    #: Also of events that are pending for another job; at most 10,000.
    dead_jobs: int
    #: What there is more of than that.
    capped: list[str]
    #: By outcome and window.
    history: dict[str, dict[str, int]]
    unmatched_types: list[dict[str, Any]]
    oldest_due_seconds: float | None
    next_retry: datetime | None
    paused: bool
    paused_by: str | None
    paused_since: datetime | None
    paused_reason: str | None
    workers: int
    processes: list[Process]
    longest_run: dict[str, Any] | None
    hanging_runs: list[HangingRun]
    #: The conditions that hold.
    failing: list[str]


@command()
@click.option(
    "--fail-if",
    "conditions",
    multiple=True,
    metavar="CONDITION",
    help="As in 'dead>0' or 'oldest>300' (seconds); may be given several times.",
)
@click.option("--quiet", is_flag=True, help="Print nothing unless a condition holds.")
@one_endpoint
@as_json_option
@with_appcontext
def stats(
    conditions: tuple[str, ...], quiet: bool, endpoint: str | None, as_json: bool
) -> None:
    """Count the events, and show what is due, the pause and the processes.

    With --fail-if, the exit code is 0 if no condition holds, 2 if one does, and 1 if
    the numbers could not be read. The names are pending, running, dead, dead_jobs,
    unmatched, quarantined, oldest (seconds that the oldest event has been due), longest
    (seconds of the longest run) and workers. An event is dead once no job of it is
    pending; its dead job counts before that.
    """
    wanted = [condition(each) for each in conditions]
    shown = {each.name: _stats(each, wanted) for each in endpoints_named(endpoint)}
    fails = any(numbers["failing"] for numbers in shown.values())
    if as_json:
        print_json(shown)
    elif fails or not quiet:
        for name, numbers in shown.items():
            click.secho(name, bold=True)
            _print_stats(numbers)
    if fails:
        raise SystemExit(2)


def _stats(endpoint: Endpoint, conditions: list[Condition]) -> Numbers:
    store = endpoint.store
    live, oldest, pause = live_numbers(store), seconds_due(store), pause_of(store)
    found = processes(endpoint)
    running = alive(found)
    longest = longest_run(running)
    counted = live.events | {"dead_jobs": live.dead_jobs}
    numbers: dict[str, float] = {
        name: number + (name in live.capped) for name, number in counted.items()
    }
    numbers["oldest"] = oldest or 0.0
    numbers["longest"] = float(longest["seconds"]) if longest else 0.0
    numbers["workers"] = len(running)
    return {
        "events": live.events,
        "dead_jobs": live.dead_jobs,
        "capped": sorted(live.capped),
        "history": history(store),
        "unmatched_types": _unmatched_types(endpoint),
        "oldest_due_seconds": None if oldest is None else round(oldest, 1),
        "next_retry": next_retry(store),
        "paused": pause is not None,
        "paused_by": pause and pause.actor,
        "paused_since": pause and pause.since,
        "paused_reason": pause and pause.reason,
        "workers": len(running),
        "processes": found,
        "longest_run": longest,
        "hanging_runs": hanging_runs(endpoint, found),
        "failing": [each.text for each in conditions if each.holds(numbers)],
    }


def _unmatched_types(endpoint: Endpoint) -> list[dict[str, Any]]:
    """The types of the newest unmatched events, the most frequent first."""
    numbers: Counter[str] = Counter()
    for (type, _, _), number in unmatched_types(endpoint.store).items():
        numbers[type] += number
    return [{"type": type, "events": n} for type, n in numbers.most_common()]


def _print_stats(numbers: Numbers) -> None:
    shown = numbers["events"] | {"dead_jobs": numbers["dead_jobs"]}
    for name, number in shown.items():
        count = f"{number:,}{'+' if name in numbers['capped'] else ''}"
        click.echo(f"  {name.replace('_', ' '):<12} {count:>8}")
    _print_due(numbers)
    _print_unmatched(numbers["unmatched_types"])
    _print_processes(numbers)
    if numbers["paused"]:
        since = f"by {numbers['paused_by']} since {text(numbers['paused_since'])}"
        reason = f": {numbers['paused_reason']}" if numbers["paused_reason"] else ""
        line = f"  paused: no event runs until resume ({since}{reason})"
        click.secho(on_one_line(line), fg="yellow")
    if sums := numbers["history"]:
        rows = [(f"  {name}", *sums[name].values()) for name in sums]
        print_table(("  in the last", *WINDOWS), rows)
    for each in numbers["failing"]:
        click.secho(f"  FAILS: {each}", fg="red")


def _print_due(numbers: Numbers) -> None:
    oldest, retry = numbers["oldest_due_seconds"], numbers["next_retry"]
    click.echo(f"  oldest due: {'-' if oldest is None else f'{oldest} s ago'}")
    click.echo(f"  next retry: {'-' if retry is None else f'{text(retry)}'}")


def _print_unmatched(types: list[dict[str, Any]]) -> None:
    listed = ", ".join(
        f"{each['type'] or NO_TYPE} ({each['events']:,})"
        for each in types[:SHOWN_TYPES]
    )
    more = f" and {len(types) - SHOWN_TYPES} more" if len(types) > SHOWN_TYPES else ""
    if types:
        click.echo(f"  unmatched types: {on_one_line(listed)}{more}")


def _print_processes(numbers: Numbers) -> None:
    click.echo(f"  workers: {numbers['workers']}")
    for process in numbers["processes"]:
        click.echo(on_one_line(f"    {_described(process)}"))
    if run := numbers["longest_run"]:
        what = f"{run.get('subscriber')}, event {run.get('event')}"
        click.echo(on_one_line(f"  longest run: {what}, {run.get('seconds')} s"))
    for hanging in numbers["hanging_runs"]:
        where = f"in process {hanging['pid']} of {hanging['host']}"
        what = f"{hanging['subscriber']}, event {hanging['event']}"
        line = f"  hanging run: {what}, {hanging['seconds']} s, {where}, for longer"
        click.secho(on_one_line(f"{line} than LEASE"), fg="yellow")


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
