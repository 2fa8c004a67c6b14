"""Access to the API: tokens, scopes, rate limits, and the log of requests."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass
from datetime import datetime
from datetime import timedelta
from typing import Any

from flask import Flask
from flask import request
from flask import Response
from werkzeug.http import http_date

from .answers import body_object
from .answers import Broken
from .answers import error_answer
from .answers import json_answer
from .answers import Refusal
from .answers import replacement
from .answers import spoil
from .model import Scope
from .switches import Clock
from .switches import Switches
from .world import World

#: Key of the WSGI environment: the order for a broken answer to this request.
BROKEN = "flask_procore_webhooks.fake.broken"

NO_HEADER = (
    "Missing Procore-Company-Id header! Every call names the company of its token, "
    "also if the path does."
)


class Tokens:
    """The OAuth server: tokens of one client, for the grant ``client_credentials``."""

    def __init__(
        self, switches: Switches, clock: Clock, client_id: str, client_secret: str
    ) -> None:
        self.client_id = client_id
        self._switches = switches
        self._clock = clock
        self._client_secret = client_secret
        self._issued: dict[str, datetime] = {}

    def register(self, app: Flask) -> None:
        """Add the routes under ``/oauth``."""
        app.add_url_rule("/oauth/token", "token", self.token, methods=["POST"])
        app.add_url_rule("/oauth/token/info", "token_info", self.info)
        app.add_url_rule("/oauth/revoke", "revoke", self.revoke, methods=["POST"])

    def token(self) -> Response:
        """Issue a token for the client's id and secret."""
        asked = body_object()
        if not self._is_client(asked):
            status, body = self._switches.token_error
            if isinstance(body, str):
                return Response(body, status, mimetype="text/plain")
            return json_answer(body, status)
        if asked.get("grant_type") != "client_credentials":
            return json_answer({"error": "unsupported_grant_type"}, 400)
        token, now = secrets.token_urlsafe(48), self._clock.now()
        self._issued[token] = now
        return json_answer(
            {
                "access_token": token,
                "token_type": "bearer",
                "expires_in": int(self._switches.token_seconds),
                "created_at": int(now.timestamp()),
            }
        )

    def info(self) -> Response:
        """Describe the token of the request."""
        issued = self.check()
        age = (self._clock.now() - issued).total_seconds()
        return json_answer(
            {
                "resource_owner_id": int(self._switches.app_user_id),
                "scopes": [],
                "expires_in_seconds": int(self._switches.token_seconds - age),
                "application": {"uid": self.client_id},
                "created_at": int(issued.timestamp()),
            }
        )

    def revoke(self) -> Response:
        """Make a token invalid; an unknown token is no error."""
        asked = body_object()
        if self._is_client(asked):
            self._issued.pop(str(asked.get("token")), None)
        return json_answer({})

    def expire(self) -> None:
        """Make every token invalid."""
        self._issued.clear()

    def check(self) -> datetime:
        """Return when the token of the request was issued.

        :raises Refusal: the token is unknown, revoked or expired.
        """
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        issued = self._issued.get(token.strip())
        if kind.lower() == "bearer" and issued is not None:
            lifetime = timedelta(seconds=self._switches.token_seconds)
            if self._clock.now() < issued + lifetime:
                return issued
        raise Refusal(401, "The access token is invalid")

    def _is_client(self, asked: dict[str, Any]) -> bool:
        given = asked.get("client_id"), asked.get("client_secret")
        return given == (self.client_id, self._client_secret)


@dataclass
class Window:
    """The calls in one window of a rate limit."""

    limit: int
    start: float
    seconds: float
    used: int = 0

    @property
    def remaining(self) -> int:
        """Calls that are left."""
        return max(0, self.limit - self.used)

    @property
    def end(self) -> float:
        """Unix time at which the next window starts."""
        return math.ceil(self.start + self.seconds)


