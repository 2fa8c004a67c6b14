"""``python -m benchmarks.profile``: where the time of a delivery or of a run goes.

Samples the processor time of the process: at each tick of the timer, the line of Python
that runs. The time of a function in C counts for the line that calls it. Compare
shares, not times.
"""

from __future__ import annotations

import argparse
import linecache
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from flask import Flask

from flask_procore_webhooks.testing import drain

from .candidates import CANDIDATES
from .databases import Databases
from .databases import POSTGRESQL
from .databases import SQLITE
from .databases import TMPFS
from .deliveries import deliveries
from .figures import OURS
from .receive import answers

#: Seconds of processor time between two samples, where the kernel can.
INTERVAL = 0.001
#: Deliveries at a time.
CALLS = 200
RECEIVE, RUN = "receive", "run"
#: Lines that are shown.
LINES = 30

#: A file, a line in it, and the function.
Line = tuple[str, int, str]


def main() -> None:
    options = _options()
    (candidate,) = (one for one in CANDIDATES if one.name == options.who)
    with tempfile.TemporaryDirectory() as name, Databases(Path(name)) as databases:
        app = candidate.make(databases.make(options.database))
        _work(app, options.what)
        found: Counter[Line] = Counter()
        end, calls = time.monotonic() + options.seconds, 0
        while time.monotonic() < end:
            found += _work(app, options.what)
            calls += CALLS
    print(f"{options.what}, {candidate.name}, {options.database}: {calls} times")
    packages: Counter[str] = Counter()
    for line, count in found.items():
        packages[_package(line)] += count
    for counter in (packages, Counter({_text(one): n for one, n in found.items()})):
        print()
        for text, count in counter.most_common(LINES):
            print(f"{count / found.total():6.1%}  {text}")


def _work(app: Flask, what: str) -> Counter[Line]:
    environs = [one.environ() for one in deliveries(CALLS)]
    if what == RECEIVE:
        return sampled(lambda: answers(app, environs))
    answers(app, environs)
    return sampled(lambda: drain(app))


def sampled(work: Callable[[], object]) -> Counter[Line]:
    """How often each line of Python was found running."""
    found: Counter[Line] = Counter()

    def sample(_: int, frame: FrameType | None) -> None:
        if frame:
            code = frame.f_code
            line = frame.f_lineno or code.co_firstlineno
            found[code.co_filename, line, code.co_name] += 1

    before = signal.signal(signal.SIGPROF, sample)
    signal.setitimer(signal.ITIMER_PROF, INTERVAL, INTERVAL)
    try:
        work()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    return found


def _package(line: Line) -> str:
    """The package, and of ours the module."""
    path = Path(line[0])
    parts = path.parts
    if "flask_procore_webhooks" in parts:
        return "/".join(parts[parts.index("flask_procore_webhooks") :])
    if "site-packages" in parts:
        return parts[parts.index("site-packages") + 1]
    return "benchmarks" if "benchmarks" in parts else f"standard library, {path.name}"


def _text(line: Line) -> str:
    path, number, function = line
    source = linecache.getline(path, number).strip()
    return f"{Path(path).parent.name}/{Path(path).name}:{number} {function}: {source}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile")
    parser.add_argument("what", choices=(RECEIVE, RUN), nargs="?", default=RECEIVE)
    parser.add_argument("--who", choices=[one.name for one in CANDIDATES], default=OURS)
    kinds = (TMPFS, SQLITE, POSTGRESQL)
    parser.add_argument("--database", choices=kinds, default=TMPFS)
    parser.add_argument("--seconds", type=float, default=10.0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
