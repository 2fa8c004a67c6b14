"""Discards on every database."""

from __future__ import annotations

from typing import Any

import pytest
from support.jobs import add_event
from support.jobs import failed
from support.jobs import jobs_of
from support.jobs import set_event
from support.jobs import states_of
from support.jobs import take_lease
from support.sites import Site

from flask_procore_webhooks.operations.changes import discard
from flask_procore_webhooks.operations.changes import perform
from flask_procore_webhooks.operations.changes import preview
from flask_procore_webhooks.operations.changes import Summary
from flask_procore_webhooks.operations.filters import Filter
from flask_procore_webhooks.operations.journal import DISCARD
from flask_procore_webhooks.operations.journal import journal_of
from flask_procore_webhooks.operations.selection import Operation

ME = "me@here"
DEAD = failed("sync", "TimeoutError: after 30 s", attempts=12)
WAITS = failed("mail", "KeyError: x", "pending", wait=600, attempts=3)


def discard_all(site: Site, **options: Any) -> Summary:
    """Discard what the options select; check that the preview has told the same."""
    operation = Operation(DISCARD, **options)
    expected, summary = preview(site.store, operation), Summary()
    for _ in perform(site.store, operation, "b1", ME, summary=summary):
        pass
    assert summary == expected
    return summary


def test_discard_ends_pending_and_dead_jobs(site: Site) -> None:
    row = add_event(site.store, "1", DEAD, WAITS, {"subscriber": "done"})
    before = jobs_of(site.store, row)
    site.clock.forward(60)
    assert discard_all(site).jobs == 2

    event, jobs = site.row(row), jobs_of(site.store, row)
    now = site.store.db_now()
    assert (event["status"], event["due_at"], event["parked_at"]) == (
        "done",
        None,
        None,
    )
    assert event["finished_at"] == now
    assert jobs["done"] == before["done"]
    for name in ("sync", "mail"):
        assert jobs[name] == before[name] | {
            "state": "discarded",
            "version": 2,
            "due_at": None,
            "waits_for": None,
            "dead_at": None,
            "finished_at": now,
        }
    (entry,) = journal_of(site.store, row)
    former = {job["subscriber"]: job["state"] for job in entry["former"]["jobs"]}
    assert former == {"mail": "pending", "sync": "dead"}


def test_discard_of_pending_jobs_leaves_the_event_dead_if_a_job_is(site: Site) -> None:
    row = add_event(site.store, "1", DEAD, WAITS)
    assert discard_all(site, wanted=Filter(statuses=("pending",))).jobs == 1
    event = site.row(row)
    assert states_of(site.store, row) == {"mail": "discarded", "sync": "dead"}
    assert (event["status"], event["due_at"]) == ("dead", None)
    assert event["parked_at"] == event["finished_at"] == site.store.db_now()


def test_discard_of_one_subscriber_leaves_the_event_pending(site: Site) -> None:
    row = add_event(site.store, "1", DEAD, WAITS)
    due = site.row(row)["due_at"]
    discard_all(site, wanted=Filter(subscriber="sync"))
    assert states_of(site.store, row) == {"mail": "pending", "sync": "discarded"}
    event, mail = site.row(row), jobs_of(site.store, row)["mail"]
    assert event["status"] == "pending"
    # A claim that has read the jobs before compares the due time, and fails.
    assert event["due_at"] == mail["due_at"] > due
    assert (mail["version"], mail["attempts"]) == (1, 3)


def test_discard_ends_placeholders_and_jobs_of_unknown_subscribers(site: Site) -> None:
    absent = {"subscriber": "gone", "state": "pending", "waits_for": "absent"}
    placeholder = {"subscriber": "", "state": "pending"}
    rows = [
        add_event(site.store, "1", absent),
        add_event(site.store, "2", placeholder),
    ]
    assert discard_all(site, wanted=Filter(subscriber="gone")).jobs == 1
    assert [site.row(row)["status"] for row in rows] == ["done", "pending"]
    assert discard(site.store, rows, ME) == 1
    assert states_of(site.store, rows[1]) == {"": "discarded"}


@pytest.mark.parametrize("status", ["unmatched", "quarantined"])
def test_unmatched_and_quarantined_events_are_ended_if_they_are_named(
    site: Site, status: str
) -> None:
    row = add_event(site.store, "1", status=status)
    assert discard_all(site).events == 0
    assert site.row(row)["status"] == status
    assert discard_all(site, wanted=Filter(statuses=(status,))).bare == 1
    event = site.row(row)
    assert (event["status"], event["parked_at"]) == ("done", None)
    assert event["finished_at"] is not None


def test_event_that_has_not_run_yet_is_ended(site: Site) -> None:
    row = add_event(site.store, "1")
    assert discard(site.store, [row], ME) == 1
    event = site.row(row)
    assert (event["status"], event["due_at"]) == ("done", None)
    assert jobs_of(site.store, row) == {}


def test_discard_of_a_subscriber_of_an_event_that_has_not_run_yet(site: Site) -> None:
    """The other subscribers run: the placeholder stands for them."""
    row = add_event(site.store, "1")
    due = site.row(row)["due_at"]
    wanted = Filter(subscriber="sync")
    assert discard_all(site, wanted=wanted).events == 0, "it does not match"
    assert discard_all(site, wanted=wanted, adds=lambda event: True).jobs == 1
    assert states_of(site.store, row) == {"": "pending", "sync": "discarded"}
    event, jobs = site.row(row), jobs_of(site.store, row)
    assert event["status"] == "pending"
    assert event["due_at"] == jobs[""]["due_at"] > due


def test_running_event_is_left_out_and_finished_jobs_stay(site: Site) -> None:
    running = add_event(site.store, "1", WAITS)
    take_lease(site.store, running, 100)
    done = add_event(site.store, "2", {"subscriber": "sync"}, WAITS)
    before = jobs_of(site.store, running)
    assert discard_all(site).left_out == {"running": 1, "finished already": 1}
    assert jobs_of(site.store, running) == before
    assert states_of(site.store, done) == {"mail": "discarded", "sync": "done"}


def test_event_whose_body_is_pruned_is_discarded(site: Site) -> None:
    row = add_event(site.store, "1", DEAD)
    set_event(site.store, row, body=None)
    assert discard_all(site).jobs == 1
    assert site.row(row)["status"] == "done"


def test_discarded_job_leaves_no_error_of_its_event(site: Site) -> None:
    store, mail = site.store, failed("mail", "KeyError: x", attempts=3)
    rows = [
        add_event(store, f"{n}", *jobs) for n, jobs in enumerate([[DEAD], [DEAD, mail]])
    ]
    for row in rows:
        set_event(store, row, status="dead", error="sync: TimeoutError: after 30 s")
    discard_all(site, wanted=Filter(subscriber="sync"))
    assert [site.row(row)["status"] for row in rows] == ["done", "dead"]
    assert [site.row(row)["error"] for row in rows] == [None, "mail: KeyError: x"]
