"""The loop of a worker, in threads of this process."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from support.hosts import Host
from support.hosts import run_host
from support.inboxes import all_done
from support.inboxes import attempts
from support.inboxes import counted
from support.inboxes import jobs
from support.inboxes import numbered
from support.inboxes import record
from support.inboxes import statuses
from support.outages import locked
from support.outages import relay_to
from support.values import Clock
from support.waiting import PATIENCE
from support.waiting import wait_until
from support.workers import look_again
from support.workers import SETTINGS
from support.workers import working

from flask_procore_webhooks import Event
from flask_procore_webhooks import event_dead
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import PrudraWebhooks
from flask_procore_webhooks import RetryLater
from flask_procore_webhooks.dispatching.pool import Pool
from flask_procore_webhooks.dispatching.worker import Worker
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.errors import InboxUnavailable
from flask_procore_webhooks.inbox import batches
from flask_procore_webhooks.inbox import claims
from flask_procore_webhooks.inbox import due
from flask_procore_webhooks.inbox.claims import Settlement
from flask_procore_webhooks.inbox.record import record as record_event
from flask_procore_webhooks.inbox.status import Status
from flask_procore_webhooks.operations import queries
from flask_procore_webhooks.operations.changes import replay
from flask_procore_webhooks.operations.pauses import pause
from flask_procore_webhooks.operations.pauses import resume
from flask_procore_webhooks.storage.store import Store

MakeApp = Callable[..., Flask]


# The loop


def test_endpoint_without_its_database_does_not_delay_another(
    make_app: MakeApp, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app(
        PROCORE_WEBHOOK_DATABASE_URI=f"sqlite:///{tmp_path / 'procore.db'}",
        PRUDRA_WEBHOOK_DATABASE_URI=f"sqlite:///{tmp_path / 'prudra.db'}",
        PRUDRA_WEBHOOK_SECRET="a secret of the other one",
    )
    procore, prudra, ran = ProcoreWebhooks(), PrudraWebhooks(), []
    for blueprint in (procore, prudra):
        app.register_blueprint(blueprint)
        blueprint.on(name="any")(lambda event: ran.append(event.id))
    first, second = endpoints(app).values()
    for each in (first, second):
        record_event(each.store, Event(f"evt of {each.name}", "a.b", body=b"{}"))
    (tmp_path / "procore.db").rename(tmp_path / "away.db")
    (tmp_path / "procore.db").mkdir()
    first.store.database.engine.dispose()

    with working(first, second):
        wait_until(lambda: len(ran) == 1)
        wait_until(lambda: "unable to open database file" in caplog.text)
        (tmp_path / "procore.db").rmdir()
        (tmp_path / "away.db").rename(tmp_path / "procore.db")
        wait_until(lambda: len(ran) == 2)
    assert [due.status_of(each.store, 1) for each in (first, second)] == [
        Status.DONE
    ] * 2
    for each in (first, second):
        each.store.database.engine.dispose()


def test_due_events_are_run_and_new_events_found_by_polling(host: Host) -> None:
    @host.webhooks.on(name="writer")
    def writer(event: Event) -> None:
        host.note(event.id)

    record(host.store, *numbered(5))
    with working(host.endpoint) as (worker,):
        wait_until(all_done(host.store, 5))
        record(host.store, "evt_new")
        wait_until(all_done(host.store, 6))
        wait_until(lambda: worker.ran == 6)

    assert sorted(host.notes()) == sorted([*numbered(5), "evt_new"])
    assert set(attempts(host.store).values()) == {1}


def test_wake_ends_the_wait(sqlite_host: Host) -> None:
    sqlite_host.accept()
    with working(sqlite_host.endpoint, poll=3600) as (worker,):
        for number in range(20):
            record(sqlite_host.store, f"evt_{number}")
            worker.wake()
            wait_until(all_done(sqlite_host.store, number + 1))


def test_retry_is_run_when_due_before_the_next_poll(host: Host) -> None:
    calls: list[int] = []

    @host.webhooks.on(name="later")
    def later(event: Event) -> None:
        calls.append(event.attempt)
        if len(calls) == 1:
            raise RetryLater(0.5)
        if len(calls) == 2:
            raise ValueError("not yet")

    record(host.store, "evt_1")
    with working(host.endpoint, poll=3600):
        wait_until(all_done(host.store, 1))
    assert calls == [1, 1, 2]
    assert attempts(host.store) == {"evt_1": 2}


def test_claim_that_is_lost_to_a_stall_is_claimed_again(sqlite_host: Host) -> None:
    host, clock, calls = sqlite_host, Clock(), list[int]()
    host.store.now = clock
    host.webhooks.on(name="noted")(lambda event: calls.append(event.attempt))
    record(host.store, "evt_1")

    @sa.event.listens_for(host.store.database.engine, "after_cursor_execute")
    def stall(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("UPDATE procore_webhook_event") and not stalled:
            stalled.append(statement)
            clock.forward(host.endpoint.settings.lease + 1)

    stalled: list[str] = []
    assert Worker([host.endpoint], poll=1).run_all() == 1
    assert (len(stalled), calls) == (1, [1])
    assert statuses(host.store) == {"evt_1": "done"}


def test_stop_at_the_end_of_a_sleep_is_not_missed(sqlite_host: Host) -> None:
    """The worker clears its wake-up flag before the next poll."""
    sleeps: list[float] = []

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        assert len(sleeps) == 1
        worker.stop()

    worker = Worker([sqlite_host.endpoint], poll=3600, sleep=sleep)
    worker.run()
    assert sleeps == [3600]


@pytest.mark.usefixtures("whole_batches")
def test_stopped_worker_releases_queued_events(host: Host) -> None:
    begun, go_on = threading.Event(), threading.Event()
    slow = False

    @host.webhooks.on(name="writer")
    def writer(event: Event) -> None:
        if slow:
            begun.set()
            assert go_on.wait(PATIENCE)
        host.note(event.id)

    # Enough fast events for large batches.
    record(host.store, *numbered(64))
    worker = Worker([host.endpoint], poll=3600)
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    wait_until(all_done(host.store, 64))

    slow = True
    pause(host.endpoint.store, "an operator")
    record(host.store, *(f"new_{number:03}" for number in range(20)))
    resume(host.endpoint.store, "an operator")
    worker.wake()
    assert begun.wait(PATIENCE)
    assert counted(host.store)["running"] > 1
    worker.stop()
    go_on.set()
    thread.join(PATIENCE)

    assert not thread.is_alive()
    found = counted(host.store)
    assert found["running"] == 0
    assert found["done"] == 65
    assert found["pending"] == 19
    assert Counter(attempts(host.store).values()) == {1: 65, 0: 19}


# Cost of waiting


class Statements:
    """Counts the statements of the inbox's engine."""

    def __init__(self, store: Store) -> None:
        self.count = 0
        sa.event.listen(store.database.engine, "before_cursor_execute", self._note)

    def _note(self, *_: Any) -> None:
        self.count += 1

    def during(self, seconds: float) -> int:
        start = self.count
        time.sleep(seconds)
        return self.count - start


