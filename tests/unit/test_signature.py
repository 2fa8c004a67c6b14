from __future__ import annotations

import ast
import copy
import hashlib
import hmac
import inspect
import pickle
from collections.abc import Callable
from datetime import date
from types import ModuleType

import pytest
from hypothesis import example
from hypothesis import given
from hypothesis import strategies as st
from support.signatures import BODY
from support.signatures import GOOD
from support.signatures import HEX
from support.signatures import hmac_by_hand
from support.signatures import NOT_A_SIGNATURE
from support.signatures import NOT_A_TIMESTAMP
from support.signatures import NOW
from support.signatures import signature
from support.values import AUTHORIZATION
from support.values import SECRET
from werkzeug.datastructures import Headers

from flask_procore_webhooks import BadSignature
from flask_procore_webhooks import ConfigError
from flask_procore_webhooks import Discard
from flask_procore_webhooks import RetryLater
from flask_procore_webhooks.config import Settings
from flask_procore_webhooks.config.values import Dated
from flask_procore_webhooks.errors import BadAuthorization
from flask_procore_webhooks.errors import InboxUnavailable
from flask_procore_webhooks.senders import differences
from flask_procore_webhooks.senders import signature as signature_module
from flask_procore_webhooks.senders.procore import PROCORE
from flask_procore_webhooks.senders.prudra import PRUDRA
from flask_procore_webhooks.senders.signature import check_headers
from flask_procore_webhooks.senders.signature import HMAC_SHA256
from flask_procore_webhooks.senders.signature import verify
from flask_procore_webhooks.senders.source import Source
from flask_procore_webhooks.testing import sign

SIGNED = Settings(secrets=(SECRET.encode(),))
AUTHORIZED = Settings(authorizations=(AUTHORIZATION.encode(),))
BOTH = Settings(secrets=SIGNED.secrets, authorizations=AUTHORIZED.authorizations)


def refusal(
    headers: dict[str, str],
    body: bytes = BODY,
    settings: Settings = SIGNED,
    *,
    source: Source = PROCORE,
    now: float = NOW,
) -> str:
    """The reason for the refusal of a delivery."""
    with pytest.raises(BadSignature) as caught:
        verify(headers, body, source, settings, now)
    return caught.value.reason


# Signed content


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


# Malformed headers


@pytest.mark.parametrize("case", NOT_A_SIGNATURE)
def test_malformed_signature_header_is_refused(case: str) -> None:
    assert refusal(signature(NOT_A_SIGNATURE[case])) == (
        "X-Procore-Signature is not one SHA-256 in hex"
    )


@pytest.mark.parametrize("case", NOT_A_TIMESTAMP)
def test_malformed_timestamp_is_refused_even_if_it_was_signed(case: str) -> None:
    stamp = NOT_A_TIMESTAMP[case]
    signed = stamp.encode("utf-8", "surrogatepass") + b"." + BODY
    digest = hmac_by_hand(SECRET.encode(), signed)
    reason = "X-Procore-Timestamp is not in Unix seconds"
    assert refusal(signature(digest, stamp)) == reason
    # WSGI decodes headers as Latin-1: one character for each byte.
    stamp = stamp.encode("utf-8", "surrogatepass").decode("latin-1")
    assert refusal(signature(digest, stamp)) == reason


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


def test_time_is_judged_before_the_body_is_needed() -> None:
    for stamp in (0, NOW * 2, NOW * 1000):
        with pytest.raises(BadSignature, match="^(clock differs|timestamp is)"):
            check_headers(signature("0" * 64, stamp), PROCORE, SIGNED, NOW)


