"""Databases with outages: behind a relay, or locked by another process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress
from pathlib import Path

import sqlalchemy as sa

from support.processes import child

PORTS = {"amqp": 5672, "mysql": 3306, "postgresql": 5432, "redis": 6379}


class Relay:
    """A loopback port that relays to a server, and refuses while cut."""

    def __init__(self, url: str) -> None:
        self.direct_url = url
        self._target = sa.make_url(url)
        self.port = 0
        self._listener: socket.socket | None = None
        self._carried: set[socket.socket] = set()
        #: Sockets of silenced connections.
        self._forgotten: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.mend()

    @property
    def url(self) -> str:
        url = self._target.set(host="127.0.0.1", port=self.port)
        return url.render_as_string(hide_password=False)

    def cut(self) -> None:
        with self._lock:
            listener, self._listener = self._listener, None
            carried, self._carried = self._carried, set()
        for each in [listener, *carried]:
            if each:
                _close(each)

    def forget(self) -> None:
        """Drop the traffic of existing connections silently, as firewalls do."""
        with self._lock:
            self._forgotten |= self._carried

    def mend(self) -> None:
        listener = socket.create_server(("127.0.0.1", self.port), backlog=64)
        self.port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(_address(self._target), 10)
            except OSError:
                _close(near)
                continue
            far.settimeout(None)
            self._carry_both(listener, near, far)

    def _carry_both(
        self, listener: socket.socket, near: socket.socket, far: socket.socket
    ) -> None:
        with self._lock:
            is_open = self._listener is listener
            if is_open:
                self._carried |= {near, far}
        if not is_open:
            _close(near)
            _close(far)
            return
        for pair in ((near, far), (far, near)):
            threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if source not in self._forgotten:
                    sink.sendall(data)
        with self._lock:
            self._carried -= {source, sink}
        _close(source)
        _close(sink)


def _address(url: sa.URL) -> tuple[str, int]:
    return url.host or "127.0.0.1", url.port or PORTS[url.get_backend_name()]


def _close(each: socket.socket) -> None:
    with suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()


@contextmanager
def relay_to(url: str) -> Iterator[Relay]:
    relay = Relay(url)
    try:
        yield relay
    finally:
        relay.cut()


LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA busy_timeout=30000")
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process locks the file, as a long migration does."""
    with child("-c", LOCK, str(path)) as process:
        assert process.line() == "locked"
        yield
