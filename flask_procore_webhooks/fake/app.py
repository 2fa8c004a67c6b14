"""The Flask app of the fake: its parts, its broken answers, and the ways into it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl
from urllib.parse import unquote
from urllib.parse import urlencode

from flask import Flask
from flask import Response
from werkzeug.exceptions import HTTPException

from .access import BROKEN
from .access import Gate
from .access import Tokens
from .answers import Breakage
from .answers import Broken
from .answers import error_answer
from .answers import Refusal
from .hooks_api import HooksApi
from .lists_api import ListsApi
from .model import Ids
from .records_api import RecordsApi
from .sender import Sender
from .switches import Clock
from .switches import Switches
from .transport import CLIENT_TIMEOUT
from .transport import mount
from .transport import serving
from .world import World

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse
    from _typeshed.wsgi import WSGIEnvironment


class ApiApp(Flask):
    """Procore's OAuth server and REST API, with a world and a sender behind them."""

    def __init__(
        self,
        client_id: str,
        client_secret: str,
        switches: Switches,
        now: datetime | None,
    ) -> None:
        super().__init__(__name__, static_folder=None)
        self.switches = switches
        self.clock = Clock(now)
        self._world = World(switches, self.clock, Ids())
        self._sender = Sender(self._world, self.clock)
        self._tokens = Tokens(switches, self.clock, client_id, client_secret)
        self._gate = Gate(self._world, self._tokens)
        self._breakage = Breakage()
        self._closing = threading.Event()
        self.register_error_handler(HTTPException, self._refuse)
        self._gate.register(self)
        self._tokens.register(self)
        HooksApi(self._world, self._sender).register(self)
        ListsApi(self._world).register(self)
        RecordsApi(self._world, client_id).register(self)

    def __repr__(self) -> str:
        """Return what a failed test may show: no secret, no token."""
        companies, hooks = len(self._world.companies), len(self._world.hooks)
        return f"<{type(self).__name__}: {companies} companies, {hooks} hooks>"

    def _refuse(self, error: HTTPException) -> Response:
        """Answer an unknown path or method like every refused call."""
        refusal = Refusal(error.code or 500, error.name)
        return error_answer(refusal, self.switches)

    # Requests

    @property
    def requests(self) -> list[tuple[str, str, int]]:
        """Method, path and status of every request; status 0 for no answer."""
        return self._gate.requests

    def expire_tokens(self) -> None:
        """Make every token invalid."""
        self._tokens.expire()

    def answer_next(
        self,
        kind: str,
        method: str = "GET",
        path: str = "",
        times: int = 1,
        *,
        skip: int = 0,
        seconds: float = 2,
    ) -> None:
        """Break the answers to the next requests of the method and the path.

        :param kind: ``"html"``, ``"empty"``, ``"truncated"``, ``"redirect"``,
            ``"500"``, ``"503"``, ``"429"``, ``"null"``, ``"null items"``,
            ``"numbers"`` (ids), ``"repeat"`` (the first page), ``"reset"`` (no
            answer), or ``"slow"``.
        :param method: ``"*"`` for every method.
        :param path: part of the path with its query, or a regular expression.
        :param skip: requests that pass before.
        :param seconds: how slow, or the ``Retry-After`` of 429 and 503; 0 for none.
        :raises ValueError: there is no such kind.
        """
        self._breakage.order(Broken(kind, method, path, times, skip, seconds))

    def wsgi_app(
        self, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        """Answer the request, or break the answer as ordered.

        :raises ConnectionResetError: the order is ``"reset"``.
        :raises TimeoutError: the order is ``"slow"``, and a mounted session would not
            wait.
        """
        query = environ.get("QUERY_STRING", "")
        target = environ["PATH_INFO"] + (f"?{unquote(query)}" if query else "")
        broken = self._breakage.take(environ["REQUEST_METHOD"], target)
        environ[BROKEN] = broken
        if broken is not None:
            if broken.kind == "reset":
                self._reset(environ)
            if broken.kind == "slow":
                self._wait(environ, broken.seconds)
            if broken.kind == "repeat":
                fields = [f for f in parse_qsl(query, True) if f[0] != "page"]
                environ["QUERY_STRING"] = urlencode(fields)
        return super().wsgi_app(environ, start_response)

    def _reset(self, environ: WSGIEnvironment) -> None:
        self._log_unanswered(environ)
        connection = environ.get("werkzeug.socket")
        if connection is not None:
            connection.shutdown(socket.SHUT_RDWR)
        raise ConnectionResetError("The fake has reset the connection")

    def _wait(self, environ: WSGIEnvironment, seconds: float) -> None:
        patience = environ.get(CLIENT_TIMEOUT)
        if patience is not None and seconds > patience:
            self._log_unanswered(environ)
            raise TimeoutError(f"The fake takes {seconds} s to answer")
        self._closing.wait(seconds)

    def _log_unanswered(self, environ: WSGIEnvironment) -> None:
        self.requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"], 0))

    # Ways in

    @contextmanager
    def serve(self, port: int = 0) -> Iterator[str]:
        """Serve the API on 127.0.0.1 in a thread, and yield the base URL.

        Afterwards every socket is closed.
        """
        try:
            with serving(self, port) as base_url:
                try:
                    yield base_url
                finally:
                    # Slow answers end.
                    self._closing.set()
        finally:
            self._closing.clear()

    def mount(self, session: Any, *base_urls: str) -> None:
        """Mount the API into a ``requests.Session``, without a socket.

        :param base_urls: Procore's hosts, if left out.
        """
        mount(self, session, base_urls)
