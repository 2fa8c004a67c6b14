"""The four tables of the inbox, as Core tables on the host's metadata; their values.

Core tables rather than an ORM mixin: a mixin's columns cannot be added to a host whose
declarative base is a ``MappedAsDataclass``. All times are UTC without a zone, because
SQLite and MariaDB keep none.
"""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import datetime
from datetime import timezone
from typing import Any
from typing import NamedTuple

from sqlalchemy import BigInteger
from sqlalchemy import Column
from sqlalchemy import ColumnElement
from sqlalchemy import Connection
from sqlalchemy import DateTime
from sqlalchemy import Index
from sqlalchemy import insert
from sqlalchemy import Integer
from sqlalchemy import LargeBinary
from sqlalchemy import MetaData
from sqlalchemy import select
from sqlalchemy import String
from sqlalchemy import Table
from sqlalchemy import Text
from sqlalchemy import UniqueConstraint
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.types import TypeEngine

EVENT_TABLE = "procore_webhook_event"
RECEIPT_TABLE = "procore_webhook_receipt"
JOURNAL_TABLE = "procore_webhook_journal"
STATE_TABLE = "procore_webhook_state"

#: Number of this definition of the tables. Add one with each change of them; a column
#: that is added needs a server default unless it may be NULL.
SCHEMA = 2
#: Endpoint and name of the schema number in the state table.
WHOLE_INBOX = ""
SCHEMA_NAME = "schema"

# The dialect of MySQL is imported when tables are defined, not with the package.
_INFO_KEY = "flask_procore_webhooks"
_MYSQL = ("mysql", "mariadb")
_TABLE_OPTIONS: dict[str, Any] = {f"{name}_charset": "utf8mb4" for name in _MYSQL}


class Tables(NamedTuple):
    event: Table
    receipt: Table
    journal: Table
    state: Table


def define_tables(metadata: MetaData) -> Tables:
    """Return the inbox's tables on ``metadata``; the first call defines them."""
    tables: Tables | None = metadata.info.get(_INFO_KEY)
    if tables is None:
        tables = Tables(
            _event_table(metadata),
            _receipt_table(metadata),
            _journal_table(metadata),
            _state_table(metadata),
        )
        metadata.info[_INFO_KEY] = tables
    return tables


def lock_in_order(
    connection: Connection, table: Table, *where: ColumnElement[bool]
) -> list[Any]:
    """Lock the rows in the order of their primary keys; return the keys.

    A transaction that changes several rows begins with this: if two transactions lock
    the same rows in different orders, each waits for the other.
    """
    key = table.primary_key.columns
    query = select(*key).where(*where).order_by(*key).with_for_update()
    for dialect in _MYSQL:
        # With another index, rows would be locked in its order.
        query = query.with_hint(table, "FORCE INDEX (PRIMARY)", dialect)
    return list(connection.execute(query))


def truncate_text(text: str | None, length: int) -> str | None:
    """Return ``text`` as every UTF-8 database stores it.

    It is cut to ``length`` characters and holds neither NUL nor lone surrogates.
    """
    if text is None:
        return None
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode("utf-8")
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")[:length]


def schema_number(connection: Connection, tables: Tables) -> int | None:
    """The schema number in the database; ``None`` if no ``init-db`` has written it."""
    s = tables.state.c
    query = select(s.value).where(s.endpoint == WHOLE_INBOX, s.name == SCHEMA_NAME)
    found = connection.execute(query).scalar()
    with suppress(ValueError, TypeError):
        return int(json.loads(found or ""))
    return None


def put_value(
    connection: Connection,
    tables: Tables,
    endpoint: str,
    name: str,
    value: object,
    at: datetime | None = None,
) -> None:
    """Set a value in the state table; safe to repeat and to race.

    :param connection: each statement on it is a transaction of its own.
    :param value: is stored as JSON.
    :param at: UTC without a zone; by default the current time of this host.
    """
    state = tables.state
    at = at or datetime.now(timezone.utc).replace(tzinfo=None)
    values = {"value": json.dumps(value), "at": at}
    mine = (state.c.endpoint == endpoint, state.c.name == name)
    change = update(state).where(*mine).values(values)
    if connection.execute(change).rowcount:
        return
    try:
        row = {"endpoint": endpoint, "name": name, **values}
        connection.execute(insert(state), row)
    except IntegrityError:
        # Another process has inserted the row after our update.
        connection.execute(change)


