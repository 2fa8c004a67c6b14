"""Statements that change several rows lock them in one order: they never deadlock."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from support.inboxes import numbered
from support.inboxes import record
from support.locks import wait_for_lock_wait
from support.sites import add_finished
from support.sites import at_once
from support.sites import open_site
from support.sites import Site

from flask_procore_webhooks.inbox import batches
from flask_procore_webhooks.inbox import claims
from flask_procore_webhooks.inbox.status import Status
from flask_procore_webhooks.operations.changes import replay
from flask_procore_webhooks.operations.prune import Old
from flask_procore_webhooks.operations.prune import prune_bodies
from flask_procore_webhooks.operations.prune import prune_rows
from flask_procore_webhooks.storage.store import Store

MakeApp = Callable[..., Flask]
ME = "me@here"
ROUNDS = 8


@pytest.fixture
def site(make_app: MakeApp, database_url: str) -> Iterator[Site]:
    with open_site(make_app(), database_url) as site:
        yield site


@pytest.fixture
def no_retries(monkeypatch: pytest.MonkeyPatch, database_url: str) -> None:
    """On PostgreSQL, the order alone prevents deadlocks.

    InnoDB also locks index entries, and SQLite's writers wait for each other.
    """
    if database_url.startswith("postgresql"):
        monkeypatch.setattr(Store, "retry_seconds", 0.0)


def dead_and_done(site: Site, number: int) -> list[int]:
    """Finished events whose row ids alternate between two statuses."""
    rows = []
    for index in range(40):
        status = Status.DEAD if index % 2 else Status.DONE
        name = f"{number}_{index}_"
        rows += add_finished(site, 1, status, age=1000, name=name)
    return rows


@pytest.mark.slow
@pytest.mark.usefixtures("no_retries")
def test_replays_of_the_same_events_in_opposite_orders(site: Site) -> None:
    for number in range(ROUNDS):
        rows = dead_and_done(site, number)
        orders = [rows, rows[::-1]] * 2
        counts = at_once(lambda r: replay(site.store, r, ME, anew=True), orders)
        assert sum(counts) == len(rows)


@pytest.mark.slow
@pytest.mark.usefixtures("no_retries")
def test_replays_and_prunes_of_the_same_events(site: Site) -> None:
    before = site.clock() - timedelta(seconds=500)

    def change(work: Any) -> int:
        if isinstance(work, list):
            return replay(site.store, work, ME, anew=True)
        return sum(work(site.store, Old(before, dead=True)))

    for number in range(ROUNDS):
        rows = dead_and_done(site, number)
        work = [rows, prune_rows, rows[::-1], prune_bodies]
        replayed, pruned, again, _ = at_once(change, [*work])
        assert replayed + again <= len(rows)
        c = site.events.c
        left = site.store.rows(sa.select(c.status).where(c.id.in_(rows)))
        assert len(left) == len(rows) - pruned
        assert {row.status for row in left} <= {"pending", "done", "dead"}


@pytest.mark.slow
@pytest.mark.usefixtures("no_retries")
def test_renewals_and_releases_of_the_same_claims(site: Site) -> None:
    store = site.store
    for number in range(ROUNDS):
        record(store, *numbered(30, f"evt{number}"))
        held = batches.claim_due(store, 30, 60)
        assert len(held) == 30
        changes = [
            partial(batches.renew, store, held, 60),
            partial(batches.renew, store, held[::-1], 60),
            partial(batches.release, store, held[::-1]),
            partial(replay, store, [c.row_id for c in held], ME),
        ]
        at_once(lambda change: change(), changes)
        again = batches.claim_due(store, 30, 60)
        assert len(again) == 30
        for claim in again:
            assert claims.settle(store, claim, claims.Settlement(Status.DONE))


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_deadlock_with_somebody_elses_transaction_is_tried_again(site: Site) -> None:
    first, second = add_finished(site, 2, Status.DEAD)
    lock = "SELECT 1 FROM procore_webhook_event WHERE id = {} FOR UPDATE"
    with ThreadPoolExecutor(1) as pool, site.store.connection(begin=True) as other:
        other.exec_driver_sql(lock.format(second))
        replayed = pool.submit(replay, site.store, [first, second], ME)
        wait_for_lock_wait(other)
        # The replay has waited for longer, so the server ends its transaction.
        other.exec_driver_sql(lock.format(first))
        other.exec_driver_sql("COMMIT")
        other.exec_driver_sql("BEGIN")
        assert replayed.result(30) == 2
