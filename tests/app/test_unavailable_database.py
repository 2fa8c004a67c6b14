"""Deliveries while the database or one of its tables is missing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from flask import Flask
from support.servers import free_port
from support.web import drop
from support.web import exact
from support.web import host_db
from support.web import PATH
from support.web import TABLES

from flask_procore_webhooks import delivery_rejected
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.log import escape
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import payload

MakeApp = Callable[..., Flask]


@pytest.mark.parametrize("missing", [TABLES, TABLES[:1], TABLES[1:]])
def test_missing_tables_are_logged_with_advice_and_used_once_created(
    make_app: MakeApp,
    database_url: str,
    missing: tuple[str, ...],
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = make_app()
    db = host_db(app, database_url)
    ran = []
    app.blueprints["procore_webhooks"].on()(ran.append)
    with app.app_context():
        db.create_all()
    drop(db, app, *missing)
    event = payload("RFIs.create")
    answer = deliver(app.test_client(), event)
    assert exact(answer) == (503, {"error": "Unavailable"}, "5")
    (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    for word in (*missing, "flask db upgrade", "init-db"):
        assert word in record.getMessage()
    with app.app_context():
        db.create_all()
    assert deliver(app.test_client(), event).status_code == 200
    assert len(ran) == 1
    with app.app_context():
        db.engine.dispose()


def broken_folder(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}"


def broken_file(tmp_path: Path) -> str:
    (tmp_path / "broken.db").write_bytes(b"no database " * 100)
    return f"sqlite:///{tmp_path / 'broken.db'}"


def refused_by_postgresql(tmp_path: Path) -> str:
    return f"postgresql+psycopg://u:a-pass-word@127.0.0.1:{free_port()}/x"


def refused_by_mariadb(tmp_path: Path) -> str:
    return f"mysql+pymysql://u:a-pass-word@127.0.0.1:{free_port()}/x"


BROKEN = (
    broken_folder,
    broken_file,
    pytest.param(refused_by_postgresql, marks=pytest.mark.server),
    pytest.param(refused_by_mariadb, marks=pytest.mark.server),
)


@pytest.mark.usefixtures("short_retries")
@pytest.mark.parametrize("hosted", [True, False])
@pytest.mark.parametrize("broken", BROKEN)
def test_unreachable_database_is_answered_503(
    make_app: MakeApp,
    tmp_path: Path,
    broken: Callable[[Path], str],
    hosted: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    url, app = broken(tmp_path), make_app()
    if hosted:
        host_db(app, url)
    else:
        app.config["PROCORE_WEBHOOK_DATABASE_URI"] = url
        app.register_blueprint(ProcoreWebhooks())
    reasons = []

    @delivery_rejected.connect
    def watch(app: Flask, status: int, reason: str, **_: object) -> None:
        reasons.append((status, reason))

    answer = deliver(app.test_client(), payload("RFIs.create"))
    assert exact(answer) == (503, {"error": "Unavailable"}, "5")
    ((status, reason),) = reasons
    assert status == 503
    assert "the inbox cannot be used" in caplog.text
    assert escape(reason) in caplog.text
    assert "Traceback" not in caplog.text
    assert "a-pass-word" not in caplog.text
    assert app.test_client().head(PATH).status_code == 204


def test_deliveries_are_accepted_once_the_database_is_back(
    make_app: MakeApp, tmp_path: Path
) -> None:
    obstacle = tmp_path / "inbox.db"
    obstacle.mkdir()
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI=f"sqlite:///{obstacle}")
    app.register_blueprint(ProcoreWebhooks())
    event = payload("RFIs.create")
    assert deliver(app.test_client(), event).status_code == 503
    obstacle.rmdir()
    assert deliver(app.test_client(), event).json == {"received": True}
