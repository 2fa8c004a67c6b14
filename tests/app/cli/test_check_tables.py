"""``check``: whether rows can be written, and tables that differ from the code."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from support import old_tables
from support.commands import mounted
from support.commands import run
from support.commands import run_apart
from support.sites import Site

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.storage.tables import define_tables
from flask_procore_webhooks.storage.tables import SCHEMA
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import payload

MakeApp = Callable[..., Flask]


@pytest.fixture
def db_host(make_app: MakeApp, database_url: str) -> Iterator[Flask]:
    """An app with Flask-SQLAlchemy and the inbox's tables, on each kind of database."""
    db = SQLAlchemy()
    app = make_app(SQLALCHEMY_DATABASE_URI=database_url)
    db.init_app(app)
    mounted(app, ProcoreWebhooks(db=db))
    run(app, "init-db")
    yield app
    with app.app_context():
        db.engine.dispose()


def execute(url: str, *statements: str) -> None:
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


def rows(url: str) -> int:
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        tables = define_tables(sa.MetaData())
        counts = [sa.select(sa.func.count()).select_from(table) for table in tables]
        found = sum(connection.scalars(count).one() for count in counts)
    engine.dispose()
    return found


def test_check_writes_a_row_into_every_table_and_leaves_none(
    db_host: Flask, database_url: str
) -> None:
    before = rows(database_url)
    statements: list[str] = []
    (endpoint,) = endpoints(db_host).values()
    engine = endpoint.store.database.engine

    def note(connection: Any, cursor: Any, text: str, *more: Any) -> None:
        statements.append(text)

    sa.event.listen(engine, "before_cursor_execute", note)
    shown = run(db_host, "check").output
    sa.event.remove(engine, "before_cursor_execute", note)
    assert "Deliveries can come in." in shown and "tables present" in shown
    for table in endpoint.store.database.tables:
        for verb in ("INSERT INTO", "UPDATE", "DELETE FROM"):
            assert any(f"{verb} {table.name}" in each for each in statements)
    assert rows(database_url) == before


def test_column_without_a_default_that_the_code_does_not_fill_is_an_error(
    db_host: Flask, database_url: str
) -> None:
    """A delivery's INSERT fails as well."""
    column = "tenant VARCHAR(9) NOT NULL"
    if database_url.startswith("sqlite"):
        # SQLite adds such a column only to a new table.
        (endpoint,) = endpoints(db_host).values()
        table = endpoint.store.database.tables.event
        table.drop(endpoint.store.database.engine)
        other = define_tables(sa.MetaData()).event
        other.append_column(sa.Column("tenant", sa.String(9), nullable=False))
        other.create(endpoint.store.database.engine)
    else:
        execute(database_url, f"ALTER TABLE procore_webhook_event ADD COLUMN {column}")
    answer = deliver(db_host.test_client(), payload("RFIs.update"))
    shown = run(db_host, "check", ok=None)
    assert (shown.exit_code == 1) is (answer.status_code != 200), shown.output
    if answer.status_code != 200:
        assert "ERROR: A row " in shown.output


def test_read_only_database_is_an_error(
    make_app: MakeApp, database_url: str, tmp_path: Path
) -> None:
    db = SQLAlchemy()
    app = make_app(SQLALCHEMY_DATABASE_URI=database_url)
    db.init_app(app)
    mounted(app, ProcoreWebhooks(db=db))
    run(app, "init-db")
    read_only = {
        "sqlite": "PRAGMA query_only = ON",
        "postgresql": "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        "mysql": "SET SESSION TRANSACTION READ ONLY",
    }
    with app.app_context():
        engine = db.engine
        engine.dispose()

    @sa.event.listens_for(engine, "connect")
    def make_read_only(connection: Any, record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(read_only[engine.dialect.name])
        connection.commit()
        cursor.close()

    result = run(app, "check", ok=False)
    assert re.search("ERROR: .*read.?only", result.output, re.IGNORECASE)
    engine.dispose()


def test_tables_that_cannot_be_deleted_from_are_an_error(
    make_app: MakeApp, postgresql_url: str
) -> None:
    """The role may insert and not update."""
    execute(postgresql_url, "CREATE ROLE inserter LOGIN")
    engine = sa.create_engine(postgresql_url)
    tables = define_tables(sa.MetaData())
    for table in tables:
        table.create(engine)
    execute(
        postgresql_url,
        "GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA public TO inserter",
        "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO inserter",
    )
    url = sa.make_url(postgresql_url).set(username="inserter")
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI=url.render_as_string(False))
    app.register_blueprint(ProcoreWebhooks(metadata=sa.MetaData()))
    shown = run(app, "check", ok=False).output
    assert "ERROR: A row cannot be written" in shown
    for endpoint in endpoints(app).values():
        endpoint.store.database.engine.dispose()
    for table in tables:
        table.drop(engine)
    engine.dispose()
    execute(postgresql_url, "DROP OWNED BY inserter", "DROP ROLE inserter")


