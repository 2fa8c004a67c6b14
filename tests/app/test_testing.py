"""The test kit for users: helpers and the pytest fixture."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from flask import Blueprint
from flask import Flask
from flask import request
from support.values import AUTHORIZATION
from support.values import SECRET

from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import PrudraWebhooks
from flask_procore_webhooks import RetryLater
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.senders.payload import read_event
from flask_procore_webhooks.senders.samples import FORMATS
from flask_procore_webhooks.senders.samples import source_of
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import Deliveries
from flask_procore_webhooks.testing import drain
from flask_procore_webhooks.testing import payload
from flask_procore_webhooks.testing import PROCORE
from flask_procore_webhooks.testing import PRUDRA
from flask_procore_webhooks.testing import sign

pytest_plugins = ["pytester"]

MakeApp = Callable[..., Flask]


# sign


@pytest.mark.parametrize(
    ("source", "names", "prefix"),
    [
        (PROCORE, ("X-Procore-Signature", "X-Procore-Timestamp"), ""),
        (PRUDRA, ("X-Prudra-Signature", "X-Prudra-Timestamp"), "sha256="),
    ],
)
def test_sign_makes_the_documented_headers(
    source: Any, names: tuple[str, str], prefix: str
) -> None:
    body = b'{"id": "\xc3\xa9"}\r\n\xff'
    digest = hmac.new("gehéim".encode(), b"1700000000." + body, hashlib.sha256)
    assert sign(body, "gehéim", timestamp=1700000000, source=source) == {
        names[0]: prefix + digest.hexdigest(),
        names[1]: "1700000000",
    }


def test_sign_takes_any_timestamp_and_a_secret_of_bytes() -> None:
    headers = sign(b"", b"\xff", timestamp="soon")
    digest = hmac.new(b"\xff", b"soon.", hashlib.sha256).hexdigest()
    assert headers == {"X-Procore-Signature": digest, "X-Procore-Timestamp": "soon"}


# payload


def read(made: dict[str, Any], format: str) -> Event:
    return read_event(json.dumps(made).encode(), source_of(format))


@pytest.mark.parametrize("format", ["v2", "v3", "v4", "signed"])
def test_payload_is_parsed_as_requested(format: str) -> None:
    made = payload(
        "RFIs.update", format=format, resource_id="7", project_id=None, user_id=8
    )
    event = read(made, format)
    assert (event.type, event.resource_type, event.reason) == (
        "RFIs.update",
        "RFIs",
        "update",
    )
    assert (event.resource_id, event.project_id, event.user_id) == ("7", None, "8")
    assert event.company_id is not None
    assert event.timestamp is not None
    assert event.payload_version == {"signed": None}.get(format, f"{format}.0")


def test_prudra_payload_is_parsed_as_requested() -> None:
    event = read(payload("vault.opened", format="prudra", vaultId="v"), "prudra")
    assert (event.type, event.reason) == ("vault.opened", "opened")
    assert event.data == {"vaultId": "v"}


@pytest.mark.parametrize("format", FORMATS)
def test_payload_ids_are_unique_or_given(format: str) -> None:
    ids = {read(payload("a.b", format=format), format).id for _ in range(20)}
    assert len(ids) == 20
    assert not any(id.startswith("sha256:") for id in ids)
    assert read(payload("a.b", format=format, id="mine"), format).id == "mine"


def test_envelope_keys_are_set_in_the_envelope_and_others_in_data() -> None:
    made = payload("a.b", created=1700000000, extra={"deep": [1]}, resource_id=7)
    assert made["created"] == 1700000000
    assert (made["data"]["extra"], made["data"]["resource_id"]) == ({"deep": [1]}, 7)
    assert payload("a.b", data={"only": 1})["data"] == {"only": 1}
    assert payload("a.b", format="prudra", payload=[])["payload"] == []


def test_envelope_actions_become_procore_reasons() -> None:
    assert payload("resource.deleted", format="v4")["reason"] == "delete"
    assert payload("resource.created", format="v2")["event_type"] == "create"
    assert payload("RFIs", format="v4")["resource_type"] == "RFIs"


def test_payloads_match_procores_format() -> None:
    """Ids are 19-digit numbers in v2 and v3, and text in v4, as Procore sends them."""
    assert len(str(payload("RFIs.update", format="v3")["id"])) == 19
    ids = {k: v for k, v in payload("a.b", format="v4").items() if k.endswith("id")}
    assert ids and all(isinstance(value, str) for value in ids.values())


def test_unknown_format_error_lists_the_formats() -> None:
    with pytest.raises(ValueError, match=r"signed, v2, v3, v4, prudra, not 'v1'"):
        payload("a.b", format="v1")


# deliver


@pytest.fixture
def seen(webhooks: ProcoreWebhooks) -> list[Event]:
    """The events for which a subscriber of ``app`` has run."""
    events: list[Event] = []
    webhooks.on(name="seen")(events.append)
    return events


def test_deliver_is_authentic_and_runs_subscribers(
    app: Flask, seen: list[Event]
) -> None:
    made = payload("RFIs.update", resource_id=7)
    answer = deliver(app.test_client(), made)
    assert (answer.status_code, answer.get_json()) == (200, {"received": True})
    assert [(event.id, event.resource_id) for event in seen] == [(made["id"], "7")]
    again = deliver(app.test_client(), made)
    assert again.get_json() == {"received": True, "duplicate": True}
    assert len(seen) == 1


@pytest.mark.parametrize("format", ["signed", "v2", "v3", "v4"])
def test_every_format_of_procore_is_accepted(
    app: Flask, seen: list[Event], format: str
) -> None:
    answer = deliver(app.test_client(), payload("RFIs.update", format=format))
    assert answer.status_code == 200
    assert seen[0].type == "RFIs.update"


def test_bytes_are_delivered_as_they_are(app: Flask, seen: list[Event]) -> None:
    body = b'{ "id" : "1",\r\n"type":"a.b" , "data":"\\u00e9"}\n'
    assert deliver(app.test_client(), body).status_code == 200
    assert seen[0].body == body
    assert deliver(app.test_client(), b"\xff").get_json()["quarantined"]


@pytest.mark.parametrize(
    "more",
    [
        {"headers": {"X-Procore-Signature": "0" * 64}},
        {"headers": {"x-procore-signature": "0" * 64}},
        {"headers": {"X-Procore-Signature": None}},
        {"headers": {"x-procore-timestamp": None}},
        {"timestamp": 1700000000},
        {"timestamp": "soon"},
    ],
)
def test_forgery_is_refused(
    app: Flask, seen: list[Event], more: dict[str, Any]
) -> None:
    answer = deliver(app.test_client(), payload("a.b"), **more)
    assert (answer.status_code, answer.get_json()) == (
        401,
        {"error": "Invalid signature"},
    )
    assert not seen


def test_additional_headers_are_sent(app: Flask) -> None:
    arrived: dict[str, str] = {}

    @app.before_request
    def keep() -> None:
        arrived.update(request.headers)

    headers = {"X-Request-Id": "7", "content-type": "text/plain"}
    assert (
        deliver(app.test_client(), payload("a.b"), headers=headers).status_code == 200
    )
    assert (arrived["X-Request-Id"], arrived["Content-Type"]) == ("7", "text/plain")


@pytest.mark.parametrize("value", [AUTHORIZATION, "Basic eA==", "näive ☃"])
def test_deliver_sends_signature_and_authorization(
    make_app: MakeApp, value: str
) -> None:
    app = make_app(PROCORE_WEBHOOK_AUTHORIZATION=value)
    app.register_blueprint(ProcoreWebhooks())
    assert deliver(app.test_client(), payload("a.b")).status_code == 200
    wrong = deliver(app.test_client(), payload("a.b"), headers={"Authorization": "x"})
    assert wrong.get_json() == {"error": "Invalid authorization"}


def test_endpoint_without_a_secret_gets_no_signature(make_app: MakeApp) -> None:
    app = make_app(
        PROCORE_WEBHOOK_SECRET=None, PROCORE_WEBHOOK_AUTHORIZATION=AUTHORIZATION
    )
    app.register_blueprint(ProcoreWebhooks())
    answer = deliver(app.test_client(), payload("a.b"))
    assert answer.status_code == 200
    assert "X-Procore-Signature" not in answer.request.headers


def test_deliver_uses_the_current_secret(make_app: MakeApp) -> None:
    """A delivery signed with the fallback would fail after its removal."""
    app = make_app(
        PROCORE_WEBHOOK_SECRET="new", PROCORE_WEBHOOK_SECRET_FALLBACKS=["old"]
    )
    app.register_blueprint(ProcoreWebhooks())
    answer = deliver(app.test_client(), b"{}", timestamp="1700000000")
    signature = sign(b"{}", "new", timestamp=1700000000)["X-Procore-Signature"]
    assert answer.request.headers["X-Procore-Signature"] == signature


def test_deliver_uses_the_mounted_path(make_app: MakeApp) -> None:
    app = make_app(PRUDRA_WEBHOOK_SECRET=SECRET, APPLICATION_ROOT="/root")
    parent = Blueprint("parent", __name__, url_prefix="/api")
    parent.register_blueprint(ProcoreWebhooks(), url_prefix="/hooks")
    app.register_blueprint(parent)
    app.register_blueprint(PrudraWebhooks(url_prefix="/other/"))
    client = app.test_client()
    made = {name: payload("a.b") for name in ("procore_webhooks", "prudra_webhooks")}
    made["prudra_webhooks"] = payload("a.b", format="prudra")
    for name, each in made.items():
        assert deliver(client, each, endpoint=name).status_code == 200


@pytest.mark.parametrize("endpoint", [None, "nope"])
def test_deliver_needs_an_endpoint_if_there_are_several(
    make_app: MakeApp, endpoint: str | None
) -> None:
    app = make_app(PRUDRA_WEBHOOK_SECRET=SECRET)
    app.register_blueprint(ProcoreWebhooks())
    app.register_blueprint(PrudraWebhooks())
    with pytest.raises(LookupError, match="it has: procore_webhooks, prudra_webhooks"):
        deliver(app.test_client(), payload("a.b"), endpoint=endpoint)


def test_deliver_without_a_blueprint_explains_the_error() -> None:
    app = Flask("bare")
    with pytest.raises(LookupError, match="it has: none"):
        deliver(app.test_client(), payload("a.b"))
    assert drain(app) == 0


# drain


@pytest.fixture
def failing_once(webhooks: ProcoreWebhooks) -> list[Event]:
    events: list[Event] = []

    @webhooks.on(name="failing-once")
    def fail_once(event: Event) -> None:
        events.append(event)
        if event.attempt == 1:
            raise RuntimeError("the first attempt fails")

    return events


def test_drain_runs_due_events_and_with_advance_waiting_ones(
    app: Flask, failing_once: list[Event], clock: Any
) -> None:
    assert deliver(app.test_client(), payload("a.b")).status_code == 500
    assert len(failing_once) == 1
    clock.forward(-1)  # before any backoff has passed
    assert drain(app) == 0
    assert drain(app, advance=3600) == 1
    assert [event.attempt for event in failing_once] == [1, 2]
    assert drain(app, advance=3600) == 0, "it is finished"


def test_drain_runs_what_will_be_due_in_time(
    make_app: MakeApp, webhooks: ProcoreWebhooks
) -> None:
    app = make_app(PROCORE_WEBHOOK_DISPATCH="worker")
    app.register_blueprint(webhooks)
    ran: list[str] = []

    @webhooks.on(name="waits")
    def waits(event: Event) -> None:
        ran.append(event.id)
        if ran.count(event.id) < 3:
            raise RetryLater(60 if event.id == "soon" else 7200)

    for id in ("soon", "late"):
        deliver(app.test_client(), payload("a.b", id=id))
    assert drain(app) == 2
    assert (drain(app), drain(app, advance=50)) == (0, 0)
    assert drain(app, advance=61) == 1
    # The wait begins at the time of the run, so that the same call runs it again.
    assert drain(app, advance=61) == 1
    assert drain(app, advance=61) == 0
    assert ran == ["soon", "late", "soon", "soon"]
    assert drain(app, advance=timedelta(hours=2).total_seconds()) == 1
    assert Deliveries(app).drain(advance=7200) == 1
    assert ran[-2:] == ["late", "late"]


def test_drain_takes_no_event_that_is_running(
    make_app: MakeApp, webhooks: ProcoreWebhooks
) -> None:
    app = make_app(PROCORE_WEBHOOK_DISPATCH="worker")
    app.register_blueprint(webhooks)
    ran: list[int] = []

    @webhooks.on(name="drains")
    def drains(event: Event) -> None:
        ran.append(drain(app, advance=10_000))

    deliver(app.test_client(), payload("a.b"))
    assert drain(app) == 1
    assert ran == [0]


def test_drain_runs_the_events_of_every_endpoint(make_app: MakeApp) -> None:
    app, runs = make_app(BOLT_SECRET=SECRET), []
    acme = ProcoreWebhooks("acme", url_prefix="/acme")
    bolt = ProcoreWebhooks("bolt", url_prefix="/bolt", config_prefix="BOLT_")
    for webhooks in (acme, bolt):

        @webhooks.on(name=webhooks.name)
        def fail_once(event: Event) -> None:
            runs.append((event.endpoint, event.attempt))
            if event.attempt == 1:
                raise RuntimeError

        app.register_blueprint(webhooks)
    for name in ("acme", "bolt"):
        deliver(app.test_client(), payload("a.b"), endpoint=name)
    assert drain(app, advance=3600) == 2
    assert sorted(runs) == [("acme", 1), ("acme", 2), ("bolt", 1), ("bolt", 2)]


# The fixture


def test_fixture_has_the_same_functions(
    procore_webhooks: Deliveries, endpoint: Endpoint, failing_once: list[Event]
) -> None:
    made = procore_webhooks.payload("RFIs.update", format="v4", id="1")
    assert procore_webhooks.deliver(made).status_code == 500
    assert procore_webhooks.drain(advance=3600) == 1
    (row,) = procore_webhooks.events()
    assert (row["event_id"], row["status"]) == ("1", "done")
    assert [event.attempt for event in failing_once] == [1, 2]
    forged = procore_webhooks.sign(b"{}", "wrong")
    assert procore_webhooks.deliver(b"{}", headers=forged).status_code == 401
    assert procore_webhooks.deliver(b"{}", timestamp=1).status_code == 401
    assert procore_webhooks.events(endpoint.name) == procore_webhooks.events()
    with pytest.raises(LookupError):
        procore_webhooks.events("nope")
