"""Transport: one HTTP request to Procore, and the request of a token."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.auth import AuthBase

from .answers import NotDocumented
from .answers import read_json
from .answers import Received
from .errors import APIError
from .errors import BadAnswer
from .errors import LoginFailed
from .errors import NO_ANSWER
from .errors import Unavailable
from .limits import date_of
from .limits import read_wait
from .tokens import Token

LOGIN_PATH = "/oauth/token"
#: Seconds that a token is good for where Procore does not say, and at most.
TOKEN_SECONDS, LONGEST_TOKEN = 5400.0, 366 * 24 * 3600.0
TOKEN = re.compile(r"[!-~]+")
#: Bytes of an answer, seconds for its body, and bytes that are read at a time.
MOST_BYTES, LONGEST_BODY, PART = 64 * 2**20, 120.0, 4096


class _TooLong(Exception):
    """The body of an answer has too many bytes, or takes too long."""


@dataclass(frozen=True)
class Client:
    """The credentials of an app at Procore."""

    id: str
    secret: str = field(repr=False)


class Transport:
    """Sends requests; a request has a timeout, follows no redirect, is not repeated."""

    def __init__(
        self,
        client: Client,
        base_url: str,
        login_url: str,
        session: requests.Session | None,
        timeout: tuple[float, float],
    ) -> None:
        self.client = client
        self.base_url = base_url.rstrip("/")
        self._login_url = login_url.rstrip("/")
        self._given = session
        self._timeout = timeout
        #: Seconds by which Procore's clock was ahead of this host's at the last answer.
        self.seconds_ahead: float | None = None
        self._local = threading.local()

    def send(self, method: str, path: str, token: Token, **options: Any) -> Received:
        """The answer, whatever its status.

        :param options: as for ``requests.Session.request``.
        :raises Unavailable: no answer came.
        :raises APIError: the request cannot be sent, or its answer cannot be read.
        """
        url = self.base_url + path
        return self._send(method, url, path, auth=_Bearer(token), **options)

    def ask_time(self) -> None:
        """Make a request without credentials, for the time in its answer.

        :raises APIError: no answer came, or it cannot be read.
        """
        self._send("HEAD", self.base_url, "/", auth=_NoAuth())

    def log_in(self) -> Token:
        """Ask for a token.

        https://developers.procore.com/documentation/oauth-client-credentials

        :raises LoginFailed: Procore refuses the credentials.
        :raises Unavailable: there was no answer, or one in 5xx or 429.
        """
        form = {
            "grant_type": "client_credentials",
            "client_id": self.client.id,
            "client_secret": self.client.secret,
        }
        url = self._login_url + LOGIN_PATH
        response = self._send("POST", url, LOGIN_PATH, auth=_NoAuth(), data=form)
        if not 200 <= response.status < 300:
            raise _login_error(response)
        with reading("POST", LOGIN_PATH, response.status):
            return _token(read_json(response))

    def _send(self, method: str, url: str, path: str, **options: Any) -> Received:
        if url.startswith("http://"):
            # An address of this machine, of which no proxy learns.
            options["proxies"] = {"http": None, "all": None}
        try:
            with self._session.request(
                method,
                url,
                timeout=self._timeout,
                allow_redirects=False,
                stream=True,
                **options,
            ) as response:
                received = _received(response)
        except (requests.RequestException, ValueError, OverflowError) as error:
            # Its text and its request may hold what was sent. ValueError: of an address
            # or a header that cannot be used, here or in the answer.
            kind, is_lost = type(error).__name__, isinstance(error, NO_ANSWER)
        except _TooLong as error:
            kind, is_lost = str(error), False
        else:
            date = date_of(received.headers)
            if date is not None:
                self.seconds_ahead = date - time.time()
            return received
        if is_lost:
            text = f"no answer from {urlsplit(url).netloc} ({kind})"
            raise Unavailable(method, path, 0, text)
        raise APIError(method, path, 0, f"cannot be sent or read ({kind})")

    @property
    def _session(self) -> requests.Session:
        if self._given is not None:
            return self._given
        # A forked child must not use the connections of its parent.
        if getattr(self._local, "pid", None) != os.getpid():
            self._local.session, self._local.pid = requests.Session(), os.getpid()
        found: requests.Session = self._local.session
        return found


@contextmanager
def reading(method: str, path: str, status: int) -> Iterator[None]:
    """Raise :class:`BadAnswer` for an answer that is not the documented one."""
    try:
        yield
    except NotDocumented as error:
        text = str(error)
    else:
        return
    raise BadAnswer(method, path, status, text)


def _received(response: requests.Response) -> Received:
    """The whole answer.

    :raises _TooLong: its body does not end.
    """
    parts, size = [], 0
    until = time.monotonic() + LONGEST_BODY
    for part in response.iter_content(PART):
        size += len(part)
        if size > MOST_BYTES:
            raise _TooLong(f"more than {MOST_BYTES >> 20} MB")
        if time.monotonic() > until:
            raise _TooLong(f"not complete in {LONGEST_BODY:.0f} s")
        parts.append(part)
    return Received(response.status_code, response.headers, b"".join(parts))


class _Bearer(AuthBase):
    """Sets the token. With it, requests takes no other one from ``.netrc``."""

    def __init__(self, token: Token) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token.text}"
        return request


class _NoAuth(AuthBase):
    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return request


def _login_error(response: Received) -> APIError:
    status, text = response.status, f"{response.status}, no access token"
    if status == 429 or status >= 500:
        after = read_wait(status, response.headers)
        return Unavailable("POST", LOGIN_PATH, status, text, after)
    text += ": check client id, secret, login address"
    return LoginFailed("POST", LOGIN_PATH, status, text)


def _token(value: Any) -> Token:
    text = value.get("access_token") if isinstance(value, dict) else None
    if not isinstance(text, str) or not text:
        raise NotDocumented("the answer holds no access_token")
    if not TOKEN.fullmatch(text):
        raise NotDocumented("the access_token has characters that no header can have")
    seconds = value.get("expires_in")
    is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    is_usable = is_number and 0 < seconds <= LONGEST_TOKEN
    return Token(text, time.monotonic() + (seconds if is_usable else TOKEN_SECONDS))
