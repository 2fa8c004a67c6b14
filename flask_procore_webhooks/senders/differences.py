"""What differs between a refused delivery and the settings, for the log.

Called after the verdict. The texts are fixed and hold no value, and every comparison
takes the same time for each position of the first difference: the sender sees neither.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence

#: Larger bodies are not hashed again for the log.
LARGEST_BODY = 65536
HEADER_NAME = re.compile(rb"\A\s*authorization\s*:\s*", re.IGNORECASE)
#: A scheme, as in ``Bearer`` or ``Basic``, and the white space after it.
SCHEME = re.compile(rb"\A\s*[A-Za-z][A-Za-z0-9_-]*\s+(?=\S)")


Values = Sequence[bytes]


def authorization_difference(sent: bytes, accepted: Values, ended: Values) -> str:
    """How the sent value differs from an accepted one; empty if in other ways.

    :param ended: fallbacks whose last day is over.
    """
    if _equal_any(sent, ended):
        return "it is a fallback whose last day is over"
    found = [text for value in accepted for text in _differences(sent, value)]
    return found[0] if found else ""


def digest_difference(
    digest: bytes, message: bytes, accepted: Values, ended: Values
) -> str:
    """What would have made the digest match; empty if nothing that is known.

    :param ended: fallbacks whose last day is over.
    """
    if len(message) > LARGEST_BODY:
        return ""
    if _signs_any(digest, message, ended):
        return "it is signed with a fallback whose last day is over"
    if message[-1:] == b"\n":
        if _signs_any(digest, message.rstrip(b"\r\n"), accepted):
            return "it matches without the line break at the end of the body"
    elif _signs_any(digest, message + b"\n", accepted):
        return "it matches with a line break at the end of the body"
    return ""


def _differences(sent: bytes, configured: bytes) -> Iterator[str]:
    for text, change_sent, change_configured in _CHANGES:
        if hmac.compare_digest(change_sent(sent), change_configured(configured)):
            yield text


def _equal_any(sent: bytes, values: Values) -> bool:
    return any([hmac.compare_digest(sent, value) for value in values])


def _signs_any(digest: bytes, message: bytes, secrets: Values) -> bool:
    digests = [hmac.digest(secret, message, "sha256") for secret in secrets]
    return _equal_any(digest, digests)


def _same(value: bytes) -> bytes:
    return value


def _without_name(value: bytes) -> bytes:
    return HEADER_NAME.sub(b"", value, count=1)


def _without_scheme(value: bytes) -> bytes:
    return SCHEME.sub(b"", value, count=1)


def _without_space(value: bytes) -> bytes:
    return b"".join(value.split())


def _without_quotes(value: bytes) -> bytes:
    return value.replace(b'"', b"").replace(b"'", b"")


_Change = Callable[[bytes], bytes]
#: What differs, and the changes to the sent and the configured value without it.
_CHANGES: tuple[tuple[str, _Change, _Change], ...] = (
    (
        "the configured value begins with the header's name; configure the rest",
        _same,
        _without_name,
    ),
    (
        "the sent value begins with the header's name; remove it at the sender",
        _without_name,
        _same,
    ),
    ("only letter case differs", bytes.lower, bytes.lower),
    ("only white space differs", _without_space, _without_space),
    ("only quotation marks differ", _without_quotes, _without_quotes),
    (
        "the configured value is the sent one without its scheme",
        _without_scheme,
        _same,
    ),
    (
        "the sent value is the configured one without its scheme",
        _same,
        _without_scheme,
    ),
    ("only the scheme differs", _without_scheme, _without_scheme),
)
