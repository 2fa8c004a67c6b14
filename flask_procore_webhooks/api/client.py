"""ProcoreAPI: calls of Procore's REST API, with its token, its paging, its rate limits.

https://developers.procore.com/documentation/content/rate-limiting
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from copy import copy
from datetime import datetime
from datetime import timezone
from functools import partial
from typing import Any

import requests

from ..config.api import ApiSettings
from ..config.api import is_secure
from ..errors import ConfigError
from .answers import Answer
from .answers import message_of
from .answers import one_line
from .answers import read_json
from .answers import Received
from .answers import secrets_in
from .changes import Change
from .changes import changed_since
from .errors import APIError
from .errors import BadAnswer
from .errors import NotFound
from .errors import NotPermitted
from .errors import RateLimited
from .errors import Unavailable
from .limits import Budget
from .limits import read_limit
from .limits import read_wait
from .limits import SPIKE
from .limits import USUAL_WAIT
from .paging import next_query
from .paging import read_pages
from .tokens import Token
from .tokens import TokenCache
from .tokens import Tokens
from .transport import Client
from .transport import reading
from .transport import Transport

#: Seconds to connect, and between two parts of an answer.
TIMEOUT = (5.0, 30.0)
#: Seconds that a call may wait for rate limits: the spike limit is over by then.
WAIT = SPIKE + 1.0
ERRORS = {403: NotPermitted, 404: NotFound}

Params = Mapping[str, Any]


class ProcoreAPI:
    """Procore's REST API with the credentials of an app.

    Threads may share one object. Calls are not repeated, with three exceptions: after a
    401 once with a new token, and after a 429 or a 503 when the time that Procore names
    has passed. Redirects are not followed. The repr, errors and log lines hold no
    secret.

    :param client_id: of the app at Procore.
    :param company_id: sent as ``Procore-Company-Id`` where a call names no other.
    :param base_url: https, or http on this machine.
    :param login_url: of the server that gives tokens.
    :param session: sends the requests; by default one session for each thread.
    :param timeout: seconds to connect, and between two parts of an answer.
    :param wait: seconds that one call may wait for rate limits and after a 503.
    :param cache: shares the access token with other processes.
    :param reserve: the part of each rate limit that is left to others: with 0.2, calls
        wait while a fifth of the requests is left.
    :param sleep: waits so many seconds; for tests.
    :raises ConfigError: an address is neither https nor on this machine.
    """

    def __init__(
        self,
        client_id: str,
        client_secret: str,
        *,
        company_id: str | int | None = None,
        base_url: str = ApiSettings.api_url,
        login_url: str = ApiSettings.login_url,
        session: requests.Session | None = None,
        timeout: tuple[float, float] = TIMEOUT,
        wait: float = WAIT,
        cache: TokenCache | None = None,
        reserve: float = 0.0,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        for name, url in (("base_url", base_url), ("login_url", login_url)):
            if not is_secure(url):
                raise ConfigError([f"{name} must begin with https://."])
        self.company_id = None if company_id is None else str(company_id)
        self.wait = wait
        self._sleep = sleep
        #: By company: whether the limits are for an app or for each of its companies is
        #: not documented. The first 429 tells.
        self._budgets: dict[str | None, Budget] = {}
        self._reserve = reserve
        self._transport = Transport(
            Client(client_id, client_secret), base_url, login_url, session, timeout
        )
        self._tokens = Tokens(self._transport.log_in, cache)

    def of_company(self, company_id: str | int) -> ProcoreAPI:
        """This client for another company; both share the token and connections."""
        other = copy(self)
        other.company_id = str(company_id)
        return other

    def shown(self, text: str) -> str:
        """A text of Procore as it may be shown: in one line, without secrets."""
        return one_line(text, (self._transport.client.secret, self._tokens.text))

    def __repr__(self) -> str:
        return f"<ProcoreAPI {self._transport.base_url}>"

    def time(self, *, ask: bool = False) -> datetime | None:
        """Procore's time now, by the ``Date`` of its last answer; ``None`` before.

        :param ask: make a request for it, without credentials.
        :raises APIError: with ``ask``, no answer came.
        """
        if ask:
            self._transport.ask_time()
        ahead = self._transport.seconds_ahead
        if ahead is None:
            return None
        return datetime.fromtimestamp(time.time() + ahead, timezone.utc)

    def get(self, path: str, params: Params | None = None, **options: Any) -> Any:
        """The JSON value of a GET.

        :param path: as in ``"/rest/v1.0/projects/2/rfis/4"``.
        :param options: ``company_id`` and ``wait``, in place of those of the client.
        :raises APIError: see :mod:`flask_procore_webhooks.api.errors`.
        """
        return self._value("GET", path, params=params, **options)

    def post(self, path: str, json: Any = None, **options: Any) -> Any:
        """The JSON value of the answer to a POST; ``None`` without one."""
        return self._value("POST", path, json=json, **options)

    def patch(self, path: str, json: Any = None, **options: Any) -> Any:
        """The JSON value of the answer to a PATCH; ``None`` without one."""
        return self._value("PATCH", path, json=json, **options)

    def delete(self, path: str, json: Any = None, **options: Any) -> Any:
        """The JSON value of the answer to a DELETE; ``None`` without one."""
        return self._value("DELETE", path, json=json, **options)

    def pages(
        self, path: str, params: Params | None = None, **options: Any
    ) -> Iterator[dict[str, Any]]:
        """Each object of a list, over all of its pages.

        :raises APIError: a page could not be read, or repeats the one before. Objects
            of the pages before have been yielded.
        """
        for page in self.whole_pages(path, params, **options):
            yield from page

    def changed_since(
        self,
        resource_type: str,
        *,
        since: datetime,
        project_id: str | int | None = None,
        company_id: str | int | None = None,
    ) -> Iterator[Change]:
        """What was created or updated since a time, by Procore's list of the resource.

        Deleted ones are not in it. For the app's own sweep, with
        :meth:`ProcoreWebhooks.enqueue_changes`.

        :param resource_type: as in a webhook, ``"Submittals"``; one whose list filters
            by update time (:data:`flask_procore_webhooks.api.lists.LISTS`).
        :param since: aware.
        :raises ValueError: the list is not known, or needs an id that is missing.
        :raises APIError: as :meth:`pages`.
        """
        return changed_since(
            self, resource_type, since, project_id=project_id, company_id=company_id
        )

    def whole_pages(
        self, path: str, params: Params | None = None, **options: Any
    ) -> Iterator[list[dict[str, Any]]]:
        """The pages of a list, as :meth:`pages`."""
        ask = partial(self.request, "GET", path, **options)
        return read_pages(ask, path, params or {})

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        json: Any = None,
        company_id: str | int | None = None,
        wait: float | None = None,
    ) -> Answer:
        """Make one call and return its answer, which is in 2xx.

        :param path: begins with ``"/"``; errors name it without its query.
        :param wait: seconds that the call may wait for rate limits and after a 503.
        :raises APIError: any other answer, or none.
        :raises ValueError: the path is an address, or relative.
        """
        if not path.startswith("/"):
            # Behind the address of the API, it could name another host.
            raise ValueError("The path of a call begins with '/'.")
        left = self.wait if wait is None else wait
        company = self.company_id if company_id is None else str(company_id)
        budget = self._budgets.setdefault(company, Budget(self._reserve))
        headers = {"Accept": "application/json"}
        if company is not None:
            headers["Procore-Company-Id"] = company
        refused: Token | None = None
        while True:
            left -= self._wait_for_limits(budget, method, path, left)
            token = self._tokens.get(refused)
            response = self._transport.send(
                method, path, token, headers=headers, params=params, json=json
            )
            budget.note(read_limit(response.headers))
            if response.status == 401 and refused is None:
                refused = token
            elif response.status == 429:
                # The next turn of the loop waits, if there is time.
                budget.block(read_wait(429, response.headers) or USUAL_WAIT)
            elif response.status == 503:
                left -= self._wait_after_503(method, path, response, left)
            else:
                secrets = token.text, *secrets_in(json)
                return self._answer(method, path, response, secrets)

    def _value(self, method: str, path: str, **options: Any) -> Any:
        answer = self.request(method, path, **options)
        if answer.value is None and method == "GET":
            raise BadAnswer(method, path, answer.status, "the answer is empty")
        return answer.value

    def _answer(
        self, method: str, path: str, response: Received, secrets: Iterable[str]
    ) -> Answer:
        status = response.status
        if 200 <= status < 300:
            with reading(method, path, status):
                value, following = read_json(response), next_query(response.headers)
            return Answer(status, response.headers, value, following)
        if 300 <= status < 400:
            raise BadAnswer(
                method, path, status, f"{status}, a redirect: check the address"
            )
        message = message_of(response, (self._transport.client.secret, *secrets))
        text = f"{status}, {message}" if message else f"{status}"
        raise ERRORS.get(status, APIError)(method, path, status, text)

    def _wait_for_limits(
        self, budget: Budget, method: str, path: str, left: float
    ) -> float:
        """Wait until the next request may be made; return the seconds.

        :param left: seconds that the call may still wait.
        :raises RateLimited: the wait is longer.
        """
        block = budget.block_now
        seconds = block.until - time.monotonic()
        if seconds <= 0:
            return 0.0
        if seconds > left:
            text = f"the {block.limit} is used up for {seconds:.0f} s"
            raise RateLimited(method, path, 429, text, seconds)
        self._sleep(seconds)
        budget.unblock(block)
        return seconds

    def _wait_after_503(
        self, method: str, path: str, response: Received, left: float
    ) -> float:
        """Wait for as long as the answer says; return the seconds.

        :raises Unavailable: the answer names no time, or one longer than ``left``.
        """
        seconds = read_wait(503, response.headers)
        if seconds is None or seconds > left:
            how_long = "" if seconds is None else f" for {seconds:.0f} s"
            text = f"503, Procore is unavailable{how_long}"
            raise Unavailable(method, path, 503, text, seconds)
        self._sleep(seconds)
        return seconds
