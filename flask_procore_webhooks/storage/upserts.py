"""Upserts: add to the counts of rows, and insert the rows that are missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import bindparam
from sqlalchemy import Connection
from sqlalchemy import insert
from sqlalchemy import Table
from sqlalchemy import update

from .columns import MYSQL

Rows = Sequence[dict[str, Any]]


def add_counts(connection: Connection, table: Table, rows: Rows) -> None:
    """Add the ``count`` of each row to the row with its primary key, or insert it.

    Two transactions that add to the same rows must have them in the same order.

    :raises sqlalchemy.exc.IntegrityError: on other databases than the four, another
        transaction has inserted the same row meanwhile; the next try updates it.
    """
    name = connection.dialect.name
    if name in MYSQL:
        _on_duplicate_key(connection, table, rows)
    elif name in ("postgresql", "sqlite"):
        _on_conflict(connection, table, rows)
    else:
        update_or_insert(connection, table, rows)


def update_or_insert(connection: Connection, table: Table, rows: Rows) -> None:
    """Add by two statements for each row, on any database."""
    mine = [column == bindparam(f"_{column.name}") for column in table.primary_key]
    total = table.c.count + bindparam("_count")
    change = update(table).where(*mine).values(count=total)
    for row in rows:
        values = {f"_{name}": value for name, value in row.items()}
        if not connection.execute(change, values).rowcount:
            connection.execute(insert(table), row)


def _on_conflict(connection: Connection, table: Table, rows: Rows) -> None:
    new = _insert_of(connection.dialect.name)(table)
    total = {"count": table.c.count + new.excluded.count}
    key = list(table.primary_key)
    connection.execute(new.on_conflict_do_update(index_elements=key, set_=total), rows)


def _on_duplicate_key(connection: Connection, table: Table, rows: Rows) -> None:
    new = _insert_of("mysql")(table)
    total = table.c.count + new.inserted.count
    connection.execute(new.on_duplicate_key_update(count=total), rows)


def insert_unless_there(
    connection: Connection, table: Table, key: Sequence[str], row: dict[str, Any]
) -> bool:
    """Insert the row, unless there is one with the same values of ``key``.

    :return: whether it was inserted.
    :raises sqlalchemy.exc.IntegrityError: on other databases than the four, there is.
    """
    dialect = connection.dialect
    if dialect.name in MYSQL:
        # IGNORE also hides truncation errors; every value was cut to its column's size.
        new = _insert_of("mysql")(table).prefix_with("IGNORE")
    elif dialect.name in ("postgresql", "sqlite"):
        new = _insert_of(dialect.name)(table)
        new = new.on_conflict_do_nothing(index_elements=list(key))
    else:
        new = insert(table)
    if dialect.insert_returning:
        # psycopg counts no rows for SQLAlchemy after an INSERT.
        new = new.returning(*table.primary_key)
        return connection.execute(new, row).first() is not None
    return connection.execute(new, row).rowcount == 1


def _insert_of(dialect: str) -> Any:
    from sqlalchemy.dialects import mysql
    from sqlalchemy.dialects import postgresql
    from sqlalchemy.dialects import sqlite

    if dialect == "postgresql":
        return postgresql.insert
    return sqlite.insert if dialect == "sqlite" else mysql.insert
