"""Upgrades of the tables of an older package, with rows in them."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.schema import CreateColumn
from support import old_tables
from support.commands import mounted
from support.commands import run
from support.inboxes import dispose
from support.inboxes import event
from support.sites import open_site
from support.sites import Site
from support.waiting import in_threads

from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.dispatching.worker import Worker
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.errors import InboxUnavailable
from flask_procore_webhooks.inbox.record import record
from flask_procore_webhooks.migrations import carry_over
from flask_procore_webhooks.operations import pauses
from flask_procore_webhooks.schema.gaps import find_gaps
from flask_procore_webhooks.schema.gaps import Gaps
from flask_procore_webhooks.schema.tables import define_tables
from flask_procore_webhooks.schema.tables import SCHEMA
from flask_procore_webhooks.storage.engines import SQLITE_WAIT
from flask_procore_webhooks.storage.upgrade import upgrade
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import payload

MakeApp = Callable[..., Flask]

CREATED = (
    "created procore_webhook_job, procore_webhook_key, procore_webhook_tally,"
    " procore_webhook_state; added column procore_webhook_event.application_id"
)
CARRIED = (
    "carried over 2 jobs; dropped table procore_webhook_receipt;"
    " dropped column procore_webhook_event.attempts"
)
OLDER = (
    "left over: table procore_webhook_receipt, column procore_webhook_event.attempts;"
    " the tables are older than the package: upgrade them with the command init-db or,"
    " if you have migrations, with one that calls carry_over (docs/production.md,"
    " Upgrade the package)"
)
NO_GAPS = Gaps([], [], [], [])


@pytest.fixture
def old_url(database_url: str) -> str:
    """The URL of a database with the tables of schema 1 and rows in them."""
    old_tables.load(database_url)
    return database_url


@pytest.fixture
def old_host(make_app: MakeApp, old_url: str) -> Iterator[Flask]:
    """An app with Flask-SQLAlchemy, whose tables are those of schema 1."""
    db = SQLAlchemy()
    app = make_app(SQLALCHEMY_DATABASE_URI=old_url, PROCORE_WEBHOOK_DISPATCH="worker")
    db.init_app(app)
    mounted(app, ProcoreWebhooks(db=db))
    yield app
    with app.app_context():
        db.engine.dispose()


@pytest.fixture
def old_site(make_app: MakeApp, old_url: str) -> Iterator[Site]:
    """A site of the embedded default, whose tables are those of schema 1."""
    with open_site(make_app(), old_url) as site:
        yield site


def jobs_of(url: str) -> list[Any]:
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        found = list(connection.execute(sa.select(define_tables(sa.MetaData()).job)))
    engine.dispose()
    return found


def gaps_of(url: str) -> Gaps:
    engine = sa.create_engine(url)
    gaps = find_gaps(engine, define_tables(sa.MetaData()))
    engine.dispose()
    return gaps


def test_init_db_adds_what_older_tables_lack_and_keeps_their_rows(
    old_host: Flask, old_url: str
) -> None:
    shown = run(old_host, "init-db").output
    assert f"procore_webhooks: {CREATED}" in shown
    assert CARRIED in shown
    assert gaps_of(old_url) == NO_GAPS
    assert "all tables exist" in run(old_host, "init-db").output
    events = json.loads(run(old_host, "list", "--json").output)
    assert {e["event_id"]: e["status"] for e in events} == {
        id: fields["status"] for id, fields in old_tables.EVENTS.items()
    }
    assert {e["event_id"] for e in events if e["claims"]} == {"evt_running"}
    shown = run(old_host, "show", "evt_done").output
    assert "replay" in shown and "good" in shown


def test_events_of_older_tables_run_and_repeat_after_the_upgrade(
    old_site: Site,
) -> None:
    site = old_site
    site.subscribe_good_and_bad()
    site.broken = False
    assert CARRIED in run(site.app, "init-db").output
    assert site.deliver(payload("RFIs.update", id="evt_done")).json == {
        "received": True,
        "duplicate": True,
    }
    site.send(id="evt_new")
    assert site.work() == 3, "pending, running and new"
    assert sorted(site.statuses()) == ["dead", *["done"] * 4, "ignored"]
    assert len(site.calls) == 6


@pytest.mark.parametrize("way", ["init-db", "first use", "migration"])
def test_subscriber_with_a_receipt_never_runs_again_and_attempts_are_carried(
    make_app: MakeApp, database_url: str, way: str
) -> None:
    """The dumps of schema 2 have a receipt of each subscriber named below."""
    old_tables.load(database_url, schema=2)
    with open_site(make_app(), database_url, PROCORE_WEBHOOK_MAX_ATTEMPTS=3) as site:
        attempts = {}
        for name in ("good", "flaky", "slow"):

            @site.webhooks.on(name=name)
            def note(event: Event, name: str = name) -> None:
                assert (event.id, name) not in attempts
                attempts[event.id, name] = event.attempt

        upgrade_by(way, site, database_url)
        assert site.work() == 0, "the pause of the older tables"
        pauses.resume(site.store, "me@host")
        site.work()
        dead = "evt_dead", "evt_hung_dead"
        assert attempts == {
            ("evt_pending", "good"): 1,
            ("evt_pending", "flaky"): 1,
            ("evt_pending", "slow"): 1,
            ("evt_running", "flaky"): 1,
            ("evt_running", "slow"): 1,
            ("evt_replayed", "flaky"): 1,
            ("evt_retried", "flaky"): 2,
            ("evt_retried_crashed", "flaky"): 2,
            ("evt_hung", "slow"): 2,
        }
        attempts.clear()
        for id in dead:
            site.deliver(payload("RFIs.update", id=id))
        site.work()
        assert set(attempts) == {("evt_dead", "flaky"), ("evt_hung_dead", "slow")}


def upgrade_by(way: str, site: Site, url: str) -> None:
    if way == "init-db":
        assert "carried over 36 jobs" in run(site.app, "init-db").output
    elif way == "migration":
        engine = sa.create_engine(url)
        with engine.begin() as connection:
            carry_over(connection)
        engine.dispose()


def test_embedded_default_upgrades_itself_at_its_first_use(old_site: Site) -> None:
    old_site.send(id="evt_new")
    url = old_site.store.database.url.render_as_string(hide_password=False)
    assert gaps_of(url) == NO_GAPS
    assert "all tables exist" in run(old_site.app, "init-db").output


def test_first_use_of_current_tables_asks_for_their_number_only(site: Site) -> None:
    site.send()
    database, asked = site.store.database, []
    database.opened = None

    def note(connection: Any, cursor: Any, text: str, *more: Any) -> None:
        asked.append(text)

    sa.event.listen(database.find_engine(), "before_cursor_execute", note)
    database.open()
    sa.event.remove(database.find_engine(), "before_cursor_execute", note)
    assert len([text for text in asked if "PRAGMA" not in text]) <= 2, asked
    assert not [text for text in asked if "CREATE" in text or "ALTER" in text]


@pytest.mark.parametrize("has_structure", [False, True])
def test_older_tables_are_refused_with_the_way_to_upgrade_them(
    old_host: Flask, old_url: str, has_structure: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Also when a migration has added the new tables and columns only."""
    if has_structure:
        add_structure(old_url)
    (endpoint,) = endpoints(old_host).values()
    answer = deliver(old_host.test_client(), payload("RFIs.update"))
    assert answer.status_code == 503
    assert OLDER in caplog.text
    assert OLDER in run(old_host, "check", ok=False).output
    with pytest.raises(InboxUnavailable, match="left over"):
        Worker([endpoint], poll=1).run_all()
    run(old_host, "init-db")
    answer = deliver(old_host.test_client(), payload("RFIs.update"))
    assert answer.status_code == 200
    assert Worker([endpoint], poll=1).run_all() == 3, "pending, running and new"


