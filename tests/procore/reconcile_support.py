"""An app with hooks at a fake of Procore, and its command ``reconcile``."""

from __future__ import annotations

import json
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field
from datetime import date
from datetime import datetime
from datetime import timedelta
from datetime import timezone
from typing import Any
from typing import TYPE_CHECKING

import sqlalchemy as sa
from click.testing import Result
from flask import Flask
from flask import request
from flask import Response
from support.commands import run_apart
from support.inboxes import dispose
from support.inboxes import own_rows

from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.dispatching.worker import Worker
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.fake import FakeProcore
from flask_procore_webhooks.operations.journal import entries
from flask_procore_webhooks.storage.store import Store

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse
    from _typeshed.wsgi import WSGIEnvironment

MakeApp = Callable[..., Flask]

NOW = datetime(2026, 11, 26, 9, tzinfo=timezone.utc)
HOST = "https://app.example.com"
URL = f"{HOST}/webhooks/procore"
AUTHORIZATION = "Bearer a value that Procore sends"
CLIENT_SECRET = "a client secret of the test suite"
NAMESPACE = "tracker"
SCOPE = {"company": "1", "project": "2"}
DELIVERIES = "/deliveries"
TRIGGERS = [("RFIs", "update")]


@dataclass
class Integration:
    """An app with one endpoint, on the clock of a fake of Procore.

    Its subscriber notes each event in ``calls``.
    """

    app: Flask
    fake: FakeProcore
    webhooks: ProcoreWebhooks
    endpoint: Endpoint
    #: Whether deliveries are answered 503.
    is_down: bool = False
    calls: list[Event] = field(default_factory=list)

    @property
    def store(self) -> Store:
        return self.endpoint.store

    @property
    def called(self) -> list[str]:
        """The ids of the events that the subscriber was called with, sorted."""
        return sorted(event.id for event in self.calls)

    @property
    def recorded(self) -> list[str]:
        """The ids of the events in the inbox, sorted."""
        return sorted(row["event_id"] for row in self.rows())

    @property
    def came_back(self) -> list[str]:
        """The ids of the events that were reconciled, sorted."""
        rows = self.rows()
        return sorted(row["event_id"] for row in rows if row["origin"] == "reconcile")

    def rows(self) -> list[dict[str, Any]]:
        """The events of the inbox, oldest first, with every column."""
        return own_rows(self.store)

    def wsgi(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        """The app as Procore reaches it."""
        if self.is_down:
            start("503 Service Unavailable", [])
            return []
        return self.app.wsgi_app(environ, start)

    def hook(self, **fields: Any) -> str:
        """Add a hook of project 2 for RFIs that delivers to the app; return its id."""
        given: dict[str, Any] = {
            "namespace": NAMESPACE,
            "destination_url": URL,
            "authorization": AUTHORIZATION,
            "triggers": TRIGGERS,
        }
        if "company" not in fields:
            given["project"] = "2"
        return self.fake.add_hook(**{**given, **fields})

    def emit(self, number: int = 1, **fields: Any) -> list[str]:
        """Make events of different RFIs; return their ids, sorted."""
        given = {"project": "2", **fields}
        made = [self.fake.emit("RFIs", "update", **given) for _ in range(number)]
        return sorted(made)

    def deliver(self, number: int = 1, **fields: Any) -> list[str]:
        """Make events that the app receives; return their ids, sorted."""
        ids = self.emit(number, **fields)
        self.fake.deliver()
        return ids

    def lose(self, number: int = 1, **fields: Any) -> list[str]:
        """Make events during an outage, until Procore discards them.

        :return: their ids, sorted.
        """
        self.is_down = True
        ids = self.emit(number, **fields)
        self.fake.advance(hours=13)
        self.is_down = False
        return ids

    def reconcile(self, *options: object) -> Result:
        """Run the command with separate standard output and standard error."""
        result: Result = run_apart(self.app, "reconcile", *options)
        assert result.exception is None or isinstance(result.exception, SystemExit), (
            result.exc_info
        )
        return result

    def reports(self, *options: object, code: int | None = None) -> list[Any]:
        """The reports of the endpoint's hooks; check the exit code if one is given."""
        result = self.reconcile(*options, "--json")
        assert code is None or result.exit_code == code, result.output
        reports: list[Any] = json.loads(result.stdout)[self.endpoint.name]
        return reports

    def report(self, *options: object, code: int | None = None) -> Any:
        """The report of the endpoint's only hook."""
        (report,) = self.reports(*options, code=code)
        return report

    def work(self) -> int:
        """Run the due events."""
        return Worker([self.endpoint], poll=1).run_all()

    def journal(self) -> list[dict[str, Any]]:
        """The entries of reconciliations, newest first."""
        found = entries(self.store, limit=1000)
        return [entry for entry in found if entry["action"] == "reconcile"]

    def list_requests(self) -> int:
        """How many times Procore was asked for deliveries."""
        return sum(path.endswith(DELIVERIES) for _, path, _ in self.fake.requests)

    def rewrite(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Change each row of the lists of deliveries, before the first request."""

        @self.fake.after_request
        def rewritten(answer: Response) -> Response:
            if request.path.endswith(DELIVERIES) and answer.status_code == 200:
                value = json.loads(answer.get_data())
                for row in value["data"]:
                    change(row)
                answer.set_data(json.dumps(value))
            return answer

    def on_request(self, number: int, change: Callable[[], object]) -> None:
        """Do something before a request for deliveries, by its number, is answered.

        To be called before the first request.
        """
        left = number

        @self.fake.before_request
        def before() -> None:
            nonlocal left
            left -= request.path.endswith(DELIVERIES)
            if left == 0:
                left -= 1
                change()

    def day(self, days: int = 0) -> date:
        """The day of the fake's clock, or one so many days later."""
        return (self.fake.clock.now() + timedelta(days=days)).date()


def forget(mine: Integration, ids: list[str]) -> None:
    """Remove events from the inbox, as a database that never had them."""
    c = mine.store.columns
    gone = sa.delete(c.id.table).where(c.event_id.in_(ids))
    mine.store.run(lambda connection: connection.execute(gone))


@contextmanager
def integrated(
    make_app: MakeApp,
    database_url: str,
    *,
    now: datetime = NOW,
    switches: Any = None,
    **config: Any,
) -> Iterator[Integration]:
    """An app with an inbox at the URL, and a fake that is served on loopback.

    :param now: of the fake's clock.
    :param switches: of the fake; by default it has no spike limit.
    :param config: without the prefix.
    """
    given = {"spike_limit": None, "hourly_limit": None, "token_seconds": 10**9}
    fake = FakeProcore("id", CLIENT_SECRET, now=now, **given | (switches or {}))
    fake.add_company("1", projects=["2", "3"])
    with fake.serve() as address:
        own = api_config(address) | {"DATABASE_URI": database_url, **config}
        made = {f"PROCORE_WEBHOOK_{name}": value for name, value in own.items()}
        app = make_app(**made)
        # Procore signs nothing.
        del app.config["PROCORE_WEBHOOK_SECRET"]
        webhooks = ProcoreWebhooks()
        app.register_blueprint(webhooks, url_prefix="/webhooks/procore")
        yield from _running(app, fake, webhooks)


def api_config(address: str) -> dict[str, Any]:
    """The keys of an endpoint with its hooks at the fake of that address."""
    return {
        "AUTHORIZATION": AUTHORIZATION,
        "URL": URL,
        "API_CLIENT_ID": "id",
        "API_CLIENT_SECRET": CLIENT_SECRET,
        "API_URL": address,
        "API_LOGIN_URL": address,
        "NAMESPACE": NAMESPACE,
        "SCOPES": [SCOPE],
        "DISPATCH": "worker",
        "MAX_ATTEMPTS": 1,
    }


def _running(
    app: Flask, fake: FakeProcore, webhooks: ProcoreWebhooks
) -> Iterator[Integration]:
    endpoint = endpoints(app)[webhooks.name]
    endpoint.store.now = fake.clock.now
    found = Integration(app, fake, webhooks, endpoint)
    webhooks.on("RFIs", "update", name="noted")(found.calls.append)
    fake.receive(HOST, found.wsgi)
    try:
        yield found
    finally:
        dispose(app)