def test_headers_without_a_body_leave_the_digest_to_prove() -> None:
    right = {"Authorization": AUTHORIZATION}
    assert check_headers(right, PROCORE, AUTHORIZED, NOW) is None
    for settings in (SIGNED, BOTH):
        signed = check_headers({**GOOD, **right}, PROCORE, settings, NOW)
        assert signed == (bytes.fromhex(HEX), str(NOW))
    wrong = {"Authorization": AUTHORIZATION + "!"}
    for headers in ({}, GOOD, right, {**GOOD, **wrong}):
        with pytest.raises(BadSignature):
            check_headers(headers, PROCORE, BOTH, NOW)


def test_settings_without_a_secret_refuse_everything() -> None:
    for headers in ({}, GOOD, {"Authorization": AUTHORIZATION}):
        assert refusal(headers, settings=Settings()) == "no secret is configured"


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


ENDED = Dated(b"an old secret", date(2025, 12, 31))
LASTS = Dated(b"a lasting secret", date(2026, 1, 1))


def test_dated_secret_verifies_until_the_end_of_its_day() -> None:
    settings = Settings(secrets=SIGNED.secrets, dated_secrets=(ENDED, LASTS))
    verify(sign(BODY, LASTS.value, timestamp=NOW), BODY, PROCORE, settings, NOW)
    verify(GOOD, BODY, PROCORE, settings, NOW)
    assert refusal(sign(BODY, ENDED.value, timestamp=NOW), settings=settings) == (
        "no secret matches: it is signed with a fallback whose last day is over"
    )
    assert refusal(sign(BODY, "wrong", timestamp=NOW), settings=settings) == (
        "no secret matches"
    )


def test_dated_authorization_verifies_until_the_end_of_its_day() -> None:
    settings = Settings(
        authorizations=AUTHORIZED.authorizations, dated_authorizations=(ENDED, LASTS)
    )
    verify({"Authorization": "a lasting secret"}, BODY, PROCORE, settings, NOW)
    assert refusal({"Authorization": "an old secret"}, settings=settings) == (
        "Authorization is none of the configured values: it is a fallback whose last"
        " day is over"
    )


# What differs, for the log


@pytest.mark.parametrize(
    ("sent", "signed", "difference"),
    [
        (
            BODY + b"\n",
            BODY,
            "without the line break",
        ),
        (
            BODY + b"\r\n",
            BODY,
            "without the line break",
        ),
        (BODY, BODY + b"\n", "with a line break"),
        (BODY, BODY + b" ", None),
        (b" " * 70_000 + b"\n", b" " * 70_000, None),
    ],
)
def test_line_break_at_the_end_of_the_body_is_named(
    sent: bytes, signed: bytes, difference: str | None
) -> None:
    reason = refusal(sign(signed, SECRET, timestamp=NOW), sent)
    where = "at the end of the body"
    expected = f": it matches {difference} {where}" if difference else ""
    assert reason == f"no secret matches{expected}"


@pytest.mark.parametrize(
    ("configured", "sent", "difference"),
    [
        ("Bearer the-value", "Basic the-value", "only the scheme differs"),
        ("Bearer the-value", "bearer the-value", "only letter case differs"),
        ("Bearer the-value", "BEARER THE-VALUE", "only letter case differs"),
        ("Bearer the-value", "Bearer  the-value", "only white space differs"),
        ("Bearer the-value", "Bearer the-value ", "only white space differs"),
        ("Bearer the-value", '"Bearer the-value"', "only quotation marks differ"),
        ("Bearer the-value", 'Bearer "the-value"', "only quotation marks differ"),
        (
            "the-value",
            "Bearer the-value",
            "the configured value is the sent one without its scheme",
        ),
        (
            "Bearer the-value",
            "the-value",
            "the sent value is the configured one without its scheme",
        ),
        (
            "Authorization: Bearer the-value",
            "Bearer the-value",
            "the configured value begins with the header's name; configure the rest",
        ),
        (
            "Bearer the-value",
            "authorization:Bearer the-value",
            "the sent value begins with the header's name; remove it at the sender",
        ),
        ("Bearer the-value", "Bearer other", None),
        ("Bearer the-value", "Bearer", None),
        ("Bearer the-value", "Bearer ", None),
        ("Bearer the-value", "", None),
        ("Bearer the-value", "\xff" * 10, None),
        ("Bearer the-value", "Bearer the-valu", None),
        ("Bearer caf\xe9", "Basic caf\xe9", "only the scheme differs"),
    ],
)
def test_difference_of_a_wrong_authorization_is_named(
    configured: str, sent: str, difference: str | None
) -> None:
    settings = Settings(authorizations=(b"another", configured.encode("latin-1")))
    reason = refusal({"Authorization": sent}, settings=settings)
    expected = f": {difference}" if difference else ""
    assert reason == f"Authorization is none of the configured values{expected}"


