"""What a replay or a discard selects by its arguments and options."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import replace
from typing import Any

import click

from ..endpoint import Endpoint
from ..inbox.filters import EVERY_EVENT
from ..inbox.filters import Filter
from ..inbox.queries import find
from ..operations.changes import preview
from ..operations.changes import Summary
from ..operations.journal import batch_of
from ..operations.selection import Operation
from ..operations.selection import operation_of
from ._options import endpoints_named


@dataclass(frozen=True)
class Request:
    """The arguments and options of the command."""

    event_ids: tuple[str, ...]
    wanted: Filter
    every: bool
    batch: str | None
    endpoint: str | None
    dry_run: bool
    yes: bool
    as_json: bool
    anew: bool = False
    rate: float | None = None


@dataclass
class Change:
    """An operation on one endpoint."""

    endpoint: Endpoint
    operation: Operation
    summary: Summary


def chosen(action: str, request: Request) -> list[Change]:
    mounted = endpoints_named(request.endpoint)
    return [
        Change(each, operation, preview(each.store, operation, request.batch))
        for each, operation in list(_operations(action, mounted, request))
    ]


def _operations(
    action: str, mounted: list[Endpoint], request: Request
) -> Iterator[tuple[Endpoint, Operation]]:
    named, given = request.event_ids, request.wanted != EVERY_EVENT
    if request.batch is not None:
        if named or given or request.every:
            raise click.UsageError("--batch selects what the batch had selected.")
        yield from _resumed(action, mounted, request.batch)
        return
    if not (named or given or request.every):
        raise click.UsageError("Name events, give a filter, or give --all.")
    rest = replace(request.wanted, subscriber=None, error=None, died_since=None)
    # Filters of jobs also narrow named events.
    if named and (request.every or rest != EVERY_EVENT):
        raise click.UsageError("Name events or give a filter, not both.")
    rows = _named(mounted, named) if named else {}
    for each in mounted:
        if named and each.name not in rows:
            continue
        yield (
            each,
            Operation(
                action,
                request.wanted,
                tuple(rows[each.name]) if named else None,
                request.anew,
                request.rate,
                adds(each, request.wanted.subscriber),
            ),
        )


def adds(endpoint: Endpoint, subscriber: str | None) -> Callable[[Any], bool]:
    """Whether the subscriber matches the row of an event."""

    def matches(row: Any) -> bool:
        return any(s.name == subscriber for s in endpoint.subscribers_for(row))

    return matches


def _resumed(
    action: str, mounted: list[Endpoint], batch: str
) -> Iterator[tuple[Endpoint, Operation]]:
    found = [(each, batch_of(each.store, batch)) for each in mounted]
    if not any(each for _, each in found):
        raise click.ClickException(f"There is no batch {batch!r} in the journal.")
    for endpoint, each in found:
        if each is None:
            continue
        if each.action != action:
            raise click.UsageError(f"Batch {batch} is a {each.action}.")
        try:
            operation = operation_of(action, each.filter)
        except ValueError as error:
            raise click.ClickException(f"Name the events again: {error}.") from None
        subscriber = operation.wanted.subscriber
        yield endpoint, replace(operation, adds=adds(endpoint, subscriber))


def _named(mounted: list[Endpoint], event_ids: tuple[str, ...]) -> dict[str, list[int]]:
    """The row ids of the named events, by endpoint."""
    found = {each: _rows_of(mounted, each) for each in event_ids}
    if missing := [event_id for event_id, places in found.items() if not places]:
        names = ", ".join(sorted(missing))
        raise click.ClickException(f"There is no such event in the inbox: {names}.")
    rows: dict[str, list[int]] = {}
    for endpoint, row in (place for places in found.values() for place in places):
        rows.setdefault(endpoint.name, []).append(row)
    return rows


def _rows_of(mounted: list[Endpoint], event_id: str) -> list[tuple[Endpoint, int]]:
    """The rows with that event id; if there is no such event, the row with that id."""
    found = [(each, row) for each in mounted if (row := find(each.store, event_id))]
    by_row_id = [(each, row) for each, row in found if str(row["id"]) == event_id]
    by_event_id = [pair for pair in found if pair not in by_row_id]
    return [(each, row["id"]) for each, row in by_event_id or by_row_id]
