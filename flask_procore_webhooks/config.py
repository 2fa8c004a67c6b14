"""``app.config`` to a frozen :class:`Settings`, with all problems at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from datetime import timedelta
from typing import Any

from .errors import ConfigError

HALF_DAY = 12 * 3600.0
#: A thousand years: a time that lies further ahead is beyond the calendar.
MOST = 1000 * 365 * 24 * 3600.0
CONTROL = re.compile("[\x00-\x1f\x7f]")
#: Lone surrogates, except for the range that stands for bytes of the environment.
NO_BYTES = re.compile("[\ud800-\udc7f\udd00-\udfff]")

KEYS = (
    "SECRET",
    "SECRET_FALLBACKS",
    "AUTHORIZATION",
    "AUTHORIZATION_FALLBACKS",
    "TOLERANCE",
    "MAX_BYTES",
    "DISPATCH",
    "MAX_ATTEMPTS",
    "RETRY_BASE",
    "RETRY_CAP",
    "LEASE",
    "TIMEOUT",
    "THREADS",
    "RETENTION",
    "IGNORE_USER_IDS",
    "IGNORE_APPLICATION_IDS",
    "DATABASE_URI",
)

DISPATCHES = ("background", "worker", "celery", "inline")


@dataclass(frozen=True)
class Settings:
    """The settings of one endpoint. The repr leaves secrets out."""

    #: The current secret first, then the fallbacks; UTF-8 bytes.
    secrets: tuple[bytes, ...] = field(default=(), repr=False)
    authorizations: tuple[bytes, ...] = field(default=(), repr=False)
    #: Seconds, both ways.
    tolerance: float = 300.0
    max_bytes: int = 1024 * 1024
    dispatch: str = "background"
    max_attempts: int = 12
    #: Seconds.
    retry_base: float = 10.0
    retry_cap: float = 3600.0
    lease: float = 300.0
    timeout: float = 3600.0
    #: Of ``background``, in each process.
    threads: int = 4
    #: Seconds.
    retention: float = 7 * 24 * 3600.0
    ignore_user_ids: frozenset[str] = frozenset()
    ignore_application_ids: frozenset[str] = frozenset()
    #: May hold a password, so the repr leaves it out too.
    database_uri: str | None = field(default=None, repr=False)


def read_settings(
    config: Mapping[str, Any],
    prefix: str,
    *,
    own_database: bool = True,
    check_uri: Callable[[str], object] = str,
) -> Settings:
    """Read every key of ``prefix`` from ``config``, once.

    :param own_database: whether the endpoint has neither ``db=`` nor ``session=``, so
        that ``DATABASE_URI`` applies.
    :param check_uri: raises ``ValueError`` for an invalid database URL.
    :raises ConfigError: naming every key that is missing, malformed or misspelt.
    """
    reader = _Reader(config, prefix)
    settings = Settings(
        secrets=reader.secrets("SECRET"),
        authorizations=reader.secrets("AUTHORIZATION"),
        tolerance=reader.number("TOLERANCE", Settings.tolerance, least=1),
        max_bytes=reader.integer("MAX_BYTES", Settings.max_bytes),
        dispatch=reader.dispatch(),
        max_attempts=reader.integer("MAX_ATTEMPTS", Settings.max_attempts),
        retry_base=reader.number("RETRY_BASE", Settings.retry_base),
        retry_cap=reader.number("RETRY_CAP", Settings.retry_cap),
        lease=reader.number("LEASE", Settings.lease, least=1),
        timeout=reader.number("TIMEOUT", Settings.timeout),
        threads=reader.integer("THREADS", Settings.threads),
        retention=reader.number("RETENTION", Settings.retention, least=HALF_DAY),
        ignore_user_ids=reader.ids("IGNORE_USER_IDS"),
        ignore_application_ids=reader.ids("IGNORE_APPLICATION_IDS"),
        database_uri=reader.uri("DATABASE_URI", check_uri),
    )
    reader.check_authentic()
    reader.check_database(settings, own_database)
    reader.check_spelling()
    if reader.problems:
        raise ConfigError(reader.problems)
    return settings


class _Reader:
    """Reads the values of one prefix and collects their problems."""

    def __init__(self, config: Mapping[str, Any], prefix: str) -> None:
        self.config = config
        self.prefix = prefix
        self.problems: list[str] = []

    def problem(self, key: str, text: str) -> None:
        self.problems.append(f"{self.prefix}{key} {text}")

    def get(self, key: str) -> Any:
        return self.config.get(self.prefix + key)

    def text(self, key: str) -> str | None:
        value = self.get(key)
        return None if value is None else self._checked(key, value)

    def uri(self, key: str, check: Callable[[str], object]) -> str | None:
        text = self.text(key)
        try:
            if text:
                check(text)
        except ValueError:
            # Without the error's text, which quotes the password.
            self.problem(key, "is not a database URL.")
        return text

    def secrets(self, key: str) -> tuple[bytes, ...]:
        current = self.text(key)
        fallbacks = self._list(f"{key}_FALLBACKS")
        if fallbacks and self.get(key) is None:
            self.problem(f"{key}_FALLBACKS", f"is set, but {self.prefix}{key} is not.")
        older = (
            self._checked(f"{key}_FALLBACKS[{i}]", value)
            for i, value in enumerate(fallbacks)
        )
        # Bytes of the environment that are not UTF-8 become lone surrogates.
        texts = (current, *older)
        return tuple(t.encode("utf-8", "surrogateescape") for t in texts if t)

    def number(self, key: str, default: float, least: float = 0) -> float:
        value = self.get(key)
        if value is None:
            return default
        if isinstance(value, timedelta):
            value = value.total_seconds()
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.problem(key, f"must be a number of seconds, not {_kind(value)}.")
        elif value > MOST:
            self.problem(key, f"must be at most {MOST:.0f} s.")
        elif not (value > 0 and value >= least):  # NaN is refused too
            self.problem(key, _too_small(key, least))
        else:
            return float(value)
        return default

    def integer(self, key: str, default: int) -> int:
        value = self.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            self.problem(key, f"must be a whole number, not {_kind(value)}.")
        elif value < 1:
            self.problem(key, "must be at least 1.")
        else:
            return value
        return default

    def ids(self, key: str) -> frozenset[str]:
        found = set()
        for value in self._list(key):
            if isinstance(value, bool) or not isinstance(value, (str, int)):
                self.problem(key, f"must hold ids, not {_kind(value)}.")
            else:
                found.add(str(value).strip())
        return frozenset(found - {""})

    def dispatch(self) -> str:
        value = self.get("DISPATCH")
        if value is None:
            # A test sees the effects of its delivery as soon as it is answered.
            return "inline" if self.config.get("TESTING") else Settings.dispatch
        if value in DISPATCHES:
            return str(value)
        known = ", ".join(map(repr, DISPATCHES))
        self.problem("DISPATCH", f"must be one of {known}, not {value!r}.")
        return Settings.dispatch

    def check_authentic(self) -> None:
        names = ("SECRET", "AUTHORIZATION")
        if all(self.get(name) is None for name in names):
            either = " or ".join(self.prefix + name for name in names)
            self.problems.append(
                f"Set {either}: without one of them no delivery can be authentic."
                ' python -c "import secrets; print(secrets.token_urlsafe(32))" makes'
                " a strong one."
            )

    def check_database(self, settings: Settings, own_database: bool) -> None:
        if settings.database_uri and not own_database:
            self.problem(
                "DATABASE_URI", "has no effect with db= or session=; remove it."
            )

    def check_spelling(self) -> None:
        for name in self.config:
            key = name.removeprefix(self.prefix)
            if name.startswith(self.prefix) and key not in KEYS:
                self._check_unknown(key)

    def _check_unknown(self, key: str) -> None:
        # Another endpoint may have a longer prefix: PROCORE_WEBHOOK_SANDBOX_SECRET.
        if any(key.endswith(f"_{known}") for known in KEYS):
            return
        close = difflib.get_close_matches(key.upper(), KEYS, 1)
        hint = f"did you mean {self.prefix}{close[0]}?" if close else "remove it."
        self.problem(key, f"is not a setting; {hint}")

    def _list(self, key: str) -> list[Any]:
        value = self.get(key)
        if value is None:
            return []
        if isinstance(value, (list, tuple, set, frozenset)):
            return list(value)
        self.problem(key, f"must be a list, not {_kind(value)}.")
        return []

    def _checked(self, key: str, value: Any) -> str | None:
        if not isinstance(value, str):
            self.problem(key, f"must be text, not {_kind(value)}{_quoting(value)}.")
        elif not value:
            self.problem(key, "is empty.")
        elif not value.strip():
            self.problem(key, "is blank.")
        elif value != value.strip():
            self.problem(key, "has white space around it (a stray newline?).")
        elif CONTROL.search(value):
            self.problem(key, "holds a control character, which a header cannot hold.")
        elif NO_BYTES.search(value):
            self.problem(key, "holds a lone surrogate, which cannot be encoded.")
        else:
            return value
        return None


def _kind(value: object) -> str:
    return type(value).__name__


def _quoting(value: object) -> str:
    if isinstance(value, (int, float)):
        return "; from_prefixed_env parses JSON, so write it in double quotes there"
    return ""


def _too_small(key: str, least: float) -> str:
    if key == "RETENTION":
        return (
            "must be at least 12 h (43200 s): Procore repeats a delivery that long,"
            " and an event that is removed earlier would be handled twice."
        )
    return f"must be at least {least:g} s." if least else "must be more than 0 s."
