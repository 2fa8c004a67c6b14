"""Newer: unfinished newer events of a key, and the jobs that wait for them."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import and_
from sqlalchemy import ColumnElement
from sqlalchemy import Connection
from sqlalchemy import or_
from sqlalchemy import select
from sqlalchemy import update

from ..event import Event
from ..storage.store import Store
from ..storage.tables import lock_in_order
from ..subscribers import ANY
from .keys import HeldKey
from .keys import is_free
from .keys import key_state
from .record import TEXTS
from .status import JobState
from .status import Status
from .status import Wait

#: Rows that one transaction wakes, and newer events that are looked at.
BATCH, MOST_NEWER = 500, 1000
_WAITS = (Wait.NEWER.value, Wait.KEY.value)
_UNFINISHED = (Status.PENDING.value, Status.RUNNING.value)


@dataclass(frozen=True)
class Newer:
    """Whether newer events of a key are unfinished."""

    exists: bool = False
    #: Whether one of them will be run as soon as a worker is free.
    is_ready: bool = False


NONE_NEWER = Newer()


def newer_events(store: Store, key: HeldKey, event: Event) -> Newer:
    """Look for unfinished newer events of the key."""
    if key.subscriber.key == "resource":
        resource_id = store.text(event.resource_id, TEXTS["resource_id"])
        if resource_id == event.resource_id:
            return _newer_of_resource(store, key, event)
    # Other keys are stored when their jobs are put off.
    c, j = store.columns, store.database.tables.job.c
    query = select(j.event).where(
        j.endpoint == store.endpoint,
        j.key == key.value,
        j.subscriber == key.subscriber.name,
        c.id == j.event,
        _newer_than(c, key),
    )
    return Newer(bool(store.rows(query.limit(1))))


def is_over(store: Store, key: HeldKey, event: Event) -> bool:
    """Whether a job of the key need not wait any more."""
    if key.subscriber.latest_only and not key_state(store, key).supersedes(key):
        if newer_events(store, key, event).exists:
            return False
    return not key.subscriber.one_at_a_time or is_free(store, key)


def wake(store: Store, key: HeldKey) -> list[int]:
    """Make jobs due that wait for the end of this one; return the rows of their events.

    With ``latest_only`` all of them, because a newer event supersedes them or its end
    lets one run; else the oldest.
    """
    woken: list[int] = []
    while rows := _wake(store, key):
        woken += rows
        if not key.subscriber.latest_only or len(rows) < BATCH:
            break
    return woken


def _wake(store: Store, key: HeldKey) -> list[int]:
    j, now = store.database.tables.job.c, store.db_now()
    waiting = (
        j.endpoint == store.endpoint,
        j.key == key.value,
        j.subscriber == key.subscriber.name,
        j.waits_for.in_(_WAITS),
        j.due_at > now,
    )
    limit = BATCH if key.subscriber.latest_only else 1
    # Whose event runs now makes itself due when that run ends.
    c = store.columns
    is_free = and_(c.id == j.event, c.status == Status.PENDING.value)
    query = select(j.event).where(*waiting, is_free).order_by(j.event).limit(limit)
    rows = [row.event for row in store.rows(query)]

    def work(connection: Connection) -> list[int]:
        mine = c.id.in_(rows), c.status == Status.PENDING.value
        free = [row.id for row in lock_in_order(connection, c.id.table, *mine)]
        events = update(c.id.table).where(c.id.in_(free)).values(due_at=now)
        connection.execute(events)
        jobs = update(j.event.table).where(j.event.in_(free), *waiting)
        connection.execute(jobs.values(due_at=now))
        return free

    return store.run(work, begin=True) if rows else []


def _newer_of_resource(store: Store, key: HeldKey, event: Event) -> Newer:
    c, j = store.columns, store.database.tables.job.c
    query = select(c.id, c.resource_type, c.reason, c.status, c.due_at).where(
        c.endpoint == store.endpoint,
        c.resource_id == event.resource_id,
        c.status.in_(_UNFINISHED),
        _newer_than(c, key),
    )
    # As they are stored: cut, and escaped where the database has to.
    wanted = store.text(event.resource_type, TEXTS["resource_type"]) or ""
    reason = store.text(key.subscriber.pattern[1], TEXTS["reason"]) or ANY
    found = {
        row.id: row
        for row in store.rows(query.order_by(c.id.desc()).limit(MOST_NEWER))
        if _is_same(row, wanted.casefold(), reason)
    }
    if not found:
        return NONE_NEWER
    states = select(j.event, j.state).where(
        j.event.in_(list(found)), j.subscriber == key.subscriber.name
    )
    for row in store.rows(states):
        # One with a row has been looked at; the other ones are new.
        if row.state != JobState.PENDING.value:
            del found[row.event]
        else:
            found[row.event] = None
    return Newer(bool(found), any(_is_ready(found.values(), store.db_now())))


def _is_same(row: Any, resource_type: str, reason: str) -> bool:
    """Whether the row is an event of the resource that the subscriber wants."""
    found = (row.resource_type or "").casefold()
    return found == resource_type and reason in (ANY, (row.reason or "").casefold())


def _is_ready(rows: Iterable[Any], now: datetime) -> Iterator[bool]:
    for row in rows:
        is_pending = row is not None and row.status == Status.PENDING.value
        yield is_pending and row.due_at <= now


def _newer_than(c: Any, key: HeldKey) -> ColumnElement[bool]:
    """The condition for events that are newer; some cannot be compared."""
    when = key.event_at
    later = and_(c.event_at == when, c.id > key.row_id)
    return later if when is None else or_(c.event_at > when, later)
