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
    outcomes = _play_all([SCENARIOS[name] for name in options.scenarios], options)
    text = table(outcomes)
    print(text, end="")
    if options.into:
        put_into(options.into, text)
    found = [text for outcome in outcomes for text in broken(outcome)]
    for text in found:
        _tell(text)
    _tell(f"{len(found)} broken promises" if found else "every promise is kept")
    return 1 if found else 0


def _play_all(scenarios: list[Scenario], options: argparse.Namespace) -> list[Outcome]:
    """Small scenarios side by side, large ones by themselves; in the given order."""
    large = [each for each in scenarios if each.name == "fan_out"]
    small = [each for each in scenarios if each not in large]
    found: dict[str, list[Outcome]] = {}
    for group, at_once in ((small, options.at_once), (large, 1)):
        with ThreadPoolExecutor(at_once) as pool:
            played = pool.map(lambda each: _play(each, options), group)
            found |= dict(zip((each.name for each in group), played, strict=True))
    return [outcome for each in scenarios for outcome in found[each.name]]


def _play(scenario: Scenario, options: argparse.Namespace) -> list[Outcome]:
    wanted = options.options or scenario.options
    names = tuple(name for name in scenario.options if name in wanted)
    if not names:
        return []
    folder = options.logs / scenario.name
    folder.mkdir(parents=True)
    file = f"sqlite:///{folder / 'bursts.db'}"
    service = SERVICES.get(options.database)
    start = time.monotonic()
    with own_database(*service) if service else nullcontext(file) as url:
        play = Play(
            scenario,
            names,
            factor=options.factor,
            seed=options.seed,
            url=url,
            folder=folder,
        )
        outcomes = play.run()
    _tell(f"{scenario.name}: {time.monotonic() - start:.0f} s")
    return outcomes


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
    parser.add_argument("--at-once", type=int, default=2, help="small scenarios")
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
