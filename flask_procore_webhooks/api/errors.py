"""Errors of calls to Procore's REST API, and what they mean for a subscriber's job::

ProcoreWebhooksError
└── APIError             the call has failed; method, path and status
    ├── LoginFailed      no access token
    ├── NotPermitted     403
    ├── NotFound         404; Procore also answers it where permission is missing
    ├── RateLimited      429, and the wait does not fit the time that is left
    ├── Unavailable      503, or no answer
    └── BadAnswer        an answer that is not the documented one
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import requests

from ..errors import Discard
from ..errors import ProcoreWebhooksError
from ..errors import RetryLater
from .limits import read_wait


class APIError(ProcoreWebhooksError):
    """A call of Procore's API has failed.

    :param method: of the request.
    :param path: of the request, without its query.
    :param status: of the answer; 0 without one.
    :param text: what happened, without secrets.
    """

    def __init__(self, method: str, path: str, status: int, text: str) -> None:
        self.method = method
        self.path, _, _ = path.partition("?")
        self.status = status
        self.text = text
        super().__init__(method, self.path, status, text)

    def __str__(self) -> str:
        return f"{self.method} {self.path}: {self.text}"


class LoginFailed(APIError):
    """Procore gave no access token."""


class NotPermitted(APIError):
    """403: the app may not do this, or is not installed in the company."""


class NotFound(APIError):
    """404: the resource does not exist, or is not visible to the app."""


class BadAnswer(APIError):
    """The answer is not the documented one: HTML, cut JSON, a redirect, a null list."""


class _Busy(APIError):
    #: Seconds until the next call may succeed; ``None`` if Procore has not said.
    after: float | None

    def __init__(
        self,
        method: str,
        path: str,
        status: int,
        text: str,
        after: float | None = None,
    ) -> None:
        super().__init__(method, path, status, text)
        self.after = after


class RateLimited(_Busy):
    """A rate limit is used up, and the wait does not fit the time that is left."""


class Unavailable(_Busy):
    """503, a connection that failed, or no answer in time."""


#: Errors of requests after which the call may succeed later.
NO_ANSWER = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
)


@contextmanager
def procore_errors() -> Iterator[None]:
    """Turn errors of Procore's API into what they mean for the subscriber's job.

    404 becomes :class:`Discard`. 429, 503 and failed connections become
    :class:`RetryLater`, after the time that Procore has named. The job's error names
    the call. Other errors are raised unchanged: the attempt has failed. It also takes
    the errors of :mod:`requests`, for an app with a client of its own.
    """
    try:
        yield
    except NotFound as error:
        raise Discard(str(error)) from error
    except _Busy as error:
        raise RetryLater(error.after, str(error)) from error
    except OSError as error:
        # The base of the errors of requests.
        found = _of_requests(error)
        if found is None:
            raise
        raise found from error


def _of_requests(error: OSError) -> Discard | RetryLater | None:
    if isinstance(error, NO_ANSWER):
        text = f"{_named(error.request)}: no answer ({type(error).__name__})"
        return RetryLater(reason=text)
    answer = getattr(error, "response", None)
    if not isinstance(error, requests.HTTPError) or answer is None:
        return None
    text = f"{_named(answer.request)}: {answer.status_code}"
    if answer.status_code == 404:
        return Discard(text)
    if answer.status_code in (429, 503):
        return RetryLater(read_wait(answer.status_code, answer.headers), text)
    return None


def _named(request: Any) -> str:
    """Method and path, without the query, which may hold a secret."""
    method, url = getattr(request, "method", None), getattr(request, "url", None)
    return f"{method} {urlsplit(url).path}" if method and url else "a request"
