"""A typical app: RFIs in a database, behind a login."""

from __future__ import annotations

import os

from flask import Flask
from flask_migrate import Migrate

from .models import db
from .pages import pages
from .pages import require_login
from .webhooks import webhooks

migrate = Migrate()


def create_app() -> Flask:
    app = Flask(__name__)
    app.config.update(
        SQLALCHEMY_DATABASE_URI=os.environ.get("DATABASE_URL", "sqlite:///tracker.db"),
        OFFICE_PASSWORD=os.environ["OFFICE_PASSWORD"],
        PROCORE_API=os.environ.get("PROCORE_API", "https://api.procore.com"),
        PROCORE_TOKEN=os.environ["PROCORE_TOKEN"],
        PROCORE_WEBHOOK_AUTHORIZATION=os.environ["PROCORE_WEBHOOK_AUTHORIZATION"],
    )
    db.init_app(app)
    migrate.init_app(app, db)
    app.before_request(require_login)
    app.register_blueprint(pages)
    app.register_blueprint(webhooks)
    return app
