"""Claims: the right to run an event until a lease ends. Claim, settle.

The database decides every change: by an update that is guarded by what was read before.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
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
from .completion import run_statements
from .held import Claim
from .held import CLAIMED
from .held import NO_JOBS
from .held import NotHeld
from .held import write_held
from .jobs import Job
from .jobs import jobs_of
from .record import LONGEST_ERROR
from .status import FINISHED
from .status import PARKED
from .status import Status


@dataclass(frozen=True)
class Settlement:
    """How a run ends."""

    status: Status
    error: str | None = None
    #: When the event is due again, for ``PENDING``; as it is stored.
    due_at: datetime | None = None
    #: The jobs that are written together with the status.
    jobs: Sequence[Job] = ()


def claim(
    store: Store,
    row_id: int,
    seconds: float,
    *,
    hurry: bool = False,
    ahead: float = 0.0,
    durable: bool = False,
) -> Claim | None:
    """Claim an event for ``seconds`` and count the claim.

    :param hurry: also while it waits.
    :param ahead: also if that is due within so many seconds.
    :param durable: its outcome will wait for the disk.
    :return: ``None`` when it is finished, not due, or another run holds it.
    """
    c, now = store.columns, store.db_now()
    lease, ends = secrets.token_hex(16), now + timedelta(seconds=seconds)
    free = claimable(store, now, hurry, ahead)
    # Claimed by a try whose answer was lost.
    mine = c.lease == lease
    columns = map(c.__getitem__, (*CLAIMED, "claims", "due_at", "lease"))
    query = select(*columns).where(c.id == row_id, or_(free, mine))

    def work(connection: Connection) -> Claim | None:
        row = connection.execute(query).one_or_none()
        if row is None:
            return None
        jobs = jobs_of(store, connection, [row_id]).get(row_id, NO_JOBS)
        unsettled = row.claims
        if row.lease == lease:
            unsettled -= 1
        else:
            # Last, so that nothing can fail once it is claimed; if the event has run
            # since the query, its due time differs.
            change = update(c.id.table).where(c.id == row_id, free)
            change = change.where(c.due_at == row.due_at, c.claims == row.claims)
            taken = change.values(running_values(store, lease, ends))
            if connection.execute(taken).rowcount == 0:
                return None
        id, event_id, body, origin, received_at = row[: len(CLAIMED)]
        own = id, event_id, body, origin, received_at
        return Claim(*own, lease, ends, jobs, unsettled, durable)

    return store.run(work)


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
        "claims": 0,
        "error": store.text(end.error, LONGEST_ERROR) if end.error else None,
        "lease": None,
        "due_at": None if is_finished else end.due_at or now,
        "parked_at": now if end.status in PARKED else None,
        "finished_at": now if is_finished else None,
    }
    if end.error is None and end.status in (Status.PENDING, Status.DEAD):
        del values["error"]  # that of an earlier run stays
    if end.jobs:
        return _settle_jobs(store, claim, values, end.jobs)
    return _settle(store, claim, values)


def claimable(
    store: Store, now: Any, hurry: bool = False, ahead: float = 0.0
) -> ColumnElement[bool]:
    """The condition for events that may be claimed.

    :param now: a time, or a parameter if neither of the others is given.
    :param hurry: also events that wait.
    :param ahead: also events that wait for at most so many seconds.
    """
    c = store.columns
    due: ColumnElement[bool] = c.due_at <= now
    waits = c.status == Status.PENDING.value
    if hurry:
        return or_(due, waits)
    if ahead:
        return or_(due, and_(waits, c.due_at <= now + timedelta(seconds=ahead)))
    return due


def running_values(store: Store, lease: Any, ends: Any) -> dict[str, Any]:
    """The values of claimed rows.

    :param lease: like ``ends``, a value or a parameter.
    """
    return {
        "status": Status.RUNNING.value,
        "due_at": ends,
        "lease": lease,
        "claims": store.columns.claims + 1,
    }


def _settle_jobs(
    store: Store, claim: Claim, values: dict[str, Any], jobs: Sequence[Job]
) -> bool:
    tries = 0

    def changes() -> Mapping[str, Any]:
        nonlocal tries
        tries += 1
        return values

    try:
        write_held(store, claim, jobs, changes)
    except (IntegrityError, NotHeld):
        return tries > 1 and _was_settled(store, values)
    return True


def _settle(store: Store, claim: Claim, values: dict[str, Any]) -> bool:
    statements, tries = run_statements(store), 0
    change = statements.held if claim.durable else statements.settle

    def work(connection: Connection) -> bool:
        nonlocal tries
        tries += 1
        return connection.execute(change, values).rowcount > 0

    return store.run(work) or tries > 1 and _was_settled(store, values)


def _was_settled(store: Store, values: dict[str, Any]) -> bool:
    """Whether a try whose answer was lost has settled the event."""
    c = store.columns
    names = ("status", "lease", "due_at", "finished_at")
    same = [c[name] == values[name] for name in names]
    return bool(store.rows(select(c.id).where(c.id == values["row"], *same)))
