"""HTTP in, HTTP out: the path of a delivery, from its bytes to its answer."""

from __future__ import annotations

import json
import logging
from typing import Any

from flask import current_app
from flask import Request
from flask import request
from flask import Response

from .dispatch import dispatch
from .endpoint import Endpoint
from .endpoint import endpoints
from .errors import BadSignature
from .errors import DeliveryError
from .errors import InboxUnavailable
from .errors import PayloadTooLarge
from .events import Event
from .recorder import Recorded
from .signals import delivery_rejected
from .signals import event_dead
from .signals import event_recorded
from .signals import event_repeated
from .states import Status
from .verify import verify

log = logging.getLogger("flask_procore_webhooks")

#: Where the WSGI environment keeps what is wrong with the body, until the view answers.
REFUSAL = "flask_procore_webhooks.refusal"


def receive(**_: object) -> Response:
    """Answer one delivery: verified, parsed, recorded, dispatched, in this order."""
    sent = _request()
    if sent.method == "HEAD":
        return Response(status=204)
    endpoint = _endpoint(sent)
    body = _body(sent)
    now = endpoint.inbox.now().timestamp()
    verify(sent.headers, body, endpoint.source, endpoint.settings, now)
    timestamp = sent.headers.get(endpoint.source.timestamp_header, "")
    event, unreadable = endpoint.read_any(body, timestamp)
    recorded = _record(endpoint, event, unreadable)
    if unreadable:
        return _answer(200, received=True, quarantined=True)
    dispatch(endpoint, recorded)
    if recorded.fresh:
        return _answer(200, received=True)
    return _answer(200, received=True, duplicate=True)


def take_body(name: str | None, values: dict[str, Any] | None) -> None:
    """Read the body before any ``before_request`` of the host can consume it.

    Runs as a URL value preprocessor, which Flask calls ahead of all of those: ahead of
    those that use the host's database, too. It is also where Flask-WTF learns that our
    deliveries carry no CSRF token, whichever of the two was registered first.
    """
    sent = _request()
    endpoint = endpoints(current_app).get(str(sent.blueprint))
    # By name: the host may have wrapped the view, or added routes to the blueprint.
    if endpoint is None or name != f"{endpoint.blueprint}.receive":
        return
    if sent.method != "POST":
        return
    endpoint.inbox.database.leave_parent()
    csrf: Any = current_app.extensions.get("csrf")
    if hasattr(csrf, "exempt"):
        csrf.exempt(receive)
    try:
        _read_body(sent, endpoint.settings.max_bytes)
    except DeliveryError as refusal:
        # Not now: the host's after_request may rely on its before_request.
        sent.environ[REFUSAL] = refusal


def refuse(error: DeliveryError) -> Response:
    """Tell our log the reason, and the sender no more than it needs."""
    endpoint = _endpoint(_request())
    level = logging.ERROR if isinstance(error, InboxUnavailable) else logging.WARNING
    log.log(level, "%s answered %s: %s", endpoint.name, error.status, error.reason)
    delivery_rejected.announce(
        endpoint.app, endpoint=endpoint.name, status=error.status, reason=error.reason
    )
    response = _answer(error.status, error=error.answer)
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    return response


def _request() -> Request:
    """The request itself: the proxy would look for it at each use."""
    sent: Request = request._get_current_object()  # type: ignore[attr-defined]
    return sent


def _endpoint(sent: Request) -> Endpoint:
    return endpoints(current_app)[str(sent.blueprint)]


def _body(sent: Request) -> bytes:
    refusal: DeliveryError | None = sent.environ.get(REFUSAL)
    if refusal:
        raise refusal
    return sent.get_data()


def _read_body(sent: Request, limit: int) -> None:
    """Read the body once, for the view to find: all of it, or it is refused."""
    # One byte more than is allowed: at the limit itself, servers that pass chunked
    # bodies on cut them off without a word.
    sent.max_content_length = limit + 1
    if (sent.content_length or 0) > limit:
        raise PayloadTooLarge(f"Content-Length is over MAX_BYTES ({limit})")
    try:
        body = sent.get_data(cache=True)
    except Exception as error:
        # Each server has errors of its own for this. It must not be read again: some
        # would then give out the part that did arrive.
        kind = type(error).__name__
        raise BadSignature(f"the body did not arrive whole: {kind}") from None
    if len(body) > limit:
        raise PayloadTooLarge(f"the body is over MAX_BYTES ({limit})")
    if not _is_whole(sent, body):
        raise BadSignature(
            f"the body did not arrive whole: {len(body)} bytes are left of it; either"
            " the connection broke, or something read it before Flask's preprocessors"
        )


def _is_whole(sent: Request, body: bytes) -> bool:
    if "Transfer-Encoding" in sent.headers:
        # Without this promise of the server, Werkzeug reads nothing at all.
        return "wsgi.input_terminated" in sent.environ
    length = sent.environ.get("CONTENT_LENGTH")
    # Compared as text: what is no number, or too long for one, is not the length.
    return not length or length.lstrip("0") == str(len(body)).lstrip("0")


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
