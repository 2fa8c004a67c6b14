"""Concurrent copies of one event, concurrent events, and overlapping runs."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask
from support.hosts import check_answers
from support.hosts import deliver_at
from support.hosts import Host
from support.hosts import run_host
from support.hosts import send_until_accepted
from support.inboxes import jobs
from support.sites import at_once
from support.values import Clock

from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.inbox.record import record as record_event
from flask_procore_webhooks.operations import queries
from flask_procore_webhooks.running.failures import RunOutcome
from flask_procore_webhooks.running.run import process
from flask_procore_webhooks.testing import payload

MakeApp = Callable[..., Flask]
COPIES = 64


@pytest.fixture
def host(make_app: MakeApp, database_url: str) -> Iterator[Host]:
    with run_host(make_app(), "flask_sqlalchemy", database_url) as host:
        yield host


# Copies


def test_concurrent_copies_are_one_event_and_one_run(
    app: Flask, endpoint: Endpoint, webhooks: ProcoreWebhooks
) -> None:
    ran: list[str] = []
    webhooks.on()(lambda event: ran.append(event.id))
    sent = payload("RFIs.update")

    statuses = at_once(lambda _: send_until_accepted(app, sent), range(COPIES))

    (row,) = queries.newest(endpoint.store)
    check_answers(statuses, endpoint.store, sent["id"])
    (job,) = jobs(endpoint.store, sent["id"]).values()
    assert ran == [sent["id"]] * job["attempts"]
    assert (row["status"], row["conflicts"]) == ("done", 0)
    assert 0 < row["repeats"] < sum(map(len, statuses))


@pytest.mark.slow
def test_every_event_among_many_copies_has_its_effect_once(host: Host) -> None:
    calls: Counter[str] = Counter()
    lock = threading.Lock()

    @host.webhooks.on(name="writer")
    def writer(event: Event) -> None:
        with lock:
            calls[event.id] += 1
        host.note(f"{event.id} {threading.get_ident()} {time.monotonic_ns()}")

    events = [payload("RFIs.update", id=f"evt_{number}") for number in range(40)]
    copies = events * 8
    random.Random(7).shuffle(copies)
    shares = [copies[number::16] for number in range(16)]

    def work(share: list[dict[str, Any]]) -> list[int]:
        return [s for event in share for s in send_until_accepted(host.app, event)]

    statuses = [status for each in at_once(work, shares) for status in each]

    ids = {event["id"] for event in events}
    assert set(statuses) <= {200, 500, 503}
    assert statuses.count(200) == len(copies)
    notes = [note.split()[0] for note in host.notes()]
    assert sorted(notes) == sorted(ids)
    if 500 not in statuses:
        assert calls == Counter(ids)
    rows = queries.newest(host.endpoint.store, limit=100)
    assert {row["event_id"] for row in rows} == ids
    assert {row["status"] for row in rows} == {"done"}


# Runs


def test_concurrent_second_run_claims_nothing(
    app: Flask, endpoint: Endpoint, webhooks: ProcoreWebhooks
) -> None:
    ran: list[str] = []
    webhooks.on()(lambda event: ran.append(event.id))
    ids = [f"evt_{number}" for number in range(10)]

    for id in ids:
        recorded = record_event(endpoint.store, Event(id, "RFIs.update", body=b"{}"))
        outcomes = at_once(lambda row: process(endpoint, row), [recorded.row_id] * 2)
        assert set(outcomes) == {RunOutcome.DONE, RunOutcome.NOT_CLAIMED}

    assert ran == ids


@pytest.fixture
def host_clock(host: Host) -> Clock:
    clock = Clock()
    host.endpoint.store.now = clock
    return clock


class Stalls:
    """A subscriber that waits in each run until ``go_on`` is set."""

    def __init__(self, host: Host, write_first: bool = False) -> None:
        self.host = host
        self.write_first = write_first
        self.reached = {1: threading.Event(), 2: threading.Event()}
        self.go_on = {1: threading.Event(), 2: threading.Event()}
        self._runs = iter((1, 2))
        host.webhooks.on(name="stalls")(self)

    def __call__(self, event: Event) -> None:
        # Both runs have attempt 1: an attempt is counted when it ends.
        run = next(self._runs)
        if self.write_first:
            self.host.note(f"run {run}")
        self.reached[run].set()
        assert self.go_on[run].wait(20)
        if not self.write_first:
            self.host.note(f"run {run}")


@pytest.fixture
def background() -> Iterator[Callable[..., Future[Any]]]:
    with ThreadPoolExecutor(2) as pool:
        yield pool.submit


@pytest.mark.parametrize("write_first", [False, True], ids=["writes late", "early"])
def test_run_that_lost_its_lease_commits_nothing(
    host: Host,
    host_clock: Clock,
    background: Callable[..., Future[Any]],
    write_first: bool,
) -> None:
    """The second run has written the job, so the first run is rolled back."""
    if write_first and host.engine.dialect.name == "sqlite":
        # A SQLite write transaction blocks every other: the stalled run only reads.
        write_first = False
    stalls = Stalls(host, write_first)
    sent = payload("RFIs.update")

    first = background(host.deliver, sent)
    assert stalls.reached[1].wait(20)
    host_clock.forward(host.endpoint.settings.lease + 1)
    stalls.go_on[2].set()
    # Signed with the time of the inbox's clock, which is ahead of the machine's.
    second = deliver_at(host, sent, host_clock)
    assert (second.status_code, host.notes()) == (200, ["run 2"])

    stalls.go_on[1].set()
    assert first.result(20).status_code == 200
    assert host.notes() == ["run 2"]
    assert host.finished() == ["stalls"]
    row = host.row()
    assert (row["status"], row["error"]) == ("done", None)
    assert host.job()["attempts"] == 1


def test_run_that_lost_its_lease_is_answered_503(
    host: Host, host_clock: Clock, background: Callable[..., Future[Any]]
) -> None:
    """The second run may still fail, and then the sender must deliver again."""
    stalls = Stalls(host)
    sent = payload("RFIs.update")

    first = background(host.deliver, sent)
    assert stalls.reached[1].wait(20)
    host_clock.forward(host.endpoint.settings.lease + 1)
    second = background(deliver_at, host, sent, host_clock)
    assert stalls.reached[2].wait(20)
    stalls.go_on[1].set()
    answer = first.result(20)

    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert (host.notes(), host.row()["status"]) == (["run 1"], "running")

    stalls.go_on[2].set()
    assert second.result(20).status_code == 200
    assert (host.notes(), host.row()["status"]) == (["run 1"], "done")


def test_runs_that_finish_concurrently_commit_one_effect(
    host: Host, host_clock: Clock, background: Callable[..., Future[Any]]
) -> None:
    stalls = Stalls(host)
    sent = payload("RFIs.update")

    runs = [background(host.deliver, sent)]
    assert stalls.reached[1].wait(20)
    host_clock.forward(host.endpoint.settings.lease + 1)
    runs.append(background(deliver_at, host, sent, host_clock))
    assert stalls.reached[2].wait(20)
    for go_on in stalls.go_on.values():
        go_on.set()
    statuses = [run.result(20).status_code for run in runs]

    assert set(statuses) <= {200, 503}
    assert len(host.notes()) == 1
    assert host.row()["status"] == "done"
