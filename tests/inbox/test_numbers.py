"""Numbers of ``stats``: none of their queries reads the table of events."""

from __future__ import annotations

import re
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from support.commands import run
from support.jobs import add_event
from support.jobs import copy_event
from support.jobs import failed
from support.jobs import new_job

from flask_procore_webhooks.inbox.filters import Filter
from flask_procore_webhooks.inbox.queries import count_events
from flask_procore_webhooks.inbox.queries import incidents
from flask_procore_webhooks.inbox.queries import newest
from flask_procore_webhooks.operations import numbers
from flask_procore_webhooks.storage.store import Store

#: So many that an index is cheaper for the planner than the table.
DONE = 20_000
LOOKS: dict[str, Callable[[Store], Any]] = {
    "live": numbers.live_numbers,
    "history": numbers.history,
    "oldest": numbers.seconds_due,
    "retry": numbers.next_retry,
    "unmatched": numbers.unmatched_types,
    "abandoned": lambda store: numbers.abandoned(store, 60),
    "jobs": numbers.pending_jobs,
    "incidents": incidents,
    "dead": lambda store: count_events(store, Filter(statuses=("dead",))),
    "pending": lambda store: newest(store, Filter(statuses=("pending", "running"))),
}


@contextmanager
def statements(store: Store) -> Iterator[list[tuple[str, Any]]]:
    """The queries that are made meanwhile, with their parameters."""
    found: list[tuple[str, Any]] = []

    def note(
        connection: Any, cursor: Any, statement: str, parameters: Any, *rest: Any
    ) -> None:
        if statement.startswith("SELECT"):
            found.append((statement, parameters))

    engine = store.database.engine
    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)


def fill(store: Store) -> None:
    """Mostly finished events, as in an inbox that has been used for long."""
    done = add_event(store, "done", {"state": "done"})
    copy_event(store, done, DONE)
    c, job = store.columns, store.database.tables.job
    rows = store.rows(sa.select(c.id).where(c.id != done))
    jobs = [new_job(store, row.id) for row in rows]
    with store.connection(begin=True) as connection:
        connection.execute(sa.insert(job), jobs)
    for number in range(20):
        add_event(store, f"dead_{number}", failed("sync", "OSError: no"))
        add_event(store, f"waits_{number}", failed("sync", "OSError: no", "pending"))
        add_event(store, f"unmatched_{number}", status="unmatched")
    tables = store.database.tables
    with store.connection() as connection:
        for table in (tables.event, tables.job):
            if store.dialect_name == "postgresql":
                connection.exec_driver_sql(f"ANALYZE {table.name}")


def plan_of(store: Store, statement: str, parameters: Any) -> str:
    prefix = "EXPLAIN QUERY PLAN" if store.dialect_name == "sqlite" else "EXPLAIN"
    with store.connection() as connection:
        rows = connection.exec_driver_sql(f"{prefix} {statement}", parameters)
        return "\n".join(" ".join(map(str, row)) for row in rows)


#: How a plan says that it reads a whole table or a whole index.
SCAN = {
    "sqlite": r"SCAN procore_webhook_(event|job)\b",
    "postgresql": r"Seq Scan on procore_webhook_(event|job)\b",
}


@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
def test_no_query_reads_a_whole_table(store: Store, app: Flask) -> None:
    fill(store)
    scan = SCAN[store.dialect_name]
    looks = {**LOOKS, "stats": lambda store: run(app, "stats")}
    for name, look in looks.items():
        with statements(store) as found:
            look(store)
        assert found, name
        for each in found:
            plan = plan_of(store, *each)
            assert not re.search(scan, plan), f"{name}: {plan}"
    with statements(store) as found:
        store.rows(sa.select(sa.func.sum(store.columns.repeats)))
    assert re.search(scan, plan_of(store, *found[0])), "a scan is recognised"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_newest_events_are_read_without_sorting_all(store: Store) -> None:
    """SQLite has no statistics, and would read all events of the endpoint."""
    add_event(store, "evt")
    for wanted in (Filter(), Filter(type="RFIs.update"), Filter(statuses=("done",))):
        with statements(store) as found:
            newest(store, wanted)
        events, *_ = re.findall(
            "S.* procore_webhook_event.*", plan_of(store, *found[0])
        )
        assert events == "SCAN procore_webhook_event", "by row id, until the limit"
