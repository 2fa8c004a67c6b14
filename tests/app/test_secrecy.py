"""Secrets and bodies stay out of answers, logs, signals and reprs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from support.values import AUTHORIZATION
from support.values import SECRET
from support.web import drop
from support.web import host_db
from support.web import LIMIT
from support.web import MARK
from support.web import post
from support.web import TABLES
from werkzeug.test import TestResponse

from flask_procore_webhooks import BadSignature
from flask_procore_webhooks import delivery_rejected
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import RetryLater
from flask_procore_webhooks.config import Settings
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.inbox import claims
from flask_procore_webhooks.inbox.record import record as record_event
from flask_procore_webhooks.senders.samples import Credentials
from flask_procore_webhooks.senders.samples import to_bytes
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import payload
from flask_procore_webhooks.testing import sign

MakeApp = Callable[..., Flask]
ECHO: dict[str, Any] = {"SQLALCHEMY_ENGINE_OPTIONS": {"echo": True}}


def failing_subscriber(app: Flask, db: SQLAlchemy) -> None:
    @app.blueprints["procore_webhooks"].on()
    def work(event: object) -> None:
        raise ValueError("broken")


def patient_subscriber(app: Flask, db: SQLAlchemy) -> None:
    @app.blueprints["procore_webhooks"].on()
    def work(event: object) -> None:
        raise RetryLater


def missing_tables(app: Flask, db: SQLAlchemy) -> None:
    drop(db, app, *TABLES)


def missing_jobs(app: Flask, db: SQLAlchemy) -> None:
    failing_subscriber(app, db)
    drop(db, app, TABLES[1])


def _alter(db: SQLAlchemy, app: Flask, *statements: str) -> None:
    """Run the statements marked for the database's dialect."""
    with app.app_context():
        dialect = db.engine.dialect.name
        with db.engine.begin() as connection:
            for statement in statements:
                only, _, rest = statement.partition(": ")
                if only in (dialect, "any"):
                    connection.execute(sa.text(rest))


def missing_column(app: Flask, db: SQLAlchemy) -> None:
    _alter(db, app, "any: ALTER TABLE procore_webhook_event DROP COLUMN conflicts")


def stranger_index(app: Flask, db: SQLAlchemy) -> None:
    """An insert violates a constraint of the host."""
    _alter(
        db,
        app,
        "any: CREATE UNIQUE INDEX strange ON procore_webhook_event (company_id)",
    )
    deliver(app.test_client(), payload("RFIs.create"))


def stranger_column(app: Flask, db: SQLAlchemy) -> None:
    _alter(
        db,
        app,
        "any: DROP TABLE procore_webhook_event",
        "any: CREATE TABLE procore_webhook_event (id INTEGER)",
    )


def narrow_column(app: Flask, db: SQLAlchemy) -> None:
    """Some databases quote the oversized value in their error message."""
    _alter(
        db,
        app,
        "postgresql: ALTER TABLE procore_webhook_event ALTER reason TYPE varchar(1)",
        "mysql: ALTER TABLE procore_webhook_event MODIFY body varbinary(10)",
        "sqlite: CREATE TRIGGER no BEFORE INSERT ON procore_webhook_event"
        " BEGIN SELECT RAISE(ABORT, 'no'); END",
    )


def wrong_type(app: Flask, db: SQLAlchemy) -> None:
    _alter(
        db,
        app,
        "postgresql: ALTER TABLE procore_webhook_event ALTER body TYPE int USING 0",
        "mysql: ALTER TABLE procore_webhook_event MODIFY body int",
        "sqlite: CREATE TRIGGER no BEFORE INSERT ON procore_webhook_event"
        " BEGIN SELECT json(new.body || '\"'); END",
    )


def fails_late(app: Flask, db: SQLAlchemy) -> None:
    """The event is recorded, but claims fail."""
    _alter(
        db,
        app,
        "postgresql: ALTER TABLE procore_webhook_event ALTER lease TYPE varchar(1)",
        "mysql: ALTER TABLE procore_webhook_event MODIFY lease varchar(1)",
        "sqlite: CREATE TRIGGER no BEFORE UPDATE ON procore_webhook_event"
        " BEGIN SELECT no_such_function(new.body); END",
    )


def nothing_wrong(app: Flask, db: SQLAlchemy) -> None:
    pass


