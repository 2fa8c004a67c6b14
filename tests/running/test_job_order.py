"""Jobs beside others: between two runs of an event, and while another one runs."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
import weakref
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from flask import current_app
from flask import Flask
from support.counts import in_memory
from support.hosts import deliver_at
from support.hosts import Host
from support.hosts import KINDS
from support.hosts import run_host
from support.inboxes import claim_one
from support.inboxes import due_in
from support.inboxes import record
from support.inboxes import states
from support.inboxes import statuses
from support.values import Clock
from support.waiting import PATIENCE
from support.waiting import wait_until

from flask_procore_webhooks import Event
from flask_procore_webhooks import RetryLater
from flask_procore_webhooks.dispatching.worker import Worker
from flask_procore_webhooks.inbox.completion import finish
from flask_procore_webhooks.inbox.jobs import Failure
from flask_procore_webhooks.inbox.jobs import Job
from flask_procore_webhooks.inbox.status import JobState
from flask_procore_webhooks.operations.changes import discard
from flask_procore_webhooks.operations.changes import replay
from flask_procore_webhooks.running.failures import interrupt
from flask_procore_webhooks.running.plan import failed
from flask_procore_webhooks.running.plan import Plan
from flask_procore_webhooks.running.run import process
from flask_procore_webhooks.testing import payload

MakeApp = Callable[..., Flask]
SETTINGS = {
    "PROCORE_WEBHOOK_DISPATCH": "worker",
    "PROCORE_WEBHOOK_RETRY_BASE": 10,
    "PROCORE_WEBHOOK_MAX_ATTEMPTS": 5,
}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def host(make_app: MakeApp, database_url: str, clock: Clock) -> Iterator[Host]:
    with run_host(make_app(**SETTINGS), "flask_sqlalchemy", database_url) as host:
        host.store.now = clock
        yield host


def work(host: Host) -> int:
    return Worker([host.endpoint], poll=1).run_all()


def start(function: Callable[..., object], *arguments: object) -> threading.Thread:
    thread = threading.Thread(None, function, "holder", arguments, daemon=True)
    thread.start()
    return thread


# Other processes


def test_absent_subscriber_is_put_off_only_when_due(host: Host, clock: Clock) -> None:
    """Rule 4 is about due jobs: a wait for an hour stays one."""
    waits = [RetryLater(1)]

    @host.webhooks.on(name="here")
    def here(event: Event) -> None:
        if waits:
            raise waits.pop()

    @host.webhooks.on(name="elsewhere")
    def elsewhere(event: Event) -> None:
        raise RetryLater(3600)

    record(host.store, "evt_1")
    work(host)
    before = host.jobs("evt_1")["elsewhere"]
    collection = host.endpoint.subscribers
    collection._subscribers = tuple(s for s in collection if s.name == "here")
    clock.forward(1)
    assert work(host) == 1
    assert host.jobs("evt_1")["elsewhere"] == before
    assert host.row("evt_1")["due_at"] == before["due_at"]


def kill_after_first(host: Host, clock: Clock, calls: list[str]) -> int:
    """Leave an event whose first run was killed between its two subscribers."""
    for name in ("first", "second"):
        host.webhooks.on(name=name)(lambda event, name=name: calls.append(name))
    (row_id,) = record(host.store, "evt_1")
    claim_one(host.store, row_id, 60)
    now = host.store.db_now()
    finish(host.store, row_id, Job("first").ended(JobState.DONE, now, now))
    clock.forward(61)
    return row_id


def test_replay_of_a_job_leaves_the_others_of_a_killed_run(
    host: Host, clock: Clock
) -> None:
    """The killed run has not called the second subscriber, which has no row yet."""
    calls: list[str] = []
    row_id = kill_after_first(host, clock, calls)
    assert replay(host.store, [row_id], "tests", anew=True) == 1
    clock.forward(1)
    work(host)
    assert sorted(calls) == ["first", "second"]
    assert states(host.store) == {"first": "done", "second": "done"}


def test_discard_ends_what_a_killed_run_has_not_begun(host: Host, clock: Clock) -> None:
    calls: list[str] = []
    row_id = kill_after_first(host, clock, calls)
    assert discard(host.store, [row_id], "tests") == 1
    clock.forward(1)
    work(host)
    assert calls == []
    assert states(host.store) == {"first": "done"}
    assert statuses(host.store) == {"evt_1": "done"}


def test_run_without_outcome_delays_no_job_by_the_attempts_of_another(
    host: Host, clock: Clock
) -> None:
    (row_id,) = record(host.store, "evt_1")
    now = host.store.db_now()
    finish(host.store, row_id, Job("done", attempts=20).ended(JobState.DONE, now, now))
    interrupt(host.endpoint, claim_one(host.store, row_id, 60))
    assert host.row("evt_1")["due_at"] <= due_in(host.store, 10)


# What is written early


def test_job_that_has_ended_in_the_run_is_written_with_those_without_rows(
    host: Host,
) -> None:
    """A killed run must not lose that it is dead: with pending rows, all are there."""
    now, plan = host.store.db_now(), Plan({name: Job(name) for name in "abc"})
    plan.change(failed(Job("a"), Failure("Error", "text"), now, now, None))
    assert [job.subscriber for job in plan.without_rows("b")] == ["a", "c"]
    finished = plan.without_rows("b")[0].ended(JobState.DONE, now, now)
    plan.jobs["a"] = finished  # its row is written when it ends
    plan.changed.clear()
    assert [job.subscriber for job in plan.without_rows("b")] == ["c"]


def test_jobs_that_are_written_early_are_counted(host: Host, clock: Clock) -> None:
    """Those of a suspect, before the next call, which may kill the process."""

    @host.webhooks.on(name="fails")
    def fails(event: Event) -> None:
        raise ValueError("failed")

    host.webhooks.on(name="works")(lambda event: None)
    (row_id,) = record(host.store, "evt_1")
    claim_one(host.store, row_id, 1)
    clock.forward(2)
    work(host)
    assert in_memory(host.store) == {"failed": 1, "done": 1}


# Functions of options


@pytest.mark.parametrize("error", [SystemExit(1), asyncio.CancelledError()])
@pytest.mark.parametrize("option", ["when", "key"])
def test_option_that_ends_its_thread_is_a_failed_attempt(
    host: Host, option: str, error: BaseException
) -> None:
    def choose(event: Event) -> str:
        raise error

    options: dict[str, Any] = {option: choose, "one_at_a_time": True}
    host.webhooks.on(name="chooses", **options)(lambda event: None)
    host.webhooks.on(name="works")(lambda event: None)
    record(host.store, "evt_1")
    worker = Worker([host.endpoint], poll=1)
    thread = start(worker.run_all)
    thread.join(PATIENCE)
    worker.stop()
    thread.join(PATIENCE)
    jobs = host.jobs("evt_1")
    assert (jobs["chooses"]["state"], jobs["chooses"]["attempts"]) == ("pending", 1)
    assert jobs["works"]["state"] == "done"


def test_option_that_stops_its_process_is_an_interrupted_attempt(host: Host) -> None:
    """In the main thread, a ``SystemExit`` may be a request to stop."""

    def choose(event: Event) -> bool:
        raise SystemExit

    host.webhooks.on(name="chooses", when=choose)(lambda event: None)
    host.webhooks.on(name="works")(lambda event: None)
    (row_id,) = record(host.store, "evt_1")
    with pytest.raises(SystemExit):
        process(host.endpoint, row_id)
    jobs = host.jobs("evt_1")
    assert [jobs["chooses"][name] for name in ("error_class", "attempts")] == [
        "Interrupted",
        1,
    ]
    work(host)
    assert states(host.store) == {"chooses": "pending", "works": "done"}


@pytest.mark.parametrize("option", ["when", "key"])
def test_child_that_an_option_forks_ends_there(host: Host, option: str) -> None:
    codes: list[int] = []

    def choose(event: Event) -> str:
        child = os.fork()
        if child:
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        return "chosen"

    options: dict[str, Any] = {option: choose, "one_at_a_time": True}
    host.webhooks.on(name="forks", **options)(lambda event: host.note("one"))
    record(host.store, "evt_1")
    work(host)
    assert codes == [0]
    assert host.notes() == ["one"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("option", ["when", "key"])
def test_option_is_called_in_an_app_context_with_a_session_of_its_own(
    make_app: MakeApp, database_url: str, kind: str, option: str
) -> None:
    """In a thread of workers, as in a request; nothing is left open afterwards."""
    with run_host(make_app(**SETTINGS), kind, database_url) as host:

        def choose(event: Event) -> str:
            assert host.session.execute(sa.select(host.note_table)).all() == []
            host.note("of the option")
            return current_app.name

        @host.webhooks.on(name="chooses", **{option: choose}, one_at_a_time=True)
        def chooses(event: Event) -> None:
            host.note("of the subscriber")

        record(host.store, "evt_1")
        work(host)
        assert statuses(host.store) == {"evt_1": "done"}
        assert host.notes() == ["of the subscriber"]
        with host.app.app_context():
            assert not host.session().in_transaction()


def test_teardown_that_fails_after_an_option_is_logged(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    host.webhooks.on(name="chooses", when=lambda event: True)(lambda event: None)
    record(host.store, "evt_1")

    @host.app.teardown_appcontext
    def fail(error: BaseException | None) -> None:
        raise ValueError("in the teardown")

    work(host)
    assert statuses(host.store) == {"evt_1": "done"}
    assert "after a function of an option had returned" in caplog.text
    host.app.teardown_appcontext_funcs.remove(fail)


# Waits for the end of another job


class Steps:
    """What subscribers do when they are called; a step is done once."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.steps: dict[tuple[str, str], Callable[[], object]] = {}

    def on(self, host: Host, name: str, **options: Any) -> None:
        @host.webhooks.on(name=name, **options)
        def subscriber(event: Event) -> None:
            self.calls.append((name, event.id))
            self.steps.pop((name, event.id), lambda: None)()


