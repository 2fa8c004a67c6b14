"""Prune: remove bodies and events that finished long ago, and what belongs to them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import and_
from sqlalchemy import ColumnElement
from sqlalchemy import Connection
from sqlalchemy import Delete
from sqlalchemy import delete
from sqlalchemy import exists
from sqlalchemy import func
from sqlalchemy import or_
from sqlalchemy import select
from sqlalchemy import Update
from sqlalchemy import update

from ..inbox.status import FINISHED
from ..inbox.status import Status
from ..schema.state import WHOLE_INBOX
from ..schema.tables import lock_in_order
from ..storage.store import Store
from ..storage.store import to_db_time
from .filters import EVERY_EVENT
from .filters import Filter
from .seen import put_state
from .seen import SEEN
from .seen import SEEN_KEPT
from .seen import states
from .selection import PART

#: The row of an event is kept this many times as long as its body, so that a late copy
#: is still recognised as a repeat.
IDS_KEPT = 4
#: The name of a value in the state table: the row id up to which no event of the
#: endpoint has a body.
MARK = "prune"
#: Events of a range that are counted at once.
COUNTED = 50_000

Window = tuple[int, int]


@dataclass(frozen=True)
class Old:
    """What is pruned: events that finished before then."""

    #: Aware.
    before: datetime
    #: Also dead ones, which cannot be replayed after that.
    dead: bool = False
    #: Only events of this type or resource type, and events that have jobs of this
    #: subscriber and of no other.
    wanted: Filter = EVERY_EVENT

    def where(self, store: Store) -> ColumnElement[bool]:
        c, j = store.columns, store.database.tables.job.c
        statuses = [s.value for s in FINISHED if self.dead or s is not Status.DEAD]
        conditions = [
            self.wanted.where(store),
            c.status.in_(statuses),
            c.finished_at < to_db_time(self.before),
        ]
        if self.wanted.subscriber is not None:
            others = j.event == c.id, j.subscriber != self.wanted.subscriber
            conditions.append(~exists().where(*others))
        return and_(*conditions)


def count_bodies(store: Store, old: Old) -> int:
    """How many bodies :func:`prune_bodies` would remove."""
    has_body = store.columns.body.is_not(None)
    return _count(store, old, _mark(store), old.where(store), has_body)


def count_rows(store: Store, old: Old) -> int:
    """How many events :func:`prune_rows` would remove."""
    return _count(store, old, 0, old.where(store))


def _count(store: Store, old: Old, last: int, *where: ColumnElement[bool]) -> int:
    """Count the events after the row ``last``, up to those that are too young."""
    c, number = store.columns, 0
    for window in _ranges(store, old.before, last, COUNTED):
        query = select(func.count()).select_from(c.id.table)
        query = query.where(_within(c.id, window), *where)
        number += int(store.rows(query)[0][0])
    return number


def prune_bodies(store: Store, old: Old) -> Iterator[int]:
    """Remove the bodies of old events; yield the counts of transactions.

    Their rows stay: a late copy of such an event is still a repeat.
    """
    c = store.columns
    is_old = and_(old.where(store), c.body.is_not(None))
    mark = former = _mark(store)
    is_complete = True
    for window in _windows(store, old.before, mark):
        where = _within(c.id, window), is_old
        change = update(c.id.table).where(*where).values(body=None)
        yield _execute(store, change, *where)
        mine = _within(c.id, window), c.endpoint == store.endpoint
        has_body = select(c.id).where(*mine, c.body.is_not(None)).limit(1)
        is_complete = is_complete and not store.rows(has_body)
        mark = window[1] if is_complete else mark
    if mark > former:
        put_state(store, MARK, mark)


def _mark(store: Store) -> int:
    for state in states(store, MARK):
        if state["name"] == MARK and isinstance(state["value"], int):
            return int(state["value"])
    return 0


def prune_rows(store: Store, old: Old) -> Iterator[int]:
    """Remove old events with their jobs and journal entries; yield the counts.

    A copy of such an event that is received later is a new event.
    """
    tables, c = store.database.tables, store.columns
    is_old = old.where(store)
    for window in _windows(store, old.before):
        where = _within(c.id, window), is_old
        count = _execute(store, delete(tables.event).where(*where), *where)
        # By existing rows, so that the next prune completes an interrupted one.
        for other in (tables.job, tables.journal):
            orphaned = ~exists().where(c.id == other.c.event)
            orphans = _within(other.c.event, window), orphaned
            _execute(store, delete(other).where(*orphans), *orphans)
        yield count


def prune_history(store: Store, before: datetime) -> int:
    """Remove what is older: entries of operations, counts, and keys without a use.

    Entries of events are removed with their events.

    :return: how many rows were removed.
    """
    tables, then = store.database.tables, to_db_time(before)
    r, t = tables.journal.c, tables.tally.c
    return (
        _prune_in_order(store, r.id, r.at < then, r.event.is_(None))
        + _prune_in_order(store, t.minute, t.minute < then)
        + _prune_keys(store, then)
    )


def _prune_keys(store: Store, then: datetime) -> int:
    """Remove keys that no run holds, and that no job has used or waited for since."""
    c, k = store.columns, store.database.tables.key.c
    is_free = ~exists().where(c.id == k.holder, c.lease == k.lease)
    waits = or_(k.first_at.is_(None), k.first_at < then)
    done = _prune_in_order(store, k.began_at, k.began_at < then, waits, is_free)
    never = k.began_at.is_(None), k.first_at < then, is_free
    return done + _prune_in_order(store, k.first_at, *never)


def _prune_in_order(store: Store, column: Any, *conditions: ColumnElement[bool]) -> int:
    """Remove the rows, about 500 in a transaction, in the order of the column."""
    table = column.table
    where = and_(table.c.endpoint == store.endpoint, *conditions)
    last = select(column).where(where).order_by(column).limit(1)
    removed = 0
    while True:
        found = store.rows(last.offset(PART - 1)) or store.rows(
            select(func.max(column)).where(where)
        )
        if found[0][0] is None:
            return removed
        some = where, column <= found[0][0]
        removed += _execute(store, delete(table).where(*some), *some)


def prune_seen(store: Store) -> int:
    """Remove the notes of processes that are older than a day."""
    s = store.database.tables.state.c
    is_old = s.at < store.db_now() - SEEN_KEPT
    mine = and_(s.endpoint == WHOLE_INBOX, s.name.startswith(SEEN, autoescape=True))
    return _execute(store, delete(s.name.table).where(mine, is_old))


def _execute(store: Store, change: Update | Delete, *where: ColumnElement[bool]) -> int:
    """Change the rows of ``where`` in a transaction; return their number."""

    def work(connection: Connection) -> int:
        table: Any = change.table
        if not lock_in_order(connection, table, *where):
            return 0
        return connection.execute(change).rowcount

    # A transaction for its isolation level: under MariaDB's default, new events would
    # wait.
    return store.run(work, begin=True)


def _windows(store: Store, before: datetime, last: int = 0) -> Iterator[Window]:
    """Ranges of 500 rows; after each, the prune sleeps for as long as it took."""
    start = time.monotonic()
    for window in _ranges(store, before, last, PART):
        yield window
        time.sleep(time.monotonic() - start)
        start = time.monotonic()


def _ranges(store: Store, before: datetime, last: int, size: int) -> Iterator[Window]:
    """Yield ranges of row ids with ``size`` rows each, oldest first.

    They end at the first range whose events were all received after ``before``.

    :param last: the row id after which the first range begins.
    """
    c = store.columns
    while True:
        rows = select(c.id, c.received_at).where(c.id > last).order_by(c.id)
        part = rows.limit(size).subquery()
        query = select(func.max(part.c.id).label("end"), func.min(part.c.received_at))
        ((end, oldest),) = store.rows(query)
        if end is None or oldest >= to_db_time(before):
            return
        yield last, end
        last = end


def _within(column: ColumnElement[int], window: Window) -> ColumnElement[bool]:
    first, last = window
    return and_(column > first, column <= last)
