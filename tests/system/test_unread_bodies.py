"""Refusals by headers, with real servers that still wait for the body."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import ExitStack
from contextlib import suppress
from http.client import HTTPConnection
from http.client import HTTPResponse
from pathlib import Path

import pytest
from support.processes import environment
from support.servers import serve
from support.servers import Server
from support.values import AUTHORIZATION
from support.values import SECRET
from support.waiting import wait_until

from flask_procore_webhooks.senders.samples import to_bytes
from flask_procore_webhooks.testing import payload
from flask_procore_webhooks.testing import sign

pytestmark = pytest.mark.slow

THREADS = 8
HOST = f"""
import os

from flask import Flask
from flask_procore_webhooks import ProcoreWebhooks

app = Flask("host", instance_path=os.environ["INSTANCE"])
app.config.update(
    SIGNED_SECRET={SECRET!r},
    TOKEN_AUTHORIZATION={AUTHORIZATION!r},
    SIGNED_DISPATCH="worker",
    TOKEN_DISPATCH="worker",
)
for name in ("signed", "token"):
    app.register_blueprint(
        ProcoreWebhooks(
            name, url_prefix="/" + name, config_prefix=name.upper() + "_"
        )
    )
"""
GTHREAD = ("--worker-class=gthread", f"--threads={THREADS}")
SERVERS = {
    "gunicorn": ("gunicorn", ()),
    "gunicorn gthread": ("gunicorn", GTHREAD),
    "waitress": ("waitress", ()),
    "flask": ("flask", ()),
    "granian": ("granian", ()),
    "uwsgi": ("uwsgi", ("--virtualenv", sys.prefix, "--need-app", "--die-on-term")),
    "hypercorn": ("hypercorn", ()),
}


@contextmanager
def host(folder: Path, server: str, options: tuple[str, ...]) -> Iterator[Server]:
    (folder / "hostapp.py").write_text(HOST)
    env = environment({"INSTANCE": str(folder)}, path=[folder])
    app = "wsgi:hostapp:app" if server == "hypercorn" else "hostapp:app"
    with serve(app, server=server, folder=folder, env=env, options=options) as running:
        yield running


def deliver(server: Server) -> int:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=5)
    body = to_bytes(payload("RFIs.update"))
    try:
        connection.request("POST", "/signed", body, sign(body, SECRET))
        return connection.getresponse().status
    finally:
        connection.close()


def open_request(server: Server, path: str, *lines: str) -> socket.socket:
    """Send the headers of a delivery."""
    connection = socket.create_connection(("127.0.0.1", server.port), 10)
    head = [f"POST {path} HTTP/1.1", "Host: localhost", *lines, "", ""]
    connection.sendall("\r\n".join(head).encode())
    return connection


def status_of(connection: socket.socket) -> int:
    with HTTPResponse(connection) as answer:
        answer.begin()
        answer.read()
        return answer.status


def is_closed(connection: socket.socket) -> bool:
    """Whether the server ends the connection, while the client still sends."""
    try:
        connection.sendall(b"x")
        connection.settimeout(0.1)
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


DRIPS = {
    "no signature": ("/signed", "Content-Length: 1000"),
    "no signature, chunked": ("/signed", "Transfer-Encoding: chunked"),
    "no Authorization": ("/token", "Content-Length: 1000"),
    "a large body": ("/token", "Content-Length: 900000"),
}


@contextmanager
def dripping(server: Server, drip: str) -> Iterator[list[socket.socket]]:
    """As many clients as threads, each with a first byte of its body."""
    with ExitStack() as ending:
        clients = []
        for _ in range(THREADS):
            client = ending.enter_context(open_request(server, *DRIPS[drip]))
            client.sendall(b"1" if "Length" in DRIPS[drip][1] else b"1\r\n")
            clients.append(client)
        yield clients


@pytest.mark.parametrize("drip", DRIPS)
def test_clients_that_drip_without_a_signature_hold_no_thread(
    tmp_path: Path, drip: str
) -> None:
    """Each of them could hold one of the server's threads."""
    with host(tmp_path, "gunicorn", GTHREAD) as server:
        assert deliver(server) == 200
        with dripping(server, drip) as clients:
            for client in clients:
                assert status_of(client) == 401
            assert [deliver(server) for _ in range(THREADS)] == [200] * THREADS
            for client in clients:
                wait_until(lambda client=client: is_closed(client))
            assert [deliver(server) for _ in range(THREADS)] == [200] * THREADS
        assert "Traceback" not in server.output()


@pytest.mark.parametrize("kind", ["gunicorn", "waitress", "flask", "granian", "uwsgi"])
def test_clients_that_drip_hold_no_other_server(tmp_path: Path, kind: str) -> None:
    with host(tmp_path, *SERVERS[kind]) as server:
        assert deliver(server) == 200
        with dripping(server, "no signature"):
            assert deliver(server) == 200


@pytest.mark.parametrize("kind", SERVERS)
def test_refusal_reaches_a_client_that_sends_its_body(
    tmp_path: Path, kind: str
) -> None:
    """Also if the body comes after the headers, in one piece."""
    with host(tmp_path, *SERVERS[kind]) as server:
        for size in (10, 8000, 60_000, 900_000) * 10:
            with open_request(server, "/signed", f"Content-Length: {size}") as client:
                # A server may answer and close before it has got all.
                with suppress(ConnectionError):
                    client.sendall(b"x" * size)
                assert status_of(client) == 401
        assert deliver(server) == 200
        assert "Traceback" not in server.output()


def test_connection_of_a_delivery_stays_open(tmp_path: Path) -> None:
    with host(tmp_path, "gunicorn", GTHREAD) as server:
        connection = HTTPConnection("127.0.0.1", server.port, timeout=5)
        for _ in range(3):
            body = to_bytes(payload("RFIs.update"))
            connection.request("POST", "/signed", body, sign(body, SECRET))
            with connection.getresponse() as answer:
                assert (answer.status, answer.read()[:12]) == (200, b'{"received":')
            assert connection.sock is not None
        connection.close()