def postpone() -> None:
    raise RetryLater(1)


def test_end_of_a_job_is_noticed_by_an_event_that_runs(
    host: Host, clock: Clock
) -> None:
    """The holder ends while another subscriber of the waiting event runs."""
    holding, go_on, steps = threading.Event(), threading.Event(), Steps()
    steps.on(host, "alone", one_at_a_time=True)
    steps.on(host, "slow")

    def hold() -> None:
        holding.set()
        assert go_on.wait(PATIENCE)

    def end_holder() -> None:
        go_on.set()
        holder.join(PATIENCE)
        assert statuses(host.store)["evt_1"] == "done"

    same = {"resource_type": "RFIs", "resource_id": "7"}
    first, second = record(host.store, "evt_1", "evt_2", **same)
    steps.steps["alone", "evt_1"] = hold
    holder = start(process, host.endpoint, first)
    assert holding.wait(PATIENCE)
    steps.steps["slow", "evt_2"] = postpone
    process(host.endpoint, second)
    assert host.jobs("evt_2")["alone"]["waits_for"] == "key"
    clock.forward(1)
    steps.steps["slow", "evt_2"] = end_holder
    process(host.endpoint, second)
    # Not at the end of the holder's lease, 300 s later.
    clock.forward(0.001)
    work(host)
    assert statuses(host.store)["evt_2"] == "done"
    assert steps.calls.count(("alone", "evt_2")) == 1


