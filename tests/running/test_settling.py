"""What the runs of a batch leave to write is written together, and in time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy.orm import scoped_session
from sqlalchemy.orm import sessionmaker
from support.hosts import Host
from support.hosts import run_host
from support.inboxes import by_id
from support.inboxes import claim_one
from support.inboxes import done
from support.inboxes import record
from support.inboxes import states
from support.inboxes import statuses
from support.outages import locked
from support.waiting import PATIENCE
from support.waiting import wait_until
from support.workers import working

from flask_procore_webhooks import Event
from flask_procore_webhooks import event_processed
from flask_procore_webhooks.dispatching.worker import Worker
from flask_procore_webhooks.errors import InboxUnavailable
from flask_procore_webhooks.inbox import batches
from flask_procore_webhooks.running.held import HeldClaims
from flask_procore_webhooks.running.leases import renewing

pytestmark = pytest.mark.usefixtures("whole_batches")

MakeApp = Callable[..., Flask]


def numbered(count: int) -> list[str]:
    return [f"evt_{number}" for number in range(count)]


def worker_with_batches(host: Host, size: int) -> Worker:
    """A worker that claims ``size`` events at once."""
    worker = Worker([host.endpoint], poll=1)
    worker._batch_size = size
    return worker


# Together


def test_events_of_a_batch_are_settled_by_one_statement(host: Host) -> None:
    host.webhooks.on(name="nothing")(lambda event: None)
    record(host.store, *numbered(8))
    given: list[str] = []

    @sa.event.listens_for(host.store.database.engine, "before_cursor_execute")
    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        given.append(" ".join(statement.split()))

    assert worker_with_batches(host, 8).run_due() == 8
    changes = [text for text in given if "UPDATE procore_webhook_event" in text]
    # The claim, then the outcome.
    changes = [text for text in changes if not text.startswith("SELECT")]
    assert len(changes) == 2 and "finished_at=" in changes[1]
    inserts = [text for text in given if "INSERT INTO procore_webhook_job" in text]
    assert len(inserts) == 1
    assert set(statuses(host.store).values()) == {"done"}
    for id in numbered(8):
        assert states(host.store, id) == {"nothing": "done"}


def test_writes_are_committed_with_their_job_before_the_event(host: Host) -> None:
    seen: list[tuple[str, dict[str, str]]] = []

    @host.webhooks.on(name="writer")
    def writer(event: Event) -> None:
        if event.id == "evt_1":
            seen.append((statuses(host.store)["evt_0"], states(host.store, "evt_0")))
            assert host.notes() == ["evt_0"]
        host.note(event.id)

    record(host.store, *numbered(2))
    assert worker_with_batches(host, 2).run_due() == 2
    assert seen in ([("running", {"writer": "done"})], [("done", {"writer": "done"})])
    assert host.notes() == numbered(2)


def test_signal_is_sent_when_the_event_is_done(host: Host) -> None:
    host.webhooks.on(name="nothing")(lambda event: None)
    found: list[tuple[str, str, int]] = []

    def receiver(app: Flask, event: Event) -> None:
        found.append((event.id, statuses(host.store)[event.id], event.attempt))

    event_processed.connect(receiver)
    record(host.store, *numbered(3))
    assert worker_with_batches(host, 3).run_due() == 3
    event_processed.disconnect(receiver)
    assert found == [(id, "done", 1) for id in numbered(3)]


def test_failing_receiver_ends_no_other_event(sqlite_host: Host) -> None:
    host, called = sqlite_host, list[str]()
    host.webhooks.on(name="nothing")(lambda event: None)

    def receiver(app: Flask, event: Event) -> None:
        called.append(event.id)
        raise SystemExit(1)

    event_processed.connect(receiver)
    record(host.store, *numbered(3))
    with working(host.endpoint):
        wait_until(lambda: called == numbered(3))
    event_processed.disconnect(receiver)


# At once


def test_durable_job_is_committed_before_the_next_call(host: Host) -> None:
    seen: list[dict[str, str]] = []

    @host.webhooks.on(name="sends", durable=True)
    def sends(event: Event) -> None:
        if event.id == "evt_1":
            seen.append(states(host.store, "evt_0"))

    record(host.store, *numbered(2))
    assert worker_with_batches(host, 2).run_due() == 2
    assert seen == [{"sends": "done"}]
    assert set(statuses(host.store).values()) == {"done"}


def test_failure_is_settled_at_once(host: Host) -> None:
    seen: list[tuple[str, dict[str, str]]] = []

    @host.webhooks.on(name="first")
    def first(event: Event) -> None:
        if event.id == "evt_1":
            seen.append((statuses(host.store)["evt_0"], states(host.store, "evt_0")))

    @host.webhooks.on(name="second")
    def second(event: Event) -> None:
        if event.id == "evt_0":
            raise ValueError("no")

    record(host.store, *numbered(2))
    assert worker_with_batches(host, 2).run_due() == 2
    assert seen == [("pending", {"first": "done", "second": "pending"})]


# While a call goes on


def test_slow_call_holds_back_no_event_that_is_done(host: Host) -> None:
    goes_on, may_end = threading.Event(), threading.Event()

    @host.webhooks.on(name="one")
    def one(event: Event) -> None:
        if event.id == "evt_1":
            goes_on.set()
            assert may_end.wait(PATIENCE)

    record(host.store, *numbered(2))
    worker = worker_with_batches(host, 2)
    thread = threading.Thread(target=worker.run_due)
    thread.start()
    assert goes_on.wait(PATIENCE)
    wait_until(lambda: statuses(host.store) == {"evt_0": "done", "evt_1": "running"})
    assert states(host.store, "evt_0") == {"one": "done"}
    may_end.set()
    thread.join(PATIENCE)
    assert statuses(host.store) == {"evt_0": "done", "evt_1": "done"}
    assert worker.ran == 2


def test_slow_subscriber_holds_back_no_job_of_its_event(host: Host) -> None:
    goes_on, may_end = threading.Event(), threading.Event()
    host.webhooks.on(name="first")(lambda event: None)

    @host.webhooks.on(name="second")
    def second(event: Event) -> None:
        goes_on.set()
        assert may_end.wait(PATIENCE)

    record(host.store, "evt_0")
    thread = threading.Thread(target=Worker([host.endpoint], poll=1).run_due)
    thread.start()
    assert goes_on.wait(PATIENCE)
    wait_until(lambda: states(host.store, "evt_0") == {"first": "done"})
    assert statuses(host.store) == {"evt_0": "running"}
    may_end.set()
    thread.join(PATIENCE)
    assert states(host.store, "evt_0") == {"first": "done", "second": "done"}


def test_abandoned_call_holds_back_no_event_that_is_done(host: Host) -> None:
    may_end, announced = threading.Event(), list[str]()

    @host.webhooks.on(name="one", timeout=0.5)
    def one(event: Event) -> None:
        if event.id == "evt_1":
            may_end.wait(PATIENCE)

    def receiver(app: Flask, event: Event) -> None:
        announced.append(event.id)

    event_processed.connect(receiver)
    record(host.store, *numbered(2))
    worker = worker_with_batches(host, 2)
    thread = threading.Thread(target=worker.run_due, daemon=True)
    thread.start()
    wait_until(lambda: statuses(host.store)["evt_0"] == "done")
    wait_until(lambda: announced == ["evt_0"])
    may_end.set()
    thread.join(PATIENCE)
    event_processed.disconnect(receiver)


def test_stopped_worker_writes_what_has_ended(host: Host) -> None:
    @host.webhooks.on(name="one")
    def one(event: Event) -> None:
        if event.id == "evt_1":
            worker.stop()

    record(host.store, *numbered(3))
    worker = worker_with_batches(host, 3)
    worker.run()
    found = statuses(host.store)
    assert found == {"evt_0": "done", "evt_1": "done", "evt_2": "pending"}
    assert {row["claims"] for row in by_id(host.store).values()} == {0}


# Lost claims


def test_lost_claim_is_not_counted(host: Host) -> None:

    @host.webhooks.on(name="one")
    def one(event: Event) -> None:
        if event.id != "evt_1":
            return
        (first,) = (each for each in held().claims.values() if each.event_id == "evt_0")
        batches.release(host.store, [first])
        assert claim_one(host.store, first.row_id)

    def held() -> Any:
        return worker._held[host.endpoint.name]

    record(host.store, *numbered(2))
    worker = worker_with_batches(host, 2)
    assert worker.run_due() == worker.ran == 1
    # The subscriber has finished, whoever settles its event.
    assert states(host.store, "evt_0") == {"one": "done"}
    assert statuses(host.store) == {"evt_0": "running", "evt_1": "done"}


def test_lost_claim_is_not_announced(host: Host) -> None:
    record(host.store, *numbered(2))
    claimed, announced = batches.claim_due(host.store, 2, 60), list[str]()
    with renewing(host.store, claimed, 60) as held:
        for claim in claimed:
            assert held.start(claim)
            held.settle(claim, partial(announced.append, claim.event_id))
        batches.release(host.store, claimed[:1])
    assert announced == ["evt_1"] and held.lost == 1
    assert statuses(host.store) == {"evt_0": "pending", "evt_1": "done"}


def test_forked_child_writes_nothing(sqlite_host: Host) -> None:
    store = sqlite_host.store
    record(store, "evt_0")
    (claim,) = batches.claim_due(store, 1, 60)
    # Without the thread that renews the leases, which would write it.
    held = HeldClaims(store, 60, {claim.row_id: claim}, time.monotonic() + 20)
    held.end(claim, done(store, "a:b"))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            held.flush()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert states(store, "evt_0") == {}
    held.flush()
    assert states(store, "evt_0") == {"a:b": "done"}


# Failures


def test_failed_write_is_repeated_and_logged_once(
    sqlite_host: Host, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The thread that renews the leases tries again while a call goes on."""
    store, calls = sqlite_host.store, list[str]()

    @sqlite_host.webhooks.on(name="one")
    def one(event: Event) -> None:
        calls.append(event.id)
        if event.id == "evt_1":
            (held,) = worker._held.values()
            with locked(tmp_path / "host.db"):
                wait_until(lambda: held.failures >= 2 or not held._done)
            wait_until(lambda: statuses(store)["evt_0"] == "done")

    record(store, *numbered(2))
    worker = worker_with_batches(sqlite_host, 2)
    assert worker.run_due() == 2
    assert calls == numbered(2)
    assert set(statuses(store).values()) == {"done"}
    assert caplog.text.count("The ends of runs are not written yet") <= 1


