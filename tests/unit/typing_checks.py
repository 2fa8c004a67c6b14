"""Type checks of the public API as users write it, under strict.

The code is checked, never run. ``assert_type`` names the type to be inferred.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any
from typing import TYPE_CHECKING

import sqlalchemy as sa
from flask import Blueprint
from flask import Flask
from flask.testing import FlaskClient
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import MappedAsDataclass
from sqlalchemy.orm import scoped_session
from sqlalchemy.orm import Session
from sqlalchemy.orm import sessionmaker
from werkzeug.test import TestResponse

from flask_procore_webhooks import BadPayload
from flask_procore_webhooks import BadSignature
from flask_procore_webhooks import ConfigError
from flask_procore_webhooks import DeliveryError
from flask_procore_webhooks import Discard
from flask_procore_webhooks import Event
from flask_procore_webhooks import event_dead
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import ProcoreWebhooksError
from flask_procore_webhooks import PrudraWebhooks
from flask_procore_webhooks import resource_created
from flask_procore_webhooks import resource_event
from flask_procore_webhooks import RetryLater
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import Deliveries
from flask_procore_webhooks.testing import drain
from flask_procore_webhooks.testing import payload
from flask_procore_webhooks.testing import PRUDRA
from flask_procore_webhooks.testing import sign

if TYPE_CHECKING:
    from typing_extensions import assert_type

# Mounting: Flask-SQLAlchemy in its forms


class Base(DeclarativeBase):
    pass


class DataclassBase(MappedAsDataclass, DeclarativeBase):
    pass


db = SQLAlchemy()
webhooks = ProcoreWebhooks(db=db)
ProcoreWebhooks("based", db=SQLAlchemy(model_class=Base))
ProcoreWebhooks("dataclasses", db=SQLAlchemy(model_class=DataclassBase))
ProcoreWebhooks("with_metadata", db=SQLAlchemy(metadata=sa.MetaData(schema="hooks")))

# Mounting: plain SQLAlchemy

engine = sa.create_engine("sqlite://")
session_factory = sessionmaker(engine)
scoped = scoped_session(session_factory)


class MySession(Session):
    pass


def current_session() -> MySession:
    return MySession(engine)


ProcoreWebhooks("scoped", metadata=Base.metadata, session=scoped)
ProcoreWebhooks("called", metadata=Base.metadata, session=current_session)
ProcoreWebhooks("factory", metadata=Base.metadata, session=session_factory)
ProcoreWebhooks("lent", metadata=Base.metadata, session=lambda: scoped())
ProcoreWebhooks("flask_sqlalchemys", metadata=db.metadata, session=db.session)
ProcoreWebhooks("metadata_alone", metadata=Base.metadata)

# Mounting: everything else

prudra = PrudraWebhooks(
    "prudra",
    url_prefix="/hooks",
    config_prefix="PRUDRA_",
    cli_group="prudra",
)
any_blueprint: Blueprint = webhooks
same: ProcoreWebhooks = prudra


def create_app() -> Flask:
    app = Flask(__name__)
    app.register_blueprint(webhooks, url_prefix="/elsewhere")
    prudra.init_app(app)
    return app


# Subscribing: decorators keep the type of the function


@webhooks.on("RFIs", "update")
def sync_rfi(event: Event) -> int:
    return len(event.id)


@webhooks.on()
@webhooks.on("Submittals", name="sync-submittals")
async def sync_async(event: Event) -> None:
    raise RetryLater(after=600)


@webhooks.on("Budgets", latest_only=True, settle=90, settle_max=600, key="project")
@webhooks.on("Tasks", one_at_a_time=True, key=lambda event: event.user_id)
@webhooks.on("Drawings", after=60, when=lambda event: event.project_id == "3001")
@webhooks.on("RFIs", latest_only=True, lag=2, durable=True)
def fetch_latest(event: Event) -> str:
    return event.id


@resource_created.connect
def log_it(app: Flask, event: Event) -> str:
    raise Discard("not ours")


@resource_event.connect_via(create_app())
async def log_async(app: Flask, event: Event) -> None:
    raise RetryLater


class Syncer:
    def sync(self, event: Event) -> None: ...

    def __call__(self, app: Flask, event: Event) -> None: ...


syncer = Syncer()
webhooks.on("RFIs")(syncer.sync)
resource_event.connect(syncer)
resource_event.connect(log_it, sender=create_app(), name="log-it")


@event_dead.connect
def alert(app: Flask, event: Event, error: str) -> bool:
    return bool(error)


# Event: every field has a type of its own


def fields(event: Event) -> None:
    text: str = event.id + event.type + event.source + event.endpoint
    ids: list[str | None] = [
        event.resource_type,
        event.reason,
        event.resource_id,
        event.company_id,
        event.project_id,
        event.user_id,
        event.application_id,
        event.payload_version,
    ]
    when: datetime | None = event.timestamp
    body: bytes = event.body
    attempt: int = event.attempt
    whole: Any = event.payload["key"]
    print(text, ids, when, body, attempt, whole, event.data["key"])
    event.id = "another"  # type: ignore[misc]  # frozen


# Errors


def errors() -> None:
    try:
        create_app()
    except ConfigError as error:
        problems: tuple[str, ...] = error.problems
        print(problems)
    except (BadSignature, BadPayload) as error:
        status: int = error.status
        print(status, error.reason)
    except DeliveryError as error:
        wait: int | None = error.retry_after
        print(wait, error.answer)
    except ProcoreWebhooksError:
        raise


# Testing


def test_it(app: Flask, client: FlaskClient, procore_webhooks: Deliveries) -> None:
    made: dict[str, Any] = payload("RFIs.update", format="v4", resource_id=7)
    signed: dict[str, str] = sign(b"{}", "secret", timestamp=0, source=PRUDRA)
    answer: TestResponse = deliver(client, made, endpoint="prudra", headers=signed)
    deliver(client, b"{}", timestamp="soon", headers={"X-Procore-Signature": None})
    ran: int = drain(app) + procore_webhooks.drain(advance=60.0)
    print(answer.status_code, ran)
    assert procore_webhooks.deliver(made).get_json()["received"]
    assert procore_webhooks.events("prudra")[0]["status"] == "done"


# Inferred types


def inferred() -> None:
    assert_type(sync_rfi(Event("1", "a.b")), int)
    assert_type(fetch_latest(Event("1", "a.b")), str)
    assert_type(log_it(create_app(), Event("1", "a.b")), str)
    assert_type(alert(create_app(), Event("1", "a.b"), ""), bool)
    kept: Callable[[Event], Any] = sync_async
    print(kept)


# Errors of a checker; under strict, an unneeded ignore is an error


def refused() -> None:
    ProcoreWebhooks(db=engine)  # type: ignore[arg-type]
    ProcoreWebhooks(metadata=Base)  # type: ignore[arg-type]
    ProcoreWebhooks(session=engine)  # type: ignore[arg-type]
    ProcoreWebhooks(url=3)  # type: ignore[call-arg]
    ProcoreWebhooks("x", db)  # type: ignore[call-arg]
    webhooks.on(1)  # type: ignore[arg-type]
    webhooks.on("RFIs", latest_only="yes")  # type: ignore[arg-type]
    webhooks.on("RFIs", key=7)  # type: ignore[arg-type]
    webhooks.on("RFIs", when=True)  # type: ignore[arg-type]
    webhooks.on("RFIs", settles=3)  # type: ignore[call-arg]
    webhooks.on("RFIs", "update", True)  # type: ignore[call-arg, arg-type]
    webhooks.on("RFIs")("not a function")  # type: ignore[type-var]
    sync_rfi("not an event")  # type: ignore[arg-type]
    RetryLater(after="soon")  # type: ignore[arg-type]