def add_structure(url: str) -> None:
    """Add tables, columns and indexes as a generated migration does, and no rows."""
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    gaps = find_gaps(engine, define_tables(sa.MetaData()))
    for table in gaps.tables:
        table.create(engine)
    with engine.connect() as connection:
        for column in gaps.columns:
            added = CreateColumn(column).compile(dialect=engine.dialect)
            change = f"ALTER TABLE {column.table.name} ADD COLUMN {added}"
            connection.exec_driver_sql(change)
    engine.dispose()


def test_several_processes_may_upgrade_at_the_same_time(
    make_app: MakeApp, old_url: str
) -> None:
    apps = [mounted(make_app(PROCORE_WEBHOOK_DATABASE_URI=old_url)) for _ in range(6)]
    barrier = threading.Barrier(len(apps))
    added: list[str] = []

    def work(app: Flask) -> None:
        (endpoint,) = endpoints(app).values()
        barrier.wait(10)
        added.extend(endpoint.store.database.upgrade().added)

    in_threads(work, apps)
    assert gaps_of(old_url) == NO_GAPS
    assert "column procore_webhook_event.claims" in added
    assert len(jobs_of(old_url)) == 2
    for app in apps:
        dispose(app)


def test_upgrade_waits_for_a_file_that_is_locked_while_it_is_opened(
    make_app: MakeApp, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'locked.db'}"
    old_tables.load(url)
    app = mounted(make_app(PROCORE_WEBHOOK_DATABASE_URI=url))
    other = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with other.connect() as connection:
        connection.exec_driver_sql("BEGIN EXCLUSIVE")
        with ThreadPoolExecutor() as threads:
            upgrade = threads.submit(lambda: run(app, "init-db").output)
            # Longer than a delivery waits for a lock.
            time.sleep(3 * SQLITE_WAIT)
            connection.exec_driver_sql("COMMIT")
            assert CREATED in upgrade.result()
    assert gaps_of(url) == NO_GAPS
    other.dispose()
    dispose(app)


