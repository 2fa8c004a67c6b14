"""``python -m soak``: both runs on every database, and a table of the results."""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.outages import relay_to
from support.services import MARIADB
from support.services import own_database
from support.services import POSTGRESQL

from .outages import Breakable
from .outages import Locked
from .outages import private_server
from .runs import crash_run
from .runs import outage_run
from .runs import Result

DATABASES = ("sqlite", "postgresql", "mariadb")
SERVICES = {"postgresql": POSTGRESQL, "mariadb": MARIADB}
RUNS = ("crash", "outage")


def main() -> int:
    options = _options()
    # Ends the started processes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    print(f"seed {options.seed} (--seed repeats it)", flush=True)
    folder = Path(options.logs or tempfile.mkdtemp(prefix="soak_"))
    print(f"logs of the processes in {folder}", flush=True)
    results = []
    for number, kind in enumerate(options.databases):
        for run in options.runs:
            # Each run has its own database, and can be repeated alone with the seed.
            seed = options.seed
            with ExitStack() as stack:
                here = folder / f"{number}_{kind}_{run}"
                here.mkdir(parents=True)
                database = stack.enter_context(_database(kind, here))
                if database:
                    results.append(_run(run, kind, database, here, seed, options))
                    _tell(results[-1])
    _print_table(results)
    wanted = len(options.databases) * len(options.runs)
    return 0 if len(results) == wanted and not any(r.problems for r in results) else 1


def _run(
    run: str,
    kind: str,
    database: Breakable,
    folder: Path,
    seed: int,
    options: argparse.Namespace,
) -> Result:
    print(f"{kind}: {run} ...", flush=True)
    if run == "crash":
        return crash_run(
            database.direct_url,
            folder,
            events=options.events,
            kills=options.kills,
            seed=seed,
            seconds=options.seconds,
            name=f"{kind} {run}",
        )
    return outage_run(
        database,
        folder,
        events=options.events // 4,
        outages=options.outages,
        longest=6.0,
        seed=seed,
        seconds=options.seconds,
        name=f"{kind} {run}",
    )


@contextmanager
def _database(kind: str, folder: Path) -> Iterator[Breakable | None]:
    """A private server if possible, else a new database on an existing server."""
    if kind == "sqlite":
        yield Locked(f"sqlite:///{folder / 'soak.db'}")
        return
    with private_server(kind) as server:
        if server:
            yield server
            return
    print(f"{kind}: no server is installed that could be stopped: a proxy in front of")
    print("the running server makes the outages", flush=True)
    with ExitStack() as stack:
        try:
            url = stack.enter_context(own_database(*SERVICES[kind]))
        except (pytest.skip.Exception, pytest.fail.Exception) as error:
            print(f"{kind}: {error}", flush=True)
            yield None
            return
        yield stack.enter_context(relay_to(url))


def _tell(result: Result) -> None:
    for text in result.problems[:50] + [f"({note})" for note in result.notes[:10]]:
        print(f"  {text}", flush=True)


HEAD = "events duplicates kills restarts 503s lost doubled seconds".split()


def _print_table(results: list[Result]) -> None:
    print(f"\n{'database':19}" + "".join(f"{name:>11}" for name in HEAD))
    for each in results:
        numbers = (
            each.events,
            each.duplicates,
            each.kills,
            each.restarts,
            each.unavailable,
            len(each.lost),
            len(each.doubled),
            round(each.seconds),
        )
        print(f"{each.name:19}" + "".join(f"{number:>11}" for number in numbers))
    problems = sum(len(each.problems) for each in results)
    print("\nnothing lost, nothing doubled" if not problems else f"{problems} problems")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("databases", nargs="*", default=DATABASES, metavar="DATABASE")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=RUNS)
    parser.add_argument("--events", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--outages", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=600, help="for a stream")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--logs", help="the folder for logs; a temporary one")
    options = parser.parse_args()
    if wrong := set(options.databases) - set(DATABASES):
        parser.error(f"no such database: {', '.join(wrong)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
