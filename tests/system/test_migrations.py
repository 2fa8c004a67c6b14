"""A host with Flask-Migrate upgrades the tables of an older package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import old_tables
from support.values import SECRET

APP = f"""
import os
from flask import Flask
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy
from flask_procore_webhooks import ProcoreWebhooks

app = Flask(__name__)
app.config.update(
    PROCORE_WEBHOOK_SECRET={SECRET!r},
    PROCORE_WEBHOOK_DISPATCH="worker",
    SQLALCHEMY_DATABASE_URI=os.environ["URL"],
)
db = SQLAlchemy()
webhooks = ProcoreWebhooks(db=db)
webhooks.on(name="good")(lambda event: None)
app.register_blueprint(webhooks)
db.init_app(app)
Migrate(app, db)
"""


@pytest.mark.slow
def test_flask_db_migrate_upgrades_older_tables_with_rows(
    tmp_path: Path, database_url: str
) -> None:
    old_tables.load(database_url)
    (tmp_path / "app.py").write_text(APP)

    def flask(*arguments: str, code: int = 0) -> str:
        ran = subprocess.run(
            [sys.executable, "-m", "flask", "--app", "app", *arguments],
            cwd=tmp_path,
            env={**os.environ, "URL": database_url},
            capture_output=True,
            text=True,
        )
        assert ran.returncode == code, ran.stdout + ran.stderr
        return ran.stdout + ran.stderr

    shown = flask("procore-webhooks", "check", code=1)
    assert "flask db migrate, flask db upgrade" in shown
    flask("db", "init")
    flask("db", "migrate")
    (script,) = (tmp_path / "migrations" / "versions").glob("*.py")
    upgrade = script.read_text().partition("def upgrade()")[2]
    upgrade = upgrade.partition("def downgrade()")[0]
    assert upgrade.count("op.") + upgrade.count("batch_op.") >= 3
    assert "drop" not in upgrade and "alter_column" not in upgrade
    flask("db", "upgrade")
    assert "No changes in schema detected" in flask("db", "migrate")
    assert "all tables exist" in flask("procore-webhooks", "init-db")
    assert "tables present" in flask("procore-webhooks", "check")
    assert "Ended after 2 runs" in flask("procore-webhooks", "worker", "--once")
    events = json.loads(flask("procore-webhooks", "list", "--json"))
    assert len(events) == len(old_tables.EVENTS)
