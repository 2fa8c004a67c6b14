"""Claims: the right to run an event until a lease ends. Claim, renew, release, settle.

The database decides every change: by an update that is guarded by what was read before.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from collections.abc import Iterable
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

from .jobs import finish
from .jobs import Receipt
from .jobs import receipt_values
from .jobs import run_statements
from .jobs import seen_receipts
from .jobs import SeenReceipts
from .record import LONGEST_ERROR
from .status import FINISHED
from .status import Status
from .store import Store
from .tables import lock_in_order

_NO_RECEIPTS = SeenReceipts()


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
        receipts = seen_receipts(store, connection, [row_id]).get(row_id, _NO_RECEIPTS)
        unsettled = _unsettled(row.status, row.claims)
        if row.lease == lease:
            unsettled -= 1
        else:
            # Last, so that nothing can fail once it is claimed; if the event has run
            # since the query, its due time differs.
            change = update(c.id.table).where(c.id == row_id, free)
            change = change.where(c.due_at == row.due_at, c.claims == row.claims)
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
            receipts.finished,
            receipts.abandoned,
            unsettled,
            durable,
        )

    return store.run(work)


def claim_due(store: Store, limit: int, seconds: float) -> list[Claim]:
    """Claim up to ``limit`` due events for ``seconds``, longest due first.

    Their claims are counted, so that an event that crashes its process is a suspect
    when it is claimed again. SQLite has one write transaction at a time: query for due
    events first.
    """
    c, now, lease = store.columns, store.db_now(), secrets.token_hex(16)
    ends = now + timedelta(seconds=seconds)
    due = claimable(store, now)
    # Claimed by a try whose answer was lost; each with its unsettled claims.
    rows: dict[int, int] = {}
    query = select(c.id, c.status, c.claims).where(c.endpoint == store.endpoint, due)
    if skips_locked := store.traits().skips_locked:
        query = query.with_for_update(skip_locked=True)
    query = query.order_by(c.due_at).limit(limit)

    def work(connection: Connection) -> list[Claim]:
        nonlocal rows
        if rows and (claims := _claimed(store, connection, rows, lease, ends)):
            return claims
        rows = _batch(connection.execute(query))
        if not rows:
            return []
        if not skips_locked:
            lock_in_order(connection, c.id.table, c.id.in_(list(rows)))
        # Where rows were not locked, two claims may have found the same rows, and this
        # update decides.
        change = update(c.id.table).where(c.id.in_(list(rows)), due)
        change = change.values(_running(store, lease, ends))
        connection.execute(store.async_commit(change))
        return _claimed(store, connection, rows, lease, ends)

    return store.run(work, begin=True)


def _claimed(
    store: Store,
    connection: Connection,
    rows: dict[int, int],
    lease: str,
    ends: datetime,
) -> list[Claim]:
    """The claims of this lease among ``rows``, in their order.

    :param rows: the unsettled claims of each row.
    """
    c, order = store.columns, list(rows)
    # After the update, because another run may have ended since the query.
    receipts = seen_receipts(store, connection, order)
    found = select(c.id, c.event_id, c.attempts, c.body)
    taken = connection.execute(found.where(c.id.in_(order), c.lease == lease))
    claims = [
        Claim(
            row.id,
            lease,
            row.event_id,
            row.attempts + 1,
            ends,
            row.body or b"",
            receipts.get(row.id, _NO_RECEIPTS).finished,
            receipts.get(row.id, _NO_RECEIPTS).abandoned,
            rows[row.id],
        )
        for row in taken
    ]
    return sorted(claims, key=lambda claim: order.index(claim.row_id))


def renew(store: Store, claims: Collection[Claim], seconds: float) -> None:
    """Let the leases that are still held end ``seconds`` from now."""
    ends = store.db_now() + timedelta(seconds=seconds)
    _change_held(store, claims, due_at=ends)


def release(store: Store, claims: Collection[Claim]) -> None:
    """Make the events that are still held due now, and take their claims back."""
    _change_held(
        store,
        claims,
        status=Status.PENDING.value,
        due_at=store.db_now(),
        lease=None,
        claims=store.columns.claims - 1,
    )


def count_attempt(store: Store, claim: Claim, *, counted: bool = True) -> bool:
    """Count the attempt of a suspect before it ends, or take that back.

    :return: ``False``, with the event unchanged, when the lease has passed on.
    """
    values = {
        "row": claim.row_id,
        "token": claim.lease,
        "attempts": claim.attempt if counted else claim.attempt - 1,
    }
    return _changes(store, run_statements(store).settle, values)


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
    statements = run_statements(store)
    settle = statements.held if claim.durable else statements.settle
    if receipt is not None:
        written = receipt_values(store, claim.row_id, receipt)
        is_new = not receipt.version
        write = statements.receipt if is_new else statements.completion

        def settle_with_receipt(connection: Connection) -> bool:
            connection.execute(write, written)
            return connection.execute(settle, values).rowcount > 0

        try:
            if is_new and statements.finish is not None and not claim.durable:
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
        "claims": store.columns.claims + 1,
    }


def _change_held(store: Store, held: Collection[Claim], /, **values: Any) -> None:
    """Change the rows that these claims still hold."""
    if not held:
        return
    c = store.columns
    rows, leases = [each.row_id for each in held], {each.lease for each in held}
    still_held = c.id.in_(rows), c.lease.in_(leases)
    change = store.async_commit(update(c.id.table).where(*still_held).values(**values))

    def work(connection: Connection) -> None:
        lock_in_order(connection, c.id.table, *still_held)
        connection.execute(change)

    store.run(work, begin=True)


def _batch(found: Iterable[Any]) -> dict[int, int]:
    """Return the rows to claim together, each with its unsettled claims.

    A suspect is claimed alone: it may have crashed its worker, and the others would be
    suspects after its next crash.
    """
    rows = {row.id: _unsettled(row.status, row.claims) for row in found}
    first = next(iter(rows), 0)
    if rows.get(first):
        return {first: rows[first]}
    return {row: unsettled for row, unsettled in rows.items() if not unsettled}


def _unsettled(status: str, claims: int) -> int:
    # A row that an earlier version of the package has claimed counts no claims.
    return max(claims, int(status == Status.RUNNING.value))
