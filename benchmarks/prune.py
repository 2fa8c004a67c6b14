"""Prune: how long a delivery waits while old events are removed."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from flask import Flask

from .bench import Bench
from .candidates import DATABASE
from .candidates import ours
from .candidates import WHO
from .client import percentile
from .databases import Databases
from .databases import Missing
from .databases import POSTGRESQL
from .databases import rows
from .databases import SQLITE
from .deliveries import deliveries
from .figures import figures
from .figures import Measured
from .figures import OURS
from .figures import Part
from .figures import WrongAnswer
from .fill import fill_finished
from .growth import require_space
from .receive import answers
from .servers import last_line
from .servers import started

#: Deliveries a second.
RATE = 50
DURING = ", during prune"
AGE = timedelta(days=60)
COMMAND = "-m flask --app benchmarks.candidates:serve procore-webhooks prune -y".split()


def run(bench: Bench, rounds: int) -> Part:
    count, seconds = (3000, 1.0) if bench.is_quick else (200_000, 15.0)
    about = (
        f"{RATE} deliveries a second, each one WSGI call, timed from when it was due:"
        f" for {seconds:g} s with {count:,} old events in the inbox, and then while the"
        " command prune, in a process of its own, removes their bodies and rows."
    )
    part = Part("prune", "Receive while old events are removed", about)
    for kind in (SQLITE, POSTGRESQL):
        try:
            bench.require(kind)
            alone, meanwhile = (
                Measured(OURS, f"{kind}{when}", figures("p50", "p99"))
                for when in ("", DURING)
            )
            for _ in range(rounds):
                _measure(kind, bench.folder, count, seconds, alone, meanwhile)
        except Missing as missing:
            part.left_out.append(f"{kind}: {missing}")
            continue
        part.measured += [alone, meanwhile]
    return part


def _measure(
    kind: str,
    folder: Path,
    count: int,
    seconds: float,
    alone: Measured,
    meanwhile: Measured,
) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as name:
        if kind == SQLITE:
            require_space(Path(name), count)
        with Databases(Path(name)) as databases:
            url = databases.make(kind)
            fill_finished(url, count, AGE)
            os.sync()
            app = ours(url)
            warm_up = len(_receive(app, _until(1.0)))
            log = Path(name) / "prune.log"
            received = warm_up + _add(alone, _receive(app, _until(seconds)))
            received += _add(meanwhile, _receive_during_prune(app, url, log))
            left = rows(url, "procore_webhook_event")
    if left != received:
        raise WrongAnswer(f"{received} events and {left} rows after prune")


def _until(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


def _receive_during_prune(app: Flask, url: str, log: Path) -> list[float]:
    env = {WHO: OURS, DATABASE: url}
    with started([sys.executable, *COMMAND], env, log) as prune:
        times = _receive(app, lambda: prune.poll() is not None)
    if prune.returncode:
        raise WrongAnswer(f"prune failed: {last_line(log.read_bytes())}")
    return times


def _receive(app: Flask, is_over: Callable[[], bool]) -> list[float]:
    """The seconds that each delivery took from when it was due."""
    due, times = time.perf_counter(), []
    while not is_over():
        (delivery,) = deliveries(1)
        due = _wait_until(due + 1 / RATE)
        if answers(app, [delivery.environ()]) != ["200 OK"]:
            raise WrongAnswer("a delivery was not answered with 200")
        times.append(time.perf_counter() - due)
    return times


def _wait_until(due: float) -> float:
    """The time then: ``due``, unless that is in the future and sleep is late."""
    wait = due - time.perf_counter()
    if wait <= 0:
        return due
    time.sleep(wait)
    return time.perf_counter()


def _add(measured: Measured, times: list[float]) -> int:
    ordered = sorted(times)
    p50, p99 = percentile(ordered, 0.5), percentile(ordered, 0.99)
    measured.add(p50=p50 * 1000, p99=p99 * 1000)
    return len(ordered)
