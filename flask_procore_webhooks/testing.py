"""For tests of apps: real deliveries through the real app.

A delivery is bytes with real headers. It goes through the app's WSGI stack and is
verified, recorded and run as in production. The pytest plug-in offers the same as the
fixture ``procore_webhooks``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from .endpoint import Endpoint
from .endpoint import endpoints
from .inbox.queries import newest
from .running import dispatch
from .senders.procore import PROCORE
from .senders.prudra import PRUDRA
from .senders.samples import payload
from .senders.samples import to_bytes
from .senders.signature import sign

__all__ = ["PROCORE", "PRUDRA", "Deliveries", "deliver", "drain", "payload", "sign"]


def deliver(
    client: FlaskClient,
    payload: bytes | Mapping[str, Any],
    *,
    endpoint: str | None = None,
    timestamp: int | str | None = None,
    headers: Mapping[str, str | None] | None = None,
) -> TestResponse:
    """Deliver ``payload`` to the client's app, authentic for its endpoint.

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
    # An empty body has a length too.
    length = len(body)
    return client.post(target.path, data=body, headers=sent, content_length=length)


def drain(app: Flask, *, early: bool = False) -> int:
    """Run every recorded event that is due, each once; return how many were run.

    :param early: also events that wait for their next attempt after a failure.
    """
    return dispatch.drain(endpoints(app).values(), ignore_backoff=early)


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

    def drain(self, *, early: bool = False) -> int:
        """Run every recorded event that is due; see :func:`drain`."""
        return drain(self.app, early=early)

    def events(self, endpoint: str | None = None) -> list[Mapping[str, Any]]:
        """The newest 100 rows of the inbox, newest first, without bodies."""
        return newest(_endpoint(self.app, endpoint).store, limit=100)


def _endpoint(app: Flask, name: str | None) -> Endpoint:
    mounted = list(endpoints(app).values())
    found = [each for each in mounted if name in (None, each.name)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(each.name for each in mounted) or "none"
    raise LookupError(f"Name one endpoint= of the app; it has: {names}.")
