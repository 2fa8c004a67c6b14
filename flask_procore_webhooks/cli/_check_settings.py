"""The part of ``check`` that examines settings, secrets and logging."""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Iterator
from collections.abc import Sequence

from ..config import KEYS
from ..config.values import in_force
from ..config.values import to_bytes
from ..config.values import without_scheme
from ..config.values import without_secret
from ..endpoint import Endpoint
from ..endpoint import endpoints
from ..log import log
from ._findings import Finding
from ._findings import warning
from ._output import silenced

#: With more attempts, ``inline`` may need more deliveries than Procore makes: about 22.
REPEATS = 20


def settings(endpoint: Endpoint) -> Iterator[Finding]:
    yield from _no_secret(endpoint)
    # As they are logged at registration.
    yield from map(warning, endpoint.settings.warnings)
    yield from _inline_attempts(endpoint)
    yield from _shared_values(endpoint)
    yield from _unused_keys(endpoint)


def _inline_attempts(endpoint: Endpoint) -> Iterator[Finding]:
    """More attempts than the sender repeats a delivery."""
    most, prefix = endpoint.settings.max_attempts, endpoint.config_prefix
    is_given = endpoint.app.config.get(f"{prefix}DISPATCH") is not None
    # Without the setting, it is inline because the app is under test.
    if is_given and endpoint.dispatch == "inline" and most > REPEATS:
        yield warning(
            f"DISPATCH is 'inline', and {prefix}MAX_ATTEMPTS is {most}: an attempt is a"
            " delivery, and Procore gives up after about 22 of them, within 12 hours,"
            " and discards its whole queue. Set it to 12, so that an event that always"
            " fails is dead before."
        )


def logger() -> Iterator[Finding]:
    """Whether warnings of the package reach a handler."""
    name, where = log.name, "set up logging as docs/logging.md shows"
    before = silenced()
    disabled = before.disabled if before else log.manager.disable
    if log.disabled or disabled >= logging.WARNING:
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
    elif not any(map(_writes_warnings, _handlers())):
        yield warning(
            f"No handler of the logger {name!r} and its parents writes warnings:"
            f" {where}."
        )


def _handlers() -> Iterator[logging.Handler]:
    current: logging.Logger | None = log
    while current is not None:
        yield from current.handlers
        current = current.parent if current.propagate else None


def _writes_warnings(handler: logging.Handler) -> bool:
    is_null = isinstance(handler, logging.NullHandler)
    return not is_null and handler.level <= logging.WARNING


def _no_secret(endpoint: Endpoint) -> Iterator[Finding]:
    if endpoint.settings.has_secret:
        return
    if not endpoint.app.testing:
        yield Finding(without_secret(endpoint.config_prefix))
        return
    yield Finding(
        "TESTING is true and no secret is configured: each process has a random secret,"
        " and only deliver() of this process is accepted. Set"
        f" {endpoint.config_prefix}SECRET or {endpoint.config_prefix}AUTHORIZATION."
    )


def _values(endpoint: Endpoint) -> dict[str, Sequence[bytes]]:
    """The values that are accepted now, by key."""
    settings, now = endpoint.settings, time.time()
    kinds = {
        "SECRET": (settings.secrets, settings.dated_secrets),
        "AUTHORIZATION": (settings.authorizations, settings.dated_authorizations),
    }
    return {key: in_force(plain, dated, now) for key, (plain, dated) in kinds.items()}


def _shared_values(endpoint: Endpoint) -> Iterator[Finding]:
    """Values that authenticate deliveries of another endpoint, or sign sessions."""
    ours = _values(endpoint)
    for other in endpoints(endpoint.app).values():
        if other.name == endpoint.name:
            continue
        theirs = _values(other)
        for key, values in ours.items():
            if _have_one_in_common(values, theirs[key]):
                yield warning(
                    f"{endpoint.config_prefix}{key} has a value of"
                    f" {other.config_prefix}{key}: a delivery for one of the endpoints"
                    f" {endpoint.name!r} and {other.name!r} is accepted by the other."
                    " Give each endpoint a secret of its own."
                )
    signing = _signing_keys(endpoint)
    for key, values in ours.items():
        if _have_one_in_common([without_scheme(value) for value in values], signing):
            yield warning(
                f"{endpoint.config_prefix}{key} is the app's SECRET_KEY, which signs"
                " sessions: the sender could forge them. Use another value."
            )


def _signing_keys(endpoint: Endpoint) -> list[bytes]:
    """The keys that sign the app's sessions."""
    fallbacks = endpoint.app.config.get("SECRET_KEY_FALLBACKS") or []
    keys = [endpoint.app.secret_key, *fallbacks]
    texts = [to_bytes(each) if isinstance(each, str) else each for each in keys]
    return [each for each in texts if isinstance(each, bytes)]


def _have_one_in_common(ours: Sequence[bytes], theirs: Sequence[bytes]) -> bool:
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