@pytest.mark.parametrize("case", ["nothing", "waiting", "running", "paused", "skewed"])
def test_idle_worker_sends_one_query_per_poll(host: Host, case: str) -> None:
    store = host.endpoint.store
    record(host.store, "evt_1")
    (claim,) = batches.claim_due(store, 1, 3600)
    if case == "nothing":
        claims.settle(store, claim, Settlement(Status.DONE))
    elif case == "waiting":
        later = store.db_now() + timedelta(hours=1)
        claims.settle(store, claim, Settlement(Status.PENDING, due_at=later))
    elif case == "paused":
        batches.release(store, [claim])
        pause(store, "an operator")
    elif case == "skewed":
        # A host whose clock is an hour ahead has set the due time.
        real = store.now
        store.now = lambda: real() + timedelta(hours=1)
        batches.release(store, [claim])
        store.now = real
    statements = Statements(store)

    with working(host.endpoint, poll=0.5):
        # The first poll also notes in the inbox that this process runs events.
        wait_until(lambda: statements.count >= 3)
        before, start = statements.count, time.monotonic()
        wait_until(lambda: statements.count >= before + 4)

    # One statement per poll; a slow machine takes longer.
    assert time.monotonic() - start > 1.4


def test_locked_event_causes_no_busy_loop(
    host: Host,
) -> None:
    store, c = host.endpoint.store, host.endpoint.store.columns
    if not store.traits().skips_locked:
        pytest.skip("no row can be locked")
    record(host.store, "evt_1")
    statements = Statements(store)
    with store.connection(begin=True) as other:
        other.execute(sa.select(c.id).with_for_update())
        with working(host.endpoint, poll=0.5):
            count = statements.during(2.0)
    # Ten polls a second.
    assert 4 <= count <= 200