def _event_table(metadata: MetaData) -> Table:
    endpoint = Column("endpoint", _Exact(80), nullable=False)
    due_at = Column("due_at", _Time())
    return Table(
        EVENT_TABLE,
        metadata,
        Column("id", _RowId(), primary_key=True),
        endpoint,
        Column("event_id", _Exact(80), nullable=False),
        Column("type", String(255), nullable=False),
        Column("resource_type", String(160)),
        Column("reason", String(80)),
        Column("resource_id", _CaseSensitive(80)),
        Column("company_id", String(80)),
        Column("project_id", String(80)),
        Column("user_id", String(80)),
        Column("event_at", _Time()),
        Column("body", _Bytes()),
        Column("status", String(16), nullable=False),
        Column("attempts", Integer, nullable=False),
        # Claims since the last one that was settled or given back.
        Column("claims", Integer, nullable=False, server_default="0"),
        # When the event may be claimed: after the wait of a pending event, after the
        # lease of a running one. NULL once finished, so its index holds live rows only.
        due_at,
        Column("lease", String(32)),
        Column("error", Text),
        Column("received_at", _Time(), nullable=False),
        Column("finished_at", _Time()),
        Column("repeats", Integer, nullable=False),
        Column("conflicts", Integer, nullable=False),
        UniqueConstraint("endpoint", "event_id", name=f"uq_{EVENT_TABLE}"),
        Index(
            f"ix_{EVENT_TABLE}_due",
            # Without the endpoint in it, SQLite uses the index of the unique key.
            endpoint,
            due_at,
            postgresql_where=due_at.is_not(None),
            sqlite_where=due_at.is_not(None),
        ),
        # For subscribers with latest_only.
        Index(f"ix_{EVENT_TABLE}_resource", "resource_id", "event_at"),
        # A reused row id would find the receipts of the first event that had it.
        sqlite_autoincrement=True,
        **_TABLE_OPTIONS,
    )


def _receipt_table(metadata: MetaData) -> Table:
    # No foreign key: its check would lock the event's row until the subscriber's
    # transaction ends, and the inbox updates that row on its own connection.
    return Table(
        RECEIPT_TABLE,
        metadata,
        Column("event", _RowId(), primary_key=True, autoincrement=False),
        Column("subscriber", _Exact(190), primary_key=True),
        Column("ending", String(16), nullable=False),
        # It only rises: a run that was abandoned has an older one.
        Column("version", Integer, nullable=False, server_default="0"),
        Column("finished_at", _Time(), nullable=False),
        **_TABLE_OPTIONS,
    )


def _journal_table(metadata: MetaData) -> Table:
    """Operations: actor, time, and the event or, without one, the whole endpoint."""
    return Table(
        JOURNAL_TABLE,
        metadata,
        Column("id", _RowId(), primary_key=True),
        Column("endpoint", _Exact(80), nullable=False),
        Column("action", String(16), nullable=False),
        Column("event", _RowId()),
        Column("at", _Time(), nullable=False),
        Column("actor", String(160), nullable=False),
        # The last pause or resume of an endpoint is in force.
        Index(f"ix_{JOURNAL_TABLE}_action", "endpoint", "action", "id"),
        Index(f"ix_{JOURNAL_TABLE}_event", "event"),
        **_TABLE_OPTIONS,
    )


def _state_table(metadata: MetaData) -> Table:
    """What the endpoints and their processes have last said of themselves."""
    return Table(
        STATE_TABLE,
        metadata,
        # Empty for what belongs to the whole inbox.
        Column("endpoint", _Exact(80), primary_key=True),
        Column("name", _Exact(190), primary_key=True),
        # JSON.
        Column("value", Text, nullable=False),
        Column("at", _Time(), nullable=False),
        **_TABLE_OPTIONS,
    )


def _RowId() -> TypeEngine[Any]:
    # SQLite generates row ids only in a column of type INTEGER.
    return BigInteger().with_variant(Integer(), "sqlite")


def _Exact(length: int) -> TypeEngine[Any]:
    """ASCII text that is compared with its case, on every database."""
    from sqlalchemy.dialects import mysql

    binary = mysql.VARCHAR(length, charset="ascii", collation="ascii_bin")
    return String(length).with_variant(binary, *_MYSQL)


def _CaseSensitive(length: int) -> TypeEngine[Any]:
    """Any text, compared with its case, on every database."""
    from sqlalchemy.dialects import mysql

    binary = mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_bin")
    return String(length).with_variant(binary, *_MYSQL)


def _Time() -> TypeEngine[Any]:
    from sqlalchemy.dialects import mysql

    return DateTime().with_variant(mysql.DATETIME(fsp=6), *_MYSQL)


def _Bytes() -> TypeEngine[Any]:
    from sqlalchemy.dialects import mysql

    # A plain BLOB of MySQL ends at 64 KiB.
    return LargeBinary().with_variant(mysql.LONGBLOB(), *_MYSQL)
