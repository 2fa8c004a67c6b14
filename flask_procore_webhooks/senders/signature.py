"""Signatures: sign a body, and verify that a delivery is authentic. No HTTP, no SQL.

The signature is HMAC-SHA256 with the secret's UTF-8 bytes over the timestamp header as
sent, a dot, and the raw body. Procore itself signs nothing: it sends the
``Authorization`` value that was configured for the hook, which is compared whole.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple
from typing import Protocol
from typing import TYPE_CHECKING

from itsdangerous import HMACAlgorithm

from ..config import Settings
from ..config.values import in_force
from ..errors import BadAuthorization
from ..errors import BadSignature
from ..errors import PayloadTooLarge
from .differences import authorization_difference
from .differences import digest_difference
from .procore import PROCORE
from .source import Source

if TYPE_CHECKING:
    from hashlib import _Hash as HASH

#: Bytes that SHA-256 processes at once.
BLOCK = 64
DIGEST_SIZE = hashlib.sha256().digest_size


class PreparedHMAC(HMACAlgorithm):
    """HMAC-SHA256 (RFC 2104) that processes the key of a secret only once.

    ``hmac.digest()`` also gives the GIL away at each call, and beside busy threads it
    waits milliseconds to have it back.
    """

    def get_signature(self, key: bytes, value: bytes) -> bytes:
        inner, outer = _hmac_states(key)
        message, result = inner.copy(), outer.copy()
        message.update(value)
        result.update(message.digest())
        return result.digest()


@lru_cache(maxsize=256)
def _hmac_states(key: bytes) -> tuple[HASH, HASH]:
    """The states of both hashes of an HMAC after the block of the key."""
    block = hashlib.sha256(key).digest() if len(key) > BLOCK else key
    block = block.ljust(BLOCK, b"\0")
    pads = (bytes(byte ^ pad for byte in block) for pad in (0x36, 0x5C))
    inner, outer = map(hashlib.sha256, pads)
    return inner, outer


HMAC_SHA256 = PreparedHMAC(hashlib.sha256)
#: Digits of a Content-Length at most.
LONGEST_LENGTH = 18
#: Digits of a timestamp at most.
LONGEST_TIME = 16
#: Unix seconds reach this number in the year 5138; Unix milliseconds did so in 1973.
MILLISECONDS = 10**11


#: How the causes of refusals begin whose timestamp is out of the tolerance.
CLOCK = "clock"


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


class Signed(NamedTuple):
    """What is left to prove once the body is there: that it has this digest."""

    digest: bytes
    #: The timestamp header as sent, which the signature covers.
    timestamp: str


def verify(
    headers: Headers,
    body: bytes,
    source: Source,
    settings: Settings,
    now: float,
) -> None:
    """Return if the delivery passes every check that ``settings`` configures.

    A total function: for any bytes it returns or raises :class:`BadSignature`.
    Settings without any secret refuse everything.

    :param headers: as WSGI gives them, text with one byte in each character.
    :param now: Unix seconds.
    :raises BadSignature: with a reason that names the check, never a value.
    :raises BadAuthorization: likewise, for the ``Authorization`` header.
    """
    if signed := check_headers(headers, source, settings, now):
        check_digest(signed, body, settings, now)


def announced_length(text: str | None, limit: int) -> int | None:
    """The number in a Content-Length header, or ``None`` without one.

    :raises DeliveryError: it is malformed, or more than ``limit``.
    """
    if not text:
        return None
    digits = text.lstrip("0")
    if not (text.isascii() and text.isdigit()) or len(digits) > LONGEST_LENGTH:
        raise BadSignature("Content-Length is not one number")
    length = int(digits or 0)
    if length > limit:
        raise PayloadTooLarge(f"Content-Length is over MAX_BYTES ({limit})")
    return length


def check_headers(
    headers: Headers, source: Source, settings: Settings, now: float
) -> Signed | None:
    """Judge all that needs no body; return what is left to prove with the body.

    The form and time of the signature come first, because they depend on no secret;
    then ``Authorization``, compared in constant time. What an answer tells a sender
    without secrets is in the documentation: the form of the headers, the tolerance.

    :return: ``None`` if no signature is configured: the delivery is authentic.
    :raises BadSignature: a header is missing, malformed or out of the tolerance.
    :raises BadAuthorization: likewise, for the ``Authorization`` header.
    """
    if not (settings.secrets or settings.authorizations):
        raise BadSignature("no secret is configured")
    signed = None
    if settings.secrets:
        digest = _digest(headers.get(source.signature_header), source)
        timestamp = _timestamp(headers.get(source.timestamp_header), source)
        difference = now - int(timestamp)
        if abs(difference) > settings.tolerance:
            raise _wrong_time(difference, int(timestamp), settings.tolerance)
        signed = Signed(digest, timestamp)
    if settings.authorizations:
        _check_authorization(headers, settings, now)
    return signed


def check_digest(signed: Signed, body: bytes, settings: Settings, now: float) -> None:
    """Return if a secret gives the body the digest that was sent.

    :raises BadSignature: no secret does.
    """
    message = signed.timestamp.encode() + b"." + body
    accepted: Sequence[bytes] = settings.secrets
    if settings.dated_secrets:
        accepted = in_force(accepted, settings.dated_secrets, now)
    matches = False
    # Every secret is tried, so that the time taken is the same for each of them.
    for secret in accepted:
        matches |= HMAC_SHA256.verify_signature(secret, message, signed.digest)
    if not matches:
        ended = [each.value for each in settings.dated_secrets if each.ended(now)]
        difference = digest_difference(signed.digest, message, accepted, ended)
        raise BadSignature(_reason("no secret matches", difference))


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


def _wrong_time(difference: float, timestamp: int, tolerance: float) -> BadSignature:
    if timestamp >= MILLISECONDS:
        return BadSignature("timestamp is in milliseconds, not seconds")
    side = "old" if difference > 0 else "new"
    return BadSignature(
        f"clock differs by {abs(difference):.0f} s (timestamp too {side},"
        f" TOLERANCE is {tolerance:g} s)",
        cause=f"{CLOCK} too {side}",
    )


def _check_authorization(headers: Headers, settings: Settings, now: float) -> None:
    header = headers.get("Authorization")
    if header is None:
        raise BadAuthorization("Authorization is missing")
    given = header.encode("latin-1", "replace")
    dated = settings.dated_authorizations
    accepted = in_force(settings.authorizations, dated, now)
    matches = False
    for value in accepted:
        matches |= hmac.compare_digest(given, value)
    if not matches:
        ended = [each.value for each in dated if each.ended(now)]
        difference = authorization_difference(given, accepted, ended)
        reason = "Authorization is none of the configured values"
        raise BadAuthorization(_reason(reason, difference))


def _reason(reason: str, difference: str) -> str:
    return f"{reason}: {difference}" if difference else reason