def test_unwritten_ends_are_kept_for_the_next_call(
    sqlite_host: Host, tmp_path: Path
) -> None:
    store = sqlite_host.store
    record(store, "evt_0")
    (claim,) = batches.claim_due(store, 1, 60)
    announced: list[str] = []
    with renewing(store, [claim], 60) as held:
        assert held.start(claim)
        with locked(tmp_path / "host.db"):
            held.end(claim, done(store, "a:b"))
            held.settle(claim, lambda: announced.append("evt_0"))
            with pytest.raises(InboxUnavailable):
                held.write(until=0.0)
            assert held.started() == [claim] and held.write_at > time.monotonic()
        held.flush()
        assert held.started() == [] and held.lost == 0
    assert announced == ["evt_0"]
    assert statuses(store) == {"evt_0": "done"}


# On a connection that the session of the subscriber shares

ENDED = "SELECT subscriber FROM procore_webhook_job WHERE state = 'done' ORDER BY 1"


def failing_writer(host: Host) -> list[str]:
    """Subscribe a function that fails at first, long after it has written.

    :return: gets the calls of a subscriber before it.
    """
    first, calls = list[str](), list[str]()
    host.webhooks.on(name="first")(lambda event: first.append(event.id))

    @host.webhooks.on(name="writer")
    def writer(event: Event) -> None:
        calls.append(event.id)
        host.note(f"attempt {len(calls)}")
        # For longer than the ends of runs are kept elsewhere.
        time.sleep(0.2)
        if len(calls) == 1:
            raise ValueError("the first attempt fails")

    return first


