"""HTTP in, HTTP out: the path of a delivery, from its bytes to its answer."""

from __future__ import annotations

import json
import logging
from typing import Any

from flask import current_app
from flask import request
from flask import Response
from werkzeug.exceptions import HTTPException

from .dispatch import run_inline
from .endpoint import Endpoint
from .endpoint import endpoints
from .errors import BadSignature
from .errors import DeliveryError
from .errors import InboxUnavailable
from .errors import PayloadTooLarge
from .events import Event
from .inbox import Recorded
from .inbox import Status
from .signals import delivery_rejected
from .signals import event_dead
from .signals import event_recorded
from .signals import event_repeated
from .verify import verify

log = logging.getLogger("flask_procore_webhooks")


def receive() -> Response:
    """Answer one delivery: verified, parsed, recorded, dispatched, in this order."""
    if request.method == "HEAD":
        return Response(status=204)
    endpoint = _endpoint()
    body = _read_body(endpoint)
    now = endpoint.inbox.now().timestamp()
    verify(request.headers, body, endpoint.source, endpoint.settings, now)
    timestamp = request.headers.get(endpoint.source.timestamp_header, "")
    event, unreadable = endpoint.read_any(body, timestamp)
    recorded = _record(endpoint, event, unreadable)
    if unreadable:
        return _answer(200, received=True, quarantined=True)
    run_inline(endpoint, recorded)
    if recorded.fresh:
        return _answer(200, received=True)
    return _answer(200, received=True, duplicate=True)


def take_body(name: str | None, values: dict[str, Any] | None) -> None:
    """Read the body before any ``before_request`` of the host can consume it.

    Runs as a URL value preprocessor, which Flask calls ahead of all of those. It is
    also where Flask-WTF learns that our deliveries carry no CSRF token, whichever of
    the two was registered first.
    """
    csrf: Any = current_app.extensions.get("csrf")
    if hasattr(csrf, "exempt"):
        csrf.exempt(current_app.blueprints[str(request.blueprint)])
    endpoint = _endpoint()
    # One byte more than is allowed: at the limit itself, servers that pass chunked
    # bodies on cut them off without a word.
    request.max_content_length = endpoint.settings.max_bytes + 1
    try:
        request.get_data(cache=True)
    except HTTPException:
        # Too long or cut short; the view meets the same error and answers it.
        pass


def refuse(error: DeliveryError) -> Response:
    """Tell our log the reason, and the sender no more than it needs."""
    endpoint = _endpoint()
    level = logging.ERROR if isinstance(error, InboxUnavailable) else logging.WARNING
    log.log(level, "%s answered %s: %s", endpoint.name, error.status, error.reason)
    delivery_rejected.announce(
        endpoint.app, endpoint=endpoint.name, status=error.status, reason=error.reason
    )
    response = _answer(error.status, error=error.answer)
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    return response


def _endpoint() -> Endpoint:
    return endpoints(current_app)[str(request.blueprint)]


def _read_body(endpoint: Endpoint) -> bytes:
    limit = endpoint.settings.max_bytes
    if (request.content_length or 0) > limit:
        raise PayloadTooLarge(f"Content-Length is over MAX_BYTES ({limit})")
    try:
        body = request.get_data(cache=True)
    except HTTPException as error:
        raise BadSignature(f"the body did not arrive whole: {error.name}") from None
    if len(body) > limit:
        raise PayloadTooLarge(f"the body is over MAX_BYTES ({limit})")
    return body


def _record(endpoint: Endpoint, event: Event, unreadable: str | None) -> Recorded:
    status = Status.PENDING
    if unreadable:
        status = Status.DEAD
    elif endpoint.ignores(event):
        status = Status.IGNORED
    recorded = endpoint.inbox.record(event, status, unreadable)
    _announce(endpoint, event, recorded, unreadable)
    return recorded


def _announce(
    endpoint: Endpoint, event: Event, recorded: Recorded, unreadable: str | None
) -> None:
    if not recorded.fresh:
        event_repeated.announce(endpoint.app, event=event, conflict=recorded.conflict)
        return
    event_recorded.announce(endpoint.app, event=event)
    if unreadable:
        log.error("%s quarantined %s: %s", endpoint.name, event.id, unreadable)
        event_dead.announce(endpoint.app, event=event, error=unreadable)


def _answer(status: int, **content: object) -> Response:
    return Response(json.dumps(content), status, mimetype="application/json")
