"""Jobs: each subscriber's work for an event has a state and a schedule of its own.

The rules of jobs are those of the architecture: each has a test that fails without it.
The tests of rules 7 and 8, the clock and the tally, are those of the inbox.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from datetime import datetime
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from support.hosts import deliver_at
from support.hosts import Host
from support.hosts import run_host
from support.inboxes import record
from support.inboxes import row
from support.inboxes import states
from support.inboxes import statuses
from support.values import Clock

from flask_procore_webhooks import Discard
from flask_procore_webhooks import Event
from flask_procore_webhooks import event_dead
from flask_procore_webhooks import event_failed
from flask_procore_webhooks import RetryLater
from flask_procore_webhooks.dispatching.worker import Worker
from flask_procore_webhooks.inbox import claims
from flask_procore_webhooks.inbox.completion import finish
from flask_procore_webhooks.inbox.jobs import Job
from flask_procore_webhooks.inbox.status import JobState
from flask_procore_webhooks.operations.changes import replay
from flask_procore_webhooks.operations.pauses import pause
from flask_procore_webhooks.operations.pauses import resume
from flask_procore_webhooks.running.failures import RunOutcome
from flask_procore_webhooks.running.run import process
from flask_procore_webhooks.testing import payload

MakeApp = Callable[..., Flask]
DAY = 24 * 3600.0
SETTINGS = {
    "PROCORE_WEBHOOK_DISPATCH": "worker",
    "PROCORE_WEBHOOK_MAX_ATTEMPTS": 2,
    "PROCORE_WEBHOOK_RETRY_BASE": 10,
    "PROCORE_WEBHOOK_RETRY_CAP": 10,
    "PROCORE_WEBHOOK_MAX_AGE": DAY,
}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def host(make_app: MakeApp, database_url: str, clock: Clock) -> Iterator[Host]:
    with run_host(make_app(**SETTINGS), "flask_sqlalchemy", database_url) as host:
        host.store.now = clock
        yield host


class Calls(list[tuple[str, int]]):
    """The calls of subscribers, and what each of them raises next."""

    def __init__(self, host: Host) -> None:
        super().__init__()
        self.host = host
        self.errors: dict[str, list[BaseException]] = {}

    def on(self, name: str, *errors: BaseException, **options: Any) -> None:
        """Subscribe a function that raises the errors, one a call, and then succeeds.

        It writes before it raises.
        """
        self.errors[name] = [*errors]

        @self.host.webhooks.on(name=name, **options)
        def subscriber(event: Event) -> None:
            self.append((name, event.attempt))
            self.host.note(f"{name} {len(self)}")
            if self.errors[name]:
                raise self.errors[name].pop(0)

    def clear_and_work(self) -> list[tuple[str, int]]:
        """Run what is due, and return the calls that were made."""
        self.clear()
        work(self.host)
        return [*self]


@pytest.fixture
def calls(host: Host) -> Calls:
    return Calls(host)


def work(host: Host) -> int:
    return Worker([host.endpoint], poll=1).run_all()


def seconds(later: datetime, earlier: datetime) -> float:
    return (later - earlier).total_seconds()


# Each job's own schedule


def test_failure_of_one_subscriber_leaves_the_schedule_of_another(
    host: Host, calls: Calls, clock: Clock
) -> None:
    """One fails, one is postponed for an hour: each is due after its own wait."""
    calls.on("fails", ValueError("no answer"))
    calls.on("waits", RetryLater(3600))
    calls.on("works")
    record(host.store, "evt_1")

    assert calls.clear_and_work() == [("fails", 1), ("waits", 1), ("works", 1)]
    jobs, event = host.jobs("evt_1"), host.row("evt_1")
    now = host.store.db_now()
    assert 5 <= seconds(jobs["fails"]["due_at"], now) <= 10
    assert 3599 <= seconds(jobs["waits"]["due_at"], now) <= 3600
    # The event is due with the first of its pending jobs.
    assert (event["status"], event["due_at"]) == ("pending", jobs["fails"]["due_at"])

    clock.forward(10)
    assert calls.clear_and_work() == [("fails", 2)]
    assert states(host.store) == {"fails": "done", "waits": "pending", "works": "done"}
    assert host.row("evt_1")["due_at"] == jobs["waits"]["due_at"]

    clock.forward(3600)
    assert calls.clear_and_work() == [("waits", 1)]
    event = host.row("evt_1")
    assert (event["status"], event["due_at"], event["error"]) == ("done", None, None)


def test_each_job_keeps_its_attempts_and_its_last_failure(
    host: Host, calls: Calls, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    calls.on("mends", ConnectionError("reset"))
    calls.on("breaks", KeyError("id"), ZeroDivisionError("by zero"))
    record(host.store, "evt_1")
    work(host)
    first = host.jobs("evt_1")
    text = "'RFIs.update' evt_1 of 'procore_webhooks': mends: attempt 1 of 2, again at "
    assert f"{text}{first['mends']['due_at']:%Y-%m-%d %H:%M:%S} UTC" in caplog.text
    clock.forward(10)
    work(host)

    mends, breaks = host.jobs("evt_1")["mends"], host.jobs("evt_1")["breaks"]
    assert (mends["state"], mends["attempts"], mends["version"]) == ("done", 2, 2)
    # The failure stays when a later attempt succeeds.
    assert (mends["error_class"], mends["error"]) == ("ConnectionError", "reset")
    assert (breaks["state"], breaks["attempts"]) == ("dead", 2)
    assert (breaks["error_class"], breaks["error"]) == ("ZeroDivisionError", "by zero")
    assert breaks["traceback"].startswith("Traceback (most recent call last)")
    assert breaks["traceback"].rstrip().endswith("ZeroDivisionError: by zero")
    assert breaks["dead_at"] == breaks["finished_at"] >= breaks["started_at"]
    assert (breaks["due_at"], breaks["waits_for"]) == (None, None)
    gave_up = "Gave up on 'RFIs.update' evt_1 of 'procore_webhooks': breaks: "
    assert f"{gave_up}ZeroDivisionError: by zero" in caplog.text
    assert host.notes() == ["mends 3"]


def test_event_is_dead_when_a_job_is_dead_and_none_is_pending(
    host: Host, calls: Calls, clock: Clock
) -> None:
    dead: list[str | None] = []
    event_dead.connect(lambda app, event, error: dead.append(error))
    calls.on("breaks", ValueError("1"), ValueError("2"))
    calls.on("discards", Discard("not for us"))
    calls.on("waits", RetryLater(600))
    record(host.store, "evt_1")
    work(host)
    clock.forward(10)
    work(host)
    assert states(host.store) == {
        "breaks": "dead",
        "discards": "discarded",
        "waits": "pending",
    }
    event = host.row("evt_1")
    assert (event["status"], event["parked_at"], dead) == ("pending", None, [])
    assert event["due_at"] == host.jobs("evt_1")["waits"]["due_at"]

    clock.forward(600)
    assert calls.clear_and_work() == [("waits", 1)]
    event = host.row("evt_1")
    # Its last run had no failure.
    assert (event["status"], event["due_at"]) == ("dead", None)
    assert dead == ["breaks: ValueError: 2"]
    assert event["parked_at"] == event["finished_at"]
    assert host.notes() == ["waits 1"]


# RetryLater


def test_retry_later_spends_no_attempt_and_announces_no_failure(
    host: Host, calls: Calls, clock: Clock
) -> None:
    failed: list[str] = []
    event_failed.connect(lambda app, event, **_: failed.append(event.id))
    calls.on("waits", *[RetryLater(60) for _ in range(10)])
    (row_id,) = record(host.store, "evt_1")
    for number in range(10):
        assert process(host.endpoint, row_id) is RunOutcome.POSTPONED
        job = host.job("evt_1")
        assert (job["state"], job["waits_for"], job["attempts"]) == (
            "pending",
            "later",
            0,
        )
        assert (job["version"], job["error"]) == (number + 1, None)
        assert job["first_at"] == host.jobs("evt_1")["waits"]["first_at"]
        clock.forward(60)
    assert process(host.endpoint, row_id) is RunOutcome.DONE
    assert (failed, [*calls]) == ([], [("waits", 1)] * 11)
    job = host.job("evt_1")
    assert (job["state"], job["attempts"], job["first_at"]) == ("done", 1, None)


def test_job_that_is_postponed_for_longer_than_max_age_is_dead(
    host: Host, calls: Calls, clock: Clock
) -> None:
    """It is called once more at the end of ``MAX_AGE``, whatever it asked for."""
    calls.on(
        "waits",
        *[
            RetryLater(
                0.7 * DAY,
            )
            for _ in range(9)
        ],
    )
    record(host.store, "evt_1")
    work(host)
    first_at = host.job("evt_1")["first_at"]
    clock.forward(0.7 * DAY)
    work(host)
    assert host.job("evt_1")["due_at"] == first_at + timedelta(seconds=DAY)
    clock.forward(0.3 * DAY + 1)
    work(host)
    job = host.job("evt_1")
    assert (job["state"], job["attempts"], len(calls)) == ("dead", 1, 3)
    assert job["error"].startswith(f"postponed for longer than MAX_AGE ({DAY:g} s)")
    assert statuses(host.store) == {"evt_1": "dead"}


def test_pauses_are_left_out_of_max_age(host: Host, calls: Calls, clock: Clock) -> None:
    calls.on("waits", *[RetryLater(0.6 * DAY) for _ in range(9)])
    record(host.store, "evt_1")
    work(host)
    pause(host.store, "an operator")
    clock.forward(3 * DAY)
    resume(host.store, "an operator")
    work(host)
    assert host.job("evt_1")["state"] == "pending"
    clock.forward(1.1 * DAY)
    work(host)
    assert (host.job("evt_1")["state"], len(calls)) == ("dead", 3)


def test_waits_for_a_key_are_left_out_of_max_age(
    host: Host, calls: Calls, clock: Clock
) -> None:
    calls.on("waits", *[RetryLater(60) for _ in range(2)], one_at_a_time=True)
    (holder,) = record(host.store, "holder")
    (row_id,) = record(host.store, "evt_1")
    process(host.endpoint, row_id)
    first_at = host.job("evt_1")["first_at"]
    # Another process holds the key for two days.
    claim = claims.claim(host.store, holder, 2 * DAY)
    assert claim
    key = host.store.database.tables.key
    with host.store.connection() as connection:
        held = {"holder": holder, "lease": claim.lease}
        connection.execute(sa.update(key).values(held))
    clock.forward(60)
    process(host.endpoint, row_id)
    job = host.job("evt_1")
    assert (job["waits_for"], job["attempts"], len(calls)) == ("key", 0, 1)
    assert job["first_at"] == first_at

    clock.forward(2 * DAY)
    process(host.endpoint, row_id)
    job = host.job("evt_1")
    assert (job["state"], job["waits_for"], len(calls)) == ("pending", "later", 2)
    assert seconds(job["first_at"], first_at) == pytest.approx(2 * DAY, abs=1)


# Rule 1: rows


def test_run_that_leaves_an_event_unfinished_writes_all_jobs(
    host: Host, calls: Calls, clock: Clock
) -> None:
    """Rule 1: a subscriber that is registered later gets the event by replay only."""
    calls.on("first", ValueError("not yet"))
    calls.on("second")
    calls.on("third", RetryLater(5))
    calls.on("fourth", after=60)
    (row_id,) = record(host.store, "evt_1")
    assert host.jobs("evt_1") == {}
    assert process(host.endpoint, row_id) is RunOutcome.RETRY
    assert states(host.store) == {
        "first": "pending",
        "second": "done",
        "third": "pending",
        "fourth": "pending",
    }
    calls.on("late")
    clock.forward(60)
    assert sorted(calls.clear_and_work()) == [("first", 2), ("fourth", 1), ("third", 1)]
    assert statuses(host.store) == {"evt_1": "done"}
    assert "late" not in states(host.store)


def test_killed_first_run_leaves_the_other_subscribers_to_the_next(
    host: Host, calls: Calls, clock: Clock
) -> None:
    """Rule 1: rows of done jobs alone are not those of all subscribers."""
    calls.on("first")
    calls.on("second")
    (row_id,) = record(host.store, "evt_1")
    claim = claims.claim(host.store, row_id, 30)
    assert claim
    now = host.store.db_now()
    finish(host.store, row_id, Job("first").ended(JobState.DONE, now, now))
    clock.forward(31)
    assert process(host.endpoint, row_id) is RunOutcome.DONE
    assert [*calls] == [("second", 1)]
    assert states(host.store) == {"first": "done", "second": "done"}


# Rule 2: versions


def test_completion_of_an_older_version_is_rolled_back(
    host: Host, calls: Calls, clock: Clock
) -> None:
    """Rule 2: another run has ended an attempt of the job after the lease ended."""
    overtaken: list[RunOutcome] = []

    @host.webhooks.on(name="writer")
    def writer(event: Event) -> None:
        calls.append(("writer", event.attempt))
        if len(calls) == 1:
            raise RetryLater(0)
        if len(calls) == 2:
            clock.forward(host.endpoint.settings.lease + 1)
            overtaken.append(process(host.endpoint, row_id))
        elif len(calls) == 3:
            raise RetryLater(60)
        host.note(f"call {len(calls)}")

    (row_id,) = record(host.store, "evt_1")
    assert process(host.endpoint, row_id) is RunOutcome.POSTPONED
    assert process(host.endpoint, row_id) is RunOutcome.NOT_CLAIMED
    assert overtaken == [RunOutcome.POSTPONED]
    job = host.job("evt_1")
    assert (host.notes(), job["state"], job["waits_for"]) == ([], "pending", "later")
    before = job["version"]
    clock.forward(60)
    work(host)
    job = host.job("evt_1")
    assert (job["state"], job["version"]) == ("done", before + 1)
    assert host.notes() == ["call 4"]


# Rule 3: the holder of the lease


def test_replay_and_redelivery_leave_the_jobs_of_a_running_event(
    host: Host, calls: Calls, clock: Clock
) -> None:
    """Rule 3: while a run holds the lease, nobody else changes the jobs."""
    seen: list[tuple[Any, ...]] = []

    @host.webhooks.on(name="looks")
    def looks(event: Event) -> None:
        before = host.jobs("evt_1")
        if not seen:
            seen.append((replay(host.store, [row_id], "me"),))
            record(host.store, "evt_1")
            seen.append((host.jobs("evt_1") == before, row(host.store)["status"]))

    calls.on("breaks", *[ValueError("no") for _ in range(2)])
    (row_id,) = record(host.store, "evt_1")
    with host.store.connection() as connection:
        job = host.store.database.tables.job
        of_breaks = {"event": row_id, "subscriber": "breaks", "state": "dead"}
        of_breaks |= {"endpoint": host.store.endpoint, "version": 4, "attempts": 2}
        waiting = {"subscriber": "looks", "state": "pending", "version": 1}
        of_looks = of_breaks | waiting | {"attempts": 0}
        now = host.store.db_now()
        of_looks |= {"due_at": now, "waits_for": "nothing"}
        connection.execute(sa.insert(job).values(of_breaks))
        connection.execute(sa.insert(job).values(of_looks))
    work(host)
    assert seen == [(0,), (True, "running")]
    assert states(host.store) == {"looks": "done", "breaks": "dead"}
    assert (host.row("evt_1")["status"], [*calls]) == ("dead", [])


# Rule 4: subscribers of other processes


def _forget(host: Host, name: str) -> None:
    """Let this process have no such subscriber, as after a deployment."""
    collection = host.endpoint.subscribers
    others = tuple(each for each in collection if each.name != name)
    collection._subscribers = others


def test_job_of_an_absent_subscriber_is_put_off_and_named_once(
    host: Host, calls: Calls, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Rule 4: a process without the subscriber leaves the job to one that has it."""
    calls.on("renamed", *[RetryLater(1) for _ in range(2)])
    calls.on("stays")
    record(host.store, "evt_1", "evt_2")
    work(host)
    _forget(host, "renamed")
    clock.forward(1)
    work(host)
    for id in ("evt_1", "evt_2"):
        job = host.jobs(id)["renamed"]
        assert (job["state"], job["waits_for"], job["attempts"]) == (
            "pending",
            "absent",
            0,
        )
        assert 30 <= seconds(job["due_at"], host.store.db_now()) <= 60
        assert host.row(id)["due_at"] == job["due_at"]
    assert caplog.text.count("this process has no subscriber 'renamed'") == 1
    # The waits differ, so that the jobs of many events are not due together.
    due = {host.jobs(id)["renamed"]["due_at"] for id in ("evt_1", "evt_2")}
    assert len(due) == 2

    calls.on("renamed")
    clock.forward(60)
    assert calls.clear_and_work() == [("renamed", 1)] * 2
    assert set(statuses(host.store).values()) == {"done"}


