"""Gaps: what the tables in the database lack, and what an older package left there."""

from __future__ import annotations

from typing import Any
from typing import NamedTuple

from sqlalchemy import Column
from sqlalchemy import Connection
from sqlalchemy import Engine
from sqlalchemy import Index
from sqlalchemy import inspect
from sqlalchemy import Table

from ..errors import InboxUnavailable
from .tables import Tables

#: The receipts of schemas 1 and 2. Their table is dropped last: as long as it is
#: there, rows of the older package may still be carried over.
OLD_RECEIPTS = "procore_webhook_receipt"
#: The column of ``procore_webhook_event`` in schemas 1 and 2.
OLD_ATTEMPTS = "attempts"


class Gaps(NamedTuple):
    """What the tables in the database lack, and what is left of older ones."""

    tables: list[Table] = []
    columns: list[Column[Any]] = []
    indexes: list[Index] = []
    #: As in ``table procore_webhook_receipt``: their rows are to be carried over.
    leftovers: list[str] = []

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
        """Whether the inbox cannot be used; a missing index only slows it."""
        return bool(self.tables or self.columns or self.leftovers)

    @property
    def are_of_older_tables(self) -> bool:
        return bool(self.columns or self.indexes or self.leftovers)

    @property
    def advice(self) -> str:
        """What is missing or left over, and the commands that change it."""
        lists = {
            "missing tables": self.table_names,
            "missing columns": self.column_names,
            "missing indexes": self.index_names,
            "left over": self.leftovers,
        }
        parts = [f"{kind}: {', '.join(each)}" for kind, each in lists.items() if each]
        return f"{'; '.join(parts)}; {self._way}"

    @property
    def _way(self) -> str:
        verb = "create them"
        if self.are_of_older_tables:
            verb = "the tables are older than the package: upgrade them"
        how = (
            "with your migrations (flask db migrate, flask db upgrade) or, if you have"
            " none, with the command init-db"
        )
        if self.leftovers:
            how = (
                "with the command init-db or, if you have migrations, with one that"
                " calls carry_over (docs/production.md, Upgrade the package)"
            )
        return f"{verb} {how}"


def find_gaps(bind: Engine | Connection, tables: Tables) -> Gaps:
    """Compare the tables in the database with ``tables``."""
    inspector, gaps = inspect(bind), Gaps([], [], [], find_leftovers(bind, tables))
    for table in tables:
        schema = schema_of(bind, table)
        if not inspector.has_table(table.name, schema=schema):
            gaps.tables.append(table)
            continue
        there = column_names(bind, table)
        gaps.columns.extend(c for c in table.columns if c.name.lower() not in there)
        there = {
            str(each["name"]) for each in inspector.get_indexes(table.name, schema)
        }
        indexes = sorted(table.indexes, key=lambda index: str(index.name))
        gaps.indexes.extend(index for index in indexes if index.name not in there)
    return gaps


def find_leftovers(bind: Engine | Connection, tables: Tables) -> list[str]:
    """What is left of older tables, as long as their rows are not carried over.

    Events that run meanwhile would run for subscribers that have finished them.
    """
    event, inspector, found = tables.event, inspect(bind), []
    schema = schema_of(bind, event)
    is_old = OLD_RECEIPTS not in {table.name for table in tables}
    if is_old and inspector.has_table(OLD_RECEIPTS, schema=schema):
        found.append(f"table {OLD_RECEIPTS}")
    is_old = OLD_ATTEMPTS not in event.c
    if is_old and inspector.has_table(event.name, schema=schema):
        if OLD_ATTEMPTS in column_names(bind, event):
            found.append(f"column {event.name}.{OLD_ATTEMPTS}")
    return found


def refuse_leftovers(connection: Connection, tables: Tables) -> None:
    """Fail as long as rows of older tables are to be carried over.

    :raises InboxUnavailable: the error says what to do.
    """
    if find_leftovers(connection, tables):
        advice = find_gaps(connection, tables).advice
        raise InboxUnavailable(f"the inbox cannot be used: {advice}")


def column_names(bind: Engine | Connection, table: Table) -> set[str]:
    """The names of the table's columns in the database, in lower case."""
    columns = inspect(bind).get_columns(table.name, schema=schema_of(bind, table))
    return {str(column["name"]).lower() for column in columns}


def schema_of(bind: Engine | Connection, table: Any) -> str | None:
    """The schema of ``table`` in the database: a host may rename its schemas."""
    names = bind.get_execution_options().get("schema_translate_map") or {}
    schema: str | None = names.get(table.schema, table.schema)
    return schema
