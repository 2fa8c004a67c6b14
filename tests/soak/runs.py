"""The two runs: kills of processes, and outages of the database, during a stream.

Every wait has a deadline. A result without ``problems`` means that each accepted event
had each effect exactly once.
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path

from .app import environment
from .app import LEASE
from .audit import Auditor
from .fleet import Fleet
from .fleet import wait_until
from .outages import Breakable
from .sender import Stream

#: Seconds for the remaining events at the end of a stream.
DRAIN = 180.0
#: Probability that a stall longer than the lease follows a kill.
STALLS = 0.3


@dataclass
class Result:
    name: str
    seed: int
    events: int = 0
    duplicates: int = 0
    #: Kills of processes, or outages of the database.
    kills: int = 0
    restarts: int = 0
    unavailable: int = 0
    lost: tuple[str, ...] = ()
    doubled: tuple[str, ...] = ()
    seconds: float = 0.0
    #: Sentences; each problem makes the run a failure.
    problems: list[str] = field(default_factory=list)
    #: Remarks that do not make the run a failure.
    notes: list[str] = field(default_factory=list)


def crash_run(
    url: str,
    folder: Path,
    *,
    events: int,
    kills: int,
    seed: int,
    seconds: float,
    name: str = "crash",
) -> Result:
    """Kill and stall processes at random moments during a stream of events.

    :param events: minimum of distinct events.
    :param kills: minimum of kills.
    :param seconds: deadline of the stream.
    """
    rng = random.Random(seed)
    with _running(url, url, folder, name, seed, seconds) as run:
        fleet, stream = run.fleet, run.stream
        while fleet.kills < kills or len(stream.accepted) < events:
            if time.monotonic() > stream.deadline:
                run.result.problems.append("the stream did not end in time")
                break
            time.sleep(rng.uniform(0.1, 1.6))
            # Spread the kills evenly over the events.
            if fleet.kills <= kills * len(stream.accepted) / events:
                fleet.kill_one(rng)
                time.sleep(rng.uniform(0, 0.3))
                if rng.random() < STALLS:
                    fleet.stall_one(rng, LEASE + rng.uniform(0, 2))
            fleet.revive()
        # Deliveries may wait for answers of stalled processes.
        fleet.revive(stalled=True)
    run.result.kills = fleet.kills
    return run.result


def outage_run(
    database: Breakable,
    folder: Path,
    *,
    events: int,
    outages: int,
    longest: float,
    seed: int,
    seconds: float,
    name: str = "outage",
) -> Result:
    """Cut and mend the database during a stream of events.

    Processes are not restarted: threads and workers must recover by themselves.

    :param events: minimum of distinct events.
    :param longest: maximum seconds of an outage; more, until a delivery gets 503.
    """
    rng = random.Random(seed)
    url, direct = database.url, database.direct_url
    with _running(url, direct, folder, name, seed, seconds) as run:
        _wait_for_all(run, 0, "at the start")
        pids = run.fleet.running_pids()
        for number in range(1, outages + 1):
            time.sleep(rng.uniform(0.5, 2))
            accepted = len(run.stream.accepted)
            refused = run.stream.statuses[503]
            database.cut()
            time.sleep(rng.uniform(longest / 2, longest))
            run.wait(
                functools.partial(_was_refused, run, refused),
                f"a 503 in outage {number}",
            )
            database.mend()
            mark = run.auditor.last_effect()
            _wait_for_all(run, mark, f"after outage {number}")
            if len(run.stream.accepted) == accepted:
                run.result.problems.append(f"nothing came in after outage {number}")
        run.wait(lambda: len(run.stream.accepted) >= events, "the events")
        if run.fleet.running_pids() != pids:
            run.result.problems.append("a process has ended by itself")
    run.result.kills = outages
    return run.result


@dataclass
class _Run:
    fleet: Fleet
    stream: Stream
    auditor: Auditor
    result: Result

    def wait(self, condition: Callable[[], object], what: str) -> None:
        if not wait_until(condition, self.stream.deadline, 0.2):
            self.result.problems.append(f"waited in vain for {what}")


@contextmanager
def _running(
    url: str, direct_url: str, folder: Path, name: str, seed: int, seconds: float
) -> Iterator[_Run]:
    """Run processes and a stream; at the end, finish all events and count."""
    start = time.monotonic()
    auditor = Auditor(direct_url)
    auditor.create_tables()
    folder.mkdir(parents=True, exist_ok=True)
    fleet = Fleet(environment(url), folder)
    result = Result(name, seed)
    with fleet.running():
        stream = Stream(fleet.port, seed, time.monotonic() + seconds)
        with stream.flowing():
            yield _Run(fleet, stream, auditor, result)
        fleet.revive()
        deadline = time.monotonic() + DRAIN
        if not wait_until(lambda: not auditor.unfinished(), deadline, 0.3):
            result.problems.append(f"{auditor.unfinished()} events were not finished")
        result.restarts = fleet.restarts
    _count(result, fleet, stream, auditor)
    result.seconds = time.monotonic() - start


def _count(result: Result, fleet: Fleet, stream: Stream, auditor: Auditor) -> None:
    verdict = auditor.verdict(stream.accepted)
    result.events = len(stream.accepted)
    result.duplicates = stream.duplicates
    result.unavailable = stream.statuses[503]
    result.lost, result.doubled = verdict.lost, verdict.doubled
    result.problems += [f"lost: {each}" for each in verdict.lost]
    result.problems += [f"doubled: {each}" for each in verdict.doubled]
    result.problems += stream.strange
    result.problems += [f"{id} was never answered 2xx" for id in stream.given_up]
    result.problems += [f"{name} ended by itself" for name in fleet.ended]
    result.notes += [
        f"{stream.unanswered} deliveries got no answer, {fleet.stalls} processes were"
        " stalled"
    ]
    result.notes += fleet.errors()


def _was_refused(run: _Run, before: int) -> bool:
    return run.stream.statuses[503] > before


def _wait_for_all(run: _Run, mark: int, when: str) -> None:
    """Wait until each process that runs events has written an effect."""

    def missing() -> set[int]:
        return set(run.fleet.running_pids()) - run.auditor.pids_since(mark)

    run.wait(lambda: not missing(), f"every process {when}")