@pytest.mark.parametrize("place", ["memory", "file"])
def test_shared_connection_keeps_no_write_of_a_failed_attempt(
    make_app: MakeApp, tmp_path: Path, place: str
) -> None:
    url = "sqlite://" if place == "memory" else f"sqlite:///{tmp_path / 'host.db'}"
    shared = {"poolclass": sa.StaticPool, "connect_args": {"check_same_thread": False}}
    app = make_app(SQLALCHEMY_ENGINE_OPTIONS=shared)
    with run_host(app, "flask_sqlalchemy", url) as host:
        first = failing_writer(host)
        assert host.deliver().status_code == 500
        assert host.deliver().status_code == 200
        assert host.notes() == ["attempt 2"] and len(first) == 1
        assert [*statuses(host.store).values()] == ["done"]


def test_transaction_of_a_test_keeps_no_write_of_a_failed_attempt(
    make_app: MakeApp, postgresql_url: str
) -> None:
    with run_host(make_app(), "flask_sqlalchemy", postgresql_url) as host:
        first, db = failing_writer(host), host.app.extensions["sqlalchemy"]
        before = db.session
        with host.app.app_context(), host.engine.connect() as connection:
            mode: Any = "create_savepoint"
            make = sessionmaker(bind=connection, join_transaction_mode=mode)
            transaction = connection.begin()
            db.session = host.session = scoped_session(make)
            assert host.deliver().status_code == 500
            assert host.deliver().status_code == 200
            notes = connection.scalars(sa.select(host.note_table.c.text)).all()
            ended = connection.scalars(sa.text(ENDED)).all()
            db.session.remove()
            transaction.rollback()
        db.session = host.session = before
        assert notes == ["attempt 2"] and len(first) == 1
        assert ended == ["first", "writer"]
        assert host.notes() == [] and by_id(host.store) == {}


