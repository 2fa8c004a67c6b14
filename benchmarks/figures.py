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

    def over(self, other: Figure) -> Figure:
        """The ratios to ``other``, one for each round.

        A disturbance that lasts for a round is in both values, and not in their ratio.
        """
        pairs = zip(self.values, other.values, strict=True)
        return Figure([mine / theirs for mine, theirs in pairs])


@dataclass
class Measured:
    """The figures of one candidate in one place, such as "gunicorn, SQLite"."""

    who: str
    where: str
    figures: dict[str, Figure]

    @property
    def name(self) -> str:
        return f"{self.who}, {self.where}" if self.where else self.who

    def add(self, **values: float) -> None:
        """Add the values of a round."""
        for name, value in values.items():
            self.figures[name].values.append(value)

    def forget(self) -> None:
        """What was measured so far was to warm up."""
        for figure in self.figures.values():
            figure.values.clear()


@dataclass
class Part:
    """One of the benchmarks: what it measured, what it had to leave out."""

    name: str
    title: str
    about: str
    measured: list[Measured] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def find(self, who: str, where: str) -> Measured | None:
        for one in self.measured:
            if (one.who, one.where) == (who, where):
                return one
        return None


def figures(*names: str) -> dict[str, Figure]:
    return {name: Figure() for name in names}


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
