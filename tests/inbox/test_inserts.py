"""Inserted values equal the given values, with every database and driver."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from flask_procore_webhooks.inbox import inserts
from flask_procore_webhooks.inbox.inserts import InsertNew
from flask_procore_webhooks.inbox.inserts import InsertOne
from flask_procore_webhooks.schema.tables import define_tables

ROW: dict[str, Any] = {
    "endpoint": "procore_webhooks",
    "event_id": "evt_%s_:x_?",
    "type": "RFIs.update",
    "resource_type": "100 % \N{SNOWMAN}",
    "reason": "update",
    "resource_id": None,
    "company_id": "7",
    "project_id": "8",
    "user_id": "9",
    "application_id": "10",
    "event_at": datetime(2026, 1, 2, 3, 4, 5, 678901),
    "body": bytes(range(256)),
    "origin": "enqueue",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "status": "pending",
    "claims": 0,
    "due_at": datetime(2026, 1, 2, 3, 4, 5),
    "parked_at": None,
    "lease": None,
    "error": None,
    "received_at": datetime(2026, 1, 2, 3, 4, 5, 1),
    "finished_at": None,
    "repeats": 0,
    "conflicts": 0,
}


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(database_url, isolation_level="AUTOCOMMIT")
    yield engine
    engine.dispose()


@pytest.fixture
def table(engine: sa.Engine) -> sa.Table:
    tables = define_tables(sa.MetaData())
    tables.event.metadata.create_all(engine)
    return tables.event


def _stored(connection: sa.Connection, table: sa.Table, row_id: int) -> dict[str, Any]:
    found = connection.execute(sa.select(table).where(table.c.id == row_id)).one()
    return {**found._mapping}


def test_every_value_is_stored_as_it_was_given(
    engine: sa.Engine, table: sa.Table
) -> None:
    insert = InsertOne(table)
    with engine.connect() as connection:
        for event_id in ("evt_1", "evt_2", ROW["event_id"]):
            row = {**ROW, "event_id": event_id}
            row_id = insert(connection, row)
            assert _stored(connection, table, row_id) == {"id": row_id, **row}
    assert insert._prepared


def test_existing_row_is_refused_and_the_next_inserted(
    engine: sa.Engine, table: sa.Table
) -> None:
    insert = InsertOne(table)
    with engine.connect() as connection:
        first = insert(connection, ROW)
        with pytest.raises(IntegrityError):
            insert(connection, ROW)
        assert insert(connection, {**ROW, "event_id": "evt_2"}) > first


def test_missing_rows_of_several_are_inserted(
    engine: sa.Engine, table: sa.Table
) -> None:
    insert = InsertNew(table)
    with engine.connect() as connection:
        there = InsertOne(table)(connection, {**ROW, "event_id": "evt_0"})
        ids = ["evt_1", ROW["event_id"], "evt_0", "evt_1"]
        rows = [{**ROW, "event_id": id, "resource_id": id} for id in ids]
        assert insert.works_on(connection.dialect)
        new = insert(connection, rows)
        assert set(new) == {(ROW["endpoint"], id) for id in ("evt_1", ROW["event_id"])}
        for (_, event_id), row_id in new.items():
            row = {**ROW, "event_id": event_id, "resource_id": event_id}
            assert _stored(connection, table, row_id) == {"id": row_id, **row}
        assert _stored(connection, table, there)["resource_id"] is None
        assert insert(connection, rows) == {}


def test_rows_of_several_endpoints_with_one_event_id_are_inserted(
    engine: sa.Engine, table: sa.Table
) -> None:
    rows = [{**ROW, "endpoint": name} for name in ("one", "One", "two")]
    with engine.connect() as connection:
        new = InsertNew(table)(connection, rows)
        for (endpoint, _), row_id in new.items():
            assert _stored(connection, table, row_id)["endpoint"] == endpoint
    assert set(new) == {(row["endpoint"], row["event_id"]) for row in rows}


def test_unknown_driver_uses_compiled_sqlalchemy_statements(
    engine: sa.Engine, table: sa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inserts, "DRIVERS", ())
    insert = InsertOne(table)
    with engine.connect() as connection:
        row_id = insert(connection, ROW)
        assert _stored(connection, table, row_id) == {"id": row_id, **ROW}
    assert insert._prepared is None


def test_schema_that_is_renamed_at_execution_is_respected(
    tmp_path: Path,
) -> None:
    engine = sa.create_engine(
        f"sqlite:///{tmp_path / 'renamed.db'}", isolation_level="AUTOCOMMIT"
    )
    table = define_tables(sa.MetaData(schema="elsewhere")).event
    renamed = engine.execution_options(schema_translate_map={"elsewhere": "main"})
    table.metadata.create_all(renamed)
    with renamed.connect() as connection:
        row_id = InsertOne(table)(connection, ROW)
        assert _stored(connection, table, row_id) == {"id": row_id, **ROW}
    engine.dispose()


def test_psycopg2_inserts_like_psycopg(postgresql_url: str) -> None:
    url = sa.make_url(postgresql_url).set(drivername="postgresql+psycopg2")
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    table = define_tables(sa.MetaData()).event
    table.create(engine)
    try:
        with engine.connect() as connection:
            row_id = InsertOne(table)(connection, ROW)
            others = [{**ROW, "event_id": f"evt_{i}"} for i in range(3)]
            assert len(InsertNew(table)(connection, others)) == 3
            stored = _stored(connection, table, row_id)
            assert {**stored, "body": bytes(stored["body"])} == {"id": row_id, **ROW}
    finally:
        table.drop(engine)
        engine.dispose()
