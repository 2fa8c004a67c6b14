"""The tables on each database: definition, creation, indexes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from flask import Flask
from sqlalchemy.dialects import mssql
from sqlalchemy.dialects import mysql
from sqlalchemy.dialects import oracle
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects import sqlite
from sqlalchemy.schema import CreateIndex
from sqlalchemy.schema import CreateTable
from support.inboxes import dispose
from support.inboxes import due_rows
from support.inboxes import event
from support.inboxes import row
from support.values import Clock
from support.waiting import in_threads

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.inbox.record import record as record_event
from flask_procore_webhooks.schema.tables import define_tables
from flask_procore_webhooks.storage.store import Store
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import payload

MakeApp = Callable[..., Flask]


def test_creating_tables_again_changes_nothing(store: Store) -> None:
    assert sorted(store.database.create_tables()) == [
        "procore_webhook_event",
        "procore_webhook_job",
        "procore_webhook_journal",
        "procore_webhook_key",
        "procore_webhook_state",
        "procore_webhook_tally",
    ]
    record_event(store, event())
    assert store.database.create_tables() == []
    engine = store.database.engine
    store.columns.id.table.metadata.create_all(engine)
    store.columns.id.table.metadata.create_all(engine)
    assert row(store)["status"] == "pending"


def test_tables_can_be_created_concurrently(
    make_app: MakeApp, database_url: str
) -> None:
    """The workers of a server create tables at their first deliveries."""
    apps = []
    for _ in range(8):
        app = make_app(PROCORE_WEBHOOK_DATABASE_URI=database_url)
        ProcoreWebhooks().init_app(app)
        apps.append(app)
    sent = payload("RFIs.update", id="evt_1")
    barrier = threading.Barrier(len(apps))
    statuses: list[int] = []

    def work(app: Flask) -> None:
        barrier.wait(10)
        statuses.append(deliver(app.test_client(), sent).status_code)

    in_threads(work, apps)
    again = [deliver(app.test_client(), sent).status_code for app in apps]

    # 503 is the answer while another delivery runs the event; no table is missing.
    assert set(statuses) <= {200, 503}
    assert 200 in statuses
    assert again == [200] * len(apps)
    (endpoint,) = endpoints(apps[0]).values()
    assert row(endpoint.store)["status"] == "unmatched"
    for app in apps:
        dispose(app)


def test_tables_created_by_another_process_meanwhile_are_used(
    store: Store, database_url: str
) -> None:
    """The other process creates the tables between our check and our CREATE TABLE."""
    other = sa.create_engine(database_url, poolclass=sa.NullPool)
    theirs = {table.name: table for table in define_tables(sa.MetaData())}

    def be_faster(table: sa.Table, connection: Any, **options: Any) -> None:
        theirs[table.name].create(other)

    for table in store.database.tables:
        sa.event.listen(table, "before_create", be_faster)

    store.database.create_tables()
    assert store.database.missing_tables() == []
    assert record_event(store, event()).is_new


DIALECTS = {
    "sqlite": sqlite.dialect(),
    "postgresql": postgresql.dialect(),
    "mysql": mysql.dialect(),
    "mariadb": mysql.dialect(is_mariadb=True),
    "oracle": oracle.dialect(),
    "mssql": mssql.dialect(),
}


@pytest.mark.parametrize("name", DIALECTS)
def test_tables_compile_for_every_dialect(name: str) -> None:
    dialect = DIALECTS[name]
    tables = define_tables(sa.MetaData())
    text = "".join(str(CreateTable(table).compile(dialect=dialect)) for table in tables)
    indexes = {index.name: index for index in tables.event.indexes}
    due = indexes["ix_procore_webhook_event_due"]
    index_text = str(CreateIndex(due).compile(dialect=dialect))

    assert "UNIQUE (endpoint, event_id)" in text
    partial = "WHERE due_at IS NOT NULL" in index_text
    assert partial == (name in ("sqlite", "postgresql"))
    exact = "CHARACTER SET ascii COLLATE ascii_bin" in text
    assert exact == (name in ("mysql", "mariadb"))
    assert ("LONGBLOB" in text) == (name in ("mysql", "mariadb"))
    assert ("AUTOINCREMENT" in text) == (name == "sqlite")


def test_defining_the_tables_twice_defines_them_once() -> None:
    metadata = sa.MetaData(schema="hooks")
    assert define_tables(metadata) is define_tables(metadata)
    assert sorted(metadata.tables) == [
        "hooks.procore_webhook_event",
        "hooks.procore_webhook_job",
        "hooks.procore_webhook_journal",
        "hooks.procore_webhook_key",
        "hooks.procore_webhook_state",
        "hooks.procore_webhook_tally",
    ]


def test_alembic_finds_nothing_to_migrate_in_tables_just_created(store: Store) -> None:
    store.database.create_tables()
    metadata = store.columns.id.table.metadata
    engine = store.database.engine
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_constraints_and_the_index_are_in_the_database(store: Store) -> None:
    store.database.create_tables()
    inspector = sa.inspect(store.database.engine)
    table = "procore_webhook_event"
    unique = inspector.get_unique_constraints(table)
    indexes = {index["name"]: index for index in inspector.get_indexes(table)}
    job = inspector.get_pk_constraint("procore_webhook_job")

    assert [each["column_names"] for each in unique] == [["endpoint", "event_id"]]
    assert job["constrained_columns"] == ["event", "subscriber"]
    due = indexes[f"ix_{table}_due"]
    assert due["column_names"] == ["endpoint", "due_at"]
    where = {
        key: str(value)
        for key, value in due.get("dialect_options", {}).items()
        if key.endswith("_where")
    }
    if store.database.engine.dialect.name in ("sqlite", "postgresql"):
        assert "due_at IS NOT NULL" in "".join(where.values())
    else:
        assert where == {}


def test_due_events_are_found_by_the_index_of_live_rows(
    store: Store, clock: Clock
) -> None:
    """The query does not read the many finished events."""
    table = store.columns.id.table
    first = record_event(store, event())
    finished = {**row(store), "status": "done", "due_at": None}
    del finished["id"]
    rows = [{**finished, "event_id": f"evt_{n}"} for n in range(2, 3000)]
    with store.connection() as connection:
        connection.execute(sa.insert(table), rows)
        name = connection.dialect.name
        if name != "sqlite":
            verb = "ANALYZE" if name == "postgresql" else "ANALYZE TABLE"
            connection.execute(sa.text(f"{verb} procore_webhook_event"))

    statements: list[tuple[str, Any]] = []

    def keep(connection: Any, cursor: Any, text: str, values: Any, *more: Any) -> None:
        statements.append((text, values))

    sa.event.listen(store.database.engine, "before_cursor_execute", keep)
    assert due_rows(store) == [first.row_id]
    sa.event.remove(store.database.engine, "before_cursor_execute", keep)

    ((text, values),) = statements
    explain = "EXPLAIN QUERY PLAN" if name == "sqlite" else "EXPLAIN"
    with store.connection() as connection:
        plan = connection.exec_driver_sql(f"{explain} {text}", values).all()
    assert "ix_procore_webhook_event_due" in str(plan)
