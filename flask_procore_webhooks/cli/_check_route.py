"""The part of ``check`` that examines whether deliveries reach the view."""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Iterator
from contextvars import Context
from typing import Any
from typing import TYPE_CHECKING

from flask import Flask
from flask.testing import FlaskClient
from werkzeug.routing import Rule
from werkzeug.sansio.utils import host_is_trusted

from ..config.values import without_scheme
from ..dispatching.background import PROBE
from ..endpoint import Endpoint
from ..endpoint import endpoints
from ._findings import Finding
from ._findings import warning

if TYPE_CHECKING:
    from werkzeug.test import TestResponse

#: The answers of the view to wrong credentials: 503 without a configured secret.
REFUSALS = (401, 503)


def route(endpoint: Endpoint) -> Iterator[Finding]:
    yield from _reachable(endpoint)
    yield from _path_conflicts(endpoint)
    yield from _rate_limits(endpoint)


def _reachable(endpoint: Endpoint) -> Iterator[Finding]:
    """Send a delivery with wrong credentials; the view notes that it was called."""
    reached: list[str] = []
    rule = _rule_of(endpoint)
    try:
        # In an empty context: the command's app context holds the host's g.
        answer = Context().run(_probe, endpoint, rule, reached)
        result = f"was answered {answer.status} by another handler"
    except Exception as error:
        answer = None
        result = f"ended in {endpoint.store.database.explain(error)}"
    if reached == [endpoint.name] and answer is not None:
        yield from _changed_answer(endpoint, answer)
    elif answer is not None and answer.status_code == 404 and "<" in str(rule):
        return  # a variable, as in <int:tenant>, has no known value
    else:
        yield Finding(
            f"A POST with wrong credentials to {endpoint.path} {result}, and so would a"
            " delivery: a before_request (a login check?), an extension or another"
            " route. Let requests pass whose request.blueprint is"
            f" {endpoint.blueprint!r}.{_suspects(endpoint.app)}"
        )


def _probe(endpoint: Endpoint, rule: Rule, reached: list[str]) -> TestResponse:
    # Not the app's own test client, which may add headers. By HTTPS, which some apps
    # require, and with a host name that the app accepts.
    app = endpoint.app
    client = FlaskClient(app, app.response_class, use_cookies=False)
    host = _host(app, rule)
    return client.post(
        f"https://{host}{rule.rule}" if host else rule.rule,
        data=b"{}",
        content_type="application/json",
        headers=_wrong_credentials(endpoint),
        url_scheme="https",
        environ_overrides={PROBE: reached},
    )


def _wrong_credentials(endpoint: Endpoint) -> dict[str, str]:
    """Headers of the configured kinds, which no secret makes authentic.

    Functions of the app that demand such headers let a delivery pass.
    """
    settings, source = endpoint.settings, endpoint.source
    headers = {}
    if settings.secrets or not settings.authorizations:
        headers[source.signature_header] = source.signature_prefix + "0" * 64
        headers[source.timestamp_header] = str(int(time.time()))
    if settings.authorizations:
        given = settings.authorizations[0]
        scheme = given.removesuffix(without_scheme(given)).decode("latin-1")
        # Random, so that it is not a configured value; as Basic, a user and a password.
        value = base64.b64encode(b"check:" + secrets.token_hex(12).encode()).decode()
        headers["Authorization"] = f"{scheme or 'Bearer '}{value}"
    return headers


def _changed_answer(endpoint: Endpoint, answer: TestResponse) -> Iterator[Finding]:
    if answer.status_code in REFUSALS:
        return
    if answer.status_code >= 500:
        yield Finding(
            f"A POST with wrong credentials to {endpoint.path} reached the endpoint,"
            f" and its answer became {answer.status}: an after_request or a teardown"
            " function fails."
        )
        return
    yield warning(
        f"A POST with wrong credentials to {endpoint.path} reached the endpoint, and"
        f" its answer 401 became {answer.status}: an after_request of the app changes"
        " it. The sender must see the status of the endpoint."
    )


def _rule_of(endpoint: Endpoint) -> Rule:
    """The rule of deliveries; with a host where the app routes by host names."""
    rules = endpoint.app.url_map.iter_rules(f"{endpoint.blueprint}.receive")
    found = [rule for rule in rules if "POST" in (rule.methods or ())]
    return max(found, key=lambda rule: bool(rule.host))


def _host(app: Flask, rule: Rule) -> str:
    """A host name with which the app routes a request to ``rule``; empty for any."""
    server_name: str = app.config.get("SERVER_NAME") or ""
    trusted: Any = app.config.get("TRUSTED_HOSTS")
    if app.url_map.host_matching:
        return rule.host or server_name
    if rule.subdomain:
        return f"{rule.subdomain}.{server_name or 'localhost'}"
    if server_name and (not trusted or host_is_trusted(server_name, trusted)):
        return server_name
    return next(iter(trusted or ()), "").lstrip(".") or server_name


def _suspects(app: Flask) -> str:
    """The app's functions that run before the view, for the report."""
    functions = app.before_request_funcs.get(None, [])
    names = [
        f"{getattr(each, '__module__', '')}.{getattr(each, '__qualname__', each)}"
        for each in functions
    ]
    listed = f" The app's before_request functions: {', '.join(names)}."
    return listed if names else ""


def _path_conflicts(endpoint: Endpoint) -> Iterator[Finding]:
    for other in endpoints(endpoint.app).values():
        same_path = _place(other) == _place(endpoint)
        if same_path and other.name != endpoint.name:
            yield Finding(
                f"{other.name!r} is mounted at {other.path} too, and only one of them"
                " receives deliveries; give one of them another url_prefix=."
            )


def _place(endpoint: Endpoint) -> tuple[str | None, str | None, str]:
    rule = _rule_of(endpoint)
    return rule.host, rule.subdomain, endpoint.path.rstrip("/")


def _rate_limits(endpoint: Endpoint) -> Iterator[Finding]:
    """Limits of Flask-Limiter that apply to deliveries: a 429 pauses the hook."""
    found = endpoint.app.extensions.get("limiter") or ()
    for limiter in found if isinstance(found, (set, list, tuple)) else (found,):
        if _limits(endpoint, limiter):
            yield warning(
                "Flask-Limiter's limits apply to deliveries, and an answer 429 pauses"
                " the hook: call limiter.exempt(webhooks)."
            )


def _limits(endpoint: Endpoint, limiter: Any) -> bool:
    manager: Any = getattr(limiter, "limit_manager", None)
    if manager is None or not limiter.enabled:
        return False
    app, view = endpoint.app, f"{endpoint.blueprint}.receive"
    scope = manager.exemption_scope(app, view, endpoint.blueprint)
    exempt = {flag.name for flag in type(scope) if flag & scope}
    return bool(
        (manager.default_limits and "DEFAULT" not in exempt)
        or (manager.application_limits and "APPLICATION" not in exempt)
        or manager.blueprint_limits(app, endpoint.blueprint)
    )
