"""The statements of replay and discard on the rows of events and jobs."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from datetime import datetime
from datetime import timedelta
from typing import Any

from sqlalchemy import bindparam
from sqlalchemy import ColumnElement
from sqlalchemy import Connection
from sqlalchemy import insert
from sqlalchemy import or_
from sqlalchemy import update

from ..inbox.jobs import EVERY_OTHER
from ..inbox.record import LONGEST_ERROR
from ..inbox.status import JobState
from ..inbox.status import Status
from ..inbox.status import Wait
from ..storage.store import Store
from .plans import Plan

#: The smallest difference between two stored times.
_TICK = timedelta(microseconds=1)

Rows = list[dict[str, Any]]

_ENDED = {"key": None, "dead_at": None}
_RESET = {
    **_ENDED,
    "state": JobState.PENDING.value,
    "attempts": 0,
    "first_at": None,
    "finished_at": None,
}
_DISCARD = {
    **_ENDED,
    "state": JobState.DISCARDED.value,
    "due_at": None,
    "waits_for": None,
}


def is_free(store: Store, now: datetime) -> ColumnElement[bool]:
    """The condition for events without a live lease."""
    c = store.columns
    return or_(c.status != Status.RUNNING.value, c.due_at <= now)


def replay_jobs(
    connection: Connection,
    store: Store,
    planned: Sequence[Plan],
    due: Sequence[datetime],
    batch: str,
) -> None:
    """Make the jobs of the plans pending, each due at its time or before."""
    writes = _Writes(store, batch)
    for each, at in zip(planned, due, strict=True):
        pending = {job.subscriber: job.due_at for job in each.kept if job.due_at}
        for job in each.hurried:
            pending[job.subscriber] = min(at, job.due_at or at)
        for job in each.reset:
            pending[job.subscriber] = at
        for name in each.inserted:
            pending[name] = at
            writes.add(each.event.id, name, JobState.PENDING)
        hurries = each.is_bare and each.event.due_at is not None
        bare = min(at, each.event.due_at) if hurries else at
        writes.keep_pending(each, pending, bare)
    writes.execute(connection)


def discard_jobs(
    connection: Connection,
    store: Store,
    planned: Sequence[Plan],
    now: datetime,
) -> None:
    """End the jobs of the plans as discarded, and the events without another job."""
    writes = _Writes(store)
    for each in planned:
        pending = {job.subscriber: job.due_at for job in each.kept if job.due_at}
        row_id = each.event.id
        writes.ended += [
            {"row": row_id, "name": job.subscriber, "at": now} for job in each.ended
        ]
        if each.added is not None:
            writes.add(row_id, each.added, JobState.DISCARDED, finished_at=now)
            writes.add(row_id, EVERY_OTHER, JobState.PENDING)
            pending[EVERY_OTHER] = each.event.due_at
        if pending:
            writes.keep_pending(each, pending, now)
            continue
        is_dead = any(job.state == JobState.DEAD.value for job in each.kept)
        event = {"row": row_id, "due": None, "finished": now}
        event["parked"] = (each.event.parked_at or now) if is_dead else None
        event["new_status"] = (Status.DEAD if is_dead else Status.DONE).value
        error = "\n".join(_dead_errors(each))
        event["new_error"] = store.text(error, LONGEST_ERROR) or None
        writes.finished.append(event)
    writes.execute(connection)


class _Writes:
    """The rows that are written by one transaction."""

    def __init__(self, store: Store, batch: str | None = None) -> None:
        self._store, self._batch = store, batch
        self.events: Rows = []
        #: Events that are finished.
        self.finished: Rows = []
        self.ended: Rows = []
        self._reset: Rows = []
        self._hurried: Rows = []
        self._moved: Rows = []
        #: By row id of the event.
        self._added: dict[int, Rows] = {}

    def add(
        self,
        row_id: int,
        subscriber: str,
        state: JobState,
        *,
        finished_at: datetime | None = None,
    ) -> None:
        """Insert a job; its due time follows by :meth:`keep_pending`."""
        is_pending = state is JobState.PENDING
        job = {"event": row_id, "subscriber": subscriber, "state": state.value}
        job |= {"endpoint": self._store.endpoint, "version": 1, "attempts": 0}
        job |= {"waits_for": Wait.NOTHING.value if is_pending else None}
        job |= {"due_at": None, "finished_at": finished_at, "batch": self._batch}
        self._added.setdefault(row_id, []).append(job)

    def keep_pending(
        self, planned: Plan, pending: dict[str, datetime], bare: datetime
    ) -> None:
        """Write the due times of an event's pending jobs, and its own.

        Its due time always changes: a claim that has read the jobs before compares it
        and fails.

        :param bare: when the event is due if it has no jobs.
        """
        former, event = planned.event.due_at, planned.event
        moved = set()
        while pending and min(pending.values()) == former:
            name = min(pending, key=pending.__getitem__)
            pending[name] += _TICK
            moved.add(name)
        for job in planned.reset:
            self._reset.append(_due(event, job.subscriber, pending))
        for job in planned.hurried:
            self._hurried.append(_due(event, job.subscriber, pending))
        changed = {job.subscriber for job in planned.changed}
        for added in self._added.get(event.id, ()):
            added["due_at"] = pending.get(added["subscriber"])
            changed.add(added["subscriber"])
        for name in moved - changed:
            self._moved.append(_due(event, name, pending))
        due = min(pending.values(), default=bare)
        values = {"row": event.id, "due": due, "finished": None, "parked": None}
        self.events.append({**values, "new_status": Status.PENDING.value})

    def execute(self, connection: Connection) -> None:
        c, j = self._store.columns, self._store.database.tables.job.c
        due: dict[str, Any] = {"due_at": bindparam("due")}
        replays = {**due, "waits_for": Wait.NOTHING.value, "batch": self._batch}
        self._update(connection, self._reset, {**replays, **_RESET})
        self._update(connection, self._hurried, replays)
        self._update(
            connection, self.ended, {**_DISCARD, "finished_at": bindparam("at")}
        )
        if self._moved:
            change = update(j.event.table).where(*_job(j)).values(due)
            connection.execute(change, self._moved)
        if self._added:
            rows = [row for rows in self._added.values() for row in rows]
            connection.execute(insert(j.event.table), rows)
        change = update(c.id.table).where(c.id == bindparam("row"))
        values = {"status": bindparam("new_status"), **due, "lease": None}
        values |= {"parked_at": bindparam("parked")}
        values |= {"finished_at": bindparam("finished")}
        if self.events:
            connection.execute(change.values(values), self.events)
        if self.finished:
            values["error"] = bindparam("new_error")
            connection.execute(change.values(values), self.finished)

    def _update(
        self, connection: Connection, rows: Rows, values: dict[str, Any]
    ) -> None:
        """Change jobs, each to the next version."""
        if rows:
            j = self._store.database.tables.job.c
            versioned = {**values, "version": j.version + 1}
            change = update(j.event.table).where(*_job(j)).values(versioned)
            connection.execute(change, rows)


def _dead_errors(planned: Plan) -> Iterator[str]:
    """The errors of the event's dead jobs that stay, each with its subscriber."""
    for job in planned.kept:
        if job.state == JobState.DEAD.value:
            yield ": ".join(filter(None, (job.subscriber, job.error_class, job.error)))


def _due(event: Any, name: str, pending: dict[str, datetime]) -> dict[str, Any]:
    return {"row": event.id, "name": name, "due": pending[name]}


def _job(j: Any) -> Iterable[ColumnElement[bool]]:
    return j.event == bindparam("row"), j.subscriber == bindparam("name")
