"""Keys of the configuration, and values that are refused."""

from __future__ import annotations

PREFIX = "PROCORE_WEBHOOK_"

MISTAKES: dict[str, object] = {
    "SECRET": " the-secret",
    "SECRET_FALLBACKS": ["the-secret-1", "", "the-secret-2\n"],
    "AUTHORIZATION": 7_777_777,
    "AUTHORIZATION_FALLBACKS": "the-secret-3",
    "TOLERANCE": 0,
    "MAX_BYTES": "1 MiB",
    "DISPATCH": "thread",
    "MAX_ATTEMPTS": 0,
    "RETRY_BASE": "ten",
    "RETRY_CAP": float("nan"),
    "LEASE": True,
    "MAX_AGE": -1,
    "RETENTION": 3600,
    "IGNORE_USER_IDS": "user 7",
    "IGNORE_APPLICATION_IDS": [b"app 8"],
    "DATABASE_URI": " postgresql://user:the-secret-9@db",
    "SECERT": "the-secret-10",
}
