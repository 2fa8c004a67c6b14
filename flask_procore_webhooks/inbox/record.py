"""Record an event: one insert decides whether it is new or repeated.

Deliveries that arrive together are inserted by one statement, which is one commit.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import datetime
from functools import partial
from operator import attrgetter
from typing import Any
from typing import NamedTuple

from sqlalchemy import and_
from sqlalchemy import case
from sqlalchemy import Connection
from sqlalchemy import func
from sqlalchemy import select
from sqlalchemy import update

from ..event import Event
from ..schema.marks import note_body
from ..storage.connections import context_of
from ..storage.store import Store
from ..storage.store import to_db_time
from ..storage.store import TransientError
from ..storage.writer import Writer
from .direct import DirectInserts
from .inserts import ALREADY_RECORDED
from .inserts import Inserts
from .status import FINISHED
from .status import JobState
from .status import PARKED
from .status import Status
from .status import Wait

#: Text that the sender wrote, to read and to filter by, and the characters of each.
TEXTS = {
    "type": 255,
    "resource_type": 160,
    "reason": 80,
    "resource_id": 80,
    "company_id": 80,
    "project_id": 80,
    "user_id": 80,
    "application_id": 80,
}
SHORTEST = min(TEXTS.values())
#: The values of these columns, of an event.
OF_SENDER = attrgetter(*TEXTS)
LONGEST_ERROR = 4000
#: ``Event.origin`` of an event from Procore's record of deliveries. Its body is made
#: again, so it differs from the bytes of a delivery.
RECONCILE = "reconcile"
#: Statuses of events that a repeat makes pending.
REVIVED = (Status.DEAD, Status.UNMATCHED)
_REVIVED = [status.value for status in REVIVED]

Row = dict[str, Any]
#: A row, and the time of the monotonic clock after which it is not tried again.
Delivery = tuple[Row, float]


class RecordResult(NamedTuple):
    """The inbox's answer to one delivery."""

    row_id: int
    status: Status
    #: ``False`` when the event was recorded before.
    is_new: bool
    #: Whether it was recorded with another body; the new body is not stored.
    is_conflict: bool = False
    #: When the delivery came, as it is stored.
    at: datetime | None = None


def record(
    store: Store,
    event: Event,
    status: Status = Status.PENDING,
    error: str | None = None,
) -> RecordResult:
    """Commit ``event``, or count a repeat if it was recorded before.

    A repeat with ``PENDING`` makes a dead or unmatched event pending again. Safe to
    repeat: the first body stays.

    :raises InboxUnavailable: nothing was recorded, or the answer was lost.
    """
    until = time.monotonic() + store.retry_seconds
    if store.database.traits is None:
        store.traits(until)
    row = new_row(store, event, status, error)
    parts = store.database.parts
    recorder: Recorder = parts.get(Recorder) or parts.setdefault(
        Recorder, Recorder(store)
    )
    # Twice, because a prune may remove the row between the insert and the update.
    for _ in range(2):
        try:
            row_id = recorder.insert((row, until))
        except TimeoutError as late:
            raise store.unavailable(late) from None
        if row_id != ALREADY_RECORDED:
            return RecordResult(row_id, status, is_new=True, at=row["received_at"])
        repeated = store.run(partial(_repeat, store, row), until=until)
        if repeated is None:
            continue
        if status is Status.PENDING and repeated.status in REVIVED:
            revive = partial(_revive, store, row, repeated.row_id)
            store.run(revive, begin=True, until=until)
            return repeated._replace(status=Status.PENDING)
        return repeated
    raise store.unavailable(LookupError("neither inserted nor found"))


