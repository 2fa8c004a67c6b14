"""Reader: the values of one prefix in ``app.config``, and their problems."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from .values import Dated
from .values import MOST
from .values import secret_problem
from .values import shown
from .values import to_bytes
from .values import to_date

HALF_DAY = 12 * 3600.0
#: Python converts larger integers to text in quadratic time, or not at all.
LARGEST_COUNT = 10**12
LONGEST_ID = 80

DISPATCHES = ("background", "worker", "celery", "inline")


class Reader:
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

    def dispatch(self, default: str) -> str:
        value = self.get("DISPATCH")
        if value is None:
            # A test sees the effects of its delivery as soon as it is answered.
            return "inline" if self.config.get("TESTING") else default
        if value in DISPATCHES:
            return str(value)
        known = ", ".join(map(repr, DISPATCHES))
        self.problem("DISPATCH", f"must be one of {known}, not {shown(value)}.")
        return default

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
