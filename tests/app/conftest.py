from __future__ import annotations

from collections.abc import Callable

import pytest
from flask import Flask
from support.values import AUTHORIZATION
from support.web import LIMIT

from flask_procore_webhooks import ProcoreWebhooks

MakeApp = Callable[..., Flask]


@pytest.fixture
def token_app(make_app: MakeApp) -> Flask:
    """An app that authenticates by the Authorization header alone."""
    app = make_app(
        PROCORE_WEBHOOK_SECRET=None,
        PROCORE_WEBHOOK_AUTHORIZATION=AUTHORIZATION,
        PROCORE_WEBHOOK_MAX_BYTES=LIMIT,
    )
    app.register_blueprint(ProcoreWebhooks())
    return app
