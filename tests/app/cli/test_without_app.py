"""``python -m flask_procore_webhooks``: commands without an app."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from flask import Flask
from support.commands import mounted
from support.commands import run
from support.receivers import hmac_sha256
from support.receivers import Receiver
from support.values import SECRET

from flask_procore_webhooks.__main__ import main
from flask_procore_webhooks.testing import PROCORE
from flask_procore_webhooks.testing import PRUDRA
from flask_procore_webhooks.testing import sign

BODY = b'{"id": "evt_1", "type": "RFIs.update"}'


def alone(*arguments: object, ok: bool = True, **more: Any) -> str:
    """The output of a command without an app; assert that it succeeds or fails."""
    result = CliRunner().invoke(main, list(map(str, arguments)), **more)
    assert result.exception is None or isinstance(result.exception, SystemExit), result
    assert (result.exit_code == 0) is ok, result.output
    return result.output


@pytest.fixture
def body(tmp_path: Path) -> Path:
    file = tmp_path / "body.json"
    file.write_bytes(BODY)
    return file


def lines(headers: dict[str, str]) -> list[str]:
    return [part for name in headers for part in ("-H", f"{name}: {headers[name]}")]


def test_the_module_runs_where_there_is_no_app(tmp_path: Path, body: Path) -> None:
    def module(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "flask_procore_webhooks", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, **env},
            capture_output=True,
            text=True,
        )

    # A module that flask would import, and that fails.
    (tmp_path / "app.py").write_text("raise RuntimeError('imported')")
    assert len(module("secret").stdout.strip()) == 43
    refused = module("verify", body)
    assert refused.returncode == 2
    assert "There is no app here to take a secret from: give --secret" in refused.stderr
    headers = lines(sign(BODY, SECRET))
    judged = module("verify", body, *headers, PROCORE_WEBHOOK_SECRET=SECRET)
    assert (judged.returncode, judged.stderr) == (0, "")
    assert "procore: authentic" in judged.stdout
    assert "python -m flask_procore_webhooks" in module("--help").stdout


@pytest.mark.parametrize("missing", ["check", "list", "worker"])
def test_commands_that_need_an_app_are_not_there(missing: str) -> None:
    assert f"No such command '{missing}'" in alone(missing, ok=False)


def test_trigger_signs_with_the_given_secret(receiver: Receiver) -> None:
    alone("trigger", "RFIs.update", "--url", receiver.url, "--secret", "mine")
    alone("trigger", "a.b", "--url", receiver.url, "--authorization", "Bearer x")
    prudra = ["--format", "prudra", "--secret", "theirs"]
    alone("trigger", "payment.received", "--url", receiver.url, *prudra)
    signed, authorized, of_prudra = receiver.got
    expected = hmac_sha256("mine", signed, "Procore")
    assert signed.headers["X-Procore-Signature"] == expected
    assert authorized.headers["Authorization"] == "Bearer x"
    assert authorized.headers.get("X-Procore-Signature") is None
    assert "X-Prudra-Signature" in of_prudra.headers


@pytest.mark.parametrize(
    ("env", "secret"),
    [
        ({"PROCORE_WEBHOOK_SECRET": "of the app"}, "of the app"),
        ({"PROCORE_WEBHOOK_TRIGGER_SECRET": "of theirs"}, "of theirs"),
        (
            {"PROCORE_WEBHOOK_SECRET": "of the app"}
            | {"PROCORE_WEBHOOK_TRIGGER_SECRET": "of theirs"},
            "of theirs",
        ),
    ],
)
def test_trigger_reads_the_environment(
    receiver: Receiver, env: dict[str, str], secret: str
) -> None:
    alone("trigger", "RFIs.update", "--url", receiver.url, env=env)
    (got,) = receiver.got
    assert got.headers["X-Procore-Signature"] == hmac_sha256(secret, got, "Procore")


@pytest.mark.parametrize("status", [401, 404, 405])
def test_trigger_reports_a_refusal(receiver: Receiver, status: int) -> None:
    receiver.status = status
    shown = alone("trigger", "a.b", "--url", receiver.url, "--secret", "x", ok=False)
    assert f"{status}  " in shown and "not delivered" in shown
    assert "this app would receive" not in shown


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["trigger", "a.b", "--url", "http://127.0.0.1:1/"], "give --secret or"),
        (["trigger", "a.b", "--url", "http://127.0.0.1:1/", "--secret", " "], "empty"),
        (["verify", os.devnull, "--secret", "x", "--endpoint", "y"], "leave out"),
        (["verify", os.devnull, "--secret", "x", "--tolerance", "0"], "--tolerance"),
    ],
)
def test_what_is_missing_is_said(arguments: list[str], problem: str) -> None:
    shown = alone(*arguments, ok=False)
    assert "Error: " in shown and problem in shown


@pytest.mark.parametrize(
    "name", ["PROCORE_WEBHOOK_SECRET", "PROCORE_WEBHOOK_AUTHORIZATION"]
)
@pytest.mark.parametrize("value", [" ", "s3cret\n"])
def test_malformed_value_of_the_environment_is_named(name: str, value: str) -> None:
    shown = alone("verify", os.devnull, ok=False, env={name: value})
    assert f"Error: {name} in the environment is empty, or with control" in shown
    assert "s3cret" not in shown


@pytest.mark.parametrize("source", [PROCORE, PRUDRA], ids=lambda source: source.name)
def test_verify_judges_by_the_headers(body: Path, source: Any) -> None:
    headers = lines(sign(BODY, "mine", source=source))
    shown = alone("verify", body, *headers, "--secret", "mine")
    assert f"{source.name}: authentic" in shown
    assert f"{source.name}: 401, " in alone(
        "verify", body, *headers, "--secret", "other", ok=False
    )


def test_verify_compares_the_authorization_and_the_time(body: Path) -> None:
    given = ["-H", "Authorization: Bearer x"]
    shown = alone("verify", body, *given, "--authorization", "Bearer x")
    assert "authentic" in shown and "evt_1" in shown
    alone("verify", body, *given, "--authorization", "Bearer y", ok=False)
    old = [*lines(sign(BODY, "mine", timestamp=1700000000)), "--at", "1700000400"]
    alone("verify", body, *old, "--secret", "mine", ok=False)
    alone("verify", body, *old, "--secret", "mine", "--tolerance", "400")


def test_verify_shows_a_quarantined_body(tmp_path: Path) -> None:
    file = tmp_path / "body"
    file.write_bytes(b"[]")
    shown = alone("verify", file, *lines(sign(b"[]", "mine")), "--secret", "mine")
    assert "quarantined: the JSON is not an object" in shown


def test_verify_of_an_app_takes_other_credentials(app: Flask, body: Path) -> None:
    mounted_app, headers = app, lines(sign(BODY, "theirs", timestamp=1700000000))
    at = ["--at", "1700000500"]
    run(mounted_app, "verify", body, *headers, *at, ok=False)
    run(mounted_app, "verify", body, *headers, *at, "--secret", "theirs", ok=False)
    more = ["--secret", "theirs", "--tolerance", "500"]
    shown = run(mounted_app, "verify", body, *headers, *at, *more).output
    assert "procore_webhooks: authentic" in shown


def test_the_environment_of_the_app_replaces_nothing(
    tenants: Flask, body: Path
) -> None:
    """Where there is an app, its configuration counts."""
    env = {"PROCORE_WEBHOOK_SECRET": "acme"}
    bolt = lines(sign(BODY, "bolt"))
    assert "bolt: authentic" in run(tenants, "verify", body, *bolt, env=env).output


def test_secret_needs_no_app_context(make_app: Callable[..., Flask]) -> None:
    app = mounted(make_app())
    app.teardown_appcontext(lambda error: pytest.fail("an app context was pushed"))
    assert len(run(app, "secret").output.strip()) == 43
