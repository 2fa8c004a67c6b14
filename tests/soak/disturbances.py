"""The disturbances during a stream of events, one function for each kind of run."""

from __future__ import annotations

import random
import time

from .app import LEASE
from .connections import Connections
from .outages import Breakable
from .runs import Result
from .runs import Run
from .runs import running
from .runs import Setup

#: Probability that a stall longer than the lease follows a kill.
STALLS = 0.3
#: Seconds of the stream after the last disturbance.
TAIL = LEASE + 2
#: Share of the events whose subscriber forks, hangs, or ends its process.
TROUBLES = {"Drawings": 0.03, "Inspections": 0.01, "Observations": 0.01}
FORKS = {"Drawings": 0.03}


def crash_run(setup: Setup, *, events: int, kills: int) -> Result:
    """Kill and stall processes at random moments.

    :param events: minimum of distinct events.
    :param kills: minimum of kills.
    """
    rng = random.Random(setup.seed)
    with running(setup, TROUBLES) as run:
        fleet, stream = run.fleet, run.stream
        while fleet.kills < kills or len(stream.accepted) < events:
            if _is_late(run):
                break
            time.sleep(rng.uniform(0.1, 1.6))
            # Spread the kills evenly over the events, if those take longer.
            if fleet.kills <= kills * len(stream.accepted) / events:
                fleet.kill_one(rng)
                time.sleep(rng.uniform(0, 0.3))
                if rng.random() < STALLS:
                    fleet.stall_one(rng, LEASE + rng.uniform(0, 2))
            fleet.revive()
        run.settle()
        time.sleep(TAIL)
    run.result.kills = fleet.kills
    return run.result


def silent_run(setup: Setup, *, events: int) -> Result:
    """Kill every process once the stream has ended: the next ones get no request.

    :param events: minimum of distinct events, most of which are unfinished then.
    """
    with running(setup, {"Daily Logs": 0.9}) as run:
        run.stream.rate *= 4
        run.wait(lambda: len(run.stream.accepted) >= events, "the events")
        run.stream.end()
        left = run.auditor.unfinished()
        run.fleet.kill_all()
        run.settle()
    run.result.kills = run.fleet.kills
    run.result.notes.append(f"{left} events were left when the processes were killed")
    if not left:
        run.result.problems.append("no event was left when the processes were killed")
    return run.result


def outage_run(
    setup: Setup, database: Breakable, *, events: int, outages: int, longest: float
) -> Result:
    """Cut and mend the database.

    Processes are not restarted: threads and workers must recover by themselves.

    :param events: minimum of distinct events.
    :param longest: maximum seconds of an outage; more, until a delivery gets 503.
    """
    rng = random.Random(setup.seed)
    with running(setup, FORKS) as run:
        run.wait_for_all(0, "at the start")
        pids = run.fleet.running_pids()
        for number in range(1, outages + 1):
            time.sleep(rng.uniform(0.5, 2))
            accepted, refused = len(run.stream.accepted), run.stream.statuses[503]
            database.cut()
            time.sleep(rng.uniform(longest / 2, longest))
            _wait_for_503(run, refused, f"a 503 in outage {number}")
            database.mend()
            run.wait_for_all(run.auditor.last_effect(), f"after outage {number}")
            if len(run.stream.accepted) == accepted:
                run.result.problems.append(f"nothing came in after outage {number}")
        run.settle()
        run.wait(lambda: len(run.stream.accepted) >= events, "the events")
        time.sleep(TAIL)
        if run.fleet.running_pids() != pids:
            run.result.problems.append("a process has ended by itself")
    run.result.kills = outages
    return run.result


def connection_run(
    setup: Setup, connections: Connections, *, events: int, ends: int, switches: bool
) -> Result:
    """End connections of the app at the server, and make the server read-only.

    :param events: minimum of distinct events.
    :param ends: minimum of ended connections.
    :param switches: whether the server becomes read-only.
    """
    rng = random.Random(setup.seed)
    ended = switched = 0
    with running(setup, FORKS) as run:
        run.wait_for_all(0, "at the start")
        while ended < ends or len(run.stream.accepted) < events:
            if _is_late(run):
                break
            time.sleep(rng.uniform(0.05, 0.5))
            ended += connections.end_some(rng)
            if switches and rng.random() < 0.1:
                switched += 1
                refused = run.stream.statuses[503]
                with connections.read_only():
                    time.sleep(rng.uniform(0.5, 3))
                    _wait_for_503(run, refused, "a 503 while it is read-only")
                run.wait_for_all(run.auditor.last_effect(), "after it was read-only")
        run.settle()
        time.sleep(TAIL)
    run.result.kills = ended
    run.result.notes.append(f"the server was read-only {switched} times")
    return run.result


def _is_late(run: Run) -> bool:
    late = time.monotonic() > run.stream.deadline
    if late:
        run.result.problems.append("the stream did not end in time")
    return late


def _wait_for_503(run: Run, before: int, what: str) -> None:
    run.wait(lambda: run.stream.statuses[503] > before, what)
