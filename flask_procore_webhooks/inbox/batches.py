"""Batches: claims of several events at once. Claim what is due, renew, release."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from datetime import datetime
from datetime import timedelta
from typing import Any

from sqlalchemy import bindparam
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
from .held import NO_JOBS
from .jobs import Job
from .jobs import jobs_of
from .status import Status

_Jobs = dict[int, dict[str, Job]]


def claim_due(store: Store, limit: int, seconds: float) -> list[Claim]:
    """Claim up to ``limit`` due events for ``seconds``, longest due first.

    Their claims are counted, so that an event that crashes its process is a suspect
    when it is claimed again. SQLite has one write transaction at a time: query for due
    events first.
    """
    now, lease = store.db_now(), secrets.token_hex(16)
    ends = now + timedelta(seconds=seconds)
    statements = _statements(store)
    values = {"owner": store.endpoint, "now": now, "most": limit}
    taken = {"now": now, "token": lease, "ends": ends}
    # Claimed by a try whose answer was lost; each with its unsettled claims.
    rows: dict[int, int] = {}

    def work(connection: Connection) -> list[Claim]:
        nonlocal rows
        if rows and (claims := _claimed(store, connection, rows, lease, ends)):
            return claims
        found = connection.execute(statements.due, values).all()
        rows = _batch(found)
        if not rows:
            return []
        order = list(rows)
        if not statements.locks_due:
            lock_in_order(
                connection, store.columns.id.table, store.columns.id.in_(order)
            )
        # Where rows were not locked, two claims may have found the same rows, and this
        # update decides.
        connection.execute(statements.take, {**taken, "rows": order})
        if not statements.locks_due:
            return _claimed(store, connection, rows, lease, ends)
        jobs = jobs_of(store, connection, order)
        return [
            _claim(row[:-1], lease, ends, jobs, row.claims)
            for row in found
            if row.id in rows
        ]

    return store.run(work, begin=True)


class BatchStatements:
    """The statements of :func:`claim_due`, built once for each database."""

    def __init__(self, store: Store) -> None:
        c = store.columns
        rows: Any = bindparam("rows", expanding=True)
        due = claimable(store, bindparam("now"))
        claimed = [c[name] for name in CLAIMED]
        query = select(*claimed, c.claims).where(c.endpoint == bindparam("owner"), due)
        if skips_locked := store.traits().skips_locked:
            query = query.with_for_update(skip_locked=True)
        self.due = query.order_by(c.due_at).limit(bindparam("most"))
        #: Whether no other claim can find the rows that ``due`` has found.
        self.locks_due = skips_locked or store.dialect_name == "sqlite"
        values = running_values(store, bindparam("token"), bindparam("ends"))
        take = update(c.id.table).where(c.id.in_(rows), due)
        self.take = async_commit(store, take.values(values))
        taken = select(*claimed).where(c.id.in_(rows))
        self.taken = taken.where(c.lease == bindparam("token"))


def _statements(store: Store) -> BatchStatements:
    parts = store.database.parts
    found: BatchStatements | None = parts.get(BatchStatements)
    return found or parts.setdefault(BatchStatements, BatchStatements(store))


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
    order = list(rows)
    # After the update, because another run may have ended since the query.
    jobs = jobs_of(store, connection, order)
    taken = _statements(store).taken
    claims = [
        _claim(row, lease, ends, jobs, rows[row.id])
        for row in connection.execute(taken, {"rows": order, "token": lease})
    ]
    return sorted(claims, key=lambda claim: order.index(claim.row_id))


def _claim(row: Any, lease: str, ends: datetime, jobs: _Jobs, unsettled: int) -> Claim:
    id, event_id, body, origin, received_at = row
    own = id, event_id, body, origin, received_at
    return Claim(*own, lease, ends, jobs.get(id, NO_JOBS), unsettled)


def renew(store: Store, claims: Collection[Claim], seconds: float) -> set[int]:
    """Let the leases that are still held end ``seconds`` from now.

    :return: the rows of the claims that are still held.
    """
    length = timedelta(seconds=seconds)
    # From the time of the change: it may have waited for a lock.
    return _change_held(store, claims, lambda: {"due_at": store.db_now() + length})


def release(
    store: Store, claims: Collection[Claim], until: float | None = None
) -> None:
    """Make the events that are still held due now, and take their claims back.

    :param until: as for :meth:`Store.run`.
    """
    values = {
        "status": Status.PENDING.value,
        "lease": None,
        "claims": store.columns.claims - 1,
    }
    _change_held(store, claims, lambda: {**values, "due_at": store.db_now()}, until)


def _change_held(
    store: Store,
    held: Collection[Claim],
    values: Callable[[], dict[str, Any]],
    until: float | None = None,
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

    return store.run(work, begin=True, until=until)


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
