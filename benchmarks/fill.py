"""Inboxes with as many rows as wanted, written by the database itself."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from datetime import timedelta
from datetime import timezone
from typing import Any

import sqlalchemy as sa

from flask_procore_webhooks.schema.tables import define_tables
from flask_procore_webhooks.schema.tables import Tables
from flask_procore_webhooks.senders.samples import payload
from flask_procore_webhooks.senders.samples import to_bytes

ENDPOINT = "procore_webhooks"
SUBSCRIBER = "benchmarks:nothing"
#: Events of one resource.
A_RESOURCE = 10
#: Bytes of a row in SQLite's file, with its job and its part of the indexes.
ROW_BYTES = 800


def fill(url: str, count: int, *, is_done: bool, age: timedelta = timedelta()) -> None:
    """Create an inbox with ``count`` events that came in ``age`` ago.

    Their ids come in no order. Those that are done have a job each.
    """
    tables = define_tables(sa.MetaData())
    at = datetime.now(timezone.utc).replace(tzinfo=None) - age
    with _filling(url) as engine:
        tables.event.metadata.drop_all(engine)
        tables.event.metadata.create_all(engine)
        dialect = engine.dialect.name
        with engine.begin() as connection, _indexed_later(connection, tables):
            connection.execute(_events(tables, dialect, count, at, is_done))
            if is_done:
                connection.execute(_jobs(tables))
        tidy(engine)


def tidy(engine: sa.Engine) -> None:
    """So that no planner goes by an empty table, and no clean-up runs later."""
    words = "VACUUM ANALYZE" if engine.dialect.name == "postgresql" else "ANALYZE"
    with engine.connect() as connection:
        alone = connection.execution_options(isolation_level="AUTOCOMMIT")
        alone.exec_driver_sql(words)


@contextmanager
def _indexed_later(connection: sa.Connection, tables: Tables) -> Iterator[None]:
    """PostgreSQL is several times as fast when it indexes what is there already."""
    if connection.dialect.name != "postgresql":
        yield
        return
    (key,) = (
        one for one in tables.event.constraints if isinstance(one, sa.UniqueConstraint)
    )
    connection.execute(sa.schema.DropConstraint(key))
    for index in tables.event.indexes:
        index.drop(connection)
    yield
    connection.execute(sa.schema.AddConstraint(key))
    for index in tables.event.indexes:
        index.create(connection)


@contextmanager
def _filling(url: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _prepare_sqlite)
    yield engine


def _prepare_sqlite(connection: Any, record: Any) -> None:
    connection.create_function("md5", 1, _md5, deterministic=True)
    for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-1000000"):
        connection.execute(f"PRAGMA {pragma}")


def _md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


def _events(
    tables: Tables, dialect: str, count: int, at: datetime, is_done: bool
) -> sa.Insert:
    number = _numbers(count)
    event_id = sa.func.upper(sa.func.substr(sa.func.md5(_text(number)), 1, 26))
    scattered = number * 7919 % max(1, count // A_RESOURCE)
    values: dict[str, Any] = {
        "endpoint": ENDPOINT,
        "event_id": event_id,
        "type": "RFIs.update",
        "resource_type": "RFIs",
        "reason": "update",
        "resource_id": _text(scattered),
        "company_id": "2001",
        "project_id": "3001",
        "user_id": "1001",
        "event_at": at,
        "body": _body(dialect, event_id),
        "status": "done" if is_done else "pending",
        "claims": 0,
        "due_at": None if is_done else at,
        "received_at": at,
        "finished_at": at if is_done else None,
        "repeats": 0,
        "conflicts": 0,
    }
    columns = tables.event.c
    selected = [
        value
        if isinstance(value, sa.ColumnElement)
        else sa.literal(value, columns[name].type)
        for name, value in values.items()
    ]
    return sa.insert(tables.event).from_select(list(values), sa.select(*selected))


def _jobs(tables: Tables) -> sa.Insert:
    c, j = tables.event.c, tables.job.c
    values: dict[str, sa.ColumnElement[Any]] = {
        "event": c.id,
        "subscriber": sa.literal(SUBSCRIBER, j.subscriber.type),
        "endpoint": c.endpoint,
        "state": sa.literal("done", j.state.type),
        "version": sa.literal(1),
        "attempts": sa.literal(1),
        "started_at": c.finished_at,
        "finished_at": c.finished_at,
    }
    return sa.insert(tables.job).from_select(list(values), sa.select(*values.values()))


def _numbers(count: int) -> sa.ColumnElement[int]:
    """From 1 to ``count``."""
    first = sa.select(sa.cast(1, sa.BigInteger).label("number"))
    numbers = first.cte("numbers", recursive=True)
    more = sa.select(numbers.c.number + 1).where(numbers.c.number < count)
    return numbers.union_all(more).c.number


def _text(value: sa.ColumnElement[int]) -> sa.ColumnElement[str]:
    return sa.cast(value, sa.Text)


def _body(dialect: str, event_id: sa.ColumnElement[str]) -> sa.ColumnElement[Any]:
    """That of a sample, with another id."""
    sample = payload("RFIs.update", format="v4")
    before, after = to_bytes(sample).decode().split(sample["id"])
    text = sa.literal(before, sa.Text) + event_id + sa.literal(after, sa.Text)
    if dialect == "postgresql":
        return sa.func.convert_to(text, "UTF8")
    return sa.cast(text, sa.LargeBinary)
