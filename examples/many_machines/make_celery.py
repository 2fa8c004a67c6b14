"""The module for Celery's commands: ``celery -A make_celery worker``."""

from __future__ import annotations

from app import create_app

flask_app = create_app()
celery_app = flask_app.extensions["celery"]
