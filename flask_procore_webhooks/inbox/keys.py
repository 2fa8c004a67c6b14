"""Keys: what counts as the same for ``latest_only`` and ``one_at_a_time``.

Each key of a subscriber has a row: who holds it, what was done last, and since when an
event waits for a newer one.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from typing import Protocol

from sqlalchemy import and_
from sqlalchemy import case
from sqlalchemy import ColumnElement
from sqlalchemy import Connection
from sqlalchemy import delete
from sqlalchemy import insert
from sqlalchemy import null
from sqlalchemy import or_
from sqlalchemy import select
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from ..event import Event
from ..storage.store import Store
from ..storage.store import to_db_time
from ..subscribers import Subscriber
from .status import JobState


class _Ended(Protocol):
    """What is read of a job whose call has ended."""

    @property
    def state(self) -> JobState: ...
    @property
    def started_at(self) -> datetime | None: ...
    @property
    def is_pending(self) -> bool: ...


@dataclass(frozen=True)
class HeldKey:
    """The key of a job of a claimed event."""

    subscriber: Subscriber
    value: str
    row_id: int
    #: When the event happened, as it is stored.
    event_at: datetime | None
    #: The lease of the claim.
    lease: str

    @property
    def is_exclusive(self) -> bool:
        """Whether one job of the key runs at a time.

        With ``lag``, an event that follows while a call runs must know its begin.
        """
        return self.subscriber.one_at_a_time or self.has_lag

    @property
    def has_lag(self) -> bool:
        return self.subscriber.lag is not None and self.event_at is not None

    @property
    def names(self) -> dict[str, str]:
        return {"subscriber": self.subscriber.name, "key": self.value}


@dataclass(frozen=True)
class KeyState:
    """The row of a key."""

    done_event: int | None = None
    done_event_at: datetime | None = None
    done_untimed: int | None = None
    began_at: datetime | None = None
    first_at: datetime | None = None
    is_stored: bool = True

    def supersedes(self, key: HeldKey) -> bool:
        """Whether a newer event of the key is done."""
        if key.event_at is None:
            return self.done_untimed is not None and self.done_untimed > key.row_id
        done, at = self.done_event, self.done_event_at
        return done is not None and is_newer(at, done, key)


def key_state(store: Store, key: HeldKey) -> KeyState:
    """What is stored of the key."""
    k = store.database.tables.key.c
    done = (k.done_event, k.done_event_at, k.done_untimed)
    query = select(*done, k.began_at, k.first_at)
    found = store.rows(query.where(*key_row(store, key)))
    return KeyState(*found[0]) if found else KeyState(is_stored=False)


def note_waiting(
    store: Store, key: HeldKey, state: KeyState, received_at: datetime
) -> None:
    """Note that an event that was received then waits for a newer one."""
    k = store.database.tables.key.c
    if state.first_at is not None and state.first_at <= received_at:
        return
    is_earlier = or_(k.first_at.is_(None), k.first_at > received_at)
    change = update(k.key.table).where(*key_row(store, key), is_earlier)
    change = change.values(first_at=received_at)
    if not store.run(lambda each: each.execute(change).rowcount):
        insert_key(store, key, first_at=received_at)


def insert_key(store: Store, key: HeldKey, **values: Any) -> bool:
    """Insert the row of the key; ``False`` if it is there."""
    row = {"endpoint": store.endpoint, **key.names, **values}
    try:
        store.run(lambda each: each.execute(insert(store.database.tables.key), row))
    except IntegrityError:
        return False
    return True


def take(store: Store, key: HeldKey) -> datetime | None:
    """Take the key for a run; return until when another run holds it, if one does.

    A run holds it as long as it has the lease of its event, and at most until
    :func:`free_key`. Safe to repeat.
    """
    tables, c = store.database.tables, store.columns
    k, mine = tables.key.c, key_row(store, key)
    holder = {"holder": key.row_id, "lease": key.lease}

    def work(connection: Connection) -> tuple[bool, datetime | None]:
        # Locked before the holder's event is read: between the two, no other run can
        # take the key.
        query = select(k.holder, k.lease).where(*mine).with_for_update()
        row = connection.execute(query).one_or_none()
        if row is None:
            return False, None
        if row.holder not in (None, key.row_id):
            held = select(c.due_at).where(c.id == row.holder, c.lease == row.lease)
            ends = connection.scalar(held.where(c.due_at > store.db_now()))
            if ends is not None:
                return True, ends
        connection.execute(update(tables.key).where(*mine).values(holder))
        return True, None

    while True:
        is_stored, ends = store.run(work, begin=True)
        if is_stored or insert_key(store, key, **holder):
            return ends


def end_key(
    executor: Connection | Session, store: Store, key: HeldKey, job: _Ended
) -> None:
    """Free the key in the transaction in which its job ends; note what was done."""
    k = store.database.tables.key.c
    changes = [(k.first_at, null()), *(_freed(store, key) if key.is_exclusive else [])]
    if job.state is JobState.DONE:
        began = job.started_at
        later = or_(k.began_at.is_(None), k.began_at < began)
        changes.append((k.began_at, case((later, began), else_=k.began_at)))
        changes += _done(k, key)
    mine = key_row(store, key)
    change = update(k.key.table).where(*mine).ordered_values(*changes)
    executor.execute(change)
    if job.state is not JobState.DONE:
        # Without a noted end, the row says nothing, and would stay for ever.
        noted = (k.holder, k.done_event, k.done_untimed, k.began_at)
        empty = (column.is_(None) for column in noted)
        executor.execute(delete(k.key.table).where(*mine, *empty))


def let_go(store: Store, key: HeldKey, job: _Ended) -> bool:
    """Free the key of a job that has failed or waits; ``False`` if it held none."""
    if not job.is_pending:
        store.run(lambda connection: end_key(connection, store, key, job))
        return True
    if key.is_exclusive:
        free_key(store, key)
    return key.is_exclusive


def free_key(store: Store, key: HeldKey) -> None:
    """Let other runs take the key: its job has failed or is put off."""
    change = update(store.database.tables.key).where(*key_row(store, key))
    change = change.ordered_values(*_freed(store, key))
    store.run(lambda connection: connection.execute(change))


def is_free(store: Store, key: HeldKey) -> bool:
    """Whether no run holds the key."""
    c, k = store.columns, store.database.tables.key.c
    live = (c.id == k.holder, c.lease == k.lease, c.due_at > store.db_now())
    return not store.rows(select(c.id).where(*key_row(store, key), *live))


def _done(k: Any, key: HeldKey) -> list[tuple[Any, Any]]:
    """The changes of a key whose job is done: the newest done event is kept."""
    when, row_id = key.event_at, key.row_id
    if when is None:
        newest = or_(k.done_untimed.is_(None), k.done_untimed < row_id)
        return [(k.done_untimed, case((newest, row_id), else_=k.done_untimed))]
    earlier = and_(k.done_event_at == when, k.done_event < row_id)
    newest = or_(k.done_event_at.is_(None), k.done_event_at < when, earlier)
    # MariaDB assigns from left to right: of equal times, the time needs no change.
    return [
        (k.done_event, case((newest, row_id), else_=k.done_event)),
        (k.done_event_at, case((newest, when), else_=k.done_event_at)),
    ]


def is_newer(at: datetime | None, row_id: int, key: HeldKey) -> bool:
    """Whether an event that happened then is newer; some cannot be compared."""
    if at is None or key.event_at is None:
        return at is key.event_at and row_id > key.row_id
    return (at, row_id) > (key.event_at, key.row_id)


def _freed(store: Store, key: HeldKey) -> list[tuple[Any, Any]]:
    # MariaDB assigns from left to right: a tested column is changed last.
    k = store.database.tables.key.c
    is_mine = k.lease == key.lease
    return [
        (k.holder, case((is_mine, null()), else_=k.holder)),
        (k.lease, case((is_mine, null()), else_=k.lease)),
    ]


def key_row(store: Store, key: HeldKey) -> tuple[ColumnElement[bool], ...]:
    k = store.database.tables.key.c
    return (
        k.endpoint == store.endpoint,
        k.subscriber == key.subscriber.name,
        k.key == key.value,
    )


def held_key(
    subscriber: Subscriber, event: Event, row_id: int, lease: str
) -> HeldKey | None:
    """The key of the subscriber's job; ``None`` if it has none."""
    if not (subscriber.latest_only or subscriber.one_at_a_time):
        return None
    value = subscriber.key_of(event)
    if value is None:
        return None
    return key_of_job(subscriber, value, event, row_id, lease)


def key_of_job(
    subscriber: Subscriber, value: str, event: Event, row_id: int, lease: str
) -> HeldKey:
    """The key ``value`` of the subscriber's job."""
    event_at = to_db_time(event.timestamp) if event.timestamp else None
    return HeldKey(subscriber, value, row_id, event_at, lease)
