"""Send one delivery to any HTTP receiver, as a sender of webhooks does."""

from __future__ import annotations

import http.client
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

#: As much of an answer as is kept; Procore keeps the whole.
ANSWER_BYTES = 2000


@dataclass(frozen=True)
class Answer:
    """What came back; ``status`` is 0 and ``body`` says why when nothing did."""

    status: int
    seconds: float
    body: str

    @property
    def accepted(self) -> bool:
        """Whether the sender counts it as delivered: 2xx, so no redirect either."""
        return 200 <= self.status < 300


def send(
    url: str, body: bytes, headers: Mapping[str, str], *, timeout: float
) -> Answer:
    """POST ``body`` and return the answer; redirects are not followed.

    :param timeout: seconds without any byte from the receiver.
    :raises ValueError: ``url`` is not an http or https URL with a host.
    """
    connection, target = _connect(url, timeout)
    start = time.perf_counter()
    try:
        connection.request("POST", target, body, dict(headers))
        response = connection.getresponse()
        text = response.read(ANSWER_BYTES).decode("utf-8", "backslashreplace")
        status = response.status
    except (OSError, http.client.HTTPException) as error:
        status, text = 0, f"no answer: {error or type(error).__name__}"
    finally:
        connection.close()
    return Answer(status, time.perf_counter() - start, text)


def _connect(url: str, timeout: float) -> tuple[http.client.HTTPConnection, str]:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is not an http:// or https:// URL")
    secure = parts.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return kind(parts.hostname, parts.port, timeout=timeout), target
