"""Carry-over: the statements that turn rows of schemas 1 and 2 into those of schema 3.

Schemas 1 and 2 have a receipt for each subscriber that has finished an event, and one
count of attempts for each event. Schema 3 has jobs. Each statement is safe to repeat,
so a carry-over that was interrupted is carried on by the next one.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from typing import NamedTuple

from sqlalchemy import and_
from sqlalchemy import case
from sqlalchemy import Column
from sqlalchemy import ColumnElement
from sqlalchemy import Connection
from sqlalchemy import Executable
from sqlalchemy import exists
from sqlalchemy import func
from sqlalchemy import insert
from sqlalchemy import Integer
from sqlalchemy import literal
from sqlalchemy import MetaData
from sqlalchemy import or_
from sqlalchemy import Select
from sqlalchemy import select
from sqlalchemy import String
from sqlalchemy import Table
from sqlalchemy import Text
from sqlalchemy import update

from .columns import MYSQL
from .columns import RowId
from .columns import Time
from .gaps import column_names
from .gaps import OLD_ATTEMPTS
from .gaps import OLD_RECEIPTS
from .tables import Tables

#: Events whose rows one statement changes.
BATCH = 5000

#: Status of events and endings of receipts in schemas 1 and 2.
PENDING, RUNNING, DEAD = "pending", "running", "dead"
ABANDONED = "abandoned"

#: The subscriber of a job that stands for every matching subscriber without a job.
PLACEHOLDER = ""


class OldTables(NamedTuple):
    """The tables of schema 1 or 2, and the table of jobs beside them."""

    event: Table
    job: Table
    #: ``None`` once it is dropped.
    receipt: Table | None

    @property
    def attempts(self) -> ColumnElement[int]:
        """The attempts of an event; 0 once the column is dropped."""
        return self.event.c.get(OLD_ATTEMPTS, literal(0))

    @property
    def has_attempts(self) -> bool:
        return OLD_ATTEMPTS in self.event.c


def old_tables(
    connection: Connection, tables: Tables, leftovers: list[str]
) -> OldTables:
    """Describe what is left of the older tables.

    :param leftovers: as of :func:`~.gaps.find_leftovers`. Each insert names one of
        them, and fails once another process has carried over every row.
    :raises sqlalchemy.exc.NoSuchTableError: another process has dropped the receipts.
    """
    metadata = MetaData(schema=tables.event.schema)
    names = ("endpoint", "type", "status")
    times = ("due_at", "received_at", "finished_at", "parked_at")
    event = Table(
        tables.event.name,
        metadata,
        Column("id", RowId(), primary_key=True),
        *[Column(name, String(255)) for name in names],
        *[Column(name, Time()) for name in times],
        Column("claims", Integer),
        Column("error", Text),
    )
    if any(OLD_ATTEMPTS in each for each in leftovers):
        event.append_column(Column(OLD_ATTEMPTS, Integer))
    receipt = None
    if any(OLD_RECEIPTS in each for each in leftovers):
        receipt = receipt_table(tables.event.schema)
        # Those of schema 1 have none.
        if "version" in column_names(connection, receipt):
            receipt.append_column(Column("version", Integer))
    return OldTables(event, tables.job, receipt)


def receipt_table(schema: str | None) -> Table:
    return Table(
        OLD_RECEIPTS,
        MetaData(schema=schema),
        Column("event", RowId(), primary_key=True),
        Column("subscriber", String(190), primary_key=True),
        Column("ending", String(16)),
        Column("finished_at", Time()),
    )


def pages(connection: Connection, old: OldTables) -> Iterator[tuple[int, int]]:
    """Ranges of row ids with :data:`BATCH` events: after the first, to the last."""
    id, last = old.event.c.id, 0
    while True:
        rows = select(id).where(id > last).order_by(id).limit(BATCH).subquery()
        end = connection.execute(select(func.max(rows.c.id))).scalar()
        if end is None:
            return
        yield last, end
        last = end


def changes_of_events(old: OldTables, page: tuple[int, int]) -> Iterator[Executable]:
    """The statements that change the events of a page; before their jobs exist."""
    c, first, last = old.event.c, *page
    mine = update(old.event).where(c.id > first, c.id <= last)
    if old.has_attempts:
        # The package of schema 1 counted an attempt when it began, and no claims.
        counted_early = and_(c.status == RUNNING, c.claims == 0, old.attempts > 0)
        values = {OLD_ATTEMPTS: old.attempts - 1, "claims": 1}
        yield mine.where(counted_early).values(values)
        is_unreadable = and_(c.status == DEAD, c.type == "", old.attempts == 0)
        yield mine.where(is_unreadable).values(status="quarantined")
    is_parked = and_(c.status.in_((DEAD, "quarantined")), c.parked_at.is_(None))
    yield mine.where(is_parked).values(parked_at=_end_of(old.event))


def jobs_of_receipts(
    old: OldTables, page: tuple[int, int], connection: Connection, now: datetime
) -> Executable | None:
    """The statement that inserts a job for each receipt of the events of a page.

    An abandoned call has not finished: its job is pending or dead with its event.
    """
    if old.receipt is None:
        return None
    e, r, (first, last) = old.event.c, old.receipt.c, page
    is_abandoned, is_live = r.ending == ABANDONED, e.status.in_((PENDING, RUNNING))
    is_dead, waits = e.status == DEAD, and_(is_abandoned, is_live)
    version = r.get("version", literal(1))
    state = case(
        (~is_abandoned, r.ending),
        (is_live, PENDING),
        (is_dead, DEAD),
        # Its subscriber was gone when the event ended.
        else_="suppressed",
    )
    values = {
        "event": e.id,
        "subscriber": r.subscriber,
        "endpoint": e.endpoint,
        "state": state,
        # The completion of an abandoned call has the version of its receipt.
        "version": case((is_abandoned, version + 1), (version < 1, 1), else_=version),
        "attempts": case((is_abandoned, old.attempts), else_=1),
        "due_at": case((waits, _due_time(old.event, now))),
        "waits_for": case((waits, "retry")),
        "finished_at": case(
            (~is_abandoned, r.finished_at), (~is_live, _end_of(old.event))
        ),
        "dead_at": case((and_(is_abandoned, is_dead), _end_of(old.event))),
        "error": case((is_abandoned, e.error)),
    }
    rows = select(*values.values()).select_from(
        old.receipt.join(old.event, e.id == r.event)
    )
    rows = rows.where(r.event > first, r.event <= last)
    return _insert_new(connection, old.job, values, rows)


def placeholders(
    old: OldTables, page: tuple[int, int], connection: Connection, now: datetime
) -> Executable:
    """The statement that inserts a job for the subscribers without a receipt.

    They have the attempts of their event. An event without attempts needs none, unless
    it has a pending job: its other subscribers would be left out.
    """
    e, (first, last) = old.event.c, page
    is_live, is_dead = e.status.in_((PENDING, RUNNING)), e.status == DEAD
    has_run: ColumnElement[bool] = old.attempts > 0
    if old.receipt is not None:
        r = old.receipt.c
        abandoned = exists().where(r.event == e.id, r.ending == ABANDONED)
        has_run = or_(has_run, abandoned)
    values = {
        "event": e.id,
        "subscriber": literal(PLACEHOLDER),
        "endpoint": e.endpoint,
        "state": case((is_dead, DEAD), else_=PENDING),
        "version": literal(1),
        "attempts": old.attempts,
        "due_at": case((is_live, _due_time(old.event, now))),
        "waits_for": case((is_live, "retry")),
        "finished_at": case((is_dead, _end_of(old.event))),
        "dead_at": case((is_dead, _end_of(old.event))),
        "error": e.error,
    }
    rows = select(*values.values()).where(e.id > first, e.id <= last)
    rows = rows.where(or_(is_dead, and_(is_live, has_run)))
    return _insert_new(connection, old.job, values, rows)


def pauses(connection: Connection, tables: Tables) -> list[Any]:
    """``endpoint``, ``actor`` and ``at`` of the pauses that are in force."""
    j = tables.journal.c
    last = select(func.max(j.id)).where(j.action.in_(("pause", "resume")))
    query = select(j.endpoint, j.actor, j.at).where(
        j.id.in_(last.group_by(j.endpoint)), j.action == "pause"
    )
    return list(connection.execute(query))


def _due_time(event: Table, now: datetime) -> ColumnElement[Any]:
    return func.coalesce(event.c.due_at, literal(now, event.c.due_at.type))


def _end_of(event: Table) -> ColumnElement[Any]:
    return func.coalesce(event.c.finished_at, event.c.received_at)


def _insert_new(
    connection: Connection,
    table: Table,
    values: Mapping[str, Any],
    rows: Select[Any],
) -> Executable:
    """An insert of the rows whose keys are not there."""
    names, dialect = list(values), connection.dialect.name
    if dialect == "postgresql":
        from sqlalchemy.dialects import postgresql

        inserted = postgresql.insert(table).from_select(names, rows)
        return inserted.on_conflict_do_nothing()
    ignore = "IGNORE" if dialect in MYSQL else "OR IGNORE"
    return insert(table).prefix_with(ignore).from_select(names, rows)
