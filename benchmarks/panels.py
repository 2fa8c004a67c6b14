"""What the plot shows: a panel for each question, with a bar for each answer."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass

from . import growth
from . import load
from . import process
from .candidates import BARE
from .candidates import BY_HAND
from .candidates import ORM
from .candidates import OURS_DB
from .databases import POSTGRESQL
from .databases import SQLITE
from .databases import TMPFS
from .figures import Figure
from .figures import OURS
from .figures import Part
from .idle import BACKGROUND
from .load import GRANIAN
from .load import GUNICORN
from .queues import CELERY
from .queues import EARLIER
from .queues import OUR_CELERY
from .queues import PROCRASTINATE
from .queues import WORKER
from .targets import Place
from .targets import Target
from .verify import FLOOR

KINDS = (SQLITE, POSTGRESQL)
LESS, MORE = "less is better", "more is better"


@dataclass(frozen=True)
class Bar:
    name: str
    figure: Figure
    is_ours: bool
    #: The target of exactly this ratio.
    target: Target | None = None
    #: Beside the value.
    note: str = ""


@dataclass(frozen=True)
class Panel:
    question: str
    axis: str
    bars: Sequence[Bar]
    unit: str = ""


def panels(parts: Sequence[Part], targets: Sequence[Target]) -> Iterator[Panel]:
    """Those with something to show."""
    makers = {
        "receive": _receive,
        "load": _load,
        "process": _process,
        "growth": _growth,
        "prune": _prune,
        "verify": _verify,
        "idle": _idle,
        "memory": _memory,
    }
    by_name = {part.name: part for part in parts}
    for name, make in makers.items():
        if name in by_name:
            for panel in make(_Bars(by_name[name], targets)):
                if panel.bars:
                    yield panel


class _Bars:
    """Makes the bars of a part; bars without a measurement are left out."""

    def __init__(self, part: Part, targets: Sequence[Target]) -> None:
        self.part = part
        self._targets = [one for one in targets if one.part == part.name]

    def ratios(self, key: str, base: Place, *names: tuple[str, Place]) -> list[Bar]:
        """How many times the figure of ``base`` each has."""
        other = self.part.find(*base)
        bars = []
        for name, place in names:
            one = self.part.find(*place)
            if one and other:
                figure = one.figures[key].over(other.figures[key])
                target = self._target(key, place, base)
                bars.append(
                    Bar(name, figure, _is_ours(place), target, self._note(place))
                )
        return bars

    def values(self, key: str, *names: tuple[str, Place]) -> list[Bar]:
        bars = []
        for name, place in names:
            if one := self.part.find(*place):
                target = self._target(key, place, None)
                bars.append(Bar(name, one.figures[key], _is_ours(place), target))
        return bars

    def _target(self, key: str, ours: Place, base: Place | None) -> Target | None:
        for one in self._targets:
            if (one.key, one.ours, one.other) == (key, ours, base):
                return one if not one.other_key else None
        return None

    def _note(self, place: Place) -> str:
        one = self.part.find(*place)
        has_p99 = one is not None and {"rate", "p99"} <= {*one.figures}
        return f"p99 {one.figures['p99'].median:.0f} ms" if one and has_p99 else ""


def _is_ours(place: Place) -> bool:
    costs = (*growth.EVENTS, *growth.COMMANDS)
    return place[0] in (OURS, OURS_DB, *costs) and EARLIER not in place[1]


def _receive(bars: _Bars) -> Iterator[Panel]:
    for kind, base, name in (
        (TMPFS, (BARE, ""), "a bare route that stores nothing = 1"),
        (SQLITE, (BY_HAND, SQLITE), "the hand-written view = 1"),
        (POSTGRESQL, (BY_HAND, POSTGRESQL), "the hand-written view = 1"),
    ):
        names = [
            ("bare route", (BARE, "")),
            ("hand-written view", (BY_HAND, kind)),
            ("ours, own engine", (OURS, kind)),
            ("ours, db=", (OURS_DB, kind)),
            ("Flask-SQLAlchemy view", (ORM, kind)),
        ]
        place = "SQLite on the disk" if kind == SQLITE else kind
        yield Panel(
            f"How long does one delivery take? {place}",
            f"time, {name}: {LESS}",
            bars.ratios("time", base, *names),
        )


def _load(bars: _Bars) -> Iterator[Panel]:
    for server in (GRANIAN, GUNICORN):
        names = [("bare route", (BARE, server))]
        for kind in KINDS:
            place = load.where(server, kind)
            names += [(f"hand-written, {kind}", (BY_HAND, place))]
            names += [(f"ours, {kind}", (OURS, place))]
            names += [(f"ours, db=, {kind}", (OURS_DB, place))]
        names += [("Express, Redis", (load.EXPRESS, load.REDIS))]
        yield Panel(
            f"How many deliveries a second? {server}",
            f"rate with {load.CONNECTIONS} connections, a bare route = 1: {MORE}",
            bars.ratios("rate", (BARE, server), *names),
        )


def _process(bars: _Bars) -> Iterator[Panel]:
    found = []
    for writes in (False, True):
        for kind in (POSTGRESQL, SQLITE):
            base = OURS, process.where(EARLIER, kind, writes)
            what = process.A_ROW if writes else process.NOTHING
            ours = OURS, process.where(WORKER, kind, writes)
            found += bars.ratios("rate", base, (f"ours, {kind}, {what}", ours))
    base = OURS, process.where(EARLIER, POSTGRESQL)
    other = PROCRASTINATE, process.where(PROCRASTINATE, POSTGRESQL)
    found += bars.ratios("rate", base, (f"procrastinate, {POSTGRESQL}, nothing", other))
    axis = f"rate, the worker at {EARLIER.split()[-1]} = 1: {MORE}"
    yield Panel("How many events a second does a worker run?", axis, found)
    base = CELERY, process.where(CELERY, process.REDIS)
    ours = OURS, process.where(OUR_CELERY, POSTGRESQL)
    names = ("Celery's empty task", base), (f"ours, {OUR_CELERY}", ours)
    yield Panel(
        "How many events a second does Celery run?",
        f"rate, an empty task = 1: {MORE}",
        bars.ratios("rate", base, *names),
    )


def _growth(bars: _Bars) -> Iterator[Panel]:
    for kind in KINDS:
        places = [one.where for one in bars.part.measured if one.where.startswith(kind)]
        if not places:
            continue
        few, many = places[0], places[-1]
        found = []
        for cost in (*growth.EVENTS, *growth.COMMANDS):
            found += bars.ratios("time", (cost, few), (cost, (cost, many)))
        size = many.removeprefix(f"{kind}, ")
        yield Panel(
            f"What do {size} cost? {kind}",
            f"time, {few.removeprefix(f'{kind}, ')} = 1: {LESS}",
            found,
        )


def _prune(bars: _Bars) -> Iterator[Panel]:
    names = [(one.where, (one.who, one.where)) for one in bars.part.measured]
    yield Panel(
        "How long does a delivery wait while prune runs?",
        f"p99 in ms: {LESS}",
        bars.values("p99", *names),
        " ms",
    )


def _verify(bars: _Bars) -> Iterator[Panel]:
    others = ("stripe", "standardwebhooks")
    names = [("ours", (OURS, "")), *((name, (name, "")) for name in others)]
    yield Panel(
        "How long does it take to verify a signature?",
        f"time, {FLOOR} = 1: {LESS}",
        bars.ratios("time", (FLOOR, ""), *names),
    )


def _idle(bars: _Bars) -> Iterator[Panel]:
    names = [("bare route, gunicorn", (BARE, GUNICORN))]
    for what in (BACKGROUND, WORKER):
        for kind in KINDS:
            names.append((f"ours, {what}, {kind}", (OURS, f"{what}, {kind}")))
    yield Panel(
        "What does a process use that has nothing to do?",
        f"% of a core: {LESS}",
        bars.values("cpu", *names),
        " %",
    )


def _memory(bars: _Bars) -> Iterator[Panel]:
    found = []
    for one in bars.part.measured:
        place = one.who, one.where
        found += bars.values("first", (f"{one.where}, at first", place))
        found += bars.values("last", (f"{one.where}, at last", place))
    yield Panel("Does memory grow?", f"MiB: {LESS}", found, " MiB")
