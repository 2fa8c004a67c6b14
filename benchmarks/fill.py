"""Inboxes with as many rows as wanted, written by the database itself."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.testing import payload

from .deliveries import to_bytes

ENDPOINT, SUBSCRIBER = "procore_webhooks", "benchmarks:nothing"
#: Subscribers that have a row for the key of each resource.
KEYED = ("benchmarks:latest_only", "benchmarks:one_at_a_time")
#: Events of one resource.
A_RESOURCE = 10
#: Bytes of a row in SQLite's file, with its job and its part of the indexes.
ROW_BYTES = 700
#: Dead events in a history, and events without a subscriber, whatever its size.
PARKED = 100
#: The age of the oldest event of a history; ``prune`` removes older bodies, and rows.
HISTORY, BODIES = timedelta(days=26), timedelta(days=7)

EVENTS = """
INSERT INTO procore_webhook_event (endpoint, event_id, type, resource_type, reason,
    resource_id, company_id, project_id, user_id, event_at, received_at, status, due_at,
    parked_at, finished_at, error, body, repeats, conflicts)
SELECT '{endpoint}', event_id, 'RFIs.update', 'RFIs', 'update', resource, '2001',
    '3001', '1001', at, at, status,
    CASE status WHEN 'pending' THEN at END,
    CASE WHEN status IN ('dead', 'unmatched') THEN at END,
    CASE WHEN status <> 'pending' THEN at END,
    CASE status WHEN 'dead' THEN 'ValueError: no such RFI' END,
    CASE WHEN status = 'dead' OR n > {bodiless} THEN {body} END,
    CASE WHEN n % 40 = 0 THEN 1 ELSE 0 END, 0
FROM (
    SELECT n, upper(substr(md5(CAST(n AS TEXT)), 1, 26)) AS event_id,
        CAST(n * 7919 % {resources} AS TEXT) AS resource, {at} AS at, {status} AS status
    FROM {numbers}
) AS numbered
"""
JOBS = """
INSERT INTO procore_webhook_job (event, subscriber, endpoint, state, version, attempts,
    started_at, finished_at, dead_at, error_class, error)
SELECT id, '{subscriber}', endpoint, status, 1,
    CASE status WHEN 'dead' THEN 8 ELSE 1 END, finished_at, finished_at, parked_at,
    CASE status WHEN 'dead' THEN 'ValueError' END, error
FROM procore_webhook_event WHERE status IN ('done', 'dead')
"""
#: From the newest event of each resource.
KEYS = """
INSERT INTO procore_webhook_key (endpoint, subscriber, key, done_event, done_event_at,
    began_at)
