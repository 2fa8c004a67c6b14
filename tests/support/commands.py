"""Running the package's commands in the process of the test."""

from __future__ import annotations

import getpass
import inspect
import json
import socket
from contextlib import closing
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from click.testing import Result
from flask import Flask
from flask.testing import FlaskCliRunner

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import payload
from support.sites import Site

ME = f"{getpass.getuser()}@{socket.gethostname()}"


def run(app: Flask, *arguments: object, ok: bool | None = True, **more: Any) -> Result:
    """Run a command; assert that it succeeds, or fails with a sentence."""
    args = ["procore-webhooks", *map(str, arguments)]
    result = app.test_cli_runner().invoke(args=args, **more)
    assert result.exception is None or isinstance(result.exception, SystemExit), result
    assert ok is None or (result.exit_code == 0) is ok, result.output
    return result


def mounted(app: Flask, *blueprints: ProcoreWebhooks) -> Flask:
    for blueprint in blueprints or [ProcoreWebhooks()]:
        app.register_blueprint(blueprint)
    return app


def down(kind: str, tmp_path: Path) -> str:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    return {
        "postgresql": f"postgresql+psycopg://me:hunter2@127.0.0.1:{port}/x",
        "mariadb": f"mysql+pymysql://me:hunter2@127.0.0.1:{port}/x",
        "sqlite": f"sqlite:///{tmp_path}/file/x.db",
        "no driver": "nosuch://x",
    }[kind]


def run_apart(app: Flask, *command: object) -> Any:
    """Run a command with separate standard output and standard error."""
    # Click before 8.2 needs an option for it, which later versions lack.
    older = "mix_stderr" in inspect.signature(CliRunner).parameters
    runner = FlaskCliRunner(app, **({"mix_stderr": False} if older else {}))
    return runner.invoke(args=["procore-webhooks", *map(str, command)])


def stdout_of(app: Flask, *command: object) -> str:
    """The standard output, without progress messages of a slow command."""
    result = run_apart(app, *command)
    assert result.exit_code == 0, result.stderr
    return str(result.stdout)


def lines_of(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def listed(site: Site, *arguments: object) -> list[str]:
    """The event ids that ``list`` shows, oldest first."""
    rows = json.loads(run(site.app, "list", *arguments, "--json").output)
    return [row["event_id"] for row in reversed(rows)]


def send(app: Flask, type: str = "RFIs.update", **fields: Any) -> str:
    made = payload(type, **fields)
    deliver(app.test_client(), made)
    return str(made["id"])
