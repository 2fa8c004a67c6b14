"""What ``check`` looks at: settings in force, database, subscribers, the way in."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

from werkzeug.test import TestResponse

from ..database import is_sqlite_file
from ..endpoint import Endpoint
from ..endpoint import endpoints
from ..inbox import explain
from ..settings import KEYS
from ..signals import WORK_SIGNALS
from ..subscribers import Subscriber

SHORT_SECRET = 16


@dataclass(frozen=True)
class Finding:
    """One thing to mend; deliveries fail while an error stands."""

    text: str
    error: bool = True


def findings(endpoint: Endpoint) -> Iterator[Finding]:
    """Everything about the endpoint that fails now or will."""
    yield from _secrets(endpoint)
    yield from _database(endpoint)
    yield from _subscribers(endpoint)
    yield from _way_in(endpoint)
    yield from _strays(endpoint)


def describe(endpoint: Endpoint) -> dict[str, str]:
    """The settings in force under their keys in ``app.config``, secrets masked."""
    settings = endpoint.settings
    shown = {
        "SECRET": _masked(settings.secrets),
        "AUTHORIZATION": _masked(settings.authorizations),
        "TOLERANCE": f"{settings.tolerance:g} s",
        "MAX_BYTES": str(settings.max_bytes),
        "DISPATCH": settings.dispatch,
        "MAX_ATTEMPTS": str(settings.max_attempts),
        "RETRY_BASE": f"{settings.retry_base:g} s",
        "RETRY_CAP": f"{settings.retry_cap:g} s",
        "LEASE": f"{settings.lease:g} s",
        "RETENTION": f"{settings.retention:g} s",
        "IGNORE_USER_IDS": _listed(settings.ignore_user_ids),
        "IGNORE_APPLICATION_IDS": _listed(settings.ignore_application_ids),
    }
    return {endpoint.config_prefix + key: value for key, value in shown.items()}


def all_subscribers(endpoint: Endpoint) -> list[Subscriber]:
    """Everyone who can be run for the endpoint's events, in order."""
    found = list(endpoint.subscribers)
    for signal in WORK_SIGNALS:
        found += signal.subscribers_for(endpoint.app)
    return sorted(found, key=lambda subscriber: subscriber.order)


def _secrets(endpoint: Endpoint) -> Iterator[Finding]:
    settings, prefix = endpoint.settings, endpoint.config_prefix
    kinds = {"SECRET": settings.secrets, "AUTHORIZATION": settings.authorizations}
    for key, values in kinds.items():
        if any(len(value) < SHORT_SECRET for value in values):
            yield Finding(
                f"{prefix}{key} or one of its fallbacks is shorter than {SHORT_SECRET}"
                " characters; the command secret makes a strong one.",
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
        yield Finding(
            f"Missing tables: {', '.join(missing)}; run your migrations"
            " (flask db upgrade) or the command init-db."
        )
    url = database.engine.url
    if url.get_backend_name() == "sqlite" and not is_sqlite_file(url):
        yield Finding(
            "The inbox is in memory: every event is lost when the process ends.",
            error=False,
        )


def _subscribers(endpoint: Endpoint) -> Iterator[Finding]:
    found = all_subscribers(endpoint)
    if not found:
        yield Finding(
            "There are no subscribers: events are recorded and nothing is done.",
            error=False,
        )
    asynchronous = [s.name for s in found if asyncio.iscoroutinefunction(s.function)]
    if asynchronous and find_spec("asgiref") is None:
        yield Finding(
            f"{', '.join(asynchronous)} cannot run: pip install 'flask[async]'."
        )


def _way_in(endpoint: Endpoint) -> Iterator[Finding]:
    """Knock without a signature: the refusal has to be ours."""
    answer = endpoint.app.test_client().post(endpoint.path, data=b"")
    if not _is_ours(answer):
        yield Finding(
            f"An unsigned POST to {endpoint.path} was answered {answer.status} by"
            " something else, and so a delivery would be: a before_request (a login"
            " check?), an extension or another route. Let requests pass whose"
            f" request.blueprint is {endpoint.blueprint!r}."
        )


def _strays(endpoint: Endpoint) -> Iterator[Finding]:
    """Keys with our prefix that no endpoint of the app reads."""
    app, prefix = endpoint.app, endpoint.config_prefix
    longer = tuple(
        other.config_prefix
        for other in endpoints(app).values()
        if other.config_prefix != prefix and other.config_prefix.startswith(prefix)
    )
    known = {prefix + key for key in KEYS}
    for name in app.config:
        if name.startswith(prefix) and name not in known:
            if not (longer and name.startswith(longer)):
                yield Finding(f"{name} is read by no endpoint of this app.")


def _is_ours(answer: TestResponse) -> bool:
    return answer.status_code == 401 and answer.get_json(silent=True) is not None


def _masked(values: tuple[bytes, ...]) -> str:
    if not values:
        return "not set"
    fallbacks = f", {len(values) - 1} fallbacks" if len(values) > 1 else ""
    return f"***** ({len(values[0])} bytes{fallbacks})"


def _listed(values: frozenset[str]) -> str:
    return ", ".join(sorted(values)) or "none"
