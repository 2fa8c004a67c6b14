"""What the way an endpoint is mounted takes away from the promise, in sentences."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from flask import current_app
from flask import Flask
from sqlalchemy import Table

from .database import context_of
from .endpoint import Endpoint
from .endpoint import endpoints
from .forks import in_child

log = logging.getLogger("flask_procore_webhooks")

_told: weakref.WeakSet[Flask] = weakref.WeakSet()


def weaknesses(endpoint: Endpoint) -> Iterator[str]:
    """Where effects are at-least-once rather than exactly once, and what to change."""
    database = endpoint.inbox.database
    if database.session is None and "sqlalchemy" in endpoint.app.extensions:
        yield (
            "The app has Flask-SQLAlchemy, and the blueprint was made without db=: what"
            " subscribers write through db.session is lost, unless they commit it, and"
            " then it may be written twice (at-least-once). Pass db=."
        )
    if tables := sorted(_tables_elsewhere(endpoint)):
        yield (
            f"The tables {', '.join(tables)} are not written in one transaction"
            " with the inbox: what subscribers write there may be written twice after a"
            " crash (at-least-once)."
        )


def tell_once(*_: object) -> None:
    """Log the weaknesses of the current app at its first request in this process."""
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
    if app in _told:
        return
    _told.add(app)
    for endpoint in endpoints(app).values():
        # A host that cannot say where its tables are has errors of its own for that.
        with suppress(Exception):
            for text in weaknesses(endpoint):
                log.warning("%s: %s", endpoint.name, text)


def _tables_elsewhere(endpoint: Endpoint) -> Iterator[str]:
    """The host's tables that the session writes to over another connection."""
    database = endpoint.inbox.database
    if database.session is None:
        return
    with context_of(endpoint.app):
        session = database.session()
        ours = session.get_bind(clause=database.tables.event).engine
        for table in _host_tables(endpoint):
            if session.get_bind(clause=table).engine is not ours:
                yield table.name


def _host_tables(endpoint: Endpoint) -> Iterable[Table]:
    # Flask-SQLAlchemy has a metadata for each of its binds.
    db: Any = endpoint.app.extensions.get("sqlalchemy")
    metadata = endpoint.inbox.database.tables.event.metadata
    metadatas = getattr(db, "metadatas", {}).values() or [metadata]
    return [table for each in metadatas for table in each.tables.values()]


in_child(_told.clear)
