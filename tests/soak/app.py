"""The host app of the soak: each subscriber writes one row for each event.

The table has no unique constraint, so that double effects are visible.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping

import sqlalchemy as sa
from flask import current_app
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks

from .troubles import crash
from .troubles import fork
from .troubles import hang

SECRET = "a secret of the soak"
PATH = "/webhooks/procore"
#: Seconds of a lease: the wait for claims of a killed process.
LEASE = 2.0
#: Seconds: the longest wait between two attempts.
RETRY_CAP = 1.0
#: Seconds of a call of ``hangs``.
TIMEOUT = 1.5
#: Attempts of an event in which ``fickle`` may fail.
FICKLE_ATTEMPTS = 3
#: The subscribers of each event.
SUBSCRIBERS = ("first", "fickle", "last")
#: One more subscriber for the events of these resource types.
TROUBLES = {
    "Daily Logs": "slow",
    "Drawings": "forks",
    "Inspections": "hangs",
    "Observations": "crashes",
}

db = SQLAlchemy()
webhooks = ProcoreWebhooks(db=db)

effect = sa.Table(
    "soak_effect",
    db.metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("event_id", sa.String(80), nullable=False),
    sa.Column("subscriber", sa.String(40), nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
)


def subscribers_for(resource_type: str | None) -> tuple[str, ...]:
    """The names of the subscribers of an event."""
    more = TROUBLES.get(resource_type or "")
    return (*SUBSCRIBERS, more) if more else SUBSCRIBERS


def environment(url: str, *, failures: float = 0.15, **more: str) -> dict[str, str]:
    """The environment variables of the app's processes.

    :param failures: the share of failing runs of the subscriber ``fickle``.
    :param more: further variables, without the prefix ``SOAK_``.
    """
    env = {"SOAK_URL": url, "SOAK_FAILURES": str(failures)}
    return env | {f"SOAK_{name}": value for name, value in more.items()}


def create_app(
    environ: Mapping[str, str] = os.environ, dispatch: str | None = None
) -> Flask:
    app = Flask(__name__)
    url = sa.make_url(environ["SOAK_URL"])
    app.config.update(
        SQLALCHEMY_DATABASE_URI=url,
        SOAK_FAILURES=float(environ["SOAK_FAILURES"]),
        SOAK_MARKS=environ.get("SOAK_MARKS", ""),
        PROCORE_WEBHOOK_SECRET=SECRET,
        PROCORE_WEBHOOK_DISPATCH=dispatch or environ.get("SOAK_DISPATCH", "background"),
        PROCORE_WEBHOOK_LEASE=LEASE,
        PROCORE_WEBHOOK_RETRY_BASE=0.2,
        PROCORE_WEBHOOK_RETRY_CAP=RETRY_CAP,
        # Kills and outages use up attempts too.
        PROCORE_WEBHOOK_MAX_ATTEMPTS=1000,
    )
    if url.get_backend_name() == "sqlite":
        options = {"connect_args": {"timeout": 2}}
        app.config["SQLALCHEMY_ENGINE_OPTIONS"] = options
    db.init_app(app)
    app.register_blueprint(webhooks)
    if environ.get("SOAK_CONNECT"):
        # Before the fork of a server that loads the app first.
        with app.app_context():
            db.session.execute(sa.select(effect.c.id).limit(1))
    return app


@webhooks.on(name="first")
def first(event: Event) -> None:
    write(event, "first")


@webhooks.on(name="fickle")
def fickle(event: Event) -> None:
    write(event, "fickle")
    failures = current_app.config["SOAK_FAILURES"]
    # The seed is part of the id, so runs with one seed fail the same events.
    fails = random.Random(f"{event.id} {event.attempt}").random() < failures
    if fails and event.attempt <= FICKLE_ATTEMPTS:
        raise RuntimeError("this time it fails")


@webhooks.on("Inspections", name="hangs", timeout=TIMEOUT)
def hangs(event: Event) -> None:
    """Hang in the first call; in some events with a lock on the database."""
    hang(event.id, 2 * TIMEOUT, lambda: write(event, "hangs"))


@webhooks.on("Observations", name="crashes")
def crashes(event: Event) -> None:
    """End the process in the first call or the first two."""
    write(event, "crashes")
    crash(event.id)


@webhooks.on("Drawings", name="forks")
def forks(event: Event) -> None:
    write(event, "forks")
    db.session.flush()
    fork(event.id)


@webhooks.on("Daily Logs", name="slow")
def slow(event: Event) -> None:
    time.sleep(0.2)
    write(event, "slow")


@webhooks.on(name="last")
def last(event: Event) -> None:
    write(event, "last")
    time.sleep(random.uniform(0, 0.005))


def write(event: Event, subscriber: str) -> None:
    row = {"event_id": event.id, "subscriber": subscriber, "pid": os.getpid()}
    db.session.execute(sa.insert(effect).values(row))
