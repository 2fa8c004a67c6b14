"""Signatures as OpenSSL makes them."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from flask_procore_webhooks.config import Settings
from flask_procore_webhooks.senders.procore import PROCORE
from flask_procore_webhooks.senders.signature import verify

BODY = b'{"id":"1","type":"resource.created","data":{}}'
NOW = 1_767_225_600


def signature(digest: str, timestamp: object = NOW) -> dict[str, str]:
    return {"X-Procore-Signature": digest, "X-Procore-Timestamp": str(timestamp)}


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
@pytest.mark.parametrize("body", [b"", BODY, b"\xff\xfe\0", b"x" * 100_000])
@pytest.mark.parametrize("secret", ["s", "k" * 63, "k" * 64, "k" * 65, "Schlüssel"])
def test_openssl_makes_the_same_signature(secret: str, body: bytes) -> None:
    options = ["-mac", "HMAC", "-macopt", f"hexkey:{secret.encode().hex()}"]
    made = subprocess.run(
        ["openssl", "dgst", "-sha256", *options, "-r"],
        input=b"%d.%b" % (NOW, body),
        capture_output=True,
        check=True,
    )
    digest = made.stdout.split()[0].decode()
    verify(signature(digest), body, PROCORE, Settings(secrets=(secret.encode(),)), NOW)
