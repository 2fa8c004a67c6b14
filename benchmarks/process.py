"""Process: events a second that one process runs, from the first to the last."""

from __future__ import annotations

import json
import subprocess
import time
import uuid
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

from .databases import Databases
from .databases import Missing
from .databases import POSTGRESQL
from .databases import SQLITE
from .figures import Figure
from .figures import interleaved
from .figures import Measured
from .figures import OURS
from .figures import Part
from .figures import WrongAnswer
from .queues import CELERY
from .queues import CONCURRENCY
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
    (WORKER, POSTGRESQL, True),
    (WORKER, SQLITE, False),
    (WORKER, SQLITE, True),
    (OUR_CELERY, POSTGRESQL, False),
    (OUR_CELERY, POSTGRESQL, True),
    (CELERY, REDIS, False),
    (PROCRASTINATE, POSTGRESQL, False),
)


def run(
    databases: Databases,
    folder: Path,
    rounds: int,
    events: int,
    leave_out: tuple[str, ...] = (),
) -> Part:
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
        every = [*_candidates(part, databases, folder, events, leave_out)]
        for _, one in every:
            stack.callback(one.clear)
        interleaved(every, rounds, _measure)
    part.measured = [measured for measured, _ in every]
    _compare(part)
    return part


def _compare(part: Part) -> None:
    ours = OURS, _where(WORKER, POSTGRESQL, False)
    for name, limit, other in (
        (
            "worker against procrastinate",
            2.2,
            (PROCRASTINATE, f"{POSTGRESQL}, {NOTHING}"),
        ),
        ("worker against Celery's empty task", 1.0, (CELERY, f"{REDIS}, {NOTHING}")),
    ):
        part.compare(f"rate of the {name}", limit, "rate", ours, other, at_most=False)


def _candidates(
    part: Part,
    databases: Databases,
    folder: Path,
    events: int,
    leave_out: tuple[str, ...],
) -> Iterator[Candidate]:
    for who, kind, writes in EVERYBODY:
        measured = _measured(who, kind, writes)
        try:
            _require(who, kind, leave_out)
            url = "" if kind == REDIS else databases.make(kind)
            unique = uuid.uuid4().hex
            file, prefix = str(folder / unique), f"benchmarks:{unique}:"
            candidate = runner(Job(who, events, file, url, writes, prefix))
            # Or there is no Redis.
            candidate.clear()
        except Missing as missing:
            part.left_out.append(f"{measured.name}: {missing}")
            continue
        yield measured, candidate


def _measured(who: str, kind: str, writes: bool) -> Measured:
    figures = {"rate": Figure(), "cpu": Figure()}
    if who in (WORKER, OUR_CELERY):
        return Measured(OURS, _where(who, kind, writes), figures)
    return Measured(who, f"{kind}, {NOTHING}", figures)


def _where(who: str, kind: str, writes: bool) -> str:
    on = f"{kind} and {REDIS}" if who == OUR_CELERY else kind
    return f"{who}, {on}, {A_ROW if writes else NOTHING}"


def _require(who: str, kind: str, leave_out: tuple[str, ...]) -> None:
    package = {OUR_CELERY: "celery", CELERY: "celery"}.get(who, who)
    if kind in leave_out or package.capitalize() in leave_out or who in leave_out:
        raise Missing("not wanted")
    if who != WORKER and not find_spec(package):
        raise Missing(f"{package} is not installed")


def _measure(candidate: Candidate) -> None:
    measured, one = candidate
    told = work_off(one)
    for name, value in (
        ("rate", (one.job.count - 1) / told["seconds"]),
        ("cpu", told["cpu"] / one.job.count * 1e6),
    ):
        measured.figures[name].values.append(value)


def work_off(one: Runner) -> dict[str, float]:
    """Fill the queue, and have it run by one process; what that tells."""
    file, log = Path(one.job.file), Path(f"{one.job.file}.log")
    file.unlink(missing_ok=True)
    one.fill()
    with started(one.job.command, {}, log) as process:
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
