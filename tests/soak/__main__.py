"""``python -m soak``: all runs on every database, and a table of the results."""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from .kinds import DATABASES
from .kinds import ENDED
from .kinds import KINDS
from .kinds import Options
from .kinds import run
from .runs import Result


def main() -> int:
    options, databases, kinds = _options()
    # Ends the started processes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    print(f"seed {options.seed} (--seed repeats it)", flush=True)
    print(f"logs of the processes in {options.folder}", flush=True)
    start = time.monotonic()
    results = []
    for database in databases:
        for kind in kinds:
            result = run(database, kind, options)
            if result:
                results.append(result)
                _tell(result)
    _print_table(results)
    minutes = (time.monotonic() - start) / 60
    problems = sum(len(each.problems) for each in results)
    good = "nothing lost, nothing doubled, nothing late"
    verdict = f"{problems} problems" if problems else good
    print(f"\n{verdict} in {minutes:.0f} minutes")
    return 0 if results and not problems else 1


def _tell(result: Result) -> None:
    print(f"{result.name}: {result.seconds:.0f} s", flush=True)
    for text in result.problems[:50] + [f"({note})" for note in result.notes[:10]]:
        print(f"  {text}", flush=True)


HEAD = "events copies kills restarts 503s lost doubled slowest promised seconds".split()


def _print_table(results: list[Result]) -> None:
    print(f"\n{'database and run':26}" + "".join(f"{name:>9}" for name in HEAD))
    for each in results:
        numbers = (
            each.events,
            each.duplicates,
            each.kills,
            each.restarts,
            each.unavailable,
            len(each.lost),
            len(each.doubled),
            round(each.slowest, 1),
            round(each.promise, 1),
            round(each.seconds),
        )
        print(f"{each.name:26}" + "".join(f"{number:>9}" for number in numbers))
    print("\nslowest, promised: seconds to the end of an event that nothing disturbs")
    for database in DATABASES:
        ours = [each for each in results if each.name.startswith(database)]
        kills = sum(each.kills for each in ours if not each.name.endswith(ENDED))
        if ours:
            print(f"{database}: {kills} kills of processes")


def _options() -> tuple[Options, list[str], list[str]]:
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("databases", nargs="*", default=DATABASES, metavar="DATABASE")
    parser.add_argument("--runs", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--events", type=int, default=400, help="of a run with kills")
    parser.add_argument("--kills", type=int, default=50, help="of processes, in a run")
    parser.add_argument("--ends", type=int, default=80, help="of connections")
    parser.add_argument("--outages", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=600, help="for a stream")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--logs", help="the folder for logs; a temporary one")
    given = parser.parse_args()
    if wrong := set(given.databases) - set(DATABASES):
        parser.error(f"no such database: {', '.join(wrong)}")
    folder = Path(given.logs or tempfile.mkdtemp(prefix="soak_"))
    options = Options(
        folder.resolve(),
        given.seed,
        given.seconds,
        given.events,
        given.kills,
        given.ends,
        given.outages,
    )
    return options, list(given.databases), list(given.runs)


if __name__ == "__main__":
    sys.exit(main())
