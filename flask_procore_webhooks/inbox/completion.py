"""Completion: the statements that end a job, in the session or by themselves."""

from __future__ import annotations

from typing import Any

from sqlalchemy import bindparam
from sqlalchemy import ColumnElement
from sqlalchemy import Connection
from sqlalchemy import insert
from sqlalchemy import literal_column
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from ..storage.store import Store
from .jobs import Job
from .jobs import state_of
from .keys import end_key
from .keys import free_key
from .keys import HeldKey

#: On PostgreSQL, the commit of a statement that returns this does not wait for the
#: disk. A crash of the database server may lose the last fraction of a second of such
#: commits, in order: the event runs again when its lease ends, and its jobs decide
#: about repetitions. Measured with subscribers that write nothing: 1.4 to 2.3 times as
#: many runs in five of six rounds. It is set for the transaction, so that the
#: connection comes back to the pool unchanged.
ASYNC_COMMIT: ColumnElement[str] = literal_column(
    "set_config('synchronous_commit', 'off', true)"
)

#: The columns of the event that a settlement changes.
SETTLED = (
    "status",
    "claims",
    "error",
    "lease",
    "due_at",
    "parked_at",
    "finished_at",
)


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
        new = {
            "event": bindparam("row"),
            "subscriber": bindparam("name"),
            "endpoint": bindparam("owner"),
            "version": 1,
        }
        for name in ("state", "attempts", "started_at", "finished_at"):
            new[name] = ended[name]
        self.held = update(tables.event).where(
            c.id == bindparam("row"), c.lease == bindparam("token")
        )
        self.settle = async_commit(store, self.held)
        self.insertion = insert(tables.job).values(new)
        self.async_insertion = async_commit(store, self.insertion)
        j = tables.job.c
        #: Changes no row if the version has risen: the run has outlived its lease or
        #: its timeout.
        self.completion = (
            update(tables.job)
            .where(j.event == bindparam("row"), j.subscriber == bindparam("name"))
            .where(j.version == bindparam("seen"))
            .values(**ended, version=j.version + 1)
        )
        #: Settles and inserts a job: one statement instead of four round trips. Its
        #: parameters for the event begin with ``to_``, because both tables have some of
        #: the columns.
        self.finish: Any = None
        if store.dialect_name == "postgresql":
            from sqlalchemy.dialects import postgresql

            written = postgresql.insert(tables.job).values(new)
            written = written.on_conflict_do_nothing()
            settled: dict[str, Any] = {
                name: bindparam(f"to_{name}") for name in SETTLED
            }
            settle = async_commit(store, self.held.values(settled))
            self.finish = settle.add_cte(written.cte("written"))


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
    if not job.version:
        session.execute(statements.insertion, values)
    else:
        changed: Any = session.execute(statements.completion, values)
        if not changed.rowcount:
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
    statement = statements.insertion if durable else statements.async_insertion
    if job.version:
        statement = statements.completion

    def work(connection: Connection) -> None:
        connection.execute(statement, values)
        if key is not None:
            end_key(connection, store, key, job)

    try:
        store.run(work, begin=key is not None)
    except IntegrityError:
        if state_of(store, row_id, job.subscriber) is None:
            raise


def let_go(store: Store, key: HeldKey, job: Job) -> bool:
    """Free the key of a job that has failed or waits; ``False`` if it held none."""
    if not job.is_pending:
        store.run(lambda connection: end_key(connection, store, key, job))
        return True
    if key.is_exclusive:
        free_key(store, key)
    return key.is_exclusive
