from __future__ import annotations

import hmac
from typing import Any

from flask import Blueprint
from flask import current_app
from flask import request
from flask import Response
from sqlalchemy import select

from .models import db
from .models import Rfi
from .webhooks import webhooks

pages = Blueprint("pages", __name__)


@pages.get("/rfis")
def list_rfis() -> list[dict[str, Any]]:
    rfis = db.session.scalars(select(Rfi).order_by(Rfi.id))
    return [
        {"id": rfi.id, "subject": rfi.subject, "status": rfi.status} for rfi in rfis
    ]


def require_login() -> Response | None:
    """Require the password, except for deliveries: the blueprint authenticates them."""
    if request.blueprint == webhooks.name:
        return None
    given = (request.authorization and request.authorization.password) or ""
    expected = current_app.config["OFFICE_PASSWORD"]
    if hmac.compare_digest(given.encode(), expected.encode()):
        return None
    return Response("Log in, please.", 401, {"WWW-Authenticate": "Basic"})
