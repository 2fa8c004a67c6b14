"""A host with Flask-Migrate upgrades the tables of an older package."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import old_tables
from support.values import SECRET

ROOT = Path(__file__).parents[2]

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


@pytest.mark.seldom("sqlite-2", "postgresql-1", "mariadb-1")
@pytest.mark.slow
@pytest.mark.parametrize("schema", [1, 2])
def test_migration_that_calls_carry_over_upgrades_older_tables_with_rows(
    tmp_path: Path, database_url: str, schema: int
) -> None:
    """The migration is that of docs/production.md."""
    old_tables.load(database_url, schema=schema)
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
    assert "with one that calls carry_over" in shown
    flask("db", "init")
    flask("db", "revision", "-m", "jobs of webhooks")
    (script,) = (tmp_path / "migrations" / "versions").glob("*.py")
    imports, body = migration_of_the_docs()
    generated = script.read_text().replace("from alembic import op", imports)
    made = re.sub(r"def upgrade\(\):\n.*?\n\n", body, generated, flags=re.DOTALL)
    assert made != generated
    script.write_text(made)
    flask("db", "upgrade")
    assert "No changes in schema detected" in flask("db", "migrate")
    assert "all tables exist" in flask("procore-webhooks", "init-db")
    assert "tables present" in flask("procore-webhooks", "check")
    if schema == 1:
        ran = flask("procore-webhooks", "worker", "--once")
        assert "Ended after 2 runs" in ran
        events = json.loads(flask("procore-webhooks", "list", "--json"))
        assert len(events) == len(old_tables.EVENTS)


def migration_of_the_docs() -> tuple[str, str]:
    """The import lines and the function of the migration in the docs."""
    page = (ROOT / "docs" / "production.md").read_text()
    (code,) = re.findall(r"```python\n(.*?carry_over\(.*?)```", page, re.DOTALL)
    imports, _, function = code.partition("\n\n\n")
    return imports, f"{function.rstrip()}\n\n"
