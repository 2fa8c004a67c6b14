"""Running the package's commands in the process of the test."""

from __future__ import annotations

import socket
from contextlib import closing
from pathlib import Path
from typing import Any

from click.testing import Result
from flask import Flask

from flask_procore_webhooks import ProcoreWebhooks


def run(app: Flask, *arguments: object, ok: bool | None = True, **more: Any) -> Result:
    """Run a command; it has to succeed, fail with a sentence, or (``None``) either."""
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
