"""Completion: the statements that end a job, in the session or by themselves."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from functools import partial
from itertools import starmap
from operator import attrgetter
from typing import Any
from typing import Protocol

from sqlalchemy import BigInteger
from sqlalchemy import bindparam
from sqlalchemy import ColumnElement
from sqlalchemy import Connection
from sqlalchemy import DateTime
from sqlalchemy import func
from sqlalchemy import insert
from sqlalchemy import Integer
from sqlalchemy import literal
from sqlalchemy import literal_column
from sqlalchemy import select
from sqlalchemy import Text
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from sqlalchemy.types import TypeEngine

from ..schema.tables import lock_in_order
from ..schema.tables import Tables
from ..storage.store import Store
from .jobs import Job
from .jobs import state_of
from .jobs import write_failure
from .keys import end_key
from .keys import HeldKey
from .status import Status

#: On PostgreSQL, the commit of a statement that returns this does not wait for the
#: disk. A crash of the database server may lose the last fraction of a second of such
#: commits, in order: the event runs again when its lease ends, and its jobs decide
#: about repetitions. Measured with subscribers that write nothing: 1.4 to 2.3 times as
#: many runs in five of six rounds. It is set for the transaction, so that the
#: connection comes back to the pool unchanged.
ASYNC_COMMIT: ColumnElement[str] = literal_column(
    "set_config('synchronous_commit', 'off', true)"
)

#: The values of an event that is done, without its time.
DONE = {
    "status": Status.DONE.value,
    "claims": 0,
    "error": None,
    "lease": None,
    "due_at": None,
    "parked_at": None,
}

#: The columns of a job that has ended without a row before: type, and the parameter of
#: :func:`end_values`.
ENDED: dict[str, tuple[type[TypeEngine[Any]], str]] = {
    "event": (BigInteger, "row"),
    "subscriber": (Text, "name"),
    "endpoint": (Text, "owner"),
    "state": (Text, "how"),
    "attempts": (Integer, "tried"),
    "started_at": (DateTime, "began"),
    "finished_at": (DateTime, "at"),
}

_ROW_ID, _LEASE, _IS_DURABLE = map(attrgetter, ("row_id", "lease", "durable"))


class _Held(Protocol):
    """What is read of a claim."""

    @property
    def row_id(self) -> int: ...
    @property
    def lease(self) -> str: ...
    @property
    def durable(self) -> bool: ...


def async_commit(store: Store, change: Any) -> Any:
    """Return ``change`` with ``ASYNC_COMMIT`` on PostgreSQL, else unchanged."""
    is_postgresql = store.dialect_name == "postgresql"
    return change.returning(ASYNC_COMMIT) if is_postgresql else change


class RunStatements:
    """The statements that every run executes, built once for each database.

    Without that, a run takes 1.5 times as long (subscribers that write nothing).
    Parameters: ``row`` and ``token`` of the claim; those of :func:`end_values`;
    ``seen``, the version of the row that ``completion`` changes; for ``held`` and
    ``settle``, the columns of the event to change.
    """

    def __init__(self, store: Store) -> None:
        tables, c = store.database.tables, store.columns
        ended: dict[str, Any] = {
            "state": bindparam("how"),
            "attempts": bindparam("tried"),
            "first_at": None,
            "started_at": bindparam("began"),
            "finished_at": bindparam("at"),
            "due_at": None,
            "waits_for": None,
            "key": None,
            "dead_at": None,
        }
        new: dict[str, Any] = {
            column: bindparam(name) for column, (_, name) in ENDED.items()
        }
        self.held = update(tables.event).where(
            c.id == bindparam("row"), c.lease == bindparam("token")
        )
        self.settle = async_commit(store, self.held)
        self.insertion = insert(tables.job).values(**new, version=1)
        j = tables.job.c
        #: Changes no row if the version has risen: the run has outlived its lease or
        #: its timeout.
        self.completion = (
            update(tables.job)
            .where(j.event == bindparam("row"), j.subscriber == bindparam("name"))
            .where(j.version == bindparam("seen"))
            .values(**ended, version=j.version + 1)
        )
        rows: Any = bindparam("rows", expanding=True)
        tokens: Any = bindparam("tokens", expanding=True)
        done = {"finished_at": bindparam("at"), **DONE}
        #: Whether one transaction writes at a time, without locks of rows.
        self.locks_file = store.dialect_name == "sqlite"
        mine = c.id.in_(rows), c.lease.in_(tokens)
        #: Settles events that are done. Parameters: ``rows``, ``tokens`` and ``at``.
        self.done = update(tables.event).where(*mine).values(done)
        #: The same in one statement that inserts the jobs, too. Its parameters for them
        #: are arrays, one for each of ``ENDED``, whose names begin with ``each_``.
        self.done_with_jobs = self.async_done_with_jobs = None
        if store.dialect_name == "postgresql":
            self.done_with_jobs = _done_with_jobs(tables, done)
            self.async_done_with_jobs = async_commit(store, self.done_with_jobs)


def _done_with_jobs(tables: Tables, done: dict[str, Any]) -> Any:
    """Settle events, in the order of their row ids, and insert jobs, on PostgreSQL.

    Its text is the same for any number of rows, so that it is prepared once.
    """
    from sqlalchemy.dialects.postgresql import ARRAY

    c = tables.event.c
    rows = bindparam("rows", type_=ARRAY(BigInteger))
    tokens = bindparam("tokens", type_=ARRAY(Text))
    mine = c.id == func.any(rows), c.lease == func.any(tokens)
    held = select(c.id).where(*mine).order_by(c.id).with_for_update().cte("held")
    arrays = [bindparam(f"each_{n}", type_=ARRAY(kind)) for kind, n in ENDED.values()]
    ended = func.unnest(*arrays).table_valued(*ENDED).render_derived(name="ended")
    job = select(*ended.c, literal(1))
    jobs = insert(tables.job).from_select([*ENDED, "version"], job).cte("jobs")
    settle = update(tables.event).where(c.id == held.c.id).values(done)
    return settle.add_cte(jobs)


def run_statements(store: Store) -> RunStatements:
    """The statements of the store's database."""
    parts = store.database.parts
    found: RunStatements | None = parts.get(RunStatements)
    return found or parts.setdefault(RunStatements, RunStatements(store))


