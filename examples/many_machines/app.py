"""An app for many machines: the inbox is in PostgreSQL, Celery runs the subscribers."""

from __future__ import annotations

import os
import time

from celery import Celery
from celery import Task
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column

from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks


class Base(DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Base)
webhooks = ProcoreWebhooks(db=db)


class Change(Base):
    """The effect of an event. The table accepts a second row for the same event."""

    __tablename__ = "change"

    id: Mapped[int] = mapped_column(primary_key=True)
    event_id: Mapped[str]
    machine: Mapped[str]


@webhooks.on("RFIs")
def note_change(event: Event) -> None:
    machine = os.environ.get("MACHINE", "?")
    db.session.add(Change(event_id=event.id, machine=machine))
    db.session.flush()
    time.sleep(0.03)  # a window in which the process may be killed


def create_app() -> Flask:
    app = Flask(__name__)
    app.config.update(
        SQLALCHEMY_DATABASE_URI=os.environ["DATABASE_URL"],
        PROCORE_WEBHOOK_SECRET=os.environ["PROCORE_WEBHOOK_SECRET"],
        PROCORE_WEBHOOK_DISPATCH="celery",
        PROCORE_WEBHOOK_LEASE=float(os.environ.get("LEASE", 300)),
        CELERY=celery_config(),
    )
    db.init_app(app)
    set_up_celery(app)
    app.register_blueprint(webhooks)
    return app


def celery_config() -> dict[str, object]:
    sweep = {
        "task": "flask_procore_webhooks.sweep",
        "schedule": float(os.environ.get("SWEEP_EVERY", 60)),
        "kwargs": {"overdue": float(os.environ.get("SWEEP_OVERDUE", 30))},
    }
    prefix = os.environ.get("REDIS_PREFIX", "")
    return {
        "broker_url": os.environ["REDIS_URL"],
        "broker_transport_options": {"global_keyprefix": prefix},
        "broker_connection_retry_on_startup": True,
        "task_ignore_result": True,
        # A killed worker loses its prefetched messages; the sweep sends them again.
        "worker_prefetch_multiplier": 1,
        "beat_schedule": {"webhooks": sweep},
    }


def set_up_celery(app: Flask) -> None:
    """Set Celery up as Flask's documentation shows."""

    class FlaskTask(Task):  # type: ignore[misc]
        def __call__(self, *args: object, **kwargs: object) -> object:
            with app.app_context():
                return self.run(*args, **kwargs)

    celery = Celery(app.name, task_cls=FlaskTask)
    celery.config_from_object(app.config["CELERY"])
    celery.set_default()
    app.extensions["celery"] = celery
