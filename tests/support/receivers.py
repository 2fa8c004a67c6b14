"""A foreign HTTP receiver in a thread, with stored requests and set answers."""

from __future__ import annotations

import hashlib
import hmac
import json
import ssl
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field
from http.server import BaseHTTPRequestHandler
from http.server import ThreadingHTTPServer
from typing import Any


@dataclass
class Got:
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """A foreign receiver: stores requests and answers as configured."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    got: list[Got] = field(default_factory=list)
    url: str = ""
    #: Replaces the usual answer; writes to the bare connection.
    answer: Callable[[BaseHTTPRequestHandler], None] | None = None

    def json(self) -> list[dict[str, Any]]:
        return [json.loads(got.body) for got in self.got]


@contextmanager
def receiving(receiver: Receiver, tls: ssl.SSLContext | None = None) -> Iterator[Any]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.got.append(Got(self.path, dict(self.headers), body))
            if receiver.answer:
                receiver.answer(self)
                return
            self.send_response(receiver.status)
            for name, value in receiver.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(receiver.body)

        def log_message(self, *args: object) -> None: ...

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *args: object) -> None: ...

    with Quiet(("127.0.0.1", 0), Handler) as server:
        receiver.url = f"http://127.0.0.1:{server.server_port}"
        if tls:
            receiver.url = f"https://localhost:{server.server_port}"
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield receiver
        server.shutdown()
        thread.join()


def hmac_sha256(key: str, got: Got, kind: str) -> str:
    """The signature computed without the package, as by a foreign receiver."""
    stamp = got.headers[f"X-{kind}-Timestamp"].encode()
    return hmac.new(key.encode(), stamp + b"." + got.body, hashlib.sha256).hexdigest()


def dripping(handler: BaseHTTPRequestHandler) -> None:
    """Answer one byte at a time, within 2 s."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n")
    for _ in range(20):
        handler.wfile.write(b"x")
        time.sleep(0.1)
