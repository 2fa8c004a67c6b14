"""The view of a delivery, from its bytes to its answer."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from functools import partial
from io import BytesIO
from typing import Any
from typing import IO

from flask import current_app
from flask import Flask
from flask import Request
from flask import request
from flask import Response

from .config.values import shown
from .dispatching.background import prepare_process
from .dispatching.background import PROBE
from .dispatching.background import warn_unannounced
from .dispatching.dispatch import dispatch
from .endpoint import app_state
from .endpoint import AppState
from .endpoint import Endpoint
from .endpoint import EXTENSION
from .errors import BadSignature
from .errors import DeliveryError
from .errors import InboxUnavailable
from .errors import NoSecret
from .errors import PayloadTooLarge
from .event import Event
from .inbox.record import record
from .inbox.record import RecordResult
from .inbox.status import Status
from .log import log
from .log import OnceLog
from .refusals import count_refusal
from .refusals import LEAVE
from .refusals import leave_unread
from .refusals import RefusalLog
from .refusals import unknown_end
from .refusals import with_hint
from .senders.signature import announced_length
from .senders.signature import check_digest
from .senders.signature import check_headers
from .senders.signature import CLOCK
from .signals import delivery_rejected
from .signals import event_dead
from .signals import event_recorded
from .signals import event_repeated
from .storage import tally
from .storage.store import Store

#: The key in the WSGI environment of what :func:`_take` returned or raised, until the
#: view answers.
TAKEN = "flask_procore_webhooks.taken"
RECEIVED = '{"received": true}'
DUPLICATE = '{"received": true, "duplicate": true}'
QUARANTINED = '{"received": true, "quarantined": true}'
#: Keys of an object of unknown shape in the log, at most.
MOST_KEYS = 20


def prepare_app(app: Flask) -> AppState:
    """Return the state of ``app``; the first registration makes it."""
    state: AppState | None = app.extensions.get(EXTENSION)
    if state is None:
        state = app.extensions[EXTENSION] = AppState(app)
        # Before every before_request: a login check may end a request there.
        app.url_value_preprocessor(partial(first_request, state))
    return state


def first_request(state: AppState, *_: object) -> None:
    """Prepare this process at its first request to any route of the app."""
    if state.prepared_pid == os.getpid() or PROBE in request.environ:
        return
    warn_unannounced(state, request.environ.get("SERVER_SOFTWARE"))
    prepare_process(state)


def take_body(name: str | None, values: dict[str, Any] | None) -> None:
    """Verify the delivery before any ``before_request`` of the host can read its body.

    It runs as a URL value preprocessor, which Flask calls before those. It also exempts
    deliveries from Flask-WTF's CSRF protection, whichever of the two was registered
    first.
    """
    # Once: a proxy looks its object up again at each attribute.
    sent: Request = request._get_current_object()  # type: ignore[attr-defined]
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
    state: AppState = app.extensions[EXTENSION]
    # By name: the host may have wrapped the view, or added routes to the blueprint.
    blueprint, _, view = str(name).rpartition(".")
    endpoint = state.endpoints.get(blueprint)
    if endpoint is None or view != "receive" or sent.method != "POST":
        return
    csrf: Any = app.extensions.get("csrf")
    if hasattr(csrf, "exempt"):
        csrf.exempt(receive)
    try:
        sent.environ[TAKEN] = _take(sent, endpoint)
    except DeliveryError as refusal:
        # Answered by the view: the host's after_request may rely on its before_request.
        sent.environ[TAKEN] = refusal


def receive(**_: object) -> Response:
    """Answer one delivery: verify, parse, record, dispatch, in this order."""
    sent: Request = request._get_current_object()  # type: ignore[attr-defined]
    if sent.method == "HEAD":
        return Response(status=204)
    taken = sent.environ.pop(TAKEN, None)
    if taken is None:
        # Without the preprocessor, which a host may have removed, it is verified now.
        taken = _take(sent, app_state(current_app).endpoints[str(sent.blueprint)])
    if isinstance(taken, DeliveryError):
        raise taken
    endpoint, store, body, timestamp = taken
    event, unreadable = endpoint.read(body, timestamp)
    status = _status(endpoint, event, unreadable)
    recorded = record(store, event, status, unreadable)
    new = "quarantined" if unreadable else "recorded"
    repeat = "conflict" if recorded.is_conflict else "duplicate"
    tally.count(store, new if recorded.is_new else repeat, now=recorded.at)
    if recorded.is_new and status is Status.IGNORED:
        tally.count(store, status.value, now=recorded.at)
    _announce(endpoint, event, recorded, unreadable)
    if unreadable:
        return _response(QUARANTINED)
    dispatch(endpoint, recorded)
    return _response(RECEIVED if recorded.is_new else DUPLICATE)


def refuse(error: DeliveryError) -> Response:
    """Log or count the reason; the answer holds only the error's fixed text."""
    state = app_state(current_app)
    endpoint = state.endpoints[str(request.blueprint)]
    if PROBE in request.environ:
        request.environ[PROBE].append(endpoint.name)
        return _response(json.dumps({"error": error.answer}), error.status)
    count_refusal(endpoint.store, error)
    error = with_hint(error, request.environ)
    state.runtime.part(RefusalLog, RefusalLog).write(endpoint.name, error)
    delivery_rejected.announce(
        endpoint.app, endpoint=endpoint.name, status=error.status, reason=error.reason
    )
    response = _response(json.dumps({"error": error.answer}), error.status)
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    if leave := request.environ.pop(LEAVE, None):
        response.call_on_close(leave)
    return response


