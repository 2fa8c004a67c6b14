"""What an operation selects: rows of events with their jobs, in parts."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from dataclasses import fields
from dataclasses import replace
from datetime import datetime
from typing import Any
from typing import NamedTuple

from sqlalchemy import and_
from sqlalchemy import case
from sqlalchemy import ColumnElement
from sqlalchemy import Connection
from sqlalchemy import or_
from sqlalchemy import select

from ..inbox.status import Status
from ..storage.store import Store
from .filters import EVERY_EVENT
from .filters import Filter
from .journal import DISCARD

#: Events that one transaction changes.
PART = 500
#: Row ids that one query reads.
_IDS = 50_000
_TIMES = ("since", "until", "died_since")
#: What ``discard`` means without a status: what may have pending or dead jobs.
_UNENDED = (Status.PENDING.value, Status.RUNNING.value, Status.DEAD.value)


def never(event: Any) -> bool:
    """No event gets a job of a subscriber that it has none of."""
    return False


@dataclass(frozen=True)
class Operation:
    """A replay or a discard: what it selects, and how."""

    action: str
    wanted: Filter = EVERY_EVENT
    #: Row ids of named events. Of ``wanted``, the fields of jobs count then.
    rows: tuple[int, ...] | None = None
    #: Also jobs that have finished.
    anew: bool = False
    #: Events a second; ``None`` for all at once.
    rate: float | None = None
    #: Whether the subscriber of ``wanted`` matches the row of an event that has no job
    #: of it.
    adds: Callable[[Any], bool] = field(default=never, compare=False)

    def takes(self, status: Status) -> bool:
        """Whether events of the status, or jobs of that state, are meant."""
        if self.rows is not None:
            return True
        if self.wanted.statuses:
            return status.value in self.wanted.statuses
        statuses = _UNENDED if self.action == DISCARD else (Status.DEAD.value,)
        return status.value in statuses

    def to_json(self) -> dict[str, Any]:
        """The options for the journal; without those that are not given."""
        given: dict[str, Any] = {
            each.name: value
            for each in fields(Filter)
            if (value := getattr(self.wanted, each.name)) not in (None, ())
        }
        given |= {n: given[n].isoformat() for n in _TIMES if n in given}
        if self.rows is not None:
            given["rows"] = list(self.rows)
        given |= {"anew": True} if self.anew else {}
        return given | ({"rate": self.rate} if self.rate else {})


def operation_of(action: str, options: Mapping[str, Any]) -> Operation:
    """The operation with these options, as :meth:`Operation.to_json` wrote them.

    :raises ValueError: its events were named, and too many to be stored.
    """
    given = dict(options)
    rows = given.pop("rows", None)
    if isinstance(rows, int):
        raise ValueError(f"the journal does not hold the ids of its {rows} events")
    anew, rate = given.pop("anew", False), given.pop("rate", None)
    given |= {n: datetime.fromisoformat(given[n]) for n in _TIMES if n in given}
    given["statuses"] = tuple(given.get("statuses", ()))
    named = None if rows is None else tuple(rows)
    return Operation(action, Filter(**given), named, anew, rate)


class Found(NamedTuple):
    """The row of a selected event, and its jobs in the order of their names."""

    event: Any
    jobs: list[Any]

    @property
    def wanted(self) -> list[Any]:
        """The jobs that are meant."""
        return [job for job in self.jobs if job.is_wanted]


def parts(store: Store, operation: Operation) -> Iterator[list[int]]:
    """Row ids of the events that the operation may change, at most 500 at a time.

    In the order of the row ids. Events that are received meanwhile are left out.
    """
    if operation.rows is not None:
        yield from _split(sorted(set(operation.rows)))
        return
    c, last = store.columns, 0
    newest = store.rows(select(c.id).order_by(c.id.desc()).limit(1))
    end = newest[0].id if newest else 0
    condition = and_(_candidate(store, operation), c.id <= end)
    while True:
        query = select(c.id).where(condition, c.id > last).order_by(c.id).limit(_IDS)
        found = [row.id for row in store.rows(query)]
        yield from _split(found)
        if len(found) < _IDS:
            return
        last = found[-1]


def _split(rows: list[int]) -> Iterator[list[int]]:
    return (rows[start : start + PART] for start in range(0, len(rows), PART))


def _candidate(store: Store, operation: Operation) -> ColumnElement[bool]:
    """The condition for events of which a job may be meant."""
    wanted, c = operation.wanted, store.columns
    of_event = replace(wanted, subscriber=None, error=None, died_since=None)
    j = store.database.tables.job.c
    mine = wanted.job_where(store)
    if wanted.statuses or operation.action == DISCARD:
        statuses = wanted.statuses or _UNENDED
        condition = replace(of_event, statuses=statuses).where(store)
        if wanted.error is None and wanted.died_since is None:
            return condition  # a job of the subscriber may be missing
        return and_(condition, c.id.in_(select(j.event).where(mine)))
    dead = c.id.in_(select(j.event).where(mine, j.dead_at.is_not(None)))
    if wanted.asks_jobs:
        return and_(of_event.where(store), dead)
    is_dead = Filter(statuses=(Status.DEAD.value,)).where(store)
    return and_(of_event.where(store), or_(dead, is_dead))


def read(
    connection: Connection,
    store: Store,
    operation: Operation,
    rows: Iterable[int],
    batch: str | None = None,
) -> list[Found]:
    """The events and their jobs; each job has ``is_wanted``.

    :param batch: without the events that this operation has changed.
    """
    c, j = store.columns, store.database.tables.job.c
    events = select(
        c.id,
        c.status,
        c.due_at,
        c.parked_at,
        c.resource_type,
        c.reason,
        c.error,
        c.body.is_not(None).label("has_body"),
    ).where(c.id.in_(rows), c.endpoint == store.endpoint)
    is_wanted = case((operation.wanted.job_where(store), 1), else_=0)
    columns = [each for each in j if each.name != "traceback"]
    jobs = select(*columns, is_wanted.label("is_wanted")).where(j.event.in_(rows))
    found = {
        row.id: Found(row, []) for row in connection.execute(events.order_by(c.id))
    }
    for job in connection.execute(jobs.order_by(j.event, j.subscriber)):
        if job.event in found:
            found[job.event].jobs.append(job)
    if batch is not None:
        r = store.database.tables.journal.c
        changed = select(r.event).where(r.event.in_(rows), r.batch == batch)
        for row_id in connection.scalars(changed):
            found.pop(row_id, None)
    return list(found.values())
