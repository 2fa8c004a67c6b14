"""``app.config`` to a frozen :class:`Settings`, with all problems at once."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from datetime import timedelta
from typing import Any

from ..errors import ConfigError
from .values import Dated
from .values import dropped_factor
from .values import MOST
from .values import secret_problem
from .values import shown
from .values import spelling_problems
from .values import to_bytes
from .values import to_date
from .values import value_warnings

HALF_DAY = 12 * 3600.0
#: Python converts larger integers to text in quadratic time, or not at all.
LARGEST_COUNT = 10**12
LONGEST_ID = 80

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
    "MAX_AGE",
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
    #: Fallbacks that are accepted until a day.
    dated_secrets: tuple[Dated, ...] = field(default=(), repr=False)
    authorizations: tuple[bytes, ...] = field(default=(), repr=False)
    dated_authorizations: tuple[Dated, ...] = field(default=(), repr=False)
    #: Seconds, both ways.
    tolerance: float = 300.0
    max_bytes: int = 1024 * 1024
    dispatch: str = "background"
    #: So many that the waits take 24 hours if each is as short as it can be.
    max_attempts: int = 57
    #: Seconds.
    retry_base: float = 10.0
    retry_cap: float = 3600.0
    lease: float = 300.0
    timeout: float = 3600.0
    max_age: float = 7 * 24 * 3600.0
    #: Of ``background``, in each process.
    threads: int = 4
    #: Seconds.
    retention: float = 7 * 24 * 3600.0
    ignore_user_ids: frozenset[str] = frozenset()
    ignore_application_ids: frozenset[str] = frozenset()
    #: May hold a password, so the repr leaves it out too.
    database_uri: str | None = field(default=None, repr=False)
    #: What weakens the authentication, one sentence each, without values.
    warnings: tuple[str, ...] = field(default=(), compare=False, repr=False)

    @property
    def has_secret(self) -> bool:
        """Whether a secret or an ``Authorization`` value is configured."""
        return bool(self.secrets or self.authorizations)


def read_settings(
    config: Mapping[str, Any],
    prefix: str,
    *,
    own_database: bool = True,
    check_uri: Callable[[str], object] = str,
    problems: Iterable[str] = (),
    further: Callable[[Settings], Iterable[str]] = lambda settings: (),
) -> Settings:
    """Read every key of ``prefix`` from ``config``, once.

    :param own_database: whether the endpoint has neither ``db=`` nor ``session=``, so
        that ``DATABASE_URI`` applies.
    :param check_uri: raises ``ValueError`` for an invalid database URL, with a text
        that quotes nothing of it.
    :param problems: of the registration, reported together with those of the keys.
    :param further: returns further problems, for the settings that were read.
    :raises ConfigError: naming every key that is malformed or misspelt. Without any
        secret the settings are valid, and :attr:`Settings.has_secret` is false.
    """
    reader = _Reader(config, prefix)
    reader.problems.extend(problems)
    secrets, dated_secrets = reader.secrets("SECRET")
    authorizations, dated_authorizations = reader.secrets("AUTHORIZATION")
    settings = Settings(
        secrets=secrets,
        dated_secrets=dated_secrets,
        authorizations=authorizations,
        dated_authorizations=dated_authorizations,
        tolerance=reader.number("TOLERANCE", Settings.tolerance, least=1),
        max_bytes=reader.integer("MAX_BYTES", Settings.max_bytes),
        dispatch=reader.dispatch(),
        max_attempts=reader.integer("MAX_ATTEMPTS", Settings.max_attempts),
        retry_base=reader.number("RETRY_BASE", Settings.retry_base),
        retry_cap=reader.number("RETRY_CAP", Settings.retry_cap),
        lease=reader.number("LEASE", Settings.lease, least=1),
        timeout=reader.number("TIMEOUT", Settings.timeout),
        max_age=reader.number("MAX_AGE", Settings.max_age),
        threads=reader.integer("THREADS", Settings.threads),
        retention=reader.number("RETENTION", Settings.retention, least=HALF_DAY),
        ignore_user_ids=reader.ids("IGNORE_USER_IDS"),
        ignore_application_ids=reader.ids("IGNORE_APPLICATION_IDS"),
        database_uri=reader.uri("DATABASE_URI", check_uri),
        warnings=(
            *dropped_factor(config, prefix),
            *value_warnings(f"{prefix}SECRET", secrets, dated_secrets),
            *value_warnings(
                f"{prefix}AUTHORIZATION", authorizations, dated_authorizations
            ),
        ),
    )
    reader.check_database(settings, own_database)
    reader.problems.extend(spelling_problems(config, prefix, KEYS))
    reader.problems.extend(further(settings))
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
        except ValueError as error:
            # Its text quotes nothing of the URL.
            self.problem(key, f"is wrong: {error}.")
        return text

    def secrets(self, key: str) -> tuple[tuple[bytes, ...], tuple[Dated, ...]]:
        """The current value with the undated fallbacks, and the dated fallbacks."""
        current = self.text(key)
        plain, dated = [to_bytes(current)] if current else [], []
        fallbacks = self._list(f"{key}_FALLBACKS")
        if fallbacks and self.get(key) is None:
            self.problem(f"{key}_FALLBACKS", f"is set, but {self.prefix}{key} is not.")
        for i, value in enumerate(fallbacks):
            name = f"{key}_FALLBACKS[{i}]"
            if isinstance(value, (list, tuple)) and len(value) == 2:
                dated += self._dated(name, value)
            elif to_date(value):
                self.problem(name, "is a day; write the fallback as [text, day].")
            elif text := self._checked(name, value):
                plain.append(to_bytes(text))
        return tuple(plain), tuple(dated)

    def _dated(self, name: str, pair: Sequence[Any]) -> list[Dated]:
        until = to_date(pair[1])
        if until is None:
            self.problem(name, 'must be text or [text, day], the day as "2027-01-31".')
        text = self._checked(name, pair[0])
        return [Dated(to_bytes(text), until)] if text and until else []

    def number(self, key: str, default: float, least: float = 0) -> float:
        value = self.get(key)
        if value is None:
            return default
        if isinstance(value, timedelta):
            value = value.total_seconds()
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.problem(key, f"must be a number of seconds, not {shown(value)}.")
        elif value > MOST:
            self.problem(key, f"must be at most {MOST:.0f} s, not {shown(value)}.")
        elif not (value > 0 and value >= least):  # NaN is refused too
            self.problem(key, _too_small(key, least, value))
        else:
            return float(value)
        return default

    def integer(self, key: str, default: int) -> int:
        value = self.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            self.problem(key, f"must be a whole number, not {shown(value)}.")
        elif value < 1:
            self.problem(key, f"must be at least 1, not {shown(value)}.")
        elif value > LARGEST_COUNT:
            self.problem(key, f"must be at most {LARGEST_COUNT}, not {shown(value)}.")
        else:
            return value
        return default

    def ids(self, key: str) -> frozenset[str]:
        found = set()
        for value in self._list(key):
            if isinstance(value, bool) or not isinstance(value, (str, int)):
                self.problem(key, f"must hold ids, not {shown(value)}.")
            elif isinstance(value, int) and abs(value) >= 10**LONGEST_ID:
                self.problem(key, f"must hold ids of at most {LONGEST_ID} digits.")
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
        self.problem("DISPATCH", f"must be one of {known}, not {shown(value)}.")
        return Settings.dispatch

    def check_database(self, settings: Settings, own_database: bool) -> None:
        if settings.database_uri and not own_database:
            self.problem(
                "DATABASE_URI", "has no effect with db= or session=; remove it."
            )

    def _list(self, key: str) -> list[Any]:
        value = self.get(key)
        if value is None:
            return []
        if isinstance(value, (list, tuple, set, frozenset)):
            return list(value)
        what = _kind(value) if "FALLBACKS" in key else shown(value)
        self.problem(key, f"must be a list, not {what}.")
        return []

    def _checked(self, key: str, value: Any) -> str | None:
        if problem := secret_problem(value):
            self.problem(key, problem)
            return None
        return str(value)


def _kind(value: object) -> str:
    return type(value).__name__


def _too_small(key: str, least: float, value: object) -> str:
    if key == "RETENTION":
        return (
            f"must be at least 12 h (43200 s), not {shown(value)}: Procore repeats a"
            " delivery that long, and an event that is removed earlier would be handled"
            " twice."
        )
    bound = f"at least {least:g} s" if least else "more than 0 s"
    return f"must be {bound}, not {shown(value)}."