# Pauses


def test_pause_is_seen_by_running_workers_for_one_endpoint(
    host: Host,
) -> None:
    host.app.config["PRUDRA_WEBHOOK_SECRET"] = "another secret of the test suite"
    host.app.config["PRUDRA_WEBHOOK_DISPATCH"] = "worker"
    other = PrudraWebhooks(metadata=host.note_table.metadata, session=host.session)
    host.app.register_blueprint(other)
    mounted = endpoints(host.app)
    mine, others = host_inboxes = [each.store for each in mounted.values()]
    assert [store.endpoint for store in host_inboxes] == [*mounted]
    for blueprint in (host.webhooks, other):
        blueprint.on(name="accepts")(lambda event: None)

    with working(*mounted.values(), workers=2) as workers:
        pause(mine, "an operator")
        look_again(*workers)
        for number in range(10):
            for store in host_inboxes:
                body = b'{"id": "evt_%d"}' % number
                record_event(store, Event(f"evt_{number}", "RFIs.update", body=body))
        wait_until(lambda: {*statuses(others).values()} == {"done"})
        assert {*statuses(mine).values()} == {"pending"}
        assert {*attempts(mine).values()} == {0}

        resume(mine, "an operator")
        wait_until(lambda: {*statuses(mine).values()} == {"done"})
        pause(others, "an operator")
        resume(others, "an operator")
        record_event(others, Event("evt_last", "RFIs.update", body=b"{}"))
        wait_until(lambda: {*statuses(others).values()} == {"done"})


# Batches


@pytest.mark.soak
def test_slow_events_are_shared_and_fast_events_batched(host: Host) -> None:
    held: list[int] = []
    by: Counter[int] = Counter()
    seconds = 0.0

    @host.webhooks.on(name="writer")
    def writer(event: Event) -> None:
        held.append(counted(host.store)["running"])
        by[threading.get_ident()] += 1
        time.sleep(seconds)

    record(host.store, *numbered(150))
    with working(host.endpoint):
        wait_until(all_done(host.store, 150))
    assert held[0] == 1
    assert 1 < max(held) <= 32

    held.clear()
    by.clear()
    seconds = 0.7
    record(host.store, *(f"slow_{number}" for number in range(8)))
    with working(host.endpoint, workers=2):
        wait_until(all_done(host.store, 158))
    assert max(held) <= 4
    assert set(by.values()) <= {3, 4, 5}


def test_events_behind_a_long_one_are_run_by_an_idle_thread(host: Host) -> None:
    """The first thread has claimed them in a batch sized for fast events."""
    begun, go_on = threading.Event(), threading.Event()

    @host.webhooks.on(name="writer")
    def writer(event: Event) -> None:
        if event.id == "slow":
            begun.set()
            assert go_on.wait(PATIENCE)

    record(host.store, *numbered(20))
    pool = Pool([host.endpoint], 2, poll=3600)
    pool.wake()
    wait_until(all_done(host.store, 20))
    pause(host.endpoint.store, "an operator")
    record(host.store, "slow", "evt_a", "evt_b")
    resume(host.endpoint.store, "an operator")
    pool.wake()
    assert begun.wait(PATIENCE)
    wait_until(lambda: counted(host.store)["done"] == 22)
    go_on.set()
    wait_until(all_done(host.store, 23))
    pool.end(PATIENCE)


@pytest.mark.slow
def test_slow_events_of_a_batch_are_released_to_idle_workers(host: Host) -> None:
    """The slow events are claimed in a batch sized for fast events."""
    by: Counter[int] = Counter()
    seconds = 0.0

    @host.webhooks.on(name="writer")
    def writer(event: Event) -> None:
        by[threading.get_ident()] += 1
        time.sleep(seconds)

    record(host.store, *numbered(100))
    with working(host.endpoint) as (worker,):
        wait_until(all_done(host.store, 100))
        pause(host.endpoint.store, "an operator")
        look_again(worker)
        by.clear()
        seconds = 0.6
        record(host.store, *(f"slow_{number}" for number in range(8)))
        resume(host.endpoint.store, "an operator")
        wait_until(lambda: by)
        with working(host.endpoint):
            wait_until(all_done(host.store, 108))

    assert len(by) == 2
    assert min(by.values()) >= 2


