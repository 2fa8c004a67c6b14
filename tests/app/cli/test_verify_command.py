"""The command ``verify``: its verdict on a captured request."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from flask import Flask
from support.commands import mounted
from support.commands import run
from support.values import SECRET

from flask_procore_webhooks.testing import PRUDRA
from flask_procore_webhooks.testing import sign

MakeApp = Callable[..., Flask]


def captured(
    tmp_path: Path, body: bytes = b'{"id": "1", "type": "RFIs.update"}'
) -> Path:
    file = tmp_path / "body"
    file.write_bytes(body)
    return file


def lines(headers: dict[str, str]) -> list[str]:
    return [part for name in headers for part in ("-H", f"{name}: {headers[name]}")]


def test_verify_shows_the_event_of_an_authentic_request(
    app: Flask, tmp_path: Path
) -> None:
    file = captured(tmp_path)
    shown = run(app, "verify", file, *lines(sign(file.read_bytes(), SECRET))).output
    assert "procore_webhooks: authentic" in shown
    assert re.search(r"type +RFIs\.update\n", shown)
    assert re.search(r"id +1\n", shown)


@pytest.mark.parametrize(
    ("timestamp", "at", "reason"),
    [
        (1700000000, "1700000412", "clock differs by 412 s (timestamp too old"),
        (1700000000, "1699999000", "clock differs by 1000 s (timestamp too new"),
        (1700000000, "2023-11-14T22:23:20Z", "clock differs by 600 s"),
        (1700000000000, "1700000000", "timestamp is in milliseconds"),
        ("soon", "1700000000", "X-Procore-Timestamp is not in Unix seconds"),
    ],
)
def test_verify_explains_a_refused_timestamp(
    app: Flask, tmp_path: Path, timestamp: int | str, at: str, reason: str
) -> None:
    file = captured(tmp_path)
    headers = lines(sign(file.read_bytes(), SECRET, timestamp=timestamp))
    shown = run(app, "verify", file, *headers, "--at", at, ok=False).output
    assert f"procore_webhooks: 401, {reason}" in shown


def test_verify_distinguishes_an_old_capture_from_a_wrong_secret(
    app: Flask, tmp_path: Path
) -> None:
    file = captured(tmp_path)
    old = lines(sign(file.read_bytes(), SECRET, timestamp=1700000000))
    shown = run(app, "verify", file, *old, ok=False).output
    assert "It was authentic when it was signed; --at says" in shown
    run(app, "verify", file, *old, "--at", 1700000000.9)
    wrong = lines(sign(file.read_bytes(), "wrong", timestamp=1700000000))
    shown = run(app, "verify", file, *wrong, ok=False).output
    assert "no secret matches" in shown and "authentic" not in shown


@pytest.mark.parametrize(
    ("sent", "saved", "hint"),
    [
        (b"{}", b"{}\n", "without the line break"),
        (b"{}", b"{}\r\n", "without the line break"),
        (b"{}\n", b"{}", "with a line break"),
    ],
)
def test_verify_detects_a_line_break_added_by_an_editor(
    app: Flask, tmp_path: Path, sent: bytes, saved: bytes, hint: str
) -> None:
    headers = lines(sign(sent, SECRET))
    shown = run(app, "verify", captured(tmp_path, saved), *headers, ok=False).output
    assert "no secret matches" in shown and hint in shown


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ([], "X-Procore-Signature is missing"),
        (["-H", "X-Procore-Signature: abc"], "is not one SHA-256 in hex"),
        (["-H", "x-procore-signature:" + "0" * 64], "X-Procore-Timestamp is missing"),
    ],
)
def test_verify_names_the_refused_header(
    app: Flask, tmp_path: Path, more: list[str], reason: str
) -> None:
    assert reason in run(app, "verify", captured(tmp_path), *more, ok=False).output


def test_verify_joins_repeated_headers_as_servers_do(
    app: Flask, tmp_path: Path
) -> None:
    """The joined value fails as at the server; the first value alone would pass."""
    file = captured(tmp_path)
    once = lines(sign(file.read_bytes(), SECRET))
    shown = run(app, "verify", file, *once, *once, ok=False).output
    assert "X-Procore-Signature is not one SHA-256 in hex" in shown


def test_verify_reads_headers_from_a_raw_request_file(
    app: Flask, tmp_path: Path
) -> None:
    file, headers = captured(tmp_path), tmp_path / "headers"
    signed = sign(file.read_bytes(), SECRET)
    raw = ["POST /webhooks/procore HTTP/1.1", "Host: a:1", "X-Other: fünf", ""]
    raw += [f"{name.lower()}:{value}  " for name, value in signed.items()]
    headers.write_bytes("\r\n".join(raw).encode("latin-1"))
    run(app, "verify", file, "--headers", headers)
    body = file.read_bytes()
    run(app, "verify", "-", "--headers", headers, input=body)


def test_verify_compares_the_whole_authorization(
    make_app: MakeApp, tmp_path: Path
) -> None:
    value = "Bearer näive ☃"
    app = make_app(PROCORE_WEBHOOK_SECRET=None, PROCORE_WEBHOOK_AUTHORIZATION=value)
    file = captured(tmp_path)
    run(mounted(app), "verify", file, "-H", f"Authorization: {value}")
    wrong = ["-H", f"Authorization: {value.removeprefix('Bearer ')}"]
    shown = run(app, "verify", file, *wrong, ok=False).output
    assert "Authorization is none of the configured values" in shown
    assert "näive" not in shown


def test_verify_applies_the_size_limit(make_app: MakeApp, tmp_path: Path) -> None:
    app = mounted(make_app(PROCORE_WEBHOOK_MAX_BYTES=10))
    file = captured(tmp_path, b"x" * 11)
    headers = lines(sign(file.read_bytes(), SECRET))
    assert "413, the body is over MAX_BYTES (10)" in (
        run(app, "verify", file, *headers, ok=False).output
    )


def test_verify_reports_that_authentic_text_is_quarantined(
    app: Flask, tmp_path: Path
) -> None:
    file = captured(tmp_path, b"\x1b[31m not JSON")
    shown = run(app, "verify", file, *lines(sign(file.read_bytes(), SECRET))).output
    assert "authentic" in shown and "quarantined: the body is not JSON" in shown


def test_verify_with_a_secret_ignores_dated_fallbacks(
    make_app: MakeApp, tmp_path: Path
) -> None:
    dated = [("theirs", "2999-01-31")]
    app = make_app(
        PROCORE_WEBHOOK_SECRET_FALLBACKS=dated,
        PROCORE_WEBHOOK_AUTHORIZATION="ours",
        PROCORE_WEBHOOK_AUTHORIZATION_FALLBACKS=dated,
    )
    mounted(app)
    file = captured(tmp_path)
    signed = lines(sign(file.read_bytes(), "theirs"))
    sent = ["-H", "Authorization: theirs"]
    run(app, "verify", file, *signed, *sent)
    run(app, "verify", file, *signed, "--secret", "mine", ok=False)
    run(app, "verify", file, *sent, "--authorization", "mine", ok=False)


def test_verify_without_a_secret_names_the_answer_of_the_endpoint(
    make_app: MakeApp, tmp_path: Path
) -> None:
    app = make_app(
        TESTING=False, PROCORE_WEBHOOK_SECRET=None, PROCORE_WEBHOOK_MAX_BYTES=10
    )
    mounted(app)
    shown = run(app, "verify", captured(tmp_path), ok=False).output
    assert "procore_webhooks: 503, no secret is configured; check says what" in shown
    run(app, "verify", captured(tmp_path, b"{}"), ok=False)
    given = ["-H", "Authorization: mine", "--authorization", "mine"]
    run(app, "verify", captured(tmp_path, b"{}"), *given)


def test_verify_passes_when_one_of_the_endpoints_accepts(
    tenants: Flask, tmp_path: Path
) -> None:
    file = captured(tmp_path)
    headers = lines(sign(file.read_bytes(), "bolt"))
    shown = run(tenants, "verify", file, *headers).output
    assert "acme: 401, no secret matches" in shown and "bolt: authentic" in shown
    assert "prudra: 401, X-Prudra-Signature is missing" in shown
    run(tenants, "verify", file, *headers, "--endpoint", "acme", ok=False)
    prudra = lines(sign(file.read_bytes(), "prudra", source=PRUDRA))
    assert "prudra: authentic" in run(tenants, "verify", file, *prudra).output
