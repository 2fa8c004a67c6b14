"""Host apps with a database and a session of their own, as users write them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import scoped_session
from sqlalchemy.orm import sessionmaker
from werkzeug.test import TestResponse

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import testing
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.operations import queries
from flask_procore_webhooks.storage.store import Store
from support import inboxes
from support.values import Clock

#: Flask-SQLAlchemy, with a session per app context; plain SQLAlchemy, with a session
#: per thread.
KINDS = ("flask_sqlalchemy", "scoped_session")
#: States of jobs that a redelivery or a replay may run.
UNFINISHED = ("pending", "dead")


@dataclass
class Host:
    """An app whose subscribers write notes into a table of its own."""

    app: Flask
    webhooks: ProcoreWebhooks
    session: scoped_session[Any]
    engine: sa.Engine
    note_table: sa.Table
    #: With a foreign key to a note's text, deferred to the commit if possible.
    remark_table: sa.Table
    payload: dict[str, Any] = field(default_factory=dict)

    @property
    def endpoint(self) -> Endpoint:
        (endpoint,) = endpoints(self.app).values()
        return endpoint

    @property
    def store(self) -> Store:
        return self.endpoint.store

    def deliver(self, payload: dict[str, Any] | None = None) -> TestResponse:
        """Deliver ``payload``, by default the payload of the delivery before."""
        self.payload = payload or self.payload or testing.payload("RFIs.create")
        return testing.deliver(self.app.test_client(), self.payload)

    def accept(self) -> None:
        """Subscribe a function that does nothing to every event."""
        self.webhooks.on(name="accepts")(lambda event: None)

    def note(self, text: str) -> None:
        """Write through the session, without a commit, as a subscriber does."""
        self.session.execute(sa.insert(self.note_table).values(text=text))

    def notes(self) -> list[str]:
        """The committed notes, in the order of writing."""
        look = sa.select(self.note_table.c.text).order_by(self.note_table.c.id)
        with self.engine.connect() as connection:
            return list(connection.scalars(look))

    def row(self, event_id: str | None = None) -> dict[str, Any]:
        found = queries.find(self.endpoint.store, event_id or self.payload["id"])
        assert found is not None
        return dict(found)

    def jobs(self, event_id: str | None = None) -> dict[str, dict[str, Any]]:
        """The jobs of an event, by subscriber."""
        return inboxes.jobs(self.store, event_id or self.payload["id"])

    def job(self, event_id: str | None = None) -> dict[str, Any]:
        """The only job of an event."""
        (job,) = self.jobs(event_id).values()
        return job

    def finished(self) -> list[str]:
        """The subscribers whose jobs are finished and not dead, ordered by name."""
        states = inboxes.states(self.store, self.payload["id"]).items()
        return sorted(name for name, state in states if state not in UNFINISHED)


def do_not_sync(engine: sa.Engine) -> None:
    """Make commits to a SQLite file faster: they do not wait for the disk."""
    if engine.dialect.name != "sqlite":
        return
    engine.dispose()

    @sa.event.listens_for(engine, "connect")
    def tune(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")


def begin_by_itself(engine: sa.Engine) -> None:
    """Let SQLAlchemy begin SQLite's transactions, as its recipe for savepoints does."""

    @sa.event.listens_for(engine, "connect")
    def leave_it_to_us(connection: Any, record: Any) -> None:
        connection.isolation_level = None

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN")


def send_until_accepted(app: Flask, payload: dict[str, Any]) -> list[int]:
    """Deliver until accepted, as the sender does; return the statuses."""
    statuses: list[int] = []
    deadline = time.monotonic() + 60
    while 200 not in statuses and time.monotonic() < deadline:
        time.sleep(random.uniform(0.01, 0.1) if statuses else 0)
        statuses.append(testing.deliver(app.test_client(), payload).status_code)
    return statuses


def host_url(request: pytest.FixtureRequest, database: str, folder: Path) -> str:
    """The URL of a database for :func:`run_host`.

    :param database: ``sqlite``, for a file in ``folder``, or the name of a server.
    """
    if database == "sqlite":
        return f"sqlite:///{folder / 'host.db'}"
    return str(request.getfixturevalue(f"{database}_url"))


@contextmanager
def run_host(app: Flask, kind: str, url: str, *, create: bool = True) -> Iterator[Host]:
    """Set up ``app`` with a database, a session of ``kind``, and the blueprint.

    :param create: make the tables now and drop them at the end.
    """
    make = {"flask_sqlalchemy": _flask_sqlalchemy, "scoped_session": _scoped_session}
    metadata, session, find_engine, blueprint = make[kind](app, url)
    later: dict[str, Any] = {"deferrable": True, "initially": "DEFERRED"}
    deferred = {} if url.startswith("mysql") else later
    note = sa.Table(
        "note",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("text", sa.String(190), unique=True, nullable=False),
    )
    remark = sa.Table(
        "remark",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("note", sa.ForeignKey(note.c.text, **deferred)),
    )
    app.register_blueprint(blueprint)
    engine = find_engine()
    if create:
        metadata.create_all(engine)
    try:
        yield Host(app, blueprint, session, engine, note, remark)
    finally:
        with app.app_context():
            session.remove()
        engine.dispose()
        if create:
            metadata.drop_all(engine)
            engine.dispose()


Parts = tuple[
    sa.MetaData, "scoped_session[Any]", Callable[[], sa.Engine], ProcoreWebhooks
]


def _flask_sqlalchemy(app: Flask, url: str) -> Parts:
    db = SQLAlchemy()
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    db.init_app(app)

    def find_engine() -> sa.Engine:
        with app.app_context():
            return db.engine

    return db.metadata, db.session, find_engine, ProcoreWebhooks(db=db)


def _scoped_session(app: Flask, url: str) -> Parts:
    engine = sa.create_engine(url)
    session = scoped_session(sessionmaker(engine))
    metadata = sa.MetaData()
    webhooks = ProcoreWebhooks(metadata=metadata, session=session)
    return metadata, session, lambda: engine, webhooks


def check_answers(statuses: list[list[int]], store: Store, event_id: str) -> None:
    """Assert that every copy was accepted in the end, with one run."""
    given = {status for each in statuses for status in each}
    assert all(each[-1] == 200 for each in statuses)
    if store.database.url.get_backend_name() == "sqlite" and 500 in given:
        # On a slow machine a run may time out at the file's write lock.
        return
    assert given <= {200, 503}
    (job,) = inboxes.jobs(store, event_id).values()
    assert job["attempts"] == 1


def deliver_at(host: Host, sent: dict[str, Any], clock: Clock) -> TestResponse:
    timestamp = int(clock.time.timestamp())
    return testing.deliver(host.app.test_client(), sent, timestamp=timestamp)