def _take(sent: Request, endpoint: Endpoint) -> tuple[Endpoint, Store, bytes, str]:
    """Return the endpoint of an authentic delivery, its store, body and timestamp.

    The body is read once the headers have passed every check that needs no body.

    :raises DeliveryError: the endpoint has no secret, or the delivery is not authentic.
    """
    settings, environ = endpoint.settings_in_force, sent.environ
    length: int | None = None
    try:
        if settings is None:
            raise NoSecret()
        length = announced_length(environ.get("CONTENT_LENGTH"), settings.max_bytes)
        store = endpoint.store
        now = store.now().timestamp()
        try:
            signed = check_headers(sent.headers, endpoint.source, settings, now)
        except BadSignature as refusal:
            is_late = refusal.cause.startswith(CLOCK)
            if not is_late or not store.doubts_clock():
                raise
            now = _compared_now(store)
            signed = check_headers(sent.headers, endpoint.source, settings, now)
        body = _read_body(sent, length, settings.max_bytes)
    except DeliveryError:
        leave_unread(environ, length)
        raise
    if signed:
        check_digest(signed, body, settings, now)
        return endpoint, store, body, signed.timestamp
    timestamp = sent.headers.get(endpoint.source.timestamp_header, "")
    return endpoint, store, body, timestamp


def _compared_now(store: Store) -> float:
    """The time after a comparison with the database's clock, if that can be made."""
    with suppress(InboxUnavailable):
        store.run(lambda connection: None)
    return store.now().timestamp()


def _read_body(sent: Request, length: int | None, limit: int) -> bytes:
    """Return the body: its end is known, and it has arrived whole.

    The end is known if the server passes an end of the stream on, or if it gives the
    length of a body that is not chunked.

    :raises DeliveryError: the end is unknown, the body was cut, or it is too large.
    """
    environ = sent.environ
    ends = bool(environ.get("wsgi.input_terminated"))
    if not ends and (length is None or environ.get("HTTP_TRANSFER_ENCODING")):
        raise BadSignature(unknown_end(environ), cause="unknown end")
    try:
        body = _read(sent, None if ends else length, limit)
    except Exception as error:
        # Each server has its own errors for this. A second read could return the part
        # that did arrive.
        kind = type(error).__name__
        raise BadSignature(f"the body did not arrive whole: {kind}") from None
    if len(body) > limit:
        raise PayloadTooLarge(f"the body is over MAX_BYTES ({limit})")
    # A chunked body without a byte was read before, by a middleware.
    if len(body) != length and not (length is None and body):
        raise BadSignature(
            f"the body did not arrive whole: {len(body)} bytes are left of it; either"
            " the connection broke, or something read it before Flask's preprocessors",
            cause="cut body",
        )
    return body


def _read(sent: Request, length: int | None, limit: int) -> bytes:
    """Read ``length`` bytes, or up to the end; then every later read gets the same.

    No attribute of the host's request class is needed: it may forbid to set its limit,
    have a smaller one, or never cache.
    """
    if "stream" in vars(sent):
        # An earlier preprocessor has read it: its cache, or the rest.
        return sent.get_data()
    # One byte more than allowed: servers that pass chunked bodies on cut them off
    # silently at the limit.
    most = limit + 1 if length is None else length
    body = _read_up_to(sent.environ["wsgi.input"], most)
    try:
        sent.max_content_length = limit + 1
    except AttributeError:
        pass
    # A class of the host may read the one or the other.
    vars(sent)["stream"] = sent.environ["wsgi.input"] = stream = BytesIO(body)
    try:
        sent.get_data()
    except Exception:
        pass
    # For a class that does not cache.
    vars(sent).pop("stream", None)
    stream.seek(0)
    return body


def _read_up_to(source: IO[bytes], most: int) -> bytes:
    """Read ``most`` bytes, or fewer if the stream ends before."""
    body = source.read(most)
    parts, missing = [body], most - len(body)
    while missing > 0 and (part := source.read(missing)):
        parts.append(part)
        missing -= len(part)
    return body if len(parts) == 1 else b"".join(parts)


def _status(endpoint: Endpoint, event: Event, unreadable: str | None) -> Status:
    if unreadable:
        return Status.QUARANTINED
    return Status.IGNORED if endpoint.ignores(event) else Status.PENDING


def _announce(
    endpoint: Endpoint, event: Event, recorded: RecordResult, unreadable: str | None
) -> None:
    app = endpoint.app
    if not recorded.is_new:
        event_repeated.announce(app, event=event, conflict=recorded.is_conflict)
        return
    # Most apps have no receiver of it.
    if event_recorded.receivers:
        event_recorded.announce(app, event=event)
    if unreadable:
        log.error("%s quarantined %s: %s", endpoint.name, event.id, unreadable)
        event_dead.announce(app, event=event, error=unreadable, exception=None)
    elif not event.type:
        keys = ", ".join(map(shown, sorted(event.payload)[:MOST_KEYS]))
        endpoint.state.runtime.part(OnceLog, OnceLog).warning(
            "%s recorded an object of unknown shape, with an empty type. Its keys: %s."
            " This is logged once for each shape.",
            endpoint.name,
            keys or "none",
        )


def _response(text: str, status: int = 200) -> Response:
    return Response(text, status, content_type="application/json")
