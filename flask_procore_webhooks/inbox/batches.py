"""Batches: claims of several events. Claim what is due, renew, settle, release."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Sequence
from datetime import datetime
from datetime import timedelta
from typing import Any

from sqlalchemy import bindparam
from sqlalchemy import Connection
from sqlalchemy import select
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError

from ..schema.tables import lock_in_order
from ..storage.store import Store
from .claims import running_values
from .completion import async_commit
from .completion import end_values
from .completion import ENDED
from .completion import finish
from .completion import run_statements
from .held import Claim
from .held import CLAIMED
from .held import new_claim
from .held import NO_JOBS
from .jobs import Job
from .jobs import jobs_of
from .status import Status


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
            new_claim(row, lease, ends, jobs.get(row.id, NO_JOBS), row.claims)
            for row in found
            if row.id in rows
        ]

    return store.run(work, begin=True)


class BatchStatements:
    """The statements of :func:`claim_due`, built once for each database."""

    def __init__(self, store: Store) -> None:
        c = store.columns
        rows: Any = bindparam("rows", expanding=True)
        due = c.due_at <= bindparam("now")
        claimed = [c[name] for name in CLAIMED]
        query = select(*claimed, c.claims).where(c.endpoint == bindparam("owner"), due)
        skips_locked = store.traits().skips_locked
        if skips_locked:
            query = query.with_for_update(skip_locked=True)
        self.due = query.order_by(c.due_at).limit(bindparam("most"))
        #: Whether no other claim can find the rows that ``due`` has found.
        self.locks_due = skips_locked or store.dialect_name == "sqlite"
        values = running_values(store, bindparam("token"), bindparam("ends"))
        take = update(c.id.table).where(c.id.in_(rows), due).values(values)
        self.take = async_commit(store, take)
        mine = c.id.in_(rows), c.lease == bindparam("token")
        self.taken = select(*claimed).where(*mine)


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
        new_claim(row, lease, ends, jobs.get(row.id, NO_JOBS), rows[row.id])
        for row in connection.execute(taken, {"rows": order, "token": lease})
    ]
    return sorted(claims, key=lambda claim: order.index(claim.row_id))


def renew(store: Store, claims: Collection[Claim], seconds: float) -> set[int]:
    """Let the leases that are still held end ``seconds`` from now.

    :return: the rows of the claims that are still held.
    """
    length = timedelta(seconds=seconds)
    # From the time of the change: it may have waited for a lock.
    return _change_held(store, claims, lambda: {"due_at": store.db_now() + length})


def settle_done(
    store: Store,
    claims: Sequence[Claim],
    jobs: Sequence[tuple[int, Job]],
    until: float | None = None,
) -> set[int]:
    """Settle events that are done, and insert jobs that have ended, in one commit.

    A job is inserted even if the lease of its event has passed on; a row of a later run
    stays as it is.

    :param jobs: without rows, each with the row of its event.
    :param until: as for :meth:`Store.run`.
    :return: the rows of the claims that were still held.
    """
    if not (claims or jobs):
        return set()
    rows, tokens = [each.row_id for each in claims], {each.lease for each in claims}
    settled = {"rows": rows, "tokens": [*tokens], "at": store.db_now()}
    statements = run_statements(store)
    is_durable = any(claim.durable for claim in claims)
    one: Any = statements.async_done_with_jobs
    if is_durable:
        one = statements.done_with_jobs
    ends = [end_values(store, *each) for each in jobs]

    def work(connection: Connection) -> int:
        if one is not None:
            names = [name for _, name in ENDED.values()]
            arrays = {f"each_{name}": [each[name] for each in ends] for name in names}
            return connection.execute(one, settled | arrays).rowcount
        if store.dialect_name != "sqlite":  # which locks the whole file
            c = store.columns
            lock_in_order(connection, c.id.table, c.id.in_(rows), c.lease.in_(tokens))
        if ends:
            connection.execute(statements.insertion, ends)
        return connection.execute(statements.done, settled).rowcount

    try:
        changed = store.run(work, begin=one is None, until=until)
    except IntegrityError:
        # A later run has written one of the jobs.
        for each in jobs:
            finish(store, *each, durable=is_durable)
        ends.clear()
        changed = store.run(work, begin=one is None, until=until)
    return set(rows) if changed == len(rows) else _settled(store, settled)


def _settled(store: Store, settled: dict[str, Any]) -> set[int]:
    """The rows that these values have settled, by a try whose answer was lost too."""
    c = store.columns
    mine = c.id.in_(settled["rows"]), c.finished_at == settled["at"]
    query = select(c.id).where(*mine, c.status == Status.DONE.value)
    return {row.id for row in store.rows(query)}


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
