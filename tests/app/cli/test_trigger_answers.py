"""The command ``trigger``: its output and exit code for each answer."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable
from contextlib import closing
from http.server import BaseHTTPRequestHandler

import pytest
from flask import Flask
from support.commands import run
from support.receivers import dripping
from support.receivers import Receiver


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_trigger_succeeds_for_any_2xx(
    app: Flask, receiver: Receiver, status: int
) -> None:
    receiver.status, receiver.headers = status, {"Location": "/made"}
    receiver.body = b"" if status == 204 else b"thanks"
    shown = run(app, "trigger", "a.b", "--url", receiver.url).output
    assert re.fullmatch(rf"{status}  \d+ ms(  thanks)?\n", shown)


@pytest.mark.parametrize("status", [400, 401, 404, 410, 429, 500, 503])
def test_trigger_fails_for_anything_else(
    app: Flask, receiver: Receiver, status: int
) -> None:
    receiver.status, receiver.body = status, b'{"why": "because"}'
    shown = run(app, "trigger", "a.b", "--url", receiver.url, ok=False).output
    assert re.match(rf'{status}  \d+ ms  {{"why": "because"}}\n', shown)
    assert "Error: not delivered" in shown
    assert ("receives at /webhooks/procore" in shown) is False
    assert ("receive at /webhooks/procore" in shown) is (status == 404)


def test_trigger_does_not_follow_a_redirect(app: Flask, receiver: Receiver) -> None:
    """Procore counts a redirect as a failed delivery; ``trigger`` reports the same."""
    receiver.status, receiver.headers = 308, {"Location": "/hooks/"}
    shown = run(app, "trigger", "a.b", "--url", receiver.url, ok=False).output
    assert shown.startswith("308") and "redirects to /hooks/" in shown
    assert len(receiver.got) == 1


def test_answer_is_escaped_and_shortened_for_the_terminal(
    app: Flask, receiver: Receiver
) -> None:
    receiver.status = 500
    receiver.body = (
        b"\x1b[2J\x1b]0;owned\x07\xff\x9b31m\r\n200  1 ms  fine" + b"x" * 10**6
    )
    shown = run(
        app, "trigger", "a.b", "--url", receiver.url, ok=False, color=True
    ).output
    own_colours = re.sub(r"\x1b\[(31|0)m", "", shown)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", own_colours)
    assert r"\x1b[2J\x1b]0;owned\x07" in shown and "200 1 ms" in shown
    assert not re.search("^200", own_colours, re.MULTILINE)
    assert len(shown) < 1000


def test_trigger_works_on_a_terminal_without_unicode(
    app: Flask, receiver: Receiver
) -> None:
    receiver.body = "angenommen ✓".encode()
    runner = app.test_cli_runner(charset="cp1252")
    args = ["procore-webhooks", "trigger", "a.b", "--url", receiver.url]
    result = runner.invoke(args=args)
    assert result.exit_code == 0, result.output
    assert r"angenommen \u2713" in result.output


def silent(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.settimeout(20)
    handler.rfile.read(1)  # ends when the client gives up


def dripping_headers(handler: BaseHTTPRequestHandler) -> None:
    for char in "HTTP/1.1 200 OK\r\nX: x\r\n\r\n":
        handler.wfile.write(char.encode())
        time.sleep(0.1)


@pytest.mark.parametrize("answer", [silent, dripping, dripping_headers])
def test_trigger_times_out_like_the_sender(
    app: Flask, receiver: Receiver, answer: Callable[[BaseHTTPRequestHandler], None]
) -> None:
    receiver.answer = answer
    more = ["--timeout", 0.4, "--url", receiver.url]
    shown = run(app, "trigger", "a.b", *more, ok=False).output
    assert shown.startswith("---") and "no answer: not complete within 0.4 s" in shown


def closing_at_once(handler: BaseHTTPRequestHandler) -> None: ...


def not_http(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"220 smtp.example.com ESMTP\r\n")


def cut_short(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nab"
    )


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (closing_at_once, "the receiver closed the connection without an answer"),
        (not_http, "not HTTP; does the port want https://?"),
        (cut_short, "IncompleteRead"),
    ],
)
def test_broken_answer_is_reported_in_one_sentence(
    app: Flask,
    receiver: Receiver,
    answer: Callable[[BaseHTTPRequestHandler], None],
    words: str,
) -> None:
    receiver.answer = answer
    shown = run(app, "trigger", "a.b", "--url", receiver.url, ok=False).output
    assert shown.startswith("---") and words in shown


def test_closed_port_error_asks_whether_the_receiver_runs(app: Flask) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
    shown = run(app, "trigger", "a.b", "--url", url, ok=False).output
    assert "connection refused; is the receiver running?" in shown


def test_tls_error_on_a_plain_port_suggests_http(
    app: Flask, receiver: Receiver
) -> None:
    url = receiver.url.replace("http:", "https:")
    shown = run(app, "trigger", "a.b", "--url", url, ok=False).output
    assert "does not speak TLS; does it want http://?" in shown
