"""Mismatches: how keys, sizes and collations of the tables differ from the code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from typing import NamedTuple

from sqlalchemy import Column
from sqlalchemy import Connection
from sqlalchemy import Engine
from sqlalchemy import inspect
from sqlalchemy import String
from sqlalchemy import Table
from sqlalchemy import text
from sqlalchemy import UniqueConstraint
from sqlalchemy.exc import SQLAlchemyError

from .columns import MYSQL
from .gaps import schema_of
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


class Mismatch(NamedTuple):
    """A difference between a table and the code; an upgrade changes collations only."""

    text: str
    #: Whether deliveries fail.
    stops_deliveries: bool = False


def mismatches(engine: Engine, tables: Tables) -> Iterator[Mismatch]:
    """Compare keys, sizes and collations of the tables with the code."""
    dialect = engine.dialect.name
    for table in tables:
        yield from _wrong_keys(engine, table)
        # SQLite stores any length.
        if dialect != "sqlite":
            yield from _short_columns(engine, table)
        if dialect in MYSQL:
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
    place = {"schema": schema_of(connection, table), "name": table.name}
    engine = connection.execute(_ENGINE_OF_MYSQL, place).scalar()
    if str(engine).lower() in UNSAFE_ENGINES:
        yield Mismatch(
            f"{table.fullname} has the storage engine {engine}, which has no"
            " transactions: events may be lost or run twice; change it to InnoDB"
        )
    for column, found in _wrong_collations(connection, table):
        collation = collation_of(connection, column)
        yield Mismatch(
            f"{table.fullname}.{column.name} has the collation {found} instead of"
            f" {collation}: values that differ in case are taken for one"
        )
    for row in connection.execute(_COLUMNS_OF_MYSQL, place):
        if row.c == "body" and row.d != "longblob":
            yield Mismatch(f"{table.fullname}.body is a {row.d} instead of a longblob")


def columns_to_collate(connection: Connection, table: Table) -> list[Column[Any]]:
    """The columns whose collation makes one of values that differ (MariaDB, MySQL)."""
    if connection.dialect.name not in MYSQL:
        return []
    return [column for column, _ in _wrong_collations(connection, table)]


def collation_of(connection: Connection, column: Column[Any]) -> str | None:
    """The collation that the code gives the column on this database."""
    expected = column.type.dialect_impl(connection.dialect)
    collation: str | None = getattr(expected, "collation", None)
    return collation


def _wrong_collations(
    connection: Connection, table: Table
) -> Iterator[tuple[Column[Any], str]]:
    place = {"schema": schema_of(connection, table), "name": table.name}
    for row in connection.execute(_COLUMNS_OF_MYSQL, place):
        column = table.columns.get(row.c)
        if column is None or not collation_of(connection, column):
            continue
        if not str(row.l).endswith("_bin"):
            yield column, str(row.l)
