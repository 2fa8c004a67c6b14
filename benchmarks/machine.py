"""The head of a report: the machine, its load, its disk, and the versions."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sqlite3
import statistics
import subprocess
import time
from collections.abc import Iterable
from datetime import datetime
from datetime import timezone
from importlib import metadata
from pathlib import Path

from .databases import Databases
from .databases import is_tmpfs
from .databases import Missing
from .databases import POSTGRESQL
from .databases import setting

PACKAGES = (
    "flask-procore-webhooks",
    "flask",
    "werkzeug",
    "sqlalchemy",
    "flask-sqlalchemy",
    "psycopg",
    "stripe",
    "standardwebhooks",
    "gunicorn",
    "granian",
    "celery",
    "redis",
    "procrastinate",
)
COMMANDS = ("node --version", "wrk --version", "redis-server --version")
VERSION = re.compile(r"\d+(?:\.\d+)+")
#: How often one page is written and flushed.
FLUSHES = 100
#: Below this load average a run counts as one on a quiet machine, before it begins.
QUIET = 1.0


class Machine:
    """Looks at the machine when the run begins, and again when it is described."""

    def __init__(self, databases: Databases, folder: Path) -> None:
        self._databases = databases
        self._folder = folder
        self._load_before = os.getloadavg()
        self._flush_before = flush_time(folder)
        self._start = time.monotonic()

    def about(self, rounds: dict[str, int]) -> str:
        now = datetime.now(timezone.utc)
        counts = ", ".join(f"{name} {count}" for name, count in rounds.items())
        minutes = (time.monotonic() - self._start) / 60
        lines = [
            f"{now:%Y-%m-%d %H:%M} UTC, after {minutes:.0f} minutes; {os.cpu_count()}"
            f" cores, {_cpu()}, {platform.system()} {platform.release()}",
            self._load(),
            self._disk(),
            self._postgresql(),
            ", ".join(self._versions()),
            f"medians of several rounds ({counts}), in each of which every candidate"
            " has its turn, and between which lie half of the rounds; a ratio is the"
            " median of the ratios of the rounds; each request is a new event with a"
            " fresh valid signature, and every answer was 200",
        ]
        return "\n".join(f"- {line}" for line in lines if line)

    def _load(self) -> str:
        before, after = self._load_before, os.getloadavg()
        is_quiet = "quiet" if before[0] < QUIET else "busy"
        return (
            f"load average of the last 1, 5 and 15 minutes: {_three(before)} before the"
            f" run (the machine was {is_quiet}), {_three(after)} after it"
        )

    def _disk(self) -> str:
        before, after = self._flush_before, flush_time(self._folder)
        where = "in memory, not on a disk" if is_tmpfs(self._folder) else "on the disk"
        return (
            f"one fdatasync {where} took {before:.2f} ms before the run and"
            f" {after:.2f} ms after it (medians of {FLUSHES}): each commit on SQLite"
            " waits for it"
        )

    def _postgresql(self) -> str:
        try:
            url = self._databases.make(POSTGRESQL)
        except Missing:
            return ""
        commit, fsync = (setting(url, name) for name in ("synchronous_commit", "fsync"))
        waits = commit != "off" and fsync == "on"
        means = (
            "waits until it is on the disk" if waits else "does NOT wait for the disk"
        )
        return (
            f"PostgreSQL with synchronous_commit {commit} and fsync {fsync}: each"
            f" commit {means}"
        )

    def _versions(self) -> Iterable[str]:
        yield f"{platform.python_implementation()} {platform.python_version()}"
        for name in PACKAGES:
            try:
                yield f"{name} {metadata.version(name)}"
            except metadata.PackageNotFoundError:
                continue
        yield f"SQLite {sqlite3.sqlite_version}"
        try:
            url = self._databases.make(POSTGRESQL)
            yield f"PostgreSQL {setting(url, 'server_version').split()[0]}"
        except Missing:
            pass
        for command in COMMANDS:
            name, option = command.split()
            if shutil.which(name):
                ran = subprocess.run([name, option], capture_output=True, text=True)
                if found := VERSION.search(ran.stdout + ran.stderr):
                    yield f"{name} {found[0]}"


def flush_time(folder: Path) -> float:
    """Milliseconds: the median time to flush a page that was just written."""
    path, times = folder / "flushed", []
    with path.open("wb", buffering=0) as file:
        for _ in range(FLUSHES):
            file.write(bytes(4096))
            start = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - start) * 1000)
    path.unlink()
    return statistics.median(times)


def _three(load: tuple[float, float, float]) -> str:
    return ", ".join(f"{one:.1f}" for one in load)


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
