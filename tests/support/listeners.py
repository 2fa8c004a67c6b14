"""Endpoints whose workers wait for notifications of PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from flask import Flask

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.storage.store import Store
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import payload

MakeApp = Callable[..., Flask]
LISTENING = """
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND query = 'LISTEN procore_webhooks'
"""


@contextmanager
def mounted(
    make_app: MakeApp, url: str, dispatch: str = "worker"
) -> Iterator[tuple[Endpoint, list[str]]]:
    """An endpoint, and the ids of the events that its subscriber has run."""
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI=url, PROCORE_WEBHOOK_DISPATCH=dispatch)
    webhooks, ran = ProcoreWebhooks(), []
    app.register_blueprint(webhooks)
    webhooks.on(name="notes")(lambda event: ran.append(event.id))
    (endpoint,) = endpoints(app).values()
    endpoint.store.database.create_tables()
    try:
        yield endpoint, ran
    finally:
        endpoint.store.database.engine.dispose()


def send(endpoint: Endpoint) -> str:
    """Deliver a new event; return its id."""
    new = payload("RFIs.update")
    assert deliver(endpoint.app.test_client(), new).status_code == 200
    return str(new["id"])


def listeners(store: Store) -> set[int]:
    return {row.pid for row in store.rows(sa.text(LISTENING))}
