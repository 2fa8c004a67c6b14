"""Idle: the processor time of a process that has nothing to do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import ExitStack
from pathlib import Path

from .bench import Bench
from .candidates import BARE
from .candidates import DATABASE
from .candidates import DISPATCH
from .candidates import WHO
from .client import deliver
from .databases import Missing
from .databases import POSTGRESQL
from .databases import rows
from .databases import SQLITE
from .figures import figures
from .figures import Measured
from .figures import OURS
from .figures import Part
from .load import CONNECTIONS
from .load import GUNICORN
from .load import THREADS
from .memory import children
from .memory import DONE
from .process import wait_for
from .queues import Job
from .queues import runner
from .queues import WORKER
from .servers import free_port
from .servers import running
from .servers import started
from .servers import wsgi_command

BACKGROUND = f"{GUNICORN}, background"
#: After the last event, before it counts: the tally of outcomes is written late.
PAUSE = 15.0

#: What is measured, and the id of the process.
Idle = tuple[Measured, int]


def run(bench: Bench, rounds: int) -> Part:
    pause, seconds = (0.5, 1.0) if bench.is_quick else (PAUSE, 30.0)
    about = (
        f"The processor time of one process in {seconds:g} s without a request, after"
        " it has received or run some events, in per cent of a core: gunicorn's"
        ' gthread worker with DISPATCH="background", which also runs events, and the'
        " command worker. They are idle side by side. gunicorn itself wakes up once a"
        " second, as beside it the bare route shows."
    )
    part = Part("idle", "A process that has nothing to do", about)
    try:
        with ExitStack() as stack:
            idle = [*_idle(part, bench, stack)]
            time.sleep(pause)
            for _ in range(rounds):
                _measure(idle, seconds)
    except Missing as missing:
        part.left_out.append(f"idle: {missing}")
        return part
    part.measured = [measured for measured, _ in idle]
    return part


def _measure(idle: list[Idle], seconds: float) -> None:
    before = [_cpu_seconds(pid) for _, pid in idle]
    start = time.monotonic()
    time.sleep(seconds)
    passed = time.monotonic() - start
    for (measured, pid), then in zip(idle, before, strict=True):
        measured.add(cpu=(_cpu_seconds(pid) - then) / passed * 100)


def _idle(part: Part, bench: Bench, stack: ExitStack) -> Iterator[Idle]:
    for who, what, kind in (
        (BARE, GUNICORN, ""),
        (OURS, BACKGROUND, SQLITE),
        (OURS, WORKER, SQLITE),
        (OURS, BACKGROUND, POSTGRESQL),
        (OURS, WORKER, POSTGRESQL),
    ):
        where = f"{what}, {kind}" if kind else what
        measured = Measured(who, where, figures("cpu"))
        try:
            url = bench.url(kind) if kind else ""
            if what == WORKER:
                yield measured, stack.enter_context(_worker(bench, url))
                continue
            bench.require(GUNICORN)
            env = {WHO: who, DATABASE: url, DISPATCH: "background"}
            yield measured, stack.enter_context(_server(bench, env))
        except Missing as missing:
            part.left_out.append(f"{measured.name}: {missing}")


@contextmanager
def _server(bench: Bench, env: dict[str, str]) -> Iterator[int]:
    port = free_port()
    log = bench.folder / f"{port}.log"
    with running(wsgi_command(GUNICORN, port, THREADS), port, env, log) as pid:
        (worker,) = children(pid)
        deliver(20, port, CONNECTIONS)
        yield worker


@contextmanager
def _worker(bench: Bench, url: str) -> Iterator[int]:
    file = bench.folder / f"idle-{free_port()}"
    one = runner(Job(WORKER, 20, str(file), url))
    one.fill()
    log = Path(f"{file}.log")
    with started(one.command, {}, log) as process:
        wait_for(lambda: rows(url, DONE) >= 20, 20, process, log)
        yield process.pid


def _cpu_seconds(pid: int) -> float:
    """What a process and its threads have used, by its clock.

    :raises Missing: there is no such clock here.
    """
    try:
        # CPUCLOCK_SCHED of the process, as clock_getcpuclockid() makes it.
        return time.clock_gettime(~pid << 3 | 2)
    except (AttributeError, OSError) as error:
        raise Missing(f"no clock of another process: {error}") from None
