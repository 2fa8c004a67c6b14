"""Migrations: what an Alembic migration of the host calls to upgrade the inbox."""

from __future__ import annotations

from sqlalchemy import Connection
from sqlalchemy import MetaData

from .storage.tables import define_tables
from .storage.upgrade import Upgrade


def carry_over(
    connection: Connection,
    *,
    metadata: MetaData | None = None,
    schema: str | None = None,
) -> None:
    """Upgrade the inbox's tables of an older package, with their rows.

    Adds tables, columns and indexes, carries receipts and attempts over into jobs, and
    drops what is left. After it, ``flask db migrate`` finds nothing to do. Safe to
    repeat. Stop every process of the older package first::

        def upgrade():
            carry_over(op.get_bind())

    :param connection: within the migration's transaction, which the caller commits.
    :param metadata: the host's, for its naming convention and its schema; by default
        one without a naming convention.
    :param schema: of the tables, without ``metadata``.
    """
    if connection is None:
        raise ValueError("carry_over reads rows and needs a connection: not with --sql")
    found = MetaData(schema=schema) if metadata is None else metadata
    Upgrade(connection, define_tables(found), commits=False).run()
