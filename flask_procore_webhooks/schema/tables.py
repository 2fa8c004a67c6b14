"""The six tables of the inbox, as Core tables on the host's metadata; their values.

Core tables rather than an ORM mixin: a mixin's columns cannot be added to a host whose
declarative base is a ``MappedAsDataclass``. All times are UTC without a zone, because
SQLite and MariaDB keep none.
"""

from __future__ import annotations

from typing import Any
from typing import NamedTuple

from sqlalchemy import BigInteger
from sqlalchemy import Column
from sqlalchemy import ColumnElement
from sqlalchemy import Connection
from sqlalchemy import Index
from sqlalchemy import Integer
from sqlalchemy import MetaData
from sqlalchemy import select
from sqlalchemy import Table
from sqlalchemy import Text
from sqlalchemy import UniqueConstraint

from .columns import Bytes
from .columns import CaseSensitive
from .columns import Exact
from .columns import LongText
from .columns import MYSQL
from .columns import RowId
from .columns import Time

EVENT_TABLE = "procore_webhook_event"
JOB_TABLE = "procore_webhook_job"
KEY_TABLE = "procore_webhook_key"
TALLY_TABLE = "procore_webhook_tally"
JOURNAL_TABLE = "procore_webhook_journal"
STATE_TABLE = "procore_webhook_state"

#: Number of this definition of the tables. Add one with each change of them; a column
#: that is added needs a server default unless it may be NULL.
SCHEMA = 3
_INFO_KEY = "flask_procore_webhooks"
_TABLE_OPTIONS: dict[str, Any] = {f"{name}_charset": "utf8mb4" for name in MYSQL}


class Tables(NamedTuple):
    event: Table
    job: Table
    key: Table
    journal: Table
    tally: Table
    state: Table


def define_tables(metadata: MetaData) -> Tables:
    """Return the inbox's tables on ``metadata``; the first call defines them."""
    tables: Tables | None = metadata.info.get(_INFO_KEY)
    if tables is None:
        tables = metadata.info[_INFO_KEY] = Tables(
            _event_table(metadata),
            _job_table(metadata),
            _key_table(metadata),
            _journal_table(metadata),
            _tally_table(metadata),
            _state_table(metadata),
        )
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
    for dialect in MYSQL:
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


def _event_table(metadata: MetaData) -> Table:
    endpoint = Column("endpoint", Exact(80), nullable=False)
    due_at, parked_at = Column("due_at", Time()), Column("parked_at", Time())
    return Table(
        EVENT_TABLE,
        metadata,
        Column("id", RowId(), primary_key=True),
        endpoint,
        Column("event_id", Exact(80), nullable=False),
        Column("type", CaseSensitive(255), nullable=False),
        Column("resource_type", CaseSensitive(160)),
        Column("reason", CaseSensitive(80)),
        Column("resource_id", CaseSensitive(80)),
        Column("company_id", CaseSensitive(80)),
        Column("project_id", CaseSensitive(80)),
        Column("user_id", CaseSensitive(80)),
        Column("application_id", CaseSensitive(80)),
        Column("event_at", Time()),
        Column("body", Bytes()),
        Column("origin", Exact(16), nullable=False, server_default="delivery"),
        # W3C Trace Context of the delivery.
        Column("traceparent", Exact(55)),
        Column("status", Exact(16), nullable=False),
        # Claims since the last one that was settled or given back.
        Column("claims", Integer, nullable=False, server_default="0"),
        # When the event may be claimed: the least due time of its pending jobs, or the
        # end of the lease. NULL once finished, so its index holds live rows only.
        due_at,
        # When the event became dead, unmatched or quarantined; NULL otherwise.
        parked_at,
        Column("lease", Exact(32)),
        Column("error", Text),
        Column("received_at", Time(), nullable=False),
        Column("finished_at", Time()),
        Column("repeats", Integer, nullable=False),
        Column("conflicts", Integer, nullable=False),
        UniqueConstraint("endpoint", "event_id", name=f"uq_{EVENT_TABLE}"),
        # Without the endpoint in it, SQLite uses the index of the unique key.
        _live_index(EVENT_TABLE, "due", endpoint, due_at),
        # With the status before the time, each status is counted by itself.
        _live_index(EVENT_TABLE, "parked", endpoint, "status", parked_at),
        # For the history of one resource.
        Index(f"ix_{EVENT_TABLE}_resource", "resource_id", "event_at"),
        # A reused row id would find the jobs of the first event that had it.
        sqlite_autoincrement=True,
        **_TABLE_OPTIONS,
    )


