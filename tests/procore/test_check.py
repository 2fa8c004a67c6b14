"""``check`` with Procore's REST side configured."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from datetime import timezone
from inspect import signature
from typing import Any

import pytest
from flask import Flask
from support.commands import run

from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import PrudraWebhooks
from flask_procore_webhooks.fake import FakeProcore

MakeApp = Callable[..., Flask]
PREFIX = "PROCORE_WEBHOOK_"


def check(make_app: MakeApp, lag: float | None = None, **keys: Any) -> str:
    """What the command prints for an endpoint with these keys."""
    given = {
        "AUTHORIZATION": "Bearer 9f3b1c6e0a7d4f5c8b2e",
        "URL": "https://app.example.com/webhooks/procore",
        "API_CLIENT_ID": "0123abcd",
        "API_CLIENT_SECRET": "a client secret",
        "API_URL": "http://127.0.0.1:9",
        "NAMESPACE": "tracker",
        "SCOPES": [{"company": "1"}],
        **keys,
    }
    app = make_app(**{PREFIX + key: value for key, value in given.items()})
    webhooks = ProcoreWebhooks()
    if lag is not None:

        @webhooks.on("RFIs", latest_only=True, lag=lag, name="sync")
        def sync(event: Event) -> None:
            """Do nothing."""

    app.register_blueprint(webhooks)
    return run(app, "check").output


def test_settings_are_shown_without_the_secret(make_app: MakeApp) -> None:
    shown = check(make_app)
    for text in ("tracker", "0123abcd", "company 1", "http://127.0.0.1:9"):
        assert text in shown
    assert "a client secret" not in shown
    assert "hooks and reconcile" not in shown


def test_missing_keys_are_named(make_app: MakeApp) -> None:
    shown = " ".join(check(make_app, NAMESPACE=None, SCOPES=None).split())
    keys = f"{PREFIX}NAMESPACE, {PREFIX}SCOPES"
    assert f"The commands hooks and reconcile need {keys}." in shown


def test_nothing_is_said_where_the_api_is_not_configured(make_app: MakeApp) -> None:
    shown = check(make_app, API_CLIENT_ID=None, AUTHORIZATION=None, NAMESPACE=None)
    assert "reconcile" not in shown
    assert f"{PREFIX}API_URL" not in shown


def test_missing_authorization_is_a_warning(make_app: MakeApp) -> None:
    shown = " ".join(check(make_app, AUTHORIZATION=None).split())
    assert f"{PREFIX}AUTHORIZATION is not set: Procore signs nothing" in shown


@pytest.mark.parametrize(
    ("path", "warns"),
    [
        ("/webhooks/procore", False),
        ("/webhooks/procore/?from=procore", False),
        ("/tracker/webhooks/procore", False),
        ("/webhooks/%70rocore", False),
        ("/webhooks/procor", True),
        ("/webhooks/procore/hook", True),
        ("/other-webhooks/procore", True),
        ("", True),
    ],
)
def test_path_of_the_address_is_compared_with_the_route(
    make_app: MakeApp, path: str, warns: bool
) -> None:
    shown = " ".join(check(make_app, URL=f"https://app.example.com{path}").split())
    assert (
        f"warning: URL's path is {path or '/'}, and the route is /webhooks/procore:"
        " deliveries would not arrive, unless a proxy rewrites it." in shown
    ) is warns
    assert ("deliveries would not arrive" in shown) is warns


@pytest.mark.parametrize(
    ("offset", "lag", "warns"),
    [(0, 2, False), (-5, 2, True), (-5, 10, False), (5, 2, False), (-5, None, False)],
)
def test_lag_is_compared_with_the_clocks(
    make_app: MakeApp, fake: FakeProcore, offset: int, lag: float | None, warns: bool
) -> None:
    fake.clock.run()
    with fake.serve() as url:
        fake.switches.clock_offset = offset
        fake.clock.set(datetime.now(timezone.utc))
        shown = " ".join(check(make_app, lag, API_URL=url).split())
        assert len(fake.requests) == (lag is not None)
    assert ("s ahead of Procore's, and the lag of sync is 2 s" in shown) == warns


def test_unreachable_procore_is_no_finding(make_app: MakeApp) -> None:
    assert "ahead of Procore" not in check(make_app, 0.5)


def test_other_senders_have_no_api(make_app: MakeApp) -> None:
    keys = {
        "PRUDRA_WEBHOOK_API_CLIENT_ID": "0123abcd",
        "PRUDRA_WEBHOOK_API_CLIENT_SECRET": "a client secret",
        "PRUDRA_WEBHOOK_SECRET": "a secret of another sender",
    }
    app = make_app(**keys)
    app.register_blueprint(PrudraWebhooks())
    shown = app.test_cli_runner().invoke(args=["prudra-webhooks", "check"]).output
    assert "reconcile" not in shown
    assert "PRUDRA_WEBHOOK_TOLERANCE" in shown


def test_other_senders_take_no_patterns_for_hooks() -> None:
    assert "hooks_for" not in signature(PrudraWebhooks).parameters
    assert "hooks_for" in signature(ProcoreWebhooks).parameters


@pytest.mark.parametrize("host", ["a..example", "x" * 70 + ".example"])
def test_impossible_address_of_procore_is_no_finding(
    make_app: MakeApp, host: str
) -> None:
    assert "ahead of Procore" not in check(make_app, 0.5, API_URL=f"https://{host}")
