"""The report of ``check``: settings without secrets, subscribers, findings."""

from __future__ import annotations

from typing import TypedDict

from sqlalchemy import URL

from ..config.api import ApiSettings
from ..endpoint import Endpoint
from ..signals import WORK_SIGNALS
from ..storage.database import Database
from ..storage.servers import AT_SIGN_ADVICE
from ..storage.servers import is_ambiguous
from ..subscribers import Subscriber


class Report(TypedDict):
    """The report of one endpoint."""

    source: str
    path: str
    database: str
    tables: str
    settings: dict[str, str]
    subscribers: list[dict[str, str]]
    #: Deliveries fail while one of these stands.
    errors: list[str]
    warnings: list[str]


def describe(
    endpoint: Endpoint, tables: str, errors: list[str], warnings: list[str]
) -> Report:
    return {
        "source": endpoint.source.name,
        "path": endpoint.path,
        "database": _database(endpoint.store.database),
        "tables": tables,
        "settings": _settings(endpoint),
        "subscribers": [
            {"name": subscriber.name, "to": events}
            for subscriber, events in subscriptions(endpoint)
        ],
        "errors": errors,
        "warnings": warnings,
    }


def subscriptions(endpoint: Endpoint) -> list[tuple[Subscriber, str]]:
    """The endpoint's subscribers in order, each with the events it subscribes to."""
    found = [(s, f"{s.resource_type} {s.reason}") for s in endpoint.subscribers]
    for signal in WORK_SIGNALS:
        found += [(s, signal.name) for s in signal.subscribers_for(endpoint.app)]
    return sorted(found, key=lambda subscription: subscription[0].order)


def _settings(endpoint: Endpoint) -> dict[str, str]:
    """Settings by their keys in ``app.config``; secrets are masked."""
    settings = endpoint.settings
    shown = {
        "SECRET": _masked(settings.secrets),
        "AUTHORIZATION": _masked(settings.authorizations),
        "TOLERANCE": _seconds(settings.tolerance),
        "MAX_BYTES": str(settings.max_bytes),
        "DISPATCH": endpoint.dispatch,
        "MAX_ATTEMPTS": str(settings.max_attempts),
        "RETRY_BASE": _seconds(settings.retry_base),
        "RETRY_CAP": _seconds(settings.retry_cap),
        "LEASE": _seconds(settings.lease),
        "TIMEOUT": _seconds(settings.timeout),
        "MAX_AGE": _seconds(settings.max_age),
        "THREADS": str(settings.threads),
        "RETENTION": _seconds(settings.retention),
        "IGNORE_USER_IDS": _listed(settings.ignore_user_ids),
        "IGNORE_APPLICATION_IDS": _listed(settings.ignore_application_ids),
    }
    if settings.api.is_configured:
        shown |= _api(settings.api)
    return {endpoint.config_prefix + key: value for key, value in shown.items()}


def _api(settings: ApiSettings) -> dict[str, str]:
    scopes = settings.scopes
    listed = ", ".join(map(str, scopes)) if isinstance(scopes, tuple) else "a function"
    return {
        "URL": settings.url or "not set",
        "API_CLIENT_ID": settings.client_id or "",
        "API_CLIENT_SECRET": "*****",
        "API_URL": settings.api_url,
        "API_LOGIN_URL": settings.login_url,
        "NAMESPACE": settings.namespace or "not set",
        "PAYLOAD_VERSION": settings.payload_version,
        "SCOPES": listed or "none",
    }


def _database(database: Database) -> str:
    try:
        # The engine is not opened: that would fail while the database is down.
        return _without_password(database.url)
    except Exception as error:
        return database.explain(error)


def _without_password(url: URL) -> str:
    if is_ambiguous(url):
        return AT_SIGN_ADVICE
    # Some drivers accept passwords in the query.
    shown = url.set(query={}).render_as_string(hide_password=True)
    return f"{shown}?…" if url.query else shown


def _masked(values: tuple[bytes, ...]) -> str:
    if not values:
        return "not set"
    fallbacks = f", fallbacks: {len(values) - 1}" if len(values) > 1 else ""
    return f"***** ({len(values[0])} bytes{fallbacks})"


def _seconds(value: float) -> str:
    return f"{value:.12g} s"


def _listed(values: frozenset[str]) -> str:
    return ", ".join(sorted(values)) or "none"
