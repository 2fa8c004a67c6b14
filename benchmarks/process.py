"""Process: events a second that one process runs, from the first to the last."""

from __future__ import annotations

import json
import subprocess
import time
import uuid
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from .bench import Bench
from .databases import Missing
from .databases import POSTGRESQL
from .databases import SQLITE
from .earlier import export
from .figures import figures
from .figures import interleaved
from .figures import Measured
from .figures import OURS
from .figures import Part
from .figures import WrongAnswer
from .queues import CELERY
from .queues import CONCURRENCY
from .queues import EARLIER
from .queues import Job
from .queues import OUR_CELERY
from .queues import PREFETCH
from .queues import PROCRASTINATE
from .queues import Runner
from .queues import runner
from .queues import WORKER
from .servers import last_line
from .servers import started

#: Events a second that the slowest machine runs.
SLOWEST = 20
NOTHING, A_ROW = "does nothing", "writes a row"
REDIS = "Redis"

Candidate = tuple[Measured, Runner]

#: Who, on what, and whether its subscriber writes a row.
EVERYBODY = (
    (WORKER, POSTGRESQL, False),
    (EARLIER, POSTGRESQL, False),
    (PROCRASTINATE, POSTGRESQL, False),
    (WORKER, SQLITE, False),
    (EARLIER, SQLITE, False),
    (WORKER, POSTGRESQL, True),
    (EARLIER, POSTGRESQL, True),
    (WORKER, SQLITE, True),
    (EARLIER, SQLITE, True),
    (OUR_CELERY, POSTGRESQL, False),
    (CELERY, REDIS, False),
)


def run(bench: Bench, rounds: int) -> Part:
    events = 100 if bench.is_quick else 2000
    about = (
        f"{events} events are in the queue before a worker starts; timed from the first"
        f" run to the last. One process each, which runs {CONCURRENCY} at a time:"
        f" threads of ours and of Celery's, coroutines of procrastinate's. Celery with"
        f" late acknowledgement, no results, and {PREFETCH} messages prefetched a"
        " thread. Every event has to be done once, and every row has to be there once."
        " Processor time is that of the worker."
    )
    part = Part("process", "Run events", about)
    with ExitStack() as stack:
        every = [*_candidates(part, bench, events)]
        for _, one in every:
            stack.callback(one.clear)
        interleaved(every, rounds, _measure)
    part.measured = [measured for measured, _ in every]
    return part


def _candidates(part: Part, bench: Bench, events: int) -> Iterator[Candidate]:
    for who, kind, writes in EVERYBODY:
        measured = _measured(who, kind, writes)
        try:
            yield measured, _runner(bench, who, kind, writes, events)
        except Missing as missing:
            part.left_out.append(f"{measured.name}: {missing}")


def _runner(bench: Bench, who: str, kind: str, writes: bool, events: int) -> Runner:
    """:raises Missing: it is not wanted, or something that it needs is not here."""
    bench.require(who, kind)
    package = {OUR_CELERY: CELERY}.get(who, who)
    bench.require(package)
    if package in (CELERY, PROCRASTINATE) and not find_spec(package.lower()):
        raise Missing(f"{package.lower()} is not installed")
    unique = uuid.uuid4().hex
    job = Job(
        who,
        events,
        str(bench.folder / unique),
        "" if kind == REDIS else bench.url(kind),
        writes,
        f"benchmarks:{unique}:",
    )
    if who == EARLIER:
        job = replace(job, folder=str(export(bench.folder)))
    one = runner(job)
    # Or there is no Redis.
    one.clear()
    return one


def _measured(who: str, kind: str, writes: bool) -> Measured:
    name = OURS if who in (WORKER, OUR_CELERY, EARLIER) else who
    return Measured(name, where(who, kind, writes), figures("rate", "cpu"))


def where(who: str, kind: str, writes: bool = False) -> str:
    what = A_ROW if writes else NOTHING
    if who == OUR_CELERY:
        return f"{who}, {kind} and {REDIS}, {what}"
    return (
        f"{kind}, {what}"
        if who in (CELERY, PROCRASTINATE)
        else f"{who}, {kind}, {what}"
    )


def _measure(candidate: Candidate) -> None:
    measured, one = candidate
    told = work_off(one)
    measured.add(
        rate=(one.job.count - 1) / told["seconds"],
        cpu=told["cpu"] / one.job.count * 1e6,
    )


def work_off(one: Runner) -> dict[str, float]:
    """Fill the queue, and have it run by one process; what that tells."""
    file, log = Path(one.job.file), Path(f"{one.job.file}.log")
    file.unlink(missing_ok=True)
    one.fill()
    with started(one.command, {}, log, Path(one.job.folder)) as process:
        count = one.job.count
        wait_for(file.exists, count, process, log)
        wait_for(lambda: one.done() == count, count, process, log)
    told: dict[str, float] = json.loads(file.read_text())
    if told["runs"] != one.job.count or one.done() != one.job.count:
        raise WrongAnswer(
            f"{one.job.who}: {told['runs']:g} runs of {one.job.count} events,"
            f" of which {one.done()} are done: {last_line(log.read_bytes())}"
        )
    return told


def wait_for(
    is_over: Callable[[], bool],
    count: int,
    process: subprocess.Popen[bytes],
    log: Path,
) -> None:
    """Wait until a worker has run so many events."""
    deadline = time.monotonic() + 60 + count / SLOWEST
    while not is_over():
        if process.poll() is not None or time.monotonic() > deadline:
            said = last_line(log.read_bytes())
            raise WrongAnswer(f"a worker has not run all of its events: {said}")
        time.sleep(0.05)