MISHAPS = (
    nothing_wrong,
    patient_subscriber,
    failing_subscriber,
    missing_tables,
    missing_jobs,
    missing_column,
    stranger_index,
    stranger_column,
    narrow_column,
    wrong_type,
    fails_late,
)


@pytest.fixture
def guarded_app(
    make_app: MakeApp, database_url: str
) -> Iterator[tuple[Flask, SQLAlchemy]]:
    """An app with every kind of secret, and an engine that logs its parameters."""
    app = make_app(
        PROCORE_WEBHOOK_SECRET_FALLBACKS=["an older secret of the suite"],
        PROCORE_WEBHOOK_AUTHORIZATION=AUTHORIZATION,
        PROCORE_WEBHOOK_MAX_BYTES=LIMIT,
        **ECHO,
    )
    db = host_db(app, database_url)
    with app.app_context():
        db.create_all()
    yield app, db
    with app.app_context():
        db.engine.dispose()


def sendings() -> Iterator[tuple[bytes, dict[str, str]]]:
    """Deliveries of every kind: valid, unreadable, and refused for each reason."""
    body = to_bytes(payload("RFIs.create", id="evt_1", note=MARK, user_id=3))
    good = {**sign(body, SECRET), "Authorization": AUTHORIZATION}
    yield body, good
    yield body, good
    other = body.replace(b"}", b', "more": 1}')
    yield other, good | sign(other, SECRET)
    for odd in (f"[{MARK!r}".encode(), b"\xff" + MARK.encode()):
        yield odd, good | sign(odd, SECRET)
    yield MARK.encode() * LIMIT, good
    yield body, good | {"X-Procore-Signature": "sha256=" + "5ecret" * 12}
    yield body, good | {"X-Procore-Timestamp": f"5ecret{MARK}"}
    yield body, good | {"X-Procore-Signature": "5" * 64}
    yield body, good | {"Authorization": f"5ecret {MARK}"}
    yield body, good | sign(body, SECRET, timestamp=1)
    yield body, good | sign(body, SECRET, timestamp=99_999_999_999)
    yield body, good | sign(body, SECRET, timestamp=1_900_000_000_000)
    yield body, {}


def forbidden(headers: dict[str, str]) -> list[str]:
    told = [SECRET, "an older secret of the suite", AUTHORIZATION, MARK, "5ecret"]
    return [*told, headers.get("X-Procore-Signature", "5" * 64)]


def everything_told(
    answer: TestResponse, records: list[logging.LogRecord], watched: list[object]
) -> str:
    formatter = logging.Formatter()
    told = [formatter.format(record) for record in records]
    told += [repr(record.__dict__) for record in records]
    return "\n".join([answer.text, str(answer.headers), repr(watched), *told])


