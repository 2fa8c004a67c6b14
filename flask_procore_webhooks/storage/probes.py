"""Probes of the database for ``check``: does it take writes, how large may they be."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from sqlalchemy import and_
from sqlalchemy import Column
from sqlalchemy import Connection
from sqlalchemy import delete
from sqlalchemy import insert
from sqlalchemy import select
from sqlalchemy import Table
from sqlalchemy import update

from .state import schema_number
from .store import Store

#: Text of a row that :func:`try_writes` inserts begins with this where it has room.
TRIAL = "check:"


class _RolledBack(BaseException):
    """Ends a transaction that is to leave nothing."""


def try_writes(store: Store) -> None:
    """Insert, update and delete a row in each table, and roll back.

    :raises InboxUnavailable: a statement failed; those of deliveries or runs will, too.
    """
    # Before the transaction: the clock may need a connection of its own.
    rows = {table: _trial_row(store, table) for table in store.database.tables}

    def work(connection: Connection) -> None:
        for table, row in rows.items():
            _try_writes(connection, table, row)
        raise _RolledBack

    with suppress(_RolledBack):
        store.run(work, begin=True)


def _try_writes(connection: Connection, table: Table, row: dict[str, Any]) -> None:
    key = connection.execute(insert(table), row).inserted_primary_key or ()
    columns = zip(table.primary_key, key, strict=True)
    mine = and_(*(column == value for column, value in columns))
    connection.execute(update(table).where(mine).values(row))
    connection.execute(select(*table.primary_key).where(mine))
    connection.execute(delete(table).where(mine))


def _trial_row(store: Store, table: Table) -> dict[str, Any]:
    """A value for every column that the database does not generate."""
    name = TRIAL + secrets.token_hex(8)
    columns = [each for each in table.c if each is not table.autoincrement_column]
    return {each.name: _trial_value(store, each, name) for each in columns}


def _trial_value(store: Store, column: Column[Any], name: str) -> object:
    if column.name == "endpoint":
        return store.endpoint
    kind = column.type.python_type
    if kind is str:
        # The end is random, as keys are unique.
        length = getattr(column.type, "length", None) or len(name)
        return name[-length:]
    values = {int: 0, bytes: b"{}"}
    return values[kind] if kind in values else store.db_now()


def stored_schema(store: Store) -> int | None:
    """The schema number in the database; ``None`` if no ``init-db`` has written it."""
    tables = store.database.tables
    return store.run(lambda connection: schema_number(connection, tables))


def read_only(store: Store) -> str | None:
    """Why PostgreSQL refuses writes, if it does; other databases name it themselves."""
    if store.dialect_name != "postgresql":
        return None
    if store.run(_scalar("SELECT pg_is_in_recovery()")):
        return "the server is a standby (pg_is_in_recovery)"
    is_read_only = store.run(_scalar("SHOW transaction_read_only")) == "on"
    return "the session is read-only (transaction_read_only)" if is_read_only else None


def largest_packet(store: Store) -> int | None:
    """Bytes of a statement at most, where the server has such a limit."""
    if store.dialect_name not in ("mysql", "mariadb"):
        return None
    shown = store.run(_scalar("SELECT @@max_allowed_packet"))
    return None if shown is None else int(shown)


def _scalar(statement: str) -> Callable[[Connection], Any]:
    return lambda connection: connection.exec_driver_sql(statement).scalar()
