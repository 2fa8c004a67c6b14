"""Operations on the inbox: replay, prune, pause, the journal, and the state table."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from datetime import datetime
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import and_
from sqlalchemy import ColumnElement
from sqlalchemy import Connection
from sqlalchemy import Delete
from sqlalchemy import delete
from sqlalchemy import exists
from sqlalchemy import func
from sqlalchemy import insert
from sqlalchemy import or_
from sqlalchemy import select
from sqlalchemy import Update
from sqlalchemy import update

from ..storage.state import put_value
from ..storage.state import WHOLE_INBOX
from ..storage.store import Store
from ..storage.store import to_db_time
from ..storage.tables import lock_in_order
from .due import PAUSE
from .due import RESUME
from .status import FINISHED
from .status import Status

#: Rows that one transaction changes.
BATCH = 500
#: The row of an event is kept this many times as long as its body, so that a late copy
#: is still recognised as a repeat.
IDS_KEPT = 4

REPLAY = "replay"

#: Prefix of the names of rows in which processes say that they run events.
SEEN = "seen:"
#: Seconds between two such notes of a process.
SEEN_EVERY = 60.0
SEEN_KEPT = timedelta(days=1)
_STARTED_AT = int(time.time())


def pause(store: Store, actor: str) -> None:
    """Pause the endpoint: events are recorded, and none runs until :func:`resume`."""
    _note(store, PAUSE, actor)


def resume(store: Store, actor: str) -> None:
    """End a pause; workers notice it at their next poll at the latest."""
    _note(store, RESUME, actor)


def put_state(
    store: Store, name: str, value: object, *, endpoint: str | None = None
) -> None:
    """Set a value in the state table; safe to repeat and to race.

    :param name: at most 190 ASCII characters.
    :param value: is stored as JSON.
    :param endpoint: ``""`` for the whole inbox; by default the store's endpoint.
    """
    owner = store.endpoint if endpoint is None else endpoint
    tables, now = store.database.tables, store.db_now()
    store.run(lambda each: put_value(each, tables, owner, name, value, now))


def states(store: Store, prefix: str) -> list[Mapping[str, Any]]:
    """``name``, ``value`` and ``at`` of the names with that prefix, newest first.

    Of the endpoint and of the whole inbox.
    """
    s = store.database.tables.state.c
    query = select(s.name, s.value, s.at).where(
        s.endpoint.in_((store.endpoint, WHOLE_INBOX)),
        s.name.startswith(prefix, autoescape=True),
    )
    found = store.rows(query.order_by(s.at.desc()))
    return [{**row._mapping, "value": json.loads(row.value)} for row in found]


def is_note_due(store: Store) -> bool:
    """Whether :func:`note_seen` would make a note now."""
    noted_at: float = store.database.parts.get(SEEN, float("-inf"))
    return time.monotonic() - noted_at >= SEEN_EVERY


def note_seen(
    store: Store,
    mode: str,
    endpoints: Iterable[str] | None = None,
    runs: Sequence[int] = (),
    longest: Mapping[str, Any] | None = None,
) -> None:
    """Note that this process runs events of the inbox, at most once a minute.

    ``check`` and ``stats`` read the notes.

    :param mode: ``worker``, ``background`` or ``celery``.
    :param endpoints: names of the endpoints whose events it runs; ``None`` for all.
    :param runs: of each thread, since the process started.
    :param longest: ``subscriber``, ``event`` and ``seconds`` of the call that has been
        going on for longest.
    """
    if not is_note_due(store):
        return
    store.database.parts[SEEN] = time.monotonic()
    names = None if endpoints is None else list(endpoints)
    value: dict[str, Any] = {"mode": mode, "endpoints": names, "longest": longest}
    value |= {"threads": len(runs) or None, "runs": sum(runs) if runs else None}
    host = socket.gethostname().encode("ascii", "backslashreplace").decode()[:100]
    name = f"{SEEN}{host}:{os.getpid()}:{_STARTED_AT}"
    put_state(store, name, value, endpoint=WHOLE_INBOX)


def prune_seen(store: Store) -> int:
    """Remove the notes of processes that are older than a day."""
    s = store.database.tables.state.c
    is_old = s.at < store.db_now() - SEEN_KEPT
    mine = and_(s.endpoint == WHOLE_INBOX, s.name.startswith(SEEN, autoescape=True))
    return _execute(store, delete(s.name.table).where(mine, is_old))


def journal_of(store: Store, row_id: int) -> list[Mapping[str, Any]]:
    """The journal entries of an event: ``action``, ``at``, ``actor``; oldest first."""
    j = store.database.tables.journal.c
    query = select(j.action, j.at, j.actor).where(j.event == row_id)
    return [dict(row._mapping) for row in store.rows(query.order_by(j.id))]


def replay(
    store: Store, rows: list[int], actor: str, *, rerun_all: bool = False
) -> int:
    """Make finished events due now and reset their attempts.

    Every subscriber of a done event runs again; of a dead event, the subscribers
    without a receipt. An event whose body was pruned stays as it is. Safe to repeat.

    :param rows: row ids, at most :data:`BATCH`.
    :param rerun_all: run every subscriber of dead events again too.
    :return: how many are due now.
    """
    actor = _actor_text(store, actor)
    work = partial(_replay, store, rows, actor, rerun_all)
    return store.run(work, begin=True)


def _replay(
    store: Store, rows: list[int], actor: str, rerun_all: bool, connection: Connection
) -> int:
    c, j = store.columns, store.database.tables.job.c
    mine = c.id.in_(rows), c.endpoint == store.endpoint
    lock_in_order(connection, c.id.table, *mine)
    finished = c.status.in_([status.value for status in FINISHED])
    query = select(c.id, c.status).where(*mine, finished, c.body.is_not(None))
    found = list(connection.execute(query.order_by(c.id)))
    if not found:
        return 0
    due, now = [row.id for row in found], store.db_now()
    values = {"status": "pending", "due_at": now, "parked_at": None}
    change = update(c.id.table).where(c.id.in_(due))
    connection.execute(change.values(**values, finished_at=None, lease=None))
    dead = [row.id for row in found if row.status == "dead" and not rerun_all]
    again = or_(j.event.not_in(dead), j.state == "dead")
    job = update(j.event.table).where(j.event.in_(due), again)
    values = {"state": "pending", "version": j.version + 1, "attempts": 0}
    values |= {"due_at": now, "waits_for": "nothing", "first_at": None}
    connection.execute(job.values(**values, finished_at=None, dead_at=None))
    entries = [_entry(store, REPLAY, actor, row) for row in due]
    connection.execute(insert(store.database.tables.journal), entries)
    return len(due)


def prune_bodies(store: Store, before: datetime, *, dead: bool) -> Iterator[int]:
    """Remove the bodies of events that finished before then; yield counts of batches.

    Their rows stay: a late copy of such an event is still a repeat.

    :param dead: also of dead events, which cannot be replayed after that.
    """
    body = store.columns.body
    old = and_(_is_old(store, before, dead), body.is_not(None))
    for window in _windows(store, before):
        where = _within(store.columns.id, window), old
        change = update(body.table).where(*where).values(body=None)
        yield _execute(store, change, *where)


def prune_rows(store: Store, before: datetime, *, dead: bool) -> Iterator[int]:
    """Remove events that finished before then, with receipts and journal entries.

    A copy of such an event that is received later is a new event.

    :return: yields counts of batches.
    """
    tables, c = store.database.tables, store.columns
    old = _is_old(store, before, dead)
    for window in _windows(store, before):
        where = _within(c.id, window), old
        count = _execute(store, delete(tables.event).where(*where), *where)
        # By existing rows, so that the next prune completes an interrupted one.
        for other in (tables.job, tables.journal):
            orphaned = ~exists().where(c.id == other.c.event)
            orphans = _within(other.c.event, window), orphaned
            _execute(store, delete(other).where(*orphans), *orphans)
        yield count


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


def _is_old(store: Store, before: datetime, dead: bool) -> ColumnElement[bool]:
    c = store.columns
    statuses = [s.value for s in FINISHED if dead or s is not Status.DEAD]
    return and_(
        c.endpoint == store.endpoint,
        c.status.in_(statuses),
        c.finished_at < to_db_time(before),
    )


def _windows(store: Store, before: datetime) -> Iterator[tuple[int, int]]:
    """Yield ranges of row ids with :data:`BATCH` rows each, oldest first.

    They end at the first range whose events were all received after ``before``. Between
    two ranges, the prune sleeps for as long as the first took.
    """
    c, last = store.columns, 0
    while True:
        start = time.monotonic()
        rows = select(c.id, c.received_at).where(c.id > last).order_by(c.id)
        part = rows.limit(BATCH).subquery()
        query = select(func.max(part.c.id).label("end"), func.min(part.c.received_at))
        ((end, oldest),) = store.rows(query)
        if end is None or oldest >= to_db_time(before):
            return
        yield last, end
        last = end
        time.sleep(time.monotonic() - start)


def _within(column: ColumnElement[int], window: tuple[int, int]) -> ColumnElement[bool]:
    first, last = window
    return and_(column > first, column <= last)


def _note(store: Store, action: str, actor: str) -> None:
    entry = _entry(store, action, _actor_text(store, actor))
    journal = insert(store.database.tables.journal)
    store.run(lambda connection: connection.execute(journal, entry))


def _actor_text(store: Store, actor: str) -> str:
    """The actor as it is stored; may connect, so call it without a connection."""
    return store.text(actor, 160) or ""


def _entry(
    store: Store, action: str, actor: str, row_id: int | None = None
) -> dict[str, Any]:
    return {
        "endpoint": store.endpoint,
        "action": action,
        "event": row_id,
        "at": store.db_now(),
        "actor": actor,
    }
