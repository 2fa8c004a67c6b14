"""Send one delivery to any HTTP receiver, as a sender of webhooks does."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

#: As much of an answer as is read; Procore keeps the whole.
ANSWER_BYTES = 4000


@dataclass(frozen=True)
class Answer:
    """What came back; ``status`` is 0 and ``text`` says why when nothing did."""

    status: int
    seconds: float
    text: str

    @property
    def accepted(self) -> bool:
        """Whether the sender counts it as delivered: 2xx, so no redirect either."""
        return 200 <= self.status < 300


def send(
    url: str, body: bytes, headers: Mapping[str, str], *, timeout: float
) -> Answer:
    """POST ``body`` and return the answer; redirects are not followed.

    :param timeout: seconds for the connection, and again for the whole answer.
    """
    start = time.perf_counter()
    try:
        status, text = _exchange(url, body, headers, timeout)
    except (OSError, http.client.HTTPException) as error:
        status, text = 0, f"no answer: {_explained(error, timeout)}"
    return Answer(status, time.perf_counter() - start, text)


def check_url(url: str) -> None:
    """Raise a :class:`ValueError` that says why nothing can be sent to ``url``."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is not an http:// or https:// URL")
    if parts.port == 0:
        raise ValueError("port 0 cannot be connected to")
    if "@" in parts.netloc:
        raise ValueError("a name and password in it are not sent; --authorization is")


def _exchange(
    url: str, body: bytes, headers: Mapping[str, str], timeout: float
) -> tuple[int, str]:
    connection, target = _connection(url, timeout)
    try:
        connection.connect()
        with _deadline(connection.sock, timeout):
            connection.request("POST", target, body, dict(headers))
            response = connection.getresponse()
            content = response.read(ANSWER_BYTES)
    finally:
        connection.close()
    if 300 <= response.status < 400:
        target = response.headers.get("Location", "nowhere")
        return response.status, f"redirects to {target}, where no sender follows"
    return response.status, content.decode("utf-8", "backslashreplace")


def _connection(url: str, timeout: float) -> tuple[http.client.HTTPConnection, str]:
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return kind(str(parts.hostname), parts.port, timeout=timeout), target


@contextmanager
def _deadline(connected: socket.socket, seconds: float) -> Iterator[None]:
    """End the connection after ``seconds``, however slowly its bytes drip in."""
    passed = threading.Event()

    def end() -> None:
        passed.set()
        try:
            # Past the TLS layer, which is in the other thread's hands.
            socket.socket.shutdown(connected, socket.SHUT_RDWR)
        except OSError:
            pass  # it has ended already

    timer = threading.Timer(seconds, end)
    timer.start()
    try:
        yield
    except (OSError, http.client.HTTPException):
        if not passed.is_set():
            raise
    finally:
        timer.cancel()
    if passed.is_set():
        raise TimeoutError


def _explained(error: Exception, timeout: float) -> str:
    if isinstance(error, TimeoutError):
        return f"not complete within {timeout:g} s"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused; is the receiver running?"
    if isinstance(error, http.client.RemoteDisconnected):
        return "the connection was closed without one"
    if isinstance(error, http.client.BadStatusLine):
        return "what came back is not HTTP; does the port want https://?"
    if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
        return "the port does not speak TLS; does it want http://?"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
