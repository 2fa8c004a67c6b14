"""What was measured as Markdown, with the machine, the versions and the date."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Iterable
from collections.abc import Sequence
from datetime import datetime
from datetime import timezone
from importlib import metadata
from pathlib import Path

from .candidates import BARE
from .databases import Databases
from .databases import Missing
from .databases import POSTGRESQL
from .databases import server_version
from .figures import Figure
from .figures import Part

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
#: Of the parts with simple tables: the heads, and the figures below them.
COLUMNS = {
    "process": {"events/s": "rate", "processor µs": "cpu"},
    "growth": {"µs": "time"},
    "prune": {"p99 ms": "p99", "p50 ms": "p50"},
    "memory": {"MiB after all": "last", "MiB after the first": "first"},
}
COMMANDS = ("node --version", "wrk --version", "redis-server --version")
VERSION = re.compile(r"\d+(?:\.\d+)+")


def report(parts: Sequence[Part], databases: Databases, rounds: dict[str, int]) -> str:
    sections = ["# Benchmarks", _about(databases, rounds)]
    for part in parts:
        sections += [f"## {part.title}", part.about, _figures(part)]
    targets = [target for part in parts for target in part.targets]
    if targets:
        rows = [
            (one.name, one.wanted, f"{one.reached:.2f}", "yes" if one.is_met else "no")
            for one in targets
        ]
        heads = ("ratio of medians", "target", "reached", "met")
        sections += ["## Targets", _table(heads, rows)]
    missing = [what for part in parts for what in (*part.left_out, *part.failures)]
    left_out = [f"- {what}" for what in missing]
    if left_out:
        sections += ["## Left out", "\n".join(left_out)]
    return "\n\n".join(sections) + "\n"


def _about(databases: Databases, rounds: dict[str, int]) -> str:
    now = datetime.now(timezone.utc)
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    counts = ", ".join(f"{name} {count}" for name, count in rounds.items())
    return "\n".join(
        [
            f"- {now:%Y-%m-%d %H:%M} UTC; {os.cpu_count()} cores, {_cpu()},"
            f" {platform.system()} {platform.release()}; load average {load}",
            f"- {', '.join(_versions(databases))}",
            f"- medians of several rounds ({counts}), in each of which every candidate"
            " has its turn, and between which lie half of the rounds; each request is"
            " a new event with a fresh valid signature, and every answer was 200",
        ]
    )


def _figures(part: Part) -> str:
    if part.name == "load":
        return _load_table(part)
    if part.name in COLUMNS:
        return _simple_table(part, COLUMNS[part.name])
    least = min((one.figures["time"].median for one in part.measured), default=0)
    heads = ["", "µs", "half of the rounds", "to the fastest"]
    rows = []
    for one in part.measured:
        time = one.figures["time"]
        ratio = f"{time.median / least:.2f}"
        row = [one.name, _short(time.median), _half(time), ratio]
        if cpu := one.figures.get("cpu"):
            row.append(_short(cpu.median))
        rows.append(row)
    if any("cpu" in one.figures for one in part.measured):
        heads.append("processor µs")
    return _table(heads, rows)


def _load_table(part: Part) -> str:
    rows = []
    for one in part.measured:
        rate, p50, p99 = (one.figures[name] for name in ("rate", "p50", "p99"))
        bare = part.find(BARE, one.where.partition(",")[0])
        ratio = f"{rate.median / bare.figures['rate'].median:.2f}" if bare else ""
        rows.append(
            (
                one.name,
                _short(rate.median),
                _half(rate),
                ratio,
                _short(p50.median),
                _short(p99.median),
            )
        )
    heads = ("", "events/s", "half of the rounds", "to bare", "p50 ms", "p99 ms")
    return _table(heads, rows)


def _simple_table(part: Part, columns: dict[str, str]) -> str:
    first, *others = columns
    rows = []
    for one in part.measured:
        main = one.figures[columns[first]]
        rest = [_short(one.figures[columns[head]].median) for head in others]
        rows.append([one.name, _short(main.median), _half(main), *rest])
    return _table(["", first, "half of the rounds", *others], rows)


def _half(figure: Figure) -> str:
    low, high = figure.middle_half
    return f"{_short(low)} – {_short(high)}"


def _short(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(_line(line, widths) for line in (heads, rule, *lines[1:]))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    aligned = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
    return f"| {' | '.join(aligned)} |"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _versions(databases: Databases) -> Iterable[str]:
    yield f"{platform.python_implementation()} {platform.python_version()}"
    for name in PACKAGES:
        try:
            yield f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    yield f"SQLite {sqlite3.sqlite_version}"
    try:
        yield f"PostgreSQL {server_version(databases.make(POSTGRESQL))}"
    except Missing:
        pass
    for command in COMMANDS:
        name, option = command.split()
        if shutil.which(name):
            ran = subprocess.run([name, option], capture_output=True, text=True)
            if found := VERSION.search(ran.stdout + ran.stderr):
                yield f"{name} {found[0]}"