def test_packet_that_is_too_small_is_an_error(
    make_app: MakeApp, mariadb_url: str
) -> None:
    def check(most: int, ok: bool) -> str:
        app = make_app(
            PROCORE_WEBHOOK_DATABASE_URI=mariadb_url, PROCORE_WEBHOOK_MAX_BYTES=most
        )
        shown = run(mounted(app), "check", ok=ok).output
        for endpoint in endpoints(app).values():
            endpoint.store.database.engine.dispose()
        return shown

    engine = sa.create_engine(mariadb_url)
    with engine.connect() as connection:
        packet = connection.exec_driver_sql("SELECT @@max_allowed_packet").scalar_one()
    assert "packet" not in check(1024, True)
    assert "is less than twice PROCORE_WEBHOOK_MAX_BYTES" in check(packet // 2, True)
    shown = check(packet, False)
    assert f"max_allowed_packet ({packet}) is too small for" in shown
    define_tables(metadata := sa.MetaData())
    metadata.drop_all(engine)
    engine.dispose()


def test_collation_that_ignores_case_is_a_warning(
    db_host: Flask, database_url: str
) -> None:
    event = "procore_webhook_event"
    if database_url.startswith("mysql"):
        execute(
            database_url,
            f"ALTER TABLE {event} MODIFY event_id VARCHAR(80) CHARACTER SET utf8mb4"
            " COLLATE utf8mb4_general_ci NOT NULL",
        )
        expected = f"{event}.event_id has the collation utf8mb4_general_ci instead of"
    elif database_url.startswith("postgresql"):
        execute(
            database_url,
            "CREATE COLLATION loose"
            " (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
            f"ALTER TABLE {event} ALTER resource_id TYPE VARCHAR(80) COLLATE loose",
        )
        expected = f"{event}.resource_id has the nondeterministic collation loose"
    else:
        pytest.skip("SQLite compares as the statement says")
    assert f"warning: {expected}" in run(db_host, "check").output
    if database_url.startswith("postgresql"):
        execute(database_url, f"DROP TABLE {event}", "DROP COLLATION loose")


def test_short_and_lacking_parts_of_tables_are_named(
    db_host: Flask, database_url: str
) -> None:
    if database_url.startswith("sqlite"):
        pytest.skip("SQLite stores any length")
    event = "procore_webhook_event"
    drop = "DROP CONSTRAINT"
    kind = "ALTER COLUMN type TYPE VARCHAR(50)"
    if database_url.startswith("mysql"):
        drop, kind = "DROP INDEX", "MODIFY type VARCHAR(50) NOT NULL"
    execute(database_url, f"ALTER TABLE {event} {kind}")
    assert f"{event}.type holds 50 characters instead of 255" in (
        run(db_host, "check").output
    )
    execute(database_url, f"ALTER TABLE {event} {drop} uq_{event}")
    assert f"ERROR: {event} lacks the unique constraint on endpoint, event_id" in (
        run(db_host, "check", ok=False).output
    )


def test_storage_engine_without_transactions_is_a_warning(
    make_app: MakeApp, mariadb_url: str
) -> None:
    app = mounted(make_app(PROCORE_WEBHOOK_DATABASE_URI=mariadb_url))
    run(app, "init-db")
    execute(mariadb_url, "ALTER TABLE procore_webhook_journal ENGINE = MyISAM")
    shown = run(app, "check").output
    assert "procore_webhook_journal has the storage engine MyISAM" in shown
    (endpoint,) = endpoints(app).values()
    tables = endpoint.store.database.tables
    tables.event.metadata.drop_all(endpoint.store.database.engine)
    endpoint.store.database.engine.dispose()


def test_older_tables_are_an_error_that_says_how_to_upgrade(
    make_app: MakeApp, database_url: str
) -> None:
    old_tables.load(database_url)
    db = SQLAlchemy()
    app = make_app(SQLALCHEMY_DATABASE_URI=database_url)
    db.init_app(app)
    mounted(app, ProcoreWebhooks(db=db))
    shown = run(app, "check", ok=False).output
    assert "tables older than the package" in shown
    assert "missing columns: procore_webhook_event.application_id" in shown
    assert "left over: table procore_webhook_receipt" in shown
    assert "carry_over" in shown and "init-db" in shown
    run(app, "init-db")
    run(app, "check")
    with app.app_context():
        db.engine.dispose()


def test_newer_tables_are_a_warning(site: Site) -> None:
    run(site.app, "init-db")
    state = site.store.database.tables.state
    with site.store.connection() as connection:
        connection.execute(sa.update(state).values(value=json.dumps(SCHEMA + 1)))
    shown = run(site.app, "check").output
    assert f"The tables are newer than the package (schema {SCHEMA + 1}," in shown


def test_missing_index_is_a_warning(site: Site) -> None:
    site.send()
    tables = site.store.database.tables
    (index,) = [each for each in tables.event.indexes if "due" in str(each.name)]
    index.drop(site.store.database.engine)
    assert f"warning: Queries are slow: missing indexes: {index.name}" in (
        run(site.app, "check").output
    )


def test_json_is_all_that_is_printed(make_app: MakeApp) -> None:
    app = mounted(make_app(PROCORE_WEBHOOK_SECRET="short"))

    @app.before_request
    def chatter() -> None:
        print("hello")
        app.logger.error("hello")

    for arguments, code in ((["check"], 0), (["check", "--strict"], 1)):
        result = run_apart(app, *arguments, "--json")
        assert result.exit_code == code
        assert result.stderr == ""
        (report,) = json.loads(result.stdout).values()
        assert report["errors"] == [] and report["warnings"]
