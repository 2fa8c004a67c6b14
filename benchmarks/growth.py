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
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from flask import Flask

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.testing import drain

from .bench import Bench
from .candidates import configured
from .candidates import EVENTS as TABLE
from .databases import Databases
from .databases import Missing
from .databases import POSTGRESQL
from .databases import rows
from .databases import SQLITE
from .deliveries import deliveries
from .deliveries import Delivery
from .deliveries import signed
from .figures import figures
from .figures import interleaved
from .figures import Measured
from .figures import Part
from .figures import WrongAnswer
from .fill import fill_history
from .fill import resources
from .fill import ROW_BYTES
from .receive import answers

RECEIVE, REPEAT, RUN = "receive", "repeat", "run"
LATEST_ONLY, ONE_AT_A_TIME = "latest_only", "one_at_a_time"
#: By the name of what it costs to run: the options of the subscriber.
SUBSCRIBERS = {
    RUN: {},
    LATEST_ONLY: {LATEST_ONLY: True},
    ONE_AT_A_TIME: {ONE_AT_A_TIME: True},
}
EVENTS = (RECEIVE, REPEAT, *SUBSCRIBERS)
PRUNE = "prune"
COMMANDS = {"stats": [], "errors": [], "list": [], PRUNE: ["-y"]}
#: Rounds of the commands: one takes as long as many events.
COMMAND_ROUNDS = 5


@dataclass
class Inbox:
    """One that was filled beforehand."""

    count: int
    url: str
    #: The same inbox with another subscriber, by what is measured of it.
    apps: dict[str, Flask]
    #: By cost.
    measured: dict[str, Measured]
    received: int = 0

    @property
    def app(self) -> Flask:
        return self.apps[RUN]


def run(bench: Bench, rounds: int) -> Part:
    about = (
        "The time of each in an inbox with so many events of the last 26 days: those of"
        " the last week with their bodies, the others as prune leaves them. As many"
        " events are dead in each. receive: one WSGI call with a new event. repeat: one"
        " with an event that is among the finished ones. run: claiming, running and"
        " settling one event of many that are due, with a subscriber that does nothing;"
        " likewise with latest_only and one_at_a_time. stats, errors, list and prune:"
        " the whole command without the start of Python; prune has nothing to do."
    )
    part = Part("growth", "An inbox that grows", about)
    for kind in (SQLITE, POSTGRESQL):
        try:
            bench.require(kind)
            part.measured += _grow(kind, bench, rounds)
        except Missing as missing:
            part.left_out.append(f"{kind}: {missing}")
    return part


def _grow(kind: str, bench: Bench, rounds: int) -> list[Measured]:
    """What it costs in one kind of database; nothing is left of it afterwards."""
    calls = 10 if bench.is_quick else 50
    with tempfile.TemporaryDirectory(dir=_place(kind, bench)) as name:
        with Databases(Path(name)) as databases:
            inboxes = [
                _filled(databases.make(kind), kind, size) for size in bench.sizes
            ]
            # Or the disk would still be writing them when the measuring begins.
            os.sync()
            for count in (1, rounds):
                for inbox in inboxes:
                    for measured in inbox.measured.values():
                        measured.forget()
                interleaved(inboxes, count, lambda one: _measure(one, calls))
                commanded = min(count, COMMAND_ROUNDS)
                interleaved(inboxes, commanded, _measure_commands)
            for inbox in inboxes:
                _check(inbox)
    return [inbox.measured[cost] for cost in inboxes[0].measured for inbox in inboxes]


def _place(kind: str, bench: Bench) -> Path:
    """A folder with room: in memory, where filling it is quick, or on the disk.

    :raises Missing: neither folder has enough room.
    """
    if kind == POSTGRESQL:
        return bench.folder
    try:
        return require_space(bench.databases.tmpfs(), sum(bench.sizes))
    except Missing:
        return require_space(bench.folder, sum(bench.sizes))