SELECT endpoint, '{subscriber}', 'rfis/' || resource_id, id, event_at, event_at
FROM procore_webhook_event WHERE id > {older}
"""
TALLY = """
INSERT INTO procore_webhook_tally (endpoint, minute, outcome, count)
SELECT '{endpoint}', {minute}, 'recorded', 100 FROM {numbers}
"""


@dataclass(frozen=True)
class Dialect:
    """What the databases write differently; colons of a text are escaped."""

    numbers: str
    time: str
    body: str


SQLITE = Dialect(
    "(WITH RECURSIVE numbers(n) AS (SELECT 1 WHERE {count} > 0 UNION ALL SELECT n + 1"
    " FROM numbers WHERE n < {count}) SELECT n FROM numbers)",
    r"strftime('%Y-%m-%d %H\:%M\:%f000', {seconds}, 'unixepoch')",
    "CAST({text} AS BLOB)",
)
POSTGRESQL = Dialect(
    "generate_series(CAST(1 AS BIGINT), {count}) AS numbers(n)",
    "CAST(to_timestamp({seconds}) AT TIME ZONE 'UTC' AS TIMESTAMP)",
    "convert_to({text}, 'UTF8')",
)


def fill_pending(url: str, count: int) -> None:
    """Create an inbox with ``count`` events that are due."""
    with _filling(url) as fill:
        fill.events(count, "'pending'")


def fill_finished(url: str, count: int, age: timedelta) -> None:
    """Create an inbox with ``count`` events that were done ``age`` ago."""
    with _filling(url) as fill:
        fill.events(count, "'done'", oldest=age, newest=age)
        fill.execute(JOBS, subscriber=SUBSCRIBER)


def fill_history(url: str, count: int) -> None:
    """Create an inbox that has received ``count`` events in the last weeks.

    Bodies that ``prune`` would remove are gone. As many events are dead, and without a
    subscriber, whatever ``count`` is.
    """
    every = max(10, count // PARKED)
    status = (
        f"CASE n % {every} WHEN 1 THEN 'dead' WHEN 2 THEN 'unmatched' ELSE 'done' END"
    )
    bodiless = int(count * (1 - BODIES / HISTORY))
    with _filling(url) as fill:
        fill.events(count, status, oldest=HISTORY, bodiless=bodiless)
        fill.execute(JOBS, subscriber=SUBSCRIBER)
        fill.keys(count)
        fill.tally(count)


class Fill:
    """Writes rows into new tables, in one transaction."""

    def __init__(self, connection: sa.Connection) -> None:
        self.connection = connection
        is_sqlite = connection.dialect.name == "sqlite"
        self.dialect = SQLITE if is_sqlite else POSTGRESQL

    def execute(self, statement: str, **texts: object) -> None:
        self.connection.execute(sa.text(statement.format(**texts)))

    def events(
        self,
        count: int,
        status: str,
        *,
        oldest: timedelta = timedelta(),
        newest: timedelta = timedelta(),
        bodiless: int = 0,
    ) -> None:
        """Events from ``oldest`` to ``newest``; their ids come in no order."""
        first = time.time() - oldest.total_seconds()
        step = (oldest - newest).total_seconds() / max(1, count)
        self.execute(
            EVENTS,
            endpoint=ENDPOINT,
            status=status,
            bodiless=bodiless,
            resources=resources(count),
            at=self.dialect.time.format(seconds=f"({first} + {step} * n)"),
            body=self.dialect.body.format(text=_body()),
            numbers=self.dialect.numbers.format(count=count),
        )

    def keys(self, count: int) -> None:
        for subscriber in KEYED:
            self.execute(KEYS, subscriber=subscriber, older=count - resources(count))

    def tally(self, count: int) -> None:
        """The counts of each minute of the history that had an event."""
        minutes = min(count, int(HISTORY.total_seconds() / 60))
        last = int(time.time() / 60) * 60
        self.execute(
            TALLY,
            endpoint=ENDPOINT,
            minute=self.dialect.time.format(seconds=f"({last} - 60 * n)"),
            numbers=self.dialect.numbers.format(count=minutes),
        )


def resources(count: int) -> int:
    """Of how many resources so many events are; their numbers are below that."""
    return max(1, count // A_RESOURCE)


def tidy(engine: sa.Engine) -> None:
    """So that no planner goes by an empty table, and no clean-up runs later."""
    words = "VACUUM ANALYZE" if engine.dialect.name == "postgresql" else "ANALYZE"
    with engine.connect() as connection:
        alone = connection.execution_options(isolation_level="AUTOCOMMIT")
        alone.exec_driver_sql(words)


def _body() -> str:
    """An expression for the body of a sample with the event's own ids."""
    sample = payload("RFIs.update", format="v4", id="EVENT", resource_id="RESOURCE")
    text = to_bytes(sample).decode().replace(":", r"\:")
    for name, column in (("EVENT", "event_id"), ("RESOURCE", "resource")):
        text = text.replace(name, f"' || {column} || '")
    return f"'{text}'"


@contextmanager
def _filling(url: str) -> Iterator[Fill]:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _prepare_sqlite)
    metadata = sa.MetaData()
    # It defines its tables there.
    ProcoreWebhooks(metadata=metadata)
    metadata.drop_all(engine)
    metadata.create_all(engine)
    with engine.begin() as connection, _indexed_later(connection, metadata):
        yield Fill(connection)
    tidy(engine)


@contextmanager
def _indexed_later(connection: sa.Connection, metadata: sa.MetaData) -> Iterator[None]:
    """A database is several times as fast when it indexes what is there already."""
    keys: list[sa.UniqueConstraint] = []
    indexes: list[sa.Index] = []
    for table in metadata.tables.values():
        indexes += table.indexes
        if connection.dialect.name == "postgresql":
            keys += [c for c in table.constraints if isinstance(c, sa.UniqueConstraint)]
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SET LOCAL maintenance_work_mem = '512MB'"))
    for key in keys:
        connection.execute(sa.schema.DropConstraint(key))
    for index in indexes:
        index.drop(connection)
    yield
    for key in keys:
        connection.execute(sa.schema.AddConstraint(key))
    for index in indexes:
        index.create(connection)


def _prepare_sqlite(connection: Any, record: Any) -> None:
    connection.create_function("md5", 1, _md5, deterministic=True)
    for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-1000000"):
        connection.execute(f"PRAGMA {pragma}")


def _md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()
