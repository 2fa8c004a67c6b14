"""Every code block of the README, as a reader would use it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support.servers import serve
from support.waiting import wait_until

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


EXAMPLE_ID = "01HYPOTHETICALEVENT"


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^ *```{language}\n(.*?)```", README, re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for block in found]


def test_the_first_commands_are_targets_of_the_makefile() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    commands = blocks("sh")[0].split("\n")[:-1]
    assert commands == ["make demo", "make test"]
    assert {"demo", "test"} <= set(targets)


def test_ten_lines_receive_a_delivery(tmp_path: Path) -> None:
    """The app.py of the README under the server, and the commands, of the README."""
    (tmp_path / "app.py").write_text(blocks("python")[0])
    make_secret, start, *commands = blocks("sh")[1].splitlines()
    assert start.startswith("flask run &")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    made = shell(f"{make_secret}; echo $PROCORE_WEBHOOK_SECRET", tmp_path, path)
    env = {"PROCORE_WEBHOOK_SECRET": made.stdout.strip(), "PYTHONUNBUFFERED": "1"}
    assert len(env["PROCORE_WEBHOOK_SECRET"]) > 30
    with serve("app", server="flask", folder=tmp_path, env=env) as server:
        script = "; ".join(commands).replace(":5000", f":{server.port}")
        shown = shell(script, tmp_path, path, env).stdout
    assert "200" in shown and '{"received": true}' in shown
    assert "RFIs.update" in shown and "done" in shown
    assert "RFI 4001 of project 3001 changed" in server.output()


FAILING_APP = """
import os

from flask import Flask
from flask_procore_webhooks import ProcoreWebhooks

webhooks = ProcoreWebhooks()
app = Flask(__name__)
app.config["PROCORE_WEBHOOK_SECRET"] = "a secret of the README"
app.config["PROCORE_WEBHOOK_MAX_ATTEMPTS"] = 1
app.register_blueprint(webhooks)


@webhooks.on("RFIs", "update")
def fail(event):
    if not os.path.exists("mended"):
        raise ConnectionError("Procore does not answer")
"""


def test_a_failed_event_is_found_understood_and_run_again(tmp_path: Path) -> None:
    """By the commands of the README alone, and with the worker of the README."""
    (tmp_path / "app.py").write_text(FAILING_APP)
    (worker,), (find, show, replay) = (blocks("sh")[i].splitlines() for i in (2, 3))
    assert worker.startswith("flask --app app procore-webhooks worker ")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with serve("app", server="flask", folder=tmp_path) as server:
        url = f"{server.url}/webhooks/procore"
        shell(f"flask procore-webhooks trigger RFIs.update --url {url}", tmp_path, path)
        # The app's thread is not ended in the middle of its run.
        wait_until(lambda: "fail failed for" in server.output())
        wait_until(lambda: "dead" in shell(find, tmp_path, path).stdout)
    shell(f"{worker} --once", tmp_path, path)
    (event_id,) = re.findall(r"evt_\w+", shell(find, tmp_path, path).stdout)
    show, replay = (line.replace(EXAMPLE_ID, event_id) for line in (show, replay))
    assert (
        "fail: ConnectionError: Procore does not" in shell(show, tmp_path, path).stdout
    )
    (tmp_path / "mended").touch()
    assert "replayed 1" in shell(replay, tmp_path, path).stdout
    shell(f"{worker} --once", tmp_path, path)
    shown = shell(show, tmp_path, path).stdout
    assert re.search(r"^status +done$", shown, re.MULTILINE)
    assert re.search(r"^replay .* by ", shown, re.MULTILINE)


def test_the_python_blocks_run_and_the_test_in_them_passes(tmp_path: Path) -> None:
    (tmp_path / "test_blocks.py").write_text("\n\n".join(blocks("python")))
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "test_blocks.py"]
    ran = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "1 passed" in ran.stdout


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


def test_every_setting_is_in_the_table() -> None:
    from flask_procore_webhooks.config import KEYS

    table = README[README.index("## Configuration") : README.index("## Answers")]
    assert set(re.findall(r"`([A-Z_]+)`", table)) == {*KEYS, "SQLALCHEMY_DATABASE_URI"}


def test_every_command_is_named() -> None:
    from flask_procore_webhooks.cli import COMMANDS

    section = README[README.index("## Commands") : README.index("## Testing your app")]
    assert {str(command.name) for command in COMMANDS} <= set(
        re.findall(r"`([a-z-]+)`", section)
    )


def shell(
    script: str, folder: Path, path: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    full = {**environment(), **(env or {}), "PATH": path}
    return subprocess.run(
        ["bash", "-ec", script],
        cwd=folder,
        env=full,
        capture_output=True,
        text=True,
        check=True,
    )


def environment() -> dict[str, str]:
    """Ours, without what would lead the commands to another app."""
    return {k: v for k, v in os.environ.items() if not k.startswith("FLASK_")}