def test_column_that_another_process_adds_meanwhile_is_used(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process is between our look and our ALTER TABLE."""
    old_tables.load(database_url)
    engine = sa.create_engine(database_url, isolation_level="AUTOCOMMIT")
    tables = define_tables(sa.MetaData())
    gaps = find_gaps(engine, tables)
    upgrade(engine, tables)
    module = "flask_procore_webhooks.storage.upgrade"
    monkeypatch.setattr(f"{module}.find_gaps", lambda *_: gaps)
    upgrade(engine, tables)
    monkeypatch.undo()
    assert find_gaps(engine, tables) == NO_GAPS
    engine.dispose()


def test_missing_index_is_created_again(site: Site) -> None:
    site.send()
    tables = site.store.database.tables
    (index,) = [each for each in tables.event.indexes if "due" in str(each.name)]
    index.drop(site.store.database.engine)
    assert f"added index {index.name}" in run(site.app, "init-db").output
    assert site.store.database.find_gaps() == NO_GAPS


def test_upgrade_writes_the_schema_number_and_never_lowers_it(site: Site) -> None:
    database = site.store.database
    s = database.tables.state
    run(site.app, "init-db")
    ((value,),) = site.store.rows(sa.select(s.c.value).where(s.c.name == "schema"))
    assert json.loads(value) == SCHEMA
    newer = json.dumps(SCHEMA + 1)
    with site.store.connection() as connection:
        connection.execute(sa.update(s).values(value=newer))
    run(site.app, "init-db")
    assert site.store.rows(sa.select(s.c.value)) == [(newer,)]


def test_tables_in_a_schema_of_the_host_are_upgraded(
    make_app: MakeApp, postgresql_url: str
) -> None:
    """The schema is renamed by the host's ``schema_translate_map``."""
    engine = sa.create_engine(postgresql_url)
    with engine.begin() as connection:
        for schema in ("tenant", "unused"):
            connection.execute(sa.schema.CreateSchema(schema))
    old_tables.load(f"{postgresql_url}?options=-csearch_path%3Dtenant")
    db = SQLAlchemy(metadata=sa.MetaData(schema="unused"))
    options = {"execution_options": {"schema_translate_map": {"unused": "tenant"}}}
    app = make_app(
        SQLALCHEMY_DATABASE_URI=postgresql_url, SQLALCHEMY_ENGINE_OPTIONS=options
    )
    db.init_app(app)
    mounted(app, ProcoreWebhooks(db=db))
    assert "added column" in run(app, "init-db").output
    assert "tables present" in run(app, "check").output
    assert deliver(app.test_client(), payload("RFIs.update")).status_code == 200
    names = sa.inspect(engine).get_table_names("tenant")
    assert "procore_webhook_state" in names
    assert sa.inspect(engine).get_table_names("unused") == []
    with app.app_context():
        db.engine.dispose()
    with engine.begin() as connection:
        for schema in ("tenant", "unused"):
            connection.execute(sa.schema.DropSchema(schema, cascade=True))
    engine.dispose()


@pytest.mark.parametrize("schema", [1, 2])
def test_alembic_finds_the_differences_of_older_tables_and_none_after_the_carry_over(
    database_url: str, schema: int
) -> None:
    old_tables.load(database_url, schema=schema)
    naming = {"pk": "pk_%(table_name)s", "ix": "ix_%(column_0_label)s"}
    metadata = sa.MetaData(naming_convention=naming)
    tables = define_tables(metadata)
    engine = sa.create_engine(database_url)

    def differences() -> list[Any]:
        with engine.connect() as connection:
            options = {"compare_type": True, "compare_server_default": True}
            context = MigrationContext.configure(connection, opts=options)
            return list(compare_metadata(context, metadata))

    kinds: dict[str, set[str]] = defaultdict(set)
    for each in differences():
        kinds[each[0]].add(str(getattr(each[-1], "name", "")))
    first = schema == 1
    state, claims = {"procore_webhook_state"}, {"claims"}
    event = {"application_id", "origin", "traceparent", "parked_at"}
    journal = {"batch", "filter", "expected", "actual", "former"}
    new = {f"procore_webhook_{name}" for name in ("job", "key", "tally")}
    assert kinds.pop("add_table") == new | (state if first else set())
    assert kinds.pop("add_column") == event | journal | (claims if first else set())
    assert kinds.pop("remove_table") == {"procore_webhook_receipt"}
    assert kinds.pop("remove_column") == {"attempts"}
    # Those of added tables, and on MariaDB those of dropped columns.
    assert {each for each in kinds.pop("add_index") if "parked" in each}
    assert not kinds
    with engine.begin() as connection:
        carry_over(connection, metadata=metadata)
    assert differences() == []
    assert find_gaps(engine, tables) == NO_GAPS
    engine.dispose()


def test_carry_over_upgrades_tables_in_a_schema(postgresql_url: str) -> None:
    engine = sa.create_engine(postgresql_url)
    with engine.begin() as connection:
        connection.execute(sa.schema.CreateSchema("tenant"))
    old_tables.load(f"{postgresql_url}?options=-csearch_path%3Dtenant", schema=2)
    with engine.begin() as connection:
        carry_over(connection, schema="tenant")
    tables = define_tables(sa.MetaData(schema="tenant"))
    assert find_gaps(engine, tables) == NO_GAPS
    with engine.begin() as connection:
        count = sa.select(sa.func.count()).select_from(tables.job)
        assert connection.scalar(count) == 36
        connection.execute(sa.schema.DropSchema("tenant", cascade=True))
    engine.dispose()


def test_every_added_column_can_be_added_to_a_table_with_rows(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/old.db"
    old_tables.load(url, rows=False)
    for column in gaps_of(url).columns:
        assert column.nullable or column.server_default is not None


def test_upgraded_tables_record_events(old_site: Site) -> None:
    run(old_site.app, "init-db")
    assert record(old_site.store, event()).is_new
