"""``python -m bursts``: play scenarios, print the table, name broken promises."""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

from support.services import MARIADB
from support.services import own_database
from support.services import POSTGRESQL

from .options import OPTION_SETS
from .options import OptionSet
from .outcomes import Outcome
from .play import Play
from .promises import broken
from .scenarios import Scenario
from .scenarios import SCENARIOS
from .table import put_into
from .table import table

SERVICES = {"postgresql": POSTGRESQL, "mariadb": MARIADB}


def main() -> int:
    options = _options()
    # Ends the started processes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    _tell(f"seed {options.seed} (--seed repeats the plans), logs in {options.logs}")
    outcomes = _play_all(options)
    text = table(outcomes)
    print(text, end="")
    if options.into:
        put_into(options.into, text)
    found = [text for outcome in outcomes for text in broken(outcome)]
    for text in found:
        _tell(text)
    _tell(f"{len(found)} broken promises" if found else "every promise is kept")
    return 1 if found else 0


def _play_all(options: argparse.Namespace) -> list[Outcome]:
    """Small scenarios side by side, the import by itself; in the order of the table."""
    wanted = [
        (SCENARIOS[scenario], OPTION_SETS[name])
        for scenario in options.scenarios
        for name in SCENARIOS[scenario].options
        if name in (options.options or OPTION_SETS)
    ]
    large = [pair for pair in wanted if pair[0].is_import]
    small = [pair for pair in wanted if pair not in large]
    found: dict[str, Outcome] = {}
    for pairs, at_once in ((small, options.at_once), (large, 1)):
        with ThreadPoolExecutor(at_once) as pool:
            for outcome in pool.map(lambda pair: _play(pair, options), pairs):
                found[outcome.name] = outcome
    return [found[f"{scenario.name}, {each.name}"] for scenario, each in wanted]


def _play(pair: tuple[Scenario, OptionSet], options: argparse.Namespace) -> Outcome:
    scenario, each = pair
    folder = options.logs / scenario.name / each.name
    folder.mkdir(parents=True)
    file = f"sqlite:///{folder / 'bursts.db'}"
    service = SERVICES.get(options.database)
    start, factor, seed = time.monotonic(), options.factor, options.seed
    with own_database(*service) if service else nullcontext(file) as url:
        outcome = Play(scenario, each, factor, seed, url, folder).run()
    _tell(f"{outcome.name}: {time.monotonic() - start:.0f} s")
    return outcome


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bursts", description=__doc__)
    parser.add_argument(
        "scenarios", nargs="*", default=list(SCENARIOS), metavar="SCENARIO"
    )
    parser.add_argument(
        "--options", nargs="+", choices=OPTION_SETS, help="option sets (default: all)"
    )
    parser.add_argument(
        "--factor",
        type=float,
        default=1.0,
        help="how many times as fast; lag=2 allows at most 4 (default: 1)",
    )
    parser.add_argument("--database", choices=("sqlite", *SERVICES), default="sqlite")
    parser.add_argument("--at-once", type=int, default=3, help="of small scenarios")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--logs", type=Path, help="a new folder for logs")
    parser.add_argument(
        "--into", type=Path, help="document whose table is replaced: docs/bursts.md"
    )
    given = parser.parse_args()
    if wrong := set(given.scenarios) - set(SCENARIOS):
        parser.error(f"no such scenario: {', '.join(sorted(wrong))}")
    given.logs = (given.logs or Path(tempfile.mkdtemp(prefix="bursts_"))).resolve()
    return given


if __name__ == "__main__":
    sys.exit(main())