def _job_table(metadata: MetaData) -> Table:
    """The work of one subscriber for one event.

    Without a foreign key: its check would lock the event's row until the subscriber's
    transaction ends, and the inbox updates that row on its own connection.
    """
    endpoint = Column("endpoint", Exact(80), nullable=False)
    key, dead_at = Column("key", Exact(190)), Column("dead_at", Time())
    batch = Column("batch", Exact(32))
    return Table(
        JOB_TABLE,
        metadata,
        Column("event", RowId(), primary_key=True, autoincrement=False),
        Column("subscriber", Exact(190), primary_key=True),
        endpoint,
        Column("state", Exact(16), nullable=False),
        # It only rises: a run that has outlived its lease has an older one.
        Column("version", Integer, nullable=False),
        # Attempts that have ended, or of a suspect begun, since receipt or replay.
        Column("attempts", Integer, nullable=False),
        # NULL unless pending.
        Column("due_at", Time()),
        # What a pending job waits for; NULL unless pending.
        Column("waits_for", Exact(16)),
        # What counts as the same for its subscriber; NULL unless pending.
        key,
        # When it was first postponed since receipt or replay.
        Column("first_at", Time()),
        # When its last attempt, or its wait for its key, began.
        Column("started_at", Time()),
        Column("finished_at", Time()),
        # NULL unless dead.
        dead_at,
        # The replay that made it pending.
        batch,
        # Of the last attempt that failed.
        Column("error_class", CaseSensitive(190)),
        Column("error", Text),
        Column("traceback", LongText()),
        _live_index(JOB_TABLE, "dead", endpoint, dead_at),
        _live_index(JOB_TABLE, "key", endpoint, key, "subscriber"),
        _live_index(JOB_TABLE, "batch", batch),
        **_TABLE_OPTIONS,
    )


def _key_table(metadata: MetaData) -> Table:
    """What is known of one key of a subscriber with latest_only or one_at_a_time."""
    endpoint = Column("endpoint", Exact(80), primary_key=True)
    began_at = Column("began_at", Time())
    return Table(
        KEY_TABLE,
        metadata,
        endpoint,
        Column("subscriber", Exact(190), primary_key=True),
        Column("key", Exact(190), primary_key=True),
        # The event whose job runs, and the lease of its run. It holds the key as long
        # as the event has that lease.
        Column("holder", RowId()),
        Column("lease", Exact(32)),
        # The newest event with a time whose job is done, and its time.
        Column("done_event", RowId()),
        Column("done_event_at", Time()),
        # The newest event without a time whose job is done.
        Column("done_untimed", RowId()),
        # When the last call began whose job is done.
        began_at,
        # The earliest receipt of an event that waits for a newer one.
        Column("first_at", Time()),
        Index(f"ix_{KEY_TABLE}_began", began_at),
        **_TABLE_OPTIONS,
    )


def _journal_table(metadata: MetaData) -> Table:
    """Operations: actor, time, and the event or, without one, what they selected."""
    batch = Column("batch", Exact(32))
    return Table(
        JOURNAL_TABLE,
        metadata,
        Column("id", RowId(), primary_key=True),
        Column("endpoint", Exact(80), nullable=False),
        Column("action", Exact(16), nullable=False),
        Column("event", RowId()),
        Column("at", Time(), nullable=False),
        Column("actor", CaseSensitive(160), nullable=False),
        batch,
        # JSON: the options that selected the rows.
        Column("filter", Text),
        # How many rows were to be changed, and how many were; NULL while it goes on.
        Column("expected", Integer),
        Column("actual", Integer),
        # The error of a job before its replay, with its subscriber, state and attempts.
        Column("former", Text),
        Index(f"ix_{JOURNAL_TABLE}_action", "endpoint", "action", "id"),
        Index(f"ix_{JOURNAL_TABLE}_event", "event"),
        _live_index(JOURNAL_TABLE, "batch", batch),
        **_TABLE_OPTIONS,
    )


def _tally_table(metadata: MetaData) -> Table:
    """How often each outcome occurred in each minute; a crash loses some seconds."""
    return Table(
        TALLY_TABLE,
        metadata,
        Column("endpoint", Exact(80), primary_key=True),
        # UTC, the start of the minute.
        Column("minute", Time(), primary_key=True),
        Column("outcome", Exact(40), primary_key=True),
        Column("count", BigInteger, nullable=False),
        **_TABLE_OPTIONS,
    )


def _state_table(metadata: MetaData) -> Table:
    """What the endpoints and their processes have last said of themselves."""
    return Table(
        STATE_TABLE,
        metadata,
        # Empty for what belongs to the whole inbox.
        Column("endpoint", Exact(80), primary_key=True),
        Column("name", Exact(190), primary_key=True),
        # JSON.
        Column("value", Text, nullable=False),
        Column("at", Time(), nullable=False),
        **_TABLE_OPTIONS,
    )


def _live_index(table: str, name: str, *columns: Any) -> Index:
    """An index that leaves out the rows whose last :class:`Column` is NULL.

    MariaDB and MySQL index them too.
    """
    named = [column for column in columns if isinstance(column, Column)][-1]
    where = named.is_not(None)
    index = f"ix_{table}_{name}"
    return Index(index, *columns, postgresql_where=where, sqlite_where=where)
