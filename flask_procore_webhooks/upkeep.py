"""What operators do to the inbox: replay, prune, pause, and the journal of it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Set
from datetime import datetime
from typing import Any

from sqlalchemy import and_
from sqlalchemy import ColumnElement
from sqlalchemy import Connection
from sqlalchemy import Delete
from sqlalchemy import delete
from sqlalchemy import exists
from sqlalchemy import func
from sqlalchemy import insert
from sqlalchemy import Select
from sqlalchemy import select
from sqlalchemy import Update
from sqlalchemy import update

from .inbox import Inbox
from .states import FINISHED
from .states import Status
from .store import clean
from .store import naive

#: Rows that are changed in one transaction.
BATCH = 500
#: The id of an event is kept this many times as long as its body, so that a late copy
#: of it is still a duplicate.
IDS_KEPT = 4

PAUSE, RESUME, REPLAY = "pause", "resume", "replay"


def is_paused(inbox: Inbox) -> bool:
    """Whether background threads and workers leave the endpoint's events alone."""
    return [row.action for row in inbox.rows(_last_action(inbox))] == [PAUSE]


def seconds_to_work(inbox: Inbox) -> float | None:
    """Seconds until an event may be run, 0.0 if one may be now; ``None`` if paused.

    All that a worker without work has to ask, in one statement.
    """
    paused = _last_action(inbox).scalar_subquery().label("action")
    look = select(inbox.first_due().scalar_subquery().label("due_at"), paused)
    ((due_at, action),) = inbox.rows(look)
    return None if action == PAUSE else inbox.seconds_until(due_at)


def _last_action(inbox: Inbox) -> Select[tuple[str]]:
    j = inbox.database.tables.journal.c
    return (
        select(j.action)
        .where(j.endpoint == inbox.endpoint, j.action.in_((PAUSE, RESUME)))
        .order_by(j.id.desc())
        .limit(1)
    )


def pause(inbox: Inbox, actor: str) -> None:
    """Have nobody run the endpoint's events until :func:`resume`; they come in."""
    _note(inbox, PAUSE, actor)


def resume(inbox: Inbox, actor: str) -> None:
    """End a pause; workers look at the latest after their next poll."""
    _note(inbox, RESUME, actor)


def journal_of(inbox: Inbox, row_id: int) -> list[Mapping[str, Any]]:
    """What was done to an event: ``action``, ``at``, ``actor``; oldest first."""
    j = inbox.database.tables.journal.c
    look = select(j.action, j.at, j.actor).where(j.event == row_id).order_by(j.id)
    return [dict(row._mapping) for row in inbox.rows(look)]


def replay(inbox: Inbox, rows: list[int], actor: str, *, anew: bool = False) -> int:
    """Make finished events due now, with all their attempts before them.

    Every subscriber of a done event is run again; of a dead one, those that have not
    finished. An event whose body was pruned stays as it is. Safe to repeat.

    :param rows: row ids, at most :data:`BATCH`.
    :param anew: run every subscriber of dead events again too.
    :return: how many are due now.
    """
    return inbox.persistently(lambda: _replay(inbox, rows, actor, anew))


def _replay(inbox: Inbox, rows: list[int], actor: str, anew: bool) -> int:
    dead = {Status.DEAD.value}
    others = {status.value for status in FINISHED} - dead
    with inbox.transaction() as connection:
        revived = _revive(inbox, connection, rows, dead)
        finished = _revive(inbox, connection, rows, others)
        receipt = inbox.database.tables.receipt
        forgotten = finished + (revived if anew else [])
        connection.execute(delete(receipt).where(receipt.c.event.in_(forgotten)))
        entries = [_entry(inbox, REPLAY, actor, row) for row in revived + finished]
        if entries:
            connection.execute(insert(inbox.database.tables.journal), entries)
    return len(entries)


