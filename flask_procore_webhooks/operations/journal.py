"""The journal: what operators did, to which rows, and what the rows held before."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from typing import NamedTuple

from sqlalchemy import case
from sqlalchemy import ColumnElement
from sqlalchemy import func
from sqlalchemy import insert
from sqlalchemy import Select
from sqlalchemy import select
from sqlalchemy import update

from ..storage.store import Store
from ..storage.store import to_db_time

REPLAY, DISCARD, PRUNE = "replay", "discard", "prune"
PAUSE, RESUME = "pause", "resume"
RECONCILE = "reconcile"

#: Characters of an operator's name, of a filter, and of all errors of one entry. The
#: text of MariaDB and MySQL ends at 64 KiB.
LONGEST_ACTOR, LONGEST_FILTER, LONGEST_FORMER = 160, 60_000, 50_000


class Batch(NamedTuple):
    """One operation on an endpoint, as the journal has it."""

    id: str
    action: str
    actor: str
    at: datetime
    filter: dict[str, Any]
    expected: int | None
    #: ``None`` until the operation has ended.
    actual: int | None


def new_batch() -> str:
    """A short id for an operation on any number of endpoints."""
    return secrets.token_hex(4)


def actor_text(store: Store, actor: str) -> str:
    """The actor as it is stored; may connect, so call it without a connection."""
    return store.text(actor, LONGEST_ACTOR) or ""


def note(
    store: Store,
    action: str,
    actor: str,
    *,
    batch: str | None = None,
    filter: Mapping[str, Any] | None = None,
    expected: int | None = None,
) -> None:
    """Write an entry for the whole endpoint.

    :param filter: the options that selected the rows, as JSON values. If they are too
        many to be stored, the entry has the number of the named rows only.
    """
    text = json.dumps(filter) if filter is not None else None
    if text is not None and len(text) > LONGEST_FILTER:
        text = json.dumps({**(filter or {}), "rows": len((filter or {})["rows"])})
    entry = new_entry(store, action, actor_text(store, actor))
    entry |= {"batch": batch, "filter": text, "expected": expected}
    journal = insert(store.database.tables.journal)
    store.run(lambda connection: connection.execute(journal, entry))


def end_batch(store: Store, batch: str) -> int:
    """Write how many jobs and events the operation has changed; return the number."""
    j = store.database.tables.journal.c
    mine = j.endpoint == store.endpoint, j.batch == batch
    units = func.sum(units_of(store))
    ((found,),) = store.rows(select(units).where(*mine, j.event.is_not(None)))
    actual = int(found or 0)
    set_actual(store, batch, actual)
    return actual


def set_actual(store: Store, batch: str, actual: int) -> None:
    """Write the result of an operation that not every event has an entry of."""
    _change_entry(store, batch, actual=actual)


def end_reconcile(
    store: Store, batch: str, filter: Mapping[str, Any], missing: int, inserted: int
) -> None:
    """Write what a reconciliation has found and inserted."""
    counts = {"expected": missing, "actual": inserted}
    _change_entry(store, batch, filter=json.dumps(filter), **counts)


def _change_entry(store: Store, batch: str, **values: Any) -> None:
    """Change the entry of an operation, and not those of its events."""
    j = store.database.tables.journal.c
    mine = j.endpoint == store.endpoint, j.batch == batch, j.event.is_(None)
    change = update(j.id.table).where(*mine).values(values)
    store.run(lambda connection: connection.execute(change))


def units_of(store: Store) -> ColumnElement[int]:
    """What an entry of an event counts for: its jobs, or 1 for an event without."""
    j = store.database.tables.journal.c
    return case((j.expected > 1, j.expected), else_=1)


def batch_of(store: Store, batch: str) -> Batch | None:
    """The operation of that id on the endpoint."""
    j = store.database.tables.journal.c
    columns = j.batch, j.action, j.actor, j.at, j.filter, j.expected, j.actual
    mine = j.endpoint == store.endpoint, j.batch == batch, j.event.is_(None)
    for row in store.rows(select(*columns).where(*mine).order_by(j.id)):
        found = Batch(*row)
        return found._replace(filter=json.loads(row.filter or "{}"))
    return None


def entries(
    store: Store,
    *,
    batch: str | None = None,
    since: datetime | None = None,
    limit: int = 20,
) -> list[dict[str, Any]]:
    """The newest entries of the endpoint first.

    :param batch: of this operation, with the entries of its events; by default of all
        operations, without them.
    """
    j = store.database.tables.journal.c
    query = select(*j).where(j.endpoint == store.endpoint)
    query = query.where(j.event.is_(None) if batch is None else j.batch == batch)
    if since:
        query = query.where(j.at >= to_db_time(since))
    return _read(store, query.order_by(j.id.desc()).limit(limit))


def journal_of(store: Store, row_id: int) -> list[dict[str, Any]]:
    """The entries of an event: action, at, actor, batch, former; oldest first.

    ``former`` has the event's ``status`` before the operation, and in ``jobs`` the
    ``subscriber``, ``state``, ``attempts``, ``error_class`` and ``error`` of each job
    that it has changed.
    """
    j = store.database.tables.journal.c
    query = select(j.action, j.at, j.actor, j.batch, j.former)
    return _read(store, query.where(j.event == row_id).order_by(j.id))


def _read(store: Store, query: Select[Any]) -> list[dict[str, Any]]:
    return [
        {
            name: json.loads(value) if name in ("filter", "former") and value else value
            for name, value in row._mapping.items()
        }
        for row in store.rows(query)
    ]


def new_entry(
    store: Store, action: str, actor: str, row_id: int | None = None
) -> dict[str, Any]:
    """The values of an entry that every operation has."""
    return {
        "endpoint": store.endpoint,
        "action": action,
        "event": row_id,
        "at": store.db_now(),
        "actor": actor,
    }


def former_text(status: str, error: str | None, jobs: Sequence[Any]) -> str:
    """What an event and its jobs were before an operation, as JSON in ASCII."""
    # A character may take 12 bytes: two escapes of six.
    longest = min(2000, LONGEST_FORMER // (12 * (len(jobs) + 1)))
    found = [
        {
            "subscriber": job.subscriber,
            "state": job.state,
            "attempts": job.attempts,
            "error_class": job.error_class,
            "error": job.error and job.error[:longest],
        }
        for job in jobs
    ]
    former = {"status": status, "error": error and error[:longest], "jobs": found}
    return json.dumps(former)
