"""Processes that run events, as they have noted in the state table."""

from __future__ import annotations

from typing import Any
from typing import TypedDict

from ..endpoint import Endpoint
from ..inbox.seen import SEEN
from ..inbox.seen import states

#: Seconds after which a process that notes itself once a minute is gone.
GONE = 300.0


class Process(TypedDict):
    """A process that has run events of the endpoint within a day."""

    host: str
    pid: int
    mode: str
    threads: int | None
    runs: int | None
    #: ``subscriber``, ``event`` and ``seconds`` of the longest call at that time.
    longest: dict[str, Any] | None
    #: Since its last note; a process makes one a minute.
    seen_seconds: float


def processes(endpoint: Endpoint) -> list[Process]:
    """The processes that run the endpoint's events, latest note first."""
    store = endpoint.store
    now = store.db_now()
    found: list[Process] = []
    for state in states(store, SEEN):
        value = state["value"]
        names = value.get("endpoints")
        host, pid, _ = state["name"].removeprefix(SEEN).rsplit(":", 2)
        if names is None or endpoint.name in names:
            found.append(
                {
                    "host": host,
                    "pid": int(pid),
                    "mode": str(value.get("mode")),
                    "threads": value.get("threads"),
                    "runs": value.get("runs"),
                    "longest": value.get("longest"),
                    "seen_seconds": round(
                        max(0.0, (now - state["at"]).total_seconds()), 1
                    ),
                }
            )
    return found


def alive(found: list[Process]) -> list[Process]:
    """The processes that have noted themselves within five minutes."""
    return [each for each in found if each["seen_seconds"] < GONE]


class HangingRun(TypedDict):
    """A call of a subscriber that goes on for longer than a lease."""

    subscriber: str
    event: str
    #: When the process made its last note.
    seconds: float
    host: str
    pid: int


def hanging_runs(endpoint: Endpoint, found: list[Process]) -> list[HangingRun]:
    """The longest call of each live process, if it goes on for longer than a lease."""
    return [
        {
            "subscriber": str(call["subscriber"]),
            "event": str(call["event"]),
            "seconds": float(call["seconds"]),
            "host": process["host"],
            "pid": process["pid"],
        }
        for process in alive(found)
        if (call := process["longest"])
        and float(call["seconds"]) > endpoint.settings.lease
    ]


def longest_run(found: list[Process]) -> dict[str, Any] | None:
    """The longest call of a subscriber that is going on in one of the processes."""
    longest = [each["longest"] for each in found if each["longest"]]
    return max(longest, key=lambda each: float(each.get("seconds") or 0), default=None)
