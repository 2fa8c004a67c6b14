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

from sqlalchemy import ColumnElement
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
from .store import Store
from .tables import FINISHED
from .tables import Status


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
    durable: bool = False,
) -> Claim | None:
    """Claim an event for ``seconds`` and count the attempt.

    :param ignore_backoff: also while it waits for its next attempt.
    :param durable: its outcome will wait for the disk.
    :return: ``None`` when it is finished, not due, or another run holds it.
    """
    c, now = store.columns, store.db_now()
    free = claimable(store, now, ignore_backoff)
    query = select(c.id, c.event_id, c.attempts, c.body).where(c.id == row_id, free)
    lease, ends = secrets.token_hex(16), now + timedelta(seconds=seconds)
    with store.connection() as connection:
        row = connection.execute(query).one_or_none()
        if row is None:
            return None
        finished = finished_subscribers(store, connection, [row_id])
        # Last, so that nothing can fail once it is claimed; if the event has run since
        # the query, its attempts differ.
        change = update(c.id.table).where(c.id == row_id, free)
        change = change.where(c.attempts == row.attempts)
        taken = change.values(_running(store, lease, ends))
        if connection.execute(taken).rowcount == 0:
            return None
    return Claim(
        row_id,
        lease,
        row.event_id,
        row.attempts + 1,
        ends,
        row.body or b"",
        finished.get(row_id, frozenset()),
        durable,
    )


def claim_due(store: Store, limit: int, seconds: float) -> list[Claim]:
    """Claim up to ``limit`` due events for ``seconds``, longest due first.

    Their attempts are counted, so that an event that crashes its process runs out of
    attempts. SQLite has one write transaction at a time: query for due events first.
    """
    c, now, lease = store.columns, store.db_now(), secrets.token_hex(16)
    ends = now + timedelta(seconds=seconds)
    due = claimable(store, now)
    query = select(c.id, c.status).where(c.endpoint == store.endpoint, due)
    if store.traits().skips_locked:
        query = query.with_for_update(skip_locked=True)
    with store.transaction() as connection:
        rows = _batch(connection.execute(query.order_by(c.due_at).limit(limit)))
        if not rows:
            return []
        # Where rows were not locked, two claims may have found the same rows, and this
        # update decides.
        change = update(c.id.table).where(c.id.in_(rows), due)
        change = change.values(_running(store, lease, ends))
        connection.execute(store.async_commit(change))
        # Afterwards, because another run may have ended since the query.
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
    _change_held(store, claims, due_at=store.db_now() + timedelta(seconds=seconds))


def release(store: Store, claims: Collection[Claim]) -> None:
    """Make the events that are still held due now, without counting the attempt."""
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
    return store.retry_transient(lambda: _settle(store, claim, values, end.receipt))


def claimable(
    store: Store, now: datetime, ignore_backoff: bool = False
) -> ColumnElement[bool]:
    """The condition for events that may be claimed.

    :param ignore_backoff: also events that wait for their next attempt.
    """
    c = store.columns
    due = c.due_at <= now
    return or_(due, c.status == Status.PENDING.value) if ignore_backoff else due


def _settle(
    store: Store, claim: Claim, values: dict[str, Any], receipt: Receipt | None
) -> bool:
    statements = run_statements(store)
    settle = statements.held if claim.durable else statements.settle
    if receipt is not None:
        written = receipt_values(store, claim.row_id, receipt)
        try:
            if statements.finish is not None and not claim.durable:
                with store.connection() as connection:
                    result = connection.execute(statements.finish, values | written)
                    return result.rowcount > 0
            with store.transaction() as connection:
                connection.execute(statements.receipt, written)
                return connection.execute(settle, values).rowcount > 0
        except IntegrityError:
            # The receipt may exist, and then only the outcome is missing.
            finish(store, claim.row_id, receipt, durable=claim.durable)
    with store.connection() as connection:
        return connection.execute(settle, values).rowcount > 0


def _running(store: Store, lease: str, ends: datetime) -> dict[str, Any]:
    return {
        "status": Status.RUNNING.value,
        "due_at": ends,
        "lease": lease,
        "attempts": store.columns.attempts + 1,
    }


def _change_held(store: Store, claims: Collection[Claim], **values: Any) -> None:
    """Change the rows that these claims still hold."""
    if not claims:
        return
    c = store.columns
    rows, leases = [each.row_id for each in claims], {each.lease for each in claims}
    held = update(c.id.table).where(c.id.in_(rows), c.lease.in_(leases))
    change = store.async_commit(held.values(**values))

    def execute() -> None:
        with store.connection() as connection:
            connection.execute(change)

    store.retry_transient(execute)


def _batch(found: Iterable[Any]) -> list[int]:
    """Return the rows to claim together.

    An event with an expired lease is claimed alone: it may have crashed its worker, and
    every event in its batch would lose an attempt.
    """
    rows = list(found)
    if rows and rows[0].status == Status.RUNNING.value:
        return [rows[0].id]
    return [row.id for row in rows if row.status == Status.PENDING.value]
