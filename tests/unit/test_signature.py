from __future__ import annotations

import ast
import copy
import hashlib
import hmac
import inspect
import logging
import pickle
from collections.abc import Callable
from collections.abc import Iterator
from datetime import datetime
from datetime import timezone
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import example
from hypothesis import given
from hypothesis import strategies as st
from support.values import AUTHORIZATION
from support.values import Clock
from support.values import SECRET
from werkzeug.datastructures import Headers
from werkzeug.test import TestResponse

from flask_procore_webhooks import BadSignature
from flask_procore_webhooks import ConfigError
from flask_procore_webhooks import delivery_rejected
from flask_procore_webhooks import Discard
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import PrudraWebhooks
from flask_procore_webhooks import RetryLater
from flask_procore_webhooks.config import Settings
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.errors import BadAuthorization
from flask_procore_webhooks.errors import InboxUnavailable
from flask_procore_webhooks.senders import signature as verify_module
from flask_procore_webhooks.senders.procore import PROCORE
from flask_procore_webhooks.senders.prudra import PRUDRA
from flask_procore_webhooks.senders.signature import verify
from flask_procore_webhooks.senders.source import Source
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import sign

NOW = 1_767_225_600
BODY = b'{"id":"1","type":"resource.created","data":{}}'
SIGNED = Settings(secrets=(SECRET.encode(),))
AUTHORIZED = Settings(authorizations=(AUTHORIZATION.encode(),))
BOTH = Settings(secrets=SIGNED.secrets, authorizations=AUTHORIZED.authorizations)

GOOD = sign(BODY, SECRET, timestamp=NOW)
HEX = GOOD["X-Procore-Signature"]

NOT_A_SIGNATURE = {
    "nothing": "",
    "a space": " ",
    "=": "=",
    "sha256=": "sha256=",
    "sha256==": "sha256==" + HEX,
    "sha256": "sha256",
    "the prefix twice": "sha256=sha256=" + HEX,
    "the prefix behind it": HEX + "sha256=",
    "the prefix in upper case": "SHA256=" + HEX,
    "another prefix": "sha512=" + HEX,
    "a version": "v1=" + HEX,
    "a list": f"v1,{HEX}",
    "one digit short": HEX[:-1],
    "one digit long": HEX + "0",
    "one byte short": HEX[:-2],
    "as long as SHA-1": HEX[:40],
    "as long as MD5": HEX[:32],
    "as long as SHA-512": HEX * 2,
    "a digit that is none": "g" + HEX[1:],
    "a space inside": HEX[:32] + " " + HEX[33:],
    "spaces around": f" {HEX} ",
    "a line break behind": HEX + "\n",
    "a NUL behind": HEX + "\0",
    "0x": "0x" + HEX[2:],
    "a sign": "+" + HEX[1:],
    "underscores": "_".join(HEX[i : i + 2] for i in range(0, 44, 2))[:64],
    "colons": ":".join(HEX[i : i + 2] for i in range(0, 64, 2)),
    "a comma and the same again": f"{HEX},{HEX}",
    "a comma, a space and the same again": f"{HEX}, {HEX}",
    "Base64": "MKT4z0U1/XcQXx/wzV1R04U0Kee1t8ZgIoUfZPfG5SI=",
    "not ASCII": "\xe9" * 64,
    "every byte over 127": "".join(map(chr, range(128, 256))),
    "full width digits": "".join(chr(ord(c) + 0xFEE0) for c in HEX),
    "Arabic-Indic digits": "\u0661" * 64,
    "lone surrogates": "\ud800" * 64,
    "1 MB": "0" * 2**20,
    "1 MB that is not ASCII": "\xff" * 2**20,
    "null": "null",
    "none": "none",
}

