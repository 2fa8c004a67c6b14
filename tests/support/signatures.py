"""A signed delivery at a fixed time, and headers that are malformed."""

from __future__ import annotations

import hashlib

from flask_procore_webhooks.testing import sign
from support.values import SECRET

NOW = 1_767_225_600
BODY = b'{"id":"1","type":"resource.created","data":{}}'
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
    "a letter beyond f": "g" + HEX[1:],
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


def signature(digest: str, timestamp: object = NOW) -> dict[str, str]:
    return {"X-Procore-Signature": digest, "X-Procore-Timestamp": str(timestamp)}


def hmac_by_hand(secret: bytes, message: bytes) -> str:
    """HMAC-SHA256 by RFC 2104, computed from SHA-256 alone."""
    block = hashlib.sha256(secret).digest() if len(secret) > 64 else secret
    block = block.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in block) + message).digest()
    return hashlib.sha256(bytes(b ^ 0x5C for b in block) + inner).hexdigest()
