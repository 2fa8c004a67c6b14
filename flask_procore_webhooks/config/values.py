"""Values in ``app.config``: texts that are secrets, their problems and weaknesses."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from datetime import date
from datetime import datetime
from datetime import time
from datetime import timedelta
from datetime import timezone
from time import time as unix_time
from typing import Any

#: Bytes of a secret below which a warning is logged.
SHORT_SECRET = 16
#: Different bytes of a value that is hard to guess, at least.
VARIETY = 8
#: Words and rows of keys; what is left of a value without them has to be long enough.
KNOWN_WORDS = re.compile(
    rb"change[ _-]?me|secret|password|passwd|procore|prudra|webhooks?|flask|default"
    rb"|example|test(ing)?|dev(elopment)?|admin|token|key|qwerty\w*|abc(def)?\w{0,3}"
    rb"|letmein|dummy|sample|12345\d*|0123\d*|[^a-z0-9\x80-\xff]",
    re.IGNORECASE,
)
#: Bytes that are left, at least.
UNGUESSABLE = 8
#: The scheme of an ``Authorization`` value, which is no secret.
SCHEME = re.compile(rb"(bearer|basic|token)\s+", re.IGNORECASE)
#: Characters of a value that a :class:`ConfigError` shows.
LONGEST_SHOWN = 60
CONTROL = re.compile("[\x00-\x1f\x7f]")
#: Lone surrogates, except for the range that stands for bytes of the environment.
NO_BYTES = re.compile("[\ud800-\udc7f\udd00-\udfff]")
HEADER_NAME = re.compile(rb"authorization\s*:", re.IGNORECASE)
MAKE_A_SECRET = 'python -c "import secrets; print(secrets.token_urlsafe(32))"'

#: A thousand years: a time that lies further ahead is beyond the calendar.
MOST = 1000 * 365 * 24 * 3600.0


@dataclass(frozen=True)
class Dated:
    """A fallback that is accepted until the end of a day, in UTC."""

    value: bytes = field(repr=False)
    until: date

    def ended(self, now: float) -> bool:
        """Whether the day is over.

        :param now: Unix seconds.
        """
        after = datetime.combine(self.until, time(), timezone.utc) + timedelta(days=1)
        return now >= after.timestamp()


def in_force(
    plain: Sequence[bytes], dated: Sequence[Dated], now: float
) -> Sequence[bytes]:
    """The values that are accepted now: dated ones until the end of their day.

    :param now: Unix seconds.
    """
    return [*plain, *(each.value for each in dated if not each.ended(now))]


def secret_problem(value: object) -> str | None:
    """Why ``value`` cannot be a secret or an ``Authorization`` value, if so.

    The text holds no part of the value.
    """
    if not isinstance(value, str):
        return f"must be text, not {type(value).__name__}{_quoting(value)}."
    if not value:
        return "is empty."
    if not value.strip():
        return "is blank."
    if value != value.strip():
        return "has white space around it (a stray newline?)."
    if CONTROL.search(value):
        return "holds a control character, which a header cannot hold."
    if NO_BYTES.search(value):
        return "holds a lone surrogate, which cannot be encoded."
    return None


def to_bytes(text: str) -> bytes:
    """The UTF-8 bytes; bytes of the environment that are not UTF-8 stay as they are."""
    return text.encode("utf-8", "surrogateescape")


def to_date(value: object) -> date | None:
    """The day in ``"2027-01-31"`` or a ``date``; ``None`` for anything else."""
    if isinstance(value, date) and not isinstance(value, datetime):
        day = value
    elif isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\d", value):
        try:
            day = date.fromisoformat(value)
        except ValueError:
            return None
    else:
        return None
    return day if day.year < date.max.year else None


def shown(value: object) -> str:
    """The value for a message: one line of ASCII, shortened. Never for a secret."""
    try:
        text = " ".join(ascii(value).split())
    except Exception:
        # An integer of many digits has no text; a host's class may have a broken repr.
        return f"this {type(value).__name__}"
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def without_secret(prefix: str) -> str:
    """What follows from having no secret, and what to do."""
    return (
        f"Deliveries are answered 503 until {prefix}SECRET or {prefix}AUTHORIZATION is"
        f" set. {MAKE_A_SECRET} makes a strong one."
    )


def dropped_factor(config: Mapping[str, Any], prefix: str) -> list[str]:
    """A warning of an explicit ``None`` beside a secret.

    ``from_prefixed_env`` reads ``null`` as ``None``, which drops one of two factors.
    """
    names = [f"{prefix}SECRET", f"{prefix}AUTHORIZATION"]
    unset = [name for name in names if config.get(name) is None]
    if len(unset) != 1 or unset[0] not in config:
        return []
    (other,) = set(names) - set(unset)
    return [
        f"{unset[0]} is None, so that only {other} is checked. Set it, or remove the"
        " key."
    ]


def value_warnings(
    key: str, values: tuple[bytes, ...], dated: tuple[Dated, ...]
) -> list[str]:
    """Warnings of values that are easy to guess, misspelt, or fallbacks that ended.

    :param key: the key of the current value, which is the first of ``values``.
    """
    fallback = f"a value of {key}_FALLBACKS"
    named = [(key if i == 0 else fallback, value) for i, value in enumerate(values)]
    named += [(fallback, each.value) for each in dated]
    found = []
    for name, value in named:
        if weakness := _weakness(value):
            found.append(f"{name} {weakness} {MAKE_A_SECRET} makes a strong one.")
        if key.endswith("AUTHORIZATION") and HEADER_NAME.match(value):
            found.append(
                f"{name} begins with the name of the header, which is no part of the"
                " value that is sent; remove the name."
            )
    ended = [each for each in dated if each.ended(unix_time())]
    return found + [
        f"{fallback} was valid until {each.until} and is ignored; remove it."
        for each in ended
    ]


def without_scheme(value: bytes) -> bytes:
    """The part of an ``Authorization`` value that is secret."""
    return SCHEME.sub(b"", value, count=1) if SCHEME.match(value) else value


def _weakness(value: bytes) -> str | None:
    """Why the value is easy to guess, if so."""
    hidden = without_scheme(value)
    if len(hidden) < SHORT_SECRET:
        size = f"{len(value)} byte{'s' if len(value) > 1 else ''}"
        if hidden != value:
            size += f", {len(value) - len(hidden)} of them the scheme,"
        return f"has {size} and may be guessed; use at least {SHORT_SECRET}."
    left = KNOWN_WORDS.sub(b"", hidden)
    if len(set(hidden)) < VARIETY or len(left) < UNGUESSABLE:
        return "is easy to guess: it has few different characters, or known words."
    return None


def _quoting(value: object) -> str:
    if isinstance(value, (int, float)):
        return "; from_prefixed_env parses JSON, so write it in double quotes there"
    return ""


def spelling_problems(
    config: Mapping[str, Any], prefix: str, known: Collection[str]
) -> Iterator[str]:
    """The keys with that prefix that are no settings, with the nearest setting."""
    for name in config:
        key = name.removeprefix(prefix)
        if not name.startswith(prefix) or key in known or _is_of_another(key, known):
            continue
        other = "give the blueprint another config_prefix="
        if close := difflib.get_close_matches(key.upper(), known, 1):
            hint = f"did you mean {prefix}{close[0]}? If it is yours, {other}."
        else:
            hint = f"remove it, or {other}."
        yield f"{name} is not a setting; {hint}"


def _is_of_another(key: str, known: Collection[str]) -> bool:
    """Whether the key belongs to an endpoint with a longer prefix: ``SANDBOX_SECRET``.

    ``DATABASE_URL`` ends with the setting ``URL``, but is a misspelt ``DATABASE_URI``.
    """
    near = difflib.get_close_matches(key, known, 1, 0.85)
    is_longer = any(key.endswith(f"_{each}") for each in known)
    return is_longer and all(key.endswith(f"_{each}") for each in near)
