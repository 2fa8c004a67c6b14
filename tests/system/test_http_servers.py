"""Deliveries as raw bytes to real servers: lengths, chunks, cut bodies, headers."""

from __future__ import annotations

import json
import socket
import sqlite3
from collections.abc import Callable
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path

import pytest
from support.servers import serve
from support.servers import Server
from support.values import AUTHORIZATION
from support.values import SECRET
from support.web import LIMIT
from support.web import MARK

from flask_procore_webhooks.testing import sign

HOST = f"""
import os

from flask import Flask
from flask_procore_webhooks import ProcoreWebhooks

app = Flask("host", instance_path=os.environ["INSTANCE"])
app.config.update(
    SIGNED_SECRET={SECRET!r},
    SIGNED_MAX_BYTES={LIMIT},
    TOKEN_AUTHORIZATION={AUTHORIZATION!r},
    TOKEN_MAX_BYTES={LIMIT},
)
for name in ("signed", "token"):
    webhooks = ProcoreWebhooks(
        name, url_prefix="/" + name, config_prefix=name.upper() + "_"
    )
    app.register_blueprint(webhooks)
"""
SERVERS = {
    "gunicorn sync": ("gunicorn", ()),
    "gunicorn gthread": ("gunicorn", ("--worker-class=gthread", "--threads=4")),
    "waitress": ("waitress", ()),
    "flask": ("flask", ()),
}
ENDPOINTS = ("signed", "token")


#: Attempts of a delivery that is answered 503.
ATTEMPTS = 5


class RealServer:
    """A running host that gets requests as raw bytes."""

    def __init__(self, server: Server, instance: Path) -> None:
        self.server = server
        self.instance = instance
        self.sent = 0

    def new_body(self, size: int = 0) -> bytes:
        self.sent += 1
        body = f'{{"id": "evt_{self.sent}", "type": "RFIs.create"}}'
        return body.encode().ljust(size)

    def deliver(self, endpoint: str) -> int | None:
        return self.post(endpoint, self.new_body())

    def post(self, endpoint: str, body: bytes, *extra: str) -> int | None:
        """Deliver as the sender does, with retries after 503, as from a slow disk."""
        lines = [*authentic(endpoint, body), f"Content-Length: {len(body)}", *extra]
        statuses = (self.exchange(endpoint, lines, body) for _ in range(ATTEMPTS))
        return next((status for status in statuses if status != 503), 503)

    def exchange(
        self, endpoint: str, lines: list[str], body: bytes, *, hang_up: bool = False
    ) -> int | None:
        """Send a request; return the status of the answer or ``None``."""
        head = [f"POST /{endpoint} HTTP/1.1", "Host: localhost", "Connection: close"]
        message = "\r\n".join([*head, *lines, "", ""]).encode("latin-1") + body
        return talk(self.server.port, message, hang_up)

    def recorded(self, body: bytes) -> bool:
        """Whether the inbox has an event with this body or its id."""
        database = self.instance / "procore_webhooks.db"
        if not database.exists():
            return False
        look = "SELECT 1 FROM procore_webhook_event WHERE body = ? OR event_id = ?"
        try:
            event_id = json.loads(body)["id"]
        except ValueError:
            event_id = None
        connection = sqlite3.connect(database)
        try:
            return bool(connection.execute(look, (body, event_id)).fetchall())
        finally:
            connection.close()

    def count(self) -> int:
        connection = sqlite3.connect(self.instance / "procore_webhooks.db")
        try:
            look = "SELECT count(*) FROM procore_webhook_event"
            return int(connection.execute(look).fetchone()[0])
        finally:
            connection.close()


def talk(port: int, message: bytes, hang_up: bool) -> int | None:
    with socket.create_connection(("127.0.0.1", port), 20) as connection:
        try:
            connection.sendall(message)
            if hang_up:
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # A server may answer before reading the whole request.
        with HTTPResponse(connection) as answer:
            try:
                answer.begin()
            except ConnectionError:
                return None
            answer.read()
            return answer.status


