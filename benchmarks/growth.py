"""Growth: what an inbox with many finished events costs, beside one with few."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from flask import Flask

from flask_procore_webhooks.dispatching.worker import Worker
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.endpoint import endpoints

from .candidates import ours
from .databases import Databases
from .databases import Missing
from .databases import POSTGRESQL
from .databases import rows
from .databases import SQLITE
from .deliveries import deliveries
from .deliveries import Delivery
from .deliveries import signed
from .figures import Figure
from .figures import interleaved
from .figures import Measured
from .figures import Part
from .figures import WrongAnswer
from .fill import fill
from .fill import ROW_BYTES
from .receive import answers

RECEIVE, RUN, REPEAT = "receive", "run", "repeat"
COSTS = (RECEIVE, RUN, REPEAT)


@dataclass
class Inbox:
    """One that was filled beforehand."""

    count: int
    url: str
    app: Flask
    #: By cost.
    measured: dict[str, Measured]
    received: int = 0

    @property
    def endpoint(self) -> Endpoint:
        (endpoint,) = endpoints(self.app).values()
        return endpoint


def run(
    folder: Path,
    rounds: int,
    sizes: Sequence[int],
    calls: int,
    leave_out: tuple[str, ...] = (),
) -> Part:
    about = (
        "One event at a time, with so many finished events in the inbox. Receive: one"
        " WSGI call with a new event. Repeat: one with an event that is somewhere among"
        " the finished ones. Run: a worker claims one event, runs a subscriber that"
        " does nothing, and settles it."
    )
    part = Part("growth", "An inbox that grows", about)
    for kind in (SQLITE, POSTGRESQL):
        try:
            if kind in leave_out:
                raise Missing("not wanted")
            part.measured += _grow(kind, folder, rounds, sizes, calls)
        except Missing as missing:
            part.left_out.append(f"{kind}: {missing}")
            continue
        for cost in COSTS:
            few, many = (_where(kind, size) for size in (min(sizes), max(sizes)))
            name = f"{cost} with {max(sizes):,} rows in {kind} against {min(sizes):,}"
            part.compare(name, 1.25, "time", (cost, many), (cost, few))
    return part


def _grow(
    kind: str, folder: Path, rounds: int, sizes: Sequence[int], calls: int
) -> list[Measured]:
    """What it costs in one kind of database; nothing is left of it afterwards."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        if kind == SQLITE:
            require_space(Path(name), sum(sizes))
        with Databases(Path(name)) as databases:
            inboxes = [_filled(databases.make(kind), kind, size) for size in sizes]
            # Or the disk would still be writing them when the measuring begins.
            os.sync()
            interleaved(inboxes, 1, lambda one: _measure(one, calls))
            for store in inboxes:
                for measured in store.measured.values():
                    measured.forget()
            interleaved(inboxes, rounds, lambda one: _measure(one, calls))
            for store in inboxes:
                _check(store)
    return [store.measured[cost] for cost in COSTS for store in inboxes]


def require_space(folder: Path, rows: int) -> None:
    """:raises Missing: there is none for so many."""
    if shutil.disk_usage(folder).free < 2 * rows * ROW_BYTES:
        gigabytes = 2 * rows * ROW_BYTES / 1e9
        raise Missing(f"{rows:,} rows want {gigabytes:.0f} GB free in {folder}")


def _filled(url: str, kind: str, size: int) -> Inbox:
    fill(url, size, is_done=True)
    app = ours(url)
    app.blueprints["procore_webhooks"].on("*", "*")(_nothing)  # type: ignore[attr-defined]
    where = _where(kind, size)
    measured = {cost: Measured(cost, where, {"time": Figure()}) for cost in COSTS}
    return Inbox(size, url, app, measured)


def _nothing(event: object) -> None:
    pass


def _where(kind: str, size: int) -> str:
    return f"{kind}, {size:,} rows"


def _measure(store: Inbox, calls: int) -> None:
    new, old = deliveries(calls), [*_repeats(store, calls)]
    for cost, work in (
        (RECEIVE, lambda: _deliver(store, new)),
        (REPEAT, lambda: _deliver(store, old)),
        (RUN, lambda: _run_each(store, calls)),
    ):
        seconds = _timed(work)
        store.measured[cost].figures["time"].values.append(seconds / calls * 1e6)
    store.received += calls


def _timed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _deliver(store: Inbox, played: Iterable[Delivery]) -> None:
    statuses = answers(store.app, [delivery.environ() for delivery in played])
    if set(statuses) != {"200 OK"}:
        raise WrongAnswer(f"answers were {set(statuses)}")


def _run_each(store: Inbox, calls: int) -> None:
    for _ in range(calls):
        # A new one takes one event; later it would take several at once.
        if Worker([store.endpoint], poll=1.0).run_due() != 1:
            raise WrongAnswer("a worker found nothing to run")


def _repeats(store: Inbox, calls: int) -> Iterator[Delivery]:
    c = store.endpoint.store.columns
    ids = random.sample(range(1, store.count + 1), calls)
    for row in store.endpoint.store.rows(sa.select(c.body).where(c.id.in_(ids))):
        yield signed(bytes(row.body))


def _check(store: Inbox) -> None:
    """Every new event is there and done, and no repeat is there twice."""
    done = rows(store.url, "procore_webhook_event WHERE status = 'done'")
    every = rows(store.url, "procore_webhook_event")
    wanted = store.count + store.received
    if not every == done == wanted:
        raise WrongAnswer(f"{wanted} events, {every} rows, of which {done} are done")
