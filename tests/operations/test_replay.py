"""Replays on every database: which jobs and events they change, and to what."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from support.jobs import add_event
from support.jobs import failed
from support.jobs import jobs_of
from support.jobs import set_event
from support.jobs import states_of
from support.jobs import take_lease
from support.sites import open_site
from support.sites import Site

from flask_procore_webhooks.inbox import claims
from flask_procore_webhooks.inbox.filters import Filter
from flask_procore_webhooks.operations.changes import perform
from flask_procore_webhooks.operations.changes import preview
from flask_procore_webhooks.operations.changes import replay
from flask_procore_webhooks.operations.changes import Summary
from flask_procore_webhooks.operations.journal import batch_of
from flask_procore_webhooks.operations.journal import journal_of
from flask_procore_webhooks.operations.journal import note
from flask_procore_webhooks.operations.journal import REPLAY
from flask_procore_webhooks.operations.selection import Operation
from flask_procore_webhooks.operations.selection import operation_of
from flask_procore_webhooks.operations.selection import PART

ME = "me@here"
DEAD = failed("sync", "TimeoutError: after 30 s", attempts=12)


def perform_all(site: Site, batch: str = "b1", **options: Any) -> Summary:
    """Replay what the options select; check that the preview has told the same."""
    operation = Operation(REPLAY, **options)
    expected, summary = preview(site.store, operation, batch), Summary()
    for _ in perform(site.store, operation, batch, ME, summary=summary):
        pass
    assert summary == expected
    return summary


# Dead jobs


def test_replay_without_a_status_resets_dead_jobs_and_keeps_finished_ones(
    site: Site,
) -> None:
    store = site.store
    row = add_event(store, "1", {"subscriber": "mail"}, DEAD)
    before = jobs_of(store, row)
    site.clock.forward(60)
    assert perform_all(site).units == 1

    event, jobs = site.row(row), jobs_of(store, row)
    assert (event["status"], event["due_at"]) == ("pending", store.db_now())
    assert (event["parked_at"], event["finished_at"], event["lease"]) == (None,) * 3
    assert jobs["mail"] == before["mail"]
    assert jobs["sync"] == before["sync"] | {
        "state": "pending",
        "version": 2,
        "attempts": 0,
        "due_at": store.db_now(),
        "waits_for": "nothing",
        "first_at": None,
        "finished_at": None,
        "dead_at": None,
        "batch": "b1",
    }


def test_replay_without_a_status_takes_dead_jobs_of_pending_events(site: Site) -> None:
    waits = {"subscriber": "mail", "state": "pending", "wait": 600}
    row = add_event(site.store, "1", waits, DEAD)
    later = site.row(row)["due_at"]
    site.clock.forward(60)
    assert perform_all(site).jobs == 1
    assert site.row(row)["due_at"] == site.store.db_now()
    mail = jobs_of(site.store, row)["mail"]
    assert (mail["due_at"], mail["version"], mail["batch"]) == (later, 1, None)


@pytest.mark.parametrize(
    ("wanted", "selected"),
    [
        (Filter(subscriber="sync"), ["1", "2"]),
        (Filter(error="HTTPError"), ["2", "3"]),
        (Filter(subscriber="sync", error="httperror: 503"), ["2"]),
        (Filter(type="RFIs.update"), ["1", "2"]),
        (Filter(resource_type="Submittals"), ["3"]),
    ],
)
def test_replay_selects_by_filters_of_events_and_jobs(
    site: Site, wanted: Filter, selected: list[str]
) -> None:
    store, http = site.store, "HTTPError: 503"
    rows = {
        "1": add_event(store, "1", DEAD),
        "2": add_event(store, "2", failed("sync", http), failed("mail", "KeyError: x")),
        "3": add_event(store, "3", failed("mail", http), resource_type="Submittals"),
    }
    assert perform_all(site, wanted=wanted).events == len(selected)
    changed = [id for id, row in rows.items() if site.row(row)["status"] == "pending"]
    assert changed == selected


def test_replay_by_time_of_death(site: Site) -> None:
    old = add_event(site.store, "1", DEAD)
    site.clock.forward(3600)
    when = site.clock()
    new = add_event(site.store, "2", DEAD)
    assert perform_all(site, wanted=Filter(died_since=when)).events == 1
    assert [site.row(row)["status"] for row in (old, new)] == ["dead", "pending"]


def test_replay_of_one_subscriber_leaves_the_dead_jobs_of_others(site: Site) -> None:
    row = add_event(site.store, "1", DEAD, failed("mail", "KeyError: x"))
    perform_all(site, wanted=Filter(subscriber="sync"))
    assert states_of(site.store, row) == {"mail": "dead", "sync": "pending"}
    assert site.row(row)["status"] == "pending"


# Finished jobs


FINISHED = ["done", "discarded", "superseded", "suppressed"]


@pytest.mark.parametrize("state", FINISHED)
@pytest.mark.parametrize("anew", [False, True])
def test_finished_jobs_are_replayed_only_anew(
    site: Site, state: str, anew: bool
) -> None:
    row = add_event(site.store, "1", {"subscriber": "sync", "state": state})
    summary = perform_all(site, wanted=Filter(statuses=("done",)), anew=anew)
    assert states_of(site.store, row) == {"sync": "pending" if anew else state}
    assert summary.events == anew
    assert summary.left_out == ({} if anew else {"finished already": 1})
    assert site.row(row)["status"] == ("pending" if anew else "done")


def test_replay_of_named_events_runs_finished_jobs_only_anew(site: Site) -> None:
    row = add_event(site.store, "1", {"subscriber": "mail"}, DEAD)
    assert replay(site.store, [row], ME) == 1
    assert states_of(site.store, row) == {"mail": "done", "sync": "pending"}
    assert replay(site.store, [row], ME, anew=True) == 1
    assert states_of(site.store, row) == {"mail": "pending", "sync": "pending"}


# Waiting jobs


def test_waiting_jobs_are_hurried_and_keep_their_attempts(site: Site) -> None:
    retries = failed("sync", "TimeoutError: x", "pending", wait=600, attempts=4)
    row = add_event(site.store, "1", retries)
    site.clock.forward(60)
    assert perform_all(site, wanted=Filter(statuses=("pending",))).jobs == 1
    job = jobs_of(site.store, row)["sync"]
    assert (job["attempts"], job["version"], job["batch"]) == (4, 2, "b1")
    assert job["due_at"] == site.row(row)["due_at"] == site.store.db_now()
    assert job["waits_for"] == "nothing"


def test_waiting_jobs_of_one_subscriber_are_hurried(site: Site) -> None:
    waits = {"state": "pending", "wait": 600}
    row = add_event(
        site.store, "1", {"subscriber": "a", **waits}, {"subscriber": "b", **waits}
    )
    wanted = Filter(statuses=("pending",), subscriber="b")
    assert perform_all(site, wanted=wanted).jobs == 1
    jobs = jobs_of(site.store, row)
    assert jobs["b"]["due_at"] == site.row(row)["due_at"] == site.store.db_now()
    assert jobs["a"]["due_at"] == site.store.db_now() + timedelta(seconds=600)


def test_jobs_that_are_due_already_are_left_out(site: Site) -> None:
    add_event(site.store, "1", {"subscriber": "sync", "state": "pending"})
    add_event(site.store, "2")
    summary = perform_all(site, wanted=Filter(statuses=("pending",)))
    assert (summary.events, summary.left_out) == (0, {"due already": 2})


def test_event_that_has_not_run_yet_is_hurried(site: Site) -> None:
    row = add_event(site.store, "1")
    due = site.store.db_now() + timedelta(seconds=600)
    set_event(site.store, row, due_at=due)
    assert perform_all(site, wanted=Filter(statuses=("pending",))).bare == 1
    assert site.row(row)["due_at"] == site.store.db_now()


def test_change_of_jobs_always_changes_the_due_time_of_their_event(site: Site) -> None:
    """A claim that has read the jobs before compares the due time, and fails."""
    due = {"subscriber": "mail", "state": "pending"}
    row = add_event(site.store, "1", due, DEAD)
    before = site.row(row)["due_at"]
    assert before == site.store.db_now()
    perform_all(site)
    event, jobs = site.row(row), jobs_of(site.store, row)
    assert event["due_at"] > before
    assert event["due_at"] == min(job["due_at"] for job in jobs.values())


# Events without jobs


@pytest.mark.parametrize("status", ["unmatched", "ignored", "quarantined", "dead"])
def test_event_without_jobs_becomes_pending(site: Site, status: str) -> None:
    row = add_event(site.store, "1", status=status)
    other = add_event(site.store, "2", status=status, resource_type="Submittals")
    wanted = Filter(statuses=(status,), type="RFIs.update")
    summary = perform_all(site, wanted=wanted)
    assert (summary.events, summary.bare, summary.jobs) == (1, 1, 0)
    event = site.row(row)
    assert (event["status"], event["due_at"]) == ("pending", site.store.db_now())
    assert (event["parked_at"], event["finished_at"]) == (None, None)
    assert jobs_of(site.store, row) == {}
    assert site.row(other)["status"] == status


def test_new_subscriber_gets_jobs_of_the_events_that_it_matches(site: Site) -> None:
    matching = add_event(site.store, "1", {"subscriber": "sync"})
    has_one = add_event(site.store, "2", {"subscriber": "new"})
    other = add_event(site.store, "3", {"subscriber": "sync"}, reason="create")
    wanted = Filter(statuses=("done",), subscriber="new")
    options = {"wanted": wanted, "adds": lambda row: row.reason == "update"}
    summary = perform_all(site, **options)
    assert (summary.events, summary.subscribers) == (1, {"new"})
    assert summary.left_out == {"finished already": 1}

    jobs = jobs_of(site.store, matching)
    assert {name: job["state"] for name, job in jobs.items()} == {
        "new": "pending",
        "sync": "done",
    }
    assert (jobs["new"]["version"], jobs["new"]["attempts"]) == (1, 0)
    assert (jobs["new"]["due_at"], jobs["new"]["batch"]) == (site.store.db_now(), "b1")
    assert site.row(matching)["status"] == "pending"
    assert [site.row(row)["status"] for row in (has_one, other)] == ["done", "done"]


# What is left out


def test_running_event_is_left_out_until_its_lease_ends(site: Site) -> None:
    row = add_event(site.store, "1", DEAD, {"subscriber": "mail", "state": "pending"})
    take_lease(site.store, row, 100)
    before, jobs = site.row(row), jobs_of(site.store, row)
    site.clock.forward(99)
    assert perform_all(site).left_out == {"running": 1}
    assert (site.row(row), jobs_of(site.store, row)) == (before, jobs)

    site.clock.forward(1)
    assert perform_all(site, "b2").jobs == 1
    event = site.row(row)
    assert (event["status"], event["lease"], event["claims"]) == ("pending", None, 1)


def test_event_whose_body_is_pruned_is_left_out(site: Site) -> None:
    row = add_event(site.store, "1", DEAD)
    set_event(site.store, row, body=None)
    before = site.row(row)
    summary = perform_all(site)
    assert summary.left_out == {"without their bodies, which are pruned": 1}
    assert (summary.events, site.row(row)) == (0, before)
    assert batch_of(site.store, "b1") is None, "nothing was to be changed"


def test_replay_changes_no_event_of_another_endpoint(
    two_sites: tuple[Site, Site],
) -> None:
    site, other = two_sites
    mine, theirs = add_event(site.store, "1", DEAD), add_event(other.store, "1", DEAD)
    before = other.row(theirs)
    assert replay(site.store, [mine, theirs], ME) == 1
    assert perform_all(site).events == 0
    assert (other.row(theirs), states_of(other.store, theirs)) == (
        before,
        {"sync": "dead"},
    )


def test_replaying_nothing_does_nothing(site: Site) -> None:
    assert replay(site.store, [], ME) == 0
    assert replay(site.store, [12345], ME) == 0
    assert site.count("journal") == 0


# Batches


def test_journal_has_the_filter_and_expected_count_before_the_first_change(
    site: Site,
) -> None:
    rows = [add_event(site.store, f"{n}", DEAD) for n in range(3)]
    wanted = Filter(subscriber="sync", since=site.clock(), statuses=("dead",))
    operation = Operation(REPLAY, wanted, rate=0.5)
    # Before the first part, an event of the preview is replayed by somebody else.
    expected = preview(site.store, operation).units
    replay(site.store, rows[:1], "ann")
    parts = perform(site.store, operation, "b1", ME, expected=expected)
    next(parts)
    found = batch_of(site.store, "b1")
    assert found is not None
    assert (found.action, found.actor, found.actual) == ("replay", ME, None)
    assert found.expected == expected == 3
    assert operation_of(REPLAY, found.filter) == operation
    assert list(parts) == []
    ended = batch_of(site.store, "b1")
    assert ended is not None and ended.actual == 2


def test_journal_of_an_event_has_the_former_error_and_attempts(site: Site) -> None:
    row = add_event(site.store, "1", DEAD, {"subscriber": "mail"})
    replay(site.store, [row], ME, batch="b1")
    (entry,) = journal_of(site.store, row)
    assert (entry["action"], entry["actor"], entry["batch"]) == ("replay", ME, "b1")
    assert entry["at"] == site.store.db_now()
    assert entry["former"] == {
        "status": "dead",
        "error": "sync: after 30 s",
        "jobs": [
            {
                "subscriber": "sync",
                "state": "dead",
                "attempts": 12,
                "error_class": "TimeoutError",
                "error": "after 30 s",
            }
        ],
    }


def test_former_errors_of_any_text_and_length_are_kept(site: Site) -> None:
    error = "ValueError: " + "\N{PILE OF POO}" * 300
    jobs = [failed(f"s{number:02}", error) for number in range(40)]
    row = add_event(site.store, "1", *jobs)
    assert replay(site.store, [row], "\0\ud800ü" + "x" * 500) == 1
    (entry,) = journal_of(site.store, row)
    assert len(entry["former"]["jobs"]) == 40
    assert len(entry["actor"]) == 160


def test_interrupted_replay_goes_on_with_its_batch(site: Site) -> None:
    rows = [add_event(site.store, f"{n:04}", DEAD) for n in range(PART + 5)]
    operation = Operation(REPLAY)
    parts = perform(site.store, operation, "b1", ME)
    assert len(next(parts)) == PART
    parts.close()
    # An event of the first part is dead again.
    again = rows[0]
    dead = {"state": "dead", "due_at": None, "dead_at": site.store.db_now()}
    with site.store.connection() as connection:
        job = site.store.database.tables.job
        mine = job.c.event == again
        connection.execute(job.update().where(mine).values(dead))
    set_event(site.store, again, status="dead", due_at=None, parked_at=dead["dead_at"])

    assert preview(site.store, operation, "b1").events == 5
    assert sum(map(len, perform(site.store, operation, "b1", ME))) == 5
    assert site.row(again)["status"] == "dead"
    found = batch_of(site.store, "b1")
    assert found is not None
    assert (found.expected, found.actual) == (PART + 5, PART + 5)
    assert perform_all(site, "b2").events == 1


def test_rate_spaces_the_due_times(site: Site) -> None:
    rows = [add_event(site.store, f"{n}", DEAD) for n in range(5)]
    perform_all(site, rate=2.0)
    start = site.store.db_now()
    seconds = [(site.row(row)["due_at"] - start).total_seconds() for row in rows]
    assert seconds == [0.0, 0.5, 1.0, 1.5, 2.0]
    for row in rows:
        assert jobs_of(site.store, row)["sync"]["due_at"] == site.row(row)["due_at"]


def test_rate_never_delays_a_waiting_job(site: Site) -> None:
    waits = {"subscriber": "sync", "state": "pending", "wait": 1}
    rows = [add_event(site.store, f"{n}", waits) for n in range(3)]
    start = site.store.db_now()
    perform_all(site, wanted=Filter(statuses=("pending",)), rate=1.0)
    due = [jobs_of(site.store, row)["sync"]["due_at"] for row in rows]
    assert due[0] == start
    assert max(due) <= start + timedelta(seconds=1.000002)


def test_names_of_too_many_events_are_not_stored(site: Site) -> None:
    operation = Operation(REPLAY, rows=tuple(range(10**9, 10**9 + 10_000)))
    options = operation.to_json()
    note(site.store, REPLAY, ME, batch="b1", filter=options, expected=1)
    found = batch_of(site.store, "b1")
    assert found is not None
    with pytest.raises(ValueError, match="does not hold the ids of its 10000 events"):
        operation_of(REPLAY, found.filter)


# Beside runs


def test_replayed_jobs_run_and_finished_ones_do_not(site: Site) -> None:
    site.subscribe_good_and_bad()
    row = site.send(id="1")
    site.work()
    assert site.calls == [("good", "1"), ("bad", "1")]
    assert states_of(site.store, row) == {"bad": "dead", "good": "done"}
    site.clock.forward(60)
    assert perform_all(site).jobs == 1
    assert site.row(row)["error"] == "bad: ValueError: broken", "until it is run"

    site.broken = False
    assert site.work() == 1
    assert site.calls[2:] == [("bad", "1")]
    assert states_of(site.store, row) == {"bad": "done", "good": "done"}
    assert site.row(row)["status"] == "done"
    (entry,) = journal_of(site.store, row)
    assert entry["former"]["jobs"][0]["error"] == "broken"


def test_replayed_jobs_have_all_attempts_before_them(
    make_app: Callable[..., Flask], database_url: str
) -> None:
    config = {"PROCORE_WEBHOOK_MAX_ATTEMPTS": 3, "PROCORE_WEBHOOK_RETRY_BASE": 1}
    with open_site(make_app(), database_url, **config) as site:
        site.subscribe_good_and_bad()
        row = site.send()
        for runs in (3, 6):
            for _ in range(3):
                assert site.work() == 1
                site.clock.forward(10)
            assert site.work() == 0
            assert jobs_of(site.store, row)["bad"]["attempts"] == 3
            assert [name for name, _ in site.calls].count("bad") == runs
            assert replay(site.store, [row], ME) == 1


def test_new_subscriber_runs_for_events_that_are_done(site: Site) -> None:
    site.webhooks.on(name="old")(lambda event: site.calls.append("old"))
    row = site.send()
    site.work()
    site.webhooks.on(name="new")(lambda event: site.calls.append("new"))
    wanted = Filter(statuses=("done",), subscriber="new")
    assert perform_all(site, wanted=wanted, adds=lambda event: True).jobs == 1
    site.work()
    assert site.calls == ["old", "new"]
    assert states_of(site.store, row) == {"new": "done", "old": "done"}


def test_unmatched_event_runs_once_its_subscriber_is_there(site: Site) -> None:
    row = site.send()
    site.work()
    assert site.statuses() == ["unmatched"]
    site.webhooks.on(name="late")(lambda event: site.calls.append("late"))
    assert perform_all(site, wanted=Filter(statuses=("unmatched",))).bare == 1
    site.work()
    assert (site.calls, site.statuses()) == (["late"], ["done"])
    assert states_of(site.store, row) == {"late": "done"}


def test_claim_that_has_read_the_jobs_before_a_replay_fails(site: Site) -> None:
    """The replay changes another job than the one that is due."""
    site.subscribe_good_and_bad()
    due = {"subscriber": "good", "state": "pending"}
    row = add_event(site.store, "1", due, failed("bad", "ValueError: broken"))
    replayed: list[int] = []

    @sa.event.listens_for(site.store.database.engine, "before_cursor_execute")
    def replay_before_the_claim(
        connection: Any, cursor: Any, statement: str, *rest: Any
    ) -> None:
        if statement.startswith("UPDATE procore_webhook_event") and not replayed:
            replayed.append(0)
            with ThreadPoolExecutor(1) as pool:
                replayed[0] = pool.submit(replay, site.store, [row], ME).result(60)

    assert claims.claim(site.store, row, 60) is None
    assert replayed == [1]
    site.clock.forward(1)
    site.broken = False
    site.work()
    assert states_of(site.store, row) == {"bad": "done", "good": "done"}
