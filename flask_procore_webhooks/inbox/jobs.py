"""Jobs: one subscriber's work for one event, with its own state and due time.

A job has no row before its first attempt ends or is put off. Pending rows are written
for all subscribers of an event together, so that an event with one has all of them.
"""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam
from sqlalchemy import Connection
from sqlalchemy import delete
from sqlalchemy import insert
from sqlalchemy import Select
from sqlalchemy import select
from sqlalchemy import update

from ..log import error_text
from ..storage.store import Store
from .record import LONGEST_ERROR
from .status import JobState
from .status import Wait

#: The subscriber of a row that an upgrade wrote: it stands for every subscriber of the
#: event without a row.
EVERY_OTHER = ""
#: Characters of the class of an error, and of a traceback, whose beginning is cut.
LONGEST_CLASS, LONGEST_TRACEBACK = 190, 20_000
#: The classes of errors of jobs that were postponed, and discarded, for a reason.
RETRY_LATER, DISCARD = "RetryLater", "Discard"
#: Among the parts of a database: the statement of :func:`jobs_of`.
_JOBS_OF = "procore_webhooks_jobs_of"


@dataclass(frozen=True)
class Failure:
    """Why an attempt has failed, or why a job was postponed or discarded."""

    #: ``"requests.exceptions.Timeout"``; of an attempt without an exception, a word.
    error_class: str
    message: str
    traceback: str | None = None
    #: What the subscriber raised; ``None`` if it was abandoned or interrupted.
    exception: BaseException | None = None

    @property
    def text(self) -> str:
        """One text, as in the last line of a traceback."""
        return error_text(self.exception) if self.exception else self.message


@dataclass(frozen=True)
class Job:
    """The work of one subscriber for one event."""

    subscriber: str
    state: JobState = JobState.PENDING
    #: The version of its row; 0 without one.
    version: int = 0
    #: Attempts that have ended since receipt or replay; of a suspect, begun.
    attempts: int = 0
    due_at: datetime | None = None
    waits_for: Wait | None = Wait.NOTHING
    key: str | None = None
    first_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    #: What its error is to be, of an attempt in this run.
    failure: Failure | None = None
    #: Whether the attempt that runs now is in ``attempts`` already.
    is_begun: bool = False

    @property
    def attempt(self) -> int:
        """The number of the attempt that is running or comes next, from 1."""
        return self.attempts + (not self.is_begun)

    @property
    def is_new(self) -> bool:
        """Whether it had no row before this run."""
        return self.version == int(self.is_begun)

    @property
    def is_pending(self) -> bool:
        return self.state is JobState.PENDING

    def ended(
        self, state: JobState, now: datetime, began: datetime | None = None
    ) -> Job:
        """The job when it is finished.

        :param began: when its attempt began; ``None`` if it was not called.
        """
        # Every run ends here: ``replace`` takes twice the time.
        return Job(
            self.subscriber,
            state,
            self.version,
            self.attempts + (began is not None and not self.is_begun),
            None,
            None,
            None,
            self.first_at,
            began or self.started_at,
            now,
            self.failure,
        )

    def put_off(
        self,
        due_at: datetime,
        waits_for: Wait,
        *,
        since: datetime | None = None,
        key: str | None = None,
    ) -> Job:
        """The job when it waits.

        :param since: when its wait or, of a failed attempt, its call began.
        """
        return replace(
            self,
            due_at=due_at,
            waits_for=waits_for,
            key=key,
            started_at=since or self.started_at,
            is_begun=False,
        )


def jobs_of(
    store: Store, connection: Connection, rows: Collection[int]
) -> dict[int, dict[str, Job]]:
    """Return the jobs of each of ``rows`` that has some, by subscriber."""
    parts = store.database.parts
    query = parts.get(_JOBS_OF)
    if query is None:
        query = parts[_JOBS_OF] = _jobs_query(store)
    found: dict[int, dict[str, Job]] = {}
    for row in connection.execute(query, {"rows": list(rows)}):
        event, name, state, version, attempts, due_at, waits_for, *rest = row
        waits_for = Wait(waits_for) if waits_for else None
        found.setdefault(event, {})[name] = Job(
            name, JobState(state), version, attempts, due_at, waits_for, *rest
        )
    return found


