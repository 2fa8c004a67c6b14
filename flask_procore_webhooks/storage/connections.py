"""Connections: how transactions on them begin and end; the context of their hooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flask import current_app
from flask import Flask
from flask import has_app_context
from sqlalchemy import Connection

from ..log import log

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


@contextmanager
def context_of(app: Flask) -> Iterator[None]:
    """The current context of ``app`` or a new one: hosts end their session with it.

    Hooks of a host's pool may need one. Errors of teardown functions are logged.
    """
    if has_app_context() and current_app == app:
        yield
        return
    context = app.app_context()
    context.push()
    try:
        yield
    finally:
        try:
            context.pop()
        except Exception:
            log.exception("A teardown function of the app failed")
