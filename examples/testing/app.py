"""An app that adds a task to the list of the office for every new RFI."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

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


class Task(Base):
    __tablename__ = "task"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


@webhooks.on("RFIs", "create")
def add_task(event: Event) -> None:
    db.session.add(Task(text=f"Answer RFI {event.resource_id}"))


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///tasks.db"
    app.config["PROCORE_WEBHOOK_SECRET"] = os.environ.get("PROCORE_WEBHOOK_SECRET")
    app.config.update(config or {})
    db.init_app(app)
    app.register_blueprint(webhooks)
    with app.app_context():
        db.create_all()
    return app
