"""The part of ``check`` that examines settings, secrets and logging."""

from __future__ import annotations

import hmac
import logging
import re
from collections.abc import Iterator

from ..config import KEYS
from ..endpoint import Endpoint
from ..endpoint import endpoints
from ._findings import Finding
from ._findings import warning

SHORT_SECRET = 16
#: Different bytes of a value that is hard to guess, at least.
VARIETY = 8
#: Words and rows of keys; what is left of a value without them has to be long enough.
KNOWN_WORDS = re.compile(
    rb"change[ _-]?me|secret|password|passwd|procore|prudra|webhooks?|flask|default"
    rb"|example|test(ing)?|dev(elopment)?|admin|token|key|qwerty\w*|abc(def)?\w{0,3}"
    rb"|letmein|dummy|sample|12345\d*|0123\d*|[^a-z0-9]",
    re.IGNORECASE,
)
UNGUESSABLE = 8
SCHEMES = re.compile(rb"(bearer|basic|token)\s+", re.IGNORECASE)


def settings(endpoint: Endpoint) -> Iterator[Finding]:
    yield from _no_secret(endpoint)
    yield from _dropped_factor(endpoint)
    yield from _weak_values(endpoint)
    yield from _shared_values(endpoint)
    yield from _unused_keys(endpoint)


def logger() -> Iterator[Finding]:
    """Whether warnings of the package reach a handler."""
    name = "flask_procore_webhooks"
    log, where = logging.getLogger(name), "set up logging as docs/logging.md shows"
    if log.disabled or log.manager.disable >= logging.WARNING:
        yield warning(f"The logger {name!r} is disabled: {where}.")
    elif log.getEffectiveLevel() > logging.WARNING:
        level = logging.getLevelName(log.getEffectiveLevel())
        yield warning(f"The logger {name!r} drops warnings, its level is {level}.")
    elif not log.hasHandlers():
        yield warning(
            f"The logger {name!r} and its parents have no handler: Python prints"
            " warnings and errors to standard error, drops the rest, and prints nothing"
            f" as soon as a library adds a handler of its own; {where}."
        )
    elif not any(map(_writes_warnings, _handlers(log))):
        yield warning(
            f"No handler of the logger {name!r} and its parents writes warnings:"
            f" {where}."
        )


def _handlers(log: logging.Logger) -> Iterator[logging.Handler]:
    current: logging.Logger | None = log
    while current is not None:
        yield from current.handlers
        current = current.parent if current.propagate else None


def _writes_warnings(handler: logging.Handler) -> bool:
    is_null = isinstance(handler, logging.NullHandler)
    return not is_null and handler.level <= logging.WARNING


def _values(endpoint: Endpoint) -> dict[str, tuple[bytes, ...]]:
    settings = endpoint.settings
    return {"SECRET": settings.secrets, "AUTHORIZATION": settings.authorizations}


def _no_secret(endpoint: Endpoint) -> Iterator[Finding]:
    # A test without a secret uses a random one.
    if not any(_values(endpoint).values()) and not endpoint.app.testing:
        prefix = endpoint.config_prefix
        yield Finding(
            "No secret is configured: every delivery is answered 503. Set"
            f" {prefix}SECRET or {prefix}AUTHORIZATION; the command secret makes a"
            " strong value."
        )


def _dropped_factor(endpoint: Endpoint) -> Iterator[Finding]:
    config, prefix = endpoint.app.config, endpoint.config_prefix
    for key, other in (("SECRET", "AUTHORIZATION"), ("AUTHORIZATION", "SECRET")):
        name = prefix + key
        if name in config and config[name] is None and _values(endpoint)[other]:
            yield warning(
                f"{name} is None, and only {prefix}{other} is checked. Set it (the"
                " environment's null is None), or remove the key."
            )


def _weak_values(endpoint: Endpoint) -> Iterator[Finding]:
    for key, values in _values(endpoint).items():
        name = f"{endpoint.config_prefix}{key} or one of its fallbacks"
        advice = "the command secret makes a strong one."
        if any(len(SCHEMES.sub(b"", value, 1)) < SHORT_SECRET for value in values):
            yield warning(f"{name} is shorter than {SHORT_SECRET} bytes; {advice}")
        elif any(map(_is_guessable, values)):
            yield warning(f"{name} is easy to guess; {advice}")


def _is_guessable(value: bytes) -> bool:
    value = SCHEMES.sub(b"", value, 1)
    return len(set(value)) < VARIETY or len(KNOWN_WORDS.sub(b"", value)) < UNGUESSABLE


def _shared_values(endpoint: Endpoint) -> Iterator[Finding]:
    """Values that authenticate deliveries of another endpoint, too."""
    for other in endpoints(endpoint.app).values():
        if other.name == endpoint.name:
            continue
        theirs = _values(other)
        for key, values in _values(endpoint).items():
            if _have_one_in_common(values, theirs[key]):
                yield warning(
                    f"{endpoint.config_prefix}{key} has a value of"
                    f" {other.config_prefix}{key}: a delivery for one of the endpoints"
                    f" {endpoint.name!r} and {other.name!r} is accepted by the other."
                    " Give each endpoint a secret of its own."
                )
    signing = endpoint.app.secret_key or b""
    if isinstance(signing, str):
        signing = signing.encode("utf-8", "surrogateescape")
    if _have_one_in_common(_values(endpoint)["SECRET"], (signing,)):
        yield warning(
            f"{endpoint.config_prefix}SECRET is the app's SECRET_KEY, which signs"
            " sessions: the sender could forge them. Use another value."
        )


def _have_one_in_common(ours: tuple[bytes, ...], theirs: tuple[bytes, ...]) -> bool:
    return any([hmac.compare_digest(a, b) for a in ours for b in theirs])


def _unused_keys(endpoint: Endpoint) -> Iterator[Finding]:
    """Keys with the endpoint's prefix that no endpoint of the app reads."""
    app, prefix = endpoint.app, endpoint.config_prefix
    read = {
        other.config_prefix + key for other in endpoints(app).values() for key in KEYS
    }
    for name in app.config:
        if name.startswith(prefix) and name not in read:
            yield warning(f"{name} is read by no endpoint of this app.")
