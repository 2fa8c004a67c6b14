"""An app with subscriptions whose API is a served FakeProcore, and its commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from datetime import datetime
from datetime import timezone
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from support.commands import run_apart

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.event import Event
from flask_procore_webhooks.fake import FakeProcore

MakeApp = Callable[..., Flask]

CLIENT_SECRET = "a client secret"
AUTHORIZATION = "Bearer 9f3b1c6e0a7d4f5c8b2e"
#: Another value with the same last five characters, and one with others.
SAME_TAIL = "Bearer 0000000000000005c8b2e"
OTHER_TAIL = "Bearer 00000000000000000000"
URL = "https://app.example.com/webhooks/procore"
NAMESPACE = "tracker"

COMPANY = {"company": "1"}
PROJECT = {"company": "1", "project": "2"}
OTHER_PROJECT = {"company": "1", "project": "3"}

ROOT = "/rest/v2.0/companies/1/projects/2/webhooks"
LOGIN = "/oauth/token"


def ignore(event: Event) -> None:
    """A subscriber."""


def subscribe(webhooks: ProcoreWebhooks, *patterns: str) -> None:
    """Subscribe to patterns, ``RFIs.update``.

    The pattern is the subscriber's name, with ``-`` for a space.
    """
    for pattern in patterns:
        resource_type, _, reason = pattern.partition(".")
        webhooks.on(resource_type, reason or "*", name=pattern.replace(" ", "-"))(
            ignore
        )


class Site:
    """A fake, and an app with the credentials for it."""

    def __init__(
        self, fake: FakeProcore, url: str, make_app: MakeApp, folder: Path
    ) -> None:
        self.fake = fake
        self.url = url
        #: An empty folder.
        self.folder = folder
        self._make_app = make_app
        self.app = Flask("unmounted")

    def mount(
        self, *patterns: str, hooks_for: Sequence[str] = (), **config: Any
    ) -> ProcoreWebhooks:
        """Make an app that subscribes to the patterns.

        :param config: keys without their prefix, in place of the usual values.
        """
        webhooks = ProcoreWebhooks(hooks_for=hooks_for)
        subscribe(webhooks, *patterns)
        self.app = self.make_app(**config)
        self.app.register_blueprint(webhooks)
        return webhooks

    def make_app(self, prefix: str = "PROCORE_WEBHOOK_", **config: Any) -> Flask:
        """An app with the keys of one endpoint, and without a blueprint."""
        return self._make_app(**self.keys(prefix, **config))

    def keys(self, prefix: str = "PROCORE_WEBHOOK_", **config: Any) -> dict[str, Any]:
        """The usual keys of an endpoint, and the given ones."""
        given = {
            "AUTHORIZATION": AUTHORIZATION,
            "API_URL": self.url,
            "API_LOGIN_URL": self.url,
            "API_CLIENT_ID": "id",
            "API_CLIENT_SECRET": CLIENT_SECRET,
            "URL": URL,
            "NAMESPACE": NAMESPACE,
            "SCOPES": [PROJECT],
            **config,
        }
        return {f"{prefix}{key}": value for key, value in given.items()}

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run ``hooks ...``, and return what it prints; check its exit code."""
        result = run_apart(self.app, "hooks", *arguments)
        left = result.exception
        assert left is None or isinstance(left, SystemExit), result.exception
        output = f"{result.stdout}{result.stderr}"
        assert result.exit_code == code, output
        return output

    def lines(self, *arguments: str, code: int = 0) -> list[str]:
        """Run ``hooks ...``, and return the lines, without indentation."""
        return [line.strip() for line in self.run(*arguments, code=code).splitlines()]

    def document(self, *arguments: str, code: int = 0) -> Any:
        """Run ``hooks ... --json``, and return the document."""
        return json.loads(self.run(*arguments, "--json", code=code))

    def install(self) -> None:
        """Apply, and forget the requests."""
        self.run("apply", "--yes")
        self.fake.requests.clear()

    def add_hook(self, **fields: Any) -> str:
        """Add a hook of the usual namespace in project 2; return its id."""
        given: dict[str, Any] = {
            "company": "1",
            "project": "2",
            "namespace": NAMESPACE,
            "destination_url": URL,
            "authorization": AUTHORIZATION,
        }
        return self.fake.add_hook(**{**given, **fields})

    def hook(self, namespace: str = NAMESPACE) -> dict[str, Any]:
        """The only hook of the namespace, as the API has it."""
        (hook,) = [h for h in self.fake.hooks() if h["namespace"] == namespace]
        return hook

    def triggers(self, namespace: str = NAMESPACE) -> list[str]:
        """The triggers of the only hook of the namespace: ``RFIs.update``."""
        return pairs(self.fake, self.hook(namespace)["id"])

    def changes(self) -> list[tuple[str, str]]:
        """Method and path of every request that changes something."""
        return [(m, p) for m, p, _ in self.fake.requests if m != "GET" and p != LOGIN]


def pairs(fake: FakeProcore, hook: str) -> list[str]:
    """The triggers of the hook."""
    found = fake.triggers(hook)
    return sorted(f"{t['resource_name']}.{t['event_type'].lower()}" for t in found)


@pytest.fixture
def site(make_app: MakeApp, tmp_path: Path) -> Iterator[Site]:
    """A served fake without rate limits, with company 1 and its projects 2 and 3."""
    now = datetime(2026, 11, 23, 9, tzinfo=timezone.utc)
    limits = {"spike_limit": None, "hourly_limit": None}
    fake = FakeProcore("id", CLIENT_SECRET, now=now, **limits)
    fake.add_company("1", projects=["2", "3"])
    with fake.serve() as url:
        yield Site(fake, url, make_app, tmp_path)
        fake.stop_sending()
