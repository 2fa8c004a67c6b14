"""Calls that hang: they are logged, abandoned, and change nothing when they return."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from support.hosts import Host
from support.hosts import host_url
from support.hosts import KINDS
from support.hosts import run_host
from support.inboxes import all_done
from support.inboxes import are_done
from support.inboxes import attempts
from support.inboxes import counted
from support.inboxes import numbered
from support.inboxes import record
from support.inboxes import states
from support.inboxes import statuses
from support.waiting import PATIENCE
from support.waiting import wait_until
from support.workers import SETTINGS

from flask_procore_webhooks import Event
from flask_procore_webhooks.dispatching.pool import Pool
from flask_procore_webhooks.dispatching.pool import WorkerThread
from flask_procore_webhooks.dispatching.worker import Worker
from flask_procore_webhooks.inbox import batches
from flask_procore_webhooks.inbox import claims
from flask_procore_webhooks.inbox.cut import abandon
from flask_procore_webhooks.inbox.held import Claim
from flask_procore_webhooks.inbox.jobs import Failure
from flask_procore_webhooks.inbox.jobs import Job
from flask_procore_webhooks.inbox.status import JobState
from flask_procore_webhooks.inbox.status import Status
from flask_procore_webhooks.log import log as logger
from flask_procore_webhooks.running.failures import RunOutcome
from flask_procore_webhooks.running.leases import LeaseRenewer
from flask_procore_webhooks.running.leases import longest_call
from flask_procore_webhooks.running.plan import failed
from flask_procore_webhooks.storage.store import Store
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import payload

MakeApp = Callable[..., Flask]
DATABASES = ("sqlite", "postgresql", "mariadb")
TIMES = {"PROCORE_WEBHOOK_LEASE": 1, "PROCORE_WEBHOOK_TIMEOUT": 1.5}
#: A statement that sleeps in the server.
SLEEPS = {"postgresql": "SELECT pg_sleep(30)", "mysql": "SELECT SLEEP(30)"}


@pytest.fixture(params=[f"{kind} {name}" for kind in KINDS for name in DATABASES])
def host(
    request: pytest.FixtureRequest, make_app: MakeApp, tmp_path: Path
) -> Iterator[Host]:
    kind, database = request.param.split()
    url = host_url(request, database, tmp_path)
    with run_host(make_app(**SETTINGS, **TIMES), kind, url) as host:
        yield host


@pytest.fixture
def sqlite_host(make_app: MakeApp, tmp_path: Path) -> Iterator[Host]:
    url = f"sqlite:///{tmp_path / 'host.db'}"
    with run_host(make_app(**SETTINGS, **TIMES), "flask_sqlalchemy", url) as host:
        yield host


class Gate:
    """Holds the first call of a subscriber until the test lets it go on."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.returned = threading.Event()

    def hang(self) -> None:
        self.begun.set()
        assert self.go_on.wait(PATIENCE)


@contextmanager
def pool_of(host: Host, size: int = 1, gate: Gate | None = None) -> Iterator[Pool]:
    """Run a pool of threads until the end of the block, which opens the gate."""
    pool = Pool([host.endpoint], size, poll=0.1)
    main = threading.Thread(target=pool.run, args=(False,), daemon=True)
    main.start()
    try:
        yield pool
    finally:
        if gate is not None:
            gate.go_on.set()
        pool.end(5)
        for thread in threading.enumerate():
            if isinstance(thread, WorkerThread) and thread.pool is pool:
                thread.join(PATIENCE)
        main.join(PATIENCE)
    assert not main.is_alive()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.go_on.set()


