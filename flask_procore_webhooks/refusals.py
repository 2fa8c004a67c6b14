"""Refused deliveries: log lines, counts, and connections with an unread body."""

from __future__ import annotations

import logging
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from io import BytesIO
from typing import Any

from .config.values import shown
from .errors import BadAuthorization
from .errors import BadSignature
from .errors import DeliveryError
from .errors import EventBusy
from .errors import InboxUnavailable
from .errors import NoSecret
from .errors import PayloadTooLarge
from .inbox import tally
from .log import log
from .storage.store import Store

#: Seconds between two lines of one cause.
INTERVAL = 60.0
#: Causes that are counted apart; those beyond share one count.
MOST_CAUSES = 200
OTHER_CAUSE = "other"
DIGITS = re.compile(r"\d+")
#: Bytes of a body that arrive together with the headers.
SMALL_BODY = 8192
#: The key in the WSGI environment of the function that leaves an unread body.
LEAVE = "flask_procore_webhooks.leave"
#: Seconds to wait for the next bytes of a larger unread body, and for all of them.
PAUSE, LINGER = 0.05, 0.5


class RefusalLog:
    """Logs the first refusal of a cause at once, and then counts them.

    A cause is an endpoint, a status and a check. After its first line, the next line is
    logged at the first refusal that comes at least ``INTERVAL`` seconds later, with the
    number of those between them. Memory is bounded, whatever senders send.

    :param clock: seconds, which only rise.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        #: By cause: the time of the last line, and the refusals since then.
        self._counts: dict[tuple[str, int, str], tuple[float, int]] = {}

    def write(self, endpoint: str, error: DeliveryError) -> None:
        """Log the refusal, or count it."""
        level = _level(error)
        due = self._count(endpoint, error) if log.isEnabledFor(level) else None
        if due is None:
            return
        count, seconds = due
        more = f" (and {count:,} more in the last {seconds:,.0f} s)" if count else ""
        reason = error.reason + more
        log.log(level, "%s answered %s: %s", endpoint, error.status, reason)

    def _count(self, endpoint: str, error: DeliveryError) -> tuple[int, float] | None:
        """The refusals since the last line and its age; ``None`` if none is due."""
        cause = (endpoint, error.status, DIGITS.sub("#", error.cause))
        with self._lock:
            now = self._clock()
            if cause not in self._counts and len(self._counts) >= MOST_CAUSES:
                cause = (endpoint, error.status, OTHER_CAUSE)
            last, count = self._counts.get(cause, (now - INTERVAL, 0))
            is_due = now - last >= INTERVAL
            self._counts[cause] = (now, 0) if is_due else (last, count + 1)
            return (count, now - last) if is_due else None


def with_hint(error: DeliveryError, environ: dict[str, Any]) -> DeliveryError:
    """The error with what the server is known to do in its reason."""
    hides = "mod_wsgi.version" in environ and "HTTP_AUTHORIZATION" not in environ
    if isinstance(error, BadAuthorization) and hides:
        return BadAuthorization(
            f"{error.reason}: mod_wsgi hides it unless Apache's configuration has"
            " WSGIPassAuthorization On"
        )
    return error


def unknown_end(environ: dict[str, Any]) -> str:
    """Why a body of unknown length is refused, with the name of the server."""
    found = "uWSGI" if "uwsgi.version" in environ else environ.get("SERVER_SOFTWARE")
    server = shown(found or _calling_package())
    if environ.get("CONTENT_LENGTH"):
        return (
            f"the end of the body is unknown: the server ({server}) gave a"
            " Content-Length and Transfer-Encoding, which exclude each other. Let the"
            " proxy in front remove Transfer-Encoding when it has buffered the body"
        )
    return (
        f"the end of the body is unknown: the server ({server}) gave neither a"
        " Content-Length nor wsgi.input_terminated. Put a proxy in front that buffers"
        " requests, or use another server"
    )


def _calling_package() -> str:
    """The package that called the app, for servers that do not give their name."""
    frame, found = sys._getframe(), "unnamed"
    while frame := frame.f_back:  # type: ignore[assignment]
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        if package != "__main__" and package not in sys.stdlib_module_names:
            found = package
    return found


def count_refusal(store: Store, error: DeliveryError) -> None:
    """Count the refusal without a statement: it costs the database nothing.

    A delivery that was recorded has been counted before.
    """
    if isinstance(error, (NoSecret, InboxUnavailable)):
        tally.count(store, tally.UNAVAILABLE)
    elif isinstance(error, (BadSignature, PayloadTooLarge)):
        tally.count(store, tally.REJECTED)


def leave_unread(environ: dict[str, Any], length: int | None) -> None:
    """Give the host an empty body instead of the unread one, which may never end."""
    if length != 0:
        environ[LEAVE] = partial(leave_body, dict(environ), length)
    environ["wsgi.input"], environ["CONTENT_LENGTH"] = BytesIO(), "0"


def leave_body(environ: dict[str, Any], length: int | None) -> None:
    """End the connection of a refused request whose body was not read.

    gunicorn otherwise waits for the rest of the body, so that a client that sends one
    byte every few seconds occupies a thread. Other servers close the connection or have
    read the body before the app is called. What has arrived is read first: a reset
    could otherwise overtake the answer. Call it after the answer has been sent.

    :param length: of the body, as announced; ``None`` for a chunked one.
    """
    connection = environ.get("gunicorn.socket")
    # HTTP/2 has other requests on the same connection.
    if connection is None or not environ["SERVER_PROTOCOL"].startswith("HTTP/1"):
        return
    pause = PAUSE if length is None or length > SMALL_BODY else 0.0
    # The methods of a plain socket: those of a TLS socket would wait or decrypt.
    with suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_WR)
        _discard(connection, pause)
    with suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RD)


def _discard(connection: socket.socket, pause: float) -> None:
    """Read what arrives with gaps of at most ``pause`` seconds."""
    end = time.monotonic() + LINGER
    socket.socket.settimeout(connection, pause)
    while time.monotonic() < end and socket.socket.recv(connection, 65536):
        pass


def _level(error: DeliveryError) -> int:
    if isinstance(error, EventBusy):
        return logging.INFO
    unusable = isinstance(error, (InboxUnavailable, NoSecret))
    return logging.ERROR if unusable else logging.WARNING