def _revive(
    inbox: Inbox, connection: Connection, rows: list[int], statuses: Set[str]
) -> list[int]:
    """Make those of ``rows`` pending that have such a status and a body; return them.

    A token tells which they are: between a look and the update they could change.
    """
    c, token = inbox.columns, secrets.token_hex(16)
    has_body = c.body.is_not(None)
    mine = and_(c.id.in_(rows), c.endpoint == inbox.endpoint)
    change = update(c.id.table).where(mine, c.status.in_(statuses), has_body)
    connection.execute(
        change.values(
            status=Status.PENDING.value,
            attempts=0,
            due_at=inbox.naive_now(),
            finished_at=None,
            lease=token,
        )
    )
    marked = and_(mine, c.lease == token)
    revived = list(connection.scalars(select(c.id).where(marked)))
    connection.execute(update(c.id.table).where(marked).values(lease=None))
    return revived


def prune_bodies(inbox: Inbox, before: datetime, *, dead: bool) -> Iterator[int]:
    """Remove the bodies of events finished before then; yields counts, batch by batch.

    Their rows stay: a late copy of such an event is still a duplicate.

    :param dead: of dead events too, which cannot be replayed after that.
    """
    body = inbox.columns.body
    old = and_(_is_old(inbox, before, dead), body.is_not(None))
    for window in _windows(inbox, before):
        change = update(body.table).where(_within(inbox.columns.id, window), old)
        yield _execute(inbox, change.values(body=None))


def prune_rows(inbox: Inbox, before: datetime, *, dead: bool) -> Iterator[int]:
    """Remove events finished before then and what belongs to them, batch by batch.

    A copy of such an event that comes later is a new event.
    """
    tables, c = inbox.database.tables, inbox.columns
    old = _is_old(inbox, before, dead)
    for window in _windows(inbox, before):
        count = _execute(inbox, delete(tables.event).where(_within(c.id, window), old))
        # By what is there, so that a prune that was killed here is made good.
        for other in (tables.receipt, tables.journal):
            orphaned = ~exists().where(c.id == other.c.event)
            orphans = and_(_within(other.c.event, window), orphaned)
            _execute(inbox, delete(other).where(orphans))
        yield count


def _execute(inbox: Inbox, change: Update | Delete) -> int:
    """Make a change that may meet others, and be asked to try again."""

    def execute() -> int:
        # In a transaction, for its level: in MariaDB's own, new events would wait.
        with inbox.transaction() as connection:
            return connection.execute(change).rowcount

    return inbox.persistently(execute)


def _is_old(inbox: Inbox, before: datetime, dead: bool) -> ColumnElement[bool]:
    c = inbox.columns
    statuses = [s.value for s in FINISHED if dead or s is not Status.DEAD]
    return and_(
        c.endpoint == inbox.endpoint,
        c.status.in_(statuses),
        c.finished_at < naive(before),
    )


def _windows(inbox: Inbox, before: datetime) -> Iterator[tuple[int, int]]:
    """Ranges of row ids of :data:`BATCH` rows each, from the oldest on, while there are
    events that came in before then.

    Between two of them, others have the database for as long as one took.
    """
    c, last = inbox.columns, 0
    while True:
        start = time.monotonic()
        rows = select(c.id, c.received_at).where(c.id > last).order_by(c.id)
        part = rows.limit(BATCH).subquery()
        look = select(func.max(part.c.id).label("end"), func.min(part.c.received_at))
        ((end, oldest),) = inbox.rows(look)
        if end is None or oldest >= naive(before):
            return
        yield last, end
        last = end
        time.sleep(time.monotonic() - start)


def _within(column: ColumnElement[int], window: tuple[int, int]) -> ColumnElement[bool]:
    first, last = window
    return and_(column > first, column <= last)


def _note(inbox: Inbox, action: str, actor: str) -> None:
    with inbox.connection() as connection:
        entry = _entry(inbox, action, actor)
        connection.execute(insert(inbox.database.tables.journal), entry)


def _entry(
    inbox: Inbox, action: str, actor: str, row_id: int | None = None
) -> dict[str, Any]:
    return {
        "endpoint": inbox.endpoint,
        "action": action,
        "event": row_id,
        "at": inbox.naive_now(),
        "actor": clean(actor, 160),
    }
