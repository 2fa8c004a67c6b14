"""Many copies of one event at once, many events at once, and runs that overlap."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from support.hosts import Host
from support.hosts import run_host
from support.hosts import send_until_accepted
from support.sites import at_once
from support.values import Clock
from werkzeug.test import TestResponse

from flask_procore_webhooks import browse
from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.process import Outcome
from flask_procore_webhooks.process import process
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import payload

MakeApp = Callable[..., Flask]
COPIES = 64
PROCESSES = 3


@pytest.fixture
def app(
    make_app: MakeApp, webhooks: ProcoreWebhooks, database_url: str
) -> Iterator[Flask]:
    """An app with an inbox of its own, on each database in turn."""
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI=database_url)
    app.register_blueprint(webhooks)
    yield app
    (endpoint,) = endpoints(app).values()
    endpoint.inbox.database.engine.dispose()


@pytest.fixture
def host(make_app: MakeApp, database_url: str) -> Iterator[Host]:
    with run_host(make_app(), "flask_sqlalchemy", database_url) as host:
        yield host


# Copies


def test_copies_that_arrive_at_once_are_one_event_and_one_run(
    app: Flask, endpoint: Endpoint, webhooks: ProcoreWebhooks
) -> None:
    ran: list[str] = []
    webhooks.on()(lambda event: ran.append(event.id))
    sent = payload("RFIs.update")

    statuses = at_once(lambda _: send_until_accepted(app, sent), range(COPIES))

    (row,) = browse.newest(endpoint.inbox)
    _check_answers(statuses, row, endpoint)
    assert ran == [sent["id"]] * row["attempts"]
    assert (row["status"], row["conflicts"]) == ("done", 0)
    assert 0 < row["repeats"] < sum(map(len, statuses))
    assert len(endpoint.inbox.receipts(row["id"])) == 1


CHILD = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from flask import Flask
from support.hosts import run_host
from support.hosts import send_until_accepted

order = json.loads(sys.stdin.readline())
app = Flask("child", instance_path=order["folder"])
app.config.update(TESTING=True, PROCORE_WEBHOOK_SECRET=order["secret"])
with run_host(app, "flask_sqlalchemy", order["url"], create=False) as host:

    @host.webhooks.on(name="writer")
    def writer(event):
        with open(order["calls"], "a") as calls:
            calls.write(event.id + "\\n")
        host.note(f"{event.id} {order['number']}")

    print("ready", flush=True)
    sys.stdin.readline()
    with ThreadPoolExecutor(len(order["events"])) as pool:
        work = pool.map(lambda event: send_until_accepted(app, event), order["events"])
    print(json.dumps(list(work)), flush=True)
"""


@pytest.mark.slow
def test_copies_in_several_processes_are_one_event_and_one_run(
    host: Host, database_url: str, tmp_path: Path
) -> None:
    sent = payload("RFIs.update")
    calls = tmp_path / "calls"
    order = {
        "url": database_url,
        "folder": str(tmp_path),
        "secret": host.app.config["PROCORE_WEBHOOK_SECRET"],
        "calls": str(calls),
        "events": [sent] * (COPIES // PROCESSES),
    }
    children = [_child({**order, "number": number}) for number in range(PROCESSES)]
    try:
        for child in children:
            assert child.stdout and child.stdout.readline() == "ready\n"
        for child in children:
            assert child.stdin
            child.stdin.write("go\n")
            child.stdin.flush()
        answers = [child.communicate(timeout=120)[0] for child in children]
    finally:
        for child in children:
            child.kill()
            child.communicate()

    statuses = [each for answer in answers for each in json.loads(answer)]
    assert len(statuses) == COPIES // PROCESSES * PROCESSES
    (row,) = browse.newest(host.endpoint.inbox)
    _check_answers(statuses, row, host.endpoint)
    assert calls.read_text().split() == [sent["id"]] * row["attempts"]
    assert len(host.notes()) == 1
    assert row["status"] == "done"


def _check_answers(statuses: list[list[int]], row: Any, endpoint: Endpoint) -> None:
    """Every copy was accepted in the end, and one run was enough."""
    given = {status for each in statuses for status in each}
    assert all(each[-1] == 200 for each in statuses)
    if endpoint.inbox.database.url.get_backend_name() == "sqlite" and 500 in given:
        # On a slow machine a run may wait in vain for the file's only lock.
        return
    assert given <= {200, 503}
    assert row["attempts"] == 1


def _child(order: dict[str, Any], script: str = CHILD) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        text=True,
    )
    assert child.stdin
    child.stdin.write(json.dumps(order) + "\n")
    child.stdin.flush()
    return child


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
    rows = browse.newest(host.endpoint.inbox, limit=100)
    assert {row["event_id"] for row in rows} == ids
    assert {row["status"] for row in rows} == {"done"}


# Runs


def test_of_two_runs_at_once_one_finds_nothing_to_do(
    app: Flask, endpoint: Endpoint, webhooks: ProcoreWebhooks
) -> None:
    ran: list[str] = []
    webhooks.on()(lambda event: ran.append(event.id))
    ids = [f"evt_{number}" for number in range(10)]

    for id in ids:
        recorded = endpoint.inbox.record(Event(id, "RFIs.update", body=b"{}"))
        outcomes = at_once(lambda row: process(endpoint, row), [recorded.row_id] * 2)
        assert set(outcomes) == {Outcome.DONE, Outcome.NOT_CLAIMED}

    assert ran == ids


@pytest.fixture
def host_clock(host: Host) -> Clock:
    clock = Clock()
    host.endpoint.inbox.now = clock
    return clock


