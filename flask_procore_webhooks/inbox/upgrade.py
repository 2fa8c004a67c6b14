"""Upgrade: compare the inbox's tables with the code, and add what they lack.

An upgrade adds tables, columns and indexes. It drops and changes nothing: a table may
have columns that this version of the package does not use.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from datetime import timezone
from typing import Any
from typing import NamedTuple

from sqlalchemy import Column
from sqlalchemy import Connection
from sqlalchemy import Engine
from sqlalchemy import Index
from sqlalchemy import insert
from sqlalchemy import inspect
from sqlalchemy import select
from sqlalchemy import Table
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.schema import CreateColumn

from .tables import SCHEMA
from .tables import Tables

#: Endpoint and name of the schema number in the state table.
WHOLE_INBOX = ""
SCHEMA_NAME = "schema"


class Gaps(NamedTuple):
    """What the tables in the database lack."""

    tables: list[Table] = []
    columns: list[Column[Any]] = []
    indexes: list[Index] = []

    @property
    def table_names(self) -> list[str]:
        return [table.fullname for table in self.tables]

    @property
    def column_names(self) -> list[str]:
        return [f"{column.table.fullname}.{column.name}" for column in self.columns]

    @property
    def index_names(self) -> list[str]:
        return [str(index.name) for index in self.indexes]

    @property
    def stop_deliveries(self) -> bool:
        """Whether statements of the inbox fail; a missing index only slows them."""
        return bool(self.tables or self.columns)

    @property
    def advice(self) -> str:
        """What is missing, and the commands that add it."""
        kinds = ("tables", "columns", "indexes")
        lists = (self.table_names, self.column_names, self.index_names)
        missing = [
            f"missing {kind}: {', '.join(names)}"
            for kind, names in zip(kinds, lists, strict=True)
            if names
        ]
        verb = "create them"
        if self.columns or self.indexes:
            verb = "the tables are older than the package: upgrade them"
        return (
            f"{'; '.join(missing)}; {verb} with your migrations (flask db migrate,"
            " flask db upgrade) or, if you have none, with the command init-db"
        )


class Changes(NamedTuple):
    """What an upgrade has done."""

    created: list[str]
    #: As in ``column procore_webhook_event.claims``.
    added: list[str]


def find_gaps(engine: Engine, tables: Tables) -> Gaps:
    """Return what the database lacks of ``tables``."""
    inspector, gaps = inspect(engine), Gaps([], [], [])
    for table in tables:
        schema = schema_of(engine, table)
        if not inspector.has_table(table.name, schema=schema):
            gaps.tables.append(table)
            continue
        columns = inspector.get_columns(table.name, schema=schema)
        there = {str(column["name"]).lower() for column in columns}
        gaps.columns.extend(c for c in table.columns if c.name.lower() not in there)
        there = {
            str(each["name"]) for each in inspector.get_indexes(table.name, schema)
        }
        indexes = sorted(table.indexes, key=lambda index: str(index.name))
        gaps.indexes.extend(index for index in indexes if index.name not in there)
    return gaps


def upgrade(engine: Engine, tables: Tables) -> Changes:
    """Add what the database lacks of ``tables``; safe to repeat and to race.

    :param engine: each statement on it is a transaction of its own.
    """
    gaps = find_gaps(engine, tables)
    for table in gaps.tables:
        _create_table(engine, table)
    for column in gaps.columns:
        _add_column(engine, column)
    for index in gaps.indexes:
        _create_index(engine, index)
    with engine.begin() as connection:
        if (schema_number(connection, tables) or 0) < SCHEMA:
            put_value(connection, tables, WHOLE_INBOX, SCHEMA_NAME, SCHEMA)
    added = [f"column {name}" for name in gaps.column_names]
    added += [f"index {name}" for name in gaps.index_names]
    return Changes(gaps.table_names, added)


def is_current(engine: Engine, tables: Tables) -> bool:
    """Whether the schema number says that :func:`upgrade` has nothing to do."""
    state = tables.state
    if not inspect(engine).has_table(state.name, schema=schema_of(engine, state)):
        return False
    with engine.connect() as connection:
        return (schema_number(connection, tables) or 0) >= SCHEMA


def schema_number(connection: Connection, tables: Tables) -> int | None:
    """The schema number in the database; ``None`` if no ``init-db`` has written it."""
    s = tables.state.c
    query = select(s.value).where(s.endpoint == WHOLE_INBOX, s.name == SCHEMA_NAME)
    found = connection.execute(query).scalar()
    with suppress(ValueError, TypeError):
        return int(json.loads(found or ""))
    return None


def put_value(
    connection: Connection,
    tables: Tables,
    endpoint: str,
    name: str,
    value: object,
    at: datetime | None = None,
) -> None:
    """Set a value in the state table; safe to repeat and to race.

    :param connection: each statement on it is a transaction of its own.
    :param value: is stored as JSON.
    :param at: UTC without a zone; by default the current time of this host.
    """
    state = tables.state
    at = at or datetime.now(timezone.utc).replace(tzinfo=None)
    values = {"value": json.dumps(value), "at": at}
    mine = (state.c.endpoint == endpoint, state.c.name == name)
    change = update(state).where(*mine).values(values)
    if connection.execute(change).rowcount:
        return
    try:
        row = {"endpoint": endpoint, "name": name, **values}
        connection.execute(insert(state), row)
    except IntegrityError:
        # Another process has inserted the row after our update.
        connection.execute(change)


def schema_of(engine: Engine, table: Table) -> str | None:
    """The schema of ``table`` in the database: a host may rename its schemas."""
    options = engine.get_execution_options()
    names = options.get("schema_translate_map") or {}
    schema: str | None = names.get(table.schema, table.schema)
    return schema


def _create_table(engine: Engine, table: Table) -> None:
    def is_there() -> bool:
        return inspect(engine).has_table(table.name, schema=schema_of(engine, table))

    _unless_there(is_there, lambda: table.create(engine, checkfirst=True))


def _add_column(engine: Engine, column: Column[Any]) -> None:
    table = column.table
    assert isinstance(table, Table)

    def is_there() -> bool:
        schema = schema_of(engine, table)
        columns = inspect(engine).get_columns(table.name, schema=schema)
        return column.name in {each["name"] for each in columns}

    def add() -> None:
        definition = CreateColumn(column).compile(dialect=engine.dialect)
        name = _quoted_name(engine, table)
        with engine.begin() as connection:
            connection.exec_driver_sql(f"ALTER TABLE {name} ADD COLUMN {definition}")

    _unless_there(is_there, add)


def _create_index(engine: Engine, index: Index) -> None:
    table = index.table
    assert table is not None

    def is_there() -> bool:
        schema = schema_of(engine, table)
        found = inspect(engine).get_indexes(table.name, schema=schema)
        return index.name in {each["name"] for each in found}

    _unless_there(is_there, lambda: index.create(engine, checkfirst=True))


def _unless_there(is_there: Callable[[], bool], add: Callable[[], None]) -> None:
    """Add a part of the tables, unless another process adds it meanwhile."""
    try:
        add()
    except SQLAlchemyError:
        if not is_there():
            raise


def _quoted_name(engine: Engine, table: Table) -> str:
    preparer = engine.dialect.identifier_preparer
    schema = schema_of(engine, table)
    name = preparer.quote(table.name)
    return f"{preparer.quote_schema(schema)}.{name}" if schema else name
