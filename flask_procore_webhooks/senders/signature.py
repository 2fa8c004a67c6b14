"""Signatures: sign a body, and verify that a delivery is authentic. No HTTP, no SQL.

The signature is HMAC-SHA256 with the secret's UTF-8 bytes over the timestamp header as
sent, a dot, and the raw body. Procore itself signs nothing: it sends the
``Authorization`` value that was configured for the hook, which is compared whole.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from typing import Protocol

from itsdangerous import HMACAlgorithm

from ..config import Settings
from ..errors import BadAuthorization
from ..errors import BadSignature
from .procore import PROCORE
from .source import Source


class _OneCallHMAC(HMACAlgorithm):
    """HMAC with one call of OpenSSL instead of a hash object for each digest."""

    def get_signature(self, key: bytes, value: bytes) -> bytes:
        return hmac.digest(key, value, "sha256")


HMAC_SHA256 = _OneCallHMAC(hashlib.sha256)
DIGEST_SIZE = hashlib.sha256().digest_size
#: Digits of a timestamp at most.
LONGEST_TIME = 16
#: Unix seconds reach this number in the year 5138; Unix milliseconds did so in 1973.
MILLISECONDS = 10**11


class Headers(Protocol):
    """Headers by name, whatever its case."""

    def get(self, name: str, /) -> str | None: ...


def sign(
    body: bytes,
    secret: str | bytes,
    *,
    timestamp: int | str | None = None,
    source: Source = PROCORE,
) -> dict[str, str]:
    """Return the two headers that sign ``body`` as ``source`` does.

    :param timestamp: Unix seconds; by default the current time.
    """
    stamp = str(int(time.time()) if timestamp is None else timestamp)
    key = secret.encode() if isinstance(secret, str) else secret
    digest = HMAC_SHA256.get_signature(key, stamp.encode() + b"." + body)
    return {
        source.signature_header: source.signature_prefix + digest.hex(),
        source.timestamp_header: stamp,
    }


def verify(
    headers: Headers,
    body: bytes,
    source: Source,
    settings: Settings,
    now: float,
) -> None:
    """Return if the delivery passes every check that ``settings`` configures.

    A total function: for any bytes it returns or raises :class:`BadSignature`.

    :param headers: as WSGI gives them, text with one byte in each character.
    :param now: Unix seconds.
    :raises BadSignature: with a reason that names the check, never a value.
    :raises BadAuthorization: likewise, for the ``Authorization`` header.
    """
    if settings.secrets:
        _verify_signature(headers, body, source, settings, now)
    if settings.authorizations:
        _verify_authorization(headers, settings)


def _verify_signature(
    headers: Headers,
    body: bytes,
    source: Source,
    settings: Settings,
    now: float,
) -> None:
    digest = _digest(headers.get(source.signature_header), source)
    timestamp = _timestamp(headers.get(source.timestamp_header), source)
    signed = timestamp.encode() + b"." + body
    matches = False
    # Every secret is tried, so that the time taken is the same for each of them.
    for secret in settings.secrets:
        matches |= HMAC_SHA256.verify_signature(secret, signed, digest)
    if not matches:
        raise BadSignature("no secret matches")
    _check_time(int(timestamp), settings.tolerance, now)


def is_timestamp(text: str) -> bool:
    """Return whether ``text`` is a timestamp: digits, at most ``LONGEST_TIME``."""
    return text.isascii() and text.isdigit() and len(text) <= LONGEST_TIME


def _digest(header: str | None, source: Source) -> bytes:
    if header is None:
        raise BadSignature(f"{source.signature_header} is missing")
    # Servers join repeated headers with a comma, which is no hex digit.
    digits = header.removeprefix("sha256=")
    try:
        digest = bytes.fromhex(digits)
    except ValueError:
        digest = b""
    # Both lengths: fromhex() skips spaces between digits.
    if len(digest) != DIGEST_SIZE or len(digits) != 2 * DIGEST_SIZE:
        raise BadSignature(f"{source.signature_header} is not one SHA-256 in hex")
    return digest


def _timestamp(header: str | None, source: Source) -> str:
    if header is None:
        raise BadSignature(f"{source.timestamp_header} is missing")
    if not is_timestamp(header):
        raise BadSignature(f"{source.timestamp_header} is not in Unix seconds")
    return header


def _check_time(timestamp: int, tolerance: float, now: float) -> None:
    if timestamp >= MILLISECONDS:
        raise BadSignature("timestamp is in milliseconds, not seconds")
    difference = now - timestamp
    if abs(difference) > tolerance:
        side = "old" if difference > 0 else "new"
        raise BadSignature(
            f"clock differs by {abs(difference):.0f} s (timestamp too {side},"
            f" TOLERANCE is {tolerance:g} s)"
        )


def _verify_authorization(headers: Headers, settings: Settings) -> None:
    header = headers.get("Authorization")
    if header is None:
        raise BadAuthorization("Authorization is missing")
    given = header.encode("latin-1", "replace")
    matches = False
    for accepted in settings.authorizations:
        matches |= hmac.compare_digest(given, accepted)
    if not matches:
        raise BadAuthorization("Authorization is none of the configured values")
