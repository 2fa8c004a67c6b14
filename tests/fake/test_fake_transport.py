"""FakeProcore's requests to destinations over sockets."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from http.server import ThreadingHTTPServer
from queue import Queue
from typing import Any

import pytest
from fake_support import Destination
from fake_support import hooked
from support.waiting import PATIENCE

from flask_procore_webhooks.fake import FakeProcore


@contextmanager
def server(behave: Any) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            behave(self)

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}/hooks?key=1"
        finally:
            running.shutdown()
            thread.join()


def deliver_to(fake: FakeProcore, url: str) -> dict[str, Any]:
    hooked(fake, Destination(), destination_url=url, authorization="Bearer s3cret")
    fake.emit("RFIs", "create", project="2")
    assert fake.deliver() == 1
    attempt: dict[str, Any] = fake.deliveries()[0]["delivery_attempts"][0]
    return attempt


def test_loopback_destination_gets_a_real_request(fake: FakeProcore) -> None:
    seen: list[Any] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers["Content-Length"])
        body = json.loads(handler.rfile.read(length))
        seen.append((handler.path, handler.headers["Authorization"], body["reason"]))
        handler.send_response(202)
        handler.end_headers()
        handler.wfile.write(b"ok")

    with server(answer) as url:
        attempt = deliver_to(fake, url)
    assert seen == [("/hooks?key=1", "Bearer s3cret", "create")]
    assert (attempt["response_status"], attempt["response_body"]) == (202, "ok")


def test_redirect_is_not_followed(fake: FakeProcore) -> None:
    calls = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        calls.append(handler.path)
        handler.send_response(307)
        handler.send_header("Location", "/elsewhere")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    with server(answer) as url:
        attempt = deliver_to(fake, url)
    assert (attempt["success"], attempt["response_status"]) == (False, 307)
    assert calls == ["/hooks?key=1"]


@pytest.mark.parametrize("headers_first", [True, False])
def test_slow_destination_is_a_failure(fake: FakeProcore, headers_first: bool) -> None:
    fake.switches.timeout = 0.2
    given_up, waited = threading.Event(), Queue[bool]()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if headers_first:
            handler.send_response(200)
            handler.end_headers()
        waited.put(given_up.wait(PATIENCE))

    with server(answer) as url:
        attempt = deliver_to(fake, url)
        given_up.set()
        # The sender has ended the attempt before the destination.
        assert waited.get(timeout=PATIENCE)
    assert (attempt["success"], attempt["response_status"]) == (False, None)


@pytest.mark.parametrize(
    "url", ["https://elsewhere.example.com/", "https://10.0.0.1/", "https://[bad/"]
)
def test_nothing_but_loopback_is_connected_to(fake: FakeProcore, url: str) -> None:
    assert deliver_to(fake, url)["response_status"] is None


def test_closed_port_is_a_failure(fake: FakeProcore) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    assert deliver_to(fake, f"http://127.0.0.1:{port}/")["response_status"] is None
