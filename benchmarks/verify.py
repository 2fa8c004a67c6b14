"""Verify: the time that one signature check takes, in each library's own way."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Callable
from typing import Any

from werkzeug.datastructures import EnvironHeaders

from flask_procore_webhooks.config import Settings
from flask_procore_webhooks.senders.procore import PROCORE
from flask_procore_webhooks.senders.signature import verify

from .bench import Bench
from .deliveries import deliveries
from .deliveries import Delivery
from .deliveries import SECRET
from .figures import figures
from .figures import interleaved
from .figures import Measured
from .figures import OURS
from .figures import Part

try:
    import stripe
except ImportError:
    stripe = None  # type: ignore[assignment]
try:
    import standardwebhooks
except ImportError:
    standardwebhooks = None  # type: ignore[assignment]

FLOOR = "hmac.digest and compare_digest"

#: Prepares a delivery, and checks one that was prepared. Only the check is timed.
Candidate = tuple[Measured, Callable[[Delivery], Any], Callable[[Any], Any]]


def run(bench: Bench, rounds: int) -> Part:
    calls = 20 if bench.is_quick else 200
    about = (
        "One check of a signature over the body of one event, some 220 bytes. The"
        " floor has the digest and the timestamp in hand, as bytes, and checks nothing"
        " else. stripe gets its own header, standardwebhooks its own three, and ours"
        " those of the request."
    )
    part = Part("verify", "Verify a signature", about)
    candidates = _candidates(part)
    # What is done for the first time takes longer.
    interleaved(candidates, 1, lambda one: _measure(one, calls))
    for measured, _, _ in candidates:
        measured.forget()
    interleaved(candidates, rounds, lambda one: _measure(one, calls))
    part.measured = [measured for measured, _, _ in candidates]
    return part


def _measure(candidate: Candidate, calls: int) -> None:
    measured, prepare, check = candidate
    prepared = [prepare(delivery) for delivery in deliveries(calls)]
    start = time.perf_counter()
    for one in prepared:
        check(one)
    seconds = time.perf_counter() - start
    measured.add(time=seconds / calls * 1e6)


def _candidates(part: Part) -> list[Candidate]:
    candidates = [_ours(), _floor()]
    if stripe:
        candidates.append(_stripe())
    else:
        part.left_out.append("stripe: not installed")
    if standardwebhooks:
        candidates.append(_standardwebhooks())
    else:
        part.left_out.append("standardwebhooks: not installed")
    return candidates


def _measured(who: str) -> Measured:
    return Measured(who, "", figures("time"))


def _ours() -> Candidate:
    settings = Settings(secrets=(SECRET.encode(),))

    def prepare(delivery: Delivery) -> tuple[EnvironHeaders, bytes]:
        return EnvironHeaders(delivery.environ()), delivery.body

    def check(prepared: tuple[EnvironHeaders, bytes]) -> None:
        verify(prepared[0], prepared[1], PROCORE, settings, time.time())

    return _measured(OURS), prepare, check


def _floor() -> Candidate:
    secret = SECRET.encode()

    def prepare(delivery: Delivery) -> tuple[bytes, bytes, bytes]:
        timestamp = delivery.timestamp.encode()
        return timestamp, delivery.body, bytes.fromhex(delivery.signature)

    def check(prepared: tuple[bytes, bytes, bytes]) -> None:
        timestamp, body, signature = prepared
        digest = hmac.digest(secret, timestamp + b"." + body, "sha256")
        if not hmac.compare_digest(digest, signature):
            raise ValueError("a wrong signature")

    return _measured(FLOOR), prepare, check


def _stripe() -> Candidate:
    def prepare(delivery: Delivery) -> tuple[bytes, str]:
        # The bytes that it signs are the same.
        return delivery.body, f"t={delivery.timestamp},v1={delivery.signature}"

    def check(prepared: tuple[bytes, str]) -> None:
        stripe.WebhookSignature.verify_header(*prepared, SECRET, tolerance=300)

    return _measured("stripe"), prepare, check


def _standardwebhooks() -> Candidate:
    webhook = standardwebhooks.Webhook(SECRET.encode())

    def prepare(delivery: Delivery) -> tuple[bytes, dict[str, str]]:
        signed = f"msg_1.{delivery.timestamp}.".encode() + delivery.body
        digest = hmac.digest(SECRET.encode(), signed, hashlib.sha256)
        headers = {
            "webhook-id": "msg_1",
            "webhook-timestamp": delivery.timestamp,
            "webhook-signature": "v1," + base64.b64encode(digest).decode(),
        }
        return delivery.body, headers

    def check(prepared: tuple[bytes, dict[str, str]]) -> None:
        webhook.verify(*prepared, json_parse=False)

    return _measured("standardwebhooks"), prepare, check