def test_abandoned_call_is_a_failed_attempt_and_its_late_writes_are_gone(
    host: Host, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    """The retry needs the row that the hung call has locked."""
    calls: list[int] = []

    @host.webhooks.on(name="hangs")
    def hangs(event: Event) -> None:
        calls.append(event.attempt)
        host.note(f"of {event.id}")
        if event.attempt == 1:
            try:
                gate.hang()
                host.note("late")
                host.session.flush()
            finally:
                gate.returned.set()

    @host.webhooks.on(name="next")
    def next_(event: Event) -> None:
        host.note("next")

    record(host.store, "evt_1")
    with pool_of(host, gate=gate):
        wait_until(all_done(host.store, 1))
        assert gate.begun.is_set() and not gate.go_on.is_set()
        assert host.jobs("evt_1")["hangs"]["attempts"] == 2
        before = host.row("evt_1")
        gate.go_on.set()
        assert gate.returned.wait(PATIENCE)

    assert calls == [1, 2]
    assert host.notes() == ["next", "of evt_1"]
    assert host.row("evt_1") == before
    assert before["error"] is None
    text = "hangs: no answer within 1.5 s (timeout) is abandoned for 'RFIs.update'"
    assert text in caplog.text
    assert states(host.store) == {"hangs": "done", "next": "done"}
    job = host.jobs("evt_1")["hangs"]
    # The failure of the last attempt that failed stays.
    assert (job["error_class"], job["error"]) == (
        "Timeout",
        "no answer within 1.5 s (timeout)",
    )


def test_late_call_that_catches_the_error_and_writes_again_changes_nothing(
    host: Host, gate: Gate
) -> None:
    errors: list[BaseException] = []

    @host.webhooks.on(name="stubborn")
    def stubborn(event: Event) -> None:
        host.note(f"attempt {event.attempt}")
        if event.attempt > 1:
            return
        gate.hang()
        try:
            for _ in range(3):
                with suppress(Exception):
                    host.session.rollback()
                try:
                    host.note("late")
                    host.session.flush()
                except BaseException as error:
                    errors.append(error)
        finally:
            gate.returned.set()

    record(host.store, "evt_1")
    with pool_of(host, gate=gate):
        wait_until(all_done(host.store, 1))
        gate.go_on.set()
        assert gate.returned.wait(PATIENCE)
    assert len(errors) == 3
    assert host.notes() == ["attempt 2"]


def test_late_return_without_a_session_changes_nothing(
    sqlite_host: Host, gate: Gate
) -> None:
    ran: list[int] = []

    @sqlite_host.webhooks.on(name="quiet")
    def quiet(event: Event) -> None:
        ran.append(event.attempt)
        if event.attempt == 1:
            gate.hang()

    record(sqlite_host.store, "evt_1")
    with pool_of(sqlite_host, gate=gate) as pool:
        wait_until(all_done(sqlite_host.store, 1))
        before = sqlite_host.row("evt_1")
        (old,) = [each for each in pool.threads if each.worker.is_abandoned]
        gate.go_on.set()
        old.join(PATIENCE)
        assert not old.is_alive()
    assert (ran, sqlite_host.row("evt_1")) == ([1, 2], before)


def test_statement_that_sleeps_in_the_server_is_ended(host: Host, gate: Gate) -> None:
    name = host.engine.dialect.name
    if name == "sqlite":
        pytest.skip("there is no server")

    @host.webhooks.on(name="sleeps")
    def sleeps(event: Event) -> None:
        host.note(f"attempt {event.attempt}")
        if event.attempt == 1:
            host.session.execute(sa.text(SLEEPS[name]))

    record(host.store, "evt_1")
    start = time.monotonic()
    with pool_of(host, gate=gate):
        wait_until(all_done(host.store, 1))
    assert time.monotonic() - start < 25
    assert host.notes() == ["attempt 2"]


def test_deliveries_are_answered_after_the_cut(host: Host, gate: Gate) -> None:
    """The hung call holds the write lock of a file, or the event's row."""
    event_row = host.store.columns

    @host.webhooks.on(name="locks")
    def locks(event: Event) -> None:
        if not gate.begun.is_set():
            lock = sa.update(event_row.id.table).values(repeats=event_row.repeats)
            host.session.execute(lock)
            gate.hang()

    sent = payload("RFIs.update")
    client = host.app.test_client()
    assert deliver(client, sent).status_code == 200
    with pool_of(host, gate=gate):
        assert gate.begun.wait(PATIENCE)
        wait_until(all_done(host.store, 1))
        assert deliver(client, sent).status_code == 200
        assert deliver(client, payload("RFIs.update")).status_code == 200
        wait_until(all_done(host.store, 2))


def test_async_subscriber_that_hangs_is_abandoned(host: Host, gate: Gate) -> None:
    @host.webhooks.on(name="waits")
    async def waits(event: Event) -> None:
        host.note("written")
        if event.attempt == 1:
            gate.begun.set()
            try:
                while not gate.go_on.is_set():
                    await asyncio.sleep(0.02)
                host.session.flush()
            finally:
                gate.returned.set()

    record(host.store, "evt_1")
    with pool_of(host, gate=gate):
        wait_until(all_done(host.store, 1))
        gate.go_on.set()
        assert gate.returned.wait(PATIENCE)
    assert host.notes() == ["written"]


def test_subscriber_may_have_a_timeout_of_its_own(
    sqlite_host: Host, gate: Gate
) -> None:
    @sqlite_host.webhooks.on(name="short", timeout=0.2)
    def short(event: Event) -> None:
        if event.attempt < 3:
            gate.hang()
        assert event.attempt < 3

    @sqlite_host.webhooks.on(name="long", timeout=3600)
    def long(event: Event) -> None:
        if event.attempt == 1:
            time.sleep(2)

    record(sqlite_host.store, "evt_1")
    with pool_of(sqlite_host, 3, gate):
        wait_until(lambda: statuses(sqlite_host.store) == {"evt_1": "dead"})
    jobs = sqlite_host.jobs("evt_1")
    assert jobs["short"]["attempts"] == 3
    assert "short: AssertionError" in sqlite_host.row("evt_1")["error"]
    assert states(sqlite_host.store) == {"long": "done", "short": "dead"}


@pytest.mark.seldom("scoped_session postgresql", "scoped_session mariadb")
@pytest.mark.parametrize("option", ["when", "key"])
@pytest.mark.parametrize("raises", [False, True])
def test_function_of_an_option_that_hangs_is_abandoned(
    host: Host, gate: Gate, option: str, raises: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It returns or raises when the retry has ended; then it changes nothing."""
    asked: list[str] = []

    def ask(event: Event) -> str:
        asked.append(event.id)
        if len(asked) == 1:
            try:
                host.note("late")
                host.session.flush()
                gate.hang()
                assert not raises
            finally:
                gate.returned.set()
        return "text"

    options: dict[str, Any] = {option: ask, "one_at_a_time": True}

    @host.webhooks.on(name="asks", **options)
    def asks(event: Event) -> None:
        host.note(f"{event.id}, attempt {event.attempt}")

    @host.webhooks.on(name="next")
    def next_(event: Event) -> None:
        host.note(event.id)

    record(host.store, "evt_1")
    with pool_of(host, gate=gate):
        wait_until(all_done(host.store, 1))
        job = host.jobs("evt_1")["asks"]
        gate.go_on.set()
        assert gate.returned.wait(PATIENCE)
        record(host.store, "evt_2")
        wait_until(all_done(host.store, 2))
    assert host.jobs("evt_1")["asks"] == job
    assert (job["state"], job["attempts"]) == ("done", 2)
    notes = ["evt_1", "evt_1, attempt 2", "evt_2", "evt_2, attempt 1"]
    assert sorted(host.notes()) == notes
    assert "asks: no answer within 1.5 s (timeout) is abandoned" in caplog.text


def test_function_of_an_option_has_the_time_of_its_call(
    sqlite_host: Host, gate: Gate
) -> None:
    """Together they take longer than the timeout, and each of them does not."""

    def slow(event: Event) -> bool:
        time.sleep(0.4)
        return True

    @sqlite_host.webhooks.on(name="slow", timeout=0.6, when=slow)
    def call(event: Event) -> None:
        time.sleep(0.4)

    record(sqlite_host.store, "evt_1")
    with pool_of(sqlite_host, 3, gate):
        wait_until(lambda: statuses(sqlite_host.store) == {"evt_1": "dead"})


def test_event_whose_calls_all_hang_is_dead_and_can_be_replayed(
    sqlite_host: Host, gate: Gate
) -> None:
    hangs = True

    @sqlite_host.webhooks.on(name="hangs", timeout=0.2)
    def hang(event: Event) -> None:
        if hangs:
            gate.hang()
        sqlite_host.note("done")

    record(sqlite_host.store, "evt_1")
    with pool_of(sqlite_host, 4, gate):
        wait_until(lambda: statuses(sqlite_host.store) == {"evt_1": "dead"})
        error = sqlite_host.row("evt_1")["error"]
        assert error == "hangs: no answer within 0.2 s (timeout)"
        hangs = False
        sent = payload("RFIs.update", id="evt_1")
        answer = deliver(sqlite_host.app.test_client(), sent)
        assert answer.status_code == 200
        wait_until(all_done(sqlite_host.store, 1))
    assert sqlite_host.notes() == ["done"]


def test_hang_after_the_commit_repeats_nothing(
    sqlite_host: Host, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    """The host's teardown hangs."""

    @sqlite_host.app.teardown_appcontext
    def teardown(error: BaseException | None) -> None:
        if gate.begun.is_set() and threading.current_thread() in hanging:
            hanging.clear()
            gate.hang()

    hanging: list[threading.Thread] = []

    @sqlite_host.webhooks.on(name="writer", timeout=0.5)
    def writer(event: Event) -> None:
        hanging.append(threading.current_thread())
        gate.begun.set()
        sqlite_host.note("written")

    @sqlite_host.webhooks.on(name="next")
    def next_(event: Event) -> None:
        sqlite_host.note("next")

    record(sqlite_host.store, "evt_1")
    with pool_of(sqlite_host, gate=gate):
        wait_until(all_done(sqlite_host.store, 1))
    assert sqlite_host.notes() == ["written", "next"]
    jobs = sqlite_host.jobs("evt_1").values()
    assert [job["attempts"] for job in jobs] == [1, 1]


def test_no_timeout_is_applied_inline(make_app: MakeApp, tmp_path: Path) -> None:
    app = make_app(**TIMES)
    url = f"sqlite:///{tmp_path / 'host.db'}"
    with run_host(app, "flask_sqlalchemy", url) as host:

        @host.webhooks.on(name="slow", timeout=0.1)
        def slow(event: Event) -> None:
            time.sleep(1)
            host.note("written")

        assert host.deliver().status_code == 200
        assert (host.notes(), host.job()["attempts"]) == (["written"], 1)


# Threads


def test_others_go_on_when_every_thread_hangs(
    sqlite_host: Host, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    """Long before the timeout: after a lease."""

    @sqlite_host.webhooks.on(name="hangs", timeout=3600)
    def hangs(event: Event) -> None:
        if event.id.startswith("hang"):
            gate.hang()

    record(sqlite_host.store, "hang_1", "hang_2")
    with pool_of(sqlite_host, 2, gate) as pool:
        wait_until(lambda: counted(sqlite_host.store)["running"] == 2)
        record(sqlite_host.store, *numbered(20))
        wait_until(lambda: counted(sqlite_host.store)["done"] == 20)
        longest = longest_call([sqlite_host.store])
        assert longest and longest["subscriber"] == "hangs"
        assert longest["seconds"] >= 1
        assert not pool.is_exhausted
        gate.go_on.set()
        wait_until(all_done(sqlite_host.store, 22))
        # Those that came back are enough.
        wait_until(lambda: len(pool.threads) == 2)
    warned = [m for m in caplog.messages if m.startswith("hangs has been running for")]
    assert warned
    assert "for 'RFIs.update' hang_" in warned[0]
    assert longest_call([sqlite_host.store]) is None


def test_warning_is_repeated_once_a_lease(
    sqlite_host: Host, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    @sqlite_host.webhooks.on(name="hangs", timeout=3600)
    def hangs(event: Event) -> None:
        gate.hang()

    def warned() -> list[str]:
        return [m for m in caplog.messages if "has been running for" in m]

    record(sqlite_host.store, "evt_1")
    with pool_of(sqlite_host, gate=gate):
        wait_until(lambda: len(warned()) == 3)
        longest = longest_call([sqlite_host.store])
        assert longest and longest.pop("seconds") >= 2.9
        assert longest == {"subscriber": "hangs", "event": "evt_1"}
        gate.go_on.set()
        wait_until(all_done(sqlite_host.store, 1))


def test_pool_is_exhausted_when_more_threads_hang_than_it_replaces(
    sqlite_host: Host, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    @sqlite_host.webhooks.on(name="hangs", timeout=0.2)
    def hangs(event: Event) -> None:
        if event.id.startswith("hang"):
            gate.hang()

    sqlite_host.app.config["PROCORE_WEBHOOK_RETRY_BASE"] = 3600
    with pool_of(sqlite_host, 2, gate) as pool:
        record(sqlite_host.store, "hang_1", "hang_2")
        wait_until(lambda: pool_abandoned(pool) == 2)
        assert not pool.is_exhausted
        record(sqlite_host.store, "evt_1")
        wait_until(lambda: are_done(sqlite_host.store, "evt_1"))
        record(sqlite_host.store, "hang_3")
        wait_until(lambda: pool.is_exhausted)
        assert len(pool.threads) <= 4
        wait_until(lambda: "threads hang in subscribers" in caplog.text)
    assert caplog.text.count("threads hang in subscribers") == 1


def pool_abandoned(pool: Pool) -> int:
    """The threads that hang for good."""
    return sum(each.worker.is_abandoned for each in pool.threads if each.is_alive())


def test_exhausted_pool_goes_on_when_a_call_returns(
    make_app: MakeApp, tmp_path: Path, gate: Gate
) -> None:
    """Nothing wakes it: no thread was left that polls."""
    second = Gate()
    once = {**SETTINGS, **TIMES, "PROCORE_WEBHOOK_MAX_ATTEMPTS": 1}
    url = f"sqlite:///{tmp_path / 'host.db'}"
    with run_host(make_app(**once), "flask_sqlalchemy", url) as host:

        @host.webhooks.on(name="hangs", timeout=0.2)
        def hangs(event: Event) -> None:
            if event.id != "evt_3":
                (gate if event.id == "evt_1" else second).hang()

        record(host.store, "evt_1", "evt_2")
        with pool_of(host, gate=gate) as pool:
            wait_until(lambda: pool.is_exhausted)
            record(host.store, "evt_3")
            second.go_on.set()
            wait_until(lambda: are_done(host.store, "evt_3"))
            assert not pool.is_exhausted and not gate.go_on.is_set()


def test_returned_threads_are_counted_back(sqlite_host: Host, gate: Gate) -> None:
    @sqlite_host.webhooks.on(name="hangs", timeout=0.2)
    def hangs(event: Event) -> None:
        if event.attempt == 1:
            gate.hang()

    with pool_of(sqlite_host, gate=gate) as pool:
        for number in range(4):
            gate.go_on.clear()
            record(sqlite_host.store, f"evt_{number}")
            wait_until(lambda: pool_abandoned(pool) == 1)
            gate.go_on.set()
            wait_until(lambda: pool_abandoned(pool) == 0)
            wait_until(all_done(sqlite_host.store, number + 1))
        assert not pool.is_exhausted


# Leases


def abandoned(store: Store, claim: Claim, subscriber: str) -> JobState | None:
    """Abandon the first call of a subscriber, as another process does."""
    now, failure = store.db_now(), Failure("Timeout", "no answer")
    job = failed(Job(subscriber), failure, now, now, wait=0.0)
    return abandon(store, claim, job, [], 60)


def test_completion_of_a_run_whose_call_was_abandoned_elsewhere_is_rejected(
    host: Host, gate: Gate
) -> None:
    """The process was suspended, and another one has abandoned the same call."""
    from flask_procore_webhooks.running.run import process

    @host.webhooks.on(name="writer", timeout=3600)
    def writer(event: Event) -> None:
        if event.attempt == 1 and not gate.begun.is_set():
            gate.begun.set()
            with host.store.connection() as connection:
                c = host.store.columns
                connection.execute(sa.update(c.id.table).values(due_at=c.received_at))
            other = claims.claim(host.store, row_id, 3600)
            assert other and other.unsettled == 1
            assert abandoned(host.store, other, "writer") is JobState.PENDING
        host.note("written")

    (row_id,) = record(host.store, "evt_1")
    process(host.endpoint, row_id)
    assert host.notes() == []
    assert states(host.store) == {"writer": "pending"}
    row = host.row("evt_1")
    assert (row["status"], row["error"]) == ("running", "no answer")

    with host.store.connection() as connection:
        c = host.store.columns
        connection.execute(sa.update(c.id.table).values(due_at=c.received_at))
    process(host.endpoint, row_id)
    assert host.notes() == ["written"]
    assert host.row("evt_1")["status"] == "done"


@pytest.mark.serial
def test_event_of_a_call_that_has_locked_the_file_is_not_claimed_again(
    sqlite_host: Host, gate: Gate
) -> None:
    """The lock keeps its own lease from being renewed, so that the lease ends."""
    host, calls = sqlite_host, list[int]()

    @host.webhooks.on(name="locks", timeout=3600)
    def locks(event: Event) -> None:
        calls.append(event.attempt)
        host.note("written")
        gate.hang()

    @host.webhooks.on(name="next", timeout=3600)
    def next_(event: Event) -> None:
        second.hang()

    record(host.store, "evt_1")
    second, ran = Gate(), list[int]()
    first = threading.Thread(target=Worker([host.endpoint], poll=1).run_due)
    first.start()
    assert gate.begun.wait(PATIENCE)
    wait_until(lambda: host.row("evt_1")["due_at"] < host.store.db_now())
    other = Worker([host.endpoint], poll=1)
    waiting = threading.Thread(target=lambda: ran.append(other.run_due()))
    waiting.start()
    # So that it waits for the file.
    waiting.join(0.3)
    gate.go_on.set()
    assert second.begun.wait(PATIENCE)
    waiting.join(PATIENCE)
    second.go_on.set()
    first.join(PATIENCE)
    assert (ran, calls) == ([0], [1])
    assert host.row("evt_1")["status"] == "done"
    assert attempts(host.store) == {"evt_1": 1}


def test_abandoned_call_of_a_lost_claim_changes_nothing(sqlite_host: Host) -> None:
    store = sqlite_host.store
    record(store, "evt_1")
    (lost,) = batches.claim_due(store, 1, -1)
    (held,) = batches.claim_due(store, 1, 60)
    assert abandoned(store, lost, "writer") is None
    assert sqlite_host.jobs("evt_1") == {}
    assert abandoned(store, held, "writer") is JobState.PENDING
    job = sqlite_host.job("evt_1")
    assert (job["version"], job["attempts"]) == (1, 1)


class SlowLog(logging.Handler):
    """Lets the hung call return while its abandonment is logged."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gate = gate

    def emit(self, record: logging.LogRecord) -> None:
        if "is abandoned for" in record.getMessage():
            self.gate.go_on.set()
            for thread in threading.enumerate():
                if isinstance(thread, WorkerThread) and thread.worker.ran:
                    thread.join(2)


def test_call_that_returns_while_it_is_abandoned_keeps_the_lease_of_the_rest(
    sqlite_host: Host, gate: Gate
) -> None:
    calls: list[str] = []

    @sqlite_host.webhooks.on(name="hangs", timeout=0.2)
    def hangs(event: Event) -> None:
        calls.append(f"hangs {event.attempt}")
        if event.attempt == 1:
            gate.hang()

    @sqlite_host.webhooks.on(name="next")
    def next_(event: Event) -> None:
        calls.append(sqlite_host.row("evt_1")["status"])

    record(sqlite_host.store, "evt_1")
    handler = SlowLog(gate)
    logger.addHandler(handler)
    try:
        with pool_of(sqlite_host, gate=gate):
            wait_until(all_done(sqlite_host.store, 1))
    finally:
        logger.removeHandler(handler)
    assert calls == ["hangs 1", "running", "hangs 2"]
    assert attempts(sqlite_host.store) == {"evt_1": 2}


@pytest.mark.parametrize("renews", [True, False])
def test_run_whose_lease_has_passed_on_calls_no_further_subscriber(
    sqlite_host: Host, renews: bool
) -> None:
    """The process was suspended while another one has run the event."""
    from flask_procore_webhooks.running.run import process

    host, calls, store = sqlite_host, list[str](), sqlite_host.store

    def suspend() -> None:
        with store.connection() as connection:
            c = store.columns
            connection.execute(sa.update(c.id.table).values(due_at=c.received_at))
        other = claims.claim(store, row_id, 60)
        assert other and claims.settle(store, other, claims.Settlement(Status.DONE))
        held = store.database.parts[LeaseRenewer].held()
        if renews:
            held[0].renew()
        else:
            held[0].ends[row_id] = store.db_now()

    @host.webhooks.on(name="first")
    def first(event: Event) -> None:
        calls.append("first")
        suspend()

    host.webhooks.on(name="next")(lambda event: calls.append("next"))
    (row_id,) = record(store, "evt_1")
    assert process(host.endpoint, row_id) is RunOutcome.NOT_CLAIMED
    assert calls == ["first"]
    assert statuses(store) == {"evt_1": "done"}


def test_calls_that_hang_in_the_rest_of_runs_exhaust_a_pool(
    make_app: MakeApp, tmp_path: Path, gate: Gate
) -> None:
    """The first calls return, so that no thread of the pool hangs."""
    once = {**SETTINGS, **TIMES, "PROCORE_WEBHOOK_MAX_ATTEMPTS": 1}
    url = f"sqlite:///{tmp_path / 'host.db'}"
    with run_host(make_app(**once), "flask_sqlalchemy", url) as host:

        @host.webhooks.on(name="returns", timeout=0.2)
        def returns(event: Event) -> None:
            time.sleep(0.4 if event.id.startswith("hang") else 0)

        @host.webhooks.on(name="hangs", timeout=0.2)
        def hangs(event: Event) -> None:
            if event.id.startswith("hang"):
                gate.hang()

        record(host.store, *(f"hang_{number}" for number in range(4)))
        with pool_of(host, gate=gate) as pool:
            wait_until(lambda: pool.is_exhausted)
            gate.go_on.set()
            wait_until(lambda: not pool.is_exhausted)
            record(host.store, "evt_1")
            wait_until(lambda: are_done(host.store, "evt_1"))


def test_late_session_leaves_a_database_in_memory(make_app: MakeApp) -> None:
    from flask_procore_webhooks.running.calls import current
    from flask_procore_webhooks.running.run import process

    with run_host(make_app(**SETTINGS), "flask_sqlalchemy", "sqlite://") as host:

        @host.webhooks.on(name="late")
        def late(event: Event) -> None:
            call = current.get()
            assert call and call.abandon(lambda: None)
            host.session.rollback()
            host.note("late")
            host.session.flush()

        (row_id,) = record(host.store, "evt_1")
        assert process(host.endpoint, row_id) is RunOutcome.NOT_CLAIMED
        assert (host.notes(), statuses(host.store)) == ([], {"evt_1": "running"})


def test_end_of_a_pool_waits_for_the_rest_of_a_run(
    sqlite_host: Host, gate: Gate
) -> None:
    rest = Gate()

    @sqlite_host.webhooks.on(name="hangs", timeout=0.2)
    def hangs(event: Event) -> None:
        gate.hang()

    @sqlite_host.webhooks.on(name="next", timeout=3600)
    def next_(event: Event) -> None:
        rest.hang()
        sqlite_host.note("next")

    record(sqlite_host.store, "evt_1")
    with pool_of(sqlite_host, gate=gate) as pool:
        assert rest.begun.wait(PATIENCE)
        threading.Timer(0.3, rest.go_on.set).start()
        pool.end(PATIENCE)
        assert sqlite_host.notes() == ["next"]
        assert statuses(sqlite_host.store) == {"evt_1": "pending"}
        assert not pool.is_running or gate.begun.is_set()


def test_interrupted_wait_of_a_suspect_leaves_no_turn(
    sqlite_host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flask_procore_webhooks.running import gate as gates
    from flask_procore_webhooks.running.run import process

    store = sqlite_host.store
    (row_id,) = record(store, "evt_1")
    assert claims.claim(store, row_id, -1)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(gates.Gate, "_isolate", stop)
        process(sqlite_host.endpoint, row_id)
    found = sqlite_host.endpoint.state.runtime.parts[gates.Gate]
    assert (found.turns, found.suspect) == (set(), None)
    assert sqlite_host.row("evt_1")["status"] == "pending"
    assert attempts(store) == {"evt_1": 0}


def test_thread_that_is_started_while_the_pool_stops_ends_too(
    sqlite_host: Host,
) -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(30):
            pool = Pool([sqlite_host.endpoint], 20, poll=60.0)
            waking = [threading.Thread(target=pool.wake) for _ in range(8)]
            for thread in waking:
                thread.start()
            pool.end(5)
            for thread in waking:
                thread.join(PATIENCE)
            assert not any(thread.is_alive() for thread in pool.threads)
    finally:
        sys.setswitchinterval(before)
