"""Jobs written directly to an inbox, in the form in which runs leave them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from flask_procore_webhooks.inbox.record import record
from flask_procore_webhooks.inbox.status import FINISHED
from flask_procore_webhooks.inbox.status import JobState
from flask_procore_webhooks.inbox.status import PARKED
from flask_procore_webhooks.inbox.status import Status
from flask_procore_webhooks.storage.store import Store
from support.inboxes import event


def add_event(
    store: Store, id: str, *jobs: dict[str, Any], status: str = "", **fields: Any
) -> int:
    """Record an event whose jobs are in the state of ``jobs``; return its row id.

    :param status: by default what follows from the jobs; ``pending`` without jobs.
    """
    fields["reason"] = fields.get("reason", "update")
    fields["resource_type"] = fields.get("resource_type", "RFIs")
    fields["type"] = fields.get("type", f"{fields['resource_type']}.{fields['reason']}")
    row_id = record(store, event(id, **fields)).row_id
    rows = [new_job(store, row_id, **job) for job in jobs]
    status = status or _status_of(rows)
    dues = [row["due_at"] for row in rows if row["due_at"]]
    errors = [f"{r['subscriber']}: {r['error']}" for r in rows if r["error"]]
    now, is_finished = store.db_now(), status in FINISHED
    values = {
        "status": status,
        "due_at": None if is_finished else min(dues, default=now),
        "parked_at": now if status in PARKED else None,
        "finished_at": now if is_finished else None,
        "error": "; ".join(errors) or None,
    }
    table, job = store.columns.id.table, store.database.tables.job
    with store.connection(begin=True) as connection:
        if rows:
            connection.execute(sa.insert(job), rows)
        mine = table.c.id == row_id
        connection.execute(sa.update(table).where(mine).values(values))
    return row_id


def new_job(
    store: Store,
    row_id: int,
    subscriber: str = "sync",
    state: str = "done",
    *,
    wait: float = 0.0,
    **values: Any,
) -> dict[str, Any]:
    """The row of a job.

    :param wait: seconds until a pending job is due.
    """
    now, is_pending = store.db_now(), state == JobState.PENDING
    return {
        "event": row_id,
        "subscriber": subscriber,
        "endpoint": store.endpoint,
        "state": state,
        "version": 1,
        "attempts": 1,
        "due_at": now + timedelta(seconds=wait) if is_pending else None,
        "waits_for": "retry" if is_pending else None,
        "key": None,
        "first_at": None,
        "started_at": now,
        "finished_at": None if is_pending else now,
        "dead_at": now if state == JobState.DEAD else None,
        "batch": None,
        "error_class": None,
        "error": None,
        "traceback": None,
        **values,
    }


def failed(
    subscriber: str, error: str, state: str = "dead", **values: Any
) -> dict[str, Any]:
    """The values of a job whose last attempt failed; ``error`` is ``Class: text``."""
    error_class, _, text = error.partition(": ")
    return {
        "subscriber": subscriber,
        "state": state,
        "error_class": error_class,
        "error": text,
        **values,
    }


def set_status(store: Store, row_id: int, status: str) -> None:
    table = store.columns.id.table
    change = sa.update(table).where(table.c.id == row_id).values(status=status)
    with store.connection() as connection:
        connection.execute(change)


def copy_event(store: Store, row_id: int, number: int, name: str = "copy") -> None:
    """Add copies of an event without its jobs, with ids of their own."""
    table = store.columns.id.table
    (found,) = store.rows(sa.select(*table.c).where(table.c.id == row_id))
    row = {name: value for name, value in found._mapping.items() if name != "id"}
    rows = [{**row, "event_id": f"{name}_{index}"} for index in range(number)]
    with store.connection(begin=True) as connection:
        connection.execute(sa.insert(table), rows)


def _status_of(rows: list[dict[str, Any]]) -> str:
    states = {row["state"] for row in rows}
    if JobState.PENDING in states or not states:
        return Status.PENDING.value
    return Status.DEAD.value if JobState.DEAD in states else Status.DONE.value


def jobs_of(store: Store, row_id: int) -> dict[str, dict[str, Any]]:
    """The rows of an event's jobs, by subscriber."""
    job = store.database.tables.job
    query = sa.select(job).where(job.c.event == row_id).order_by(job.c.subscriber)
    return {row.subscriber: dict(row._mapping) for row in store.rows(query)}


def states_of(store: Store, row_id: int) -> dict[str, str]:
    """The states of an event's jobs, by subscriber."""
    return {name: job["state"] for name, job in jobs_of(store, row_id).items()}


def set_event(store: Store, row_id: int, **values: Any) -> None:
    """Change the row of an event."""
    event = store.database.tables.event
    with store.connection() as connection:
        change = sa.update(event).where(event.c.id == row_id).values(values)
        connection.execute(change)


def take_lease(store: Store, row_id: int, seconds: float) -> None:
    """Make the event running, as a claim does."""
    ends = store.db_now() + timedelta(seconds=seconds)
    set_event(store, row_id, status="running", lease="x" * 32, due_at=ends, claims=1)