class Limits:
    """Both rate limits; failed calls count, calls over the limit do not.

    See https://developers.procore.com/documentation/content/rate-limiting.
    """

    def __init__(self, switches: Switches, clock: Clock) -> None:
        self._switches = switches
        self._clock = clock
        self._windows: dict[tuple[str, str], Window] = {}

    def count(self) -> None:
        """Count the request.

        :raises Refusal: a limit is used up.
        """
        windows = self._current()
        for window in windows.values():
            if not window.remaining:
                raise Refusal(429, "You have surpassed the max number of requests.")
        for window in windows.values():
            window.used += 1

    def headers(self, answer: Response) -> dict[str, str]:
        """Return the headers about the limits, which depend on the answer's status."""
        now = self._clock.now().timestamp()
        window = self._shown()
        if answer.status_code != 429:
            if window is None or self._switches.limit_headers == "none":
                return {}
            return self._window_headers(window)
        wait = float(answer.headers.pop("Retry-After", 0))
        if window is None or wait:
            # Not a limit of the fake, but an answer that a test has ordered.
            window = Window(25, now, wait, 25)
        found = {}
        if self._switches.retry_after in ("both", "reset"):
            found.update(self._window_headers(window))
        if self._switches.retry_after in ("both", "retry-after"):
            found["Retry-After"] = str(math.ceil(window.end - now))
        return found

    def _window_headers(self, window: Window) -> dict[str, str]:
        return {
            "X-Rate-Limit-Limit": str(window.limit),
            "X-Rate-Limit-Remaining": str(window.remaining),
            "X-Rate-Limit-Reset": f"{window.end + self._switches.clock_offset:.0f}",
        }

    def _shown(self) -> Window | None:
        """The window that the headers describe."""
        windows = self._current()
        used_up = [each for each in windows.values() if not each.remaining]
        if used_up:
            return max(used_up, key=lambda each: each.end)
        hourly = windows.get("hourly")
        if self._switches.limit_headers == "spike":
            if hourly is None or hourly.remaining * 20 > hourly.limit:
                return windows.get("spike", hourly)
            return hourly
        return min(windows.values(), key=lambda w: w.remaining / w.limit, default=None)

    def _current(self) -> dict[str, Window]:
        switches = self._switches
        by_company = switches.limit_by == "company"
        key = request.headers.get("Procore-Company-Id", "") if by_company else ""
        kinds = {
            "hourly": (switches.hourly_limit, 3600.0),
            "spike": (switches.spike_limit, switches.spike_seconds),
        }
        # Whole seconds, as the headers have them.
        now, windows = math.floor(self._clock.now().timestamp()), {}
        for kind, (limit, seconds) in kinds.items():
            if limit is None:
                continue
            window = self._windows.get((kind, key))
            if window is None or not window.start <= now < window.start + seconds:
                window = self._windows[kind, key] = Window(limit, now, seconds)
            window.limit, window.seconds = limit, seconds
            windows[kind] = window
        return windows


class Gate:
    """What every request passes before its view, and every answer after it."""

    def __init__(self, world: World, tokens: Tokens) -> None:
        self.requests: list[tuple[str, str, int]] = []
        self._world = world
        self._tokens = tokens
        self._limits = Limits(world.switches, world.clock)

    def register(self, app: Flask) -> None:
        """Let every request and answer of the app pass."""
        app.before_request(self.admit)
        app.after_request(self.finish)
        app.register_error_handler(Refusal, self._refuse)

    def admit(self) -> Response | None:
        """Return an answer that takes the place of the view's, if there is one.

        :raises Refusal: the call is over a limit, or is not allowed.
        """
        broken: Broken | None = request.environ.get(BROKEN)
        if request.path.startswith("/rest/"):
            with self._world.lock:
                self._limits.count()
            busy = self._world.switches.busy
            if busy:
                wait = {"Retry-After": str(busy)}
                raise Refusal(503, "Service Unavailable", headers=wait)
        if broken is not None and broken.kind == "429":
            wait = {"Retry-After": f"{broken.seconds:.0f}"}
            raise Refusal(429, "Too Many Requests", headers=wait)
        replaced = replacement(broken, self._world.switches)
        if replaced is None and request.path.startswith("/rest/"):
            with self._world.lock:
                self._tokens.check()
                self._check_scope()
        return replaced

    def finish(self, answer: Response) -> Response:
        """Add the headers that every answer has, and log the request."""
        spoil(request.environ.get(BROKEN), answer)
        offset = timedelta(seconds=self._world.switches.clock_offset)
        answer.headers["Date"] = http_date(self._world.clock.now() + offset)
        with self._world.lock:
            if request.path.startswith("/rest/") or answer.status_code == 429:
                answer.headers.update(self._limits.headers(answer))
            self.requests.append((request.method, request.path, answer.status_code))
        return answer

    def _check_scope(self) -> None:
        company = request.headers.get("Procore-Company-Id")
        if not company:
            raise Refusal(self._world.switches.missing_company, NO_HEADER)
        given = request.view_args or {}
        check_scope(self._world, company, None)
        check_scope(self._world, given.get("company", company), given.get("project"))

    def _refuse(self, refusal: Refusal) -> Response:
        return error_answer(refusal, self._world.switches)


def check_scope(world: World, company: str, project: str | None) -> Scope:
    """Return the scope.

    :raises Refusal: it is unknown, or calls in it are forbidden.
    """
    scopes = [Scope(company), Scope(company, project)]
    for scope in scopes:
        status = world.forbidden.get(scope)
        if status is not None:
            message = "Forbidden" if status == 403 else "Not Found"
            raise Refusal(status, message)
    if company not in world.companies:
        raise Refusal(403, "App is not connected to this company")
    if project is not None and project not in world.companies[company]:
        raise Refusal(404, "Not Found", source="project_id")
    return Scope(company, project)
