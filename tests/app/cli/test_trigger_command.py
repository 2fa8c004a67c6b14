"""The command ``trigger``: its requests, signatures and options."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from support.commands import mounted
from support.commands import run
from support.receivers import hmac_sha256
from support.receivers import Receiver
from support.values import AUTHORIZATION
from support.values import SECRET

MakeApp = Callable[..., Flask]


@pytest.mark.parametrize("format", ["signed", "v2", "v3", "v4"])
def test_trigger_signs_procores_formats(
    app: Flask, receiver: Receiver, format: str
) -> None:
    run(app, "trigger", "RFIs.update", "--format", format, "--url", receiver.url)
    (got,) = receiver.got
    expected = hmac_sha256(SECRET, got, "Procore")
    assert got.headers["X-Procore-Signature"] == expected
    assert got.headers["Content-Type"] == "application/json"
    assert abs(int(got.headers["X-Procore-Timestamp"]) - time.time()) < 60
    sent = json.loads(got.body)
    assert sent.get("type", "RFIs.update") == "RFIs.update"
    assert sent.get("api_version", sent.get("payload_version")) == {
        "signed": None,
        "v2": "v2.0",
        "v3": "v3.0",
        "v4": "v4.0",
    }.get(format)


def test_trigger_signs_prudras_format_with_prudras_headers(
    app: Flask, receiver: Receiver
) -> None:
    run(app, "trigger", "vault.opened", "--format", "prudra", "--url", receiver.url)
    (got,) = receiver.got
    digest = hmac_sha256(SECRET, got, "Prudra")
    assert got.headers["X-Prudra-Signature"] == f"sha256={digest}"
    assert set(receiver.json()[0]) == {"type", "eventId", "payload"}


def test_trigger_sends_v4_with_authorization_to_an_endpoint_without_secret(
    make_app: MakeApp, receiver: Receiver
) -> None:
    value = "Token näive ☃"
    app = make_app(PROCORE_WEBHOOK_SECRET=None, PROCORE_WEBHOOK_AUTHORIZATION=value)
    run(mounted(app), "trigger", "RFIs.create", "--url", receiver.url)
    (got,) = receiver.got
    assert got.headers["Authorization"].encode("latin-1") == value.encode()
    assert not [name for name in got.headers if "Signature" in name]
    assert receiver.json()[0]["payload_version"] == "v4.0"


def test_trigger_does_not_sign_with_the_random_secret_of_tests(
    make_app: MakeApp, receiver: Receiver
) -> None:
    app = mounted(make_app(PROCORE_WEBHOOK_SECRET=None))
    shown = run(app, "trigger", "a.b", "--url", receiver.url, ok=False).output
    assert "procore_webhooks has no secret; give --secret or --authorization" in shown
    assert not receiver.got
    run(app, "trigger", "a.b", "--url", receiver.url, "--secret", "mine")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:5000/webhooks/procore",
        "ftp://localhost/",
        "http:///path",
        "http://localhost:99999/",
        "http://localhost:0/",
        "http://localhost:port/",
        "http://[::1/",
        "http://me:password@localhost/",
    ],
)
def test_invalid_url_is_a_usage_error(app: Flask, url: str) -> None:
    result = run(app, "trigger", "a.b", "--url", url, ok=False)
    assert result.exit_code == 2 and "'--url'" in result.output


def test_path_and_query_are_percent_encoded(app: Flask, receiver: Receiver) -> None:
    url = f"{receiver.url}/für uns?key=a b&q=%20#top"
    run(app, "trigger", "a.b", "--url", url)
    assert receiver.got[0].path == "/f%C3%BCr%20uns?key=a%20b&q=%20"


# Options


def test_data_may_set_any_key(app: Flask, receiver: Receiver) -> None:
    data = {"resource_id": "7", "type": "x.y", "format": 1, "fields": 2, "id": "mine"}
    more = ["--data", json.dumps(data), "--url", receiver.url]
    run(app, "trigger", "RFIs.update", *more)
    (sent,) = receiver.json()
    assert (sent["id"], sent["type"]) == ("mine", "x.y")
    assert sent["data"]["resource_id"] == "7"
    assert (sent["data"]["format"], sent["data"]["fields"]) == (1, 2)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--data", "{"),
        ("--data", "[1]"),
        ("--data", '"text"'),
        ("--data", "[" * 100_000),
        ("--file", "/nonexistent/file"),
        ("--count", "0"),
        ("--repeat", "-1"),
        ("--timeout", "0"),
        ("--timestamp", "yesterday"),
        ("--timestamp", "nan"),
        ("--timestamp", ""),
        ("--header", "no colon"),
        ("--header", "Na me: value"),
        ("--header", "Name: value\r\nX-Other: 1"),
        ("--secret", ""),
        ("--authorization", "  "),
        ("--authorization", "Bearer a\nb"),
        ("--format", "v1"),
    ],
)
def test_wrong_option_is_named(
    app: Flask, receiver: Receiver, option: str, value: str
) -> None:
    more = [option, value, "--url", receiver.url]
    result = run(app, "trigger", "a.b", *more, ok=False)
    assert result.exit_code == 2 and option in result.output
    assert not receiver.got


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("Authorization Bearer s3cret", "Authorization"),
        ("Authorization: Bearer s3cret\r\nX: 1", "Authorization"),
        ("Authorization:s3cret\n", "Authorization"),
        ("s3cret", None),
        ("Authorization=s3cret x", None),
        ("Authorization=s3cret", None),
    ],
)
@pytest.mark.parametrize("command", [["trigger", "a.b", "--url"], ["verify"]])
def test_malformed_header_is_refused_without_its_value(
    app: Flask,
    receiver: Receiver,
    tmp_path: Path,
    value: str,
    shown: str | None,
    command: list[str],
) -> None:
    (tmp_path / "body").write_bytes(b"{}")
    last = receiver.url if "--url" in command else tmp_path / "body"
    said = run(app, *command, last, "-H", value, ok=False).output
    assert "s3cret" not in said and '"Name: value"' in said
    assert (f"the header {shown} is not" in said) is bool(shown)


def test_file_is_sent_byte_for_byte(
    app: Flask, receiver: Receiver, tmp_path: Path
) -> None:
    body = bytes(range(256)) + b"\r\n"
    (tmp_path / "body").write_bytes(body)
    run(app, "trigger", "--file", tmp_path / "body", "--url", receiver.url)
    run(app, "trigger", "--file", "-", "--url", receiver.url, input=body)
    run(app, "trigger", "--file", "-", "--url", receiver.url, input=b"")
    assert [got.body for got in receiver.got] == [body, body, b""]
    for got in receiver.got:
        expected = hmac_sha256(SECRET, got, "Procore")
        assert got.headers["X-Procore-Signature"] == expected


@pytest.mark.parametrize("more", [["--count", 2], ["--data", "{}"]])
def test_options_that_conflict_with_file_are_refused(
    app: Flask, receiver: Receiver, more: list[Any]
) -> None:
    command = ["trigger", "--file", "-", *more, "--url", receiver.url]
    assert "--file is sent as it is" in run(app, *command, ok=False, input=b"x").output


def test_trigger_without_type_and_file_is_refused(
    app: Flask, receiver: Receiver
) -> None:
    shown = run(app, "trigger", "--url", receiver.url, ok=False).output
    assert "Give a TYPE" in shown


def test_count_sends_events_and_repeat_sends_copies(
    app: Flask, receiver: Receiver
) -> None:
    more = ["--count", 3, "--repeat", 2, "--url", receiver.url]
    shown = run(app, "trigger", "a.b", *more).output
    ids = [sent["id"] for sent in receiver.json()]
    assert len(ids) == len(shown.splitlines()) == 6
    assert ids[::2] == ids[1::2] and len(set(ids)) == 3


def test_trigger_fails_if_any_delivery_fails(app: Flask, receiver: Receiver) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(500 if len(receiver.got) == 2 else 200)
        handler.end_headers()

    receiver.answer = answer
    more = ["--count", 3, "--url", receiver.url]
    shown = run(app, "trigger", "a.b", *more, ok=False).output
    assert len(receiver.got) == 3, "the others are sent all the same"
    assert "1 of 3 not delivered" in shown


def test_trigger_secret_replaces_configured_credentials_and_is_not_shown(
    make_app: MakeApp, receiver: Receiver
) -> None:
    """The app's credentials are not sent to a receiver with other credentials."""
    app = mounted(make_app(PROCORE_WEBHOOK_AUTHORIZATION=AUTHORIZATION))
    env = {"PROCORE_WEBHOOK_TRIGGER_SECRET": "theirs ☃"}
    shown = run(app, "trigger", "a.b", "--url", receiver.url, env=env).output
    (got,) = receiver.got
    expected = hmac_sha256("theirs ☃", got, "Procore")
    assert got.headers["X-Procore-Signature"] == expected
    assert "Authorization" not in got.headers and "theirs" not in shown
    assert "theirs" not in run(app, "trigger", "--help", env=env).output


