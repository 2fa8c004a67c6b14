"""Enqueued events: inserted in the transaction of the app's session, or at once."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection
from sqlalchemy import select
from sqlalchemy.orm import Session

from ..event import Event
from ..storage.servers import find_traits
from ..storage.store import Store
from ..storage.upserts import insert_unless_there
from .inserts import KEY
from .record import new_row
from .status import Status

#: ``Event.origin`` of an enqueued event.
ORIGIN = "enqueue"


@dataclass(frozen=True)
class EnqueueResult:
    """The row of an enqueued event, which may be that of an earlier one."""

    row_id: int
    is_new: bool
    #: ``None`` once pruned.
    body: bytes | None
    origin: str
    #: UTC, without a zone.
    received_at: datetime


def insert_event(
    store: Store, event: Event, connection: Connection
) -> EnqueueResult | None:
    """Insert the event, unless the inbox has one of its id.

    :return: the row in the inbox; ``None`` if it was committed after the snapshot that
        the transaction sees.
    """
    c = store.columns
    row = {**new_row(store, event, Status.PENDING, None), "origin": ORIGIN}
    is_new = insert_unless_there(connection, c.id.table, KEY, row)
    mine = c.endpoint == store.endpoint, c.event_id == event.id
    query = select(c.id, c.body, c.origin, c.received_at).where(*mine)
    found = connection.execute(query).one_or_none()
    if found is None:
        return None
    return EnqueueResult(found.id, is_new, found.body, found.origin, found.received_at)


def insert_in_session(
    store: Store, event: Event, session: Session
) -> EnqueueResult | None:
    """Like :func:`insert_event`, in the session's transaction; the caller commits."""
    database = store.database
    connection = session.connection(bind_arguments={"clause": database.tables.event})
    if database.traits is None:
        # A database in memory has one connection: another use of it would commit.
        database.traits = find_traits(connection)
    return insert_event(store, event, connection)
