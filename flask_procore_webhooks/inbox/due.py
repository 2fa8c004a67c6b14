"""Due: which events may be claimed, and when; pauses included."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence
from datetime import datetime
from datetime import timedelta
from typing import Any

from sqlalchemy import literal
from sqlalchemy import Select
from sqlalchemy import select
from sqlalchemy import union_all

from .claims import claimable
from .status import Status
from .store import Store

#: Endpoints in one look for work; SQLite takes at most 500 parts of a UNION.
LARGEST_LOOK = 250

#: Actions in the journal; the last of them is in force.
PAUSE, RESUME = "pause", "resume"


def status_of(store: Store, row_id: int) -> Status | None:
    found = store.rows(select(store.columns.status).where(store.columns.id == row_id))
    return Status(found[0].status) if found else None


def due_events(
    stores: Collection[Store],
    limit: int = 100,
    *,
    ignore_backoff: bool = False,
    since: float = 0.0,
) -> list[tuple[str, int]]:
    """Endpoints and row ids of the events that may be claimed now, longest due first.

    :param stores: of endpoints that share a database.
    :param since: only events that have been due for so many seconds.
    """
    store = next(iter(stores))
    c, now = store.columns, store.db_now()
    names = [each.endpoint for each in stores]
    look = select(c.endpoint, c.id).where(
        c.endpoint.in_(names), claimable(store, now, ignore_backoff)
    )
    if since:
        look = look.where(c.due_at <= now - timedelta(seconds=since))
    found = store.rows(look.order_by(c.due_at).limit(limit))
    return [(row.endpoint, row.id) for row in found]


def seconds_to(store: Store, row_id: int) -> float | None:
    """Seconds until the event may be claimed, ``None`` if it is finished."""
    c = store.columns
    found = store.rows(select(c.due_at).where(c.id == row_id))
    return seconds_until(store, found[0].due_at) if found else None


def seconds_until(store: Store, due_at: datetime | None) -> float | None:
    """Seconds until a stored time, at least 0.0."""
    if due_at is None:
        return None
    return max(0.0, (due_at - store.db_now()).total_seconds())


def is_paused(store: Store) -> bool:
    """Whether the endpoint is paused."""
    return [row.action for row in store.rows(_last_action(store))] == [PAUSE]


def seconds_to_work(stores: Sequence[Store]) -> dict[str, float | None]:
    """Return the seconds until an event may run, 0.0 for now, for each endpoint.

    ``None``: the endpoint has no unfinished event, or is paused. One statement for all
    endpoints, because an idle worker asks it at every poll.

    :param stores: of endpoints that share a database.
    """
    looks = [
        select(
            literal(store.endpoint).label("endpoint"),
            _first_due(store).scalar_subquery().label("due_at"),
            _last_action(store).scalar_subquery().label("action"),
        )
        for store in stores
    ]
    found: list[Any] = []
    for start in range(0, len(looks), LARGEST_LOOK):
        part = looks[start : start + LARGEST_LOOK]
        found += stores[0].rows(union_all(*part) if len(part) > 1 else part[0])
    by_name = {row.endpoint: row for row in found}
    waits: dict[str, float | None] = {}
    for store in stores:
        row = by_name[store.endpoint]
        is_waiting = row.action != PAUSE
        waits[store.endpoint] = seconds_until(store, row.due_at) if is_waiting else None
    return waits


def _first_due(store: Store) -> Select[tuple[datetime]]:
    c = store.columns
    mine = select(c.due_at).where(c.endpoint == store.endpoint, c.due_at.is_not(None))
    return mine.order_by(c.due_at).limit(1)


def _last_action(store: Store) -> Select[tuple[str]]:
    j = store.database.tables.journal.c
    return (
        select(j.action)
        .where(j.endpoint == store.endpoint, j.action.in_((PAUSE, RESUME)))
        .order_by(j.id.desc())
        .limit(1)
    )
