"""The work of each subscriber for an event: receipts, and what supersedes it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import and_
from sqlalchemy import bindparam
from sqlalchemy import Connection
from sqlalchemy import exists
from sqlalchemy import insert
from sqlalchemy import or_
from sqlalchemy import select
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from ..event import Event
from ..subscribers import ANY
from ..subscribers import Subscriber
from .record import TEXTS
from .store import Store
from .store import to_db_time
from .tables import ReceiptKind
from .tables import Status

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


class RunStatements:
    """The statements that every run executes, built once for each database.

    Without that, a run takes 1.5 times as long (subscribers that write nothing).
    Parameters: ``row`` and ``token`` of the claim; ``name``, ``how`` and ``at`` of a
    receipt; for ``held`` and ``settle``, the columns to change.
    """

    def __init__(self, store: Store) -> None:
        tables, c = store.database.tables, store.columns
        receipt = {"event": "row", "subscriber": "name"}
        receipt |= {"ending": "how", "finished_at": "at"}
        values: dict[str, Any] = {
            column: bindparam(name) for column, name in receipt.items()
        }
        self.held = update(tables.event).where(
            c.id == bindparam("row"), c.lease == bindparam("token")
        )
        self.settle = store.async_commit(self.held)
        self.receipt = insert(tables.receipt).values(values)
        self.async_receipt = store.async_commit(self.receipt)
        #: Settles and writes a receipt: one statement instead of four round trips.
        self.finish: Any = None
        if store.dialect_name == "postgresql":
            from sqlalchemy.dialects import postgresql

            written = postgresql.insert(tables.receipt).values(values)
            written = written.on_conflict_do_nothing()
            self.finish = self.settle.add_cte(written.cte("written"))


def run_statements(store: Store) -> RunStatements:
    """The statements of the store's database."""
    parts = store.database.parts
    found: RunStatements | None = parts.get(RunStatements)
    return found or parts.setdefault(RunStatements, RunStatements(store))


def finish_in_session(
    store: Store, row_id: int, receipt: Receipt, session: Session
) -> None:
    """Add the receipt to the session's transaction; the caller commits.

    :raises sqlalchemy.exc.IntegrityError: another run has finished this subscriber.
    """
    values = receipt_values(store, row_id, receipt)
    session.execute(run_statements(store).receipt, values)


def finish(
    store: Store, row_id: int, receipt: Receipt, *, durable: bool = False
) -> None:
    """Commit the receipt by itself; a receipt that exists stays as it is.

    :param durable: the commit waits for the disk.
    """
    statements, values = run_statements(store), receipt_values(store, row_id, receipt)
    statement = statements.receipt if durable else statements.async_receipt

    def commit() -> None:
        with store.connection() as connection:
            connection.execute(statement, values)

    try:
        store.retry_transient(commit)
    except IntegrityError:
        if receipt.subscriber not in receipts(store, row_id):
            raise


def receipt_values(store: Store, row_id: int, receipt: Receipt) -> dict[str, Any]:
    """Return the parameters of a receipt, for :class:`RunStatements`."""
    return {
        "row": row_id,
        "name": receipt.subscriber,
        "how": receipt.kind.value,
        "at": store.db_now(),
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
