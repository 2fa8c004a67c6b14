"""Queries for operators: list, find, count. They change nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from collections.abc import Mapping
from datetime import datetime
from datetime import timedelta
from typing import Any

from sqlalchemy import case
from sqlalchemy import ColumnElement
from sqlalchemy import func
from sqlalchemy import or_
from sqlalchemy import select

from ..senders.payload import event_key
from ..senders.payload import PLAIN_ID
from ..storage.store import Store
from .filters import EVERY_EVENT
from .filters import Filter
from .jobs import is_finished
from .status import Status


def newest(
    store: Store, wanted: Filter = EVERY_EVENT, *, limit: int = 20
) -> list[Mapping[str, Any]]:
    """The newest events first, without their bodies."""
    c = store.columns
    columns = [column for column in c if column.name not in ("body", "lease")]
    query = select(*columns).where(wanted.where(store)).order_by(c.id.desc())
    return [row._mapping for row in store.rows(query.limit(limit))]


def last_delivery(store: Store) -> datetime | None:
    """When the newest delivered event was recorded, UTC without a zone."""
    c = store.columns
    mine = c.endpoint == store.endpoint, c.origin == "delivery"
    query = select(c.received_at).where(*mine).order_by(c.id.desc()).limit(1)
    return next((row.received_at for row in store.rows(query)), None)


def pages(store: Store, wanted: Filter, size: int) -> Iterator[list[int]]:
    """Row ids of the selected events, oldest first, ``size`` at a time.

    Events that are received meanwhile are left out.
    """
    c = store.columns
    ((end,),) = store.rows(select(func.max(c.id)))
    last = 0
    while end is not None:
        rest = select(c.id).where(wanted.where(store), c.id > last, c.id <= end)
        rows = [row.id for row in store.rows(rest.order_by(c.id).limit(size))]
        if not rows:
            return
        yield rows
        last = rows[-1]


def find(store: Store, event_id: str) -> Mapping[str, Any] | None:
    """The whole row of an event, by its id or by its row id."""
    c = store.columns
    # The id as the sender wrote it, or as it is stored.
    stored = {event_key(event_id, "", b"")}
    if PLAIN_ID.fullmatch(event_id):
        stored.add(event_id)
    named: list[ColumnElement[bool]] = [c.event_id.in_(stored)]
    if event_id.isascii() and event_id.isdigit() and len(event_id) < 19:
        named.append(c.id == int(event_id))
    query = select(*c).where(c.endpoint == store.endpoint, or_(*named))
    rows = store.rows(query.order_by(c.event_id.not_in(stored)))
    return dict(rows[0]._mapping) if rows else None


def receipts_of(store: Store, row_id: int) -> list[Mapping[str, Any]]:
    """``subscriber``, ``ending`` and ``finished_at``, in the order of finishing.

    Of the subscribers that have finished; see :attr:`ReceiptKind.ABANDONED`.
    """
    r = store.database.tables.receipt.c
    query = select(r.subscriber, r.ending, r.finished_at).where(
        r.event == row_id, is_finished(store)
    )
    return [row._mapping for row in store.rows(query.order_by(r.finished_at))]


def counts(store: Store) -> dict[tuple[str, str], int]:
    """How many events there are for each status and type."""
    c = store.columns
    query = select(c.status, c.type, func.count().label("events"))
    query = query.where(c.endpoint == store.endpoint).group_by(c.status, c.type)
    return {(row.status, row.type): row.events for row in store.rows(query)}


def totals(store: Store) -> Mapping[str, Any]:
    """``repeats``, ``conflicts``, ``attempts``, and ``oldest_due`` as a time.

    ``oldest_due`` is of the events that are due now; a wait for the next attempt does
    not count.
    """
    c = store.columns
    due = case((c.due_at <= store.db_now(), c.due_at), else_=None)
    query = select(
        func.coalesce(func.sum(c.repeats), 0).label("repeats"),
        func.coalesce(func.sum(c.conflicts), 0).label("conflicts"),
        func.coalesce(func.sum(c.attempts), 0).label("attempts"),
        func.min(due).label("oldest_due"),
    ).where(c.endpoint == store.endpoint)
    return dict(store.rows(query)[0]._mapping)


def seconds_due(store: Store) -> float | None:
    """For how many seconds the oldest due event has been due; ``None`` without one."""
    c, now = store.columns, store.db_now()
    query = select(c.due_at).where(c.endpoint == store.endpoint, c.due_at <= now)
    found = store.rows(query.order_by(c.due_at).limit(1))
    return (now - found[0].due_at).total_seconds() if found else None


def abandoned(store: Store, seconds: float) -> int:
    """How many running events have a lease that ended so many seconds ago."""
    c = store.columns
    query = select(func.count()).where(
        c.endpoint == store.endpoint,
        c.status == Status.RUNNING.value,
        c.due_at <= store.db_now() - timedelta(seconds=seconds),
    )
    return int(store.rows(query)[0][0])


def recorded_types(store: Store, rows: int) -> Counter[tuple[str, str, str]]:
    """Type, resource type and reason of the newest events, with their numbers.

    :param rows: of all endpoints of the inbox that are read at most.
    """
    c = store.columns
    columns = (c.endpoint, c.type, c.resource_type, c.reason)
    newest = select(*columns).order_by(c.id.desc()).limit(rows).subquery().c
    names = (newest.type, newest.resource_type, newest.reason)
    query = select(*names, func.count().label("events"))
    query = query.where(newest.endpoint == store.endpoint, newest.type != "")
    found = store.rows(query.group_by(*names))
    return Counter(
        {(r.type, r.resource_type or "", r.reason or ""): r.events for r in found}
    )