def authentic(endpoint: str, body: bytes) -> list[str]:
    if endpoint == "token":
        return [f"Authorization: {AUTHORIZATION}"]
    return [f"{name}: {value}" for name, value in sign(body, SECRET).items()]


def chunks(body: bytes, size: int = 8000) -> bytes:
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)


@pytest.fixture(scope="module", params=SERVERS)
def real(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealServer]:
    folder = tmp_path_factory.mktemp("host")
    (folder / "hostapp.py").write_text(HOST)
    instance = folder / "instance"
    server, options = SERVERS[request.param]
    with serve(
        "hostapp:app",
        server=server,
        folder=folder,
        env={"INSTANCE": str(instance)},
        options=options,
    ) as running:
        real = RealServer(running, instance)
        assert real.deliver("signed") == 200
        yield real


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize(
    ("size", "status"),
    [(LIMIT - 1, 200), (LIMIT, 200), (LIMIT + 1, 413), (10 * LIMIT, 413)],
)
def test_chunked_body_over_the_limit_is_refused_not_cut(
    real: RealServer, endpoint: str, size: int, status: int
) -> None:
    body, before = real.new_body(size), real.count()
    lines = [*authentic(endpoint, body), "Transfer-Encoding: chunked"]
    assert real.exchange(endpoint, lines, chunks(body) + b"0\r\n\r\n") == status
    assert real.recorded(body) == (status == 200)
    assert real.count() == before + (status == 200)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize(
    ("size", "status"),
    [(LIMIT - 1, 200), (LIMIT, 200), (LIMIT + 1, 413), (10 * LIMIT, 413)],
)
def test_body_of_known_length_over_the_limit_is_refused(
    real: RealServer, endpoint: str, size: int, status: int
) -> None:
    body = real.new_body(size)
    assert real.post(endpoint, body) == status
    assert real.recorded(body) == (status == 200)


def test_announced_length_over_the_limit_is_refused_at_once(
    real: RealServer,
) -> None:
    lines = [f"Authorization: {AUTHORIZATION}", "Content-Length: 999999999999"]
    assert real.exchange("token", lines, b"{") == 413


@pytest.mark.parametrize("length", ["abc", "-5", "5, 5", "1e3", "0x10", "9" * 5000])
def test_malformed_length_is_never_accepted(real: RealServer, length: str) -> None:
    before = real.count()
    lines = [f"Authorization: {AUTHORIZATION}", f"Content-Length: {length}"]
    status = real.exchange("token", lines, real.new_body(), hang_up=True)
    assert status in (None, 400, 401, 413)
    assert real.count() == before
    assert real.deliver("token") == 200


def cut_length(body: bytes) -> tuple[str, bytes]:
    return f"Content-Length: {len(body) + 20}", body