def test_job_of_an_absent_subscriber_is_dead_after_max_age(
    host: Host, calls: Calls, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Rule 4."""
    dead: list[str] = []
    event_dead.connect(lambda app, event, error: dead.append(error))
    calls.on("removed", RetryLater(1))
    record(host.store, "evt_1")
    work(host)
    _forget(host, "removed")
    for _ in range(4):
        clock.forward(DAY / 3)
        work(host)
    assert host.job("evt_1")["state"] == "pending"
    clock.forward(60)
    work(host)
    job = host.job("evt_1")
    assert (job["state"], job["error_class"], job["attempts"]) == ("dead", "Absent", 0)
    assert host.row("evt_1")["status"] == "dead"
    assert dead == ["removed: no process has had this subscriber for MAX_AGE"]
    assert f"Gave up on 'RFIs.update' evt_1 of 'procore_webhooks': {dead[0]}" in (
        caplog.text
    )


def test_job_of_a_subscriber_that_no_longer_matches_is_suppressed(
    host: Host, calls: Calls, clock: Clock
) -> None:
    """Rule 4: this process knows the subscriber, and it does not want the event."""
    calls.on("narrowed", RetryLater(1))
    record(host.store, "evt_1")
    work(host)
    _forget(host, "narrowed")
    calls.on("narrowed", resource_type="Submittals")
    clock.forward(1)
    assert calls.clear_and_work() == []
    assert states(host.store) == {"narrowed": "suppressed"}
    assert host.row("evt_1")["status"] == "done"


# Rule 5: suspects


def _kill(host: Host, row_id: int, clock: Clock) -> None:
    """Leave the event as a process that was killed in its run."""
    assert claims.claim(host.store, row_id, 1)
    clock.forward(2)


def test_attempt_of_a_suspect_is_counted_before_its_call(
    host: Host, calls: Calls, clock: Clock
) -> None:
    """Rule 5: only the job that kills its process runs out of attempts."""
    killed: list[str] = []

    class Killed(BaseException):
        """Stands for the end of the process, after which nothing is written."""

    @host.webhooks.on(name="kills")
    def kills(event: Event) -> None:
        job = host.jobs("evt_1")["kills"]
        assert (job["state"], job["attempts"]) == ("pending", event.attempt)
        assert states(host.store)["other"] in ("pending", "done")
        killed.append(event.id)
        # The process ends here: another one claims the event when its lease ends.
        with host.store.connection() as connection:
            event_table = host.store.columns.id.table
            connection.execute(sa.update(event_table).values(lease="gone"))
        raise Killed

    calls.on("other")
    (row_id,) = record(host.store, "evt_1")
    _kill(host, row_id, clock)
    for number in (1, 2):
        with pytest.raises(Killed):
            process(host.endpoint, row_id)
        jobs = host.jobs("evt_1")
        assert jobs["kills"]["attempts"] == len(killed) == number
        # The one that kills is called last from the second time on.
        assert jobs["other"]["state"] == ("pending" if number == 1 else "done")
        clock.forward(host.endpoint.settings.lease + 1)
    assert process(host.endpoint, row_id) is RunOutcome.DEAD
    jobs = host.jobs("evt_1")
    assert (jobs["kills"]["state"], jobs["kills"]["attempts"]) == ("dead", 2)
    assert jobs["kills"]["error"] == "every attempt ended without an outcome"
    assert (jobs["other"]["state"], jobs["other"]["attempts"]) == ("done", 1)
    assert (len(killed), [*calls]) == (2, [("other", 1)])


def test_claims_beside_a_killed_process_cost_no_attempt(
    host: Host, calls: Calls, clock: Clock
) -> None:
    """Rule 5: a suspect that runs well has used one attempt."""
    calls.on("innocent")
    (row_id,) = record(host.store, "evt_1")
    for _ in range(5):
        _kill(host, row_id, clock)
    assert process(host.endpoint, row_id) is RunOutcome.DONE
    assert [*calls] == [("innocent", 1)]
    assert (host.job("evt_1")["attempts"], host.row("evt_1")["claims"]) == (1, 0)


def test_suspect_that_is_not_called_uses_no_attempt(
    host: Host, calls: Calls, clock: Clock
) -> None:
    """Rule 5: the early count is taken back when the job ends or waits."""
    calls.on("unwanted", when=lambda event: False)
    calls.on("later", after=60)
    calls.on("latest", latest_only=True, settle=30)
    (row_id,) = record(host.store, "evt_1")
    _kill(host, row_id, clock)
    assert process(host.endpoint, row_id) is RunOutcome.POSTPONED
    jobs = host.jobs("evt_1")
    found = {name: (job["state"], job["attempts"]) for name, job in jobs.items()}
    assert found == {
        "unwanted": ("suppressed", 0),
        "later": ("pending", 0),
        "latest": ("pending", 0),
    }
    clock.forward(60)
    assert process(host.endpoint, row_id) is RunOutcome.DONE
    assert sorted(calls) == [("later", 1), ("latest", 1)]


# Rule 6: the inbox's own connection


def test_host_that_breaks_its_session_and_contexts_loses_no_job(
    host: Host, calls: Calls, caplog: pytest.LogCaptureFixture
) -> None:
    """Rule 6: errors of the host after the subscriber has finished are logged."""

    @host.app.teardown_appcontext
    def teardown(error: BaseException | None) -> None:
        if calls and not failed:
            failed.append("in the teardown")
            raise RuntimeError(failed[0])

    failed: list[str] = []

    @host.webhooks.on(name="breaks")
    def breaks(event: Event) -> None:
        calls.append(("breaks", event.attempt))
        host.note("lost")
        host.session.rollback()
        host.note("written")

    (row_id,) = record(host.store, "evt_1")
    assert process(host.endpoint, row_id) is RunOutcome.DONE
    assert (host.notes(), states(host.store)) == (["written"], {"breaks": "done"})
    assert "in the teardown" in caplog.text


# Redelivery


def test_redelivery_of_a_dead_event_makes_its_dead_jobs_pending(
    host: Host, calls: Calls, clock: Clock
) -> None:
    """With all attempts before them; finished jobs stay, a pruned body is back."""
    calls.on("works")
    calls.on("breaks", *[ValueError("down") for _ in range(3)])
    sent = payload("RFIs.update", id="evt_1")
    assert deliver_at(host, sent, clock).status_code == 200
    work(host)
    clock.forward(10)
    work(host)
    before = host.jobs("evt_1")
    assert (host.row("evt_1")["status"], before["breaks"]["attempts"]) == ("dead", 2)
    table = host.store.columns.id.table
    with host.store.connection() as connection:
        connection.execute(sa.update(table).values(body=None))

    assert deliver_at(host, sent, clock).status_code == 200
    event, jobs = host.row("evt_1"), host.jobs("evt_1")
    assert jobs["works"] == before["works"]
    revived = jobs["breaks"]
    assert (revived["state"], revived["attempts"]) == ("pending", 0)
    assert revived["version"] == before["breaks"]["version"] + 1
    assert (revived["dead_at"], revived["finished_at"]) == (None, None)
    assert (event["status"], event["parked_at"], event["finished_at"]) == (
        "pending",
        None,
        None,
    )
    assert event["body"] and event["due_at"] == revived["due_at"]

    assert calls.clear_and_work() == [("breaks", 1)]
    clock.forward(10)
    assert calls.clear_and_work() == [("breaks", 2)]
    assert statuses(host.store) == {"evt_1": "done"}


def test_redelivery_of_an_unmatched_event_runs_new_subscribers(
    host: Host, calls: Calls, clock: Clock
) -> None:
    sent = payload("RFIs.update", id="evt_1")
    assert deliver_at(host, sent, clock).status_code == 200
    work(host)
    assert statuses(host.store) == {"evt_1": "unmatched"}
    calls.on("new")
    assert deliver_at(host, sent, clock).status_code == 200
    assert calls.clear_and_work() == [("new", 1)]
    event = host.row("evt_1")
    assert (event["status"], event["parked_at"]) == ("done", None)


# Options and hooks


def test_commit_inside_a_subscriber_is_logged_once(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    @host.webhooks.on(name="hasty")
    def hasty(event: Event) -> None:
        host.note(event.id)
        host.session.commit()

    @host.webhooks.on(name="careful")
    def careful(event: Event) -> None:
        host.note(f"careful {event.id}")

    record(host.store, "evt_1", "evt_2")
    work(host)
    warned = [
        each.getMessage()
        for each in caplog.records
        if each.levelname == "WARNING" and "commit" in each.getMessage()
    ]
    assert len(warned) == 1 and warned[0].startswith("hasty commits")
    assert len(host.notes()) == 4


def test_when_suppresses_a_job_that_is_not_wanted(host: Host, calls: Calls) -> None:
    calls.on("pilot", when=lambda event: event.project_id == "1")
    calls.on("every")
    record(host.store, "evt_1", project_id=2)
    record(host.store, "evt_2", project_id=1)
    work(host)
    assert [*calls] == [("every", 1), ("pilot", 1), ("every", 1)]
    assert states(host.store, "evt_1") == {"pilot": "suppressed", "every": "done"}
    assert set(statuses(host.store).values()) == {"done"}


def test_after_puts_the_first_call_off(host: Host, calls: Calls, clock: Clock) -> None:
    calls.on("now")
    calls.on("reread", ValueError("once"), after=60)
    record(host.store, "evt_1")
    assert calls.clear_and_work() == [("now", 1)]
    job = host.jobs("evt_1")["reread"]
    assert (job["waits_for"], job["attempts"]) == ("after", 0)
    assert seconds(job["due_at"], host.row("evt_1")["received_at"]) == 60
    clock.forward(59)
    assert calls.clear_and_work() == []
    clock.forward(1)
    assert calls.clear_and_work() == [("reread", 1)]
    # A retry waits for its backoff only.
    clock.forward(10)
    assert calls.clear_and_work() == [("reread", 2)]


@pytest.mark.parametrize("option", ["when", "key"])
def test_exception_of_an_option_is_a_failed_attempt(
    host: Host, calls: Calls, clock: Clock, option: str
) -> None:
    errors = [ValueError(f"in {option}")]

    def choose(event: Event) -> str:
        if errors:
            raise errors.pop()
        return "chosen"

    options: dict[str, Any] = {option: choose}
    calls.on("chooses", **options, one_at_a_time=True)
    calls.on("other")
    record(host.store, "evt_1")
    assert calls.clear_and_work() == [("other", 1)]
    job = host.jobs("evt_1")["chooses"]
    assert (job["state"], job["waits_for"], job["attempts"]) == ("pending", "retry", 1)
    assert (job["error_class"], job["error"]) == ("ValueError", f"in {option}")
    clock.forward(10)
    assert calls.clear_and_work() == [("chooses", 2)]
    assert statuses(host.store) == {"evt_1": "done"}
