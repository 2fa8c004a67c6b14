"""Added events: those that the app or reconcile inserts, unless they are there."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import Connection
from sqlalchemy import func
from sqlalchemy import or_
from sqlalchemy import Select
from sqlalchemy import select
from sqlalchemy.orm import Session

from ..event import Event
from ..storage.servers import find_traits
from ..storage.store import Store
from ..storage.store import to_db_time
from ..storage.upserts import insert_unless_there
from .inserts import DELIVERY
from .inserts import KEY
from .record import new_row
from .status import Status

#: ``Event.origin`` of an enqueued event.
ENQUEUE = "enqueue"
#: Ids of one query, and rows of one transaction.
PART = 200


@dataclass(frozen=True)
class AddResult:
    """The row of an added event, which may be that of an earlier one."""

    row_id: int
    is_new: bool
    #: ``None`` once pruned.
    body: bytes | None
    origin: str
    #: UTC, without a zone.
    received_at: datetime


def insert_event(
    store: Store,
    event: Event,
    connection: Connection,
    status: Status = Status.PENDING,
) -> AddResult | None:
    """Insert the event with its origin, unless the inbox has one of its id.

    :return: the row in the inbox; ``None`` if it was committed after the snapshot that
        the transaction sees.
    """
    c = store.columns
    row = {**new_row(store, event, status, None), "origin": event.origin}
    is_new = insert_unless_there(connection, c.id.table, KEY, row)
    mine = c.endpoint == store.endpoint, c.event_id == event.id
    query = select(c.id, c.body, c.origin, c.received_at).where(*mine)
    found = connection.execute(query).one_or_none()
    if found is None:
        return None
    return AddResult(found.id, is_new, found.body, found.origin, found.received_at)


def connection_of(store: Store, session: Session) -> Connection:
    """The connection of the session's transaction to the inbox."""
    database = store.database
    connection = session.connection(bind_arguments={"clause": database.tables.event})
    if database.traits is None:
        # A database in memory has one connection: another use of it would commit.
        database.traits = find_traits(connection)
    return connection


def insert_events(store: Store, events: Iterable[tuple[Event, Status]]) -> list[int]:
    """Insert the events that the inbox lacks; return their row ids. Safe to repeat."""
    # In the order of their keys: two runs that insert the same wait for each other.
    every, inserted = sorted(events, key=lambda pair: pair[0].id), list[int]()
    store.traits()
    for start in range(0, len(every), PART):
        insert = partial(_insert_part, store, every[start : start + PART])
        inserted += store.run(insert, begin=True)
    return inserted


def _insert_part(
    store: Store, part: Iterable[tuple[Event, Status]], connection: Connection
) -> list[int]:
    found = [insert_event(store, event, connection, status) for event, status in part]
    return [each.row_id for each in found if each is not None and each.is_new]


def known_ids(store: Store, ids: Sequence[str]) -> set[str]:
    """The given event ids that the inbox has."""
    c = store.columns
    found: set[str] = set()
    for start in range(0, len(ids), PART):
        query = select(c.event_id).where(
            c.endpoint == store.endpoint, c.event_id.in_(ids[start : start + PART])
        )
        found |= {row.event_id for row in store.rows(query)}
    return found


def count_waiting(store: Store, origin: str) -> int:
    """How many events of that origin are not finished."""
    c = store.columns
    query = select(func.count()).where(
        c.endpoint == store.endpoint, c.origin == origin, c.due_at.is_not(None)
    )
    return int(store.rows(query)[0][0])


def with_id(store: Store, id: str) -> Select[Any]:
    """A query for the event of that id."""
    c = store.columns
    return select(c.id).where(c.endpoint == store.endpoint, c.event_id == id)


def seen_since(
    store: Store, resource_type: str, resource_id: str, since: datetime
) -> Select[Any]:
    """A query for an event of the resource that happened or was received since a time.

    An event that the loop filter ignored counts: else each change that the app itself
    made would be taken for a foreign one.

    :param since: aware.
    """
    c, at = store.columns, to_db_time(since)
    query = select(c.id).where(
        c.endpoint == store.endpoint,
        c.resource_id == resource_id,
        func.lower(c.resource_type) == resource_type.lower(),
        or_(c.event_at >= at, c.received_at >= at),
    )
    return query.limit(1)


def was_delivered(
    store: Store, since: datetime, until: datetime, company: str, project: str | None
) -> bool:
    """Whether an event that happened in that time was delivered to the inbox.

    :param project: the company's own events and those of any project if ``None``.
    """
    c = store.columns
    query = select(c.id).where(
        c.endpoint == store.endpoint,
        c.origin == DELIVERY,
        c.company_id == company,
        c.event_at >= to_db_time(since),
        c.event_at < to_db_time(until),
    )
    if project is not None:
        query = query.where(c.project_id == project)
    return bool(store.rows(query.limit(1)))
