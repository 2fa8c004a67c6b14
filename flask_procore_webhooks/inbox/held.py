"""Held: a claimed event, and the changes that only the holder of its lease makes."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection
from sqlalchemy import select
from sqlalchemy import update

from ..errors import InboxUnavailable
from ..storage.store import Store
from .completion import run_statements
from .jobs import Job
from .jobs import write_jobs

NO_JOBS: Mapping[str, Job] = {}
#: The columns of the event that a claim holds, in its order.
CLAIMED = ("id", "event_id", "body", "origin", "received_at")


@dataclass(frozen=True)
class Claim:
    """The right to run one event until the lease ends."""

    row_id: int
    event_id: str
    #: ``None`` after ``prune``.
    body: bytes | None = field(repr=False)
    origin: str
    #: As it is stored.
    received_at: datetime
    lease: str
    #: When the lease ends, unless it is renewed; as it is stored.
    ends: datetime
    #: The jobs that had rows when the event was claimed, by subscriber.
    jobs: Mapping[str, Job] = field(default_factory=dict)
    #: Earlier claims in a row that ended without an outcome. The event is a suspect
    #: then: it may have killed its processes.
    unsettled: int = 0
    #: Whether the outcome waits for the disk: the sender is answered by it.
    durable: bool = False


class NotHeld(InboxUnavailable):
    """The claim is no longer held; the transaction is rolled back."""


def write_held(
    store: Store,
    claim: Claim,
    jobs: Sequence[Job],
    changes: Callable[[], Mapping[str, Any]] = dict,
    *,
    lock_wait: int | None = None,
) -> None:
    """Write jobs of a running event.

    :param changes: returns the values of the event to change.
    :param lock_wait: milliseconds that PostgreSQL waits for a lock.
    :raises NotHeld: the lease has passed on, or a job has ended since; nothing has
        changed.
    :raises sqlalchemy.exc.IntegrityError: a job without a row has one.
    """
    held = run_statements(store).held
    mine = {"row": claim.row_id, "token": claim.lease}

    def work(connection: Connection) -> None:
        if lock_wait is not None and store.dialect_name == "postgresql":
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {lock_wait}")
        # The event first: whoever changes its jobs without its lease locks it too.
        change = {**mine, "lease": claim.lease, **changes()}
        if not connection.execute(held, change).rowcount:
            raise NotHeld("the lease has passed on")
        if not write_jobs(connection, store, claim.row_id, jobs):
            raise NotHeld("a job has ended since")

    store.run(work, begin=True)


def take_back(store: Store, claim: Claim, job: Job) -> None:
    """Take the early count of a suspect's attempt back: others run beside it now.

    The version stays, so that the completion of the call fits.
    """
    j = store.database.tables.job.c
    change = update(j.event.table).where(
        j.event == claim.row_id,
        j.subscriber == job.subscriber,
        j.version == job.version,
    )
    change = change.values(attempts=j.attempts - 1)
    store.run(lambda connection: connection.execute(change))


def is_held(store: Store, claim: Claim) -> bool:
    c = store.columns
    held = select(c.id).where(c.id == claim.row_id, c.lease == claim.lease)
    return bool(store.rows(held))