def test_trigger_authorization_is_read_from_the_environment(
    app: Flask, receiver: Receiver
) -> None:
    env = {"PROCORE_WEBHOOK_TRIGGER_AUTHORIZATION": "Bearer theirs"}
    run(app, "trigger", "a.b", "--url", receiver.url, env=env)
    (got,) = receiver.got
    assert got.headers["Authorization"] == "Bearer theirs"
    assert not [name for name in got.headers if "Signature" in name]


def test_empty_trigger_variable_is_ignored(app: Flask, receiver: Receiver) -> None:
    env = {"PROCORE_WEBHOOK_TRIGGER_SECRET": ""}
    run(app, "trigger", "a.b", "--url", receiver.url, env=env)
    expected = hmac_sha256(SECRET, receiver.got[0], "Procore")
    assert receiver.got[0].headers["X-Procore-Signature"] == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("1700000000", 1700000000),
        ("1700000000123", 1700000000123),
        ("2023-11-14T22:13:20Z", 1700000000),
        ("2023-11-14T23:13:20+01:00", 1700000000),
    ],
)
def test_absolute_timestamp_is_signed_as_given(
    app: Flask, receiver: Receiver, given: str, expected: int
) -> None:
    run(app, "trigger", "a.b", "--timestamp", given, "--url", receiver.url)
    (got,) = receiver.got
    assert got.headers["X-Procore-Timestamp"] == str(expected)
    signature = hmac_sha256(SECRET, got, "Procore")
    assert got.headers["X-Procore-Signature"] == signature


