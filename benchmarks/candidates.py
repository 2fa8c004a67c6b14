"""The apps that receive: ours, and what one would write instead.

Under a server each is ``benchmarks.candidates:serve()``, told by the environment which.
"""

from __future__ import annotations

import hmac
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flask import Flask
from flask import Request
from flask import request
from flask.typing import ResponseReturnValue
from sqlalchemy import event
from sqlalchemy import make_url
from sqlalchemy.engine import Engine
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column

from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks

from .deliveries import PATH
from .deliveries import SECRET
from .figures import OURS

OURS_DB = f"{OURS} with db="
BARE = "bare Flask route"
BY_HAND = "hand-written view"
ORM = "Flask-SQLAlchemy view"

#: In the environment of a server. The mode is "worker" if the last is not set.
WHO, DATABASE = "BENCHMARKS_WHO", "BENCHMARKS_DATABASE"
DISPATCH = "BENCHMARKS_DISPATCH"
TOLERANCE = 300
#: Seconds: rivals wait for SQLite's one writer rather than fail.
SQLITE_PATIENCE = 60


@dataclass(frozen=True)
class Candidate:
    name: str
    make: Callable[[str], Flask]
    #: Where it stores; ``None`` where it does not.
    table: str | None


def ours(url: str) -> Flask:
    app = configured("ours")
    app.config["PROCORE_WEBHOOK_DATABASE_URI"] = url
    app.register_blueprint(_with_subscriber(ProcoreWebhooks()))
    return app


def ours_with_db(url: str) -> Flask:
    """In the host's database, as the README recommends."""
    app = configured("ours_with_db")
    db = _flask_sqlalchemy(app, url)
    app.register_blueprint(_with_subscriber(ProcoreWebhooks(db=db)))
    with app.app_context():
        db.create_all()
    return app


def _with_subscriber(webhooks: ProcoreWebhooks) -> ProcoreWebhooks:
    @webhooks.on("*", "*")
    def nothing(event: Event) -> None:
        pass

    return webhooks


def configured(name: str) -> Flask:
    app = Flask(name)
    app.config["PROCORE_WEBHOOK_SECRET"] = SECRET
    app.config["PROCORE_WEBHOOK_DISPATCH"] = os.environ.get(DISPATCH, "worker")
    return app


def _flask_sqlalchemy(app: Flask, url: str) -> Any:
    from flask_sqlalchemy import SQLAlchemy

    class Base(DeclarativeBase):
        pass

    app.config["SQLALCHEMY_DATABASE_URI"] = url
    if _is_sqlite(url):
        connect_args = {"timeout": SQLITE_PATIENCE}
        app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"connect_args": connect_args}
    db = SQLAlchemy(app, model_class=Base)
    with app.app_context():
        tune(db.engine)
    return db


def bare(url: str) -> Flask:
    app = Flask("bare")

    @app.post(PATH)
    def receive() -> ResponseReturnValue:
        request.get_data()
        return {"received": True}

    return app


def by_hand(url: str) -> Flask:
    """One connection a thread, one statement and one commit an event."""
    app = Flask("by_hand")
    insert = _sqlite_insert(url) if _is_sqlite(url) else _postgresql_insert(url)

    @app.post(PATH)
    def receive() -> ResponseReturnValue:
        body = request.get_data()
        if not is_authentic(request, body):
            return {"error": "Invalid signature"}, 401
        if insert(json.loads(body)["id"], body):
            return {"received": True}
        return {"received": True, "duplicate": True}

    return app


def orm(url: str) -> Flask:
    """Look whether it is there, add it if not, commit."""
    app = Flask("orm")
    db = _flask_sqlalchemy(app, url)

    class Received(db.Model):  # type: ignore[misc,name-defined]
        __tablename__ = "received"
        id: Mapped[str] = mapped_column(primary_key=True)
        body: Mapped[bytes]
        at: Mapped[float]

    with app.app_context():
        db.create_all()

    @app.post(PATH)
    def receive() -> ResponseReturnValue:
        body = request.get_data()
        if not is_authentic(request, body):
            return {"error": "Invalid signature"}, 401
        event_id = json.loads(body)["id"]
        if db.session.get(Received, event_id):
            return {"received": True, "duplicate": True}
        db.session.add(Received(id=event_id, body=body, at=time.time()))
        db.session.commit()
        return {"received": True}

    return app


EVENTS = "procore_webhook_event"
OUR_CANDIDATE = Candidate(OURS, ours, EVENTS)
OUR_DB_CANDIDATE = Candidate(OURS_DB, ours_with_db, EVENTS)
BARE_CANDIDATE = Candidate(BARE, bare, None)
HAND_CANDIDATE = Candidate(BY_HAND, by_hand, "received")
ORM_CANDIDATE = Candidate(ORM, orm, "received")
CANDIDATES = (
    OUR_CANDIDATE,
    OUR_DB_CANDIDATE,
    BARE_CANDIDATE,
    HAND_CANDIDATE,
    ORM_CANDIDATE,
)


def serve() -> Flask:
    (candidate,) = (one for one in CANDIDATES if one.name == os.environ[WHO])
    return candidate.make(os.environ[DATABASE])


def is_authentic(request: Request, body: bytes) -> bool:
    timestamp = request.headers.get("X-Procore-Timestamp", "")
    signature = request.headers.get("X-Procore-Signature", "")
    signed = timestamp.encode() + b"." + body
    digest = hmac.digest(SECRET.encode(), signed, "sha256").hex()
    if not hmac.compare_digest(digest, signature):
        return False
    return abs(time.time() - int(timestamp)) <= TOLERANCE


def _is_sqlite(url: str) -> bool:
    return make_url(url).get_backend_name() == "sqlite"


def _sqlite_insert(url: str) -> Callable[[str, bytes], bool]:
    here = threading.local()
    path = make_url(url).database or ""
    statement = (
        "INSERT INTO received (event_id, body, at) VALUES (?, ?, ?)"
        " ON CONFLICT DO NOTHING"
    )

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            path, timeout=SQLITE_PATIENCE, isolation_level=None
        )
        _set_pragmas(connection)
        return connection

    connect().execute(
        "CREATE TABLE IF NOT EXISTS received (id INTEGER PRIMARY KEY,"
        " event_id TEXT NOT NULL UNIQUE, body BLOB NOT NULL, at REAL NOT NULL)"
    )

    def insert(event_id: str, body: bytes) -> bool:
        if not hasattr(here, "connection"):
            here.connection = connect()
        row = event_id, body, time.time()
        return bool(here.connection.execute(statement, row).rowcount)

    return insert


def _postgresql_insert(url: str) -> Callable[[str, bytes], bool]:
    import psycopg

    here = threading.local()
    address = make_url(url).set(drivername="postgresql")
    conninfo = address.render_as_string(hide_password=False)
    statement = (
        "INSERT INTO received (event_id, body, at) VALUES (%s, %s, %s)"
        " ON CONFLICT DO NOTHING"
    )

    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS received (id BIGSERIAL PRIMARY KEY,"
            " event_id TEXT NOT NULL UNIQUE, body BYTEA NOT NULL,"
            " at DOUBLE PRECISION NOT NULL)"
        )

    def insert(event_id: str, body: bytes) -> bool:
        if not hasattr(here, "connection"):
            here.connection = psycopg.connect(conninfo, autocommit=True)
        row = event_id, body, time.time()
        return bool(here.connection.execute(statement, row).rowcount)

    return insert


def tune(engine: Engine) -> None:
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", lambda driver, _: _set_pragmas(driver))


def _set_pragmas(connection: Any) -> None:
    """As the inbox has them."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
