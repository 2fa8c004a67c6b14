"""Prune: remove bodies and events that finished long ago, and what belongs to them."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import replace
from datetime import datetime
from typing import Any
from typing import NamedTuple

from sqlalchemy import and_
from sqlalchemy import case
from sqlalchemy import ColumnElement
from sqlalchemy import Connection
from sqlalchemy import delete
from sqlalchemy import exists
from sqlalchemy import func
from sqlalchemy import or_
from sqlalchemy import select
from sqlalchemy import true
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError

from ..inbox.status import FINISHED
from ..inbox.status import Status
from ..schema.marks import BODIES
from ..schema.marks import EVENTS
from ..schema.marks import Mark
from ..schema.marks import move_mark
from ..schema.marks import read_mark
from ..schema.state import WHOLE_INBOX
from ..schema.tables import lock_in_order
from ..storage.store import Store
from ..storage.store import to_db_time
from .filters import EVERY_EVENT
from .filters import Filter
from .seen import SEEN
from .seen import SEEN_KEPT
from .selection import PART

#: The row of an event is kept this many times as long as its body, so that a late copy
#: is still recognised as a repeat.
IDS_KEPT = 4
#: Rows that one query reads.
READ = 5000
#: Such parts after which the mark is moved, and at the end.
MOVED_EVERY = 50


class Part(NamedTuple):
    """Some rows of the inbox."""

    where: ColumnElement[bool]
    #: Up to this row id, every event of the endpoint is in this part or before it, and
    #: was received before the time of the prune.
    end: int


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


@dataclass(frozen=True)
class _What:
    """What a prune removes of old events."""

    mark: str
    #: The events that have it.
    has: ColumnElement[bool]
    #: Removes it from the events with these row ids.
    remove: Callable[[Connection, list[int]], object]


def count_bodies(store: Store, old: Old) -> int:
    """How many bodies :func:`prune_bodies` would remove."""
    return _count(store, old, _bodies(store))


def count_rows(store: Store, old: Old) -> int:
    """How many events :func:`prune_rows` would remove."""
    return _count(store, old, _events(store))


def prune_bodies(store: Store, old: Old) -> Iterator[int]:
    """Remove the bodies of old events; yield the counts of transactions.

    Their rows stay: a late copy of such an event is still a repeat.
    """
    return _prune(store, old, _bodies(store))


def prune_rows(store: Store, old: Old) -> Iterator[int]:
    """Remove old events with their jobs and journal entries; yield the counts.

    A copy of such an event that is received later is a new event.
    """
    return _prune(store, old, _events(store))


def _bodies(store: Store) -> _What:
    c = store.columns

    def remove(connection: Connection, ids: list[int]) -> None:
        connection.execute(update(c.id.table).where(c.id.in_(ids)).values(body=None))

    return _What(BODIES, c.body.is_not(None), remove)


def _events(store: Store) -> _What:
    tables = store.database.tables

    def remove(connection: Connection, ids: list[int]) -> None:
        for column in (tables.job.c.event, tables.journal.c.event, tables.event.c.id):
            connection.execute(delete(column.table).where(column.in_(ids)))

    return _What(EVENTS, true(), remove)


def _count(store: Store, old: Old, what: _What) -> int:
    """How many events have it and are old."""
    number = 0
    for part in _parts(store, old.before, _mark(store, what)):
        query = select(func.count()).select_from(store.columns.id.table)
        query = query.where(part.where, what.has, old.where(store))
        number += int(store.rows(query)[0][0])
    return number


def _prune(store: Store, old: Old, what: _What) -> Iterator[int]:
    """Remove it from old events, and remember which other events have it.

    A prune of some events only leaves the mark as it is.
    """
    mark = _mark(store, what)
    row, left, moves = mark.row, set[int](), old.wanted == EVERY_EVENT
    for number, part in enumerate(_parts(store, old.before, mark), 1):
        is_old = _find(store, old, what, part)
        row, left = part.end, {*left, *is_old}
        ids = [row_id for row_id in is_old if is_old[row_id]]
        for first in range(0, len(ids), PART):
            start = time.monotonic()
            removed = _remove(store, old, what, ids[first : first + PART])
            left -= removed
            yield len(removed)
            # It leaves the database to others for as long as it took.
            time.sleep(time.monotonic() - start)
        if moves and row > mark.row and not number % MOVED_EVERY:
            mark = _moved(store, what, mark, row, left)
            left |= {*mark.left}  # events that were noted since
    if moves:
        _moved(store, what, mark, row, left)


def _find(store: Store, old: Old, what: _What, part: Part) -> dict[int, bool]:
    """The row ids of the events that have it, and whether they are old."""
    c, is_old = store.columns, case((old.where(store), 1), else_=0).label("is_old")
    query = select(c.id, is_old).where(part.where, EVERY_EVENT.where(store), what.has)
    return {row.id: bool(row.is_old) for row in store.rows(query.order_by(c.id))}


def _remove(store: Store, old: Old, what: _What, ids: list[int]) -> set[int]:
    """Remove it from those of the events that are still old; return their row ids."""
    c = store.columns
    same = c.id.in_(ids), what.has, old.where(store)

    def work(connection: Connection) -> set[int]:
        locked = [row.id for row in lock_in_order(connection, c.id.table, *same)]
        what.remove(connection, locked)
        return {*locked}

    return store.run(work, begin=True)


def _mark(store: Store, what: _What) -> Mark:
    tables = store.database.tables
    return store.run(lambda each: read_mark(each, tables, store.endpoint, what.mark))


def _moved(store: Store, what: _What, mark: Mark, row: int, left: set[int]) -> Mark:
    """Move the mark, unless another prune does so; return it as it is then.

    :param left: of all events so far that have it, also of those after the row.
    """
    moved = replace(mark, row=row, left=tuple(sorted(i for i in left if i <= row)))
    if moved == mark:
        return mark
    tables, now = store.database.tables, store.db_now()
    with suppress(IntegrityError):
        store.run(
            lambda each: move_mark(each, tables, store.endpoint, mark, moved, now),
            begin=True,
        )
    return _mark(store, what)


def _parts(store: Store, before: datetime, mark: Mark) -> Iterator[Part]:
    """The events that were left before the mark, and those after it, oldest first.

    They end at the first ``READ`` rows all received after ``before``, by any clock.
    """
    c, then, last = store.columns, to_db_time(before), mark.row
    left = [row for row in mark.left if row <= last]  # the others are after the mark
    for start in range(0, len(left), PART):
        yield Part(c.id.in_(left[start : start + PART]), mark.row)
    while True:
        rows = select(c.id, c.received_at).where(c.id > last).order_by(c.id)
        part = rows.limit(READ).subquery().c
        settled = func.max(case((part.received_at < then, part.id)))
        ((newest, end),) = store.rows(select(func.max(part.id), settled))
        if end is None:
            return
        yield Part(and_(c.id > last, c.id <= newest), end)
        last = newest


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
        removed += _delete(store, table, *some)


def prune_seen(store: Store) -> int:
    """Remove the notes of processes that are older than a day."""
    s = store.database.tables.state.c
    mine = s.endpoint == WHOLE_INBOX, s.name.startswith(SEEN, autoescape=True)
    return _delete(store, s.name.table, *mine, s.at < store.db_now() - SEEN_KEPT)


def _delete(store: Store, table: Any, *where: ColumnElement[bool]) -> int:
    """Delete the rows in a transaction; return their number."""

    def work(connection: Connection) -> int:
        if not lock_in_order(connection, table, *where):
            return 0
        return connection.execute(delete(table).where(*where)).rowcount

    # Under MariaDB's default isolation level, new events would wait.
    return store.run(work, begin=True)
