"""Seeded plans: what changes at Procore, and which deliveries follow.

All times are seconds of Procore's since the start of the play.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from collections.abc import Iterable
from dataclasses import dataclass
from dataclasses import field

#: Seconds from the first to the last delivery of a burst, and its deliveries.
BURST_SECONDS = 7.0
BURST_SIZES = (2, 3, 4, 5)
#: Seconds between two deliveries of a burst: at most 4 gaps in ``BURST_SECONDS``.
GAPS = (0.1, 1.7)
#: Seconds from a change to its delivery.
PIPELINE = (0.05, 0.3)
#: Resources with a burst each, in a scenario of bursts.
BURSTS = 4
#: Seconds between the starts of two bursts.
APART = 0.6
FIELDS = ("title", "status", "ball_in_court")
PILOT, OTHER = "3001", "3002"


@dataclass(frozen=True)
class Change:
    """A change of one resource at Procore; ``fields`` is ``None`` for a deletion."""

    at: float
    project: str
    resource: str
    fields: dict[str, int] | None


@dataclass(frozen=True)
class Delivery:
    """A delivery of an event, with the time of the change as its timestamp."""

    at: float
    id: str
    project: str
    resource: str
    reason: str
    changed_at: float


@dataclass(frozen=True)
class Plan:
    changes: tuple[Change, ...]
    deliveries: tuple[Delivery, ...]


@dataclass
class Story:
    """The changes and deliveries of one resource, in the making."""

    rng: random.Random
    resource: str
    project: str
    version: int = 0
    changes: list[Change] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)

    def change(self, at: float, *, deletes: bool = False) -> None:
        self.version += 1
        fields = None if deletes else dict.fromkeys(FIELDS, self.version)
        self.changes.append(Change(at, self.project, self.resource, fields))

    def deliver(
        self,
        at: float,
        changed_at: float,
        reason: str = "update",
        id: str | None = None,
    ) -> None:
        id = id or f"{self.resource}-{len(self.deliveries)}"
        self.deliveries.append(
            Delivery(at, id, self.project, self.resource, reason, changed_at)
        )

    def delay(self) -> float:
        return self.rng.uniform(*PIPELINE)

    def gaps(self, start: float) -> list[float]:
        """The times of a burst from ``start`` on."""
        times = [start]
        for _ in range(self.rng.choice(BURST_SIZES) - 1):
            times.append(times[-1] + self.rng.uniform(*GAPS))
        return times


def plan_of(stories: Iterable[Story]) -> Plan:
    """The plan of several resources, in the order of time."""
    stories = list(stories)
    changes = (change for story in stories for change in story.changes)
    deliveries = (each for story in stories for each in story.deliveries)
    return Plan(
        tuple(sorted(changes, key=lambda change: change.at)),
        tuple(sorted(deliveries, key=lambda each: each.at)),
    )


def _bursts(rng: random.Random, tell: Callable[[Story, float], None]) -> Plan:
    """A burst for each of several resources, in two projects in turn."""
    stories = []
    for number in range(BURSTS):
        story = Story(rng, f"{4001 + number}", (PILOT, OTHER)[number % 2])
        tell(story, number * APART)
        stories.append(story)
    return plan_of(stories)


def one_timestamp(rng: random.Random) -> Plan:
    """One change, told by several events with its timestamp."""

    def tell(story: Story, start: float) -> None:
        story.change(start)
        for at in story.gaps(start + story.delay()):
            story.deliver(at, start)

    return _bursts(rng, tell)


def own_timestamps(rng: random.Random) -> Plan:
    """Several changes, each with an event of its own; two may overtake each other."""

    def tell(story: Story, start: float) -> None:
        for at in story.gaps(start):
            story.change(at)
            story.deliver(at + story.delay(), at)

    return _bursts(rng, tell)


def one_id(rng: random.Random) -> Plan:
    """One change, whose event is delivered several times."""

    def tell(story: Story, start: float) -> None:
        story.change(start)
        for at in story.gaps(start + story.delay()):
            story.deliver(at, start, id=f"{story.resource}-0")

    return _bursts(rng, tell)


def update_first(rng: random.Random) -> Plan:
    """A resource is created and updated; the update is delivered first."""

    def tell(story: Story, start: float) -> None:
        updated = start + rng.uniform(*GAPS)
        story.change(start)
        story.change(updated)
        arrived = updated + story.delay()
        story.deliver(arrived, updated)
        story.deliver(arrived + rng.uniform(*GAPS), start, "create")

    return _bursts(rng, tell)


def deletion(rng: random.Random) -> Plan:
    """Updates and a deletion, which overtakes the last update."""

    def tell(story: Story, start: float) -> None:
        *times, last = story.gaps(start)
        for at in times:
            story.change(at)
        story.change(last, deletes=True)
        arrived = last + story.delay()
        for at in times[:-1]:
            story.deliver(at + story.delay(), at)
        story.deliver(arrived, last, "delete")
        story.deliver(arrived + rng.uniform(*GAPS), times[-1])

    return _bursts(rng, tell)


def stream(rng: random.Random) -> Plan:
    """A resource that changes every two seconds for 45 seconds."""
    story = Story(rng, "4001", PILOT)
    at = 0.0
    while at < 45:
        story.change(at)
        story.deliver(at + story.delay(), at)
        at += rng.uniform(1.5, 2.5)
    return plan_of([story])


def fan_out(rng: random.Random, size: int = 2000) -> Plan:
    """An import: each of many resources of one project changes once."""
    stories = []
    for number in range(size):
        story = Story(rng, f"{10_000 + number}", PILOT)
        at = number * 0.01
        story.change(at)
        story.deliver(at + story.delay(), at)
        stories.append(story)
    return plan_of(stories)