@pytest.mark.parametrize("shift", [-400, 400])
def test_signed_timestamp_is_relative_to_now(
    app: Flask, receiver: Receiver, shift: int
) -> None:
    run(app, "trigger", "a.b", "--timestamp", f"{shift:+}", "--url", receiver.url)
    stamp = int(receiver.got[0].headers["X-Procore-Timestamp"])
    assert abs(stamp - shift - time.time()) < 60


def test_headers_are_added_replaced_and_left_out(
    app: Flask, receiver: Receiver
) -> None:
    more = ["-H", "x-procore-signature:", "-H", "Content-type: text/plain"]
    more += ["-H", "X-Tunnel: ☃", "--url", receiver.url]
    run(app, "trigger", "a.b", *more)
    got = [(name.lower(), value) for name, value in receiver.got[0].headers.items()]
    assert "x-procore-signature" not in dict(got)
    assert [value for name, value in got if name == "content-type"] == ["text/plain"]
    assert dict(got)["x-tunnel"].encode("latin-1") == "☃".encode()


@pytest.mark.parametrize(
    ("path", "more", "secret"),
    [
        ("/hooks", [], "acme"),
        ("/hooks/", [], "acme"),
        ("/behind/a/proxy/hooks", [], "acme"),
        ("/bolt/hooks", [], "bolt"),
        ("/webhooks/prudra", [], "prudra"),
        ("/elsewhere", ["--endpoint", "bolt"], "bolt"),
        ("/hooks", ["--endpoint", "bolt"], "bolt"),
        ("/elsewhere", ["--format", "prudra"], "prudra"),
    ],
)
def test_trigger_signs_for_the_endpoint_at_the_path(
    tenants: Flask, receiver: Receiver, path: str, more: list[str], secret: str
) -> None:
    run(tenants, "trigger", "a.b", "--url", receiver.url + path, *more)
    (got,) = receiver.got
    kind = "Prudra" if secret == "prudra" else "Procore"
    digest = hmac_sha256(secret, got, kind)
    assert got.headers[f"X-{kind}-Signature"].removeprefix("sha256=") == digest


def test_trigger_for_an_unknown_path_asks_for_an_endpoint(
    tenants: Flask, receiver: Receiver
) -> None:
    url = f"{receiver.url}/elsewhere"
    shown = run(tenants, "trigger", "a.b", "--url", url, ok=False).output
    assert "--endpoint" in shown and not receiver.got
    run(tenants, "trigger", "a.b", "--url", url, "--secret", "theirs")
    assert len(receiver.got) == 1, "trigger needs no secret of the app"