def end_values(store: Store, row_id: int, job: Job) -> dict[str, Any]:
    """The parameters of ``insertion`` or ``completion`` for a finished job."""
    values = {
        "row": row_id,
        "name": job.subscriber,
        "owner": store.endpoint,
        "how": job.state.value,
        "tried": job.attempts,
        "began": job.started_at,
        "at": job.finished_at,
    }
    if job.version:
        del values["owner"]
        values["seen"] = job.version
    return values


def finish_in_session(
    store: Store, row_id: int, job: Job, key: HeldKey | None, session: Session
) -> bool:
    """Add the end of the job to the session's transaction; the caller commits.

    :param key: ends too.
    :return: ``False`` if the row of that version is gone.
    :raises sqlalchemy.exc.IntegrityError: the claim saw no row, and there is one.
    """
    statements, values = run_statements(store), end_values(store, row_id, job)
    # Without the machinery of the session for its own objects.
    table = {"clause": statements.insertion.table}
    connection = session.connection(bind_arguments=table)
    if not job.version:
        connection.execute(statements.insertion, values)
    elif not connection.execute(statements.completion, values).rowcount:
        return False
    if key is not None:
        end_key(session, store, key, job)
    return True


def finish(
    store: Store,
    row_id: int,
    job: Job,
    key: HeldKey | None = None,
    *,
    durable: bool = False,
) -> None:
    """Commit the end of the job by itself; a row of a later run stays as it is.

    :param key: ends too.
    :param durable: the commit waits for the disk.
    """
    statements, values = run_statements(store), end_values(store, row_id, job)
    end: Any = statements.completion if job.version else statements.insertion
    statement = end if durable else async_commit(store, end)

    def work(connection: Connection) -> None:
        connection.execute(statement, values)
        if job.failure is not None:
            write_failure(connection, store, row_id, job)
        if key is not None:
            end_key(connection, store, key, job)

    try:
        store.run(work, begin=key is not None or job.failure is not None)
    except IntegrityError:
        if state_of(store, row_id, job.subscriber) is None:
            raise


def settle_done(
    store: Store,
    claims: Collection[_Held],
    jobs: Collection[tuple[int, Job]],
    at: datetime,
    until: float | None = None,
) -> set[int]:
    """Settle events that are done, and insert jobs that have ended, in one commit.

    A job is inserted even if the lease of its event has passed on; a row of a later run
    stays as it is.

    :param jobs: without rows, each with the row of its event.
    :param at: when the events are done, as it is stored. A repeat after an error has
        the same time, and recognises what the try before has settled.
    :param until: as for :meth:`Store.run`.
    :return: the rows of the claims that were still held.
    """
    if not (claims or jobs):
        return set()
    statements, durable = run_statements(store), any(map(_IS_DURABLE, claims))
    one: Any = statements.async_done_with_jobs
    if durable:
        one = statements.done_with_jobs
    rows, tokens = [*map(_ROW_ID, claims)], {*map(_LEASE, claims)}
    settled = {"rows": rows, "tokens": [*tokens], "at": at}
    ends = [*starmap(partial(end_values, store), jobs)]

    def work(connection: Connection) -> int:
        if one is not None:
            names = [name for _, name in ENDED.values()]
            arrays = {f"each_{name}": [each[name] for each in ends] for name in names}
            return connection.execute(one, settled | arrays).rowcount
        if not statements.locks_file:
            c = store.columns
            lock_in_order(connection, c.id.table, c.id.in_(rows), c.lease.in_(tokens))
        if ends:
            connection.execute(statements.insertion, ends)
        return connection.execute(statements.done, settled).rowcount if rows else 0

    try:
        changed = store.run(work, begin=one is None, until=until)
    except IntegrityError:
        # A later run has written one of the jobs.
        for each in jobs:
            finish(store, *each, durable=durable)
        ends.clear()
        changed = store.run(work, begin=one is None, until=until)
    return set(rows) if changed == len(rows) else _settled(store, settled)


def _settled(store: Store, settled: dict[str, Any]) -> set[int]:
    """The rows that these values have settled, by a try whose answer was lost too."""
    c = store.columns
    mine = c.id.in_(settled["rows"]), c.finished_at == settled["at"]
    query = select(c.id).where(*mine, c.status == Status.DONE.value)
    return {row.id for row in store.rows(query)}