def require_space(folder: Path, rows: int) -> Path:
    """:raises Missing: the folder has too little room for so many rows."""
    if shutil.disk_usage(folder).free < 2 * rows * ROW_BYTES:
        gigabytes = 2 * rows * ROW_BYTES / 1e9
        raise Missing(f"{rows:,} rows want {gigabytes:.0f} GB free in {folder}")
    return folder


def _filled(url: str, kind: str, size: int) -> Inbox:
    fill_history(url, size)
    apps = {name: _app(url, options) for name, options in SUBSCRIBERS.items()}
    measured = {
        cost: Measured(cost, where(kind, size), figures("time")) for cost in EVENTS
    }
    for cost in COMMANDS:
        measured[cost] = Measured(cost, where(kind, size), figures("time"))
    return Inbox(size, url, apps, measured)


def _app(url: str, options: dict[str, bool]) -> Flask:
    app = configured("grown")
    app.config["PROCORE_WEBHOOK_DATABASE_URI"] = url
    webhooks = ProcoreWebhooks()
    webhooks.on("*", "*", **options)(_nothing)  # type: ignore[arg-type]
    app.register_blueprint(webhooks)
    return app


def _nothing(event: object) -> None:
    pass


def where(kind: str, size: int) -> str:
    return f"{kind}, {size:,} events"


def _measure(inbox: Inbox, calls: int) -> None:
    old = [*_repeats(inbox, calls)]
    for cost, app in inbox.apps.items():
        new = deliveries(calls, resources(inbox.count))
        received = _timed(_deliver, app, new) / calls
        if cost == RUN:
            inbox.measured[RECEIVE].add(time=received)
            repeated = _timed(_deliver, app, old) / calls
            inbox.measured[REPEAT].add(time=repeated)
        inbox.measured[cost].add(time=_timed(_run, app, calls) / calls)
        inbox.received += calls


def _measure_commands(inbox: Inbox) -> None:
    for command, options in COMMANDS.items():
        arguments = ["procore-webhooks", command, *options]
        inbox.measured[command].add(time=_timed(_command, inbox.app, arguments))


def _timed(work: Callable[..., None], *arguments: object) -> float:
    """Microseconds."""
    start = time.perf_counter()
    work(*arguments)
    return (time.perf_counter() - start) * 1e6


def _deliver(app: Flask, played: Iterable[Delivery]) -> None:
    statuses = answers(app, [delivery.environ() for delivery in played])
    if set(statuses) != {"200 OK"}:
        raise WrongAnswer(f"answers were {set(statuses)}")


def _run(app: Flask, calls: int) -> None:
    if (run := drain(app)) != calls:
        raise WrongAnswer(f"{run} of {calls} events were run")


def _command(app: Flask, arguments: list[str]) -> None:
    result = app.test_cli_runner().invoke(args=arguments)
    if result.exit_code:
        raise WrongAnswer(f"{' '.join(arguments)}: {result.output}")


def _repeats(inbox: Inbox, calls: int) -> Iterator[Delivery]:
    """Deliveries of events that are done; that of a dead one would run it again."""
    first = inbox.count - inbox.count // 5
    ids = random.sample(range(first, inbox.count + 1), 2 * calls)
    engine = sa.create_engine(inbox.url, poolclass=sa.NullPool)
    wanted = ", ".join(str(one) for one in ids)
    query = f"SELECT body FROM {TABLE} WHERE status = 'done' AND id IN ({wanted})"
    with engine.connect() as connection:
        found = connection.execute(sa.text(f"{query} LIMIT {calls}"))
        for body in found.scalars():
            yield signed(bytes(body))


def _check(inbox: Inbox) -> None:
    """Every new event is there and done, and no repeat is there twice."""
    ended = "'done', 'dead', 'unmatched'"
    done = rows(inbox.url, f"{TABLE} WHERE status IN ({ended})")
    every = rows(inbox.url, TABLE)
    wanted = inbox.count + inbox.received
    if not every == done == wanted:
        raise WrongAnswer(f"{wanted} events, {every} rows, of which {done} are done")
