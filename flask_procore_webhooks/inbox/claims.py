"""Claims: the right to run an event until a lease ends. Claim, settle.

The database decides every change: by an update that is guarded by what was read before.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from collections.abc import Set
from dataclasses import dataclass
from dataclasses import field
from datetime import datetime
from datetime import timedelta
from typing import Any

from sqlalchemy import and_
from sqlalchemy import ColumnElement
from sqlalchemy import Connection
from sqlalchemy import or_
from sqlalchemy import select
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError

from ..storage.store import Store
from .jobs import finish
from .jobs import Receipt
from .jobs import receipt_values
from .jobs import run_statements
from .jobs import seen_receipts
from .jobs import SeenReceipts
from .record import LONGEST_ERROR
from .status import FINISHED
from .status import Status

NO_RECEIPTS = SeenReceipts()


@dataclass(frozen=True)
class Claim:
    """The right to run one event until the lease ends."""

    row_id: int
    lease: str
    event_id: str
    #: The number of this attempt, from 1; it is counted when it ends.
    attempt: int
    #: When the lease ends, unless it is renewed; as it is stored.
    ends: datetime
    body: bytes = field(repr=False)
    #: The subscribers that had receipts when the event was claimed.
    finished: Set[str] = frozenset()
    #: The versions of the receipts of abandoned calls at that time, by subscriber.
    abandoned: Mapping[str, int] = field(default_factory=dict)
    #: Earlier claims in a row that ended without an outcome. The event is a suspect
    #: then: it may have killed its processes.
    unsettled: int = 0
    #: Whether the outcome waits for the disk: the sender is answered by it.
    durable: bool = False


@dataclass(frozen=True)
class Settlement:
    """How a run ends."""

    status: Status
    error: str | None = None
    #: Seconds to the next run, for ``PENDING``.
    wait: float = 0.0
    #: Committed together with the status, even if the lease has passed on.
    receipt: Receipt | None = None
    #: Whether the attempt counts.
    is_counted: bool = True


def claim(
    store: Store,
    row_id: int,
    seconds: float,
    *,
    ignore_backoff: bool = False,
    ahead: float = 0.0,
    durable: bool = False,
) -> Claim | None:
    """Claim an event for ``seconds`` and count the claim.

    :param ignore_backoff: also while it waits for its next attempt.
    :param ahead: also if that is due within so many seconds.
    :param durable: its outcome will wait for the disk.
    :return: ``None`` when it is finished, not due, or another run holds it.
    """
    c, now = store.columns, store.db_now()
    lease, ends = secrets.token_hex(16), now + timedelta(seconds=seconds)
    free = claimable(store, now, ignore_backoff, ahead)
    # Claimed by a try whose answer was lost.
    mine = c.lease == lease
    query = select(
        c.event_id, c.attempts, c.claims, c.status, c.due_at, c.lease, c.body
    ).where(c.id == row_id, or_(free, mine))

    def work(connection: Connection) -> Claim | None:
        row = connection.execute(query).one_or_none()
        if row is None:
            return None
        receipts = seen_receipts(store, connection, [row_id]).get(row_id, NO_RECEIPTS)
        unsettled, attempts = unsettled_claims(row), row.attempts
        if row.lease == lease:
            unsettled -= 1
        else:
            # Last, so that nothing can fail once it is claimed; if the event has run
            # since the query, its due time differs.
            change = update(c.id.table).where(c.id == row_id, free)
            change = change.where(c.due_at == row.due_at, c.claims == row.claims)
            taken = change.values(running_values(store, lease, ends, row))
            if connection.execute(taken).rowcount == 0:
                return None
            attempts -= is_counted_early(row)
        return Claim(
            row_id,
            lease,
            row.event_id,
            attempts + 1,
            ends,
            row.body or b"",
            receipts.finished,
            receipts.abandoned,
            unsettled,
            durable,
        )

    return store.run(work)


def count_attempt(store: Store, claim: Claim, *, counted: bool = True) -> bool:
    """Count the attempt of a suspect before it ends, or take that back.

    :return: ``False``, with the event unchanged, when the lease has passed on.
    """
    values = {
        "row": claim.row_id,
        "token": claim.lease,
        "attempts": claim.attempt if counted else claim.attempt - 1,
    }
    settle = run_statements(store).settle
    return store.run(lambda each: each.execute(settle, values).rowcount > 0)


def settle(store: Store, claim: Claim, end: Settlement) -> bool:
    """End a run.

    :return: ``False``, with the event unchanged, when its lease has passed on.
    """
    now = store.db_now()
    is_finished = end.status in FINISHED
    values = {
        "row": claim.row_id,
        "token": claim.lease,
        "status": end.status.value,
        "attempts": claim.attempt if end.is_counted else claim.attempt - 1,
        "claims": 0,
        "error": store.text(end.error, LONGEST_ERROR) if end.error else None,
        "lease": None,
        "due_at": None if is_finished else now + timedelta(seconds=end.wait),
        "finished_at": now if is_finished else None,
    }
    return _settle(store, claim, values, end.receipt)


def claimable(
    store: Store, now: datetime, ignore_backoff: bool = False, ahead: float = 0.0
) -> ColumnElement[bool]:
    """The condition for events that may be claimed.

    :param ignore_backoff: also events that wait for their next attempt.
    :param ahead: also events that wait for at most so many seconds.
    """
    c = store.columns
    due, waits = c.due_at <= now, c.status == Status.PENDING.value
    if ignore_backoff:
        return or_(due, waits)
    if ahead:
        return or_(due, and_(waits, c.due_at <= now + timedelta(seconds=ahead)))
    return due


def _settle(
    store: Store, claim: Claim, values: dict[str, Any], receipt: Receipt | None
) -> bool:
    statements, tries = run_statements(store), 0
    settle = change = statements.held if claim.durable else statements.settle
    write: Any = None
    written: dict[str, Any] = {}
    if receipt is not None:
        written = receipt_values(store, claim.row_id, receipt)
        write = statements.completion if receipt.version else statements.receipt
        if statements.finish is not None and not receipt.version and not claim.durable:
            write, change = None, statements.finish

    def work(connection: Connection) -> bool:
        nonlocal tries
        tries += 1
        if write is not None:
            connection.execute(write, written)
        return connection.execute(change, values | written).rowcount > 0

    try:
        is_settled = store.run(work, begin=write is not None)
    except IntegrityError:
        if receipt is None:
            raise
        # The receipt may exist, and then only the outcome is missing.
        finish(store, claim.row_id, receipt, durable=claim.durable)
        write, change, written = None, settle, {}
        is_settled = store.run(work)
    return is_settled or tries > 1 and _was_settled(store, values)


def _was_settled(store: Store, values: dict[str, Any]) -> bool:
    """Whether a try whose answer was lost has settled the event."""
    c = store.columns
    names = ("status", "attempts", "lease", "due_at", "finished_at")
    same = [c[name] == values[name] for name in names]
    return bool(store.rows(select(c.id).where(c.id == values["row"], *same)))


def running_values(
    store: Store, lease: str, ends: datetime, first: Any
) -> dict[str, Any]:
    """The values of claimed rows.

    :param first: of the rows; without others if its attempt was counted early.
    """
    c = store.columns
    values = {
        "status": Status.RUNNING.value,
        "due_at": ends,
        "lease": lease,
        "claims": c.claims + 1,
    }
    return values | {"attempts": c.attempts - 1} if is_counted_early(first) else values


def unsettled_claims(row: Any) -> int:
    claims: int = row.claims
    return claims or int(is_counted_early(row))


def is_counted_early(row: Any) -> bool:
    """Whether an earlier version of the package has claimed the row.

    It counted the attempt when it began, and no claims.
    """
    return bool(row.status == Status.RUNNING.value and not row.claims)
