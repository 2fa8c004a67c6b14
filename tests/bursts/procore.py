"""Procore's REST side: a local HTTP server with stale reads and faults.

``GET /projects/{project}/submittals/{resource}`` answers the fields as they are visible
at that moment, ``GET /projects/{project}/submittals`` those of every resource.
"""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from http.server import ThreadingHTTPServer
from math import ceil
from typing import Any

from .plans import Change
from .plans import FIELDS
from .scenarios import Scenario
from .scenarios import Trouble

#: Seconds that a client is told to wait after 429.
RETRY_AFTER = 5.0
Fields = dict[str, int]


@dataclass(frozen=True)
class Fetch:
    """A request that was answered; ``at`` is when it came in, by ``time.time``."""

    project: str
    #: ``None``: every resource of the project.
    resource: str | None
    at: float
    #: 0: there was no answer.
    status: int

    @property
    def is_good(self) -> bool:
        """Whether it showed the state of a resource: 404 is one, too."""
        return self.status in (200, 404)


class Procore:
    """The state of resources over time, and the log of requests.

    :param factor: how many of Procore's seconds pass in one second.
    """

    def __init__(self, scenario: Scenario, factor: float, seed: int) -> None:
        self.factor = factor
        self.stale = scenario.stale
        self.trouble = scenario.trouble or Trouble("", 0)
        self.latency = scenario.latency
        self.fetches: list[Fetch] = []
        self.start = time.time()
        self._rng = random.Random(seed)
        self._history: dict[tuple[str, str], list[Change]] = defaultdict(list)
        self._lock = threading.Lock()

    def now(self) -> float:
        """Procore's seconds since the start."""
        return (time.time() - self.start) * self.factor

    def change(self, change: Change) -> None:
        with self._lock:
            self._history[change.project, change.resource].append(change)

    def final(self, project: str, resource: str) -> Fields | None:
        """The fields as Procore has them at the end; ``None``: deleted."""
        return self._history[project, resource][-1].fields

    def visible(self, project: str, resource: str, now: float) -> Fields | None:
        """The fields as the API shows them: each becomes new at a time of its own."""
        with self._lock:
            history = list(self._history.get((project, resource), ()))
        if not history or history[-1].fields is None:
            return None
        seen = dict(history[0].fields or {})
        for change in history[1:]:
            for index, name in enumerate(FIELDS):
                if now >= change.at + self.stale * (index + 1) / len(FIELDS):
                    seen[name] = (change.fields or {})[name]
        return seen

    def of_project(self, project: str, now: float) -> dict[str, Fields]:
        with self._lock:
            names = [resource for at, resource in self._history if at == project]
        shown = {name: self.visible(project, name, now) for name in names}
        return {name: fields for name, fields in shown.items() if fields is not None}

    def fault(self) -> str:
        """The kind of the fault of this moment, or ``""``."""
        since = self.now() - self.trouble.start
        return self.trouble.kind if 0 <= since < self.trouble.seconds else ""

    def seconds_of_fault(self) -> float:
        """Seconds until the fault is over, by this machine's clock."""
        end = self.trouble.start + self.trouble.seconds
        return max(0.0, end - self.now()) / self.factor

    def note(self, fetch: Fetch) -> None:
        with self._lock:
            self.fetches.append(fetch)

    def seconds_of_answer(self) -> float:
        with self._lock:
            return self._rng.uniform(*self.latency)


@contextmanager
def serving(procore: Procore) -> Iterator[str]:
    """Serve the API on a loopback port; yield its URL."""
    handler = type("Handler", (_Handler,), {"procore": procore})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    #: Calls that hang are left alone at the end.
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has given up is no error of the server."""


class _Handler(BaseHTTPRequestHandler):
    procore: Procore

    def do_GET(self) -> None:
        procore, at = self.procore, time.time()
        _, _, project, _, *rest = self.path.split("/")
        resource = rest[0] if rest else None
        # As it is now: the answer is on its way for a while.
        shown: Any = (
            procore.visible(project, resource, procore.now())
            if resource
            else procore.of_project(project, procore.now())
        )
        status = self._status(shown)
        procore.note(Fetch(project, resource, at, status))
        if not status:
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            return
        time.sleep(procore.seconds_of_answer())
        self._answer(status, json.dumps(shown).encode())

    def _status(self, shown: Any) -> int:
        fault = self.procore.fault()
        if fault == "limits":
            return 429
        if fault == "hangs":
            # Without an answer, even when the fault is over.
            time.sleep(self.procore.seconds_of_fault())
        if fault:
            return 0
        return 404 if shown is None else 200

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        if status == 429:
            seconds = ceil(RETRY_AFTER / self.procore.factor)
            self.send_header("Retry-After", str(seconds))
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """The log is ``Procore.fetches``."""
