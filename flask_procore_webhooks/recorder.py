"""What comes in is committed: a unique insert decides what is new and what a repeat.

Deliveries that arrive together are inserted by one statement, which is one commit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import and_
from sqlalchemy import case
from sqlalchemy import Connection
from sqlalchemy import select
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError

from .database import Database
from .events import Event
from .grouping import Grouped
from .grouping import LATE
from .inserts import InsertNew
from .inserts import InsertOne
from .states import FINISHED
from .states import Status
from .store import clean
from .store import naive
from .store import Store
from .store import utc_now

#: Bytes of bodies that one statement inserts: drivers hold them several times over.
LARGEST_STATEMENT = 4 * 2**20
#: In the place of a new row id: the event is in the inbox already.
THERE = -1

#: What the sender wrote, to look at and to filter by, and the characters of each.
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
class Recorded:
    """The answer of the inbox to one delivery."""

    row_id: int
    status: Status
    #: False when the event was in the inbox already.
    fresh: bool
    #: Whether it was there with another body, which is not kept.
    conflict: bool = False


class Recorder(Store):
    """The way of deliveries into the inbox."""

    def __init__(
        self,
        endpoint: str,
        database: Database,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        super().__init__(endpoint, database, now)
        self._insert_one = InsertOne(database.tables.event)
        self._insert_many = InsertNew(database.tables.event)
        self._insert = Grouped(self._insert_together)

    def record(
        self, event: Event, status: Status = Status.PENDING, error: str | None = None
    ) -> Recorded:
        """Commit ``event``, or count it as a repeat if it is there.

        A repeat that is ``PENDING`` itself makes a dead event pending again. Safe to
        repeat: the first body stays.
        """
        row = self._row(event, status, error)
        # Twice, because a prune may remove the row between the insert and the update.
        for _ in range(2):
            row_id = self.readably(self._insert_in_time, row, TEXTS)
            if row_id != THERE:
                return Recorded(row_id, status, fresh=True)
            if repeated := self.persistently(lambda: self._repeat(row)):
                return repeated
        raise self.unavailable(LookupError("neither inserted nor found"))

    def _insert_in_time(self, row: Row) -> int:
        try:
            return self._insert(row)
        except TimeoutError as error:
            raise self.unavailable(error) from None

    def _insert_together(self, rows: list[Row]) -> list[int | Exception]:
        """Insert every row that is not there; the new row id of each, or ``THERE``."""
        start = time.monotonic()
        try:
            return list(self.persistently(lambda: self._insert_new(rows)))
        except Exception as error:
            if len(rows) == 1 or time.monotonic() - start > LATE:
                return [error] * len(rows)
        # So that one row that the database refuses harms nobody else.
        return [self._insert_together([row])[0] for row in rows]

    def _insert_new(self, rows: list[Row]) -> list[int]:
        with self.connection() as connection:
            if not self._fit_together(connection, rows):
                return [self._insert_unless_there(connection, row) for row in rows]
            new = self._insert_many(connection, rows)
        # Of two copies in one group, the first is the new one.
        return [new.pop(row["event_id"], THERE) for row in rows]

    def _fit_together(self, connection: Connection, rows: list[Row]) -> bool:
        size = sum(len(row["body"]) for row in rows)
        fit = len(rows) > 1 and size <= LARGEST_STATEMENT
        return fit and self._insert_many.works_on(connection.dialect)

    def _insert_unless_there(self, connection: Connection, row: Row) -> int:
        try:
            return self._insert_one(connection, row)
        except IntegrityError:
            return THERE

    def _repeat(self, row: Row) -> Recorded | None:
        c = self.columns
        differs = and_(c.body.is_not(None), c.body != row["body"])
        changes = [
            (c.repeats, c.repeats + 1),
            (c.conflicts, c.conflicts + case((differs, 1), else_=0)),
        ]
        if row["status"] == Status.PENDING.value:
            changes += self._revival(row)
        with self.connection() as connection:
            # Changed by its row id: by its key, MariaDB may go through another index
            # while there are few rows, and lock all that it passes.
            mine = and_(c.endpoint == row["endpoint"], c.event_id == row["event_id"])
            there = c.id == connection.scalar(select(c.id).where(mine))
            # MariaDB assigns from left to right: what is tested is changed last.
            connection.execute(update(c.id.table).where(there).ordered_values(*changes))
            look = select(c.id, c.status, differs.label("conflict")).where(there)
            found = connection.execute(look).one_or_none()
        if found is None:
            return None
        return Recorded(
            found.id, Status(found.status), fresh=False, conflict=bool(found.conflict)
        )

    def _revival(self, row: Mapping[str, Any]) -> list[tuple[Any, Any]]:
        c = self.columns
        dead = c.status == Status.DEAD.value
        pruned = and_(dead, c.body.is_(None))
        return [
            (c.body, case((pruned, row["body"]), else_=c.body)),
            (c.attempts, case((dead, 0), else_=c.attempts)),
            (c.due_at, case((dead, row["received_at"]), else_=c.due_at)),
            (c.finished_at, case((dead, None), else_=c.finished_at)),
            (c.status, case((dead, Status.PENDING.value), else_=c.status)),
        ]

    def _row(self, event: Event, status: Status, error: str | None) -> dict[str, Any]:
        now = self.naive_now()
        finished = status in FINISHED
        return {
            "endpoint": self.endpoint,
            "event_id": event.id,
            **{name: clean(getattr(event, name), size) for name, size in TEXTS.items()},
            "event_at": naive(event.timestamp) if event.timestamp else None,
            "body": event.body,
            "status": status.value,
            "attempts": 0,
            "due_at": None if finished else now,
            "lease": None,
            "error": clean(error, LONGEST_ERROR),
            "received_at": now,
            "finished_at": now if finished else None,
            "repeats": 0,
            "conflicts": 0,
        }
