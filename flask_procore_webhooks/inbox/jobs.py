"""The work of each subscriber for an event: receipts, and what supersedes it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from dataclasses import field
from datetime import datetime
from typing import Any

from sqlalchemy import and_
from sqlalchemy import bindparam
from sqlalchemy import ColumnElement
from sqlalchemy import Connection
from sqlalchemy import exists
from sqlalchemy import insert
from sqlalchemy import literal_column
from sqlalchemy import or_
from sqlalchemy import select
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from ..event import Event
from ..storage.store import Store
from ..storage.store import to_db_time
from ..subscribers import ANY
from ..subscribers import Subscriber
from .record import TEXTS
from .status import ReceiptKind
from .status import Status

#: On PostgreSQL, the commit of a statement that returns this does not wait for the
#: disk. A crash of the database server may lose the last fraction of a second of such
#: commits, in order: the event runs again when its lease ends, and its receipts decide
#: about repetitions. Measured with subscribers that write nothing: 1.4 to 2.3 times as
#: many runs in five of six rounds. It is set for the transaction, so that the
#: connection comes back to the pool unchanged.
ASYNC_COMMIT: ColumnElement[str] = literal_column(
    "set_config('synchronous_commit', 'off', true)"
)
#: An event with one of these will run.
_UNFINISHED = (Status.PENDING.value, Status.RUNNING.value)


@dataclass(frozen=True)
class Receipt:
    """The record that a subscriber finished an event; it does not run for it again."""

    subscriber: str
    kind: ReceiptKind = ReceiptKind.DONE
    #: The version of the receipt of an abandoned call, as the claim saw it; 0 without
    #: a receipt.
    version: int = 0


@dataclass(frozen=True)
class SeenReceipts:
    """The receipts of an event as a claim saw them."""

    #: The subscribers that have finished.
    finished: set[str] = field(default_factory=set)
    #: The versions of the receipts of abandoned calls, by subscriber.
    abandoned: dict[str, int] = field(default_factory=dict)


def receipts(store: Store, row_id: int) -> dict[str, datetime]:
    """Return when each subscriber finished the event, by its name."""
    c = store.database.tables.receipt.c
    found = select(c.subscriber, c.finished_at).where(
        c.event == row_id, is_finished(store)
    )
    return {row.subscriber: row.finished_at for row in store.rows(found)}


def receipt_kind(store: Store, row_id: int, subscriber: str) -> ReceiptKind | None:
    """The kind of a subscriber's receipt for the event, ``None`` without one."""
    c = store.database.tables.receipt.c
    found = store.rows(
        select(c.ending).where(c.event == row_id, c.subscriber == subscriber)
    )
    return ReceiptKind(found[0].ending) if found else None


def is_finished(store: Store) -> ColumnElement[bool]:
    """The condition for receipts of subscribers that have finished."""
    return store.database.tables.receipt.c.ending != ReceiptKind.ABANDONED.value


def seen_receipts(
    store: Store, connection: Connection, rows: Iterable[int]
) -> dict[int, SeenReceipts]:
    """Return the receipts of each of ``rows`` that has some."""
    c = store.database.tables.receipt.c
    seen: dict[int, SeenReceipts] = {}
    for event, name, ending, version in connection.execute(
        select(c.event, c.subscriber, c.ending, c.version).where(c.event.in_(rows))
    ):
        of_event = seen.setdefault(event, SeenReceipts())
        if ending == ReceiptKind.ABANDONED.value:
            of_event.abandoned[name] = version
        else:
            of_event.finished.add(name)
    return seen


def async_commit(store: Store, change: Any) -> Any:
    """Return ``change`` with ``ASYNC_COMMIT`` on PostgreSQL, else unchanged."""
    is_postgresql = store.dialect_name == "postgresql"
    return change.returning(ASYNC_COMMIT) if is_postgresql else change


class RunStatements:
    """The statements that every run executes, built once for each database.

    Without that, a run takes 1.5 times as long (subscribers that write nothing).
    Parameters: ``row`` and ``token`` of the claim; ``name``, ``how`` and ``at`` of a
    receipt; ``seen``, the version of the receipt that ``completion`` replaces; for
    ``held`` and ``settle``, the columns to change.
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
        self.settle = async_commit(store, self.held)
        self.receipt = insert(tables.receipt).values(values)
        self.async_receipt = async_commit(store, self.receipt)
        c = tables.receipt.c
        #: Changes no row if the version has risen: the run has outlived its lease or
        #: its timeout.
        self.completion = (
            update(tables.receipt)
            .where(c.event == bindparam("row"), c.subscriber == bindparam("name"))
            .where(c.version == bindparam("seen"))
            .values(
                ending=bindparam("how"),
                finished_at=bindparam("at"),
                version=c.version + 1,
            )
        )
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
) -> bool:
    """Add the receipt to the session's transaction; the caller commits.

    :return: ``False`` if the receipt of that version is gone.
    :raises sqlalchemy.exc.IntegrityError: the claim saw no receipt, and there is one.
    """
    statements, values = run_statements(store), receipt_values(store, row_id, receipt)
    if not receipt.version:
        session.execute(statements.receipt, values)
        return True
    changed: Any = session.execute(statements.completion, values)
    return bool(changed.rowcount)


def finish(
    store: Store, row_id: int, receipt: Receipt, *, durable: bool = False
) -> None:
    """Commit the receipt by itself; a receipt of a later run stays as it is.

    :param durable: the commit waits for the disk.
    """
    statements, values = run_statements(store), receipt_values(store, row_id, receipt)
    statement = statements.receipt if durable else statements.async_receipt
    if receipt.version:
        statement = statements.completion

    try:
        store.run(lambda connection: connection.execute(statement, values))
    except IntegrityError:
        if receipt_kind(store, row_id, receipt.subscriber) is None:
            raise


def receipt_values(store: Store, row_id: int, receipt: Receipt) -> dict[str, Any]:
    """Return the parameters of a receipt, for :class:`RunStatements`."""
    values = {
        "row": row_id,
        "name": receipt.subscriber,
        "how": receipt.kind.value,
        "at": store.db_now(),
    }
    return values | {"seen": receipt.version} if receipt.version else values


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
    has_receipt = and_(
        receipt.event == c.id,
        receipt.subscriber == subscriber.name,
        is_finished(store),
    )
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
