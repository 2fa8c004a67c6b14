"""Memory: what a server and a worker hold after many events, beside after a few."""

from __future__ import annotations

import functools
from pathlib import Path

from .bench import Bench
from .candidates import DATABASE
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
from .figures import WrongAnswer
from .load import CONNECTIONS
from .load import GUNICORN
from .load import THREADS
from .process import wait_for
from .queues import CONCURRENCY
from .queues import Job
from .queues import runner
from .queues import WORKER
from .servers import free_port
from .servers import running
from .servers import started
from .servers import wsgi_command

DONE = "procore_webhook_event WHERE due_at IS NULL"


def run(bench: Bench, rounds: int) -> Part:
    few, many = (100, 500) if bench.is_quick else (1000, 200_000)
    about = (
        f"The resident memory of one process after {few:,} events and after {many:,}:"
        f" gunicorn's gthread worker of {THREADS} threads, which receives them over"
        f" {CONNECTIONS} connections, and the command worker with {CONCURRENCY}"
        " threads, which then runs them."
    )
    part = Part("memory", "Memory", about)
    kind = _kind(part, bench)
    server, worker = (
        Measured(OURS, f"{what}, {kind}", figures("last", "first"))
        for what in (GUNICORN, WORKER)
    )
    try:
        for _ in range(rounds):
            url = bench.url(kind)
            _receive(url, bench.folder, few, many, server)
            _work(url, bench.folder, few, many, worker)
    except Missing as missing:
        part.left_out.append(f"{GUNICORN} and {WORKER}: {missing}")
        return part
    part.measured = [server, worker]
    return part


def _kind(part: Part, bench: Bench) -> str:
    """PostgreSQL, or SQLite where there is none."""
    try:
        bench.url(POSTGRESQL)
    except Missing as missing:
        part.left_out.append(f"{POSTGRESQL}: {missing}")
        return SQLITE
    return POSTGRESQL


def _receive(url: str, folder: Path, few: int, many: int, measured: Measured) -> None:
    port = free_port()
    env, log = {WHO: OURS, DATABASE: url}, folder / "memory.log"
    with running(wsgi_command(GUNICORN, port, THREADS), port, env, log) as pid:
        (worker,) = children(pid)
        deliver(few, port, CONNECTIONS)
        first = _resident(worker)
        deliver(many - few, port, CONNECTIONS)
        measured.add(first=first, last=_resident(worker))
    if (found := rows(url, "procore_webhook_event")) != many:
        raise WrongAnswer(f"gunicorn: {many} events, {found} rows")


def _work(url: str, folder: Path, few: int, many: int, measured: Measured) -> None:
    file, log = folder / "memory.json", folder / "memory.log"
    file.unlink(missing_ok=True)
    command = runner(Job(WORKER, many, str(file), url)).command
    with started(command, {}, log) as process:
        for name, count in (("first", few), ("last", many)):
            are_done = functools.partial(_are_done, url, count)
            wait_for(are_done, count, process, log)
            measured.add(**{name: _resident(process.pid)})


def _are_done(url: str, count: int) -> bool:
    return rows(url, DONE) >= count


def _resident(pid: int) -> float:
    """MiB."""
    for line in _proc(pid, "status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise Missing("/proc tells nothing of memory")


def children(pid: int) -> list[int]:
    return [int(one) for one in _proc(pid, f"task/{pid}/children").read_text().split()]


def _proc(pid: int, name: str) -> Path:
    """:raises Missing: there is no such file here."""
    path = Path(f"/proc/{pid}/{name}")
    if not path.exists():
        raise Missing("there is no /proc")
    return path
