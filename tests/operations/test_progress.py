"""The progress of batches on every database."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from support.jobs import add_event
from support.jobs import failed
from support.jobs import set_event
from support.jobs import take_lease
from support.sites import Site

from flask_procore_webhooks.operations.changes import discard
from flask_procore_webhooks.operations.changes import perform
from flask_procore_webhooks.operations.changes import replay
from flask_procore_webhooks.operations.journal import REPLAY
from flask_procore_webhooks.operations.progress import Progress
from flask_procore_webhooks.operations.progress import progress
from flask_procore_webhooks.operations.prune import Old
from flask_procore_webhooks.operations.prune import prune_rows
from flask_procore_webhooks.operations.selection import Operation
from flask_procore_webhooks.operations.selection import PART

ME = "me@here"
DEAD = failed("sync", "TimeoutError: after 30 s", attempts=12)


def progress_of(site: Site, batch: str = "b1") -> Progress:
    found = progress(site.store, batch)
    assert found is not None
    return found


def end(site: Site, row: int, state: str, status: str, **values: Any) -> None:
    """End the job of an event, as a run does."""
    job = site.store.database.tables.job
    with site.store.connection() as connection:
        change = sa.update(job).where(job.c.event == row)
        connection.execute(change.values(state=state, **values))
    set_event(site.store, row, status=status, finished_at=site.store.db_now())


def test_every_job_of_a_batch_is_accounted_for(site: Site) -> None:
    names = "waits runs done gone super failed dead later".split()
    rows = {name: add_event(site.store, name, DEAD) for name in names}
    assert replay(site.store, list(rows.values()), ME, batch="b1") == 8
    assert progress_of(site).counts == {"waiting": 8}

    end(site, rows["gone"], "done", "done")
    site.clock.forward(10)
    assert sum(prune_rows(site.store, Old(site.clock()))) == 1
    take_lease(site.store, rows["runs"], 100)
    end(site, rows["done"], "done", "done")
    end(site, rows["super"], "superseded", "done")
    end(site, rows["failed"], "pending", "pending", attempts=1)
    end(site, rows["dead"], "dead", "dead")
    end(site, rows["later"], "dead", "dead")
    replay(site.store, [rows["later"]], ME, batch="b2")

    found = progress_of(site)
    assert found.counts == {
        "waiting": 1,
        "running": 1,
        "done": 1,
        "pruned": 1,
        "superseded": 1,
        "failed again": 1,
        "dead again": 1,
        "in a later replay": 1,
    }
    assert (found.total, found.open, found.bad) == (8, 3, 1)


def test_events_without_jobs_are_accounted_for(site: Site) -> None:
    names = "waits done unmatched dead failed".split()
    rows = {name: add_event(site.store, name, status="unmatched") for name in names}
    replay(site.store, list(rows.values()), ME, batch="b1")
    for name in ("done", "unmatched", "dead"):
        set_event(site.store, rows[name], status=name, due_at=None)
    job = site.store.database.tables.job
    values = {"event": rows["failed"], "subscriber": "sync", "state": "pending"}
    values |= {"endpoint": site.endpoint.name, "version": 1, "attempts": 1}
    with site.store.connection() as connection:
        connection.execute(sa.insert(job), values)
    found = progress_of(site)
    assert found.counts == {
        "waiting": 1,
        "done": 1,
        "unmatched again": 1,
        "dead again": 1,
        "failed again": 1,
    }
    assert (found.total, found.open, found.bad) == (5, 2, 2)


def test_interrupted_batch_is_not_accounted_for(site: Site) -> None:
    rows = [add_event(site.store, f"{n}", DEAD) for n in range(3)]
    operation = Operation(REPLAY, rows=tuple(rows[:2]))
    parts = perform(site.store, operation, "b1", ME, expected=3)
    next(parts)
    parts.close()
    assert progress_of(site).counts == {"waiting": 2, "not changed yet": 1}
    assert list(perform(site.store, Operation(REPLAY, rows=tuple(rows)), "b1", ME))
    assert progress_of(site).counts == {"waiting": 3}


def test_discard_is_accounted_for_and_keeps_the_batch_of_a_replay(site: Site) -> None:
    rows = [add_event(site.store, f"{n}", DEAD) for n in range(2)]
    replay(site.store, rows, ME, batch="b1")
    discard(site.store, rows[:1], ME, batch="b2")
    assert progress_of(site).counts == {"waiting": 1, "discarded": 1}
    assert progress_of(site, "b2").counts == {"discarded": 1}
    assert progress(site.store, "none") is None


def test_ended_batch_that_is_given_again_keeps_its_number(site: Site) -> None:
    rows = [add_event(site.store, f"{n}", DEAD) for n in range(3)]
    replay(site.store, rows, ME, batch="b1")
    for row in rows:
        end(site, row, "done", "done")
    site.clock.forward(60)
    for _ in prune_rows(site.store, Old(site.store.now())):
        pass
    assert progress_of(site).counts == {"pruned": 3}
    replay(site.store, rows, ME, batch="b1")
    assert progress_of(site).counts == {"pruned": 3}


def test_replay_that_goes_on_keeps_its_rate(site: Site) -> None:
    rows = [add_event(site.store, f"{n}", DEAD) for n in range(PART + 1)]
    operation = Operation(REPLAY, rows=tuple(rows), rate=1.0)
    next(perform(site.store, operation, "b1", ME))  # and it is killed
    began = site.store.db_now()
    site.clock.forward(60)
    assert sum(map(len, perform(site.store, operation, "b1", ME))) == 1
    due = [(site.row(row)["due_at"] - began).total_seconds() for row in rows]
    assert due == [float(n) for n in range(PART + 1)]
