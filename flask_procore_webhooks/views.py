"""The view of a delivery, from its bytes to its answer."""

from __future__ import annotations

import json
import logging
import os
from contextlib import suppress
from typing import Any

from flask import current_app
from flask import Request
from flask import request
from flask import Response

from .endpoint import app_state
from .endpoint import AppState
from .endpoint import at_least_once_warnings
from .endpoint import Endpoint
from .errors import BadSignature
from .errors import DeliveryError
from .errors import InboxUnavailable
from .errors import PayloadTooLarge
from .event import Event
from .inbox.record import record
from .inbox.record import RecordResult
from .inbox.tables import Status
from .running.background import background_of
from .running.background import PROBE
from .running.dispatch import dispatch
from .senders.signature import verify
from .signals import delivery_rejected
from .signals import event_dead
from .signals import event_recorded
from .signals import event_repeated

log = logging.getLogger("flask_procore_webhooks")

#: The key in the WSGI environment for a refused body, until the view answers.
REFUSAL = "flask_procore_webhooks.refusal"


def prepare_process(state: AppState, *_: object) -> None:
    """Prepare this process at its first request to any route of the app.

    A forked process leaves its parent's connections; a setup that weakens the promise
    is logged; the background thread starts, because earlier processes may have left
    events.
    """
    if state.prepared_pid == os.getpid() or PROBE in request.environ:
        return
    if state.runtime.parent is not None:
        state.leave_parent()
    state.prepared_pid = os.getpid()
    for endpoint in state.endpoints.values():
        # A host that cannot name its tables has errors of its own for that.
        with suppress(Exception):
            for text in at_least_once_warnings(endpoint):
                log.warning("%s: %s", endpoint.name, text)
    background = background_of(state)
    if not background.was_started:
        background.wake()


def take_body(name: str | None, values: dict[str, Any] | None) -> None:
    """Read the body before any ``before_request`` of the host can consume it.

    It runs as a URL value preprocessor, which Flask calls before those. It also exempts
    deliveries from Flask-WTF's CSRF protection, whichever of the two was registered
    first.
    """
    sent: Request = request._get_current_object()  # type: ignore[attr-defined]
    endpoint = app_state(current_app).endpoints.get(str(sent.blueprint))
    # By name: the host may have wrapped the view, or added routes to the blueprint.
    if endpoint is None or name != f"{endpoint.blueprint}.receive":
        return
    if sent.method != "POST":
        return
    csrf: Any = current_app.extensions.get("csrf")
    if hasattr(csrf, "exempt"):
        csrf.exempt(receive)
    try:
        _read_body(sent, endpoint.settings.max_bytes)
    except DeliveryError as refusal:
        # Answered by the view: the host's after_request may rely on its before_request.
        sent.environ[REFUSAL] = refusal


def receive(**_: object) -> Response:
    """Answer one delivery: verify, parse, record, dispatch, in this order."""
    sent: Request = request._get_current_object()  # type: ignore[attr-defined]
    if sent.method == "HEAD":
        return Response(status=204)
    endpoint = app_state(current_app).endpoints[str(sent.blueprint)]
    if PROBE in sent.environ:
        sent.environ[PROBE].append(endpoint.name)
    refusal: DeliveryError | None = sent.environ.get(REFUSAL)
    if refusal:
        raise refusal
    store = endpoint.store
    body, now = sent.get_data(), store.now().timestamp()
    verify(sent.headers, body, endpoint.source, endpoint.settings, now)
    timestamp = sent.headers.get(endpoint.source.timestamp_header, "")
    event, unreadable = endpoint.read(body, timestamp)
    status = _status(endpoint, event, unreadable)
    recorded = record(store, event, status, unreadable)
    _announce(endpoint, event, recorded, unreadable)
    if unreadable:
        return _answer(200, received=True, quarantined=True)
    dispatch(endpoint, recorded)
    if recorded.is_new:
        return _answer(200, received=True)
    return _answer(200, received=True, duplicate=True)


def refuse(error: DeliveryError) -> Response:
    """Log the reason; the answer holds only the error's fixed text."""
    endpoint = app_state(current_app).endpoints[str(request.blueprint)]
    if PROBE in request.environ:
        return _answer(error.status, error=error.answer)
    level = logging.ERROR if isinstance(error, InboxUnavailable) else logging.WARNING
    log.log(level, "%s answered %s: %s", endpoint.name, error.status, error.reason)
    delivery_rejected.announce(
        endpoint.app, endpoint=endpoint.name, status=error.status, reason=error.reason
    )
    response = _answer(error.status, error=error.answer)
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    return response


def _read_body(sent: Request, limit: int) -> None:
    """Read and cache the whole body for the view.

    :raises DeliveryError: it is too large, or did not arrive whole.
    """
    # One byte more than allowed: servers that pass chunked bodies on cut them off
    # silently at the limit.
    sent.max_content_length = limit + 1
    if (sent.content_length or 0) > limit:
        raise PayloadTooLarge(f"Content-Length is over MAX_BYTES ({limit})")
    try:
        body = sent.get_data(cache=True)
    except Exception as error:
        # Each server has its own errors for this. A second read could return the part
        # that did arrive.
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
        # Without this promise of the server, Werkzeug reads nothing.
        return "wsgi.input_terminated" in sent.environ
    length = sent.environ.get("CONTENT_LENGTH")
    # Compared as text: some values are not a number, or too long for one.
    return not length or length.lstrip("0") == str(len(body)).lstrip("0")


def _status(endpoint: Endpoint, event: Event, unreadable: str | None) -> Status:
    if unreadable:
        return Status.DEAD
    return Status.IGNORED if endpoint.ignores(event) else Status.PENDING


def _announce(
    endpoint: Endpoint, event: Event, recorded: RecordResult, unreadable: str | None
) -> None:
    app = endpoint.app
    if not recorded.is_new:
        event_repeated.announce(app, event=event, conflict=recorded.is_conflict)
        return
    event_recorded.announce(app, event=event)
    if unreadable:
        log.error("%s quarantined %s: %s", endpoint.name, event.id, unreadable)
        event_dead.announce(app, event=event, error=unreadable)


def _answer(status: int, **content: object) -> Response:
    return Response(json.dumps(content), status, mimetype="application/json")
