from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator

import pytest
from flask import Flask
from support.inboxes import dispose

from flask_procore_webhooks import ProcoreWebhooks


@pytest.fixture
def app(
    make_app: Callable[..., Flask], webhooks: ProcoreWebhooks, database_url: str
) -> Iterator[Flask]:
    """An app with an inbox of its own, on each database in turn."""
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI=database_url)
    app.register_blueprint(webhooks)
    yield app
    dispose(app)
