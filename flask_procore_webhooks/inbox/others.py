"""Others: other unfinished events of a key, and the jobs that wait for them."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import and_
from sqlalchemy import ColumnElement
from sqlalchemy import Connection
from sqlalchemy import select
from sqlalchemy import update

from ..event import Event
from ..schema.tables import lock_in_order
from ..storage.store import Store
from ..subscribers import ANY
from .keys import HeldKey
from .keys import is_free
from .keys import is_newer
from .keys import key_state
from .record import TEXTS
from .status import JobState
from .status import Status
from .status import Wait

#: Rows that one transaction wakes, and the newest other events that are looked at.
BATCH, MOST_OTHERS = 500, 100
_WAITS = (Wait.NEWER.value, Wait.KEY.value)
#: Waits of a job that can run at once instead of an older one.
_READY = (Wait.NOTHING.value, Wait.SETTLE.value, Wait.NEWER.value)
_UNFINISHED = (Status.PENDING.value, Status.RUNNING.value)


@dataclass(frozen=True)
class Others:
    """The other unfinished events of a key."""

    #: Whether one of them is newer.
    has_newer: bool = False
    #: The newest event that can run at once instead, if it is newer.
    ready: int | None = None
    #: When the last of them was received, as it is stored.
    last_at: datetime | None = None


NO_OTHERS = Others()


def other_events(store: Store, key: HeldKey, event: Event) -> Others:
    """Look for other unfinished events of the key."""
    if isinstance(key.subscriber.key, str):
        name = f"{key.subscriber.key}_id"
        value = getattr(event, name)
        if store.text(value, TEXTS[name]) == value:
            return _others_by_column(store, key, event, name)
    # Other keys are stored when their jobs are put off.
    c, j = store.columns, store.database.tables.job.c
    query = select(
        c.id, c.event_at, c.received_at, c.status, j.state, j.waits_for
    ).where(
        j.endpoint == store.endpoint,
        j.key == key.value,
        j.subscriber == key.subscriber.name,
        c.id == j.event,
        c.id != key.row_id,
    )
    found = store.rows(query.order_by(c.id.desc()).limit(MOST_OTHERS))
    return _others(key, found, {row.id: row for row in found})


def is_over(store: Store, key: HeldKey, event: Event) -> bool:
    """Whether a job of the key need not wait any more."""
    if key.subscriber.latest_only and not key_state(store, key).supersedes(key):
        if other_events(store, key, event).has_newer:
            return False
    return not key.is_exclusive or is_free(store, key)


def wake(store: Store, key: HeldKey) -> list[int]:
    """Make jobs due that wait for the end of this one; return the rows of their events.

    With ``latest_only`` all of them, because a newer event supersedes them or its end
    lets one run; else the oldest.
    """
    j, c = store.database.tables.job.c, store.columns
    # An event that runs now makes itself due when that run ends.
    is_pending = and_(c.id == j.event, c.status == Status.PENDING.value)
    limit = BATCH if key.subscriber.latest_only else 1
    woken: list[int] = []
    while True:
        waiting = _waiting(store, key)
        query = select(j.event).where(*waiting, is_pending).order_by(j.event)
        rows = [row.event for row in store.rows(query.limit(limit))]
        woken += _make_due(store, key, rows)
        if len(rows) < BATCH:
            return woken


def wake_event(store: Store, key: HeldKey, row_id: int) -> list[int]:
    """Make the job of one waiting event due, and the event the next to be claimed.

    :return: its row if it was not running.
    """
    waits = (*_WAITS, Wait.SETTLE.value)
    # Before events that were put off: the oldest due time is claimed first.
    return _make_due(store, key, [row_id], waits, due_at=store.columns.received_at)


def _make_due(
    store: Store,
    key: HeldKey,
    rows: list[int],
    waits: Sequence[str] = _WAITS,
    due_at: Any = None,
) -> list[int]:
    c, j, now = store.columns, store.database.tables.job.c, store.db_now()
    waiting = _waiting(store, key, waits)

    def work(connection: Connection) -> list[int]:
        mine = c.id.in_(rows), c.status == Status.PENDING.value
        free = [row.id for row in lock_in_order(connection, c.id.table, *mine)]
        # Changed if it is due already, too: a claim that has read the jobs before
        # compares it and fails.
        events = update(c.id.table).where(c.id.in_(free))
        connection.execute(events.values(due_at=now if due_at is None else due_at))
        jobs = update(j.event.table).where(j.event.in_(free), *waiting)
        connection.execute(jobs.values(due_at=now))
        return free

    return store.run(work, begin=True) if rows else []


def _waiting(
    store: Store, key: HeldKey, waits: Sequence[str] = _WAITS
) -> tuple[ColumnElement[bool], ...]:
    """The condition for jobs of the key that wait for others."""
    j = store.database.tables.job.c
    return (
        j.endpoint == store.endpoint,
        j.key == key.value,
        j.subscriber == key.subscriber.name,
        j.waits_for.in_(waits),
        j.due_at > store.db_now(),
    )


def _others_by_column(store: Store, key: HeldKey, event: Event, name: str) -> Others:
    c, j = store.columns, store.database.tables.job.c
    columns = (c.event_at, c.received_at, c.resource_type, c.reason, c.status)
    query = select(c.id, *columns).where(
        c.endpoint == store.endpoint,
        c[name] == getattr(event, name),
        c.status.in_(_UNFINISHED),
        # For the index of live rows.
        c.due_at.is_not(None),
        c.id != key.row_id,
    )
    is_same = _same_key(store, key, event)
    # By an expression: ordered by the key itself, PostgreSQL may read the whole table.
    query = query.order_by((c.id + 0).desc()).limit(MOST_OTHERS)
    found = {row.id: row for row in store.rows(query) if is_same(row)}
    if not found:
        return NO_OTHERS
    jobs = select(j.event, j.state, j.waits_for).where(
        j.event.in_(list(found)), j.subscriber == key.subscriber.name
    )
    return _others(key, found.values(), {row.event: row for row in store.rows(jobs)})


def _others(key: HeldKey, found: Iterable[Any], jobs: Mapping[int, Any]) -> Others:
    """What ``found`` events say.

    :param jobs: those with a row, by event; the others have not been looked at yet.
    """
    pending = [
        row
        for row in found
        if row.id not in jobs or jobs[row.id].state == JobState.PENDING.value
    ]
    newer = [row for row in pending if is_newer(row.event_at, row.id, key)]
    ready = [
        (row.event_at, row.id)
        for row in newer
        if row.status == Status.PENDING.value
        and (row.id not in jobs or jobs[row.id].waits_for in _READY)
    ]
    last_at = max((row.received_at for row in pending), default=None)
    return Others(bool(newer), max(ready)[1] if ready else None, last_at)


def _same_key(store: Store, key: HeldKey, event: Event) -> Callable[[Any], bool]:
    """Whether a row with the same id is an event of the key, for the subscriber."""
    # As they are stored: cut, and escaped where the database has to.
    pattern, reason = key.subscriber.pattern
    of_resource = key.subscriber.key == "resource"
    wanted = event.resource_type if of_resource else pattern
    wanted = (store.text(wanted, TEXTS["resource_type"]) or "").casefold()
    reason = store.text(reason, TEXTS["reason"]) or ANY
    any_type = not of_resource and pattern == ANY

    def is_same(row: Any) -> bool:
        is_type = any_type or (row.resource_type or "").casefold() == wanted
        return is_type and reason in (ANY, (row.reason or "").casefold())

    return is_same
