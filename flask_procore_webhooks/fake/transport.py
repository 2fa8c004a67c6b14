"""Connections: requests to destinations, and the ways into the fake.

A destination is reached over a socket of the loopback interface, or in process if a
WSGI app is mapped to its host. Nothing else is ever connected to.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from contextlib import suppress
from contextvars import Context
from io import BytesIO
from typing import Any
from typing import TYPE_CHECKING
from urllib.parse import SplitResult
from urllib.parse import urlsplit

from werkzeug.serving import make_server
from werkzeug.serving import WSGIRequestHandler
from werkzeug.test import Client
from werkzeug.test import EnvironBuilder
from werkzeug.test import run_wsgi_app

from ..config.api import is_loopback
from .model import Reply

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

#: Hosts of Procore; see
#: https://developers.procore.com/documentation/development-environments.
HOSTS = (
    "https://api.procore.com",
    "https://login.procore.com",
    "https://sandbox.procore.com",
    "https://login-sandbox.procore.com",
    "https://api-monthly.procore.com",
    "https://login-sandbox-monthly.procore.com",
)

#: Key of the WSGI environment: seconds that the client waits for an answer.
CLIENT_TIMEOUT = "flask_procore_webhooks.fake.timeout"

#: Headers of a request that say how long its body is.
LENGTHS = ("Content-Length", "Transfer-Encoding")

#: The most bytes of a reply's body that are kept.
LONGEST_BODY = 65536


# To destinations


def origin(url: str) -> str:
    """Return scheme and host of the URL, in lower case."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}".lower()


def stays_here(url: str) -> bool:
    """Whether the host of the URL is this machine."""
    return is_loopback(urlsplit(url).hostname or "")


def post(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    apps: Mapping[str, WSGIApplication],
    timeout: float,
) -> Reply:
    """Post the body as JSON; follow no redirect.

    :return: a reply without a status, if none came within ``timeout`` seconds.
    """
    sent = {"Content-Type": "application/json", **headers}
    start = time.monotonic()
    try:
        app = apps.get(origin(url))
        if app is not None:
            # In a context of its own, as in a server: no request of the caller's.
            reply = Context().run(_call, app, url, body, sent)
        elif stays_here(url):
            reply = _connect(urlsplit(url), body, sent, timeout)
        else:
            return Reply()
    except (OSError, http.client.HTTPException, ValueError):
        return Reply()
    return reply if time.monotonic() - start <= timeout else Reply()


def _call(
    app: WSGIApplication, url: str, body: bytes, headers: dict[str, str]
) -> Reply:
    parts = urlsplit(url)
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    client = Client(app, use_cookies=False)
    response = client.post(
        path,
        base_url=origin(url),
        data=body,
        headers=headers,
        environ_base={"REMOTE_ADDR": "127.0.0.1"},
    )
    with response:
        text = response.get_data()[:LONGEST_BODY].decode("utf-8", "replace")
        return Reply(response.status_code, dict(response.headers), text)


def _connect(
    parts: SplitResult, body: bytes, headers: dict[str, str], timeout: float
) -> Reply:
    connection = _connection(parts, timeout)
    path = parts.path or "/"
    target = f"{path}?{parts.query}" if parts.query else path
    deadline = time.monotonic() + timeout
    try:
        connection.request("POST", target, body, headers)
        connected = connection.sock
        response = connection.getresponse()
        data = b""
        while len(data) < LONGEST_BODY:
            connected.settimeout(max(0.001, deadline - time.monotonic()))
            part = response.read1(LONGEST_BODY)
            if not part:
                break
            data += part
        text = data[:LONGEST_BODY].decode("utf-8", "replace")
        return Reply(response.status, dict(response.getheaders()), text)
    finally:
        connection.close()


def _connection(parts: SplitResult, timeout: float) -> http.client.HTTPConnection:
    host = parts.hostname or ""
    if parts.scheme != "https":
        return http.client.HTTPConnection(host, parts.port, timeout=timeout)
    # A test server has a certificate of its own, and the host is this machine.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(
        host, parts.port, timeout=timeout, context=context
    )