class Stalls:
    """A subscriber that stops in its runs until it is told to go on."""

    def __init__(self, host: Host, write_first: bool = False) -> None:
        self.host = host
        self.write_first = write_first
        self.reached = {1: threading.Event(), 2: threading.Event()}
        self.go_on = {1: threading.Event(), 2: threading.Event()}
        host.webhooks.on(name="stalls")(self)

    def __call__(self, event: Event) -> None:
        if self.write_first:
            self.host.note(f"run {event.attempt}")
        self.reached[event.attempt].set()
        assert self.go_on[event.attempt].wait(20)
        if not self.write_first:
            self.host.note(f"run {event.attempt}")


@pytest.fixture
def background() -> Iterator[Callable[..., Future[Any]]]:
    with ThreadPoolExecutor(2) as pool:
        yield pool.submit


@pytest.mark.parametrize("write_first", [False, True], ids=["writes late", "early"])
def test_a_run_that_comes_back_after_its_lease_has_no_effect(
    host: Host,
    host_clock: Clock,
    background: Callable[..., Future[Any]],
    write_first: bool,
) -> None:
    """Its receipt is there already, so its writes are rolled back."""
    if write_first and host.engine.dialect.name == "sqlite":
        # There, writes of a stalled run keep everybody out: let it only read.
        write_first = False
    stalls = Stalls(host, write_first)
    sent = payload("RFIs.update")

    first = background(host.deliver, sent)
    assert stalls.reached[1].wait(20)
    host_clock.forward(host.endpoint.settings.lease + 1)
    stalls.go_on[2].set()
    # Signed now by the clock of the inbox, which is ahead of the machine's.
    second = _deliver_at(host, sent, host_clock)
    assert (second.status_code, host.notes()) == (200, ["run 2"])

    stalls.go_on[1].set()
    assert first.result(20).status_code == 200
    assert host.notes() == ["run 2"]
    assert host.receipts() == ["stalls"]
    row = host.row()
    assert (row["status"], row["attempts"], row["error"]) == ("done", 2, None)


def test_a_run_that_has_lost_its_lease_is_not_the_one_to_answer_200(
    host: Host, host_clock: Clock, background: Callable[..., Future[Any]]
) -> None:
    """Its successor might still fail, and then the sender has to come again."""
    stalls = Stalls(host)
    sent = payload("RFIs.update")

    first = background(host.deliver, sent)
    assert stalls.reached[1].wait(20)
    host_clock.forward(host.endpoint.settings.lease + 1)
    second = background(_deliver_at, host, sent, host_clock)
    assert stalls.reached[2].wait(20)
    stalls.go_on[1].set()
    answer = first.result(20)

    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert (host.notes(), host.row()["status"]) == (["run 1"], "running")

    stalls.go_on[2].set()
    assert second.result(20).status_code == 200
    assert (host.notes(), host.row()["status"]) == (["run 1"], "done")


def test_two_runs_that_finish_at_once_have_one_effect(
    host: Host, host_clock: Clock, background: Callable[..., Future[Any]]
) -> None:
    stalls = Stalls(host)
    sent = payload("RFIs.update")

    runs = [background(host.deliver, sent)]
    assert stalls.reached[1].wait(20)
    host_clock.forward(host.endpoint.settings.lease + 1)
    runs.append(background(_deliver_at, host, sent, host_clock))
    assert stalls.reached[2].wait(20)
    for go_on in stalls.go_on.values():
        go_on.set()
    statuses = [run.result(20).status_code for run in runs]

    assert set(statuses) <= {200, 503}
    assert len(host.notes()) == 1
    assert host.row()["status"] == "done"


def _deliver_at(host: Host, sent: dict[str, Any], clock: Clock) -> TestResponse:
    timestamp = int(clock.time.timestamp())
    return deliver(host.app.test_client(), sent, timestamp=timestamp)


KILLED = """
import json, os, signal, sys
from flask import Flask
from support.hosts import run_host

order = json.loads(sys.stdin.readline())
app = Flask("child", instance_path=order["folder"])
app.config.update(TESTING=True, PROCORE_WEBHOOK_SECRET=order["secret"])
with run_host(app, "flask_sqlalchemy", order["url"], create=False) as host:
    host.webhooks.on(name="first")(lambda event: host.note("first"))

    @host.webhooks.on(name="second")
    def second(event):
        host.note("of the killed run")
        host.session.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    host.deliver(order["event"])
"""


@pytest.mark.slow
def test_what_a_killed_process_left_is_resumed_when_its_lease_is_over(
    host: Host, host_clock: Clock, database_url: str, tmp_path: Path
) -> None:
    sent = payload("RFIs.update")
    order = {
        "url": database_url,
        "folder": str(tmp_path),
        "secret": host.app.config["PROCORE_WEBHOOK_SECRET"],
        "event": sent,
    }
    child = _child(order, KILLED)
    child.communicate(timeout=60)
    assert child.returncode == -9

    host.webhooks.on(name="first")(lambda event: host.note("first again"))
    host.webhooks.on(name="second")(lambda event: host.note("second"))
    _wait_for_rollback(host)
    assert host.deliver(sent).status_code == 503
    assert host.notes() == ["first"]

    host_clock.forward(host.endpoint.settings.lease + 60)
    assert _deliver_at(host, sent, host_clock).status_code == 200
    assert host.notes() == ["first", "second"]
    assert host.row()["attempts"] == 2


def _wait_for_rollback(host: Host) -> None:
    """The server may take a moment to see that its client is gone."""
    with host.engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            busy = sa.text(
                "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in%'"
                " AND datname = current_database()"
            )
            deadline = time.monotonic() + 10
            while connection.scalar(busy) and time.monotonic() < deadline:
                time.sleep(0.05)
