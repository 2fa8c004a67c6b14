"""The work of each subscriber for an event: receipts, and what supersedes it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import and_
from sqlalchemy import Connection
from sqlalchemy import exists
from sqlalchemy import insert
from sqlalchemy import or_
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from ..event import Event
from ..subscribers import ANY
from ..subscribers import Subscriber
from .record import TEXTS
from .status import ReceiptKind
from .status import Status
from .store import Store
from .store import to_db_time

#: An event with one of these will run.
_UNFINISHED = (Status.PENDING.value, Status.RUNNING.value)


@dataclass(frozen=True)
class Receipt:
    """The record that a subscriber finished an event; it does not run for it again."""

    subscriber: str
    kind: ReceiptKind = ReceiptKind.DONE


def receipts(store: Store, row_id: int) -> dict[str, datetime]:
    """Return when each subscriber finished the event, by its name."""
    c = store.database.tables.receipt.c
    found = select(c.subscriber, c.finished_at).where(c.event == row_id)
    return {row.subscriber: row.finished_at for row in store.rows(found)}


def finished_subscribers(
    store: Store, connection: Connection, rows: Iterable[int]
) -> dict[int, set[str]]:
    """Return the names of the subscribers with receipts, for each of ``rows``."""
    c = store.database.tables.receipt.c
    finished: dict[int, set[str]] = {}
    for event, name in connection.execute(
        select(c.event, c.subscriber).where(c.event.in_(rows))
    ):
        finished.setdefault(event, set()).add(name)
    return finished


def finish_in_session(
    store: Store, row_id: int, receipt: Receipt, session: Session
) -> None:
    """Add the receipt to the session's transaction; the caller commits.

    :raises sqlalchemy.exc.IntegrityError: another run has finished this subscriber.
    """
    table = store.database.tables.receipt
    session.execute(insert(table), receipt_row(store, row_id, receipt))


def finish(
    store: Store, row_id: int, receipt: Receipt, *, durable: bool = False
) -> None:
    """Commit the receipt by itself; a receipt that exists stays as it is.

    :param durable: the commit waits for the disk.
    """
    statement: Any = insert(store.database.tables.receipt)
    if not durable:
        statement = store.async_commit(statement)
    row = receipt_row(store, row_id, receipt)

    def commit() -> None:
        with store.connection() as connection:
            connection.execute(statement, row)

    try:
        store.retry_transient(commit)
    except IntegrityError:
        if receipt.subscriber not in receipts(store, row_id):
            raise


def receipt_row(store: Store, row_id: int, receipt: Receipt) -> dict[str, Any]:
    """Return the values of a new row in the receipt table."""
    return {
        "event": row_id,
        "subscriber": receipt.subscriber,
        "ending": receipt.kind.value,
        "finished_at": store.db_now(),
    }


def has_newer(store: Store, row_id: int, event: Event, subscriber: Subscriber) -> bool:
    """Whether a newer event of the same resource supersedes this one.

    An event is superseded if a newer event of the resource is pending or running, or
    has a receipt for this subscriber. Events with and without a timestamp are not
    compared, because that order is not transitive.
    """
    c = store.columns
    resource_id = store.text(event.resource_id, TEXTS["resource_id"])
    if resource_id is None or resource_id != event.resource_id:
        # It is not stored whole, so another resource may look the same.
        return False
    when = to_db_time(event.timestamp) if event.timestamp else None
    later = and_(c.event_at == when, c.id > row_id)
    if when:
        later = or_(c.event_at > when, later)
    receipt = store.database.tables.receipt.c
    has_receipt = and_(receipt.event == c.id, receipt.subscriber == subscriber.name)
    newer = select(c.id).where(
        c.endpoint == store.endpoint,
        c.resource_id == resource_id,
        c.resource_type == store.text(event.resource_type, TEXTS["resource_type"]),
        c.id != row_id,
        later,
        or_(c.status.in_(_UNFINISHED), exists().where(has_receipt)),
    )
    # The subscriber does not run for another reason, so that event does not count.
    if subscriber.reason != ANY:
        newer = newer.where(c.reason == store.text(event.reason, TEXTS["reason"]))
    return bool(store.rows(newer.limit(1)))