# Errors


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()], ids=repr
)
def test_subscriber_exceptions_do_not_end_a_worker(
    host: Host, error: BaseException
) -> None:
    @host.webhooks.on(name="raises")
    def raises(event: Event) -> None:
        host.note(f"{event.id} {event.attempt}")
        if event.id == "evt_001":
            raise error

    @host.webhooks.on(name="another")
    def another(event: Event) -> None:
        others.append(event.id)

    dead: list[str] = []
    others: list[str] = []
    event_dead.connect(lambda app, event, error: dead.append(event.id))
    record(host.store, *numbered(3))
    with working(host.endpoint):
        wait_until(lambda: counted(host.store) == {"done": 2, "dead": 1})
        wait_until(lambda: dead)
        record(host.store, "evt_003")
        wait_until(lambda: counted(host.store) == {"done": 3, "dead": 1})

    assert dead == ["evt_001"]
    assert sorted(host.notes()) == ["evt_000 1", "evt_002 1", "evt_003 1"]
    assert attempts(host.store)["evt_001"] == 3
    found = queries.find(host.endpoint.store, "evt_001")
    assert found is not None
    assert type(error).__name__ in found["error"]
    assert jobs(host.store, "evt_001")["another"]["attempts"] == 1
    # The exception does not skip later subscribers.
    assert "evt_001" in others


@pytest.mark.parametrize("body", [None, b"", b"\xff\0garbage", b"[1]", b"{}" * 9])
def test_corrupt_row_is_quarantined_and_other_events_run(
    host: Host, body: bytes | None
) -> None:
    host.accept()
    store, c = host.endpoint.store, host.endpoint.store.columns
    record(host.store, *numbered(3))
    with store.connection() as connection:
        broken = sa.update(c.id.table).where(c.event_id == "evt_001")
        connection.execute(broken.values(body=body))

    with working(host.endpoint):
        wait_until(lambda: counted(host.store) == {"done": 2, "quarantined": 1})
    found = queries.find(store, "evt_001")
    assert found is not None and found["status"] == "quarantined"
    assert (found["body"], jobs(store, "evt_001")) == (body, {})
    assert found["parked_at"] == found["finished_at"]


def test_quarantined_event_that_is_replayed_is_quarantined_again(host: Host) -> None:
    host.accept()
    store = host.endpoint.store
    event = Event("evt_1", "", body=b"not JSON")
    recorded = record_event(store, event, Status.QUARANTINED, "is not JSON")
    record(host.store, "evt_2")
    assert replay(store, [recorded.row_id], "an operator") == 1

    with working(host.endpoint):
        wait_until(lambda: counted(host.store) == {"done": 1, "quarantined": 1})
    assert host.row("evt_1")["status"] == "quarantined"
    assert host.row("evt_1")["body"] == b"not JSON"


# Outages of the database


@pytest.mark.soak
@pytest.mark.parametrize("server", ["postgresql", "mariadb"])
def test_worker_survives_an_outage_with_effects_once(
    request: pytest.FixtureRequest,
    make_app: MakeApp,
    caplog: pytest.LogCaptureFixture,
    server: str,
) -> None:
    url = request.getfixturevalue(f"{server}_url")
    with (
        relay_to(url) as relay,
        run_host(make_app(**SETTINGS), "flask_sqlalchemy", relay.url) as host,
    ):

        @host.webhooks.on(name="writer")
        def writer(event: Event) -> None:
            host.note(f"{event.id}")
            time.sleep(0.01)

        record(host.store, *numbered(120))
        with working(host.endpoint, workers=2):
            wait_until(lambda: len(host.notes()) > 20)
            relay.cut()
            wait_until(lambda: caplog.text.count("Polling again in") > 3)
            relay.mend()
            wait_until(all_done(host.store, 120))

        assert sorted(host.notes()) == numbered(120)
        assert "the inbox cannot be used" in caplog.text
        assert max(attempts(host.store).values()) <= 2


