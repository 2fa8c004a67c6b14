"""``--json``: one document on standard output, and nothing on standard error."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from flask import Flask
from support.commands import mounted
from support.commands import run
from support.commands import run_apart
from support.commands import send

from flask_procore_webhooks import ProcoreWebhooks

MakeApp = Callable[..., Flask]

REPLAY = "replay evt_1 --anew"
COMMANDS = [
    "check",
    "stats",
    "list",
    "errors",
    "show 1",
    REPLAY,
    "prune",
    "discard 1",
    "journal",
]
APP = """
from flask import Flask
from flask_procore_webhooks import ProcoreWebhooks

app = Flask("host", instance_path={folder!r})
app.config.update({config!r})
app.register_blueprint(ProcoreWebhooks())
"""


@pytest.mark.slow
@pytest.mark.parametrize("secret", [None, "short"])
@pytest.mark.parametrize("command", ["check", "stats", "list"])
def test_warnings_of_the_registration_are_not_printed(
    tmp_path: Path, secret: str | None, command: str
) -> None:
    """Without a handler, Python prints warnings to standard error."""
    config = {"PROCORE_WEBHOOK_SECRET": secret}
    source = APP.format(folder=str(tmp_path), config=config)
    (tmp_path / "host.py").write_text(source)
    flask = [sys.executable, "-m", "flask", "--app", "host", "procore-webhooks"]

    def result(*more: str) -> subprocess.CompletedProcess[str]:
        called = [*flask, command, *more]
        return subprocess.run(called, cwd=tmp_path, capture_output=True, text=True)

    assert "procore_webhooks: " in result().stderr
    silent = result("--json")
    assert silent.stderr == ""
    (report,) = json.loads(silent.stdout).values() if command != "list" else (None,)
    if command == "check":
        assert report["errors" if secret is None else "warnings"]
        logging_finding = str(report["warnings"])
        assert "have no handler" in logging_finding
        assert "is disabled" not in logging_finding


@pytest.mark.parametrize("command", COMMANDS)
def test_what_the_app_prints_and_logs_is_not_printed(
    make_app: MakeApp, command: str
) -> None:
    webhooks = ProcoreWebhooks()
    app = mounted(make_app(), webhooks)

    def chatter() -> None:
        print("hello")
        print("hello", file=sys.stderr)
        app.logger.error("hello")

    app.before_request(chatter)
    send(app, id="evt_1")
    send(app, id="evt_2")
    webhooks.on(name="chatter")(lambda event: chatter())
    silent = run_apart(app, *command.split(), "--json")
    assert silent.exit_code == 0 and silent.stderr == ""
    json.loads(silent.stdout)
    if command in ("check", REPLAY):
        again = run(app, *command.replace("evt_1", "evt_2").split())
        assert "hello" in again.output


def test_errors_are_still_printed(app: Flask) -> None:
    missing = run_apart(app, "show", "nothing", "--json")
    assert missing.exit_code == 1 and missing.stdout == ""
    assert "There is no event 'nothing' in the inbox." in missing.stderr
    both = run_apart(app, "show", "1", "--body", "--json")
    assert both.exit_code == 2 and "remove --json" in both.stderr
