"""The commands to set up an app: ``init-db`` and ``secret``."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from support.commands import mounted
from support.commands import run

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.config import read_settings

MakeApp = Callable[..., Flask]


def test_init_db_makes_the_tables_on_every_database(
    make_app: MakeApp, database_url: str
) -> None:
    db = SQLAlchemy()
    app = make_app(SQLALCHEMY_DATABASE_URI=database_url)
    db.init_app(app)
    mounted(app, ProcoreWebhooks(db=db))
    assert "created procore_webhook_event" in run(app, "init-db").output
    assert "all tables exist" in run(app, "init-db").output
    with app.app_context():
        made = sa.inspect(db.engine).get_table_names()
        db.engine.dispose()
    assert set(made) == {
        "procore_webhook_event",
        "procore_webhook_job",
        "procore_webhook_key",
        "procore_webhook_journal",
        "procore_webhook_tally",
        "procore_webhook_state",
    }


def test_generated_secrets_are_strong_distinct_and_valid(app: Flask) -> None:
    made = [run(app, "secret").output.strip() for _ in range(2)]
    assert made[0] != made[1]
    for secret in made:
        config = {"PROCORE_WEBHOOK_SECRET": secret}
        (kept,) = read_settings(config, "PROCORE_WEBHOOK_").secrets
        assert kept == secret.encode() and len(kept) >= 43