# Authorization


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


def test_signature_and_authorization_must_both_pass_if_configured() -> None:
    right = {"Authorization": AUTHORIZATION}
    wrong = {"Authorization": AUTHORIZATION + "!"}
    forged = signature("0" * 64)
    verify({**GOOD, **right}, BODY, PROCORE, BOTH, NOW)
    assert refusal({**GOOD, **wrong}, settings=BOTH).startswith("Authorization")
    assert refusal(GOOD, settings=BOTH) == "Authorization is missing"
    assert refusal({**forged, **right}, settings=BOTH) == "no secret matches"
    assert refusal(right, settings=BOTH) == "X-Procore-Signature is missing"
    # A header without a configured value is ignored.
    verify({**GOOD, **wrong}, BODY, PROCORE, SIGNED, NOW)
    verify({**forged, **right}, BODY, PROCORE, AUTHORIZED, NOW)


def test_secret_and_authorization_are_not_interchangeable() -> None:
    signed = sign(BODY, AUTHORIZATION, timestamp=NOW)
    assert refusal({**signed, "Authorization": SECRET}, settings=BOTH)
    assert refusal({**signed, "Authorization": AUTHORIZATION}, settings=BOTH)
    assert refusal({**GOOD, "Authorization": SECRET}, settings=BOTH)


# Any bytes

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


@given(key=st.binary(max_size=200), message=st.binary(max_size=3000))
@example(b"", b"")
@example(b"k" * 64, b"message")
@example(b"k" * 65, b"message")
def test_prepared_hmac_equals_hmac(key: bytes, message: bytes) -> None:
    expected = hmac.digest(key, message, "sha256")
    for _ in range(2):
        assert HMAC_SHA256.get_signature(key, message) == expected
    assert HMAC_SHA256.verify_signature(key, message, expected)
    assert not HMAC_SHA256.verify_signature(key, message + b"x", expected)


def test_headers_may_be_a_dict_or_werkzeug_headers() -> None:
    verify(Headers(GOOD), BODY, PROCORE, SIGNED, NOW)


# Secrecy


@pytest.mark.parametrize("module", [signature_module, differences])
def test_secrets_are_compared_in_constant_time(module: ModuleType) -> None:
    """The time of ``==`` depends on the position of the first difference.

    Lengths may be compared: the sender knows the length of its own text.
    """
    tree = ast.parse(inspect.getsource(module))
    timed = (ast.Eq, ast.NotEq, ast.In, ast.NotIn)
    assert not [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        and any(isinstance(op, timed) for op in node.ops)
        and not ast.unparse(node.left).startswith(("len(", "message[-1:]"))
    ]
    called = {
        ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)
    }
    assert "hmac.compare_digest" in called
    assert module is differences or "HMAC_SHA256.verify_signature" in called
    assert not {name for name in called if name.endswith(("startswith", "__eq__"))}


@pytest.mark.parametrize(
    "error",
    [
        ConfigError(["one", "two"]),
        ConfigError(["one"]),
        BadSignature("no secret matches"),
        BadSignature("clock differs by 412 s", cause="clock"),
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
    """Process pools and task queues pickle the errors of subscribers."""
    found = duplicate(error)
    assert type(found) is type(error)
    assert (str(found), vars(found)) == (str(error), vars(error))