def test_done_newer_event_is_noticed_by_an_event_that_runs(
    host: Host, clock: Clock
) -> None:
    steps = Steps()
    steps.on(host, "latest", latest_only=True)
    steps.on(host, "slow")
    for id in ("evt_1", "evt_2"):
        sent = payload("RFIs.update", id=id, resource_id=7)
        assert deliver_at(host, sent, clock).status_code == 200
    first, second = (host.row(id)["id"] for id in ("evt_1", "evt_2"))
    steps.steps["slow", "evt_1"] = postpone
    process(host.endpoint, first)
    assert host.jobs("evt_1")["latest"]["waits_for"] == "newer"
    clock.forward(1)
    steps.steps["slow", "evt_1"] = lambda: process(host.endpoint, second)
    process(host.endpoint, first)
    clock.forward(0.001)
    work(host)
    assert host.jobs("evt_1")["latest"]["state"] == "superseded"
    assert [name for name, _ in steps.calls].count("latest") == 1


def test_end_of_a_call_whose_host_hangs_is_noticed(host: Host, clock: Clock) -> None:
    """The subscriber has finished, and its call is abandoned in the teardown."""
    begun, ended, go_on = (threading.Event() for _ in range(3))
    steps = Steps()
    steps.on(host, "alone", one_at_a_time=True, timeout=0.3)

    def begin() -> None:
        begun.set()
        assert ended.wait(PATIENCE)

    @host.app.teardown_appcontext
    def hang(error: BaseException | None) -> None:
        if threading.current_thread().name == "holder" and ended.is_set():
            assert go_on.wait(PATIENCE)

    same = {"resource_type": "RFIs", "resource_id": "7"}
    first, second = record(host.store, "evt_1", "evt_2", **same)
    steps.steps["alone", "evt_1"] = begin
    holder = start(process, host.endpoint, first)
    assert begun.wait(PATIENCE)
    process(host.endpoint, second)
    assert host.jobs("evt_2")["alone"]["waits_for"] == "key"
    ended.set()
    try:
        wait_until(lambda: statuses(host.store)["evt_1"] == "done")
        now = host.store.db_now()
        wait_until(lambda: host.row("evt_2")["due_at"] <= now)
    finally:
        go_on.set()
        holder.join(PATIENCE)
    clock.forward(0.001)
    work(host)
    assert statuses(host.store)["evt_2"] == "done"
    assert in_memory(host.store)["done"] == 2


# Memory


def test_failed_attempt_keeps_nothing_of_its_subscriber(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    """The traceback of a failure has the frame of the subscriber, with a session."""
    found: list[weakref.ref[Steps]] = []

    @host.webhooks.on(name="fails")
    def fails(event: Event) -> None:
        large = Steps()
        found.append(weakref.ref(large))
        raise ValueError("failed")

    record(host.store, "evt_1")
    # Pytest keeps what is logged.
    caplog.set_level(logging.CRITICAL + 1, "flask_procore_webhooks")
    gc.collect()
    gc.disable()
    try:
        work(host)
        assert [each() for each in found] == [None]
    finally:
        gc.enable()
