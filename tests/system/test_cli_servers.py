"""The command ``trigger`` against a running app, and commands in a shell."""

from __future__ import annotations

import re
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from support.commands import run
from support.receivers import Receiver
from support.receivers import receiving
from support.servers import serve
from support.servers import Server
from support.values import SECRET


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("running")
    (folder / "app.py").write_text(
        f"""
from flask import Flask
from flask_procore_webhooks import ProcoreWebhooks

app = Flask(__name__)
app.config["PROCORE_WEBHOOK_SECRET"] = {SECRET!r}
app.config["PROCORE_WEBHOOK_DISPATCH"] = "inline"
webhooks = ProcoreWebhooks()
app.register_blueprint(webhooks)

@webhooks.on("Broken")
def fail(event):
    raise RuntimeError("boom")
"""
    )
    with serve("app:app", folder=folder) as server:
        yield server


@pytest.mark.parametrize(
    ("arguments", "answer", "reason"),
    [
        ("RFIs.update", '200 {"received": true}', ""),
        ("RFIs.update --format v2", '200 {"received": true}', ""),
        ("RFIs.update --format v4", '200 {"received": true}', ""),
        ("Broken.create", '500 {"error": "Processing failed"}', "a subscriber failed"),
        (
            "x --secret forged",
            '401 {"error": "Invalid signature"}',
            "no secret matches",
        ),
        ("x --timestamp -400", '401 {"error": "Invalid signature"}', "too old"),
        ("x --timestamp +400", '401 {"error": "Invalid signature"}', "too new"),
        ("x --timestamp 1700000000000", '401 {"error"', "in milliseconds"),
        ("x --format prudra", '401 {"error"', "X-Procore-Signature is missing"),
        ("x -H X-Procore-Timestamp:", '401 {"error"', "Timestamp is missing"),
    ],
)
def test_trigger_prints_the_answers_of_a_running_app(
    app: Flask, running: Server, arguments: str, answer: str, reason: str
) -> None:
    url = f"{running.url}/webhooks/procore"
    command = ["trigger", *arguments.split(), "--url", url]
    shown = run(app, *command, ok=answer.startswith("200")).output
    assert re.sub(r"  \d+ ms  ", " ", shown).startswith(answer)
    assert reason in running.output()


def test_copies_are_duplicates_and_a_text_is_quarantined(
    app: Flask, running: Server
) -> None:
    url = f"{running.url}/webhooks/procore"
    shown = run(app, "trigger", "a.b", "--repeat", 2, "--url", url).output
    assert "duplicate" not in shown.splitlines()[0]
    assert '"duplicate": true' in shown.splitlines()[1]
    shown = run(app, "trigger", "--file", "-", "--url", url, input=b"text").output
    assert '"quarantined": true' in shown


def test_answer_404_names_the_mounted_path(app: Flask, running: Server) -> None:
    url = f"{running.url}/webhook/procore"
    shown = run(app, "trigger", "a.b", "--url", url, ok=False).output
    assert shown.startswith("404")
    assert "this app would receive at /webhooks/procore" in shown


def test_commands_work_from_a_shell(tmp_path: Path) -> None:
    """Commands run in a shell: its environment, pipes, and no logging setup."""
    (tmp_path / "app.py").write_text(
        f"""
from flask import Flask
from flask_procore_webhooks import ProcoreWebhooks

def create_app():
    app = Flask(__name__)
    app.config["PROCORE_WEBHOOK_SECRET"] = {SECRET!r}
    app.register_blueprint(ProcoreWebhooks())
    return app
"""
    )
    flask = [sys.executable, "-m", "flask", "--app", "app", "procore-webhooks"]

    def shell(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*flask, *arguments], cwd=tmp_path, capture_output=True, text=True
        )

    checked = shell("check")
    assert checked.returncode == 0 and "Deliveries can come in." in checked.stdout
    assert checked.stderr == "", "the probe stays out of the log"
    refused = shell("trigger", "a.b", "--url", "http://127.0.0.1:1/")
    assert refused.returncode == 1
    assert refused.stdout.startswith("---") and "Traceback" not in refused.stderr
    assert shell("list").stdout == "No events.\n"


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate for localhost, with its key in the same file."""
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl to make a certificate")
    file = tmp_path / "localhost.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -days 2"
    name = ["-addext", "subjectAltName=DNS:localhost"]
    made = subprocess.run(
        [*command.split(), *name, "-keyout", "-", "-out", "-"],
        capture_output=True,
        check=True,
    )
    file.write_bytes(made.stdout)
    return file


def test_https_needs_a_trusted_certificate(
    app: Flask, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    with receiving(Receiver(body=b"safe"), tls) as receiver:
        trigger = ["trigger", "a.b", "--url", receiver.url]
        assert "self-signed certificate" in run(app, *trigger, ok=False).output.replace(
            "self signed", "self-signed"
        )
        assert not receiver.got
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert "safe" in run(app, *trigger).output
        receiver.answer = lambda handler: time.sleep(2)
        shown = run(app, *trigger, "--timeout", 0.4, ok=False).output
        assert "not complete within 0.4 s" in shown
