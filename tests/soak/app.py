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

SECRET = "a secret of the soak"
PATH = "/webhooks/procore"
#: Seconds of a lease: the wait for claims of a killed process.
LEASE = 2.0
SUBSCRIBERS = ("first", "fickle", "last")

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


def environment(url: str, *, failures: float = 0.15) -> dict[str, str]:
    """The environment variables of the app's processes.

    :param failures: the share of failing runs of the subscriber ``fickle``.
    """
    return {"SOAK_URL": url, "SOAK_FAILURES": str(failures)}


def create_app(
    environ: Mapping[str, str] = os.environ, dispatch: str = "background"
) -> Flask:
    app = Flask(__name__)
    url = sa.make_url(environ["SOAK_URL"])
    app.config.update(
        SQLALCHEMY_DATABASE_URI=url,
        SOAK_FAILURES=float(environ["SOAK_FAILURES"]),
        PROCORE_WEBHOOK_SECRET=SECRET,
        PROCORE_WEBHOOK_DISPATCH=dispatch,
        PROCORE_WEBHOOK_LEASE=LEASE,
        PROCORE_WEBHOOK_RETRY_BASE=0.2,
        PROCORE_WEBHOOK_RETRY_CAP=1.0,
        # Kills and outages use up attempts too.
        PROCORE_WEBHOOK_MAX_ATTEMPTS=1000,
    )
    if url.get_backend_name() == "sqlite":
        options = {"connect_args": {"timeout": 2}}
        app.config["SQLALCHEMY_ENGINE_OPTIONS"] = options
    db.init_app(app)
    app.register_blueprint(webhooks)
    return app


@webhooks.on(name="first")
def first(event: Event) -> None:
    write(event, "first")


@webhooks.on(name="fickle")
def fickle(event: Event) -> None:
    write(event, "fickle")
    failures = current_app.config["SOAK_FAILURES"]
    # The seed is part of the id, so runs with one seed fail the same events.
    if random.Random(f"{event.id} {event.attempt}").random() < failures:
        raise RuntimeError("this time it fails")


@webhooks.on(name="last")
def last(event: Event) -> None:
    write(event, "last")
    time.sleep(random.uniform(0, 0.005))


def write(event: Event, subscriber: str) -> None:
    row = {"event_id": event.id, "subscriber": subscriber, "pid": os.getpid()}
    db.session.execute(sa.insert(effect).values(row))
