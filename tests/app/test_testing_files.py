"""The files of the app in development that the fixture refuses to write into."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import create_engine
from sqlalchemy import Engine
from sqlalchemy import MetaData
from sqlalchemy.orm import scoped_session
from sqlalchemy.orm import Session
from sqlalchemy.orm import sessionmaker

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.testing.files import instance_files

MakeApp = Callable[..., Flask]
Sessions = scoped_session[Session]


@pytest.fixture
def app(make_app: MakeApp) -> Flask:
    return make_app()


@pytest.fixture
def engine(app: Flask) -> Iterator[Engine]:
    """An engine on a file in the instance folder, as in development."""
    engine = create_engine(f"sqlite:///{app.instance_path}/tracker.db")
    yield engine
    engine.dispose()


@pytest.fixture
def sessions(app: Flask, engine: Engine) -> Sessions:
    """The sessions of an app with plain SQLAlchemy, which the blueprint gets."""
    sessions = scoped_session(sessionmaker(engine))
    app.register_blueprint(ProcoreWebhooks(metadata=MetaData(), session=sessions))
    return sessions


def files(app: Flask) -> list[Path]:
    return [file for file, _ in instance_files(app)]


def test_the_file_of_session_is_found(app: Flask, sessions: Sessions) -> None:
    assert files(app) == [Path(app.instance_path, "tracker.db")]


def test_the_look_leaves_no_session_behind(app: Flask, sessions: Sessions) -> None:
    """A fixture that comes later may bind sessions to a connection of its own."""
    assert [*instance_files(app)]
    assert not sessions.registry.has()


def test_the_session_of_the_test_stays(app: Flask, sessions: Sessions) -> None:
    mine = sessions()
    assert [*instance_files(app)]
    assert sessions() is mine
    sessions.remove()


def test_the_look_makes_no_file(app: Flask, sessions: Sessions) -> None:
    (file,) = files(app)
    assert not file.exists()


def test_a_database_in_memory_is_no_file(make_app: MakeApp) -> None:
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI="sqlite://")
    app.register_blueprint(ProcoreWebhooks())
    assert files(app) == []


def test_a_server_is_no_file(make_app: MakeApp) -> None:
    app = make_app(SQLALCHEMY_DATABASE_URI="postgresql://db.example.com/tracker")
    app.register_blueprint(ProcoreWebhooks())
    assert files(app) == []
