"""``app.config`` to a frozen :class:`Settings`, with all problems at once."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from typing import Any

from ..errors import ConfigError
from .api import ApiSettings
from .api import KEYS as API_KEYS
from .api import read_api
from .reader import HALF_DAY
from .reader import Reader
from .values import Dated
from .values import dropped_factor
from .values import spelling_problems
from .values import value_warnings

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
    *API_KEYS,
)


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
    api: ApiSettings = ApiSettings()
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
    reader = Reader(config, prefix)
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
        dispatch=reader.dispatch(Settings.dispatch),
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
        api=read_api(reader),
        warnings=(
            *dropped_factor(config, prefix),
            *value_warnings(f"{prefix}SECRET", secrets, dated_secrets),
            *value_warnings(
                f"{prefix}AUTHORIZATION", authorizations, dated_authorizations
            ),
        ),
    )
    if settings.database_uri and not own_database:
        reader.problem("DATABASE_URI", "has no effect with db= or session=; remove it.")
    reader.problems.extend(spelling_problems(config, prefix, KEYS))
    reader.problems.extend(further(settings))
    if reader.problems:
        raise ConfigError(reader.problems)
    return settings