@pytest.mark.parametrize("mishap", MISHAPS)
def test_secrets_are_neither_logged_nor_answered_on_any_failure(
    guarded_app: tuple[Flask, SQLAlchemy],
    mishap: Callable[[Flask, SQLAlchemy], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The host's engine shows parameters in errors and logs statements."""
    app, db = guarded_app
    mishap(app, db)
    caplog.set_level(logging.DEBUG)
    watched: list[object] = []

    @delivery_rejected.connect
    def watch(app: Flask, **fields: object) -> None:
        watched.append(fields)

    for body, headers in sendings():
        caplog.clear()
        watched.clear()
        answer = post(app, body, headers=headers)
        told = everything_told(answer, caplog.records, watched)
        for word in forbidden(headers):
            assert word not in told, (mishap.__name__, answer.status)


def test_every_failure_of_the_secrecy_test_occurs(
    guarded_app: tuple[Flask, SQLAlchemy],
) -> None:
    app, db = guarded_app
    statuses = {}
    for mishap in MISHAPS[1:]:
        with app.app_context():
            db.drop_all()
            db.create_all()
        mishap(app, db)
        body = to_bytes(payload("RFIs.create", note=MARK))
        headers = {**sign(body, SECRET), "Authorization": AUTHORIZATION}
        statuses[mishap.__name__] = post(app, body, headers=headers).status_code
    expected = dict.fromkeys((mishap.__name__ for mishap in MISHAPS[3:]), 503)
    expected |= {"failing_subscriber": 500, "patient_subscriber": 200}
    assert statuses == expected


def test_reprs_contain_no_secrets(
    app: Flask, endpoint: Endpoint, webhooks: ProcoreWebhooks
) -> None:
    seen: list[object] = []
    webhooks.on()(seen.append)
    body = to_bytes(payload("RFIs.create", id="evt_1", note=MARK))
    deliver(app.test_client(), body)
    event: Any = seen[0]
    store = endpoint.store
    claim = claims.claim(
        store, record_event(store, replace(event, id="evt_2")).row_id, 10
    )
    objects = [
        webhooks,
        endpoint,
        endpoint.settings,
        event,
        claim,
        store,
        store.database,
        store.database.engine,
        Credentials.of(endpoint.source, endpoint.settings),
        app.extensions,
    ]
    told = repr(objects)
    assert "evt_1" in told
    for word in (SECRET, repr(SECRET.encode()), MARK):
        assert word not in told


@pytest.fixture
def rotating_app(make_app: Callable[..., Flask]) -> Iterator[Flask]:
    app = make_app(
        PROCORE_WEBHOOK_SECRET="the-secret-0",
        PROCORE_WEBHOOK_SECRET_FALLBACKS=["the-secret-1"],
        PROCORE_WEBHOOK_AUTHORIZATION="Bearer the-secret-2",
        PROCORE_WEBHOOK_AUTHORIZATION_FALLBACKS=["the-secret-3"],
        PROCORE_WEBHOOK_MAX_BYTES=2000,
    )
    app.register_blueprint(ProcoreWebhooks())
    yield app


def test_no_log_signal_or_answer_holds_a_secret_a_signature_or_a_body(
    rotating_app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    told: list[Any] = []
    delivery_rejected.connect(lambda app, **fields: told.append(fields))
    client = rotating_app.test_client()
    body = b'{"id":"1","type":"a.b","data":{"phone":"555-0100"}}'
    good = sign(body, "the-secret-0") | {"Authorization": "Bearer the-secret-2"}
    digest = good["X-Procore-Signature"]
    old = sign(body, "the-secret-0", timestamp=1) | {"Authorization": "the-secret-3"}
    attempts: list[tuple[bytes, dict[str, str], int]] = [
        (body, good, 200),
        (body, good, 200),
        (body, {**good, "Authorization": "Bearer the-secret-1"}, 401),
        (body, {**good, "Authorization": ""}, 401),
        (body, {**good, "X-Procore-Signature": f"{digest}{digest}"}, 401),
        (body, {**good, "X-Procore-Signature": digest[::-1]}, 401),
        (body, {**good, "X-Procore-Timestamp": "the-secret-0"}, 401),
        (body, old, 401),
        (body, {}, 401),
        (body + b"!", good, 401),
        (body * 100, good, 413),
    ]
    broken = b'{"phone": "555-0100", '
    unreadable = sign(broken, "the-secret-1") | {"Authorization": "the-secret-3"}
    attempts.append((broken, unreadable, 200))
    answers = b""
    for sent, headers, code in attempts:
        answer = client.post("/webhooks/procore", data=sent, headers=headers)
        assert answer.status_code == code
        answers += answer.data + repr(answer.headers).encode()
    everything = caplog.text + repr(told) + answers.decode()
    assert len(told) == 9
    for hidden in ("the-secret", digest, digest[::-1], "555-0100"):
        assert hidden not in everything


@pytest.mark.server
def test_unreachable_inbox_error_hides_the_password(
    make_app: Callable[..., Flask], caplog: pytest.LogCaptureFixture
) -> None:
    uri = "postgresql+psycopg://user:the-secret@127.0.0.1:1/inbox"
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI=uri)
    app.register_blueprint(ProcoreWebhooks())
    answer = deliver(app.test_client(), b'{"id":"1","phone":"555-0100"}')
    assert (answer.status_code, answer.json) == (503, {"error": "Unavailable"})
    assert "127.0.0.1" in caplog.text
    assert "the-secret" not in caplog.text and "555-0100" not in caplog.text


def test_no_repr_shows_a_secret(rotating_app: Flask) -> None:
    (endpoint,) = endpoints(rotating_app).values()
    settings = endpoint.settings
    assert len(settings.secrets) == len(settings.authorizations) == 2
    shown = repr(
        [endpoint, settings, endpoint.__dict__, BadSignature("no secret matches")]
    )
    assert "tolerance=300.0" in shown
    assert "the-secret" not in shown
    uri = "postgresql://user:the-secret@127.0.0.1/inbox"
    assert "the-secret" not in repr(Settings(database_uri=uri))