@pytest.mark.slow
def test_worker_waits_for_a_locked_file(
    make_app: MakeApp, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "host.db"
    app = make_app(**SETTINGS)
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"connect_args": {"timeout": 0.5}}
    with run_host(app, "flask_sqlalchemy", f"sqlite:///{path}") as host:

        @host.webhooks.on(name="writer")
        def writer(event: Event) -> None:
            host.note(f"{event.id}")
            time.sleep(0.01)

        record(host.store, *numbered(60))
        with working(host.endpoint, workers=2):
            wait_until(lambda: len(host.notes()) > 10)
            with locked(path):
                wait_until(lambda: "Polling again in" in caplog.text)
            wait_until(all_done(host.store, 60))

        assert sorted(host.notes()) == numbered(60)
        assert "database is locked" in caplog.text


@pytest.mark.server
def test_endpoints_of_an_unreachable_database_do_not_delay_another(
    make_app: MakeApp, tmp_path: Path
) -> None:
    """Endpoints of one database share a poll, which fails for both."""
    away = "postgresql+psycopg://nobody@127.0.0.1:1/nothing"
    app = make_app(
        PROCORE_WEBHOOK_DATABASE_URI=away,
        OTHER_SECRET="a secret of the other",
        OTHER_DATABASE_URI=away,
        PRUDRA_WEBHOOK_DATABASE_URI=f"sqlite:///{tmp_path / 'prudra.db'}",
        PRUDRA_WEBHOOK_SECRET="a secret of Prudra",
    )
    ran: list[str] = []
    prudra = PrudraWebhooks()
    prudra.on(name="any")(lambda event: ran.append(event.id))
    other = ProcoreWebhooks("other", url_prefix="/other", config_prefix="OTHER_")
    for blueprint in (ProcoreWebhooks(), other, prudra):
        app.register_blueprint(blueprint)
    *_, last = endpoints(app).values()
    record_event(last.store, Event("evt_1", "a.b", body=b"{}"))
    with pytest.raises(InboxUnavailable, match="the inbox cannot be used"):
        Worker(endpoints(app).values(), poll=1).run_due()
    assert ran == ["evt_1"]
    last.store.database.engine.dispose()


def sharing_app(make_app: MakeApp, tmp_path: Path) -> Flask:
    """An app whose two endpoints will share a database."""
    url = f"sqlite:///{tmp_path / 'inbox.db'}"
    return make_app(
        PROCORE_WEBHOOK_DATABASE_URI=url,
        PRUDRA_WEBHOOK_DATABASE_URI=url,
        PRUDRA_WEBHOOK_SECRET="a secret of Prudra",
    )


def test_error_at_one_endpoint_does_not_delay_another_of_its_database(
    make_app: MakeApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = sharing_app(make_app, tmp_path)
    ran: list[str] = []
    procore, prudra = ProcoreWebhooks(), PrudraWebhooks()
    for blueprint in (procore, prudra):
        app.register_blueprint(blueprint)
        blueprint.on(name="any")(lambda event: ran.append(event.id))
    first, second = endpoints(app).values()
    for each in (first, second):
        record_event(each.store, Event(f"evt of {each.name}", "a.b", body=b"{}"))
    # A trigger of the host refuses changes of this endpoint's rows.
    with first.store.connection() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER no BEFORE UPDATE ON procore_webhook_event"
            " WHEN NEW.endpoint = 'procore_webhooks'"
            " BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    worker = Worker([first, second], poll=1)
    with pytest.raises(sa.exc.IntegrityError):
        worker.run_due()
    assert ran == ["evt of prudra_webhooks"]
    first.store.database.engine.dispose()


def test_pause_is_noticed_between_the_batches_of_two_endpoints(
    make_app: MakeApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "flask_procore_webhooks.dispatching.crew.Crew.batch_seconds", 1e-9
    )
    app = sharing_app(make_app, tmp_path)
    ran: list[str] = []
    procore, prudra = ProcoreWebhooks(), PrudraWebhooks()
    for blueprint in (procore, prudra):
        app.register_blueprint(blueprint)
    first, second = endpoints(app).values()

    @procore.on(name="pauses")
    def pauses(event: Event) -> None:
        ran.append(event.endpoint)
        pause(second.store, "the subscriber of the first")

    prudra.on(name="any")(lambda event: ran.append(event.endpoint))
    for each in (first, second):
        record_event(each.store, Event("evt_1", "a.b", body=b"{}"))
    assert Worker([first, second], poll=1).run_due() == 1
    assert ran == ["procore_webhooks"]
    first.store.database.engine.dispose()
