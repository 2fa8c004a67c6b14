"""For tests of apps: real deliveries through the real app.

A delivery is bytes with real headers. It goes through the app's WSGI stack and is
verified, recorded and run as in production. The pytest plug-in offers the same as the
fixture ``procore_webhooks``.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from ..dispatching import dispatch
from ..endpoint import Endpoint
from ..endpoint import endpoints
from ..fake import FakeProcore
from ..fake import Switches
from ..operations.queries import newest
from ..senders.procore import PROCORE
from ..senders.prudra import PRUDRA
from ..senders.samples import payload
from ..senders.samples import to_bytes
from ..senders.signature import sign
from .isolation import apart

__all__ = [
    "PROCORE",
    "PRUDRA",
    "Deliveries",
    "FakeProcore",
    "Switches",
    "deliver",
    "drain",
    "payload",
    "sign",
]


def deliver(
    client: FlaskClient,
    payload: bytes | Mapping[str, Any],
    *,
    endpoint: str | None = None,
    timestamp: int | str | None = None,
    headers: Mapping[str, str | None] | None = None,
) -> TestResponse:
    """Deliver ``payload`` to the client's app, authentic for its endpoint.

    The delivery is a request of its own, whatever contexts the suite has pushed: it has
    its own app context, ``g`` and session of SQLAlchemy. It has no cookies of
    ``client``, and comes over https.

    :param payload: a body as bytes, or what :func:`payload` returns.
    :param endpoint: the endpoint's name; needed where the app has several.
    :param timestamp: Unix seconds to sign; now, if left out.
    :param headers: replace headers of the same name, for example to make a forgery;
        ``None`` leaves a header out.
    :raises LookupError: the app has no such endpoint, or several and none was named.
    """
    target = _endpoint(client.application, endpoint)
    body = to_bytes(payload)
    sent = target.credentials.headers(body, timestamp=timestamp, instead=headers)
    path, base_url = _address(target)

    def post() -> TestResponse:
        return _sender_client(client).post(
            path,
            base_url=base_url,
            data=body,
            headers=sent,
            # An empty body has a length too.
            content_length=len(body),
        )

    return apart(list(endpoints(target.app).values()), post)


def drain(app: Flask, *, advance: float = 0.0) -> int:
    """Run every recorded event that is due; return how many were run.

    An event runs once, and again when the end of another one makes it due. It runs like
    :func:`deliver` in contexts of its own.

    :param advance: seconds; also the jobs that will be due within them.
    """
    mounted = list(endpoints(app).values())
    return apart(mounted, partial(dispatch.drain, mounted, ahead=advance))


class Deliveries:
    """The fixture ``procore_webhooks``: the helpers, bound to one app."""

    payload = staticmethod(payload)
    sign = staticmethod(sign)

    def __init__(self, app: Flask) -> None:
        self.app = app

    def deliver(
        self,
        payload: bytes | Mapping[str, Any],
        *,
        endpoint: str | None = None,
        timestamp: int | str | None = None,
        headers: Mapping[str, str | None] | None = None,
    ) -> TestResponse:
        """Deliver ``payload`` to the app; see :func:`deliver`."""
        return deliver(
            self.app.test_client(),
            payload,
            endpoint=endpoint,
            timestamp=timestamp,
            headers=headers,
        )

    def drain(self, *, advance: float = 0.0) -> int:
        """Run every recorded event that is due; see :func:`drain`."""
        return drain(self.app, advance=advance)

    def events(self, endpoint: str | None = None) -> list[Mapping[str, Any]]:
        """The newest 100 rows of the inbox, newest first, without bodies."""
        target = _endpoint(self.app, endpoint)
        return apart([target], lambda: newest(target.store, limit=100))


def _endpoint(app: Flask, name: str | None) -> Endpoint:
    mounted = list(endpoints(app).values())
    found = [each for each in mounted if name in (None, each.name)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(each.name for each in mounted) or "none"
    raise LookupError(f"Name one endpoint= of the app; it has: {names}.")


def _sender_client(client: FlaskClient) -> FlaskClient:
    """A client of the same class that is new: without cookies and preserved contexts.

    A sender of webhooks has no cookies, and the contexts that ``with client:``
    preserves end where they were pushed.
    """
    sender = copy(client)
    FlaskClient.__init__(
        sender, client.application, client.response_wrapper, use_cookies=False
    )
    sender.environ_base = dict(client.environ_base)
    return sender


def _address(endpoint: Endpoint) -> tuple[str, str]:
    """The path that a sender posts to, and the URL of the app's root; over https."""
    config = endpoint.app.config
    trusted = [host.lstrip(".") for host in config.get("TRUSTED_HOSTS") or ()]
    host = config.get("SERVER_NAME") or next(iter(trusted), "localhost")
    adapter = endpoint.app.url_map.bind(host, url_scheme="https")
    url = urlsplit(adapter.build(f"{endpoint.blueprint}.receive", force_external=True))
    root = config["APPLICATION_ROOT"].lstrip("/")
    # With host_matching, a rule without a host builds a URL without one.
    return url.path, f"https://{url.netloc or host}/{root}"
