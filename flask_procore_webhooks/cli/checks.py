"""What ``check`` finds: database, subscribers, the way in, keys that nobody reads."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ..background import KNOCK
from ..celery import problems
from ..database import advice
from ..endpoint import Endpoint
from ..endpoint import endpoints
from ..engines import is_in_memory
from ..errors import BadAuthorization
from ..errors import BadSignature
from ..guarantees import weaknesses
from ..settings import KEYS
from ..signals import delivery_rejected
from ..store import explain
from .report import describe
from .report import Report
from .report import subscriptions

if TYPE_CHECKING:
    from werkzeug.test import TestResponse

SHORT_SECRET = 16
REFUSALS = [{"error": error.answer} for error in (BadSignature, BadAuthorization)]


@dataclass(frozen=True)
class Finding:
    """One thing to mend; deliveries fail while an error stands."""

    text: str
    error: bool = True


def examine(endpoint: Endpoint) -> Report:
    """The settings in force, and everything that fails now or will."""
    found = [
        *_secrets(endpoint),
        *_database(endpoint),
        *_subscribers(endpoint),
        *_celery(endpoint),
        *_way_in(endpoint),
        *_namesakes(endpoint),
        *_strays(endpoint),
    ]
    return describe(
        endpoint,
        errors=[finding.text for finding in found if finding.error],
        warnings=[finding.text for finding in found if not finding.error],
    )


def _secrets(endpoint: Endpoint) -> Iterator[Finding]:
    settings, prefix = endpoint.settings, endpoint.config_prefix
    kinds = {"SECRET": settings.secrets, "AUTHORIZATION": settings.authorizations}
    for key, values in kinds.items():
        if any(len(value) < SHORT_SECRET for value in values):
            yield Finding(
                f"{prefix}{key} or one of its fallbacks is shorter than {SHORT_SECRET}"
                " bytes; the command secret makes a strong one.",
                error=False,
            )


def _database(endpoint: Endpoint) -> Iterator[Finding]:
    database = endpoint.inbox.database
    try:
        missing = database.missing_tables()
    except Exception as error:
        yield Finding(f"The database cannot be used: {explain(error)}")
        return
    if missing:
        yield Finding(f"The inbox cannot be used: {advice(missing)}.")
    for text in weaknesses(endpoint):
        yield Finding(text, error=False)
    if is_in_memory(database.url):
        yield Finding(
            "The inbox is in memory: every event is lost when the process ends.",
            error=False,
        )


def _subscribers(endpoint: Endpoint) -> Iterator[Finding]:
    found = [subscriber for subscriber, _ in subscriptions(endpoint)]
    if not found:
        yield Finding(
            "There are no subscribers: events are recorded and nothing is done.",
            error=False,
        )
    needy = [s.name for s in found if inspect.iscoroutinefunction(s.function)]
    if needy and find_spec("asgiref") is None:
        yield Finding(f"{', '.join(needy)} cannot run: pip install 'flask[async]'.")


def _celery(endpoint: Endpoint) -> Iterator[Finding]:
    if endpoint.dispatch == "celery":
        for text, error in problems(endpoint.app):
            yield Finding(text, error)


def _way_in(endpoint: Endpoint) -> Iterator[Finding]:
    """Knock without a signature: the refusal has to be ours."""
    try:
        answer = _knock(endpoint)
        if answer.status_code == 401 and answer.get_json(silent=True) in REFUSALS:
            return
        if answer.status_code == 404 and "<" in endpoint.path:
            return  # a variable, as in <int:tenant>, of which no value is known
        done = f"was answered {answer.status} by something else"
    except Exception as error:
        done = f"ended in {type(error).__name__}: {error}"
    yield Finding(
        f"An unsigned POST to {endpoint.path} {done}, and so would a delivery: a"
        " before_request (a login check?), an extension or another route. Let requests"
        f" pass whose request.blueprint is {endpoint.blueprint!r}."
    )


def _knock(endpoint: Endpoint) -> TestResponse:
    # By HTTPS, which some apps insist on, and under a name that the app goes by.
    host = next(iter(endpoint.app.config.get("TRUSTED_HOSTS") or ()), "").lstrip(".")
    url = f"https://{host}{endpoint.path}" if host else endpoint.path
    with _unnoticed():
        return endpoint.app.test_client().post(
            url, url_scheme="https", environ_overrides={KNOCK: True}
        )


@contextmanager
def _unnoticed() -> Iterator[None]:
    """Keep our own knock out of the log and from those who watch for forgeries."""
    log = logging.getLogger("flask_procore_webhooks")
    was_disabled, log.disabled = log.disabled, True
    try:
        with delivery_rejected.muted():
            yield
    finally:
        log.disabled = was_disabled


def _namesakes(endpoint: Endpoint) -> Iterator[Finding]:
    for other in endpoints(endpoint.app).values():
        same_path = other.path.rstrip("/") == endpoint.path.rstrip("/")
        if same_path and other.name != endpoint.name:
            yield Finding(
                f"{other.name!r} is mounted at {other.path} too, and only one of them"
                " receives; give one another url_prefix=."
            )


def _strays(endpoint: Endpoint) -> Iterator[Finding]:
    """Keys with our prefix that no endpoint of the app reads."""
    app, prefix = endpoint.app, endpoint.config_prefix
    read = {
        other.config_prefix + key for other in endpoints(app).values() for key in KEYS
    }
    for name in app.config:
        if name.startswith(prefix) and name not in read:
            yield Finding(f"{name} is read by no endpoint of this app.", error=False)
