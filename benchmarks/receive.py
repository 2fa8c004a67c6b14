"""Receive, in process: the time of one WSGI call, from environment to answer."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from flask import Flask

from .candidates import BARE
from .candidates import BY_HAND
from .candidates import Candidate
from .candidates import CANDIDATES
from .databases import Databases
from .databases import Missing
from .databases import POSTGRESQL
from .databases import rows
from .databases import SQLITE
from .deliveries import deliveries
from .figures import Figure
from .figures import interleaved
from .figures import Measured
from .figures import OURS
from .figures import Part
from .figures import WrongAnswer


@dataclass
class Running:
    candidate: Candidate
    app: Flask
    url: str
    measured: Measured
    answered: int = 0


def run(
    databases: Databases, rounds: int, calls: int, leave_out: tuple[str, ...] = ()
) -> Part:
    about = (
        "One WSGI call from one thread; what stores commits each event by itself. Ours"
        ' with DISPATCH="worker", so that nothing else is done meanwhile. The bare'
        " route reads the body and stores nothing. Processor time is this process's:"
        " not the disk's, and not that of PostgreSQL."
    )
    part = Part("receive", "Receive, in process", about)
    running = [*_running(part, databases, leave_out)]
    interleaved(running, 1, lambda one: _measure(one, calls))
    for one in running:
        one.measured.forget()
    interleaved(running, rounds, lambda one: _measure(one, calls))
    for one in running:
        _check(one)
    part.measured = [one.measured for one in running]
    _compare(part)
    return part


def _compare(part: Part) -> None:
    for kind, limit, other in (
        (SQLITE, 2.0, (BARE, "")),
        (POSTGRESQL, 1.25, (BY_HAND, POSTGRESQL)),
    ):
        name = f"receive on {kind} against the {other[0]}"
        part.compare(name, limit, "time", (OURS, kind), other)


def _running(
    part: Part, databases: Databases, leave_out: tuple[str, ...]
) -> Iterable[Running]:
    for kind in (SQLITE, POSTGRESQL):
        if kind in leave_out:
            part.left_out.append(f"{kind}: not wanted")
            continue
        for candidate in CANDIDATES:
            if candidate.table is None and kind != SQLITE:
                continue
            where = kind if candidate.table else ""
            try:
                url = databases.make(kind)
                app = candidate.make(url)
            except (ImportError, Missing) as missing:
                part.left_out.append(f"{candidate.name}, {where}: {missing}")
                continue
            measured = Measured(candidate.name, where, _figures())
            yield Running(candidate, app, url, measured)


def _figures() -> dict[str, Figure]:
    return {"time": Figure(), "cpu": Figure()}


def _measure(running: Running, calls: int) -> None:
    environs = [delivery.environ() for delivery in deliveries(calls)]
    start, cpu_start = time.perf_counter(), time.process_time()
    statuses = answers(running.app, environs)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu_start
    if set(statuses) != {"200 OK"}:
        raise WrongAnswer(f"{running.candidate.name} answered {set(statuses)}")
    running.answered += len(statuses)
    running.measured.figures["time"].values.append(seconds / calls * 1e6)
    running.measured.figures["cpu"].values.append(cpu / calls * 1e6)


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
