"""How a transaction begins on each database, and how it ends after an error."""

from __future__ import annotations

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


def roll_back(connection: Connection) -> None:
    """End a transaction that was begun as a statement.

    The pool does not do it: psycopg2 rolls back only what it has begun itself, and the
    next user of the connection would be in the same transaction.
    """
    # SQLite ends the transaction itself after some errors.
    driver: Any = None if connection.invalidated else connection.connection
    if driver is None or not getattr(driver.dbapi_connection, "in_transaction", True):
        return
    try:
        connection.exec_driver_sql("ROLLBACK")
    except Exception:
        connection.invalidate()