NOT_A_TIMESTAMP = {
    "nothing": "",
    "a space before": f" {NOW}",
    "a space behind": f"{NOW} ",
    "a line break behind": f"{NOW}\n",
    "a plus": f"+{NOW}",
    "a minus": f"-{NOW}",
    "+1": "+1",
    "-1": "-1",
    "a float": f"{NOW}.0",
    "an exponent": "1e9",
    "an underscore": "1_000",
    "a comma": "1,767,225,600",
    "hexadecimal": hex(NOW),
    "NaN": "NaN",
    "Infinity": "Infinity",
    "ISO 8601": "2026-01-01T00:00:00Z",
    "twice": f"{NOW},{NOW}",
    "5,000 digits": "1" * 5000,
    "1 MB": "1" * 2**20,
    "nanoseconds": str(NOW * 10**9),
    "zeros before": str(NOW).zfill(17),
    "Arabic-Indic digits": "".join(chr(0x660 + int(c)) for c in str(NOW)),
    "full width digits": "".join(chr(0xFF10 + int(c)) for c in str(NOW)),
    "superscript digits": "\xb2\xb3\xb9",
    "not ASCII": "\xe9",
    "a lone surrogate": "\ud800",
    "a NUL": f"{NOW}\0",
}


def refusal(
    headers: dict[str, str],
    body: bytes = BODY,
    settings: Settings = SIGNED,
    *,
    source: Source = PROCORE,
    now: float = NOW,
) -> str:
    """The reason why a delivery is refused."""
    with pytest.raises(BadSignature) as caught:
        verify(headers, body, source, settings, now)
    return caught.value.reason


def signature(digest: str, timestamp: object = NOW) -> dict[str, str]:
    return {"X-Procore-Signature": digest, "X-Procore-Timestamp": str(timestamp)}


def hmac_by_hand(secret: bytes, message: bytes) -> str:
    """RFC 2104, with nothing but the hash."""
    block = hashlib.sha256(secret).digest() if len(secret) > 64 else secret
    block = block.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in block) + message).digest()
    return hashlib.sha256(bytes(b ^ 0x5C for b in block) + inner).hexdigest()


def post(
    client: FlaskClient, body: bytes = BODY, path: str = "", **environ: str
) -> TestResponse:
    """Send headers as WSGI hands them over, whatever they hold."""
    path = path or "/webhooks/procore"
    return client.post(path, data=body, environ_overrides=environ)


def count(endpoint: Endpoint) -> int:
    table = endpoint.store.database.tables.event
    return len(endpoint.store.rows(sa.select(table.c.id)))


@pytest.fixture
def at_now(endpoint: Endpoint) -> Clock:
    clock = Clock()
    clock.time = datetime.fromtimestamp(NOW, timezone.utc)
    endpoint.store.now = clock
    return clock


# What is signed


def test_fixed_vector_verifies() -> None:
    """The digests were made by ``openssl dgst -sha256 -hmac``."""
    vectors = [
        (
            "a fixed secret",
            b'{"id":"1","type":"resource.created","data":{}}',
            "30a4f8cf4535fd77105f1ff0cd5d51d3853429ee7a5b7c66022851f64f7c6e52",
        ),
        (
            "whsec_ein Schlüssel",
            b'{"id":"1","type":"resource.created","data":{"name":"'
            + 'Zürich 🏗"}}\n'.encode(),
            "1fdb83cd3f5fafcf17c4315bc99d1bb332ba4ea99219e09375fad100f42831bc",
        ),
    ]
    for secret, body, digest in vectors:
        settings = Settings(secrets=(secret.encode(),))
        verify(signature(digest), body, PROCORE, settings, NOW)
        assert sign(body, secret, timestamp=NOW) == signature(digest)
        prudra = {"X-Prudra-Signature": f"sha256={digest}"}
        prudra["X-Prudra-Timestamp"] = str(NOW)
        verify(prudra, body, PRUDRA, settings, NOW)
        assert sign(body, secret, timestamp=NOW, source=PRUDRA) == prudra


