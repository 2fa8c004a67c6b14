"""Receive, in process: the time of one WSGI call, from environment to answer."""

from __future__ import annotations

import time
from collections.abc import Iterable
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flask import Flask

from .bench import Bench
from .candidates import BARE_CANDIDATE
from .candidates import Candidate
from .candidates import HAND_CANDIDATE
from .candidates import ORM_CANDIDATE
from .candidates import OUR_CANDIDATE
from .candidates import OUR_DB_CANDIDATE
from .databases import Missing
from .databases import POSTGRESQL
from .databases import rows
from .databases import SQLITE
from .databases import TMPFS
from .deliveries import deliveries
from .figures import figures
from .figures import interleaved
from .figures import Measured
from .figures import Part
from .figures import WrongAnswer

MOST = (OUR_CANDIDATE, OUR_DB_CANDIDATE, HAND_CANDIDATE)
#: The bare route stores nothing: where is all the same.
EVERYBODY = (
    ("", (BARE_CANDIDATE,)),
    (TMPFS, MOST),
    (SQLITE, (*MOST, ORM_CANDIDATE)),
    (POSTGRESQL, (*MOST, ORM_CANDIDATE)),
)


@dataclass
class Running:
    candidate: Candidate
    app: Flask
    url: str
    measured: Measured
    answered: int = 0


def run(bench: Bench, rounds: int) -> Part:
    about = (
        "One WSGI call from one thread; what stores commits each event by itself, and"
        " on a disk waits for it. Ours with an engine of its own, and in the host's"
        ' database by db=; with DISPATCH="worker", so that nothing else is done'
        " meanwhile. The bare route reads the body and stores nothing. Processor time"
        " is this process's: not the disk's, and not that of PostgreSQL."
    )
    part = Part("receive", "Receive, in process", about)
    calls = 10 if bench.is_quick else 100
    running = [*_running(part, bench)]
    interleaved(running, 1, lambda one: _measure(one, calls))
    for one in running:
        one.measured.forget()
    interleaved(running, rounds, lambda one: _measure(one, calls))
    for one in running:
        _check(one)
    part.measured = [one.measured for one in running]
    return part


def _running(part: Part, bench: Bench) -> Iterator[Running]:
    for kind, candidates in EVERYBODY:
        for candidate in candidates:
            measured = Measured(candidate.name, kind, figures("time", "cpu"))
            try:
                url = bench.url(kind) if kind else ""
                yield Running(candidate, candidate.make(url), url, measured)
            except (ImportError, Missing) as missing:
                part.left_out.append(f"{measured.name}: {missing}")


def _measure(running: Running, calls: int) -> None:
    environs = [delivery.environ() for delivery in deliveries(calls)]
    start, cpu_start = time.perf_counter(), time.process_time()
    statuses = answers(running.app, environs)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu_start
    if set(statuses) != {"200 OK"}:
        raise WrongAnswer(f"{running.candidate.name} answered {set(statuses)}")
    running.answered += len(statuses)
    running.measured.add(time=seconds / calls * 1e6, cpu=cpu / calls * 1e6)


def answers(flask: Flask, environs: Iterable[dict[str, Any]]) -> list[str]:
    """The status of each."""
    app, statuses = flask.wsgi_app, []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        statuses.append(status)

    for environ in environs:
        answer = app(environ, start_response)
        b"".join(answer)
        answer.close()  # type: ignore[attr-defined]
    return statuses


def _check(running: Running) -> None:
    """Every event that was answered is there, and no other."""
    if table := running.candidate.table:
        found = rows(running.url, table)
        if found != running.answered:
            name = running.candidate.name
            raise WrongAnswer(f"{name}: {running.answered} events, {found} rows")
