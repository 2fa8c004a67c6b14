"""Claims: the right to run an event until a lease ends. Claim, renew, release, settle.

The database decides every change: by an update that is guarded by what was read before.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from collections.abc import Iterable
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

from .jobs import finish
from .jobs import finished_subscribers
from .jobs import Receipt
from .jobs import receipt_values
from .jobs import run_statements
from .record import LONGEST_ERROR
from .status import FINISHED
from .status import Status
from .store import Store
from .tables import lock_in_order


@dataclass(frozen=True)
class Claim:
    """The right to run one event until the lease ends."""

    row_id: int
    lease: str
    event_id: str
    #: The number of the run, from 1.
    attempt: int
    #: When the lease ends, unless it is renewed; as it is stored.
    ends: datetime
    body: bytes = field(repr=False)
    #: The subscribers that had receipts when the event was claimed.
    finished: Set[str] = frozenset()
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


def claim(
    store: Store,
    row_id: int,
    seconds: float,
    *,
    ignore_backoff: bool = False,
    ahead: float = 0.0,
    durable: bool = False,
) -> Claim | None:
    """Claim an event for ``seconds`` and count the attempt.

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
    query = select(c.id, c.event_id, c.attempts, c.lease, c.body)
    query = query.where(c.id == row_id, or_(free, mine))

    def work(connection: Connection) -> Claim | None:
        row = connection.execute(query).one_or_none()
        if row is None:
            return None
        finished = finished_subscribers(store, connection, [row_id])
        attempt = row.attempts + (row.lease != lease)
        if row.lease != lease:
            # Last, so that nothing can fail once it is claimed; if the event has run
            # since the query, its attempts differ.
            change = update(c.id.table).where(c.id == row_id, free)
            change = change.where(c.attempts == row.attempts)
            taken = change.values(_running(store, lease, ends))
            if connection.execute(taken).rowcount == 0:
                return None
        of_row: Set[str] = finished.get(row_id, frozenset())
        body = row.body or b""
        return Claim(row_id, lease, row.event_id, attempt, ends, body, of_row, durable)

    return store.run(work)


def claim_due(store: Store, limit: int, seconds: float) -> list[Claim]:
    """Claim up to ``limit`` due events for ``seconds``, longest due first.

    Their attempts are counted, so that an event that crashes its process runs out of
    attempts. SQLite has one write transaction at a time: query for due events first.
    """
    c, now, lease = store.columns, store.db_now(), secrets.token_hex(16)
    ends = now + timedelta(seconds=seconds)
    due = claimable(store, now)
    # Claimed by a try whose answer was lost.
    rows: list[int] = []
    query = select(c.id, c.status).where(c.endpoint == store.endpoint, due)
    if skips_locked := store.traits().skips_locked:
        query = query.with_for_update(skip_locked=True)
    query = query.order_by(c.due_at).limit(limit)

    def work(connection: Connection) -> list[Claim]:
        if rows and (claims := _claimed(store, connection, rows, lease, ends)):
            return claims
        rows[:] = _batch(connection.execute(query))
        if not rows:
            return []
        if not skips_locked:
            lock_in_order(connection, c.id.table, c.id.in_(rows))
        # Where rows were not locked, two claims may have found the same rows, and this
        # update decides.
        change = update(c.id.table).where(c.id.in_(rows), due)
        change = change.values(_running(store, lease, ends))
        connection.execute(store.async_commit(change))
        return _claimed(store, connection, rows, lease, ends)

    return store.run(work, begin=True)


def _claimed(
    store: Store,
    connection: Connection,
    rows: list[int],
    lease: str,
    ends: datetime,
) -> list[Claim]:
    """The claims of this lease among ``rows``, in their order."""
    c = store.columns
    # After the update, because another run may have ended since the query.
    finished = finished_subscribers(store, connection, rows)
    found = select(c.id, c.event_id, c.attempts, c.body)
    taken = connection.execute(found.where(c.id.in_(rows), c.lease == lease))
    claims = [
        Claim(
            row.id,
            lease,
            row.event_id,
            row.attempts,
            ends,
            row.body or b"",
            finished.get(row.id, frozenset()),
        )
        for row in taken
    ]
    return sorted(claims, key=lambda claim: rows.index(claim.row_id))


def renew(store: Store, claims: Collection[Claim], seconds: float) -> None:
    """Let the leases that are still held end ``seconds`` from now."""
    if claims:
        ends = store.db_now() + timedelta(seconds=seconds)
        _change_held(store, claims, due_at=ends)


def release(store: Store, claims: Collection[Claim]) -> None:
    """Make the events that are still held due now, without counting the attempt."""
    if not claims:
        return
    _change_held(
        store,
        claims,
        status=Status.PENDING.value,
        due_at=store.db_now(),
        lease=None,
        attempts=store.columns.attempts - 1,
    )


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
    statements = run_statements(store)
    settle = statements.held if claim.durable else statements.settle
    if receipt is not None:
        written = receipt_values(store, claim.row_id, receipt)

        def settle_with_receipt(connection: Connection) -> bool:
            connection.execute(statements.receipt, written)
            return connection.execute(settle, values).rowcount > 0

        try:
            if statements.finish is not None and not claim.durable:
                return _changes(store, statements.finish, values | written)
            return store.run(settle_with_receipt, begin=True)
        except IntegrityError:
            # The receipt may exist, and then only the outcome is missing.
            finish(store, claim.row_id, receipt, durable=claim.durable)
    return _changes(store, settle, values)


def _changes(store: Store, statement: Any, values: dict[str, Any]) -> bool:
    return store.run(lambda each: each.execute(statement, values).rowcount > 0)


def _running(store: Store, lease: str, ends: datetime) -> dict[str, Any]:
    return {
        "status": Status.RUNNING.value,
        "due_at": ends,
        "lease": lease,
        "attempts": store.columns.attempts + 1,
    }


def _change_held(store: Store, claims: Collection[Claim], **values: Any) -> None:
    """Change the rows that these claims still hold."""
    c = store.columns
    rows, leases = [each.row_id for each in claims], {each.lease for each in claims}
    held = c.id.in_(rows), c.lease.in_(leases)
    change = store.async_commit(update(c.id.table).where(*held).values(**values))

    def work(connection: Connection) -> None:
        lock_in_order(connection, c.id.table, *held)
        connection.execute(change)

    store.run(work, begin=True)


def _batch(found: Iterable[Any]) -> list[int]:
    """Return the rows to claim together.

    An event with an expired lease is claimed alone: it may have crashed its worker, and
    every event in its batch would lose an attempt.
    """
    rows = list(found)
    if rows and rows[0].status == Status.RUNNING.value:
        return [rows[0].id]
    return [row.id for row in rows if row.status == Status.PENDING.value]
