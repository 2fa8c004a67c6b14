"""Engines: the mode of the embedded file, AUTOCOMMIT, and texts without passwords."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from support.commands import run
from support.hosts import begin_by_itself
from support.sites import at_once

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.endpoint import at_least_once_warnings
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.storage.engines import commits_by_itself
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import payload

MakeApp = Callable[..., Flask]


# The embedded file


@pytest.fixture
def _open_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("_open_umask")
@pytest.mark.parametrize(
    "config", [{}, {"PROCORE_WEBHOOK_DATABASE_URI": "sqlite:///x"}]
)
def test_own_sqlite_file_is_readable_by_its_owner_only(
    make_app: MakeApp, config: dict[str, str]
) -> None:
    app = make_app(**config)
    app.register_blueprint(ProcoreWebhooks())
    at_once(lambda _: deliver(app.test_client(), payload("RFIs.update")), range(8))
    folder = Path(app.instance_path)
    modes = {path.name: mode(path) for path in folder.iterdir()}
    name = "x" if config else "procore_webhooks.db"
    assert modes == dict.fromkeys((name, f"{name}-wal", f"{name}-shm"), 0o600)
    assert mode(folder) == 0o700


@pytest.mark.usefixtures("_open_umask")
def test_existing_folder_and_file_keep_their_modes(make_app: MakeApp) -> None:
    app = make_app()
    folder = Path(app.instance_path)
    folder.mkdir(mode=0o755)
    (folder / "procore_webhooks.db").touch(mode=0o644)
    app.register_blueprint(ProcoreWebhooks())
    assert deliver(app.test_client(), payload("RFIs.update")).status_code == 200
    assert (mode(folder), mode(folder / "procore_webhooks.db")) == (0o755, 0o644)


# AUTOCOMMIT


@pytest.mark.parametrize(
    ("options", "commits"),
    [
        ({}, False),
        ({"isolation_level": "AUTOCOMMIT"}, True),
        ({"execution_options": {"isolation_level": "AUTOCOMMIT"}}, True),
        ({"connect_args": {"autocommit": True}}, True),
    ],
)
def test_autocommit_of_the_host_is_found(
    make_app: MakeApp, database_url: str, options: dict[str, Any], commits: bool
) -> None:
    if database_url.startswith("sqlite") and "connect_args" in options:
        options = {"connect_args": {"isolation_level": None}}
    app = make_app(
        SQLALCHEMY_DATABASE_URI=database_url, SQLALCHEMY_ENGINE_OPTIONS=options
    )
    db = SQLAlchemy(app)
    app.register_blueprint(ProcoreWebhooks(db=db))
    (endpoint,) = endpoints(app).values()
    with app.app_context():
        assert commits_by_itself(db.engine) is commits
        db.create_all()
    # Without a connection, the driver's own options are unknown.
    is_configured = commits and "connect_args" not in options
    said = [text for text in at_least_once_warnings(endpoint) if "AUTOCOMMIT" in text]
    assert len(said) == is_configured
    with app.app_context():
        db.session.remove()
        db.engine.dispose()


def test_hook_that_begins_transactions_is_no_autocommit(tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'a.db'}")
    begin_by_itself(engine)
    assert not commits_by_itself(engine)
    engine.dispose()


# Passwords


@pytest.mark.server
@pytest.mark.usefixtures("short_retries")
@pytest.mark.parametrize(
    "uri",
    [
        "postgresql+psycopg://user:HUN@TER@127.0.0.1:1/x",
        "postgresql+psycopg2://user:HUN@TER@127.0.0.1:1/x",
        "postgresql+psycopg://user:HUN@TE/R@127.0.0.1:1/x",
        "mysql+pymysql://user:HUN@TER@127.0.0.1:1/x",
    ],
)
def test_password_with_an_unescaped_at_sign_is_never_shown(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture, uri: str
) -> None:
    app = make_app(SQLALCHEMY_DATABASE_URI=uri)
    app.register_blueprint(ProcoreWebhooks(db=SQLAlchemy(app)))
    assert deliver(app.test_client(), payload("RFIs.update")).status_code == 503
    shown = caplog.text
    for command in ("check", "init-db", "list", "stats"):
        shown += run(app, command, ok=False).output
    assert "write @ as %40" in caplog.text
    for part in ("HUN", "TER", "TE/R"):
        assert part not in shown
