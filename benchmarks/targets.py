"""The targets: ratios, and a few times and shares, that the package is to reach."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace

from . import growth
from . import load
from . import process
from .candidates import BARE
from .candidates import BY_HAND
from .candidates import OURS_DB
from .databases import POSTGRESQL
from .databases import SQLITE
from .databases import TMPFS
from .figures import Figure
from .figures import OURS
from .figures import Part
from .idle import BACKGROUND
from .load import EXPRESS
from .load import GRANIAN
from .load import GUNICORN
from .load import REDIS
from .queues import CELERY
from .queues import EARLIER
from .queues import OUR_CELERY
from .queues import PROCRASTINATE
from .queues import WORKER
from .verify import FLOOR

Place = tuple[str, str]
KINDS = (SQLITE, POSTGRESQL)


@dataclass(frozen=True)
class Target:
    #: The part that measures it, and the figure.
    part: str
    key: str
    name: str
    limit: float
    #: Who and where.
    ours: Place
    #: What it is divided by, round by round.
    other: Place | None = None
    #: Instead: another figure of the same.
    other_key: str = ""
    #: Whether more is better.
    is_least: bool = False
    #: What the figure is multiplied by, and its unit.
    scale: float = 1.0
    unit: str = ""
    #: A value for each round; ``None`` where it was not measured.
    reached: Figure | None = None

    @property
    def is_met(self) -> bool:
        if self.reached is None:
            return False
        value = self.reached.median
        return value >= self.limit if self.is_least else value <= self.limit

    @property
    def wanted(self) -> str:
        return f"{'≥' if self.is_least else '≤'} {self.limit:g}{self.unit}"

    def within(self, part: Part) -> Target:
        """The same, with what ``part`` has measured."""
        mine = part.find(*self.ours)
        theirs = part.find(*(self.other or self.ours))
        if mine is None or theirs is None:
            return self
        figure = mine.figures[self.key]
        if self.other or self.other_key:
            figure = figure.over(theirs.figures[self.other_key or self.key])
        scaled = Figure([value * self.scale for value in figure.values])
        return replace(self, reached=scaled)


def reached(parts: Sequence[Part], sizes: Sequence[int]) -> list[Target]:
    """The targets of these parts, in the order of the document."""
    by_name = {part.name: part for part in parts}
    return [
        target.within(by_name[target.part])
        for target in _targets(min(sizes), max(sizes))
        if target.part in by_name
    ]


def _targets(few: int, many: int) -> Iterator[Target]:
    yield from _receive()
    yield from _load()
    floor = "verify against hmac.digest and compare_digest"
    yield Target("verify", "time", floor, 1.6, (OURS, ""), (FLOOR, ""))
    yield from _process()
    yield from _growth(few, many)
    yield from _idle()


def _receive() -> Iterator[Target]:
    """Time of a WSGI call."""
    for who, how in ((OURS, "own engine"), (OURS_DB, "db=")):
        name = f"receive, {TMPFS}, {how}, against a bare route"
        yield Target("receive", "time", name, 2.2, (who, TMPFS), (BARE, ""))
    name = "receive, SQLite on the disk, against the hand-written view"
    yield Target("receive", "time", name, 1.2, (OURS, SQLITE), (BY_HAND, SQLITE))
    for who, how in ((OURS, "own engine"), (OURS_DB, "db=")):
        name = f"receive, {POSTGRESQL}, {how}, against the hand-written view"
        ours, other = (who, POSTGRESQL), (BY_HAND, POSTGRESQL)
        yield Target("receive", "time", name, 1.4, ours, other)


def _load() -> Iterator[Target]:
    for server, limits in ((GRANIAN, (0.5, 0.45)), (GUNICORN, (0.68, 0.58))):
        for kind, limit in zip(KINDS, limits, strict=True):
            place = load.where(server, kind)
            name = f"rate, {place}, against a bare route"
            yield _rate("load", name, limit, (OURS, place), (BARE, server))
    for kind, limit in zip(KINDS, (1.4, 1.2), strict=True):
        place = load.where(GRANIAN, kind)
        name = f"rate, {place}, against the hand-written view"
        yield _rate("load", name, limit, (OURS, place), (BY_HAND, place))
    for server in (GRANIAN, GUNICORN):
        for kind in KINDS:
            place = load.where(server, kind)
            name = f"p99, {place}, against a bare route"
            yield Target("load", "p99", name, 1, (OURS, place), (BARE, server))
    for kind in KINDS:
        place = load.where(GRANIAN, kind)
        name = f"rate, {place}, against Express with Redis"
        yield _rate("load", name, 0.5, (OURS, place), (EXPRESS, REDIS))


def _process() -> Iterator[Target]:
    for writes, limits in ((False, (2.5, 2.0)), (True, (1.3, 1.8))):
        for kind, limit in zip((POSTGRESQL, SQLITE), limits, strict=True):
            ours, then = (
                (OURS, process.where(who, kind, writes)) for who in (WORKER, EARLIER)
            )
            what = process.A_ROW if writes else process.NOTHING
            name = f"rate of the worker, {kind}, {what}, against {EARLIER}"
            yield _rate("process", name, limit, ours, then)
    name = f"rate of the worker, {POSTGRESQL}, against {PROCRASTINATE}"
    ours = OURS, process.where(WORKER, POSTGRESQL)
    other = PROCRASTINATE, process.where(PROCRASTINATE, POSTGRESQL)
    yield _rate("process", name, 5, ours, other)
    name = f"rate of {OUR_CELERY} against Celery's empty task"
    ours = OURS, process.where(OUR_CELERY, POSTGRESQL)
    other = CELERY, process.where(CELERY, process.REDIS)
    yield _rate("process", name, 0.5, ours, other)


def _growth(few: int, many: int) -> Iterator[Target]:
    for kind in KINDS:
        sizes = growth.where(kind, many), growth.where(kind, few)
        against = f"{many:,} events in {kind} against {few:,}"
        for cost in (*growth.EVENTS, *growth.COMMANDS):
            ours, other = ((cost, size) for size in sizes)
            if cost == growth.PRUNE:
                name = f"{cost} with nothing to do, {many:,} events in {kind}"
                yield Target("growth", "time", name, 1, ours, scale=1e-6, unit=" s")
            else:
                name = f"{cost}, {against}"
                yield Target("growth", "time", name, 1.25, ours, other)


def _idle() -> Iterator[Target]:
    for kind in KINDS:
        for what in (BACKGROUND, WORKER):
            name = f"processor of an idle process, {what}, {kind}"
            ours = OURS, f"{what}, {kind}"
            yield Target("idle", "cpu", name, 0.2, ours, unit=" %")
    for what in (GUNICORN, WORKER):
        name = f"memory after all events against the first ones, {what}"
        ours = OURS, f"{what}, {POSTGRESQL}"
        yield Target("memory", "last", name, 1.05, ours, other_key="first")


def _rate(part: str, name: str, limit: float, ours: Place, other: Place) -> Target:
    return Target(part, "rate", name, limit, ours, other, is_least=True)
