"""Runs: processes, a stream of events, and at the end the count of what was lost.

Every wait has a deadline. A result without ``problems`` means that each accepted event
had each effect exactly once, and ended in the promised time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field
from datetime import datetime
from datetime import timezone
from pathlib import Path

from .app import environment
from .audit import Auditor
from .fleet import Fleet
from .fleet import wait_until
from .modes import Mode
from .sender import Stream


@dataclass
class Result:
    name: str
    seed: int
    events: int = 0
    duplicates: int = 0
    #: Kills of processes, outages of the database, or ends of its connections.
    kills: int = 0
    restarts: int = 0
    unavailable: int = 0
    lost: tuple[str, ...] = ()
    doubled: tuple[str, ...] = ()
    #: Seconds: the slowest event after the last disturbance, and what is promised.
    slowest: float = 0.0
    promise: float = 0.0
    seconds: float = 0.0
    #: Sentences; each problem makes the run a failure.
    problems: list[str] = field(default_factory=list)
    #: Remarks that do not make the run a failure.
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Setup:
    """What all runs need.

    :param direct_url: of the database for the harness, which outages do not cut.
    :param folder: for logs.
    :param seconds: deadline of the stream.
    """

    name: str
    mode: Mode
    url: str
    direct_url: str
    folder: Path
    seed: int
    seconds: float


@dataclass
class Run:
    fleet: Fleet
    stream: Stream
    auditor: Auditor
    result: Result
    #: When the last disturbance ended, in UTC without a zone.
    calm: datetime

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Wait for ``condition``; the deadline of the stream makes it a problem."""
        if not wait_until(condition, self.stream.deadline, 0.2):
            self.result.problems.append(f"waited in vain for {what}")

    def wait_for_all(self, mark: int, when: str) -> None:
        """Wait until each process that runs events has written an effect."""

        def missing() -> set[int]:
            return set(self.fleet.running_pids()) - self.auditor.pids_since(mark)

        self.wait(lambda: not missing(), f"every process {when}")

    def settle(self) -> None:
        """End the disturbances: every process runs, and the events make no trouble."""
        self.stream.troubles = {}
        self.fleet.start()
        self.calm = _now()


@contextmanager
def running(setup: Setup, troubles: Mapping[str, float]) -> Iterator[Run]:
    """Run processes and a stream; at the end, finish all events and count.

    No delivery is sent after the block.
    """
    start = time.monotonic()
    setup.folder.mkdir(parents=True, exist_ok=True)
    marks = setup.folder / "marks"
    marks.mkdir()
    auditor = Auditor(setup.direct_url)
    auditor.create_tables()
    env = environment(setup.url, MARKS=str(marks.resolve()))
    fleet = Fleet(setup.mode, env, setup.folder)
    result = Result(setup.name, setup.seed, promise=setup.mode.promise)
    with fleet.running():
        deadline = time.monotonic() + setup.seconds
        stream = Stream(fleet.port, setup.seed, deadline, troubles)
        run = Run(fleet, stream, auditor, result, _now())
        with stream.flowing():
            yield run
        _finish(run)
    _count(run)
    result.seconds = time.monotonic() - start


def _finish(run: Run) -> None:
    """Wait for the last events; a process that crashes now is started again."""

    def is_finished() -> bool:
        run.fleet.revive()
        return not run.auditor.unfinished()

    # Twice, so that the slowest event is measured even if it breaks the promise.
    deadline = time.monotonic() + 2 * run.result.promise
    if not wait_until(is_finished, deadline, 0.3):
        number = run.auditor.unfinished()
        run.result.problems.append(f"{number} events were not finished")
    run.result.restarts = run.fleet.restarts


def _count(run: Run) -> None:
    result, stream, fleet = run.result, run.stream, run.fleet
    verdict = run.auditor.verdict(stream.accepted)
    result.events = len(stream.accepted)
    result.duplicates = stream.duplicates
    result.unavailable = stream.statuses[503]
    result.lost, result.doubled = verdict.lost, verdict.doubled
    result.slowest = run.auditor.slowest(run.calm)
    if result.slowest > result.promise:
        result.problems.append(
            f"an event took {result.slowest:.1f} s after the last disturbance, and"
            f" {result.promise:.1f} s are promised"
        )
    result.problems += [f"lost: {each}" for each in verdict.lost]
    result.problems += [f"doubled: {each}" for each in verdict.doubled]
    result.problems += stream.strange
    result.problems += [f"{id} was never answered 2xx" for id in stream.given_up]
    result.problems += [f"{name} ended by itself" for name in fleet.ended]
    result.notes += [
        f"{stream.unanswered} deliveries got no answer, {fleet.stalls} processes were"
        f" stalled, {fleet.exhausted} workers ended because their threads hung"
    ]
    result.notes += fleet.errors()


def _now() -> datetime:
    return datetime.now(timezone.utc).replace(tzinfo=None)
