"""Replay and discard: change events and their jobs, part after part.

Every part is a transaction. It locks the events that no process runs before it reads
or changes their jobs, so that a run and an operation never change the same jobs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field
from datetime import datetime
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import Connection
from sqlalchemy import func
from sqlalchemy import insert
from sqlalchemy import select

from ..schema.tables import lock_in_order
from ..storage.store import Store
from .journal import actor_text
from .journal import Batch
from .journal import batch_of
from .journal import DISCARD
from .journal import end_batch
from .journal import former_text
from .journal import new_batch
from .journal import new_entry
from .journal import note
from .journal import REPLAY
from .journal import set_actual
from .plans import is_leased
from .plans import Plan
from .plans import plan
from .selection import Found
from .selection import Operation
from .selection import parts
from .selection import read
from .writes import discard_jobs
from .writes import is_free
from .writes import replay_jobs


@dataclass
class Summary:
    """What an operation would change, or has changed, and what it leaves out."""

    events: int = 0
    jobs: int = 0
    #: Events without jobs, of which each counts like a job.
    bare: int = 0
    subscribers: set[str] = field(default_factory=set)
    #: Numbers of events or jobs by the reason.
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def units(self) -> int:
        """What the journal counts: jobs, and events without jobs."""
        return self.jobs + self.bare

    def add(self, planned: Plan) -> None:
        if planned:
            self.events += 1
            self.jobs += planned.jobs
            self.bare += planned.is_bare
            self.subscribers.update(planned.subscribers)


def preview(store: Store, operation: Operation, batch: str | None = None) -> Summary:
    """What the operation would change now.

    :param batch: of an operation that goes on.
    """
    summary, now = Summary(), store.db_now()
    for rows in parts(store, operation):
        look = partial(_look, store, operation, rows, batch)
        for found in store.run(look):
            free = not is_leased(found.event, now)
            summary.add(plan(operation, found, free, now, summary.left_out))
    return summary


def _look(
    store: Store,
    operation: Operation,
    rows: list[int],
    batch: str | None,
    connection: Connection,
) -> list[Found]:
    return read(connection, store, operation, rows, batch)


def replay(
    store: Store, rows: list[int], actor: str, *, anew: bool = False, batch: str = ""
) -> int:
    """Replay the named events; return how many are changed. Safe to repeat.

    :param rows: row ids.
    :param anew: also jobs that have finished.
    """
    operation = Operation(REPLAY, rows=tuple(rows), anew=anew)
    return sum(map(len, perform(store, operation, batch or new_batch(), actor)))


def discard(store: Store, rows: list[int], actor: str, *, batch: str = "") -> int:
    """End the pending and dead jobs of the named events; return how many are changed.

    :param rows: row ids.
    """
    operation = Operation(DISCARD, rows=tuple(rows))
    return sum(map(len, perform(store, operation, batch or new_batch(), actor)))


def perform(
    store: Store,
    operation: Operation,
    batch: str,
    actor: str,
    *,
    expected: int | None = None,
    summary: Summary | None = None,
) -> Iterator[list[int]]:
    """Change what is selected; yield the rows of the events of each part.

    The journal's entry of the operation is written before the first row is changed.
    An operation that was interrupted goes on if it is called with the same batch.

    :param expected: how much is to be changed, by :func:`preview`; by default it is
        counted.
    :param summary: gets what is changed and left out.
    """
    summary = Summary() if summary is None else summary
    former = batch_of(store, batch)
    if former is None:
        if expected is None:
            looked = preview(store, operation)
            expected = looked.units
            summary.left_out.update({} if expected else looked.left_out)
        if not expected:
            return
        given = operation.to_json()
        action = operation.action
        note(store, action, actor, batch=batch, filter=given, expected=expected)
    start = _start(store, operation, former)
    part = Part(store, operation, batch, actor_text(store, actor), start)
    for rows in parts(store, operation):
        changed = store.run(partial(part.change, rows), begin=True)
        for planned in changed:
            summary.add(planned)
        summary.left_out.update(part.left_out)
        part.done += len(changed)
        yield [planned.event.id for planned in changed]
    if former is None or former.actual is None:
        end_batch(store, batch)
    else:  # ended before: the entries of some events may be pruned
        set_actual(store, batch, former.actual + summary.units)


def _start(store: Store, operation: Operation, former: Batch | None) -> datetime:
    """When the first event is due; of an operation that goes on, after its others."""
    now = store.db_now()
    if former is None or not operation.rate:
        return now
    seconds = _count_changed(store, former.id) / operation.rate
    return max(now, former.at + timedelta(seconds=seconds))


def _count_changed(store: Store, batch: str) -> int:
    """How many events the operation has changed."""
    j = store.database.tables.journal.c
    mine = j.endpoint == store.endpoint, j.batch == batch, j.event.is_not(None)
    ((number,),) = store.rows(select(func.count()).where(*mine))
    return int(number)


@dataclass
class Part:
    """The transactions of an operation, each for one part of its events."""

    store: Store
    operation: Operation
    batch: str
    actor: str
    #: When the first event is due.
    start: datetime
    #: Events that were changed since.
    done: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def change(self, rows: list[int], connection: Connection) -> list[Plan]:
        """Change the events that no process runs; safe to repeat."""
        store, now = self.store, self.store.db_now()
        tables, c = store.database.tables, store.columns
        self.left_out.clear()
        mine = c.id.in_(rows), c.endpoint == store.endpoint
        free = lock_in_order(connection, tables.event, *mine, is_free(store, now))
        ids = {row.id for row in free}
        lock_in_order(connection, tables.job, tables.job.c.event.in_(ids))
        planned = []
        for found in read(connection, store, self.operation, rows, self.batch):
            is_locked = found.event.id in ids
            each = plan(self.operation, found, is_locked, now, self.left_out)
            planned += [each] if each else []
        if not planned:
            return []
        if self.operation.action == REPLAY:
            due = [self._due_at(index, now) for index in range(len(planned))]
            replay_jobs(connection, store, planned, due, self.batch)
        else:
            discard_jobs(connection, store, planned, now)
        connection.execute(insert(tables.journal), [*map(self._entry, planned)])
        return planned

    def _due_at(self, index: int, now: datetime) -> datetime:
        if not self.operation.rate:
            return now
        seconds = (self.done + index) / self.operation.rate
        return max(now, self.start + timedelta(seconds=seconds))

    def _entry(self, planned: Plan) -> dict[str, Any]:
        event = planned.event
        entry = new_entry(self.store, self.operation.action, self.actor, event.id)
        former = former_text(event.status, event.error, planned.changed)
        return {
            **entry,
            "batch": self.batch,
            "expected": planned.jobs,
            "former": former,
        }
