"""Receipts and attempts of older tables become jobs."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
import sqlalchemy as sa
from support import old_tables
from support.services import drop_tables
from support.waiting import in_threads

from flask_procore_webhooks.errors import InboxUnavailable
from flask_procore_webhooks.migrations import carry_over
from flask_procore_webhooks.schema import carry_over as statements
from flask_procore_webhooks.schema.gaps import find_gaps
from flask_procore_webhooks.schema.gaps import find_leftovers
from flask_procore_webhooks.schema.gaps import Gaps
from flask_procore_webhooks.schema.mismatches import mismatches
from flask_procore_webhooks.schema.tables import define_tables
from flask_procore_webhooks.storage.upgrade import upgrade

TABLES = define_tables(sa.MetaData())
QUARANTINED = "sha256:6ddea06d1bc73d2b9f7ec0eb340b1875038500677d747c2874f880438527d820"
HUNG = "slow: no answer within 0.6 s (timeout)"
BROKEN = "flaky: ValueError: broken"

#: Subscribers with a receipt, by event, in the dumps of schema 2.
FINISHED = {
    "evt_dead": {"good": "done", "slow": "done"},
    "evt_replayed": {"good": "done", "slow": "done"},
    "evt_hung_dead": {"good": "done", "flaky": "done"},
    "evt_superseded": {
        "good": "done",
        "flaky": "done",
        "slow": "done",
        "latest": "superseded",
    },
    "evt_newer": dict.fromkeys(("good", "flaky", "slow", "latest"), "done"),
    "evt_discarded": {
        "good": "done",
        "flaky": "done",
        "slow": "done",
        "picky": "discarded",
    },
    "evt_done": dict.fromkeys(("good", "flaky", "slow"), "done"),
    "evt_other_done": {"good": "done"},
    "evt_retried": {"good": "done", "slow": "done"},
    "evt_retried_crashed": {"good": "done", "slow": "done"},
    "evt_hung": {"good": "done", "flaky": "done"},
    "evt_running": {"good": "done"},
}
#: The other jobs, by event and subscriber: state, version, attempts, error.
UNFINISHED = {
    ("evt_dead", ""): ("dead", 1, 3, BROKEN),
    ("evt_hung_dead", "slow"): ("dead", 4, 3, HUNG),
    ("evt_hung_dead", ""): ("dead", 1, 3, HUNG),
    ("evt_retried", ""): ("pending", 1, 1, BROKEN),
    ("evt_retried_crashed", ""): ("pending", 1, 1, BROKEN),
    ("evt_hung", "slow"): ("pending", 2, 1, HUNG),
    ("evt_hung", ""): ("pending", 1, 1, HUNG),
}

Rows = dict[str, list[tuple[Any, ...]]]


class Killed(BaseException):
    """The process ends after a statement."""


@pytest.fixture(autouse=True)
def _sqlite_without_waits_for_the_disk() -> Iterator[None]:
    def speed_up(connection: Any, record: Any) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous=OFF").close()

    sa.event.listen(sa.Engine, "connect", speed_up)
    yield
    sa.event.remove(sa.Engine, "connect", speed_up)


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    """An empty database, like the engine of an inbox."""
    engine = sa.create_engine(database_url, isolation_level="AUTOCOMMIT")
    yield engine
    engine.dispose()


@pytest.fixture
def schema_2(engine: sa.Engine, database_url: str) -> sa.Engine:
    old_tables.load(database_url, schema=2)
    return engine


def by_migration(engine: sa.Engine) -> None:
    """Upgrade as a migration does, in one transaction where the database can."""
    migrations = sa.create_engine(engine.url)
    try:
        with migrations.begin() as connection:
            carry_over(connection)
    finally:
        migrations.dispose()


def by_command(engine: sa.Engine) -> None:
    """Upgrade as ``init-db`` and the embedded default do."""
    upgrade(engine, TABLES)


WAYS = pytest.mark.parametrize("way", [by_command, by_migration])
Way = Callable[[sa.Engine], None]


def contents(engine: sa.Engine) -> Rows:
    """Every row of every table, without the time of the schema number."""
    found: Rows = {}
    with engine.connect() as connection:
        for table in TABLES:
            columns = [c for c in table.c if (table.name, c.name) != WHEN_UPGRADED]
            rows = connection.execute(sa.select(*columns))
            found[table.name] = sorted(map(tuple, rows), key=repr)
    return found


WHEN_UPGRADED = (TABLES.state.name, "at")


def jobs(engine: sa.Engine) -> dict[tuple[str, str], Any]:
    """Each job with columns of its event, by event id and subscriber."""
    e, j = TABLES.event.c, TABLES.job.c
    query = sa.select(
        e.event_id, e.due_at.label("event_due_at"), e.finished_at.label("ended"), *j
    ).join_from(TABLES.job, TABLES.event, e.id == j.event)
    with engine.connect() as connection:
        return {(r.event_id, r.subscriber): r for r in connection.execute(query)}


def events(engine: sa.Engine) -> dict[str, Any]:
    with engine.connect() as connection:
        rows = connection.execute(sa.select(TABLES.event))
        return {row.event_id: row for row in rows}


def state(engine: sa.Engine) -> dict[tuple[str, str], tuple[str, datetime]]:
    """Value and time by endpoint and name, without the notes of processes."""
    with engine.connect() as connection:
        rows = list(connection.execute(sa.select(TABLES.state)))
    notes = {(r.endpoint, r.name): (r.value, r.at) for r in rows}
    return {key: value for key, value in notes.items() if "seen:" not in key[1]}


@WAYS
def test_each_receipt_of_schema_2_becomes_a_job_that_has_ended(
    schema_2: sa.Engine, way: Way
) -> None:
    way(schema_2)
    ended = {
        (event, subscriber): (ending, 1, 1, None)
        for event, endings in FINISHED.items()
        for subscriber, ending in endings.items()
    }
    found = jobs(schema_2)
    assert {
        key: (job.state, job.version, job.attempts, job.error)
        for key, job in found.items()
    } == {**ended, **UNFINISHED}
    for job in found.values():
        is_pending, is_dead = job.state == "pending", job.state == "dead"
        assert job.due_at == (job.event_due_at if is_pending else None)
        assert job.waits_for == ("retry" if is_pending else None)
        assert job.dead_at == (job.ended if is_dead else None)
        assert (job.finished_at is None) == is_pending
        assert job.error_class is job.key is job.batch is None
        other = job.event_id == "evt_other_done"
        assert job.endpoint == ("other" if other else "procore_webhooks")


@WAYS
def test_events_of_schema_2_keep_their_status_and_parked_ones_get_their_time(
    schema_2: sa.Engine, way: Way
) -> None:
    way(schema_2)
    found = events(schema_2)
    statuses = {id: event.status for id, event in found.items()}
    assert statuses.pop(QUARANTINED) == "quarantined"
    dead = {"evt_dead", "evt_hung_dead"}
    assert {id for id, status in statuses.items() if status == "dead"} == dead
    pending = {"evt_pending", "evt_replayed", "evt_retried", "evt_hung"}
    assert {id for id, status in statuses.items() if status == "pending"} == pending
    running = {"evt_running", "evt_retried_crashed"}
    assert {id for id, status in statuses.items() if status == "running"} == running
    for id, event in found.items():
        is_parked = id in {QUARANTINED, *dead}
        assert event.parked_at == (event.finished_at if is_parked else None)
        assert event.claims == int(id in running)
        assert event.origin == "delivery"


@WAYS
def test_pause_of_the_journal_becomes_the_pause_in_the_state_table(
    schema_2: sa.Engine, way: Way
) -> None:
    way(schema_2)
    found = state(schema_2)
    assert found.pop(("", "schema"))[0] == "3"
    at = datetime(2025, 6, 2, 8, 1, 2)
    assert found == {("procore_webhooks", "pause"): ('{"by": "me@host"}', at)}


@WAYS
def test_rows_of_schema_1_become_jobs(
    engine: sa.Engine, database_url: str, way: Way
) -> None:
    """Its package counted an attempt when it began, and no claims."""
    old_tables.load(database_url)
    way(engine)
    found = jobs(engine)
    assert {key: (job.state, job.version) for key, job in found.items()} == {
        ("evt_done", "good"): ("done", 1),
        ("evt_dead", ""): ("dead", 1),
    }
    assert found["evt_dead", ""].attempts == 12
    claims = {id: event.claims for id, event in events(engine).items()}
    assert claims.pop("evt_running") == 1
    assert set(claims.values()) == {0}
    # Its last entry of the journal that counts is a resume.
    assert set(state(engine)) == {("", "schema")}


@WAYS
def test_leftovers_are_dropped_and_a_second_upgrade_changes_nothing(
    schema_2: sa.Engine, way: Way
) -> None:
    assert find_gaps(schema_2, TABLES).leftovers == [
        "table procore_webhook_receipt",
        "column procore_webhook_event.attempts",
    ]
    way(schema_2)
    assert find_gaps(schema_2, TABLES) == Gaps([], [], [], [])
    before = contents(schema_2)
    way(schema_2)
    assert contents(schema_2) == before
    assert upgrade(schema_2, TABLES) == ([], [], [])


def kill_after(engine: sa.Engine, way: Way, number: int) -> bool:
    """Upgrade, and end after so many changes; whether there were as many."""
    left = number

    def count(*arguments: Any) -> None:
        nonlocal left
        text = arguments[2].lstrip()
        if text.startswith(("CREATE", "ALTER", "DROP", "INSERT", "UPDATE")):
            left -= 1
            if left == 0:
                raise Killed

    sa.event.listen(sa.Engine, "after_cursor_execute", count)
    try:
        way(engine)
    except Killed:
        return True
    finally:
        sa.event.remove(sa.Engine, "after_cursor_execute", count)
    return False


@pytest.mark.seldom(
    "postgresql-1", "postgresql-2-by_migration", "mariadb-1", "mariadb-2-by_migration"
)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("schema", "way"), [(1, by_command), (2, by_command), (2, by_migration)]
)
def test_upgrade_that_is_killed_after_any_statement_is_completed_by_the_next(
    engine: sa.Engine, database_url: str, schema: int, way: Way
) -> None:
    old_tables.load(database_url, schema=schema)
    way(engine)
    expected = contents(engine)
    for number in range(1, 100):
        drop_tables(database_url)
        old_tables.load(database_url, schema=schema)
        killed = kill_after(engine, way, number)
        way(engine)
        assert contents(engine) == expected, number
        assert find_gaps(engine, TABLES) == Gaps([], [], [], [])
        if not killed:
            break
    assert number > 20


def test_large_tables_are_carried_over_page_by_page(
    schema_2: sa.Engine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade(schema_2, TABLES)
    expected = contents(schema_2)
    drop_tables(database_url)
    old_tables.load(database_url, schema=2)
    monkeypatch.setattr(statements, "BATCH", 2)
    with schema_2.connect() as connection:
        leftovers = find_leftovers(connection, TABLES)
        old = statements.old_tables(connection, TABLES, leftovers)
        pages = list(statements.pages(connection, old))
    assert [last for _, last in pages] == [2, 4, 6, 8, 10, 13, 15, 16]
    upgrade(schema_2, TABLES)
    assert contents(schema_2) == expected


def test_several_processes_may_carry_over_at_the_same_time(
    schema_2: sa.Engine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade(schema_2, TABLES)
    expected = contents(schema_2)
    monkeypatch.setattr(statements, "BATCH", 3)
    for _ in range(3):
        drop_tables(database_url)
        old_tables.load(database_url, schema=2)
        in_threads(lambda _: by_command(schema_2), range(5))
        assert contents(schema_2) == expected


def test_collations_become_case_sensitive(
    schema_2: sa.Engine, database_url: str
) -> None:
    """MariaDB takes texts that differ in case for one under its default collation."""
    is_mariadb = schema_2.dialect.name == "mysql"
    others = upgrade(schema_2, TABLES).others
    changed = [text for text in others if "collation" in text]
    assert len(changed) == (2 if is_mariadb else 0)
    assert list(mismatches(schema_2, TABLES)) == []
    with schema_2.connect() as connection:
        query = sa.select(sa.func.count()).where(TABLES.event.c.type == "rfis.UPDATE")
        assert connection.scalar(query) == 0


def test_sqlite_without_drop_column_is_named_before_rows_are_carried_over(
    tmp_path: Any,
) -> None:
    url = f"sqlite:///{tmp_path}/old.db"
    old_tables.load(url, schema=2)
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    engine.connect().close()
    engine.dialect.server_version_info = (3, 34, 1)
    with pytest.raises(InboxUnavailable, match=r"SQLite 3\.34\.1 cannot drop columns"):
        upgrade(engine, TABLES)
    assert len(find_gaps(engine, TABLES).leftovers) == 2
    assert jobs(engine) == {}
    engine.dispose()


def test_a_migration_without_a_connection_is_refused() -> None:
    """``flask db upgrade --sql`` has none."""
    with pytest.raises(ValueError, match="connection"):
        carry_over(None)  # type: ignore[arg-type]
