"""Send one delivery to any HTTP receiver, as a sender of webhooks does."""

from __future__ import annotations

import http.client
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

#: Bytes of an answer that are read; Procore keeps the whole.
ANSWER_BYTES = 4000


@dataclass(frozen=True)
class Answer:
    """The answer; without one, ``status`` is 0 and ``text`` says why."""

    status: int
    seconds: float
    text: str

    @property
    def accepted(self) -> bool:
        """Whether the sender counts the delivery as delivered: 2xx, so no redirect."""
        return 200 <= self.status < 300


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def send(
    url: str, body: bytes, headers: Mapping[str, str], *, timeout: float
) -> Answer:
    """POST ``body`` and return the answer; redirects are not followed.

    :param timeout: seconds for the connection, and for each read of the answer.
    """
    start = time.perf_counter()
    request = urllib.request.Request(url, body, dict(headers), method="POST")
    # A delivery goes to the receiver itself, whatever proxy the environment names.
    opener = urllib.request.build_opener(_NoRedirect, urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout) as response:
            status, text = response.status, _text(response)
    except urllib.error.HTTPError as response:
        with response:
            status, text = response.code, _text(response)
        if 300 <= status < 400:
            target = response.headers.get("Location", "nowhere")
            text = f"redirects to {target}, where no sender follows"
    except (OSError, http.client.HTTPException) as error:
        cause = getattr(error, "reason", error)
        status, text = 0, f"no answer: {_explain(cause, timeout)}"
    seconds = time.perf_counter() - start
    if status and seconds > timeout:
        # The sender would have given up on an answer that drips in.
        status, text = 0, f"no answer: {_explain(TimeoutError(), timeout)}"
    return Answer(status, seconds, text)


def check_url(url: str) -> None:
    """Raise a :class:`ValueError` that says why nothing can be sent to ``url``."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is not an http:// or https:// URL")
    if parts.port == 0:
        raise ValueError("port 0 cannot be connected to")
    if "@" in parts.netloc:
        raise ValueError("a name and password in it are not sent; --authorization is")


def _text(response: Any) -> str:
    content: bytes = response.read(ANSWER_BYTES)
    return content.decode("utf-8", "backslashreplace")


def _explain(error: object, timeout: float) -> str:
    if isinstance(error, TimeoutError):
        return f"not complete within {timeout:g} s"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused; is the receiver running?"
    if isinstance(error, http.client.RemoteDisconnected):
        return "the receiver closed the connection without an answer"
    if isinstance(error, http.client.BadStatusLine):
        return "the answer is not HTTP; does the port want https://?"
    if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
        return "the port does not speak TLS; does it want http://?"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