def cut_in_half(body: bytes) -> tuple[str, bytes]:
    return f"Content-Length: {len(body)}", body[: len(body) // 2]


def nothing_came(body: bytes) -> tuple[str, bytes]:
    return f"Content-Length: {len(body)}", b""


def cut_in_a_chunk(body: bytes) -> tuple[str, bytes]:
    return "Transfer-Encoding: chunked", chunks(body) + b"20\r\n  "


def cut_between_chunks(body: bytes) -> tuple[str, bytes]:
    return "Transfer-Encoding: chunked", chunks(body)


def cut_in_a_large_chunk(body: bytes) -> tuple[str, bytes]:
    return "Transfer-Encoding: chunked", chunks(body.ljust(70_000), 70_000)[:-5000]


def no_chunks_at_all(body: bytes) -> tuple[str, bytes]:
    return "Transfer-Encoding: chunked", b""


def wrong_chunk_size(body: bytes) -> tuple[str, bytes]:
    return "Transfer-Encoding: chunked", chunks(body) + b"zz\r\n  \r\n0\r\n\r\n"


def no_end_of_chunk(body: bytes) -> tuple[str, bytes]:
    return "Transfer-Encoding: chunked", chunks(body)[:-2] + b"XX0\r\n\r\n"


CUTS = (
    cut_length,
    cut_in_half,
    nothing_came,
    cut_in_a_chunk,
    cut_between_chunks,
    cut_in_a_large_chunk,
    no_chunks_at_all,
    wrong_chunk_size,
    no_end_of_chunk,
)


@pytest.mark.parametrize("cut", CUTS)
def test_truncated_body_is_never_accepted(
    real: RealServer, cut: Callable[[bytes], tuple[str, bytes]]
) -> None:
    """A truncated body may still be a JSON object, here without a signature."""
    body, before = real.new_body(), real.count()
    framing, sent = cut(body)
    lines = [*authentic("token", body), framing]
    assert real.exchange("token", lines, sent, hang_up=True) in (None, 400, 401)
    assert real.count() == before
    assert real.deliver("token") == 200


def test_server_survives_aborted_connections(real: RealServer) -> None:
    body, before = real.new_body(), real.count()
    for _ in range(5):
        connection = socket.create_connection(("127.0.0.1", real.server.port), 20)
        head = f"POST /token HTTP/1.1\r\nHost: x\r\nAuthorization: {AUTHORIZATION}\r\n"
        connection.sendall(head.encode() + b"Content-Length: 5000\r\n\r\n" + body)
        # SO_LINGER of 0: the server gets a reset instead of an end.
        reset = b"\1\0\0\0\0\0\0\0"
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        connection.close()
    assert real.deliver("token") == 200
    assert real.count() == before + 1


@pytest.mark.parametrize("name", ["X-Procore-Signature", "X-Procore-Timestamp"])
def test_header_of_the_signature_sent_twice_is_refused(
    real: RealServer, name: str
) -> None:
    """Even with equal values: a verifier of the first must not ignore the second."""
    body = real.new_body()
    again = f"{name}: {sign(body, SECRET)[name]}"
    assert real.post("signed", body, again) == 401
    assert not real.recorded(body)


@pytest.mark.parametrize("value", [AUTHORIZATION, "Bearer other", ""])
def test_authorization_sent_twice_is_refused(real: RealServer, value: str) -> None:
    body = real.new_body()
    assert real.post("token", body, f"Authorization: {value}") in (400, 401)
    assert not real.recorded(body)


@pytest.mark.parametrize("spell", [str.lower, str.upper])
def test_servers_pass_headers_on_whatever_their_case(
    real: RealServer, spell: Callable[[str], str]
) -> None:
    body = real.new_body()
    signed = {spell(name): value for name, value in sign(body, SECRET).items()}
    lines = [f"{name}: {value}" for name, value in signed.items()]
    lines.append(f"{spell('Content-Length')}: {len(body)}")
    assert real.exchange("signed", lines, body) == 200


def test_header_with_underscores_is_ignored(real: RealServer) -> None:
    body = real.new_body()
    lines = [line.replace("-", "_") for line in authentic("signed", body)]
    lines.append(f"Content-Length: {len(body)}")
    assert real.exchange("signed", lines, body) in (400, 401)
    assert not real.recorded(body)


@pytest.mark.parametrize("value", ["\xe9" * 64, "\x80\xff", "5" * 63, "=", "sha256=,"])
def test_strange_signature_is_refused_by_every_server(
    real: RealServer, value: str
) -> None:
    body = real.new_body()
    lines = [f"X-Procore-Signature: {value}", "X-Procore-Timestamp: 1"]
    lines.append(f"Content-Length: {len(body)}")
    assert real.exchange("signed", lines, body) in (400, 401)


def test_log_of_a_server_holds_no_secret_and_no_traceback(
    real: RealServer,
) -> None:
    """Checks the log of all requests above: this is each server's last test."""
    data = f', "data": {{"title": "{MARK}"}}}}'
    body = real.new_body().replace(b"}", data.encode())
    assert real.post("signed", body) == 200
    assert real.post("signed", body + b" ", "X-Nothing: 1") == 200
    assert real.exchange("signed", ["Content-Length: 2"], b"{}") == 401
    output = real.server.output()
    assert "signed answered 401" in output
    for word in (SECRET, AUTHORIZATION, sign(body, SECRET)["X-Procore-Signature"]):
        assert word not in output
    assert MARK not in output
    assert "flask_procore_webhooks/" not in output
