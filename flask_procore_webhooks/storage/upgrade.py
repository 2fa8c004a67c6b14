"""Upgrade: add what the inbox's tables lack, and carry the rows of older ones over.

The schema number is written last. An upgrade that was interrupted is carried on by the
next one.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from datetime import timezone
from functools import partial
from typing import Any
from typing import NamedTuple
from typing import TypeVar

from sqlalchemy import Column
from sqlalchemy import Connection
from sqlalchemy import Engine
from sqlalchemy import Executable
from sqlalchemy import func
from sqlalchemy import Index
from sqlalchemy import inspect
from sqlalchemy import select
from sqlalchemy import Table
from sqlalchemy.exc import NoSuchTableError
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.schema import CreateColumn

from ..errors import InboxUnavailable
from ..schema import carry_over
from ..schema.gaps import column_names
from ..schema.gaps import find_gaps
from ..schema.gaps import find_leftovers
from ..schema.gaps import Gaps
from ..schema.gaps import OLD_ATTEMPTS
from ..schema.gaps import OLD_RECEIPTS
from ..schema.gaps import schema_of
from ..schema.mismatches import columns_to_collate
from ..schema.state import put_value
from ..schema.state import SCHEMA_NAME
from ..schema.state import schema_number
from ..schema.state import WHOLE_INBOX
from ..schema.tables import SCHEMA
from ..schema.tables import Tables
from .servers import Fault
from .servers import fault_of

T = TypeVar("T")

#: Seconds in which a statement is tried again that waits for a lock of another process.
PATIENCE = 4.0
#: The first SQLite that drops columns.
SQLITE_DROPS = (3, 35)


class Changes(NamedTuple):
    """What an upgrade has done."""

    created: list[str]
    #: As in ``column procore_webhook_event.claims``.
    added: list[str]
    #: Other changes, as in ``dropped table procore_webhook_receipt``.
    others: list[str] = []


def upgrade(engine: Engine, tables: Tables) -> Changes:
    """Make the tables in the database those of the code; safe to repeat and to race.

    :param engine: each statement on it is a transaction of its own.
    """
    # A SQLite file may be locked while it is opened.
    with _retry_locked(engine.connect) as connection, _patient(connection):
        return Upgrade(connection, tables, commits=True).run()


def is_current(engine: Engine, tables: Tables) -> bool:
    """Whether the schema number says that :func:`upgrade` has nothing to do."""
    state = tables.state
    if not inspect(engine).has_table(state.name, schema=schema_of(engine, state)):
        return False
    with engine.connect() as connection:
        return (schema_number(connection, tables) or 0) >= SCHEMA


class Upgrade:
    """An upgrade on one connection.

    :param commits: whether to commit after each step, and to try a step again that
        meets another process; otherwise the transaction is the caller's.
    """

    def __init__(
        self, connection: Connection, tables: Tables, *, commits: bool
    ) -> None:
        self._connection = connection
        self._tables = tables
        self._commits = commits
        self._leftovers: list[str] = []

    def run(self) -> Changes:
        connection, tables = self._connection, self._tables
        gaps, others = find_gaps(connection, tables), []
        self._add(gaps)
        for table in tables:
            others += self._collate(table)
        if gaps.leftovers:
            others += self._carry_over(gaps.leftovers)
        if (schema_number(connection, tables) or 0) < SCHEMA:
            self._put(WHOLE_INBOX, SCHEMA_NAME, SCHEMA)
        added = [f"column {name}" for name in gaps.column_names]
        added += [f"index {name}" for name in gaps.index_names]
        return Changes(gaps.table_names, added, others)

    def _add(self, gaps: Gaps) -> None:
        for table in gaps.tables:
            self._create_table(table)
        for column in gaps.columns:
            self._add_column(column)
        for index in gaps.indexes:
            self._create_index(index)

    def _create_table(self, table: Table) -> None:
        connection, schema = self._connection, schema_of(self._connection, table)
        self._step(
            lambda: table.create(connection, checkfirst=True),
            lambda: inspect(connection).has_table(table.name, schema=schema),
        )

    def _add_column(self, column: Column[Any]) -> None:
        definition = CreateColumn(column).compile(dialect=self._connection.dialect)
        table = column.table
        self._step(
            lambda: self._alter(table, f"ADD COLUMN {definition}"),
            lambda: column.name in column_names(self._connection, table),
        )

    def _create_index(self, index: Index) -> None:
        connection, table = self._connection, index.table
        assert table is not None

        def is_there() -> bool:
            schema = schema_of(connection, table)
            found = inspect(connection).get_indexes(table.name, schema=schema)
            return index.name in {each["name"] for each in found}

        self._step(lambda: index.create(connection, checkfirst=True), is_there)

    def _collate(self, table: Table) -> list[str]:
        """Give text its case-sensitive collation (MariaDB, MySQL)."""
        connection = self._connection
        columns = columns_to_collate(connection, table)
        if not columns:
            return []
        definitions = [
            f"MODIFY {CreateColumn(column).compile(dialect=connection.dialect)}"
            for column in columns
        ]
        self._step(
            lambda: self._alter(table, ", ".join(definitions)),
            lambda: not columns_to_collate(connection, table),
        )
        names = ", ".join(column.name for column in columns)
        return [f"changed the collation of {table.fullname}: {names}"]

    def _carry_over(self, leftovers: list[str]) -> list[str]:
        """Turn receipts and attempts into jobs, then drop them.

        The receipts are dropped last: until then, no process runs events.
        """
        self._refuse_old_sqlite()
        connection, tables = self._connection, self._tables
        self._leftovers, now = leftovers, _now()
        try:
            old = carry_over.old_tables(connection, tables, leftovers)
        except NoSuchTableError:
            # Another process has dropped the receipts meanwhile, as the last step.
            return []
        for page in carry_over.pages(connection, old):
            for change in carry_over.changes_of_events(old, page):
                self._execute(change)
            receipts = carry_over.jobs_of_receipts(old, page, connection, now)
            if receipts is not None:
                self._execute(receipts)
            self._execute(carry_over.placeholders(old, page, connection, now))
        if not self._is_carried_over():
            for row in carry_over.pauses(connection, tables):
                self._put(row.endpoint, "pause", {"by": row.actor}, row.at)
        count = select(func.count()).select_from(tables.job)
        done = [f"carried over {connection.execute(count).scalar_one()} jobs"]
        return done + [f"dropped {each}" for each in self._drop_leftovers()]

    def _drop_leftovers(self) -> list[str]:
        found = find_leftovers(self._connection, self._tables)
        event, schema = self._tables.event, self._tables.event.schema
        if any(OLD_ATTEMPTS in each for each in found):
            drop = partial(self._alter, event, f"DROP COLUMN {OLD_ATTEMPTS}")
            self._step(
                drop, lambda: OLD_ATTEMPTS not in column_names(self._connection, event)
            )
        if any(OLD_RECEIPTS in each for each in found):
            receipts = carry_over.receipt_table(schema)
            self._step(
                lambda: receipts.drop(self._connection, checkfirst=True),
                lambda: not find_leftovers(self._connection, self._tables),
            )
        return found

    def _refuse_old_sqlite(self) -> None:
        dialect = self._connection.dialect
        version: tuple[Any, ...] = dialect.server_version_info or ()
        if dialect.name == "sqlite" and version < SQLITE_DROPS:
            raise InboxUnavailable(
                f"SQLite {'.'.join(map(str, version))} cannot drop columns: run init-db"
                " once with a Python that has SQLite 3.35 or newer"
            )

    def _is_carried_over(self) -> bool:
        """Whether another process has carried over every row: it drops things now."""
        return find_leftovers(self._connection, self._tables) != self._leftovers

    def _execute(self, statement: Executable) -> None:
        """Execute a statement on the rows of older tables."""
        self._step(lambda: self._connection.execute(statement), self._is_carried_over)

    def _put(
        self, endpoint: str, name: str, value: object, at: datetime | None = None
    ) -> None:
        put = partial(put_value, self._connection, self._tables, endpoint, name, value)
        self._step(lambda: put(at), lambda: False)

    def _alter(self, table: Table, change: str) -> None:
        connection = self._connection
        quote = connection.dialect.identifier_preparer.quote
        parts = filter(None, (schema_of(connection, table), table.name))
        name = ".".join(map(quote, parts))
        connection.exec_driver_sql(f"ALTER TABLE {name} {change}")

    def _step(self, work: Callable[[], object], is_done: Callable[[], bool]) -> None:
        """Do a part of the upgrade, unless another process does it meanwhile."""
        if self._commits:
            _retry_locked(partial(self._commit, work, is_done))
        else:
            work()

    def _commit(self, work: Callable[[], object], is_done: Callable[[], bool]) -> None:
        try:
            work()
            self._connection.commit()
        except SQLAlchemyError:
            self._connection.rollback()
            if not is_done():
                raise


def _retry_locked(work: Callable[[], T]) -> T:
    """Call ``work`` again while another process has a lock; return its result.

    :raises Exception: that of the last call, after ``PATIENCE`` seconds.
    """
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return work()
        except Exception as error:
            if fault_of(error) is not Fault.LOCK or time.monotonic() > until:
                raise
        time.sleep(random.uniform(0.02, 0.1))


@contextmanager
def _patient(connection: Connection) -> Iterator[None]:
    """Let reads of a SQLite file wait for a lock as long as changes do."""
    if connection.dialect.name != "sqlite":
        yield
        return
    former = connection.exec_driver_sql("PRAGMA busy_timeout").scalar()
    connection.exec_driver_sql(f"PRAGMA busy_timeout={PATIENCE * 1000:.0f}").close()
    try:
        yield
    finally:
        if not connection.invalidated:
            connection.exec_driver_sql(f"PRAGMA busy_timeout={former}").close()


def _now() -> datetime:
    """The current time of this host as it is stored."""
    return datetime.now(timezone.utc).replace(tzinfo=None)
