"""Modules loaded by an import of the package and of its pytest plug-in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from support.processes import environment
from support.values import SECRET

from flask_procore_webhooks.cli import COMMANDS


def modules_after(script: str, folder: Path, *, shows: str = "") -> set[str]:
    """The modules that Python has imported after running ``script``.

    :param shows: part of the output of the script.
    """
    show = "import json, sys; print(json.dumps(sorted(sys.modules)))"
    ended = run(folder, "-c", f"{script}\n{show}")
    assert ended.returncode == 0, ended.stderr
    assert shows in ended.stdout
    return set(json.loads(ended.stdout.splitlines()[-1]))


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_package_imports_no_dialect_and_no_command(tmp_path: Path) -> None:
    found = modules_after("import flask_procore_webhooks", tmp_path)
    dialects = {name for name in found if name.startswith("sqlalchemy.dialects.")}
    commands = {n for n in found if n.startswith("flask_procore_webhooks.cli.")}
    assert dialects == commands == set()
    assert found.isdisjoint({"celery", "kombu", "psycopg", "pytest", "requests"})


APP = f"""
from flask import Flask
from flask_procore_webhooks import ProcoreWebhooks

app = Flask(__name__)
app.config["PROCORE_WEBHOOK_SECRET"] = {SECRET!r}
app.config["PROCORE_WEBHOOK_DATABASE_URI"] = "sqlite:///webhooks.db"
app.config["PROCORE_WEBHOOK_DISPATCH"] = "worker"
app.register_blueprint(ProcoreWebhooks())
"""
DELIVERY = """
from flask_procore_webhooks.testing import deliver, payload
answer = deliver(app.test_client(), payload("RFIs.update"), endpoint="procore_webhooks")
assert answer.status_code == 200
"""


def test_registration_and_deliveries_import_no_command_and_no_driver(
    tmp_path: Path,
) -> None:
    """SQLAlchemy itself imports the dialects that the options of indexes name."""
    found = modules_after(APP + DELIVERY, tmp_path)
    commands = {n for n in found if n.startswith("flask_procore_webhooks.cli.")}
    assert commands == set()
    drivers = {"psycopg", "psycopg2", "pymysql", "MySQLdb"}
    assert found.isdisjoint(drivers | {"celery", "kombu", "pytest", "requests"})


def test_help_of_flask_imports_no_command(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    script = """
from flask.cli import cli
try:
    cli.main(["--app", "app", "--help"])
except SystemExit as ended:
    assert ended.code == 0
"""
    found = modules_after(script, tmp_path, shows="Inspect and operate the webhooks")
    commands = {n for n in found if n.startswith("flask_procore_webhooks.cli.")}
    assert commands == set()


def test_help_of_the_group_lists_every_command(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    words = ["-m", "flask", "--app", "app", "procore-webhooks", "--help"]
    ended = run(tmp_path, *words)
    listed = {line.split()[0] for line in ended.stdout.splitlines() if line.strip()}
    assert {*COMMANDS} <= listed


def test_collecting_an_unrelated_project_imports_nothing_of_ours(
    tmp_path: Path,
) -> None:
    (tmp_path / "test_nothing.py").write_text("def test_nothing(): pass")
    script = "import pytest; assert pytest.main(['--co', '-q']) == 0"
    found = modules_after(script, tmp_path, shows="1 test collected")
    assert "pytest_flask_procore_webhooks" in found
    assert found.isdisjoint({"flask_procore_webhooks", "flask", "sqlalchemy"})


def test_pytest_imports_the_package_only_for_the_fixture(tmp_path: Path) -> None:
    (tmp_path / "test_nothing.py").write_text("def test_nothing(): pass")
    script = "import pytest; assert pytest.main(['-q', '-p', 'no:cacheprovider']) == 0"
    found = modules_after(script, tmp_path)
    assert "pytest_flask_procore_webhooks" in found
    assert {name for name in found if name.startswith("flask_procore")} == set()
    assert "sqlalchemy" not in found
