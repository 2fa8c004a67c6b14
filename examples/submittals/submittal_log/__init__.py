"""A log of submittals that follows Procore's."""

from __future__ import annotations

from typing import Any

from flask import Flask
from sqlalchemy import select

from .models import db
from .models import Submittal
from .sweep import sweep
from .webhooks import webhooks


def create_app() -> Flask:
    app = Flask(__name__)
    app.config.from_object("submittal_log.config")
    app.config.from_prefixed_env()
    db.init_app(app)
    app.register_blueprint(webhooks)
    app.cli.add_command(sweep)
    app.add_url_rule("/submittals", view_func=list_submittals)
    with app.app_context():
        db.create_all()
    return app


def list_submittals() -> list[dict[str, Any]]:
    submittals = db.session.scalars(select(Submittal).order_by(Submittal.id))
    return [submittal.to_dict() for submittal in submittals]