class Recorder:
    """Inserts the deliveries of all endpoints of one database in batches.

    :param store: gives the connections.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._insert = Inserts(store.database.tables.event)
        self._insert_directly = DirectInserts(store)
        #: Inserts a row; returns its id or ``ALREADY_RECORDED``.
        self.insert: Writer[Delivery, int] = Writer(self._insert_batch)

    def _insert_batch(self, batch: list[Delivery]) -> list[int | Exception | None]:
        """Return the outcome of each delivery, ``None`` for those to try again."""
        row_ids = self._insert_directly([row for row, _ in batch])
        if row_ids is not None:
            return [*row_ids]
        # In the thread of batches, there is none.
        with context_of(self._store.database.mount.app):
            return self._insert_plainly(batch)

    def _insert_plainly(self, batch: list[Delivery]) -> list[int | Exception | None]:
        """As :meth:`_insert_batch`, by the statement for every database.

        A batch ends with the time of its oldest delivery: the others have more.
        """
        rows, ends = zip(*batch, strict=True)
        until = min(ends)
        try:
            insert = partial(self._insert, rows=rows)
            row_ids = self._store.run(insert, until=until)
            self._insert_directly.open()
            return [*row_ids]
        except TransientError as error:
            return _late(batch, error)
        except Exception as error:
            if len(rows) == 1:
                return [error]
        return self._insert_singly(batch, until)

    def _insert_singly(
        self, batch: list[Delivery], until: float
    ) -> list[int | Exception | None]:
        """Insert row by row, so that a row that the database refuses fails alone."""
        outcomes: list[int | Exception | None] = []
        failure = TransientError("the inbox did not take the rows in time")
        for row, _ in batch:
            try:
                if time.monotonic() > until:
                    raise failure
                insert = partial(self._insert, rows=[row])
                outcomes += self._store.run(insert, until=until)
            except TransientError as error:
                return outcomes + _late(batch[len(outcomes) :], error)
            except Exception as error:
                outcomes.append(error)
        return outcomes


def _late(batch: list[Delivery], error: Exception) -> list[int | Exception | None]:
    """Return the error for deliveries without time left, and ``None`` for others."""
    now = time.monotonic()
    return [error if until <= now else None for _, until in batch]


def new_row(store: Store, event: Event, status: Status, error: str | None) -> Row:
    """Return the values of a new row in the event table."""
    now = store.db_now()
    is_finished = status in FINISHED
    row = {
        "endpoint": store.endpoint,
        "event_id": event.id,
        "event_at": to_db_time(event.timestamp) if event.timestamp else None,
        "body": event.body,
        "origin": "delivery",
        "traceparent": None,
        "status": status.value,
        "claims": 0,
        "due_at": None if is_finished else now,
        "parked_at": now if status in PARKED else None,
        "lease": None,
        "error": store.text(error, LONGEST_ERROR) if error else None,
        "received_at": now,
        "finished_at": now if is_finished else None,
        "repeats": 0,
        "conflicts": 0,
    }
    texts = OF_SENDER(event)
    if not _are_short(texts):
        texts = tuple(map(store.text, texts, TEXTS.values()))
    row.update(zip(TEXTS, texts, strict=True))
    return row


def _are_short(texts: Iterable[str | None]) -> bool:
    """Whether all are stored as they are, as most are: each fits the least column."""
    text = "".join(filter(None, texts))
    return len(text) <= SHORTEST and text.isascii() and "\0" not in text


def _repeat(store: Store, row: Row, connection: Connection) -> RecordResult | None:
    """Count the repeat of a recorded event; ``None`` if the event was pruned."""
    c = store.columns
    is_sent = c.body.is_not(None), c.origin != RECONCILE
    differs = and_(*is_sent, c.body != row["body"])
    changes = {
        "repeats": c.repeats + 1,
        "conflicts": c.conflicts + case((differs, 1), else_=0),
    }
    # Changed by its row id: by its key, MariaDB may use another index while the
    # table is small, and lock every row that it reads.
    mine = and_(c.endpoint == row["endpoint"], c.event_id == row["event_id"])
    same_row = c.id == connection.scalar(select(c.id).where(mine))
    connection.execute(update(c.id.table).where(same_row).values(changes))
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


def _revive(store: Store, row: Row, row_id: int, connection: Connection) -> None:
    """Make a dead or unmatched event pending, and its dead jobs with all attempts."""
    c, j = store.columns, store.database.tables.job.c
    parked = c.id == row_id, c.status.in_(_REVIVED)
    values = {
        "body": func.coalesce(c.body, row["body"]),
        "status": Status.PENDING.value,
        "due_at": row["received_at"],
        "parked_at": None,
        "finished_at": None,
        "claims": 0,
    }
    pruned = select(c.body.is_(None)).where(*parked).with_for_update()
    is_pruned = connection.execute(pruned).scalar()
    if is_pruned is None:
        return  # it has become pending meanwhile
    # Guarded by the status: no run has the event.
    connection.execute(update(c.id.table).where(*parked).values(values))
    if is_pruned:
        tables = store.database.tables
        note_body(connection, tables, store.endpoint, row_id, row["received_at"])
    dead = j.event == row_id, j.state == JobState.DEAD.value
    job = {
        "state": JobState.PENDING.value,
        "version": j.version + 1,
        "attempts": 0,
        "due_at": row["received_at"],
        "waits_for": Wait.NOTHING.value,
        "first_at": None,
        "finished_at": None,
        "dead_at": None,
    }
    connection.execute(update(j.event.table).where(*dead).values(job))
