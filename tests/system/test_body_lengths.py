"""Servers that give neither a length nor an end of the body: nothing is accepted."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.processes import environment
from support.servers import serve
from support.servers import Server
from support.values import AUTHORIZATION

pytestmark = pytest.mark.slow

HOST = f"""
import os
import sys

from a2wsgi import WSGIMiddleware
from asgiref.wsgi import WsgiToAsgi
from flask import Flask
from flask_procore_webhooks import ProcoreWebhooks

app = Flask("host", instance_path=os.environ["INSTANCE"])
app.config.update(
    PROCORE_WEBHOOK_AUTHORIZATION={AUTHORIZATION!r}, PROCORE_WEBHOOK_DISPATCH="worker"
)
app.register_blueprint(ProcoreWebhooks())
by_a2wsgi = WSGIMiddleware(app)
by_asgiref = WsgiToAsgi(app)

if __name__ == "__main__":
    from wsgiref.simple_server import make_server

    make_server("127.0.0.1", int(sys.argv[1]), app).serve_forever()
"""
#: The server, the app, the name of the server in the log, and whether it speaks HTTP/2.
SERVERS = {
    "hypercorn": ("hypercorn", "wsgi:hostapp:app", "hypercorn", True),
    "a2wsgi on hypercorn": ("hypercorn", "hostapp:by_a2wsgi", "a2wsgi", True),
    "a2wsgi on uvicorn": ("uvicorn", "hostapp:by_a2wsgi", "a2wsgi", False),
    "asgiref on uvicorn": ("uvicorn", "hostapp:by_asgiref", "asgiref", False),
    "wsgiref": ("wsgiref", "hostapp.py", "WSGIServer", False),
}
BODY = b'{"id": "evt_1", "type": "RFIs.create"}'
#: Of one delivery over HTTP/2.
ATTEMPTS = 5


class Host:
    def __init__(self, server: Server, folder: Path, http2: bool, name: str) -> None:
        self.server, self.folder, self.http2, self.name = server, folder, http2, name

    def refuses(self, parts: list[bytes], *, http2: bool) -> bool:
        """Whether a body without a length is refused.

        Over HTTP/2, hypercorn fails with a KeyError and closes the connection if the
        rest of the body arrives after the answer: then the client delivers again.
        """
        for _ in range(ATTEMPTS):
            try:
                return self.post(iter(parts), http2=http2) == 401
            except httpx.WriteError:
                assert http2
        return False

    def post(self, content: bytes | Iterator[bytes], *, http2: bool = False) -> int:
        """Deliver; an iterator is sent without a length."""
        headers = {"Authorization": AUTHORIZATION, "Content-Type": "application/json"}
        with httpx.Client(http1=not http2, http2=http2, timeout=20) as client:
            url = f"{self.server.url}/webhooks/procore"
            return client.post(url, content=content, headers=headers).status_code

    def count(self) -> int:
        file = self.folder / "procore_webhooks.db"
        if not file.exists():
            return 0
        with sqlite3.connect(file) as connection:
            look = "SELECT count(*) FROM procore_webhook_event"
            return int(connection.execute(look).fetchone()[0])


@pytest.fixture(params=SERVERS)
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Host]:
    server, app, name, http2 = SERVERS[request.param]
    (tmp_path / "hostapp.py").write_text(HOST)
    env = environment({"INSTANCE": str(tmp_path)}, path=[tmp_path])
    with serve(app, server=server, folder=tmp_path, env=env) as running:
        yield Host(running, tmp_path, http2, name)


def test_body_of_unknown_length_is_never_accepted(host: Host) -> None:
    versions = [False, True] if host.http2 else [False]
    for http2 in versions:
        for parts in ([BODY], [BODY[:10], BODY[10:]], []):
            assert host.refuses(parts, http2=http2)
    assert host.count() == 0
    output = host.server.output()
    assert "the end of the body is unknown: the server (" in output
    assert host.name in output.partition("the server (")[2].partition(")")[0]
    for http2 in versions:
        assert host.post(BODY, http2=http2) == 200
    assert host.count() == 1
