"""The answers to deliveries: status and content."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from flask import Flask
from support.values import AUTHORIZATION
from support.values import Clock
from support.values import SECRET
from support.web import BODY
from support.web import body_of
from support.web import exact
from support.web import LIMIT
from support.web import post
from support.web import recorded
from werkzeug.test import TestResponse

from flask_procore_webhooks import Discard
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.senders.samples import to_bytes
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import payload
from flask_procore_webhooks.testing import sign

MakeApp = Callable[..., Flask]


def test_new_event_is_received(app: Flask) -> None:
    answer = deliver(app.test_client(), payload("RFIs.create"))
    assert exact(answer) == (200, {"received": True}, None)


def test_event_in_the_inbox_is_a_duplicate(app: Flask) -> None:
    event = payload("RFIs.create")
    deliver(app.test_client(), event)
    answer = deliver(app.test_client(), event)
    assert exact(answer) == (200, {"received": True, "duplicate": True}, None)
    assert [row["repeats"] for row in recorded(app)] == [1]


def test_second_body_under_an_id_is_a_conflict_and_the_first_is_kept(
    app: Flask,
) -> None:
    first, second = (payload("RFIs.create", id="evt_1", user_id=n) for n in (1, 2))
    deliver(app.test_client(), first)
    answer = deliver(app.test_client(), second)
    assert exact(answer) == (200, {"received": True, "duplicate": True}, None)
    assert [row["conflicts"] for row in recorded(app)] == [1]
    assert body_of(app, "evt_1") == to_bytes(first)


def test_body_without_json_object_is_quarantined_each_time(app: Flask) -> None:
    for _ in range(2):
        answer = deliver(app.test_client(), b"[]", timestamp=None)
        assert exact(answer) == (200, {"received": True, "quarantined": True}, None)


def test_ignored_event_is_received(make_app: MakeApp) -> None:
    app = make_app(PROCORE_WEBHOOK_IGNORE_USER_IDS=["7"])
    app.register_blueprint(ProcoreWebhooks())
    answer = deliver(app.test_client(), payload("RFIs.create", user_id=7))
    assert exact(answer) == (200, {"received": True}, None)
    assert [row["status"] for row in recorded(app)] == ["ignored"]


GOOD = sign(BODY, SECRET)["X-Procore-Signature"]
NO_SIGNATURE: dict[str, dict[str, str | None]] = {
    "missing": {"X-Procore-Signature": None},
    "timestamp missing": {"X-Procore-Timestamp": None},
    "empty": {"X-Procore-Signature": ""},
    "timestamp empty": {"X-Procore-Timestamp": ""},
    "malformed": {"X-Procore-Signature": "sha256="},
    "timestamp malformed": {"X-Procore-Timestamp": "now"},
    "not ASCII": {"X-Procore-Signature": "\xe9" * 64},
    "wrong": {"X-Procore-Signature": "0" * 64},
    "of another time": {"X-Procore-Timestamp": "1700000000"},
    "another header": {"X-Procore-Signature": None, "X-Prudra-Signature": GOOD},
    "in Authorization": {"X-Procore-Signature": None, "Authorization": GOOD},
}


@pytest.mark.parametrize("case", NO_SIGNATURE)
def test_delivery_without_a_valid_signature_is_refused(app: Flask, case: str) -> None:
    headers = {**sign(BODY, SECRET), **NO_SIGNATURE[case]}
    sent = {name: value for name, value in headers.items() if value is not None}
    answer = post(app, BODY, headers=sent)
    assert exact(answer) == (401, {"error": "Invalid signature"}, None)
    assert recorded(app) == []


@pytest.mark.parametrize("seconds", [-301, 301])
def test_signature_outside_the_tolerance_is_refused(
    app: Flask, clock: Clock, seconds: int
) -> None:
    stamp = int(clock().timestamp()) + seconds
    answer = deliver(app.test_client(), BODY, timestamp=stamp)
    assert exact(answer) == (401, {"error": "Invalid signature"}, None)


@pytest.mark.parametrize(
    "value", [None, "", "Bearer", AUTHORIZATION[:-1], AUTHORIZATION.lower(), "\xff"]
)
def test_delivery_without_the_authorization_is_refused(
    token_app: Flask, value: str | None
) -> None:
    headers = {} if value is None else {"Authorization": value}
    answer = post(token_app, BODY, headers=headers)
    assert exact(answer) == (401, {"error": "Invalid authorization"}, None)
    assert recorded(token_app) == []


@pytest.mark.parametrize(
    ("left_out", "error"),
    [
        ("X-Procore-Signature", "Invalid signature"),
        ("Authorization", "Invalid authorization"),
    ],
)
def test_signature_and_authorization_are_both_required_if_configured(
    make_app: MakeApp, left_out: str, error: str
) -> None:
    app = make_app(PROCORE_WEBHOOK_AUTHORIZATION=AUTHORIZATION)
    app.register_blueprint(ProcoreWebhooks())
    both = {**sign(BODY, SECRET), "Authorization": AUTHORIZATION}
    one = {name: value for name, value in both.items() if name != left_out}
    assert exact(post(app, BODY, headers=one)) == (401, {"error": error}, None)
    assert post(app, BODY, headers=both).status_code == 200


def test_body_over_the_limit_is_refused(token_app: Flask) -> None:
    answer = deliver(token_app.test_client(), b" " * (LIMIT + 1))
    assert exact(answer) == (413, {"error": "Payload too large"}, None)


def test_failed_inline_run_is_answered_500_and_resumed_by_the_next_delivery(
    app: Flask, webhooks: ProcoreWebhooks
) -> None:
    outcomes: list[Exception | None] = [ValueError("password=hunter2"), None]

    @webhooks.on()
    def work(event: object) -> None:
        if outcome := outcomes.pop(0):
            raise outcome

    event = payload("RFIs.create")
    answer = deliver(app.test_client(), event)
    assert exact(answer) == (500, {"error": "Processing failed"}, None)
    answer = deliver(app.test_client(), event)
    assert exact(answer) == (200, {"received": True, "duplicate": True}, None)
    assert outcomes == []


@pytest.mark.parametrize("error", [Discard("not ours"), ValueError("broken")])
def test_discarded_and_dead_events_are_answered_200(
    make_app: MakeApp, error: Exception
) -> None:
    """The event is discarded by a subscriber, or dead after the last attempt."""
    app = make_app(PROCORE_WEBHOOK_MAX_ATTEMPTS=1)
    webhooks = ProcoreWebhooks()
    app.register_blueprint(webhooks)

    @webhooks.on()
    def work(event: object) -> None:
        raise error

    answer = deliver(app.test_client(), payload("RFIs.create"))
    assert exact(answer) == (200, {"received": True}, None)


def test_delivery_of_a_running_event_is_answered_503(
    app: Flask, webhooks: ProcoreWebhooks
) -> None:
    """The run may still fail, and inline retries depend on the sender."""
    started, finish = threading.Event(), threading.Event()

    @webhooks.on()
    def work(event: object) -> None:
        started.set()
        assert finish.wait(20)

    event = payload("RFIs.create")
    first: list[TestResponse] = []
    thread = threading.Thread(
        target=lambda: first.append(deliver(app.test_client(), event))
    )
    thread.start()
    assert started.wait(20)
    try:
        second = deliver(app.test_client(), event)
    finally:
        finish.set()
        thread.join(20)
    assert exact(second) == (503, {"error": "Unavailable"}, "1")
    assert exact(first[0]) == (200, {"received": True}, None)


def test_host_error_handlers_do_not_replace_answers(
    make_app: MakeApp,
) -> None:
    app = make_app()
    app.register_error_handler(Exception, lambda error: ("oops", 418))
    for status in (401, 413, 500, 503):
        app.register_error_handler(status, lambda error: ("oops", 418))
    app.register_blueprint(ProcoreWebhooks())
    answer = post(app, BODY)
    assert exact(answer) == (401, {"error": "Invalid signature"}, None)


@pytest.mark.parametrize("testing", [True, False])
def test_answers_are_the_same_under_test_and_in_production(
    make_app: MakeApp, testing: bool
) -> None:
    app = make_app(TESTING=testing, PROCORE_WEBHOOK_DATABASE_URI="sqlite:////dev/null")
    app.register_blueprint(ProcoreWebhooks())
    assert exact(post(app, BODY))[0] == 401
    assert exact(deliver(app.test_client(), BODY))[0] == 503
