"""The insert statements of deliveries: one row, or several rows by one statement."""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Sequence
from datetime import datetime
from operator import itemgetter
from typing import Any
from typing import cast

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy import Dialect
from sqlalchemy import insert
from sqlalchemy import Table
from sqlalchemy.sql.compiler import SQLCompiler

Row = Mapping[str, Any]

#: Drivers whose DBAPI accepts SQLAlchemy's compiled SQL and bound values unchanged.
DRIVERS = ("pysqlite", "psycopg", "psycopg2", "pymysql", "mysqldb")


class InsertOne:
    """Inserts one row, with a value for every column but the generated key.

    The statement is compiled once. Without that, a delivery takes 1.26 times as long
    (SQLite, without waiting for the disk).
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self._prepared: _Prepared | None = None

    def __call__(self, connection: Connection, row: Row) -> int:
        """Insert ``row``; return its key.

        :raises sqlalchemy.exc.IntegrityError: the row exists.
        """
        if not _may_prepare(connection):
            result = connection.execute(insert(self._table), row)
            return int(cast(Any, result.inserted_primary_key)[0])
        if self._prepared is None:
            self._prepared = _Prepared(self._table, connection.dialect)
        return self._prepared(connection, row)


class InsertNew:
    """Inserts the new ones of several rows by one statement."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._statement: Any = None

    def works_on(self, dialect: Dialect) -> bool:
        """Whether the database has a statement that returns the inserted rows."""
        return _kind(dialect) in STATEMENTS and dialect.insert_executemany_returning

    def __call__(
        self, connection: Connection, rows: Sequence[Row]
    ) -> dict[tuple[str, str], int]:
        """Return the new row ids by endpoint and event id of the inserted rows."""
        kind, c = _kind(connection.dialect), self._table.c
        if self._statement is None:
            statement = STATEMENTS[kind](self._table)
            self._statement = statement.returning(c.endpoint, c.event_id, c.id)
        values: Any = {"rows": _as_json(rows)} if kind == "postgresql" else rows
        inserted = connection.execute(self._statement, values)
        return {(row.endpoint, row.event_id): int(row.id) for row in inserted}


def _postgresql(table: Table) -> Any:
    """All rows as one parameter, a JSON text.

    The statement is the same for any number of rows, so that drivers prepare it once
    and need not determine the types of hundreds of values.
    """
    from sqlalchemy.dialects import postgresql

    columns = [sa.column(column.name, column.type) for column in _given(table)]
    text = sa.cast(sa.bindparam("rows", type_=sa.Text), postgresql.JSON)
    given = sa.func.json_to_recordset(text).table_valued(*columns)
    rows = sa.select(given.render_derived(with_types=True))
    names = [column.name for column in columns]
    statement = postgresql.insert(table).from_select(names, rows)
    return statement.on_conflict_do_nothing(index_elements=KEY)


def _sqlite(table: Table) -> Any:
    from sqlalchemy.dialects import sqlite

    return sqlite.insert(table).on_conflict_do_nothing(index_elements=KEY)


def _mariadb(table: Table) -> Any:
    # INSERT IGNORE also hides truncation errors; none can occur because every value was
    # cut to its column's size.
    return insert(table).prefix_with("IGNORE")


def _as_json(rows: Sequence[Row]) -> str:
    # Unescaped: JSON's own escapes beyond ASCII are allowed only in UTF-8 databases.
    return json.dumps(rows, default=_as_text, ensure_ascii=False)


def _as_text(value: datetime | bytes) -> str:
    """Return the text that PostgreSQL reads as a timestamp or as ``bytea``."""
    return "\\x" + value.hex() if isinstance(value, bytes) else value.isoformat()


KEY = ["endpoint", "event_id"]
STATEMENTS = {"postgresql": _postgresql, "sqlite": _sqlite, "mariadb": _mariadb}


def _kind(dialect: Dialect) -> str:
    return "mariadb" if getattr(dialect, "is_mariadb", False) else dialect.name


class _Prepared:
    """The statement for one row, compiled for a dialect."""

    def __init__(self, table: Table, dialect: Dialect) -> None:
        columns = _given(table)
        statement: Any = insert(table)
        self._returns_key = not cast(Any, dialect).postfetch_lastrowid
        if self._returns_key:
            statement = statement.returning(*table.primary_key)
        names = [column.name for column in columns]
        compiled: SQLCompiler = statement.compile(dialect=dialect, column_keys=names)
        self._text = str(compiled)
        order = compiled.positiontup
        #: Puts the values into the statement's order, for positional drivers.
        self._in_order = itemgetter(*order) if order else None
        self._processors = {
            column.name: processor
            for column in columns
            if (processor := _processor(column.type, dialect))
        }

    def __call__(self, connection: Connection, row: Row) -> int:
        values = dict(row)
        for name, process in self._processors.items():
            values[name] = process(values[name])
        bound: Any = values if self._in_order is None else self._in_order(values)
        result = connection.exec_driver_sql(self._text, bound)
        return int(result.scalar_one() if self._returns_key else result.lastrowid)


def _given(table: Table) -> list[sa.Column[Any]]:
    """The columns for which a row has a value."""
    return [column for column in table.c if not column.primary_key]


def _processor(type_: Any, dialect: Dialect) -> Any:
    return type_.dialect_impl(dialect).bind_processor(dialect)


def _may_prepare(connection: Connection) -> bool:
    # A host may rename its schemas at execution.
    renames = connection.get_execution_options().get("schema_translate_map")
    return connection.dialect.driver in DRIVERS and not renames
