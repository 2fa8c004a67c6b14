"""A client of the fake, and destinations."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from typing import Any
from typing import TYPE_CHECKING

from flask import Flask
from flask import request
from flask import Response
from support.waiting import PATIENCE
from werkzeug.test import TestResponse

from flask_procore_webhooks.fake import FakeProcore

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

URL = "https://app.example.com/webhooks?key=1"
COMPANY = "/rest/v2.0/companies/1/webhooks"
PROJECT = "/rest/v2.0/companies/1/projects/2/webhooks"

HOOK = {"payload_version": "v4.0", "namespace": "mine", "destination_url": URL}


class Api:
    """Calls the fake with a token of its own and a company header."""

    def __init__(self, fake: FakeProcore, company: str | None = "1") -> None:
        self._client = fake.test_client()
        form = {
            "grant_type": "client_credentials",
            "client_id": "id",
            "client_secret": "secret",
        }
        token = self._client.post("/oauth/token", data=form).get_json()["access_token"]
        self.headers = {"Authorization": f"Bearer {token}"}
        if company is not None:
            self.headers["Procore-Company-Id"] = company

    def call(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """Return the answer; ``filter_x=`` stands for ``filter[x]``."""
        query = {
            f"filter[{name[7:]}]" if name.startswith("filter_") else name: value
            for name, value in query.items()
        }
        more: dict[str, Any] = {} if body is None else {"json": body}
        answer: TestResponse = self._client.open(
            path, method=method, headers=self.headers, query_string=query, **more
        )
        return answer

    def data(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """Return what ``data`` holds in an answer that succeeds."""
        answer = self.call(method, path, body, **query)
        assert answer.status_code < 300, answer.text
        return answer.get_json()["data"]

    def hook(self, path: str = PROJECT, **fields: Any) -> Any:
        """Create a hook and return it."""
        return self.data("POST", f"{path}/hooks", {**HOOK, **fields})


class Destination:
    """A WSGI app that receives deliveries, and answers as told."""

    def __init__(self, statuses: Iterable[int] = ()) -> None:
        self.status = 200
        self.statuses = [*statuses]
        self.payloads: list[dict[str, Any]] = []
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.urls: list[str] = []
        self._arrivals = threading.Semaphore(0)
        app = Flask(__name__)
        app.add_url_rule("/<path:path>", "receive", self._receive, methods=["POST"])
        self.app: WSGIApplication = app

    def wait_for(self, deliveries: int) -> None:
        """Return when so many more deliveries have come."""
        for _ in range(deliveries):
            assert self._arrivals.acquire(timeout=PATIENCE)

    def _receive(self, path: str) -> Response:
        self.bodies.append(request.get_data())
        self.payloads.append(json.loads(request.get_data()))
        self.headers.append(dict(request.headers))
        self.urls.append(request.url)
        self._arrivals.release()
        status = self.statuses.pop(0) if self.statuses else self.status
        return Response("seen", status, headers={"X-Node": "a"})


def hooked(fake: FakeProcore, destination: Destination, **fields: Any) -> str:
    """Add a hook for RFIs of project 2 that delivers to the destination."""
    fake.receive(URL, destination.app)
    given = {
        "project": "2",
        "destination_url": URL,
        "triggers": [("RFIs", "create"), ("RFIs", "update"), ("RFIs", "delete")],
    }
    return fake.add_hook(**{**given, **fields})


def statuses(fake: FakeProcore) -> list[str]:
    """The statuses of all deliveries, oldest first."""
    return [row["status"] for row in fake.deliveries()]