# Ends of workers


def test_stopped_process_interrupts_no_event_that_is_done(host: Host) -> None:
    """The main thread releases the claims of a worker whose thread goes on."""
    store = host.store
    record(store, *numbered(3))
    first, second, third = batches.claim_due(store, 3, 60)
    worker = worker_with_batches(host, 1)
    with renewing(store, [first, second, third], 60) as held:
        worker._held[host.endpoint.name] = held
        assert all(map(held.start, [first, second, third]))
        # The second one is done when the first one is written.
        held.settle(first, lambda: held.settle(second, None))
        worker.release()
    found = statuses(store)
    assert found == {"evt_0": "done", "evt_1": "done", "evt_2": "pending"}


# Slow calls


def test_event_is_announced_before_the_next_call(host: Host) -> None:
    announced: list[str] = []
    before: list[list[str]] = []

    @host.webhooks.on(name="one")
    def one(event: Event) -> None:
        before.append([*announced])

    def receiver(app: Flask, event: Event) -> None:
        announced.append(event.id)

    event_processed.connect(receiver)
    record(host.store, *numbered(3))
    assert worker_with_batches(host, 3).run_due() == 3
    event_processed.disconnect(receiver)
    assert before == [[], ["evt_0"], ["evt_0", "evt_1"]]


def test_file_that_a_subscriber_has_locked_is_no_failure(
    sqlite_host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    host = sqlite_host

    @host.webhooks.on(name="one")
    def one(event: Event) -> None:
        if event.id == "evt_1":
            host.note(event.id)
            (held,) = worker._held.values()
            wait_until(lambda: held.failures == 2)

    record(host.store, *numbered(3))
    worker = worker_with_batches(host, 3)
    worker.run_all()
    assert set(statuses(host.store).values()) == {"done"}
    assert caplog.text == ""


def test_write_whose_answer_is_lost_is_recognised_later(host: Host) -> None:
    store = host.store
    record(store, "evt_0")
    (claim,) = batches.claim_due(store, 1, 60)
    made: list[str] = []

    @sa.event.listens_for(store.database.engine, "after_cursor_execute")
    def lose(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith(("WITH", "COMMIT")):
            made.append(statement)
            if len(made) == 1:
                raise ConnectionError("the answer is lost")

    announced: list[str] = []
    with renewing(store, [claim], 60) as held:
        assert held.start(claim)
        held.end(claim, done(store, "a:b"))
        held.settle(claim, lambda: announced.append("evt_0"))
        with pytest.raises(InboxUnavailable):
            held.write(until=0.0)
        assert statuses(store) == {"evt_0": "done"}
        held.flush()
    assert held.lost == 0 and announced == ["evt_0"]
