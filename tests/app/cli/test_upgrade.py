"""Upgrades of the tables of an older package, with rows in them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from support import old_tables
from support.commands import mounted
from support.commands import run
from support.inboxes import dispose
from support.inboxes import event
from support.sites import open_site
from support.sites import Site
from support.waiting import in_threads

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.inbox.record import record
from flask_procore_webhooks.storage.tables import define_tables
from flask_procore_webhooks.storage.tables import SCHEMA
from flask_procore_webhooks.storage.upgrade import find_gaps
from flask_procore_webhooks.storage.upgrade import Gaps
from flask_procore_webhooks.storage.upgrade import upgrade
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import payload

MakeApp = Callable[..., Flask]

ADDED = (
    "added column procore_webhook_event.claims;"
    " added column procore_webhook_receipt.version"
)
OLDER = (
    "missing columns: procore_webhook_event.claims, procore_webhook_receipt.version;"
    " the tables are older than the package: upgrade them with your migrations (flask"
    " db migrate, flask db upgrade) or, if you have none, with the command init-db"
)


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


def gaps_of(url: str) -> Gaps:
    engine = sa.create_engine(url)
    gaps = find_gaps(engine, define_tables(sa.MetaData()))
    engine.dispose()
    return gaps


def test_init_db_adds_what_older_tables_lack_and_keeps_their_rows(
    old_host: Flask, old_url: str
) -> None:
    shown = run(old_host, "init-db").output
    assert f"procore_webhooks: created procore_webhook_state; {ADDED}" in shown
    assert gaps_of(old_url) == Gaps([], [], [])
    assert "all tables exist" in run(old_host, "init-db").output
    events = json.loads(run(old_host, "list", "--json").output)
    assert {e["event_id"]: e["status"] for e in events} == {
        id: fields["status"] for id, fields in old_tables.EVENTS.items()
    }
    assert {e["claims"] for e in events} == {0}
    shown = run(old_host, "show", "evt_done").output
    assert "replay" in shown and "good" in shown


def test_events_of_older_tables_run_replay_and_repeat_after_the_upgrade(
    old_site: Site,
) -> None:
    site = old_site
    site.subscribe_good_and_bad()
    site.broken = False
    assert "added column" in run(site.app, "init-db").output
    assert site.deliver(payload("RFIs.update", id="evt_done")).json == {
        "received": True,
        "duplicate": True,
    }
    site.send(id="evt_new")
    assert site.work() == 3, "pending, running and new"
    run(site.app, "replay", "evt_dead")
    run(site.app, "replay", "evt_done", "--anew")
    assert site.work() == 2
    assert sorted(site.statuses()) == ["done"] * 5 + ["ignored"]
    assert len(site.calls) == 10


def test_embedded_default_upgrades_itself_at_its_first_use(old_site: Site) -> None:
    old_site.send(id="evt_new")
    url = old_site.store.database.url.render_as_string(hide_password=False)
    assert gaps_of(url) == Gaps([], [], [])
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


def test_deliveries_into_older_tables_are_503_and_the_log_says_how_to_upgrade(
    old_host: Flask, old_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = sa.create_engine(old_url)
    define_tables(sa.MetaData()).state.create(engine)
    engine.dispose()
    answer = deliver(old_host.test_client(), payload("RFIs.update"))
    assert answer.status_code == 503
    assert OLDER in caplog.text
    assert OLDER in run(old_host, "check", ok=False).output
    run(old_host, "init-db")
    answer = deliver(old_host.test_client(), payload("RFIs.update"))
    assert answer.status_code == 200


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
    assert gaps_of(old_url) == Gaps([], [], [])
    assert "column procore_webhook_event.claims" in added
    for app in apps:
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
    assert find_gaps(engine, tables) == Gaps([], [], [])
    engine.dispose()


def test_missing_index_is_created_again(site: Site) -> None:
    site.send()
    tables = site.store.database.tables
    (index,) = [each for each in tables.event.indexes if "due" in str(each.name)]
    index.drop(site.store.database.engine)
    assert f"added index {index.name}" in run(site.app, "init-db").output
    assert site.store.database.find_gaps() == Gaps([], [], [])


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


def test_alembic_adds_the_same_columns_and_finds_nothing_after_the_upgrade(
    old_url: str,
) -> None:
    metadata = sa.MetaData()
    tables = define_tables(metadata)
    engine = sa.create_engine(old_url, isolation_level="AUTOCOMMIT")

    def differences() -> list[Any]:
        with engine.connect() as connection:
            options = {"compare_type": True}
            context = MigrationContext.configure(connection, opts=options)
            return list(compare_metadata(context, metadata))

    found = {(each[0], getattr(each[-1], "name", "")) for each in differences()}
    assert found == {
        ("add_table", "procore_webhook_state"),
        ("add_column", "claims"),
        ("add_column", "version"),
    }
    upgrade(engine, tables)
    assert differences() == []
    engine.dispose()


def test_every_added_column_can_be_added_to_a_table_with_rows(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/old.db"
    old_tables.load(url, rows=False)
    for column in gaps_of(url).columns:
        assert column.nullable or column.server_default is not None


def test_upgraded_tables_record_events(old_site: Site) -> None:
    run(old_site.app, "init-db")
    assert record(old_site.store, event()).is_new
