"""An app that is deployed again and again, beside a FakeProcore that sends to it."""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from datetime import timezone
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask import request
from flask import Response
from support.commands import run_apart
from support.documents import blocks
from support.inboxes import dispose

from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.fake import FakeProcore
from flask_procore_webhooks.testing import drain

PAGE = "docs/hooks.md"
#: The day of the page's example of a reconciliation.
NOW = datetime(2026, 11, 26, 9, tzinfo=timezone.utc)
#: Those of the page.
URL = "https://app.example.com/webhooks/procore"
OLD_URL = "https://app.example.com/old"
AUTHORIZATION = "Bearer 9f3b1c6e0a7d4f5c8b2e"
PROJECT = {"company": "1", "project": "2"}
RFIS = [("RFIs", "create"), ("RFIs", "update"), ("RFIs", "delete")]

Keys = dict[str, Any]


def exports(page: str = PAGE) -> dict[str, str]:
    """The variables that the page exports."""
    lines = [line for block in blocks(page, "sh") for line in block.text.splitlines()]
    words = [shlex.split(line) for line in lines if line.startswith("export ")]
    return dict(word.split("=", 1) for _, *given in words for word in given)


def settings_of(number: int, app: Flask) -> None:
    """Run one of the page's Python blocks that set a key of the app."""
    block = blocks(PAGE, "python")[number]
    exec(compile(block.text, str(block), "exec"), {"app": app})


def commands(page: str = PAGE) -> list[str]:
    """The page's commands."""
    lines = [line for block in blocks(page, "sh") for line in block.text.splitlines()]
    return [line for line in lines if line.startswith("flask ")]


class Live:
    """One inbox and one Procore; each deployment replaces the app that has them."""

    def __init__(self, fake: FakeProcore, address: str, folder: Path) -> None:
        self.fake = fake
        self.address = address
        self.folder = folder
        #: Ids of the events that subscribers, and a hand-written route, have had.
        self.effects: Counter[str] = Counter()
        #: The same by subscriber.
        self.runs: Counter[tuple[str, str]] = Counter()
        self.old_route: Counter[str] = Counter()
        self.emitted: list[str] = []
        self._apps: list[Flask] = []

    @property
    def app(self) -> Flask:
        return self._apps[-1]

    def deploy(self, *patterns: str, **keys: Any) -> Flask:
        """Deploy an app that subscribes to the patterns, with these keys.

        Without patterns it has only its hand-written route.
        """
        app = Flask("tracker", instance_path=str(self.folder))
        app.testing = True
        app.add_url_rule("/old", "old", self._receive_by_hand, methods=["POST"])
        given = {"API_URL": self.address, "API_LOGIN_URL": self.address, **keys}
        for key, value in given.items():
            app.config[f"PROCORE_WEBHOOK_{key}"] = value
        if patterns:
            self.subscribe(app, *patterns)
        self.put(app)
        return app

    def subscribe(self, app: Flask, *patterns: str) -> None:
        """Register a blueprint whose subscriber counts its events."""
        webhooks = ProcoreWebhooks()
        for pattern in patterns:
            resource_type, _, reason = pattern.partition(".")
            subscribe = webhooks.on(resource_type, reason or "*", name=pattern)
            subscribe(self._counter(pattern))
        app.register_blueprint(webhooks)
        (endpoint,) = endpoints(app).values()
        endpoint.store.now = self.fake.clock.now

    def put(self, app: Flask) -> None:
        """Let Procore reach the app."""
        self._apps.append(app)
        self.fake.receive(URL, app)

    def emit(self, project: str = "2", deliver: bool = True) -> str:
        """Update an RFI at Procore; return the event's id."""
        event = self.fake.emit("RFIs", "update", project=project)
        self.emitted.append(event)
        if deliver:
            self.fake.deliver()
            drain(self.app)
        return event

    def go_down(self) -> None:
        """Answer every delivery 503."""
        self.fake.receive(URL, Response(status=503))

    def come_back(self) -> None:
        self.fake.receive(URL, self.app)

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run a command of the app; check its exit code, and return what it prints."""
        result = run_apart(self.app, *arguments)
        assert result.exit_code == code, f"{result.output}{result.stderr}"
        return str(result.stdout)

    def type(self, command: str, code: int = 0) -> str:
        """Run a command as the page has it."""
        words = shlex.split(command)
        return self.run(*words[words.index("procore-webhooks") + 1 :], code=code)

    def apply(self, *options: str, code: int = 0) -> str:
        return self.run("hooks", "apply", "--yes", *options, code=code)

    def handled(self) -> Counter[str]:
        """How often each event was handled, by the subscriber or the old route."""
        return self.effects + self.old_route

    def every_event_was_handled_once(self) -> bool:
        return self.handled() == Counter(self.emitted)

    def statuses(self) -> set[str]:
        """The statuses of all deliveries at Procore."""
        return {row["status"] for row in self.fake.deliveries()}

    def close(self) -> None:
        for app in self._apps:
            if endpoints(app):
                dispose(app)

    def _counter(self, name: str) -> Callable[[Event], None]:
        def count(event: Event) -> None:
            self.effects[event.id] += 1
            self.runs[name, event.id] += 1

        return count

    def _receive_by_hand(self) -> Response:
        sent = json.loads(request.get_data())
        self.old_route[sent.get("ulid", sent["id"])] += 1
        return Response(status=200)


@contextmanager
def live_at(folder: Path, **switches: Any) -> Iterator[Live]:
    """A served fake whose clock stands, with two companies and their projects."""
    given = {"spike_limit": None, "hourly_limit": None, "token_seconds": 10**9}
    secret = exports()["FLASK_PROCORE_WEBHOOK_API_CLIENT_SECRET"]
    id = exports()["FLASK_PROCORE_WEBHOOK_API_CLIENT_ID"]
    fake = FakeProcore(id, secret, now=NOW, **given | switches)
    fake.add_company("1", projects=["2", "3"])
    fake.add_company("9", projects=["91"])
    with fake.serve() as address:
        live = Live(fake, address, folder)
        yield live
        live.close()


def hook_of(**fields: Any) -> Keys:
    """The hook that the page's keys ask for, with these fields in their place."""
    return {
        "project": "2",
        "namespace": "tracker",
        "destination_url": URL,
        "authorization": AUTHORIZATION,
        "triggers": [("RFIs", "update")],
        **fields,
    }


def page_keys(**keys: Any) -> Keys:
    """The keys that the page exports, with those given in place of them."""
    prefix = "FLASK_PROCORE_WEBHOOK_"
    found = {name.removeprefix(prefix): value for name, value in exports().items()}
    return {**found, "SCOPES": [PROJECT], **keys}


def set_environment(monkeypatch: pytest.MonkeyPatch, **more: str) -> None:
    """Export what the page exports."""
    for name, value in {**exports(), **more}.items():
        monkeypatch.setenv(name, value)
    assert os.environ["FLASK_PROCORE_WEBHOOK_URL"] == URL
