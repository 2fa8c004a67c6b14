"""Upgrade: compare the inbox's tables with the code, and add what they lack.

An upgrade adds tables, columns and indexes. It drops and changes nothing: a table may
have columns that this version of the package does not use.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from typing import NamedTuple

from sqlalchemy import Column
from sqlalchemy import Connection
from sqlalchemy import Engine
from sqlalchemy import Index
from sqlalchemy import inspect
from sqlalchemy import String
from sqlalchemy import Table
from sqlalchemy import text
from sqlalchemy import UniqueConstraint
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.schema import CreateColumn

from .state import put_value
from .state import SCHEMA_NAME
from .state import schema_number
from .state import WHOLE_INBOX
from .tables import SCHEMA
from .tables import Tables

#: Storage engines of MariaDB and MySQL without transactions.
UNSAFE_ENGINES = ("myisam", "aria", "memory", "csv")
_COLLATIONS_OF_POSTGRESQL = text(
    "SELECT c.relname, a.attname, l.collname FROM pg_attribute a"
    " JOIN pg_class c ON c.oid = a.attrelid"
    " JOIN pg_collation l ON l.oid = a.attcollation"
    " WHERE c.relname LIKE 'procore_webhook_%' AND c.relkind IN ('r', 'p')"
    " AND NOT l.collisdeterministic"
)
_COLUMNS_OF_MYSQL = text(
    "SELECT table_name AS t, column_name AS c, collation_name AS l, data_type AS d"
    " FROM information_schema.columns"
    " WHERE table_schema = COALESCE(:schema, DATABASE()) AND table_name = :name"
)
_ENGINE_OF_MYSQL = text(
    "SELECT engine FROM information_schema.tables"
    " WHERE table_schema = COALESCE(:schema, DATABASE()) AND table_name = :name"
)


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


class Mismatch(NamedTuple):
    """A difference between a table and the code, which no upgrade changes."""

    text: str
    #: Whether deliveries fail.
    stops_deliveries: bool = False


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


def schema_of(engine: Engine, table: Any) -> str | None:
    """The schema of ``table`` in the database: a host may rename its schemas."""
    options = engine.get_execution_options()
    names = options.get("schema_translate_map") or {}
    schema: str | None = names.get(table.schema, table.schema)
    return schema


def mismatches(engine: Engine, tables: Tables) -> Iterator[Mismatch]:
    """Compare keys, sizes and collations of the tables with the code."""
    dialect = engine.dialect.name
    for table in tables:
        yield from _wrong_keys(engine, table)
        # SQLite stores any length.
        if dialect != "sqlite":
            yield from _short_columns(engine, table)
        if dialect in ("mysql", "mariadb"):
            with engine.connect() as connection:
                yield from _mysql_mismatches(connection, table)
    if dialect == "postgresql":
        # PostgreSQL 11 has no such collations and no such column.
        with suppress(SQLAlchemyError), engine.connect() as connection:
            for row in connection.execute(_COLLATIONS_OF_POSTGRESQL):
                yield Mismatch(
                    f"{row.relname}.{row.attname} has the nondeterministic collation"
                    f" {row.collname}: values that differ are taken for one"
                )


def _wrong_keys(engine: Engine, table: Table) -> Iterator[Mismatch]:
    inspector, schema = inspect(engine), schema_of(engine, table)
    found = inspector.get_pk_constraint(table.name, schema=schema)
    expected = [column.name for column in table.primary_key]
    if sorted(found["constrained_columns"]) != sorted(expected):
        names = ", ".join(expected)
        yield Mismatch(f"{table.fullname} lacks the primary key on {names}", True)
    indexes = inspector.get_indexes(table.name, schema=schema)
    keys = [list(each["column_names"]) for each in indexes if each["unique"]]
    unique = inspector.get_unique_constraints(table.name, schema=schema)
    keys += [list(each["column_names"]) for each in unique]
    for constraint in table.constraints:
        if not isinstance(constraint, UniqueConstraint):
            continue
        columns = [column.name for column in constraint.columns]
        if columns not in keys:
            names = ", ".join(columns)
            yield Mismatch(
                f"{table.fullname} lacks the unique constraint on {names}:"
                " copies of an event would be recorded twice or refused",
                True,
            )


def _short_columns(engine: Engine, table: Table) -> Iterator[Mismatch]:
    schema = schema_of(engine, table)
    for found in inspect(engine).get_columns(table.name, schema=schema):
        column = table.columns.get(found["name"])
        if column is None or not isinstance(column.type, String):
            continue
        size, needed = getattr(found["type"], "length", None), column.type.length
        if size and needed and size < needed:
            yield Mismatch(
                f"{table.fullname}.{column.name} holds {size} characters instead of"
                f" {needed}"
            )


def _mysql_mismatches(connection: Connection, table: Table) -> Iterator[Mismatch]:
    place = {"schema": schema_of(connection.engine, table), "name": table.name}
    engine = connection.execute(_ENGINE_OF_MYSQL, place).scalar()
    if str(engine).lower() in UNSAFE_ENGINES:
        yield Mismatch(
            f"{table.fullname} has the storage engine {engine}, which has no"
            " transactions: events may be lost or run twice; change it to InnoDB"
        )
    for row in connection.execute(_COLUMNS_OF_MYSQL, place):
        column = table.columns.get(row.c)
        if column is None:
            continue
        expected = column.type.dialect_impl(connection.dialect)
        collation = getattr(expected, "collation", None)
        if collation and not str(row.l).endswith("_bin"):
            yield Mismatch(
                f"{table.fullname}.{row.c} has the collation {row.l} instead of"
                f" {collation}: values that differ in case are taken for one"
            )
        if row.c == "body" and row.d != "longblob":
            yield Mismatch(f"{table.fullname}.body is a {row.d} instead of a longblob")


def _create_table(engine: Engine, table: Table) -> None:
    def is_there() -> bool:
        return inspect(engine).has_table(table.name, schema=schema_of(engine, table))

    _unless_there(is_there, lambda: table.create(engine, checkfirst=True))


def _add_column(engine: Engine, column: Column[Any]) -> None:
    table, schema = column.table, schema_of(engine, column.table)
    definition = CreateColumn(column).compile(dialect=engine.dialect)
    quote = engine.dialect.identifier_preparer.quote
    name = ".".join(map(quote, filter(None, (schema, table.name))))

    def is_there() -> bool:
        columns = inspect(engine).get_columns(table.name, schema=schema)
        return column.name in {each["name"] for each in columns}

    def add() -> None:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"ALTER TABLE {name} ADD COLUMN {definition}")

    _unless_there(is_there, add)


def _create_index(engine: Engine, index: Index) -> None:
    def is_there() -> bool:
        assert index.table is not None
        schema = schema_of(engine, index.table)
        found = inspect(engine).get_indexes(index.table.name, schema=schema)
        return index.name in {each["name"] for each in found}

    _unless_there(is_there, lambda: index.create(engine, checkfirst=True))


def _unless_there(is_there: Callable[[], bool], add: Callable[[], None]) -> None:
    """Add a part of the tables, unless another process adds it meanwhile."""
    try:
        add()
    except SQLAlchemyError:
        if not is_there():
            raise
