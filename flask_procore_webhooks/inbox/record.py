"""Record an event: one insert decides whether it is new or repeated.

Deliveries that arrive together are inserted by one statement, which is one commit.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_
from sqlalchemy import case
from sqlalchemy import Connection
from sqlalchemy import select
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError

from ..event import Event
from .group_commit import GroupCommit
from .group_commit import LATE
from .inserts import InsertNew
from .inserts import InsertOne
from .store import Store
from .store import to_db_time
from .tables import FINISHED
from .tables import Status

#: Bytes of bodies in one statement: drivers hold them several times over.
LARGEST_STATEMENT = 4 * 2**20
#: Returned instead of a row id: the event was recorded before.
ALREADY_RECORDED = -1

#: Text that the sender wrote, to read and to filter by, and the characters of each.
TEXTS = {
    "type": 255,
    "resource_type": 160,
    "reason": 80,
    "resource_id": 80,
    "company_id": 80,
    "project_id": 80,
    "user_id": 80,
}
LONGEST_ERROR = 4000

Row = dict[str, Any]


@dataclass(frozen=True)
class RecordResult:
    """The inbox's answer to one delivery."""

    row_id: int
    status: Status
    #: ``False`` when the event was recorded before.
    is_new: bool
    #: Whether it was recorded with another body; the new body is not stored.
    is_conflict: bool = False


def record(
    store: Store,
    event: Event,
    status: Status = Status.PENDING,
    error: str | None = None,
) -> RecordResult:
    """Commit ``event``, or count a repeat if it was recorded before.

    A repeat with ``PENDING`` makes a dead event pending again. Safe to repeat: the
    first body stays.

    :raises InboxUnavailable: nothing was recorded, or the answer was lost.
    """
    row = new_row(store, event, status, error)
    parts = store.database.parts
    recorder: Recorder = parts.get(Recorder) or parts.setdefault(
        Recorder, Recorder(store)
    )
    # Twice, because a prune may remove the row between the insert and the update.
    for _ in range(2):
        try:
            row_id = recorder.insert(row)
        except TimeoutError as late:
            raise store.unavailable(late) from None
        if row_id != ALREADY_RECORDED:
            return RecordResult(row_id, status, is_new=True)
        if repeated := store.retry_transient(lambda: _repeat(store, row)):
            return repeated
    raise store.unavailable(LookupError("neither inserted nor found"))


class Recorder:
    """Inserts the deliveries of all endpoints of one database in batches.

    :param store: gives the connections.
    """

    def __init__(self, store: Store) -> None:
        table = store.database.tables.event
        self._store = store
        self._insert_one = InsertOne(table)
        self._insert_many = InsertNew(table)
        #: Inserts a row; returns its id or ``ALREADY_RECORDED``.
        self.insert: GroupCommit[Row, int] = GroupCommit(self._insert_batch)

    def _insert_batch(self, rows: list[Row]) -> list[int | Exception]:
        start = time.monotonic()
        try:
            return list(self._store.retry_transient(lambda: self._insert_new(rows)))
        except Exception as error:
            if len(rows) == 1 or time.monotonic() - start > LATE:
                return [error] * len(rows)
        # Row by row, so that a row that the database refuses fails alone.
        return [self._insert_batch([row])[0] for row in rows]

    def _insert_new(self, rows: list[Row]) -> list[int]:
        with self._store.connection() as connection:
            if len(rows) == 1 or not self._fit_together(connection, rows):
                return [self._insert_unless_there(connection, row) for row in rows]
            new = self._insert_many(connection, rows)
        # Of two copies in one batch, the first is the new one.
        return [
            new.pop((row["endpoint"], row["event_id"]), ALREADY_RECORDED)
            for row in rows
        ]

    def _fit_together(self, connection: Connection, rows: list[Row]) -> bool:
        size = sum(len(row["body"]) for row in rows)
        return size <= LARGEST_STATEMENT and self._insert_many.works_on(
            connection.dialect
        )

    def _insert_unless_there(self, connection: Connection, row: Row) -> int:
        try:
            return self._insert_one(connection, row)
        except IntegrityError:
            return ALREADY_RECORDED


def new_row(store: Store, event: Event, status: Status, error: str | None) -> Row:
    """Return the values of a new row in the event table."""
    now = store.db_now()
    is_finished = status in FINISHED
    row = {
        "endpoint": store.endpoint,
        "event_id": event.id,
        "event_at": to_db_time(event.timestamp) if event.timestamp else None,
        "body": event.body,
        "status": status.value,
        "attempts": 0,
        "claims": 0,
        "due_at": None if is_finished else now,
        "lease": None,
        "error": store.text(error, LONGEST_ERROR) if error else None,
        "received_at": now,
        "finished_at": now if is_finished else None,
        "repeats": 0,
        "conflicts": 0,
    }
    for name, size in TEXTS.items():
        text = getattr(event, name)
        # Most texts are stored as they are.
        if text and not (text.isascii() and len(text) <= size and "\0" not in text):
            text = store.text(text, size)
        row[name] = text
    return row


def _repeat(store: Store, row: Row) -> RecordResult | None:
    """Count the repeat of a recorded event; ``None`` if the event was pruned."""
    c = store.columns
    differs = and_(c.body.is_not(None), c.body != row["body"])
    changes = [
        (c.repeats, c.repeats + 1),
        (c.conflicts, c.conflicts + case((differs, 1), else_=0)),
    ]
    if row["status"] == Status.PENDING.value:
        changes += _revival(store, row)
    with store.connection() as connection:
        # Changed by its row id: by its key, MariaDB may use another index while the
        # table is small, and lock every row that it reads.
        mine = and_(c.endpoint == row["endpoint"], c.event_id == row["event_id"])
        same_row = c.id == connection.scalar(select(c.id).where(mine))
        # MariaDB assigns from left to right: a tested column is changed last.
        connection.execute(update(c.id.table).where(same_row).ordered_values(*changes))
        query = select(c.id, c.status, differs.label("conflict")).where(same_row)
        found = connection.execute(query).one_or_none()
    if found is None:
        return None
    return RecordResult(
        found.id,
        Status(found.status),
        is_new=False,
        is_conflict=bool(found.conflict),
    )


def _revival(store: Store, row: Row) -> list[tuple[Any, Any]]:
    """The changes that make a dead event pending again."""
    c = store.columns
    dead = c.status == Status.DEAD.value
    pruned = and_(dead, c.body.is_(None))
    return [
        (c.body, case((pruned, row["body"]), else_=c.body)),
        (c.attempts, case((dead, 0), else_=c.attempts)),
        (c.due_at, case((dead, row["received_at"]), else_=c.due_at)),
        (c.finished_at, case((dead, None), else_=c.finished_at)),
        (c.status, case((dead, Status.PENDING.value), else_=c.status)),
    ]
