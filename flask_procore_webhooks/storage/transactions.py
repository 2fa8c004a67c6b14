"""Transactions on connections on which each statement is a transaction of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection

#: How a transaction begins. MariaDB's default isolation level also locks the gaps
#: between rows, and new events would wait for them. In SQLite, a transaction that
#: begins with a read cannot write after another connection has written.
_MYSQL = ("SET TRANSACTION ISOLATION LEVEL READ COMMITTED", "START TRANSACTION")
BEGIN = {
    "mysql": _MYSQL,
    "mariadb": _MYSQL,
    "postgresql": ("BEGIN ISOLATION LEVEL READ COMMITTED",),
    "sqlite": ("BEGIN IMMEDIATE",),
}


@contextmanager
def transaction(connection: Connection) -> Iterator[None]:
    """One transaction, on a connection on which each statement is one by itself."""
    if is_in_transaction(connection):
        yield
        connection.connection.commit()
        return
    # As statements, because a connection whose isolation level was changed may come
    # back to the pool without autocommit (SQLAlchemy 2.0.16).
    for statement in BEGIN.get(connection.dialect.name, ("BEGIN",)):
        connection.exec_driver_sql(statement)
    try:
        yield
        connection.exec_driver_sql("COMMIT")
    except BaseException:
        _roll_back(connection)
        raise


def is_in_transaction(connection: Connection, *, unknown: bool = False) -> bool:
    """Whether the driver has a transaction that SQLAlchemy does not know of.

    With ``autocommit=False`` (Python 3.12), ``sqlite3`` always has one.

    :param unknown: the answer for drivers without this information.
    """
    driver: Any = connection.connection.dbapi_connection
    return bool(getattr(driver, "in_transaction", unknown))


def _roll_back(connection: Connection) -> None:
    """End a transaction that was begun as a statement.

    The pool does not do it: psycopg2 rolls back only what it has begun itself, and the
    next user of the connection would be in the same transaction.
    """
    # SQLite ends the transaction itself after some errors.
    if connection.invalidated or not is_in_transaction(connection, unknown=True):
        return
    try:
        connection.exec_driver_sql("ROLLBACK")
    except Exception:
        connection.invalidate()
