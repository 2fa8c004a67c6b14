"""``progress``: what has become of a batch."""

from __future__ import annotations

import sys
import time
from collections import Counter

import click
from flask.cli import with_appcontext

from ..endpoint import Endpoint
from ..inbox.due import is_paused
from ..operations.progress import ENDED
from ..operations.progress import OPEN
from ..operations.progress import Progress
from ..operations.progress import progress
from ..operations.progress import UNCHANGED
from ._options import as_json as as_json_option
from ._options import command
from ._options import endpoints_named
from ._options import group_path
from ._options import one_endpoint
from ._output import print_json

#: Seconds between two looks.
EVERY = 1.0
#: Exit codes.
UNFINISHED, FAILED = 1, 2


@command("progress")
@click.argument("batch")
@click.option(
    "--watch/--no-watch",
    default=None,
    help="Wait for the end, with a bar. Default: in a terminal.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="Watch for so long at most.",
)
@one_endpoint
@as_json_option
@with_appcontext
def show_progress(
    batch: str,
    watch: bool | None,
    timeout: float | None,
    endpoint: str | None,
    as_json: bool,
) -> None:
    """Show what has become of the jobs of a replay or discard.

    BATCH is the id that the command has printed. Exit code: 0 when all are accounted
    for, 2 when all are and some are dead or unmatched again, 1 while some are to come.
    """
    mounted = endpoints_named(endpoint)
    found = _look(mounted, batch)
    if watch if watch is not None else sys.stdout.isatty() and not as_json:
        until = None if timeout is None else time.monotonic() + timeout
        found = _watch(mounted, batch, found, until)
    if as_json:
        print_json(_as_json(batch, found))
    else:
        _print(batch, found)
        _print_pauses(mounted, found)
    if any(each.open for each in found.values()):
        raise SystemExit(UNFINISHED)
    if any(each.bad for each in found.values()):
        raise SystemExit(FAILED)


def _look(mounted: list[Endpoint], batch: str) -> dict[str, Progress]:
    """The progress on each endpoint that the batch belongs to."""
    found = {each.name: progress(each.store, batch) for each in mounted}
    shown = {name: each for name, each in found.items() if each is not None}
    if not shown:
        raise click.ClickException(f"There is no batch {batch!r} in the journal.")
    return shown


def _watch(
    mounted: list[Endpoint],
    batch: str,
    found: dict[str, Progress],
    until: float | None,
) -> dict[str, Progress]:
    """Look until all are accounted for, or the time is over."""
    total = sum(each.total for each in found.values())
    with click.progressbar(length=total, label=f"Batch {batch}") as bar:
        while True:
            ended = sum(each.total - each.open for each in found.values())
            bar.update(ended - bar.pos)
            left = EVERY if until is None else min(EVERY, until - time.monotonic())
            if not any(each.open for each in found.values()) or left <= 0:
                return found
            time.sleep(left)
            found = _look(mounted, batch)


def _print(batch: str, found: dict[str, Progress]) -> None:
    counts: Counter[str] = Counter()
    for name, each in found.items():
        if len(found) > 1:
            click.echo(f"{name}: {_counted(each.counts)}")
        counts += each.counts
    total, still = sum(counts.values()), sum(counts[name] for name in OPEN)
    if still:
        click.echo(f"{still} of {total} to come: {_counted(counts)}")
    else:
        click.echo(f"all {total} accounted for: {_counted(counts)}")
    for name, each in found.items():
        operation = each.batch
        if operation.actual is None and each.counts[UNCHANGED]:
            click.echo(
                f"{name}: the {operation.action} goes on, or was interrupted; go on"
                f" with {group_path()} {operation.action} --batch {batch}"
            )


def _print_pauses(mounted: list[Endpoint], found: dict[str, Progress]) -> None:
    for each in mounted:
        if each.name in found and found[each.name].open and is_paused(each.store):
            click.echo(f"{each.name} is paused: no event runs until resume")


def _counted(counts: Counter[str]) -> str:
    shown = [f"{counts[name]} {name}" for name in (*OPEN, *ENDED) if counts[name]]
    return ", ".join(shown) or "nothing"


def _as_json(batch: str, found: dict[str, Progress]) -> dict[str, object]:
    return {
        "batch": batch,
        "endpoints": {
            name: {
                **each.batch._asdict(),
                "total": each.total,
                "to_come": each.open,
                "failed": each.bad,
                "counts": dict(each.counts),
            }
            for name, each in found.items()
        },
    }
