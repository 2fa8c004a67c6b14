"""What a play has shown of one option set."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from dataclasses import field

from .options import OptionSet
from .scenarios import Scenario

#: Worker processes, and the threads of each.
WORKERS, CONCURRENCY = 2, 4
THREADS = WORKERS * CONCURRENCY


@dataclass(frozen=True)
class Call:
    """A call of a subscriber, from the beginning to the end, by ``time.time``."""

    project: str
    resource: str
    event: str
    began: float
    ended: float
    #: Whether it has succeeded; else what it wrote is rolled back.
    is_good: bool


@dataclass
class Burst:
    """The events of one resource (with ``key="project"``: of one project)."""

    key: str
    project: str
    #: Whether the option set fetches it at all.
    is_wanted: bool = True
    #: When each event was sent, and when that was answered; without its repetitions.
    deliveries: list[tuple[float, float]] = field(default_factory=list)
    events: set[str] = field(default_factory=set)
    #: When each request came in that showed the state.
    fetches: list[float] = field(default_factory=list)
    #: Requests without an answer, or with 429.
    refused: int = 0
    #: Pairs of calls for one resource that ran at the same time.
    overlaps: int = 0
    #: The same of calls that succeeded: the older state may be stored last.
    races: int = 0
    #: Resources whose copy differs from Procore's state at the end.
    wrong: list[str] = field(default_factory=list)

    @property
    def first_fetch(self) -> float:
        """Seconds from the first answer to the first fetch."""
        return self.fetches[0] - self.deliveries[0][1]

    def parts(self, seconds: float) -> list[list[tuple[float, float]]]:
        """The deliveries in parts, with so many seconds between two of them, or more.

        An event came in at some moment from its delivery to the answer.
        """
        parts = [self.deliveries[:1]]
        for before, after in zip(self.deliveries, self.deliveries[1:], strict=False):
            if after[1] - before[0] > seconds:
                parts.append([])
            parts[-1].append(after)
        return parts


@dataclass
class Outcome:
    scenario: Scenario
    options: OptionSet
    factor: float
    bursts: list[Burst]
    #: Events that are not done at the end, by status.
    unfinished: dict[str, int] = field(default_factory=dict)

    @property
    def wanted(self) -> list[Burst]:
        return [burst for burst in self.bursts if burst.is_wanted]

    @property
    def name(self) -> str:
        return f"{self.scenario.name}, {self.options.name}"

    @property
    def wrong(self) -> list[str]:
        return [resource for burst in self.bursts for resource in burst.wrong]

    def counts(self) -> list[int]:
        """The fetches of each burst."""
        return sorted(len(burst.fetches) for burst in self.wanted)

    def first_fetch(self) -> float:
        """The median, in Procore's seconds."""
        firsts = [burst.first_fetch for burst in self.wanted if burst.fetches]
        return statistics.median(firsts or [0.0]) * self.factor


def overlaps(calls: Iterable[Call]) -> int:
    """How many of the calls began before an earlier one of them had ended."""
    count, end = 0, float("-inf")
    for call in sorted(calls, key=lambda call: call.began):
        count += call.began < end
        end = max(end, call.ended)
    return count
