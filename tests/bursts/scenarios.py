"""The scenarios: a plan, the option sets that are played, and the API's faults."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from .plans import deletion
from .plans import fan_out
from .plans import one_id
from .plans import one_timestamp
from .plans import own_timestamps
from .plans import Plan
from .plans import stream
from .plans import update_first


@dataclass(frozen=True)
class Trouble:
    """A fault of the API: ``"hangs"``, ``"limits"`` (429) or ``"away"``."""

    kind: str
    seconds: float
    start: float = 0.0


@dataclass(frozen=True)
class Scenario:
    name: str
    #: For the table.
    about: str
    plan: Callable[[random.Random], Plan]
    #: Names of option sets.
    options: tuple[str, ...]
    #: Seconds after a change until the API shows its last field.
    stale: float = 0.0
    trouble: Trouble | None = None
    #: Seconds from the last delivery to the start of the workers; 0: they start first.
    waits: float = 0.0
    #: Whether each resource has a single burst, shorter than ``settle_max``.
    is_burst: bool = True
    #: Seconds of an answer of the API, at least and at most. They are not scaled.
    latency: tuple[float, float] = (0.03, 0.12)

    @property
    def is_import(self) -> bool:
        """Whether many resources change once each."""
        return self.name in ("fan_out", "backlog")


BURST_OPTIONS = ("plain", "latest_only", "settle", "lag", "one_at_a_time")
MORE_OPTIONS = (*BURST_OPTIONS, "reread", "when")

SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "one_timestamp",
            "a burst of 2 to 5 events of one change, in at most 7 s",
            one_timestamp,
            MORE_OPTIONS,
        ),
        Scenario(
            "own_timestamps",
            "a burst of 2 to 5 changes, in at most 7 s",
            own_timestamps,
            MORE_OPTIONS,
        ),
        Scenario(
            "one_id",
            "one event, delivered 2 to 5 times",
            one_id,
            ("plain", "settle", "lag"),
        ),
        Scenario(
            "update_first", "`update` before `create`", update_first, BURST_OPTIONS
        ),
        Scenario(
            "deletion",
            "1 to 4 changes and a deletion; the API answers 404",
            deletion,
            BURST_OPTIONS,
        ),
        Scenario(
            "stale",
            "a burst of 2 to 5 changes; the API shows each in full after 1.5 s",
            own_timestamps,
            MORE_OPTIONS,
            stale=1.5,
        ),
        Scenario(
            "stream",
            "a change every 2 s for 45 s",
            stream,
            BURST_OPTIONS,
            is_burst=False,
        ),
        Scenario(
            "hangs",
            "a burst; the API hangs for 20 s",
            own_timestamps,
            BURST_OPTIONS,
            trouble=Trouble("hangs", 20),
        ),
        Scenario(
            "limits",
            "a burst; the API answers 429 for 10 s",
            own_timestamps,
            BURST_OPTIONS,
            trouble=Trouble("limits", 10),
        ),
        Scenario(
            "away",
            "a burst; the API is away for 22 s",
            own_timestamps,
            BURST_OPTIONS,
            trouble=Trouble("away", 22),
        ),
        Scenario(
            "fan_out",
            "an import: 2,000 resources of one project",
            fan_out,
            ("plain", "project"),
            latency=(0.0, 0.01),
        ),
        Scenario(
            "backlog",
            "an import of 200 rows, while no worker runs for 180 s",
            partial(fan_out, size=200),
            ("project",),
            waits=180,
        ),
    )
}
