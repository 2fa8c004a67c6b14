"""What was measured, and how it compares."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from typing import TypeVar

T = TypeVar("T")

OURS = "flask-procore-webhooks"


class WrongAnswer(Exception):
    """A candidate did not do what it is measured by."""


@dataclass
class Figure:
    """One quantity of one candidate: a value for each round."""

    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def middle_half(self) -> tuple[float, float]:
        """Between these two lie half of the rounds."""
        if len(self.values) < 2:
            return self.values[0], self.values[0]
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return low, high


@dataclass
class Measured:
    """The figures of one candidate in one place, such as "gunicorn, SQLite"."""

    who: str
    where: str
    figures: dict[str, Figure]

    @property
    def name(self) -> str:
        return f"{self.who}, {self.where}" if self.where else self.who

    def forget(self) -> None:
        """What was measured so far was to warm up."""
        for figure in self.figures.values():
            figure.values.clear()


@dataclass(frozen=True)
class Target:
    """A ratio that we want to reach."""

    name: str
    limit: float
    reached: float
    at_most: bool = True

    @property
    def is_met(self) -> bool:
        if self.at_most:
            return self.reached <= self.limit
        return self.reached >= self.limit

    @property
    def wanted(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.limit:g}"


@dataclass
class Part:
    """One of the benchmarks: what it measured, what it had to leave out."""

    name: str
    title: str
    about: str
    measured: list[Measured] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def find(self, who: str, where: str) -> Measured | None:
        for one in self.measured:
            if (one.who, one.where) == (who, where):
                return one
        return None

    def compare(
        self,
        name: str,
        limit: float,
        key: str,
        ours: tuple[str, str],
        other: tuple[str, str],
        *,
        at_most: bool = True,
    ) -> None:
        """Add a target, unless one of the two was left out."""
        mine, theirs = self.find(*ours), self.find(*other)
        if mine and theirs:
            ratio = mine.figures[key].median / theirs.figures[key].median
            self.targets.append(Target(name, limit, ratio, at_most))


def interleaved(
    candidates: Sequence[T], rounds: int, measure: Callable[[T], None]
) -> None:
    """Measure each candidate once a round; who is first changes from round to round."""
    for number in range(rounds):
        for candidate in _rotated(candidates, number):
            measure(candidate)


def _rotated(candidates: Sequence[T], number: int) -> Iterable[T]:
    first = number % len(candidates)
    return [*candidates[first:], *candidates[:first]]
