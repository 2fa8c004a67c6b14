"""The insert statements of deliveries: one row, or several rows by one statement."""

from __future__ import annotations

import json
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from datetime import datetime
from operator import itemgetter
from operator import methodcaller
from typing import Any
from typing import cast
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy import Dialect
from sqlalchemy import insert
from sqlalchemy import Table
from sqlalchemy.exc import IntegrityError

from .status import Status

Row = Mapping[str, Any]

#: Bytes of bodies in one statement: drivers hold them several times over.
LARGEST_STATEMENT = 4 * 2**20
#: Returned instead of a row id: the event was recorded before.
ALREADY_RECORDED = -1
PENDING, DELIVERY = Status.PENDING.value, "delivery"
#: The columns whose values differ between pending events.
GIVEN = (
    "endpoint event_id type resource_type reason resource_id company_id project_id"
    " user_id application_id event_at body received_at"
).split()
#: Makes the text that SQLAlchemy makes of a time, in a tenth of its time.
SQLITE_TIME = methodcaller("isoformat", " ", "microseconds")
KEY = ["endpoint", "event_id"]
KEY_OF = itemgetter(*KEY)


class Prepared(NamedTuple):
    """The insert of the new ones of pending events, for the cursor of a driver."""

    #: Its SQL.
    text: str
    #: The SQL that selects ids and keys between two ids, the newest first; ``None`` if
    #: the insert returns those of its rows.
    newest: str | None = None
    #: The columns of the values of one row, in their order; none if :func:`as_json`
    #: of all rows is the only value.
    names: Sequence[str] = ()
    #: What converts a value for the driver, by its position in a row.
    processors: Sequence[tuple[int, Callable[[Any], Any]]] = ()


class Inserts:
    """Inserts the new ones of several events, with any database and driver."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._statement: Any = None

    def __call__(self, connection: Connection, rows: Sequence[Row]) -> list[int]:
        """Return the new row ids, ``ALREADY_RECORDED`` for events that were there."""
        if len(rows) == 1 or not self._fit_together(connection.dialect, rows):
            return [self._insert_one(connection, row) for row in rows]
        # In one order everywhere: two statements that insert the same keys wait for
        # each other's, and a cycle of waits is a deadlock.
        new = self._insert_together(connection, sorted(rows, key=KEY_OF))
        # Of two copies in one batch, the first is the new one.
        return [new.pop(KEY_OF(row), ALREADY_RECORDED) for row in rows]

    def _insert_one(self, connection: Connection, row: Row) -> int:
        try:
            result = connection.execute(insert(self._table), row)
        except IntegrityError:
            return ALREADY_RECORDED
        return int(cast(Any, result.inserted_primary_key)[0])

    def _fit_together(self, dialect: Dialect, rows: Sequence[Row]) -> bool:
        """Whether the database has a statement for them that returns the row ids."""
        size = sum(len(row["body"]) for row in rows)
        has_statement = _kind(dialect) in STATEMENTS
        returns_ids = dialect.insert_executemany_returning
        return size <= LARGEST_STATEMENT and has_statement and returns_ids

    def _insert_together(
        self, connection: Connection, rows: Sequence[Row]
    ) -> dict[tuple[str, str], int]:
        """Return the new row ids by endpoint and event id of the inserted events."""
        kind, c = _kind(connection.dialect), self._table.c
        if self._statement is None:
            statement = STATEMENTS[kind](self._table)
            self._statement = statement.returning(c.endpoint, c.event_id, c.id)
        values: Any = {"rows": as_json(rows)} if kind == "postgresql" else rows
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


def insert_unless_there(table: Table, dialect: Dialect) -> Any:
    """An INSERT, without values, that skips the events that are there."""
    if dialect.name == "sqlite":
        return _sqlite(table)
    from sqlalchemy.dialects import postgresql

    return postgresql.insert(table).on_conflict_do_nothing(index_elements=KEY)


def _mariadb(table: Table) -> Any:
    # INSERT IGNORE also hides truncation errors; none can occur because every value was
    # cut to its column's size.
    return insert(table).prefix_with("IGNORE")


def as_json(rows: Sequence[Row]) -> str:
    """The rows as the parameter of the statement of PostgreSQL."""
    # Unescaped: JSON's own escapes beyond ASCII are allowed only in UTF-8 databases.
    return json.dumps(rows, default=_as_text, ensure_ascii=False)


def _as_text(value: datetime | bytes) -> str:
    """Return the text that PostgreSQL reads as a timestamp or as ``bytea``."""
    return "\\x" + value.hex() if isinstance(value, bytes) else value.isoformat()


STATEMENTS = {"postgresql": _postgresql, "sqlite": _sqlite, "mariadb": _mariadb}


def _kind(dialect: Dialect) -> str:
    return "mariadb" if getattr(dialect, "is_mariadb", False) else dialect.name


def _given(table: Table) -> list[sa.Column[Any]]:
    """The columns for which a row has a value."""
    return [column for column in table.c if not column.primary_key]


def prepare(table: Table, dialect: Dialect, number: int) -> Prepared:
    """Compile the insert of so many pending events, for drivers with positions."""
    c, kind = table.c, cast(Any, type(dialect))
    ids = sa.select(c.id, c.endpoint, c.event_id)
    if dialect.name == "postgresql" and number > 1:
        insert = _postgresql(table).returning(*ids.selected_columns)
        return Prepared(str(insert.compile(dialect=kind(paramstyle="format"))))
    rows = [_row_values(table, index) for index in range(number)]
    insert, newest = insert_unless_there(table, dialect).values(rows), None
    if dialect.name == "sqlite":
        positional = kind(paramstyle="qmark")
        between = c.id > sa.bindparam("after"), c.id <= sa.bindparam("last")
        query = ids.where(*between).order_by(c.id.desc())
        newest = str(query.compile(dialect=positional))
    else:
        positional = kind(paramstyle="format")
        insert = insert.returning(*ids.selected_columns)
    compiled = insert.compile(dialect=positional)
    names = _names(compiled.positiontup, number)
    found = [_processor(c[name].type, dialect) for name in names]
    processors = [(n, process) for n, process in enumerate(found) if process]
    return Prepared(str(compiled), newest, names, processors)


def _names(parameters: Sequence[str], number: int) -> list[str]:
    """The columns of the parameters of the first row."""
    of_one = parameters[: len(parameters) // number]
    return [name.removesuffix("_0") for name in of_one]


def _row_values(table: Table, index: int) -> dict[str, Any]:
    """The values of one pending event: its own, and those of every pending event."""
    values: dict[str, Any] = {
        name: sa.bindparam(f"{name}_{index}", type_=table.c[name].type)
        for name in GIVEN
    }
    values["due_at"] = values["received_at"]
    for name in ("claims", "repeats", "conflicts"):
        values[name] = sa.literal_column("0")
    for name, text in (("status", PENDING), ("origin", DELIVERY)):
        values[name] = sa.literal_column(f"'{text}'")
    return values


def _processor(type_: Any, dialect: Dialect) -> Callable[[Any], Any] | None:
    """Convert a value as SQLAlchemy does; ``None`` if the driver has it unchanged."""
    if dialect.name == "sqlite" and isinstance(type_, sa.DateTime):
        return SQLITE_TIME
    found: Callable[[Any], Any] | None
    found = type_.dialect_impl(dialect).bind_processor(dialect)
    return found