@given(
    secret=st.one_of(st.text(min_size=1), st.binary(min_size=1, max_size=200)),
    body=st.binary(max_size=300),
    timestamp=st.integers(0, 10**11 - 1),
    source=st.sampled_from([PROCORE, PRUDRA]),
)
def test_signature_is_hmac_sha256_of_timestamp_dot_body(
    secret: str | bytes, body: bytes, timestamp: int, source: Source
) -> None:
    if isinstance(secret, str):
        secret = secret.encode("utf-8", "replace").decode()
    key = secret.encode() if isinstance(secret, str) else secret
    expected = hmac_by_hand(key, b"%d.%b" % (timestamp, body))
    headers = sign(body, secret, timestamp=timestamp, source=source)
    assert headers == {
        source.signature_header: source.signature_prefix + expected,
        source.timestamp_header: str(timestamp),
    }
    verify(headers, body, source, Settings(secrets=(key,)), timestamp)


@given(body=st.binary(min_size=1, max_size=200), data=st.data())
def test_one_changed_bit_of_the_body_is_refused(
    body: bytes, data: st.DataObject
) -> None:
    bit = data.draw(st.integers(0, 8 * len(body) - 1))
    changed = bytearray(body)
    changed[bit // 8] ^= 1 << bit % 8
    headers = sign(body, SECRET, timestamp=NOW)
    assert refusal(headers, bytes(changed)) == "no secret matches"


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
        answer = client.post("/webhooks/procore", data=other, headers=headers)
        assert answer.status_code == 401


def test_unsigned_binary_body_is_refused_unread(app: Flask, endpoint: Endpoint) -> None:
    for body in (b"\xff\xfe", b"[" * 100_000, b'{"id":' + b"9" * 5000 + b"}"):
        answer = post(app.test_client(), body, HTTP_X_PROCORE_SIGNATURE=HEX)
        assert (answer.status_code, answer.json) == (
            401,
            {"error": "Invalid signature"},
        )
    assert count(endpoint) == 0


def test_mac_of_the_body_alone_is_refused() -> None:
    digest = hmac_by_hand(SECRET.encode(), BODY)
    assert refusal(signature(digest)) == "no secret matches"


@pytest.mark.parametrize("between", ["", ":", ",", "..", ". ", "\n"])
def test_timestamp_and_body_are_joined_by_a_dot_only(between: str) -> None:
    digest = hmac_by_hand(SECRET.encode(), f"{NOW}{between}".encode() + BODY)
    assert refusal(signature(digest)) == "no secret matches"


def test_digits_cannot_move_between_timestamp_and_body() -> None:
    headers = sign(b"5.{}", SECRET, timestamp=NOW // 10)
    verify(headers, b"5.{}", PROCORE, SIGNED, NOW // 10)
    moved = signature(headers["X-Procore-Signature"], f"{NOW // 10}.5")
    assert refusal(moved, b"{}") == "X-Procore-Timestamp is not in Unix seconds"


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha224", "sha384", "sha512"])
def test_no_other_algorithm_passes_under_any_prefix(algorithm: str) -> None:
    digest = hmac.new(SECRET.encode(), b"%d.%b" % (NOW, BODY), algorithm).hexdigest()
    for prefix in ("", "sha256=", f"{algorithm}="):
        assert refusal(signature(prefix + digest))
    padded = digest.ljust(64, "0")[:64]
    assert refusal(signature(padded)) == "no secret matches"


def test_unkeyed_hash_is_refused() -> None:
    digest = hashlib.sha256(b"%d.%b" % (NOW, BODY)).hexdigest()
    assert refusal(signature(digest)) == "no secret matches"


@pytest.mark.parametrize("source", [PROCORE, PRUDRA])
@pytest.mark.parametrize("prefix", ["", "sha256="])
@pytest.mark.parametrize("spelling", [str.lower, str.upper, str.swapcase])
def test_hex_verifies_in_either_case_with_and_without_its_prefix(
    source: Source, prefix: str, spelling: Callable[[str], str]
) -> None:
    headers = {
        source.signature_header: prefix + spelling(HEX),
        source.timestamp_header: str(NOW),
    }
    verify(headers, BODY, source, SIGNED, NOW)


def test_headers_of_the_other_source_are_ignored() -> None:
    headers = sign(BODY, SECRET, timestamp=NOW, source=PRUDRA)
    assert refusal(headers) == "X-Procore-Signature is missing"
    assert refusal(GOOD, source=PRUDRA) == "X-Prudra-Signature is missing"


@pytest.mark.parametrize("change", [str.upper, str.lower, str.title])
def test_case_of_header_names_does_not_matter(
    app: Flask, change: Callable[[str], str]
) -> None:
    headers = {change(name): value for name, value in sign(BODY, SECRET).items()}
    answer = app.test_client().post("/webhooks/procore", data=BODY, headers=headers)
    assert answer.status_code == 200


# Malformed headers


@pytest.mark.parametrize("case", NOT_A_SIGNATURE)
def test_malformed_signature_header_is_refused(case: str) -> None:
    assert refusal(signature(NOT_A_SIGNATURE[case])) == (
        "X-Procore-Signature is not one SHA-256 in hex"
    )


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
    # The same delivery with its true header is refused by nothing else.
    assert post(client, **_environ(GOOD)).status_code == 200


@pytest.mark.parametrize("case", NOT_A_TIMESTAMP)
def test_malformed_timestamp_is_refused_even_if_it_was_signed(case: str) -> None:
    stamp = NOT_A_TIMESTAMP[case]
    signed = stamp.encode("utf-8", "surrogatepass") + b"." + BODY
    digest = hmac_by_hand(SECRET.encode(), signed)
    reason = "X-Procore-Timestamp is not in Unix seconds"
    assert refusal(signature(digest, stamp)) == reason
    # As WSGI hands over what is not ASCII: a character for each byte.
    stamp = stamp.encode("utf-8", "surrogatepass").decode("latin-1")
    assert refusal(signature(digest, stamp)) == reason


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


def test_missing_header_is_named() -> None:
    assert refusal({}) == "X-Procore-Signature is missing"
    assert refusal({"X-Procore-Timestamp": str(NOW)}) == (
        "X-Procore-Signature is missing"
    )
    assert refusal({"X-Procore-Signature": HEX}) == "X-Procore-Timestamp is missing"


def test_timestamp_that_was_dropped_or_changed_is_refused() -> None:
    verify(GOOD, BODY, PROCORE, SIGNED, NOW)
    assert refusal({"X-Procore-Signature": HEX}) == "X-Procore-Timestamp is missing"
    for other in (NOW - 1, NOW + 1, f"0{NOW}"):
        assert refusal(signature(HEX, other)) == "no secret matches"


def test_timestamp_is_signed_as_sent_and_not_as_a_number() -> None:
    headers = sign(BODY, SECRET, timestamp=f"00{NOW}")
    verify(headers, BODY, PROCORE, SIGNED, NOW)
    assert refusal(signature(headers["X-Procore-Signature"])) == "no secret matches"


@pytest.mark.parametrize("stamp", [NOW * 1000, NOW * 1000 + 999, 10**11, 10**12])
def test_timestamp_in_milliseconds_is_named_in_the_reason(stamp: int) -> None:
    reason = refusal(sign(BODY, SECRET, timestamp=stamp))
    assert reason.startswith("timestamp is in milliseconds")
    assert refusal(signature(HEX, stamp)) == "no secret matches"


def test_last_second_before_milliseconds_begin_is_only_too_new() -> None:
    reason = refusal(sign(BODY, SECRET, timestamp=10**11 - 1))
    assert reason.startswith("clock differs by 98232774399 s (timestamp too new")


# The tolerance


@pytest.mark.parametrize("tolerance", [1.0, 300.0, 3600.0])
@pytest.mark.parametrize("side", [-1, 1])
def test_tolerance_holds_to_the_second_on_both_sides(
    tolerance: float, side: int
) -> None:
    settings = Settings(secrets=SIGNED.secrets, tolerance=tolerance)
    for inside in (0, tolerance - 1, tolerance):
        headers = sign(BODY, SECRET, timestamp=NOW + side * int(inside))
        verify(headers, BODY, PROCORE, settings, NOW)
    for outside in (tolerance + 1, tolerance + 60, 10 * 365 * 86400):
        headers = sign(BODY, SECRET, timestamp=NOW + side * int(outside))
        side_name = "new" if side > 0 else "old"
        reason = refusal(headers, settings=settings)
        assert reason.startswith(f"clock differs by {outside:.0f} s")
        assert f"timestamp too {side_name}" in reason


def test_fractions_of_our_own_clock_do_not_widen_the_tolerance() -> None:
    headers = sign(BODY, SECRET, timestamp=NOW)
    verify(headers, BODY, PROCORE, SIGNED, NOW + 299.999)
    assert refusal(headers, now=NOW + 300.001)
    assert refusal(headers, now=NOW - 300.001)


def test_reason_states_the_clock_difference() -> None:
    assert refusal(GOOD, now=NOW + 412) == (
        "clock differs by 412 s (timestamp too old, TOLERANCE is 300 s)"
    )
    assert refusal(GOOD, now=NOW - 412) == (
        "clock differs by 412 s (timestamp too new, TOLERANCE is 300 s)"
    )


def test_clock_difference_is_reported_only_for_valid_signatures() -> None:
    for stamp in (0, NOW * 2, NOW * 1000):
        assert refusal(signature("0" * 64, stamp)) == "no secret matches"


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
    """A timestamp at the far edge is good for twice the tolerance: no replay runs."""
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


@pytest.mark.parametrize("order", [("old", "new"), ("new", "old")])
def test_every_configured_secret_verifies_in_any_order(
    order: tuple[str, ...],
) -> None:
    settings = Settings(secrets=tuple(secret.encode() for secret in order))
    for secret in order:
        verify(sign(BODY, secret, timestamp=NOW), BODY, PROCORE, settings, NOW)
    for secret in ("newer", "old ", "OLD", "oldnew", "", "\0"):
        headers = sign(BODY, secret, timestamp=NOW)
        assert refusal(headers, settings=settings) == "no secret matches"


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


def test_reason_of_a_bad_authorization_holds_no_value() -> None:
    assert refusal({}, settings=AUTHORIZED) == "Authorization is missing"
    reason = refusal({"Authorization": "Bearer a guess"}, settings=AUTHORIZED)
    assert reason == "Authorization is none of the configured values"
    for strange in ("\u2603", "\ud800", "\0", AUTHORIZATION + "\u2603"):
        assert refusal({"Authorization": strange}, settings=AUTHORIZED) == reason


def test_authorization_bytes_that_are_no_utf_8_are_compared_as_bytes() -> None:
    settings = Settings(authorizations=(b"Bearer caf\xe9",))
    verify({"Authorization": "Bearer caf\xe9"}, BODY, PROCORE, settings, NOW)
    for other in ("Bearer caf\xc3\xa9", "Bearer caf", "Bearer cafe", "Bearer caf?"):
        assert refusal({"Authorization": other}, settings=settings)


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


def test_signature_and_authorization_must_both_pass_if_configured() -> None:
    right = {"Authorization": AUTHORIZATION}
    wrong = {"Authorization": AUTHORIZATION + "!"}
    forged = signature("0" * 64)
    verify({**GOOD, **right}, BODY, PROCORE, BOTH, NOW)
    assert refusal({**GOOD, **wrong}, settings=BOTH).startswith("Authorization")
    assert refusal(GOOD, settings=BOTH) == "Authorization is missing"
    assert refusal({**forged, **right}, settings=BOTH) == "no secret matches"
    assert refusal(right, settings=BOTH) == "X-Procore-Signature is missing"
    # What is not configured is not looked at.
    verify({**GOOD, **wrong}, BODY, PROCORE, SIGNED, NOW)
    verify({**forged, **right}, BODY, PROCORE, AUTHORIZED, NOW)


def test_secret_and_authorization_are_not_interchangeable() -> None:
    signed = sign(BODY, AUTHORIZATION, timestamp=NOW)
    assert refusal({**signed, "Authorization": SECRET}, settings=BOTH)
    assert refusal({**signed, "Authorization": AUTHORIZATION}, settings=BOTH)
    assert refusal({**GOOD, "Authorization": SECRET}, settings=BOTH)


# A total function

_bytes_as_text = st.binary(max_size=80).map(lambda raw: raw.decode("latin-1"))
_near_signature = st.tuples(
    st.sampled_from(["", "sha256=", "sha1=", "SHA256=", " "]),
    st.text("0123456789abcdefABCDEF", min_size=60, max_size=68),
).map("".join)
_header = st.one_of(
    st.none(),
    st.text(max_size=80),
    _bytes_as_text,
    _near_signature,
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from([HEX, str(NOW), AUTHORIZATION, "", "\ud800", "\0"]),
)


@given(
    header=st.fixed_dictionaries(
        {
            "X-Procore-Signature": _header,
            "X-Procore-Timestamp": _header,
            "Authorization": _header,
        }
    ),
    body=st.one_of(st.binary(), st.just(BODY)),
    settings=st.sampled_from([SIGNED, AUTHORIZED, BOTH]),
    now=st.floats(0, 10**11),
)
@example({}, BODY, SIGNED, NOW)
@example({**GOOD, "Authorization": AUTHORIZATION}, BODY, BOTH, NOW)
def test_verification_returns_or_raises_bad_signature_for_any_bytes(
    header: dict[str, str | None], body: bytes, settings: Settings, now: float
) -> None:
    headers = {name: value for name, value in header.items() if value is not None}
    try:
        verify(headers, body, PROCORE, settings, now)
    except BadSignature as bad:
        assert bad.status == 401
        assert bad.reason.isascii() and len(bad.reason) < 200
    else:
        stamp = headers.get("X-Procore-Timestamp", "")
        digest = headers.get("X-Procore-Signature", "").removeprefix("sha256=").lower()
        message = stamp.encode("utf-8", "surrogatepass") + b"." + body
        assert not settings.secrets or digest == hmac_by_hand(SECRET.encode(), message)
        assert not settings.authorizations or headers["Authorization"] == AUTHORIZATION


def test_headers_may_be_a_dict_or_werkzeug_headers() -> None:
    verify(Headers(GOOD), BODY, PROCORE, SIGNED, NOW)


# Secrets stay secret


def test_secrets_are_compared_in_constant_time() -> None:
    """Equality stops at the first difference, and its time tells where that was.

    Lengths are no secret: they are those of the sender's own text.
    """
    tree = ast.parse(inspect.getsource(verify_module))
    timed = (ast.Eq, ast.NotEq, ast.In, ast.NotIn)
    assert not [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        and any(isinstance(op, timed) for op in node.ops)
        and not ast.unparse(node.left).startswith("len(")
    ]
    called = {
        ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)
    }
    assert {"hmac.compare_digest", "HMAC_SHA256.verify_signature"} <= called
    assert not {name for name in called if name.endswith(("startswith", "__eq__"))}


@pytest.fixture
def guarded(make_app: Callable[..., Flask]) -> Iterator[Flask]:
    app = make_app(
        PROCORE_WEBHOOK_SECRET="the-secret-0",
        PROCORE_WEBHOOK_SECRET_FALLBACKS=["the-secret-1"],
        PROCORE_WEBHOOK_AUTHORIZATION="Bearer the-secret-2",
        PROCORE_WEBHOOK_AUTHORIZATION_FALLBACKS=["the-secret-3"],
        PROCORE_WEBHOOK_MAX_BYTES=2000,
    )
    app.register_blueprint(ProcoreWebhooks())
    yield app


def test_no_log_signal_or_answer_holds_a_secret_a_signature_or_a_body(
    guarded: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    told: list[Any] = []
    delivery_rejected.connect(lambda app, **fields: told.append(fields))
    client = guarded.test_client()
    body = b'{"id":"1","type":"a.b","data":{"phone":"555-0100"}}'
    good = sign(body, "the-secret-0") | {"Authorization": "Bearer the-secret-2"}
    digest = good["X-Procore-Signature"]
    old = sign(body, "the-secret-0", timestamp=1) | {"Authorization": "the-secret-3"}
    attempts: list[tuple[bytes, dict[str, str], int]] = [
        (body, good, 200),
        (body, good, 200),
        (body, {**good, "Authorization": "Bearer the-secret-1"}, 401),
        (body, {**good, "Authorization": ""}, 401),
        (body, {**good, "X-Procore-Signature": f"{digest}{digest}"}, 401),
        (body, {**good, "X-Procore-Signature": digest[::-1]}, 401),
        (body, {**good, "X-Procore-Timestamp": "the-secret-0"}, 401),
        (body, old, 401),
        (body, {}, 401),
        (body + b"!", good, 401),
        (body * 100, good, 413),
    ]
    broken = b'{"phone": "555-0100", '
    unreadable = sign(broken, "the-secret-1") | {"Authorization": "the-secret-3"}
    attempts.append((broken, unreadable, 200))
    answers = b""
    for sent, headers, code in attempts:
        answer = client.post("/webhooks/procore", data=sent, headers=headers)
        assert answer.status_code == code
        answers += answer.data + repr(answer.headers).encode()
    everything = caplog.text + repr(told) + answers.decode()
    assert len(told) == 9
    for hidden in ("the-secret", digest, digest[::-1], "555-0100"):
        assert hidden not in everything


@pytest.mark.server
def test_unreachable_inbox_error_hides_the_password(
    make_app: Callable[..., Flask], caplog: pytest.LogCaptureFixture
) -> None:
    uri = "postgresql+psycopg://user:the-secret@127.0.0.1:1/inbox"
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI=uri)
    app.register_blueprint(ProcoreWebhooks())
    answer = deliver(app.test_client(), b'{"id":"1","phone":"555-0100"}')
    assert (answer.status_code, answer.json) == (503, {"error": "Unavailable"})
    assert "127.0.0.1" in caplog.text
    assert "the-secret" not in caplog.text and "555-0100" not in caplog.text


def test_no_repr_shows_a_secret(guarded: Flask) -> None:
    (endpoint,) = endpoints(guarded).values()
    settings = endpoint.settings
    assert len(settings.secrets) == len(settings.authorizations) == 2
    shown = repr(
        [endpoint, settings, endpoint.__dict__, BadSignature("no secret matches")]
    )
    assert "tolerance=300.0" in shown
    assert "the-secret" not in shown
    uri = "postgresql://user:the-secret@127.0.0.1/inbox"
    assert "the-secret" not in repr(Settings(database_uri=uri))


@pytest.mark.parametrize(
    "error",
    [
        ConfigError(["one", "two"]),
        ConfigError(["one"]),
        BadSignature("no secret matches"),
        BadAuthorization("Authorization is missing"),
        InboxUnavailable("gone"),
        RetryLater(),
        RetryLater(90),
        Discard("not ours"),
    ],
    ids=repr,
)
@pytest.mark.parametrize(
    "duplicate", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))]
)
def test_errors_can_be_pickled(
    error: Exception, duplicate: Callable[[Exception], Exception]
) -> None:
    """Process pools and task queues pickle what a subscriber raised."""
    found = duplicate(error)
    assert type(found) is type(error)
    assert (str(found), vars(found)) == (str(error), vars(error))


def _environ(headers: dict[str, str]) -> dict[str, str]:
    return {
        f"HTTP_{name.upper().replace('-', '_')}": value
        for name, value in headers.items()
    }
