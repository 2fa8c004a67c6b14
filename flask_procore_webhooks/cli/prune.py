"""``prune``: remove old bodies and events."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from datetime import timedelta
from datetime import timezone

import click
from flask.cli import with_appcontext

from ..config.api import LISTED_DAYS
from ..config.reader import HALF_DAY
from ..endpoint import Endpoint
from ..operations.filters import EVERY_EVENT
from ..operations.filters import Filter
from ..operations.journal import new_batch
from ..operations.journal import note
from ..operations.journal import PRUNE
from ..operations.journal import set_actual
from ..operations.prune import count_bodies
from ..operations.prune import count_rows
from ..operations.prune import IDS_KEPT
from ..operations.prune import Old
from ..operations.prune import prune_bodies
from ..operations.prune import prune_history
from ..operations.prune import prune_rows
from ..operations.prune import prune_seen
from ..operations.selection import Operation
from ..storage.store import Store
from ._actor import actor
from ._changes import confirm
from ._changes import dry_run as dry_run_option
from ._changes import yes as yes_option
from ._options import as_json as as_json_option
from ._options import command
from ._options import endpoints_named
from ._options import one_endpoint
from ._output import print_json
from ._output import Progress
from ._values import duration

#: Seconds: reconcile would insert an event again that is removed while it is listed.
LISTED = LISTED_DAYS * 24 * 3600.0


@dataclass(frozen=True)
class Request:
    """The options of the command."""

    dead: bool
    wanted: Filter
    #: Seconds; ``None`` for the setting ``RETENTION``.
    retention: float | None
    dry_run: bool
    yes: bool
    as_json: bool

    @property
    def is_partial(self) -> bool:
        """Whether only bodies of a type or a subscriber are removed."""
        return self.wanted != EVERY_EVENT


@command()
@click.option("--dead", is_flag=True, help="Also dead events; they are kept otherwise.")
@click.option("--type", metavar="TEXT", help="Only bodies of this type.")
@click.option("--resource-type", metavar="TEXT", help="As in RFIs.")
@click.option(
    "--subscriber", metavar="TEXT", help="Only bodies that no other subscriber needs."
)
@click.option(
    "--retention",
    type=duration,
    metavar="TIME",
    help="Of that type or subscriber, at most RETENTION: 43200, 12h or 3d.",
)
@dry_run_option
@yes_option
@one_endpoint
@as_json_option
@with_appcontext
def prune(
    dead: bool,
    type: str | None,
    resource_type: str | None,
    subscriber: str | None,
    retention: float | None,
    dry_run: bool,
    yes: bool,
    endpoint: str | None,
    as_json: bool,
) -> None:
    """Remove events that finished longer than RETENTION ago.

    Bodies first; ids and jobs are kept four times as long, so that a late copy of an
    event is still a repeat. It works in small batches and is safe to stop and to
    repeat.

    With --type, --resource-type or --subscriber, only bodies are removed, and
    --retention may be shorter than RETENTION.
    """
    wanted = Filter(type=type, resource_type=resource_type, subscriber=subscriber)
    request = Request(dead, wanted, retention, dry_run, yes, as_json)
    prunes = [_Prune(each, request) for each in endpoints_named(endpoint)]
    expected = {each.name: each.expected() for each in prunes}
    total = sum(sum(numbers.values()) for numbers in expected.values())
    batch = None
    if dry_run:
        counts = expected
    else:
        if total > 1 and not yes:
            question = f"Remove {_described(_sums(expected))}?"
            confirm(question, as_json=as_json)
        batch = new_batch() if total else None
        counts = {p.name: p.perform(batch, expected[p.name]) for p in prunes}
    if as_json:
        print_json({"batch": batch, "dry_run": dry_run, "endpoints": counts})
        return
    verb = "would remove" if dry_run else "removed"
    for name, numbers in counts.items():
        click.echo(f"{name}: {verb} {_described(numbers)}")


class _Prune:
    """The prune of one endpoint."""

    def __init__(self, endpoint: Endpoint, request: Request) -> None:
        self.name = endpoint.name
        self._request = request
        self._store, retention = endpoint.store, endpoint.settings.retention
        own = request.retention
        if own is not None:
            _check(own, retention, request)
        self._seconds = retention if own is None else own
        self._bodies = self._old(self._seconds)
        kept = IDS_KEPT * retention
        if endpoint.settings.api.is_configured:
            kept = max(kept, LISTED)
        self._rows = self._old(kept)

    def _old(self, seconds: float) -> Old:
        before = _ago(self._store, seconds)
        return Old(before, self._request.dead, self._request.wanted)

    def expected(self) -> dict[str, int]:
        """How many bodies and events there are to remove."""
        bodies = count_bodies(self._store, self._bodies)
        is_partial = self._request.is_partial
        return {
            "bodies": bodies,
            "events": 0 if is_partial else count_rows(self._store, self._rows),
        }

    def perform(self, batch: str | None, expected: dict[str, int]) -> dict[str, int]:
        store, number = self._store, sum(expected.values())
        if batch is not None and number:
            options = Operation(PRUNE, self._request.wanted).to_json()
            options |= {"retention": self._seconds, "dead": self._request.dead}
            note(store, PRUNE, actor(), batch=batch, filter=options, expected=number)
        bodies = Progress(f"{self.name}, bodies removed")
        for count in prune_bodies(store, self._bodies):
            bodies.add(count)
        events = Progress(f"{self.name}, events removed")
        if not self._request.is_partial:
            for count in prune_rows(store, self._rows):
                events.add(count)
            prune_history(store, self._rows.before)
            prune_seen(store)
        if batch is not None:
            set_actual(store, batch, bodies.count + events.count)
        return {"bodies": bodies.count, "events": events.count}


def _check(own: float, retention: float, request: Request) -> None:
    if not request.is_partial:
        raise click.UsageError(
            "--retention is of a --type, a --resource-type or a --subscriber; that of"
            " all events is the setting RETENTION."
        )
    if not HALF_DAY <= own <= retention:
        raise click.UsageError(
            f"--retention is {own:g} s: it is between {HALF_DAY:g} s, for which"
            f" the sender repeats a delivery, and RETENTION ({retention:g} s)."
        )


def _sums(counts: dict[str, dict[str, int]]) -> dict[str, int]:
    return {
        name: sum(numbers[name] for numbers in counts.values())
        for name in ("bodies", "events")
    }


def _described(numbers: dict[str, int]) -> str:
    return f"{numbers['bodies']} bodies and {numbers['events']} events"


def _ago(store: Store, seconds: float) -> datetime:
    try:
        return store.now() - timedelta(seconds=seconds)
    except OverflowError:  # before the first year of the calendar
        return datetime.min.replace(tzinfo=timezone.utc)
