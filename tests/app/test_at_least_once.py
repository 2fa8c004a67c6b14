"""The at-least-once warnings, logged at the first request."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import orm
from support.hosts import KINDS
from support.hosts import run_host

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import PrudraWebhooks
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import payload

MakeApp = Callable[..., Flask]
WITHOUT_DB = "the blueprint was made without db="


@pytest.fixture(autouse=True)
def _close_sessions() -> Iterator[None]:
    """Close the sessions of hosts, and with them their database files."""
    yield
    orm.close_all_sessions()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelname == "WARNING" and "at-least-once" in record.getMessage()
    ]


def get(app: Flask) -> int:
    return app.test_client().get("/").status_code


def with_page(app: Flask) -> Flask:
    app.add_url_rule("/", view_func=lambda: "a page", endpoint="page")
    return app


def test_blueprint_without_db_beside_flask_sqlalchemy_warns_once(
    make_app: MakeApp, webhooks: ProcoreWebhooks, caplog: pytest.LogCaptureFixture
) -> None:
    app = with_page(make_app(SQLALCHEMY_DATABASE_URI="sqlite:///host.db"))
    SQLAlchemy(app)
    app.register_blueprint(webhooks)
    assert not warnings(caplog)

    assert get(app) == 200
    (said,) = warnings(caplog)
    assert said.startswith("procore_webhooks: The app has Flask-SQLAlchemy")
    assert WITHOUT_DB in said and "Pass db=." in said

    assert get(app) == 200
    sent = payload("RFIs.create")
    assert deliver(app.test_client(), sent).status_code == 200
    assert warnings(caplog) == [said]


def test_each_endpoint_and_each_app_warns(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    db, blueprints = SQLAlchemy(), (ProcoreWebhooks(), PrudraWebhooks())
    for _ in range(2):
        app = make_app(
            SQLALCHEMY_DATABASE_URI="sqlite:///host.db",
            PRUDRA_WEBHOOK_SECRET="another of the test suite",
        )
        db.init_app(app)
        for webhooks in blueprints:
            app.register_blueprint(webhooks)
        get(app)
    names = [said.partition(":")[0] for said in warnings(caplog)]
    assert names == ["procore_webhooks", "prudra_webhooks"] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_no_warning_if_effects_and_jobs_share_a_commit(
    make_app: MakeApp, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    url = f"sqlite:///{tmp_path / 'host.db'}"
    with run_host(with_page(make_app()), kind, url) as host:
        host.accept()
        assert get(host.app) == 200
        assert host.deliver().status_code == 200
    assert not caplog.messages


def test_no_warning_for_the_embedded_default(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    get(app)
    assert not caplog.messages


# Tables on another engine


def _with_binds(make_app: MakeApp, audit: str) -> tuple[Flask, SQLAlchemy]:
    app = with_page(
        make_app(
            SQLALCHEMY_DATABASE_URI="sqlite:///host.db",
            SQLALCHEMY_BINDS={"audit": audit},
        )
    )
    db = SQLAlchemy(app)
    sa.Table("note", db.metadata, sa.Column("id", sa.Integer, primary_key=True))
    elsewhere = db.metadatas["audit"] if "audit" in db.metadatas else sa.MetaData()
    for name in ("trail", "log_entry"):
        sa.Table(name, elsewhere, sa.Column("id", sa.Integer, primary_key=True))
    return app, db


def test_models_of_another_bind_are_named_in_the_warning(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    app, db = _with_binds(make_app, "sqlite:///audit.db")
    app.register_blueprint(ProcoreWebhooks(db=db))
    assert get(app) == 200
    assert get(app) == 200
    (said,) = warnings(caplog)
    assert said == (
        "procore_webhooks: The tables log_entry, trail are on another engine than the"
        " inbox: writes of subscribers to them are at-least-once, because they may"
        " repeat after a crash."
    )


@pytest.fixture
def two_engines(tmp_path: Path) -> Iterator[tuple[sa.Engine, sa.Engine]]:
    names = ("host", "audit")
    engines = [sa.create_engine(f"sqlite:///{tmp_path / name}.db") for name in names]
    yield engines[0], engines[1]
    for engine in engines:
        engine.dispose()


def _plain(
    app: Flask, engine: sa.Engine, trail: sa.Engine | None
) -> orm.scoped_session[Any]:
    """Plain SQLAlchemy: ``note`` on ``engine``, ``trail`` on the engine ``trail``."""
    metadata = sa.MetaData()
    for name in ("note", "trail"):
        sa.Table(name, metadata, sa.Column("id", sa.Integer, primary_key=True))
    session = orm.scoped_session(orm.sessionmaker())
    app.register_blueprint(ProcoreWebhooks(metadata=metadata, session=session))
    binds = dict.fromkeys(metadata.tables.values(), engine)
    del binds[metadata.tables["trail"]]
    if trail:
        binds[metadata.tables["trail"]] = trail
    session.configure(binds=binds)
    return session


def test_tables_bound_to_another_engine_cause_a_warning(
    make_app: MakeApp,
    two_engines: tuple[sa.Engine, sa.Engine],
    caplog: pytest.LogCaptureFixture,
) -> None:
    host, audit = two_engines
    app = with_page(make_app())
    session = _plain(app, host, audit)
    assert get(app) == 200
    (said,) = warnings(caplog)
    assert said.startswith("procore_webhooks: The tables trail are on another engine")
    session.remove()


def test_tables_bound_to_one_database_cause_no_warning(
    make_app: MakeApp,
    two_engines: tuple[sa.Engine, sa.Engine],
    caplog: pytest.LogCaptureFixture,
) -> None:
    host, _ = two_engines
    app = with_page(make_app())
    session = _plain(app, host, host)
    assert get(app) == 200
    assert not caplog.messages
    session.remove()


def test_requests_are_answered_if_the_session_cannot_be_inspected(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    app = with_page(make_app())

    def session() -> Any:
        raise LookupError("no tenant")

    webhooks = ProcoreWebhooks(metadata=sa.MetaData(), session=session)
    app.register_blueprint(webhooks)
    assert get(app) == 200
    assert get(app) == 200
    assert not warnings(caplog)


def test_table_without_a_bind_does_not_fail_requests(
    make_app: MakeApp,
    two_engines: tuple[sa.Engine, sa.Engine],
    caplog: pytest.LogCaptureFixture,
) -> None:
    host, _ = two_engines
    app = with_page(make_app())
    session = _plain(app, host, None)
    assert get(app) == 200
    session.remove()


def test_inspection_leaves_the_request_session_unchanged(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    app, db = _with_binds(make_app, "sqlite:///audit.db")
    note = db.metadata.tables["note"]

    @app.before_request
    def write() -> None:
        db.session.execute(sa.insert(note).values(id=1))

    @app.get("/count")
    def count() -> str:
        found = db.session.scalar(sa.select(sa.func.count()).select_from(note))
        return str(found)

    with app.app_context():
        db.create_all()
    app.register_blueprint(ProcoreWebhooks(db=db))
    assert app.test_client().get("/count").text == "1"
    assert len(warnings(caplog)) == 1


def test_inspection_does_not_close_the_thread_session(
    make_app: MakeApp,
    two_engines: tuple[sa.Engine, sa.Engine],
) -> None:
    """Hosts remove the session at the end of an app context, such as a pushed one."""
    host, audit = two_engines
    app = make_app()
    session = _plain(app, host, host)
    app.teardown_appcontext(lambda _: session.remove())
    used = []

    # Runs before the blueprint's preprocessor, as in a host that mounts it last.
    @app.url_value_preprocessor
    def begin(*_: object) -> None:
        used.append(session())

    @app.get("/")
    def page() -> str:
        used.append(session())
        return "a page"

    assert get(app) == 200
    assert used[0] is used[1]
