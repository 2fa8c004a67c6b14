"""``python -m benchmarks``: every candidate in one run, then tables and a plot."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from . import growth
from . import load
from . import memory
from . import process
from . import prune
from . import receive
from . import verify
from .databases import Databases
from .figures import Part
from .figures import WrongAnswer
from .plot import plot
from .report import report

RESULTS = Path(__file__).parent / "results"
ROUNDS = {
    "verify": 50,
    "receive": 30,
    "load": 5,
    "process": 5,
    "growth": 20,
    "prune": 1,
    "memory": 1,
}
QUICK_ROUNDS = dict.fromkeys(ROUNDS, 1) | {"verify": 3, "receive": 2}
ROWS = (10_000, 1_000_000, 5_000_000)
QUICK_ROWS = (1000, 3000)


def main() -> int:
    options = _options()
    # So that servers are ended and databases dropped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    rounds = {**(QUICK_ROUNDS if options.quick else ROUNDS)}
    if options.rounds:
        rounds = dict.fromkeys(rounds, options.rounds)
    rounds = {part: rounds[part] for part in options.only or ROUNDS}
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as name, Databases(Path(name)) as databases:
        parts = []
        for part, count in rounds.items():
            try:
                parts.append(_run(part, count, databases, Path(name), options))
            except WrongAnswer as wrong:
                failures.append(f"{part}: {wrong}")
        text = report(parts, databases, rounds)
    failures += [failure for part in parts for failure in part.failures]
    print(text)
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "benchmarks.md").write_text(text)
    if parts and not plot(parts, options.results / "benchmarks.png"):
        _tell("no plot: matplotlib is not installed")
    for failure in failures:
        _tell(failure)
    return 1 if failures else 0


def _run(
    part: str,
    rounds: int,
    databases: Databases,
    folder: Path,
    options: argparse.Namespace,
) -> Part:
    _tell(f"{part}: {rounds} rounds ...")
    without, quick = tuple(options.without), options.quick
    if part == "verify":
        return verify.run(rounds, calls=20 if quick else 200)
    if part == "receive":
        return receive.run(databases, rounds, 10 if quick else 100, without)
    if part == "load":
        seconds = 1 if quick else options.seconds
        return load.run(databases, folder, rounds, seconds, without)
    if part == "process":
        return process.run(databases, folder, rounds, 100 if quick else 2000, without)
    if part == "growth":
        rows = options.rows or (QUICK_ROWS if quick else ROWS)
        return growth.run(folder, rounds, rows, 10 if quick else 100, without)
    if part == "prune":
        count, seconds = (3000, 1) if quick else (1_000_000, 30)
        return prune.run(folder, rounds, count, seconds, without)
    few, many = (100, 500) if quick else (1000, 100_000)
    return memory.run(databases, folder, rounds, few, many, without)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only",
        action="append",
        choices=tuple(ROUNDS),
        help="one of the benchmarks; may be given again (default: all)",
    )
    parser.add_argument("--rounds", type=int, help=f"of each (default: {ROUNDS})")
    parser.add_argument(
        "--seconds", type=int, default=2, help="of load in a round (default: 2)"
    )
    parser.add_argument(
        "--rows",
        type=int,
        nargs="+",
        help=f"in the inboxes that growth compares (default: {ROWS})",
    )
    parser.add_argument(
        "--quick", action="store_true", help="only see that all of it works"
    )
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        choices=(
            "PostgreSQL",
            "gunicorn",
            "granian",
            "Express",
            "wrk",
            "Celery",
            "procrastinate",
        ),
        help="leave one out; may be given again",
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=RESULTS,
        metavar="FOLDER",
        help="where benchmarks.md and benchmarks.png go (default: benchmarks/results)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
