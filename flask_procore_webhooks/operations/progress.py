"""What has become of the jobs that a replay or a discard has changed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from dataclasses import field
from typing import Any

from sqlalchemy import and_
from sqlalchemy import case
from sqlalchemy import exists
from sqlalchemy import func
from sqlalchemy import select

from ..inbox.status import JobState
from ..inbox.status import Status
from ..storage.store import Store
from .journal import Batch
from .journal import batch_of
from .journal import DISCARD
from .journal import PRUNE

#: Those whose end is still to come, in the order of reports.
WAITING, RUNNING, FAILED = "waiting", "running", "failed again"
UNCHANGED = "not changed yet"
OPEN = (UNCHANGED, WAITING, RUNNING, FAILED)
#: Those that need an operator.
DEAD, UNMATCHED = "dead again", "unmatched again"
BAD = (DEAD, UNMATCHED, Status.QUARANTINED.value)
GONE, LATER = "pruned", "in a later replay"
ENDED = (
    JobState.DONE.value,
    JobState.DISCARDED.value,
    JobState.SUPERSEDED.value,
    JobState.SUPPRESSED.value,
    *BAD,
    LATER,
    GONE,
)


@dataclass
class Progress:
    """The jobs of an operation; events without jobs count like one."""

    batch: Batch
    #: Numbers by one of :data:`OPEN` or :data:`ENDED`.
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def open(self) -> int:
        """How many have not ended."""
        return sum(self.counts[name] for name in OPEN)

    @property
    def bad(self) -> int:
        """How many have ended and need an operator."""
        return sum(self.counts[name] for name in BAD)


def progress(store: Store, batch: str) -> Progress | None:
    """The progress of the operation; ``None`` if the endpoint has none of that id."""
    found = batch_of(store, batch)
    if found is None:
        return None
    if found.action == PRUNE:
        return Progress(found, +Counter({GONE: found.actual or 0}))
    changed = _changed(store, batch)
    if found.action == DISCARD:
        counts = Counter({JobState.DISCARDED.value: changed})
    else:
        counts = _jobs(store, batch) + _bare(store, batch)
        counts[LATER] = max(0, changed - sum(counts.values()))
    if found.actual is None:
        counts[UNCHANGED] = max(0, (found.expected or 0) - changed)
    else:
        # The entries of events are pruned with them.
        counts[GONE] += max(0, found.actual - changed)
    return Progress(found, +counts)


def _changed(store: Store, batch: str) -> int:
    """How many jobs and bare events the journal names."""
    r = store.database.tables.journal.c
    units = func.sum(case((r.expected > 1, r.expected), else_=1))
    mine = r.endpoint == store.endpoint, r.batch == batch, r.event.is_not(None)
    ((number,),) = store.rows(select(units).where(*mine))
    return int(number or 0)


def _jobs(store: Store, batch: str) -> Counter[str]:
    c, j = store.columns, store.database.tables.job.c
    runs = and_(c.status == Status.RUNNING.value, j.due_at <= store.db_now())
    ends = {state.value: state.value for state in JobState}
    ends[JobState.DEAD.value] = DEAD
    del ends[JobState.PENDING.value]
    kind = case(
        *((j.state == state, name) for state, name in ends.items()),
        (runs, RUNNING),
        (j.attempts > 0, FAILED),
        else_=WAITING,
    )
    kinds = select(kind.label("kind")).select_from(
        j.event.table.outerjoin(c.id.table, c.id == j.event)
    )
    mine = kinds.where(j.batch == batch, j.endpoint == store.endpoint).subquery()
    return _counted(store, mine)


def _bare(store: Store, batch: str) -> Counter[str]:
    """Events that had no jobs, by what they are now."""
    tables, c = store.database.tables, store.columns
    r, j = tables.journal.c, tables.job.c
    statuses = {
        Status.RUNNING.value: RUNNING,
        Status.DEAD.value: DEAD,
        Status.UNMATCHED.value: UNMATCHED,
    }
    has_failed = exists().where(j.event == c.id, j.attempts > 0)
    kind = case(
        *((c.status == status, name) for status, name in statuses.items()),
        (and_(c.status == Status.PENDING.value, has_failed), FAILED),
        (c.status == Status.PENDING.value, WAITING),
        (c.id.is_(None), GONE),
        else_=c.status,
    )
    kinds = select(kind.label("kind")).select_from(
        r.event.table.outerjoin(c.id.table, c.id == r.event)
    )
    mine = r.batch == batch, r.endpoint == store.endpoint, r.event.is_not(None)
    return _counted(store, kinds.where(*mine, r.expected == 0).subquery())


def _counted(store: Store, kinds: Any) -> Counter[str]:
    # Grouped by a column of a subquery: by the expression, the parameters of SELECT and
    # of GROUP BY would be different ones for PostgreSQL.
    query = select(kinds.c.kind, func.count().label("number")).group_by(kinds.c.kind)
    return Counter({row.kind: row.number for row in store.rows(query)})