def _jobs_query(store: Store) -> Select[Any]:
    c = store.database.tables.job.c
    begin = c.event, c.subscriber, c.state, c.version, c.attempts, c.due_at
    rest = c.waits_for, c.key, c.first_at, c.started_at, c.finished_at
    rows: Any = bindparam("rows", expanding=True)
    return select(*begin, *rest).where(c.event.in_(rows))


def state_of(store: Store, row_id: int, subscriber: str) -> JobState | None:
    """The state of a subscriber's job for the event, ``None`` without a row."""
    c = store.database.tables.job.c
    found = store.rows(
        select(c.state).where(c.event == row_id, c.subscriber == subscriber)
    )
    return JobState(found[0].state) if found else None


def dead_errors(store: Store, row_id: int, but: Collection[str]) -> Iterator[str]:
    """The errors of the event's dead jobs, each with its subscriber.

    :param but: without those of these subscribers.
    """
    c = store.database.tables.job.c
    mine = c.event == row_id, c.state == JobState.DEAD.value
    query = select(c.subscriber, c.error_class, c.error).where(*mine)
    for name, error_class, error in store.rows(query.order_by(c.subscriber)):
        if name not in but:
            yield ": ".join(filter(None, (name, error_class, error)))


def are_complete(jobs: Collection[Any]) -> bool:
    """Whether these rows of an unfinished event are those of all its subscribers.

    A run that was killed may have left rows of finished jobs only, and has not begun
    the others.

    :param jobs: of :class:`Job`, or rows of the table.
    """
    return any(job.state == JobState.PENDING or job.version > 1 for job in jobs)


def write_jobs(
    connection: Connection, store: Store, row_id: int, jobs: Iterable[Job]
) -> bool:
    """Write jobs in the transaction of a change of their event, which is held.

    A placeholder of an upgrade is deleted.

    :return: ``False`` if one has another version than its row.
    :raises sqlalchemy.exc.IntegrityError: a job without a row has one.
    """
    table = store.database.tables.job
    new = []
    for job in jobs:
        if job.subscriber == EVERY_OTHER:
            placeholder = table.c.event == row_id, table.c.subscriber == EVERY_OTHER
            connection.execute(delete(table).where(*placeholder))
            continue
        values = _row_values(store, job)
        if not job.version:
            mine = {"event": row_id, "subscriber": job.subscriber, "version": 1}
            mine |= {"endpoint": store.endpoint, **failure_values(store, job.failure)}
            new.append(values | mine)
            continue
        if job.failure is not None:
            values |= failure_values(store, job.failure)
        change = update(table).where(
            table.c.event == row_id,
            table.c.subscriber == job.subscriber,
            table.c.version == job.version,
        )
        change = change.values(**values, version=job.version + 1)
        if not connection.execute(change).rowcount:
            return False
    if new:
        connection.execute(insert(table), new)
    return True


def write_failure(connection: Connection, store: Store, row_id: int, job: Job) -> None:
    """Write the error of a job whose end was written in the same transaction."""
    table = store.database.tables.job
    change = update(table).where(
        table.c.event == row_id,
        table.c.subscriber == job.subscriber,
        table.c.version == job.version + 1,
    )
    connection.execute(change.values(**failure_values(store, job.failure)))


def written(job: Job) -> Job:
    """The job after its row was written."""
    return replace(job, version=job.version + 1, failure=None)


def _row_values(store: Store, job: Job) -> dict[str, Any]:
    return {
        "state": job.state.value,
        "attempts": job.attempts,
        "due_at": job.due_at or store.db_now() if job.is_pending else None,
        "waits_for": job.waits_for.value if job.waits_for else None,
        "key": job.key,
        "first_at": job.first_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "dead_at": job.finished_at if job.state is JobState.DEAD else None,
    }


def failure_values(store: Store, failure: Failure | None) -> Mapping[str, Any]:
    """The values of the columns of a job's error."""
    if failure is None:
        return dict.fromkeys(("error_class", "error", "traceback"))
    # The end of a traceback says more than its beginning.
    tail = (failure.traceback or "")[-LONGEST_TRACEBACK:]
    return {
        "error_class": store.text(failure.error_class, LONGEST_CLASS),
        "error": store.text(failure.message, LONGEST_ERROR),
        "traceback": store.text(tail, LONGEST_TRACEBACK) or None,
    }
