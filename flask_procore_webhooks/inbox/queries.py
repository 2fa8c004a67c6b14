"""Queries for operators: list, find, count. They change nothing."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import fields
from datetime import datetime
from datetime import timedelta
from typing import Any

from sqlalchemy import and_
from sqlalchemy import case
from sqlalchemy import ColumnElement
from sqlalchemy import Connection
from sqlalchemy import delete
from sqlalchemy import func
from sqlalchemy import insert
from sqlalchemy import or_
from sqlalchemy import select
from sqlalchemy import Table
from sqlalchemy import update

from ..event import Event
from ..senders.payload import event_key
from ..senders.payload import PLAIN_ID
from ..storage.state import schema_number
from ..storage.store import Store
from ..storage.store import to_db_time
from .record import new_row
from .record import TEXTS
from .status import Status

#: The name of the row that :func:`try_writes` inserts begins with this.
TRIAL = "check:"


@dataclass(frozen=True)
class Filter:
    """Selects the events that have every given value."""

    status: str | None = None
    type: str | None = None
    resource_type: str | None = None
    reason: str | None = None
    resource_id: str | None = None
    company_id: str | None = None
    project_id: str | None = None
    #: Received at this time or later; aware.
    since: datetime | None = None
    #: Received before this time; aware.
    until: datetime | None = None

    def where(self, store: Store) -> ColumnElement[bool]:
        """The condition for rows of ``store``."""
        c = store.columns
        conditions = [c.endpoint == store.endpoint]
        for each in fields(self)[:-2]:
            value = getattr(self, each.name)
            if value is not None:
                if each.name in TEXTS:
                    value = store.text(value, TEXTS[each.name])
                conditions.append(c[each.name] == value)
        if self.since:
            conditions.append(c.received_at >= to_db_time(self.since))
        if self.until:
            conditions.append(c.received_at < to_db_time(self.until))
        return and_(*conditions)


EVERY_EVENT = Filter()


def newest(
    store: Store, wanted: Filter = EVERY_EVENT, *, limit: int = 20
) -> list[Mapping[str, Any]]:
    """The newest events first, without their bodies."""
    c = store.columns
    columns = [column for column in c if column.name not in ("body", "lease")]
    query = select(*columns).where(wanted.where(store)).order_by(c.id.desc())
    return [row._mapping for row in store.rows(query.limit(limit))]


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


def jobs_of(store: Store, row_id: int) -> list[Mapping[str, Any]]:
    """The jobs of an event, in the order of finishing."""
    j = store.database.tables.job.c
    query = select(*j).where(j.event == row_id).order_by(j.finished_at, j.subscriber)
    return [row._mapping for row in store.rows(query)]


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


class _RolledBack(BaseException):
    """Ends a transaction that is to leave nothing."""


def try_writes(store: Store) -> None:
    """Insert, update and delete a row in each table, and roll back.

    :raises InboxUnavailable: a statement failed; those of deliveries or runs will, too.
    """
    # Before the transaction: they may need a connection of their own.
    rows = {table: _trial_row(store, table) for table in store.database.tables}

    def work(connection: Connection) -> None:
        for table, row in rows.items():
            _try_writes(connection, table, row)
        raise _RolledBack

    with suppress(_RolledBack):
        store.run(work, begin=True)


def _try_writes(connection: Connection, table: Table, row: dict[str, Any]) -> None:
    key = connection.execute(insert(table), row).inserted_primary_key or ()
    columns = zip(table.primary_key, key, strict=True)
    mine = and_(*(column == value for column, value in columns))
    connection.execute(update(table).where(mine).values(row))
    connection.execute(select(*table.primary_key).where(mine))
    connection.execute(delete(table).where(mine))


def _trial_row(store: Store, table: Table) -> dict[str, Any]:
    tables, name, now = (
        store.database.tables,
        TRIAL + secrets.token_hex(8),
        store.db_now(),
    )
    if table is tables.event:
        event = Event(name, "check", body=b"{}")
        return dict(new_row(store, event, Status.PENDING, None))
    if table is tables.job:
        job = {"event": 0, "subscriber": name, "endpoint": store.endpoint}
        return {**job, "state": "done", "version": 1, "attempts": 1}
    if table is tables.key:
        return {"endpoint": store.endpoint, "subscriber": name, "key": name}
    if table is tables.tally:
        minute = now.replace(second=0, microsecond=0)
        tally = {"endpoint": store.endpoint, "minute": minute}
        return {**tally, "outcome": name, "count": 1}
    if table is tables.journal:
        row: dict[str, Any] = {"endpoint": store.endpoint, "action": "check", "at": now}
        return {**row, "event": None, "actor": name}
    return {"endpoint": store.endpoint, "name": name, "value": "null", "at": now}


def stored_schema(store: Store) -> int | None:
    """The schema number in the database; ``None`` if no ``init-db`` has written it."""
    tables = store.database.tables
    return store.run(lambda connection: schema_number(connection, tables))


def read_only(store: Store) -> str | None:
    """Why PostgreSQL refuses writes, if it does; other databases name it themselves."""
    if store.dialect_name != "postgresql":
        return None
    if store.run(_scalar("SELECT pg_is_in_recovery()")):
        return "the server is a standby (pg_is_in_recovery)"
    is_read_only = store.run(_scalar("SHOW transaction_read_only")) == "on"
    return "the session is read-only (transaction_read_only)" if is_read_only else None


def largest_packet(store: Store) -> int | None:
    """Bytes of a statement at most, where the server has such a limit."""
    if store.dialect_name not in ("mysql", "mariadb"):
        return None
    shown = store.run(_scalar("SELECT @@max_allowed_packet"))
    return None if shown is None else int(shown)


def _scalar(statement: str) -> Callable[[Connection], Any]:
    return lambda connection: connection.exec_driver_sql(statement).scalar()
