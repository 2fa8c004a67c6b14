"""``worker``: run events in processes of their own."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress
from types import FrameType

import click
from flask.cli import with_appcontext

from ..endpoint import Endpoint
from ..engines import is_in_memory
from ..errors import InboxUnavailable
from ..upkeep import is_paused
from ..wakeup import listening
from ..worker import Worker
from .options import command
from .options import endpoints_named
from .options import one_endpoint

SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: Seconds; no thread can wait for ever so long.
A_DAY = 24 * 3600.0


@command("worker")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Threads, each with an event of its own.",
)
@click.option("--once", is_flag=True, help="End when nothing is due.")
@click.option(
    "--poll",
    type=click.FloatRange(0.05, A_DAY),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two looks for new events, when there is nothing to do.",
)
@click.option(
    "--grace",
    type=click.FloatRange(0, A_DAY),
    default=20.0,
    show_default=True,
    metavar="SECONDS",
    help="Left to running events when told to end (SIGTERM).",
)
@one_endpoint
@with_appcontext
def work(
    concurrency: int, once: bool, poll: float, grace: float, endpoint: str | None
) -> None:
    """Run events as they come in; start any number of these, on any number of hosts.

    On SIGTERM or Ctrl+C it ends after the events that it is running, and gives back
    what it has not begun; a second signal ends it at once.
    """
    mounted = endpoints_named(endpoint)
    _refuse_in_memory(mounted)
    crew = Crew([Worker(mounted, poll=poll) for _ in range(concurrency)])
    names = ", ".join(each.name for each in mounted)
    click.echo(f"Running the events of {names}, {concurrency} at a time.")
    for each in mounted:
        if _is_known_paused(each):
            click.echo(f"{each.name} is paused: nothing is run until resume.")
    told = [] if once else [e.inbox for e in mounted if e.dispatch == "worker"]
    with crew.ends_on_signals(), listening(told, crew.wake):
        crew.run(once)
        crew.end(grace)
    click.echo(f"Ended after {crew.ran} events.")
    if crew.failure:
        raise crew.failure
    if crew.is_running:
        _exit_at_once()


class Crew:
    """Workers, a thread for each."""

    def __init__(self, workers: list[Worker]) -> None:
        #: Why a thread ended that was not told to.
        self.failure: Exception | None = None
        self._workers = workers
        self._threads: list[threading.Thread] = []
        self._told_to_end = threading.Event()

    @property
    def ran(self) -> int:
        return sum(worker.ran for worker in self._workers)

    @property
    def is_running(self) -> bool:
        """Whether a run has not ended yet."""
        return any(thread.is_alive() for thread in self._threads)

    def run(self, once: bool) -> None:
        """Start the threads; return when they have ended, or when told to end them."""
        for worker in self._workers:
            work = worker.run_all if once else worker.run
            thread = threading.Thread(target=self._watched, args=(work,), daemon=True)
            thread.start()
            self._threads.append(thread)
        while self.is_running:
            if self._told_to_end.wait(0.05 if once else 1.0):
                return

    def wake(self) -> None:
        """There is something to do, for as many as there are."""
        for worker in self._workers:
            worker.wake()

    def end(self, grace: float) -> None:
        """Have every worker end after its event; give back what is left then."""
        for worker in self._workers:
            worker.stop()
        deadline = time.monotonic() + grace
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        for worker in self._workers:
            # If the database is away, they are free when their lease is over.
            with suppress(InboxUnavailable):
                worker.give_back()

    @contextmanager
    def ends_on_signals(self) -> Iterator[None]:
        before = {each: signal.signal(each, self._end) for each in SIGNALS}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._told_to_end.set()
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)

    def _watched(self, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:
            self.failure = error


def _is_known_paused(endpoint: Endpoint) -> bool:
    try:
        return is_paused(endpoint.inbox)
    except InboxUnavailable:
        return False  # workers say so, and look again


def _exit_at_once() -> None:
    # At its usual end, Python waits for the threads that async subscribers run in.
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _refuse_in_memory(mounted: list[Endpoint]) -> None:
    for each in mounted:
        if is_in_memory(each.inbox.database.url):
            raise click.ClickException(
                f"The inbox of {each.name} is in the memory of the server's process: no"
                " other process can run its events."
            )
