"""``reconcile``: what Procore has discarded, and hooks that have fallen silent."""

from __future__ import annotations

from datetime import date
from datetime import timedelta

import click
from flask.cli import with_appcontext

from ..operations.numbers import Silence
from ..operations.numbers import silence_of
from ._changes import dry_run as dry_run_option
from ._options import as_json as as_json_option
from ._options import command
from ._options import endpoints_named
from ._options import needs_extra
from ._options import one_endpoint
from ._output import print_json
from ._values import day
from ._values import duration
from ._values import UNITS
from ._values import with_unit


@command()
@click.option(
    "--since",
    type=day,
    metavar="DAY",
    help="From this day on: 2026-11-20, or -3d for that of three days ago. By default"
    " two days before the last run.",
)
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="Also insert events that were delivered, after the restore of an older copy.",
)
@click.option(
    "--silent-for",
    type=duration,
    metavar="TIME",
    help="Ask Procore nothing: exit with 2 if no event came for so long (6h) at a time"
    " at which some usually come.",
)
@dry_run_option
@one_endpoint
@as_json_option
@with_appcontext
def reconcile(
    since: date | timedelta | None,
    everything: bool,
    silent_for: float | None,
    dry_run: bool,
    endpoint: str | None,
    as_json: bool,
) -> None:
    """Insert the events that Procore has discarded and the inbox lacks.

    Procore lists the deliveries of the last 28 days. The exit code is 0 if nothing was
    missing, 2 if something was, and 1 if Procore could not be asked or has no such
    hook. It asks no question, can be repeated, and leaves a fifth of the rate limit to
    the app.
    """
    if silent_for is not None:
        if since is not None or everything or dry_run:
            raise click.UsageError("--silent-for takes no --since, --all or --dry-run.")
        _show_silence(endpoint, silent_for, as_json)
        return
    with needs_extra():
        from ._reconcile import run
    run(endpoint, since, everything, dry_run, as_json)


def _show_silence(endpoint: str | None, seconds: float, as_json: bool) -> None:
    if seconds > UNITS["w"]:
        raise click.UsageError(
            "--silent-for is at most 7d: it is compared with the weeks before."
        )
    found = {
        each.name: silence_of(each.store, seconds) for each in endpoints_named(endpoint)
    }
    if as_json:
        print_json({name: silence._asdict() for name, silence in found.items()})
    else:
        for name, silence in found.items():
            click.echo(f"{name}: {_described(silence)}")
    if any(silence.is_alarm for silence in found.values()):
        raise SystemExit(2)


def _described(silence: Silence) -> str:
    before = ", ".join(map(str, silence.weeks_before)) or "not known"
    word = "SILENT: " if silence.is_alarm else ""
    return (
        f"{word}{silence.deliveries} deliveries in the last"
        f" {with_unit(silence.seconds)}; in the same hours of the weeks before:"
        f" {before}"
    )
