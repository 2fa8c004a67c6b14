"""Batches: claims of several events at once. Claim what is due, renew, release."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from datetime import datetime
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection
from sqlalchemy import select
from sqlalchemy import update

from ..schema.tables import lock_in_order
from ..storage.store import Store
from .claims import claimable
from .claims import running_values
from .completion import async_commit
from .held import Claim
from .held import CLAIMED
from .held import new_claim
from .held import NO_JOBS
from .jobs import jobs_of
from .status import Status


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
    query = select(c.id, c.claims).where(c.endpoint == store.endpoint, due)
    if skips_locked := store.traits().skips_locked:
        query = query.with_for_update(skip_locked=True)
    query = query.order_by(c.due_at).limit(limit)

    def work(connection: Connection) -> list[Claim]:
        nonlocal rows
        if rows and (claims := _claimed(store, connection, rows, lease, ends)):
            return claims
        found = connection.execute(query).all()
        rows = _batch(found)
        if not rows:
            return []
        if not skips_locked:
            lock_in_order(connection, c.id.table, c.id.in_(list(rows)))
        # Where rows were not locked, two claims may have found the same rows, and this
        # update decides.
        change = update(c.id.table).where(c.id.in_(list(rows)), due)
        change = change.values(running_values(store, lease, ends))
        connection.execute(async_commit(store, change))
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
    jobs = jobs_of(store, connection, order)
    found = select(*[c[name] for name in CLAIMED])
    taken = connection.execute(found.where(c.id.in_(order), c.lease == lease))
    claims = [
        new_claim(row, lease, ends, jobs.get(row.id, NO_JOBS), rows[row.id])
        for row in taken
    ]
    return sorted(claims, key=lambda claim: order.index(claim.row_id))


def renew(store: Store, claims: Collection[Claim], seconds: float) -> set[int]:
    """Let the leases that are still held end ``seconds`` from now.

    :return: the rows of the claims that are still held.
    """
    length = timedelta(seconds=seconds)
    # From the time of the change: it may have waited for a lock.
    return _change_held(store, claims, lambda: {"due_at": store.db_now() + length})


def release(store: Store, claims: Collection[Claim]) -> None:
    """Make the events that are still held due now, and take their claims back."""
    values = {
        "status": Status.PENDING.value,
        "lease": None,
        "claims": store.columns.claims - 1,
    }
    _change_held(store, claims, lambda: {**values, "due_at": store.db_now()})


def _change_held(
    store: Store, held: Collection[Claim], values: Callable[[], dict[str, Any]]
) -> set[int]:
    """Change the rows that these claims still hold, and return them."""
    if not held:
        return set()
    c = store.columns
    rows, leases = [each.row_id for each in held], {each.lease for each in held}
    still_held = c.id.in_(rows), c.lease.in_(leases)
    change = update(c.id.table).where(*still_held)

    def work(connection: Connection) -> set[int]:
        locked = lock_in_order(connection, c.id.table, *still_held)
        connection.execute(async_commit(store, change.values(values())))
        return {row.id for row in locked}

    return store.run(work, begin=True)


def _batch(found: Iterable[Any]) -> dict[int, int]:
    """Return the rows to claim together, each with its unsettled claims.

    A suspect is claimed alone: it may have crashed its worker, and the others would be
    suspects after its next crash.
    """
    rows = {row.id: row.claims for row in found}
    first = next(iter(rows), 0)
    if rows.get(first):
        return {first: rows[first]}
    return {row: unsettled for row, unsettled in rows.items() if not unsettled}
