"""Log lines of refused deliveries: the first at once, then counted."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from support.values import AUTHORIZATION
from support.values import SECRET
from support.web import BODY
from support.web import PATH
from support.web import post

from flask_procore_webhooks import BadSignature
from flask_procore_webhooks import delivery_rejected
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.endpoint import app_state
from flask_procore_webhooks.errors import DeliveryError
from flask_procore_webhooks.errors import EventBusy
from flask_procore_webhooks.errors import InboxUnavailable
from flask_procore_webhooks.errors import NoSecret
from flask_procore_webhooks.refusals import INTERVAL
from flask_procore_webhooks.refusals import MOST_CAUSES
from flask_procore_webhooks.refusals import RefusalLog
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import payload
from flask_procore_webhooks.testing import sign

MakeApp = Callable[..., Flask]


class Lines:
    """A refusal log on a clock of its own, and the lines that it wrote."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.time = 1000.0
        self.log = RefusalLog(lambda: self.time)
        self.caplog = caplog
        caplog.set_level(logging.INFO, "flask_procore_webhooks")

    def write(self, error: DeliveryError, endpoint: str = "one") -> list[str]:
        self.caplog.clear()
        self.log.write(endpoint, error)
        return [record.getMessage() for record in self.caplog.records]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Lines:
    return Lines(caplog)


def test_first_refusal_is_logged_at_once_and_the_rest_is_counted(lines: Lines) -> None:
    error = BadSignature("no secret matches")
    assert lines.write(error) == ["one answered 401: no secret matches"]
    for _ in range(4211):
        assert lines.write(error) == []
    lines.time += INTERVAL
    more = " (and 4,211 more in the last 60 s)"
    assert lines.write(error) == [f"one answered 401: no secret matches{more}"]
    lines.time += 2 * INTERVAL
    assert lines.write(error) == ["one answered 401: no secret matches"]


def test_numbers_make_no_new_cause_and_the_newest_are_shown(lines: Lines) -> None:
    assert lines.write(BadSignature("clock differs by 301 s", cause="clock"))
    assert not lines.write(BadSignature("clock differs by 302 s", cause="clock"))
    assert lines.write(InboxUnavailable("process 1: database is locked"))
    assert not lines.write(InboxUnavailable("process 2: database is locked"))
    lines.time += INTERVAL
    (line,) = lines.write(BadSignature("clock differs by 303 s", cause="clock"))
    assert (
        line == "one answered 401: clock differs by 303 s (and 1 more in the last 60 s)"
    )


def test_endpoints_statuses_and_causes_are_counted_apart(lines: Lines) -> None:
    assert lines.write(BadSignature("no secret matches"), "one")
    assert lines.write(BadSignature("no secret matches"), "two")
    assert lines.write(BadSignature("X-Procore-Signature is missing"), "one")
    assert lines.write(InboxUnavailable("no secret matches"), "one")


def test_causes_are_bounded(lines: Lines) -> None:
    for _ in range(MOST_CAUSES + 50):
        cause = "".join(chr(97 + byte % 26) for byte in secrets.token_bytes(12))
        lines.write(BadSignature(cause))
    assert len(lines.log._counts) <= MOST_CAUSES + 1
    assert not lines.write(BadSignature("one more"))
    assert lines.write(InboxUnavailable("database is locked")), "another status"


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (BadSignature("x"), "WARNING"),
        (InboxUnavailable("x"), "ERROR"),
        (NoSecret("x"), "ERROR"),
        (EventBusy("another request is running event 1"), "INFO"),
    ],
)
def test_level_of_each_refusal(lines: Lines, error: DeliveryError, level: str) -> None:
    lines.write(error)
    assert [record.levelname for record in lines.caplog.records] == [level]


def test_line_that_no_handler_gets_is_not_counted(lines: Lines) -> None:
    busy = EventBusy("another request is running event 1")
    lines.caplog.set_level(logging.WARNING, "flask_procore_webhooks")
    lines.write(busy)
    lines.caplog.set_level(logging.INFO, "flask_procore_webhooks")
    assert lines.write(busy)


# In an app


def test_flood_of_refusals_is_one_line_and_each_is_signalled(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[object] = []
    delivery_rejected.connect(lambda app, **fields: seen.append(fields))
    client = app.test_client()
    for n in range(300):
        headers = sign(BODY, secrets.token_hex(), timestamp=n)
        assert post(app, BODY, headers=headers).status_code == 401
    assert len(seen) == 300 and len(caplog.records) == 1
    client.post(PATH, data=BODY)
    assert len(caplog.records) == 2


def test_refusals_are_counted_per_process(app: Flask) -> None:
    post(app, BODY)
    assert RefusalLog in app_state(app).runtime.parts


def test_event_that_another_request_runs_is_no_warning(
    app: Flask, webhooks: ProcoreWebhooks, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "flask_procore_webhooks")
    event, answers = payload("RFIs.create"), []

    @webhooks.on()
    def work(_: object) -> None:
        answers.append(deliver(app.test_client(), event).status_code)

    assert deliver(app.test_client(), event).status_code == 200
    assert answers == [503]
    (line,) = [each for each in caplog.records if "answered 503" in each.getMessage()]
    assert line.levelname == "INFO"


# Hints


@pytest.mark.parametrize(
    ("headers", "hinted"), [({}, True), ({"Authorization": "Basic x"}, False)]
)
def test_missing_authorization_under_mod_wsgi_names_its_setting(
    token_app: Flask,
    caplog: pytest.LogCaptureFixture,
    headers: dict[str, str],
    hinted: bool,
) -> None:
    environ: dict[str, Any] = {"mod_wsgi.version": (5, 0, 0)}
    reasons: list[str] = []
    delivery_rejected.connect(lambda app, **fields: reasons.append(fields["reason"]))
    post(token_app, BODY, headers=headers, environ_overrides=environ)
    assert ("WSGIPassAuthorization On" in caplog.text) == hinted
    assert ("WSGIPassAuthorization On" in reasons[0]) == hinted


def test_only_the_log_names_the_difference(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app(
        PROCORE_WEBHOOK_AUTHORIZATION=AUTHORIZATION, PROCORE_WEBHOOK_SECRET=SECRET
    )
    app.register_blueprint(ProcoreWebhooks())
    other = AUTHORIZATION.replace("Bearer", "Basic")
    headers = {**sign(BODY, SECRET), "Authorization": other}
    answer = post(app, BODY, headers=headers)
    assert answer.json == {"error": "Invalid authorization"}
    assert "only the scheme differs" in caplog.text
    assert other not in caplog.text and AUTHORIZATION not in caplog.text
