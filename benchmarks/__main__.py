"""``python -m benchmarks``: every candidate in one run, then tables and a plot."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from . import growth
from . import idle
from . import load
from . import memory
from . import process
from . import prune
from . import receive
from . import verify
from .bench import Bench
from .databases import Databases
from .databases import disk_folder
from .figures import Part
from .figures import WrongAnswer
from .machine import Machine
from .plot import plot
from .report import report
from .targets import reached

RESULTS = Path(__file__).parent / "results"
#: Each part, its rounds, and those of a quick run.
PARTS: dict[str, tuple[Callable[[Bench, int], Part], int, int]] = {
    "verify": (verify.run, 50, 3),
    "receive": (receive.run, 40, 2),
    "load": (load.run, 6, 1),
    "process": (process.run, 5, 1),
    "growth": (growth.run, 20, 1),
    "prune": (prune.run, 1, 1),
    "idle": (idle.run, 1, 1),
    "memory": (memory.run, 1, 1),
}
WITHOUT = (
    "PostgreSQL",
    "SQLite",
    "SQLite on tmpfs",
    "gunicorn",
    "granian",
    "Express",
    "wrk",
    "Celery",
    "procrastinate",
)


def main() -> int:
    options = _options()
    # So that servers are ended and databases dropped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    failures: list[str] = []
    parts: list[Part] = []
    folder = options.folder or disk_folder()
    with tempfile.TemporaryDirectory(prefix="benchmarks-", dir=folder) as name:
        with Databases(Path(name)) as databases:
            bench = _bench(options, databases, Path(name))
            machine = Machine(databases, Path(name))
            rounds = {part: _rounds(part, options) for part in options.only or PARTS}
            for part, count in rounds.items():
                try:
                    parts.append(_run(part, count, bench))
                except WrongAnswer as wrong:
                    failures.append(f"{part}: {wrong}")
            targets = reached(parts, bench.sizes)
            text = report(parts, targets, machine.about(rounds))
    failures += [failure for part in parts for failure in part.failures]
    print(text)
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "benchmarks.md").write_text(text)
    if parts and not plot(parts, targets, options.results / "benchmarks.png"):
        _tell("no plot: matplotlib is not installed")
    for failure in failures:
        _tell(failure)
    return 1 if failures else 0


def _bench(options: argparse.Namespace, databases: Databases, folder: Path) -> Bench:
    sizes = options.rows or ((1000, 3000) if options.quick else Bench.sizes)
    without = frozenset(options.without)
    return Bench(
        databases, folder, without, options.quick, options.seconds, tuple(sizes)
    )


def _rounds(part: str, options: argparse.Namespace) -> int:
    _, rounds, quick = PARTS[part]
    return int(options.rounds or (quick if options.quick else rounds))


def _run(part: str, rounds: int, bench: Bench) -> Part:
    _tell(f"{part}: {rounds} rounds ...")
    run, start = PARTS[part][0], time.monotonic()
    found = run(bench, rounds)
    _tell(f"{part}: {time.monotonic() - start:.0f} s")
    return found


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parts(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        raise argparse.ArgumentTypeError(
            f"{', '.join(unknown)}: the parts are {', '.join(PARTS)}"
        )
    return names


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only",
        action="extend",
        type=_parts,
        metavar="PART,...",
        help=f"some of {', '.join(PARTS)}; may be given again (default: all)",
    )
    parser.add_argument("--rounds", type=int, help="of each part")
    parser.add_argument(
        "--seconds", type=int, default=2, help="of load in a round (default: 2)"
    )
    parser.add_argument(
        "--rows",
        type=int,
        nargs="+",
        help=f"in the inboxes that growth compares (default: {Bench.sizes})",
    )
    parser.add_argument(
        "--quick", action="store_true", help="only see that all of it works"
    )
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        choices=WITHOUT,
        help="leave one out; may be given again",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        help="on the disk to measure (default: the folder of temporary files)",
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
