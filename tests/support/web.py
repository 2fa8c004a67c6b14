"""Deliveries by the app's test client, their answers, and the events recorded."""

from __future__ import annotations

import json
from typing import Any

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from werkzeug.test import TestResponse

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.operations.queries import find
from flask_procore_webhooks.testing import Deliveries

PATH = "/webhooks/procore"
LIMIT = 100_000
MARK = "the-body-of-a-delivery"
CONTENT_TYPES = (
    "application/json",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
)
BODY = b'{"id": "evt_1", "type": "RFIs.create"}'
TABLES = ("procore_webhook_event", "procore_webhook_job")


def recorded(app: Flask, endpoint: str | None = None) -> list[Any]:
    """The recorded events of an endpoint, by default of the only endpoint."""
    return [dict(row) for row in Deliveries(app).events(endpoint)]


def body_of(app: Flask, event_id: str) -> bytes:
    (endpoint,) = endpoints(app).values()
    row = find(endpoint.store, event_id)
    assert row is not None
    return bytes(row["body"])


def post(app: Flask, body: bytes = b"{}", **options: Any) -> TestResponse:
    return app.test_client().post(PATH, data=body, **options)


def exact(answer: TestResponse) -> tuple[int, dict[str, object], str | None]:
    """Status, content and Retry-After; assert that no other header is set."""
    assert answer.mimetype == "application/json"
    allowed = {"Content-Type", "Content-Length", "Retry-After"}
    assert set(answer.headers.keys()) <= allowed
    return (
        answer.status_code,
        json.loads(answer.data),
        answer.headers.get("Retry-After"),
    )


def host_db(app: Flask, url: str) -> SQLAlchemy:
    """Flask-SQLAlchemy with the default engine, which shows parameters in errors."""
    db = SQLAlchemy()
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    db.init_app(app)
    app.register_blueprint(ProcoreWebhooks(db=db))
    return db


def drop(db: SQLAlchemy, app: Flask, *names: str) -> None:
    with app.app_context():
        db.metadata.drop_all(db.engine, tables=[db.metadata.tables[n] for n in names])
