"""Answers and recorded events by a delivery's signature and Authorization."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from datetime import timezone

import pytest
from flask import Flask
from flask.testing import FlaskClient
from support.inboxes import rows
from support.signatures import BODY
from support.signatures import GOOD
from support.signatures import HEX
from support.signatures import hmac_by_hand
from support.signatures import NOT_A_SIGNATURE
from support.signatures import NOT_A_TIMESTAMP
from support.signatures import NOW
from support.signatures import signature
from support.values import Clock
from support.values import SECRET
from werkzeug.test import TestResponse

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import PrudraWebhooks
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.senders.prudra import PRUDRA
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import sign


def post(
    client: FlaskClient, body: bytes = BODY, path: str = "", **environ: str
) -> TestResponse:
    """Post with any headers, given as keys of the WSGI environment."""
    path = path or "/webhooks/procore"
    return client.post(path, data=body, environ_overrides=environ)


def count(endpoint: Endpoint) -> int:
    return len(rows(endpoint.store))


def _environ(headers: dict[str, str]) -> dict[str, str]:
    return {
        f"HTTP_{name.upper().replace('-', '_')}": value
        for name, value in headers.items()
    }


@pytest.fixture
def at_now(endpoint: Endpoint) -> Clock:
    clock = Clock()
    clock.time = datetime.fromtimestamp(NOW, timezone.utc)
    endpoint.store.now = clock
    return clock


# What is signed


@pytest.mark.parametrize(
    "body",
    [
        b'{ "type" :\t"resource.created",\r\n  "id" : "1" }\n',
        b'{"type":"a.b","id":"1","name":"Z\\u00fcrich"}',
        '{"type":"a.b","id":"1","name":"Zürich 🏗️"}'.encode(),
        b'{"z":1,"type":"a.b","a":2,"id":"1","price":1.10}\n\n',
        b"\xff\xfe",
        b"",
    ],
)
def test_signature_covers_bytes_not_json_values(app: Flask, body: bytes) -> None:
    client = app.test_client()
    assert deliver(client, body).status_code == 200
    headers = sign(body, SECRET)
    for other in (body + b"\n", body.strip() or b" ", body.replace(b" ", b"") or b"."):
        if other == body:
            continue
        length = len(other)
        answer = client.post(
            "/webhooks/procore", data=other, headers=headers, content_length=length
        )
        assert answer.status_code == 401


def test_unsigned_binary_body_is_refused_unread(app: Flask, endpoint: Endpoint) -> None:
    for body in (b"\xff\xfe", b"[" * 100_000, b'{"id":' + b"9" * 5000 + b"}"):
        answer = post(app.test_client(), body, HTTP_X_PROCORE_SIGNATURE=HEX)
        assert (answer.status_code, answer.json) == (
            401,
            {"error": "Invalid signature"},
        )
    assert count(endpoint) == 0


@pytest.mark.parametrize("change", [str.upper, str.lower, str.title])
def test_case_of_header_names_does_not_matter(
    app: Flask, change: Callable[[str], str]
) -> None:
    headers = {change(name): value for name, value in sign(BODY, SECRET).items()}
    answer = app.test_client().post("/webhooks/procore", data=BODY, headers=headers)
    assert answer.status_code == 200


# Malformed headers


@pytest.mark.parametrize("case", NOT_A_SIGNATURE)
def test_malformed_signature_is_answered_401_and_not_recorded(
    case: str, endpoint: Endpoint, at_now: Clock
) -> None:
    client = endpoint.app.test_client()
    answer = post(
        client,
        HTTP_X_PROCORE_SIGNATURE=NOT_A_SIGNATURE[case],
        HTTP_X_PROCORE_TIMESTAMP=str(NOW),
    )
    assert (answer.status_code, answer.json) == (401, {"error": "Invalid signature"})
    assert count(endpoint) == 0
    # Only the malformed header was wrong: the genuine delivery is accepted.
    assert post(client, **_environ(GOOD)).status_code == 200


@pytest.mark.parametrize("case", NOT_A_TIMESTAMP)
def test_malformed_timestamp_is_answered_401_and_not_recorded(
    case: str, endpoint: Endpoint
) -> None:
    stamp = NOT_A_TIMESTAMP[case].encode("utf-8", "surrogatepass")
    digest = hmac_by_hand(SECRET.encode(), stamp + b"." + BODY)
    answer = post(
        endpoint.app.test_client(),
        HTTP_X_PROCORE_SIGNATURE=digest,
        HTTP_X_PROCORE_TIMESTAMP=stamp.decode("latin-1"),
    )
    assert (answer.status_code, answer.json) == (401, {"error": "Invalid signature"})
    assert count(endpoint) == 0


# The tolerance


@pytest.mark.parametrize("offset", [-301, 301, -(10**9), 10**9])
def test_too_old_and_too_new_are_answered_401(
    endpoint: Endpoint, at_now: Clock, offset: int
) -> None:
    answer = deliver(endpoint.app.test_client(), BODY, timestamp=NOW + offset)
    assert (answer.status_code, answer.json) == (401, {"error": "Invalid signature"})
    assert count(endpoint) == 0


@pytest.mark.parametrize("offset", [-300, 0, 300])
def test_exact_replay_inside_the_tolerance_is_a_duplicate(
    endpoint: Endpoint, webhooks: ProcoreWebhooks, at_now: Clock, offset: int
) -> None:
    """A timestamp from the future stays valid for up to twice the tolerance."""
    runs = []
    webhooks.on()(lambda event: runs.append(event.id))
    client = endpoint.app.test_client()
    captured = _environ(sign(BODY, SECRET, timestamp=NOW + offset))
    assert post(client, **captured).json == {"received": True}
    end = NOW + offset + 300
    for moment in sorted({NOW, (NOW + end) // 2, end}):
        at_now.time = datetime.fromtimestamp(moment, timezone.utc)
        answer = post(client, **captured)
        assert answer.json == {"received": True, "duplicate": True}
    at_now.forward(1)
    assert post(client, **captured).status_code == 401
    assert runs == ["1"]
    assert count(endpoint) == 1


def test_replay_under_another_delivery_id_is_a_duplicate_too(
    app: Flask, endpoint: Endpoint
) -> None:
    client = app.test_client()
    body = b'{"type":"test","data":{}}'
    captured = _environ(sign(body, SECRET))
    assert post(client, body, **captured).json == {"received": True}
    again = post(
        client, body, **captured, HTTP_X_DELIVERY_ID="2", HTTP_X_REQUEST_ID="2"
    )
    assert again.json == {"received": True, "duplicate": True}
    assert count(endpoint) == 1


def test_forgery_does_not_use_up_the_id_of_the_genuine_event(app: Flask) -> None:
    client = app.test_client()
    assert deliver(client, BODY, headers=signature("0" * 64)).status_code == 401
    assert deliver(client, BODY).json == {"received": True}


# Secrets


def test_rotation_goes_from_the_old_secret_over_both_to_the_new_one(
    make_app: Callable[..., Flask],
) -> None:
    def accepted(**config: object) -> list[str]:
        app = make_app(**{f"PROCORE_WEBHOOK_{key}": v for key, v in config.items()})
        app.register_blueprint(ProcoreWebhooks())
        return [
            secret
            for secret in ("old", "new")
            if post(app.test_client(), **_environ(sign(BODY, secret))).status_code
            == 200
        ]

    assert accepted(SECRET="old") == ["old"]
    assert accepted(SECRET="old", SECRET_FALLBACKS=["new"]) == ["old", "new"]
    assert accepted(SECRET="new", SECRET_FALLBACKS=["old"]) == ["old", "new"]
    assert accepted(SECRET="new", SECRET_FALLBACKS=[]) == ["new"]


def test_signature_of_one_tenant_is_refused_on_the_route_of_another(
    make_app: Callable[..., Flask],
) -> None:
    app = make_app(A_SECRET="of a", B_SECRET="of b", PRUDRA_WEBHOOK_SECRET="of p")
    for name in ("A", "B"):
        app.register_blueprint(
            ProcoreWebhooks(name, url_prefix=f"/{name}", config_prefix=f"{name}_")
        )
    app.register_blueprint(PrudraWebhooks())
    client = app.test_client()
    secrets = {"/A": "of a", "/B": "of b", "/webhooks/prudra": "of p"}
    for owner, secret in secrets.items():
        headers = sign(BODY, secret) | sign(BODY, secret, source=PRUDRA)
        for path in secrets:
            answer = client.post(path, data=BODY, headers=headers)
            assert answer.status_code == (200 if path == owner else 401)


def test_neither_flasks_secret_key_nor_the_name_of_the_secret_signs(
    make_app: Callable[..., Flask],
) -> None:
    app = make_app(SECRET_KEY="of the app", PROCORE_WEBHOOK_SECRET="whsec_c2VjcmV0")
    app.register_blueprint(ProcoreWebhooks())
    client = app.test_client()
    for secret in ("of the app", "c2VjcmV0", "secret", "PROCORE_WEBHOOK_SECRET", ""):
        assert post(client, **_environ(sign(BODY, secret))).status_code == 401
    assert post(client, **_environ(sign(BODY, "whsec_c2VjcmV0"))).status_code == 200


# Authorization


@pytest.mark.parametrize(
    "value",
    [
        "Bearer abc.def-ghi",
        "Basic dXNlcjpwYXNz",
        "Token 0123456789",
        "a-bare-token",
        'Digest username="procore", realm="x"',
        "Bearer  two  spaces",
        "Bearer a,b",
        "Bearer Schlüssel 🔑",
    ],
)
def test_whole_authorization_value_is_compared(
    make_app: Callable[..., Flask], value: str
) -> None:
    app = make_app(PROCORE_WEBHOOK_SECRET=None, PROCORE_WEBHOOK_AUTHORIZATION=value)
    app.register_blueprint(ProcoreWebhooks())
    client = app.test_client()
    sent = value.encode().decode("latin-1")
    assert post(client, HTTP_AUTHORIZATION=sent).status_code == 200
    scheme, _, credentials = sent.rpartition(" ")
    wrong = [
        "",
        " ",
        sent[:-1],
        sent + "x",
        sent + "\0",
        sent + " ",
        " " + sent,
        sent.swapcase(),
        scheme,
        credentials + "x",
        f"Bearer {sent}",
        f"Authorization: {sent}",
        f"{sent},{sent}",
        f"{sent}, {sent}",
        f'"{sent}"',
        "\xff" * 10,
        "0" * 2**20,
    ]
    if credentials != sent:
        wrong += [credentials, sent.replace(" ", "  ", 1), f"Other {credentials}"]
    for header in wrong:
        answer = post(client, HTTP_AUTHORIZATION=header)
        assert answer.json == {"error": "Invalid authorization"}, header[:80]
        assert answer.status_code == 401
    answer = post(client)
    assert (answer.status_code, answer.json) == (
        401,
        {"error": "Invalid authorization"},
    )
    (endpoint,) = endpoints(app).values()
    assert count(endpoint) == 1


@pytest.mark.parametrize("order", [("old", "new"), ("new", "old")])
def test_every_configured_authorization_passes(
    make_app: Callable[..., Flask], order: tuple[str, str]
) -> None:
    app = make_app(
        PROCORE_WEBHOOK_SECRET=None,
        PROCORE_WEBHOOK_AUTHORIZATION=order[0],
        PROCORE_WEBHOOK_AUTHORIZATION_FALLBACKS=[order[1]],
    )
    app.register_blueprint(ProcoreWebhooks())
    codes = {
        value: post(app.test_client(), HTTP_AUTHORIZATION=value).status_code
        for value in ("old", "new", "newer", "old,new", "")
    }
    assert codes == {"old": 200, "new": 200, "newer": 401, "old,new": 401, "": 401}
