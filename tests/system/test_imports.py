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


API = """
app.config.update(
    PROCORE_WEBHOOK_AUTHORIZATION="Bearer 9f3b1c6e0a7d4f5c8b2e",
    PROCORE_WEBHOOK_URL="https://app.example.com/webhooks/procore",
    PROCORE_WEBHOOK_API_CLIENT_ID="id",
    PROCORE_WEBHOOK_API_CLIENT_SECRET="a client secret",
    PROCORE_WEBHOOK_NAMESPACE="tracker",
    PROCORE_WEBHOOK_SCOPES=[{"company": "1"}],
)
"""
#: ``requests`` cannot be imported, as without the extra.
WITHOUT = "import sys; sys.modules['requests'] = None\n"


def test_configured_api_is_imported_by_its_use_only(tmp_path: Path) -> None:
    begin, register = APP.rsplit("app.register", 1)
    script = f"{begin}{API}app.register{register}{DELIVERY}"
    found = modules_after(script, tmp_path)
    unused = {f"flask_procore_webhooks.{name}" for name in ("api", "hooks")}
    assert found.isdisjoint({"requests", *unused})


def test_commands_without_the_extra_say_what_to_install(tmp_path: Path) -> None:
    begin, register = APP.rsplit("app.register", 1)
    (tmp_path / "app.py").write_text(f"{WITHOUT}{begin}{API}app.register{register}")
    command = ["-m", "flask", "--app", "app", "procore-webhooks"]
    assert run(tmp_path, *command, "init-db").returncode == 0
    text = "pip install 'flask-procore-webhooks[procore]'"
    for words in (
        ["hooks", "plan"],
        ["hooks", "apply", "--yes"],
        ["hooks", "list"],
        ["hooks", "pause", "--yes"],
        ["reconcile"],
    ):
        ended = run(tmp_path, *command, *words)
        assert (ended.returncode, ended.stdout) == (1, "")
        assert (
            ended.stderr
            == f"Error: flask_procore_webhooks.api needs requests: {text}\n"
        )
    for words in (["hooks", "--help"], ["reconcile", "--silent-for", "6h"], ["stats"]):
        assert run(tmp_path, *command, *words).returncode == 0
    checked = run(tmp_path, *command, "check").stdout
    assert text in " ".join(checked.split())


def test_everything_else_runs_without_the_extra(tmp_path: Path) -> None:
    script = """
from flask_procore_webhooks.testing import FakeProcore
assert FakeProcore().test_client().get("/rest/v1.0/me").status_code == 401
with app.app_context():
    app.blueprints["procore_webhooks"].enqueue("RFIs.update", id="a")
    try:
        app.blueprints["procore_webhooks"].api()
    except ImportError as error:
        assert "flask-procore-webhooks[procore]" in str(error)
    else:
        raise AssertionError
"""
    modules_after(WITHOUT + APP + DELIVERY + script, tmp_path)


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