# Into the fake


class _Handler(WSGIRequestHandler):
    """Requests of one connection, which ends with the server."""

    def setup(self) -> None:
        super().setup()
        self.server.__dict__["open_sockets"].add(self.connection)

    def finish(self) -> None:
        self.server.__dict__["open_sockets"].discard(self.connection)
        super().finish()

    def send_response(self, code: int, message: str | None = None) -> None:
        """Start the answer without ``Date``, which the app sets."""
        self.send_response_only(code, message)

    def log(self, type: str, message: str, *args: Any) -> None:
        """Log nothing: a query may hold what no log should."""


@contextmanager
def serving(app: WSGIApplication, port: int) -> Iterator[str]:
    """Serve the app on 127.0.0.1, and yield the base URL.

    Afterwards the threads have ended and every socket is closed.
    """
    server = make_server(
        "127.0.0.1", port, app, threaded=True, request_handler=_Handler
    )
    sockets: set[socket.socket] = set()
    server.__dict__["open_sockets"] = sockets
    # serve_forever() ends with server_close(), which waits for these threads.
    server.__dict__["daemon_threads"] = False
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        while thread.is_alive():
            # Again, as a connection may have been accepted a moment ago.
            for each in [*sockets]:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            thread.join(0.02)


class Adapter:
    """A transport adapter for ``requests.Session``: calls the app without a socket."""

    def __init__(self, app: WSGIApplication) -> None:
        # Only this way into the fake needs requests.
        import requests.adapters
        import urllib3

        self._app = app
        self._builder: Any = requests.adapters.HTTPAdapter()
        self._exceptions = requests.exceptions
        self._urllib3 = urllib3

    def send(self, request: Any, **options: Any) -> Any:
        """Return the ``requests.Response`` to the prepared request.

        :raises requests.ConnectionError: the connection ended without an answer.
        :raises requests.ReadTimeout: the answer would come after the timeout.
        """
        environ = self._environ(request, options.get("timeout"))
        try:
            body, status, headers = run_wsgi_app(self._app, environ, buffered=True)
        except TimeoutError as error:
            raise self._exceptions.ReadTimeout(error, request=request) from error
        except ConnectionError as error:
            raise self._exceptions.ConnectionError(error, request=request) from error
        code, _, reason = status.partition(" ")
        raw = self._urllib3.HTTPResponse(
            body=BytesIO(b"".join(body)),
            headers=self._urllib3.HTTPHeaderDict([*headers]),
            status=int(code),
            reason=reason,
            preload_content=False,
            request_method=request.method,
        )
        response = self._builder.build_response(request, raw)
        response.connection = self
        if not options.get("stream"):
            response.content  # noqa: B018 (reads the body, as requests does)
        return response

    def close(self) -> None:
        """Close the adapter; there is no connection."""
        self._builder.close()

    def _environ(self, request: Any, timeout: Any) -> dict[str, Any]:
        parts = urlsplit(request.url)
        body = request.body or b""
        if not isinstance(body, str | bytes):
            body = body.read() if hasattr(body, "read") else b"".join(body)
        builder = EnvironBuilder(
            path=parts.path or "/",
            base_url=origin(request.url),
            query_string=parts.query,
            method=request.method,
            # The body has a length, whatever it was.
            headers=[(k, v) for k, v in request.headers.items() if k not in LENGTHS],
            data=body.encode() if isinstance(body, str) else body,
        )
        try:
            environ = dict(builder.get_environ())
        finally:
            builder.close()
        read = timeout[1] if isinstance(timeout, tuple) else timeout
        environ[CLIENT_TIMEOUT] = getattr(read, "read_timeout", read)
        return environ


def mount(app: WSGIApplication, session: Any, base_urls: tuple[str, ...]) -> None:
    """Mount the app into the session for these base URLs, or for Procore's hosts."""
    adapter = Adapter(app)
    for each in base_urls or HOSTS:
        session.mount(each.rstrip("/") + "/", adapter)
