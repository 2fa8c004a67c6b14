"""``worker``: run events in processes of their own."""

from __future__ import annotations

import logging
import os
import sys

import click
from flask.cli import with_appcontext

from ..endpoint import Endpoint
from ..errors import InboxUnavailable
from ..inbox.due import is_paused
from ..inbox.tally import flush_all
from ..running.notify import listening
from ..running.pool import Pool
from ..storage.engines import is_in_memory
from ._options import command
from ._options import endpoints_named
from ._options import one_endpoint

#: Seconds; the longest wait of a thread.
A_DAY = 24 * 3600.0
#: The exit code when more threads hang than are replaced: a supervisor restarts it.
EXHAUSTED = 3


@command("worker")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Threads; each runs one event at a time.",
)
@click.option("--once", is_flag=True, help="End when nothing is due.")
@click.option(
    "--poll",
    type=click.FloatRange(0.05, A_DAY),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two polls while no event is due.",
)
@click.option(
    "--grace",
    type=click.FloatRange(0, A_DAY),
    default=20.0,
    show_default=True,
    metavar="SECONDS",
    help="Time for running events to end after SIGTERM.",
)
@one_endpoint
@with_appcontext
def worker(
    concurrency: int, once: bool, poll: float, grace: float, endpoint: str | None
) -> None:
    """Run events when they are due; start any number of workers on any hosts.

    On SIGTERM or Ctrl+C the worker ends after its running events and releases the
    claimed events that it has not started. A second signal ends it at once.

    A thread whose subscriber exceeds its timeout is replaced. When more threads hang
    than --concurrency, the worker ends with exit code 3, so that it is restarted.
    """
    mounted = endpoints_named(endpoint)
    _refuse_in_memory(mounted)
    pool = Pool(mounted, concurrency, poll=poll)
    names = ", ".join(each.name for each in mounted)
    click.echo(f"Running the events of {names}, {concurrency} at a time.")
    for each in mounted:
        if _is_known_paused(each):
            click.echo(f"{each.name} is paused: no event runs until resume.")
    notified = [each.store for each in mounted if each.dispatch == "worker"]
    with pool.ends_on_signals(), listening([] if once else notified, pool.wake_all):
        pool.run(once)
        pool.end(grace)
    # Some of the ends below are no regular end of the process.
    flush_all()
    click.echo(f"Ended after {pool.ran} runs.")
    if pool.failure:
        raise pool.failure
    if pool.is_exhausted:
        _exit_at_once(EXHAUSTED)
    if pool.is_running:
        _exit_at_once(0)


def _is_known_paused(endpoint: Endpoint) -> bool:
    try:
        return is_paused(endpoint.store)
    except InboxUnavailable:
        return False  # the workers log it and poll again


def _exit_at_once(code: int) -> None:
    # A regular exit waits for the threads in which async subscribers run.
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _refuse_in_memory(mounted: list[Endpoint]) -> None:
    for each in mounted:
        if is_in_memory(each.store.database.url):
            raise click.ClickException(
                f"The inbox of {each.name} is in the memory of the server's process: a"
                " worker cannot read it."
            )
