"""Workers: loops in threads here, and real processes of the command ``worker``."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from support.hosts import Host
from support.hosts import run_host
from support.outages import locked
from support.outages import relay_to
from support.values import SECRET
from support.waiting import LARGE_BATCHES
from support.waiting import PATIENCE
from support.waiting import wait_until

from flask_procore_webhooks import browse
from flask_procore_webhooks import Event
from flask_procore_webhooks import event_dead
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import PrudraWebhooks
from flask_procore_webhooks import RetryLater
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.inbox import Inbox
from flask_procore_webhooks.samples import payload
from flask_procore_webhooks.samples import to_bytes
from flask_procore_webhooks.states import Status
from flask_procore_webhooks.upkeep import pause
from flask_procore_webhooks.upkeep import replay
from flask_procore_webhooks.upkeep import resume
from flask_procore_webhooks.worker import Worker

MakeApp = Callable[..., Flask]
#: As much as a busy machine may need; tests end as soon as what they wait for is there.
SETTINGS = {
    "PROCORE_WEBHOOK_DISPATCH": "worker",
    "PROCORE_WEBHOOK_MAX_ATTEMPTS": 3,
    "PROCORE_WEBHOOK_RETRY_BASE": 0.1,
    "PROCORE_WEBHOOK_RETRY_CAP": 0.1,
}


@pytest.fixture
def host(make_app: MakeApp, database_url: str) -> Iterator[Host]:
    with run_host(make_app(**SETTINGS), "flask_sqlalchemy", database_url) as host:
        yield host


@pytest.fixture
def sqlite_host(make_app: MakeApp, tmp_path: Path) -> Iterator[Host]:
    url = f"sqlite:///{tmp_path / 'host.db'}"
    with run_host(make_app(**SETTINGS), "flask_sqlalchemy", url) as host:
        yield host


def record(host: Host, *ids: str, **fields: Any) -> None:
    for id in ids:
        body = to_bytes(payload("RFIs.update", id=id, **fields))
        host.endpoint.inbox.record(Event(id, "RFIs.update", body=body))


def numbered(count: int) -> list[str]:
    return [f"evt_{number:03}" for number in range(count)]


def statuses(host: Host) -> Counter[str]:
    return Counter(row["status"] for row in _rows(host.endpoint.inbox))


def attempts(host: Host) -> dict[str, int]:
    return {row["event_id"]: row["attempts"] for row in _rows(host.endpoint.inbox)}


def _rows(inbox: Inbox) -> list[Any]:
    return list(browse.newest(inbox, limit=1000))


def all_done(host: Host, count: int) -> Callable[[], bool]:
    return lambda: statuses(host) == {"done": count}


@contextmanager
def working(
    *mounted: Endpoint, poll: float = 0.1, workers: int = 1
) -> Iterator[list[Worker]]:
    """Worker threads, ended at the end."""
    crew = [Worker(mounted, poll=poll) for _ in range(workers)]
    threads = [threading.Thread(target=worker.run, daemon=True) for worker in crew]
    for thread in threads:
        thread.start()
    try:
        yield crew
    finally:
        for worker in crew:
            worker.stop()
        for thread in threads:
            thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)


# The loop


def test_an_endpoint_whose_database_is_away_holds_no_other_up(
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
        each.inbox.record(Event(f"evt of {each.name}", "a.b", body=b"{}"))
    (tmp_path / "procore.db").rename(tmp_path / "away.db")
    (tmp_path / "procore.db").mkdir()
    first.inbox.database.engine.dispose()

    with working(first, second):
        wait_until(lambda: len(ran) == 1)
        wait_until(lambda: "unable to open database file" in caplog.text)
        (tmp_path / "procore.db").rmdir()
        (tmp_path / "away.db").rename(tmp_path / "procore.db")
        wait_until(lambda: len(ran) == 2)
    assert [each.inbox.status(1) for each in (first, second)] == [Status.DONE] * 2
    for each in (first, second):
        each.inbox.database.engine.dispose()


def test_what_is_due_is_run_and_new_events_at_the_next_look(host: Host) -> None:
    @host.webhooks.on(name="writer")
    def writer(event: Event) -> None:
        host.note(event.id)

    record(host, *numbered(5))
    with working(host.endpoint) as (worker,):
        wait_until(all_done(host, 5))
        record(host, "evt_new")
        wait_until(all_done(host, 6))
        wait_until(lambda: worker.ran == 6)

    assert sorted(host.notes()) == sorted([*numbered(5), "evt_new"])
    assert set(attempts(host).values()) == {1}


def test_a_call_ends_the_wait(sqlite_host: Host) -> None:
    with working(sqlite_host.endpoint, poll=3600) as (worker,):
        for number in range(20):
            record(sqlite_host, f"evt_{number}")
            worker.wake()
            wait_until(all_done(sqlite_host, number + 1))


def test_an_event_is_run_when_its_wait_is_over_not_at_the_poll(host: Host) -> None:
    @host.webhooks.on(name="later")
    def later(event: Event) -> None:
        if event.attempt == 1:
            raise RetryLater(0.5)

    record(host, "evt_1")
    with working(host.endpoint, poll=3600):
        wait_until(all_done(host, 1))
    assert attempts(host) == {"evt_1": 2}


class StopsFirst(threading.Event):
    """An alarm that is cleared just when somebody has told its worker to stop."""

    worker: Worker

    def clear(self) -> None:
        self.worker.stop()
        super().clear()


def test_no_call_to_stop_is_missed(sqlite_host: Host) -> None:
    worker = Worker([sqlite_host.endpoint], poll=3600)
    worker._alarm = alarm = StopsFirst()
    alarm.worker = worker
    thread = threading.Thread(target=worker.run, daemon=True)
    worker.wake()
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


def test_stopped_workers_give_back_what_they_have_not_begun(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flask_procore_webhooks.worker.BATCH_SECONDS", PATIENCE)
    begun, go_on = threading.Event(), threading.Event()
    slow = False

    @host.webhooks.on(name="writer")
    def writer(event: Event) -> None:
        if slow:
            begun.set()
            assert go_on.wait(PATIENCE)
        host.note(event.id)

    # As many as make batches large.
    record(host, *numbered(64))
    worker = Worker([host.endpoint], poll=3600)
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    wait_until(all_done(host, 64))

    slow = True
    pause(host.endpoint.inbox, "somebody")
    record(host, *(f"new_{number:03}" for number in range(20)))
    resume(host.endpoint.inbox, "somebody")
    worker.wake()
    assert begun.wait(PATIENCE)
    assert statuses(host)["running"] > 1
    worker.stop()
    go_on.set()
    thread.join(PATIENCE)

    assert not thread.is_alive()
    found = statuses(host)
    assert found["running"] == 0
    assert found["done"] == 65
    assert found["pending"] == 19
    assert sum(attempts(host).values()) == 65


# What it costs to wait


class Statements:
    """Counts those that the inbox's engine is given."""

    def __init__(self, inbox: Inbox) -> None:
        self.count = 0
        sa.event.listen(inbox.database.engine, "before_cursor_execute", self._note)

    def _note(self, *_: Any) -> None:
        self.count += 1

    def during(self, seconds: float) -> int:
        start = self.count
        time.sleep(seconds)
        return self.count - start


@pytest.mark.parametrize("case", ["nothing", "waiting", "running", "paused", "skewed"])
def test_a_worker_without_work_asks_now_and_then(host: Host, case: str) -> None:
    inbox = host.endpoint.inbox
    record(host, "evt_1")
    (claim,) = inbox.claim_due(1, 3600)
    if case == "nothing":
        inbox.settle(claim, Status.DONE)
    elif case == "waiting":
        inbox.settle(claim, Status.PENDING, wait=3600)
    elif case == "paused":
        inbox.give_back([claim])
        pause(inbox, "somebody")
    elif case == "skewed":
        # A host whose clock is an hour ahead has put it off.
        real = inbox.now
        inbox.now = lambda: real() + timedelta(hours=1)
        inbox.give_back([claim])
        inbox.now = real
    statements = Statements(inbox)

    with working(host.endpoint, poll=0.5):
        wait_until(lambda: statements.count)
        before, start = statements.count, time.monotonic()
        wait_until(lambda: statements.count >= before + 4)

    # One statement each; a slow machine takes longer.
    assert time.monotonic() - start > 1.4


def test_an_event_that_somebody_has_locked_makes_no_busy_loop(
    host: Host,
) -> None:
    inbox, c = host.endpoint.inbox, host.endpoint.inbox.columns
    if not inbox.skips_locked:
        pytest.skip("no row can be locked")
    record(host, "evt_1")
    statements = Statements(inbox)
    with inbox.transaction() as other:
        other.execute(sa.select(c.id).with_for_update())
        with working(host.endpoint, poll=0.5):
            count = statements.during(2.0)
    # Ten looks in a second.
    assert 4 <= count <= 200


# Pauses


def test_a_pause_is_seen_by_running_workers_and_is_of_one_endpoint(
    host: Host,
) -> None:
    host.app.config["PRUDRA_WEBHOOK_SECRET"] = "another secret of the test suite"
    host.app.config["PRUDRA_WEBHOOK_DISPATCH"] = "worker"
    other = PrudraWebhooks(metadata=host.note_table.metadata, session=host.session)
    host.app.register_blueprint(other)
    mounted = endpoints(host.app)
    mine, others = host_inboxes = [each.inbox for each in mounted.values()]
    assert [inbox.endpoint for inbox in host_inboxes] == [*mounted]

    with working(*mounted.values(), workers=2):
        pause(mine, "somebody")
        time.sleep(0.5)  # a look that had begun may not have seen it
        for number in range(10):
            for inbox in host_inboxes:
                body = b'{"id": "evt_%d"}' % number
                inbox.record(Event(f"evt_{number}", "RFIs.update", body=body))
        wait_until(lambda: {row["status"] for row in _rows(others)} == {"done"})
        assert {row["status"] for row in _rows(mine)} == {"pending"}
        assert {row["attempts"] for row in _rows(mine)} == {0}

        resume(mine, "somebody")
        wait_until(lambda: {row["status"] for row in _rows(mine)} == {"done"})
        pause(others, "somebody")
        resume(others, "somebody")
        others.record(Event("evt_last", "RFIs.update", body=b"{}"))
        wait_until(lambda: {row["status"] for row in _rows(others)} == {"done"})


# Batches


@pytest.mark.soak
def test_slow_events_are_shared_and_fast_ones_taken_by_the_batch(host: Host) -> None:
    held: list[int] = []
    by: Counter[int] = Counter()
    seconds = 0.0

    @host.webhooks.on(name="writer")
    def writer(event: Event) -> None:
        held.append(statuses(host)["running"])
        by[threading.get_ident()] += 1
        time.sleep(seconds)

    record(host, *numbered(150))
    with working(host.endpoint):
        wait_until(all_done(host, 150))
    assert held[0] == 1
    assert 1 < max(held) <= 32

    held.clear()
    by.clear()
    seconds = 0.7
    record(host, *(f"slow_{number}" for number in range(8)))
    with working(host.endpoint, workers=2):
        wait_until(all_done(host, 158))
    assert max(held) <= 4
    assert set(by.values()) <= {3, 4, 5}


@pytest.mark.slow
def test_events_that_turn_out_slow_are_left_to_idle_workers(host: Host) -> None:
    """Though they were taken in a batch as large as fast ones allow."""
    by: Counter[int] = Counter()
    seconds = 0.0

    @host.webhooks.on(name="writer")
    def writer(event: Event) -> None:
        by[threading.get_ident()] += 1
        time.sleep(seconds)

    record(host, *numbered(100))
    with working(host.endpoint):
        wait_until(all_done(host, 100))
        pause(host.endpoint.inbox, "somebody")
        time.sleep(0.5)  # a look that had begun may not have seen it
        by.clear()
        seconds = 0.6
        record(host, *(f"slow_{number}" for number in range(8)))
        resume(host.endpoint.inbox, "somebody")
        wait_until(lambda: by)
        with working(host.endpoint):
            wait_until(all_done(host, 108))

    assert len(by) == 2
    assert min(by.values()) >= 2


# Errors


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()], ids=repr
)
def test_no_exception_of_a_subscriber_ends_a_worker(
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
    record(host, *numbered(3))
    with working(host.endpoint):
        wait_until(lambda: statuses(host) == {"done": 2, "dead": 1})
        wait_until(lambda: dead)
        record(host, "evt_003")
        wait_until(lambda: statuses(host) == {"done": 3, "dead": 1})

    assert dead == ["evt_001"]
    assert sorted(host.notes()) == ["evt_000 1", "evt_002 1", "evt_003 1"]
    assert attempts(host)["evt_001"] == 3
    found = browse.find(host.endpoint.inbox, "evt_001")
    assert found is not None
    assert type(error).__name__ in found["error"]
    # Nor the run of a subscriber after it.
    assert "evt_001" in others


@pytest.mark.parametrize("body", [None, b"", b"\xff\0garbage", b"[1]", b"{}" * 9])
def test_a_corrupt_row_is_dead_and_stops_nobody(host: Host, body: bytes | None) -> None:
    inbox, c = host.endpoint.inbox, host.endpoint.inbox.columns
    record(host, *numbered(3))
    with inbox.connection() as connection:
        broken = sa.update(c.id.table).where(c.event_id == "evt_001")
        connection.execute(broken.values(body=body))

    with working(host.endpoint):
        wait_until(lambda: statuses(host) == {"done": 2, "dead": 1})
    found = browse.find(inbox, "evt_001")
    assert found is not None and found["status"] == "dead"
    assert (found["body"], found["attempts"]) == (body, 1)


def test_a_quarantined_event_that_is_replayed_is_dead_again(host: Host) -> None:
    inbox = host.endpoint.inbox
    event = Event("evt_1", "", body=b"not JSON")
    recorded = inbox.record(event, Status.DEAD, "is not JSON")
    record(host, "evt_2")
    assert replay(inbox, [recorded.row_id], "somebody") == 1

    with working(host.endpoint):
        wait_until(lambda: statuses(host) == {"done": 1, "dead": 1})
    assert host.row("evt_1")["status"] == "dead"
    assert host.row("evt_1")["body"] == b"not JSON"


# The database goes away


@pytest.mark.soak
@pytest.mark.parametrize("server", ["postgresql", "mariadb"])
def test_an_outage_is_survived_and_effects_are_made_once(
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

        record(host, *numbered(120))
        with working(host.endpoint, workers=2):
            wait_until(lambda: len(host.notes()) > 20)
            relay.cut()
            wait_until(lambda: caplog.text.count("Looking again in") > 3)
            relay.mend()
            wait_until(all_done(host, 120))

        assert sorted(host.notes()) == numbered(120)
        assert "the inbox of 'procore_webhooks' cannot be used" in caplog.text
        assert max(attempts(host).values()) <= 2


@pytest.mark.slow
def test_a_locked_file_is_waited_for(
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

        record(host, *numbered(60))
        with working(host.endpoint, workers=2):
            wait_until(lambda: len(host.notes()) > 10)
            with locked(path):
                wait_until(lambda: "Looking again in" in caplog.text)
            wait_until(all_done(host, 60))

        assert sorted(host.notes()) == numbered(60)
        assert "database is locked" in caplog.text


# Real processes

APP = """
import os, signal, sys, time
from flask import Flask
from support.hosts import run_host
from flask_procore_webhooks import RetryLater

app = Flask("child", instance_path={folder!r})
app.config.update({config!r})
scope = run_host(app, "flask_sqlalchemy", {url!r}, create=False)
host = scope.__enter__()

def say(event, text="runs"):
    with open({calls!r}, "a") as calls:
        calls.write(f"{{event.id}} {{event.attempt}} {{os.getpid()}} {{text}}\\n")

def is_there(name):
    return os.path.exists(os.path.join({folder!r}, name))

{subscribers}
"""

WRITER = """
@host.webhooks.on(name="writer")
def writer(event):
    say(event)
    host.note(event.id)
"""
#: Runs until the test says so.
WAITS = """
@host.webhooks.on(name="writer")
def writer(event):
    say(event)
    while not is_there("go on"):
        time.sleep(0.02)
    host.note(event.id)
"""


class Shop:
    """Starts ``flask procore-webhooks worker`` in processes of their own."""

    def __init__(self, host: Host, url: str, folder: Path) -> None:
        self.host = host
        self.url = url
        self.folder = folder
        self.calls_file = folder / "calls"
        self.processes: list[subprocess.Popen[bytes]] = []

    def open(self, subscribers: str, **config: Any) -> None:
        """Write the app that workers started from now on run."""
        module = APP.format(
            folder=str(self.folder),
            config={
                "PROCORE_WEBHOOK_SECRET": SECRET,
                **SETTINGS,
                **config,
            },
            url=self.url,
            calls=str(self.calls_file),
            subscribers=subscribers,
        )
        (self.folder / "workapp.py").write_text(module)

    def worker(self, *options: str) -> Process:
        command = ["-m", "flask", "--app", "workapp", "procore-webhooks", "worker"]
        path = [str(self.folder), str(Path(__file__).parents[1]), *sys.path]
        log = self.folder / f"worker{len(self.processes)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *command, *options],
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.processes.append(process)
        return Process(process, log)

    def go_on(self) -> None:
        (self.folder / "go on").touch()

    def calls(self) -> list[list[str]]:
        """Event id, attempt, process id and a word of each run so far."""
        if not self.calls_file.exists():
            return []
        return [line.split() for line in self.calls_file.read_text().splitlines()]

    def is_running(self, id: str) -> bool:
        return any(call[0] == id for call in self.calls())


@dataclass
class Process:
    process: subprocess.Popen[bytes]
    log: Path

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def exit_code(self, seconds: float = PATIENCE) -> int:
        return self.process.wait(seconds)

    def output(self) -> str:
        return self.log.read_text(errors="replace")


@pytest.fixture
def shop(host: Host, database_url: str, tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(host, database_url, tmp_path)
    yield shop
    for process in shop.processes:
        process.kill()
        process.wait(PATIENCE)
    for log in sorted(tmp_path.glob("worker*.log")):
        print(f"--- {log.name}\n{log.read_text(errors='replace')}")


on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
on_servers = pytest.mark.parametrize(
    "database_url", ["postgresql", "mariadb"], indirect=True
)


@pytest.mark.slow
def test_once_runs_all_that_is_due_in_several_threads(shop: Shop) -> None:
    shop.open(
        """
@host.webhooks.on(name="writer")
def writer(event):
    say(event)
    time.sleep(0.05)
    host.note(event.id)
"""
    )
    record(shop.host, *numbered(40))
    worker = shop.worker("--once", "--concurrency", "4")

    assert worker.exit_code() == 0, worker.output()
    assert "4 at a time" in worker.output()
    assert "Ended after 40 events." in worker.output()
    assert statuses(shop.host) == {"done": 40}
    assert sorted(shop.host.notes()) == numbered(40)
    assert {call[1] for call in shop.calls()} == {"1"}

    assert shop.worker("--once").exit_code() == 0
    assert len(shop.calls()) == 40


@pytest.mark.slow
def test_once_fails_when_the_database_is_away(
    make_app: MakeApp, postgresql_url: str, tmp_path: Path
) -> None:
    with relay_to(_with_password(postgresql_url)) as relay:
        url = relay.url
        with run_host(make_app(**SETTINGS), "flask_sqlalchemy", postgresql_url) as host:
            shop = Shop(host, url, tmp_path)
            shop.open(WRITER)
            record(host, "evt_1")
            relay.cut()
            worker = shop.worker("--once", "--concurrency", "3")
            assert worker.exit_code() == 1
            assert "Error: the inbox of 'procore_webhooks' cannot" in worker.output()
            assert PASSWORD not in worker.output()
            assert "Traceback" not in worker.output()

            relay.mend()
            assert shop.worker("--once").exit_code() == 0
            assert host.notes() == ["evt_1"]


PASSWORD = "a-password-of-the-test-suite"


def _with_password(url: str) -> str:
    made = sa.make_url(url).set(password=PASSWORD)
    return made.render_as_string(hide_password=False)


@pytest.mark.slow
@on_sqlite
def test_an_inbox_in_memory_is_refused(shop: Shop) -> None:
    shop.url = "sqlite://"
    shop.open(WRITER)
    worker = shop.worker("--once")
    assert worker.exit_code() == 1
    assert "in the memory of the server's process" in worker.output()


@pytest.mark.slow
@on_sqlite
def test_a_worker_may_be_of_one_endpoint(shop: Shop) -> None:
    shop.open(
        """
from flask_procore_webhooks import PrudraWebhooks
app.config["PRUDRA_WEBHOOK_SECRET"] = "another secret of the test suite"
other = PrudraWebhooks(metadata=host.note_table.metadata, session=host.session)
app.register_blueprint(other)
other.on(name="other")(lambda event: say(event, "other"))
host.webhooks.on(name="mine")(say)
"""
    )
    record(shop.host, "evt_1")
    mine = shop.host.endpoint.inbox
    others = Inbox("prudra_webhooks", mine.database)
    others.record(Event("evt_2", "payment.received", body=b"{}"))

    assert shop.worker("--once", "--endpoint", "prudra_webhooks").exit_code() == 0
    assert [call[3] for call in shop.calls()] == ["other"]
    assert shop.worker("--once", "--endpoint", "procore_webhooks").exit_code() == 0
    assert [call[3] for call in shop.calls()] == ["other", "runs"]
    nobodys = shop.worker("--once", "--endpoint", "nobodys")
    assert nobodys.exit_code() == 1
    assert "There is no endpoint 'nobodys'" in nobodys.output()


@pytest.mark.soak
@on_sqlite
def test_the_poll_is_when_new_events_are_seen(shop: Shop) -> None:
    shop.open(WRITER)
    worker = shop.worker("--poll", "0.05")
    for number in range(3):
        record(shop.host, f"evt_{number}")
        wait_until(all_done(shop.host, number + 1))
    worker.send(signal.SIGTERM)
    assert worker.exit_code() == 0, worker.output()
    assert "Ended after 3 events." in worker.output()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("database_url", "number"),
    [
        ("sqlite", signal.SIGTERM),
        ("sqlite", signal.SIGINT),
        ("postgresql", signal.SIGTERM),
        ("mariadb", signal.SIGINT),
    ],
    indirect=["database_url"],
)
def test_a_signal_ends_a_worker_after_its_event(shop: Shop, number: int) -> None:
    shop.open(
        LARGE_BATCHES
        + """
@host.webhooks.on(name="writer")
def writer(event):
    while event.id == "slow" and not is_there("go on"):
        say(event)
        time.sleep(0.02)
    host.note(event.id)
"""
    )
    # Enough to make its batches large before it meets the slow one.
    record(shop.host, *numbered(63), "slow", *(f"late_{n:02}" for n in range(40)))
    worker = shop.worker()
    wait_until(lambda: shop.is_running("slow"))
    assert statuses(shop.host)["running"] > 1
    worker.send(number)
    time.sleep(1)
    assert worker.process.poll() is None
    shop.go_on()

    assert worker.exit_code() == 0, worker.output()
    found = statuses(shop.host)
    assert (found["running"], found["dead"]) == (0, 0)
    assert shop.host.row("slow")["status"] == "done"
    assert found["pending"] >= 9
    assert "slow" in shop.host.notes()
    assert f"Ended after {found['done']} events." in worker.output()
    assert sum(attempts(shop.host).values()) == found["done"]


ASYNC_WAITS = """
import asyncio

@host.webhooks.on(name="writer")
async def writer(event):
    say(event)
    await asyncio.sleep(3600)
"""


@pytest.mark.slow
@pytest.mark.parametrize("subscribers", [WAITS, ASYNC_WAITS], ids=["plain", "async"])
@on_sqlite
def test_after_the_grace_a_run_is_given_back(shop: Shop, subscribers: str) -> None:
    shop.open(subscribers)
    record(shop.host, "evt_1", "evt_2")
    worker = shop.worker("--grace", "0.5", "--concurrency", "2")
    wait_until(lambda: shop.is_running("evt_1") and shop.is_running("evt_2"))
    worker.send(signal.SIGTERM)

    assert worker.exit_code(30) == 0, worker.output()
    assert statuses(shop.host) == {"pending": 2}
    assert shop.host.notes() == []
    assert {row["lease"] for row in _leases(shop.host)} == {None}


def _leases(host: Host) -> list[Any]:
    c = host.endpoint.inbox.columns
    return [r._mapping for r in host.endpoint.inbox.rows(sa.select(c.lease))]


@pytest.mark.slow
@on_sqlite
@pytest.mark.parametrize("subscribers", [WAITS, ASYNC_WAITS], ids=["plain", "async"])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_worker_at_once(
    shop: Shop, second: int, subscribers: str
) -> None:
    shop.open(subscribers)
    record(shop.host, "evt_1")
    worker = shop.worker("--grace", "3600")
    wait_until(lambda: shop.is_running("evt_1"))
    worker.send(signal.SIGTERM)
    time.sleep(1.5)
    assert worker.process.poll() is None
    worker.send(second)
    assert worker.exit_code(20) == -second


@pytest.mark.parametrize("option", ["--poll", "--grace"])
@pytest.mark.parametrize("seconds", ["inf", "1e10", "-1"])
def test_no_worker_waits_longer_than_it_can(
    app: Flask, option: str, seconds: str
) -> None:
    command = ["procore-webhooks", "worker", "--once", option, seconds]
    result = app.test_cli_runner().invoke(args=command)
    assert result.exit_code == 2
    assert f"Invalid value for '{option}'" in result.output


# A shop with several workers


@pytest.mark.soak
def test_processes_share_the_work_and_effects_are_made_once(shop: Shop) -> None:
    shop.open(WRITER.replace("host.note", "time.sleep(0.02); host.note"))
    workers = [shop.worker("--concurrency", "2", "--poll", "0.1") for _ in range(3)]
    for start in range(0, 120, 20):
        record(shop.host, *numbered(120)[start : start + 20])
    wait_until(all_done(shop.host, 120))
    for worker in workers:
        worker.send(signal.SIGTERM)

    assert [worker.exit_code() for worker in workers] == [0, 0, 0]
    assert sorted(shop.host.notes()) == numbered(120)
    assert len(shop.calls()) == sum(attempts(shop.host).values())
    if shop.host.engine.dialect.name != "sqlite":
        assert {call[1] for call in shop.calls()} == {"1"}


@pytest.mark.slow
def test_a_run_that_outlasts_its_lease_is_left_to_its_worker(shop: Shop) -> None:
    shop.open(WAITS, PROCORE_WEBHOOK_LEASE=6)
    record(shop.host, "evt_1")
    for _ in range(2):
        shop.worker("--poll", "0.1")
    wait_until(lambda: shop.is_running("evt_1"))
    first_end = shop.host.row("evt_1")["due_at"]
    wait_until(lambda: shop.host.endpoint.inbox.naive_now() > first_end)
    time.sleep(1)
    shop.go_on()
    wait_until(all_done(shop.host, 1))

    assert len(shop.calls()) == 1
    assert shop.host.notes() == ["evt_1"]
    assert attempts(shop.host) == {"evt_1": 1}


#: Stops its process in the first run, before or, if it can be, after it has written.
STALLS = """
@host.webhooks.on(name="writer")
def writer(event):
    say(event)
    if WRITES_FIRST:
        host.note(f"run {event.attempt}")
        host.session.flush()
    if event.attempt == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
        # Another thread may take the signal, and this one run on for a moment.
        time.sleep(0.5)
    if not WRITES_FIRST:
        host.note(f"run {event.attempt}")
"""


@pytest.mark.slow
@pytest.mark.parametrize("early", [False, True], ids=["writes late", "writes early"])
def test_a_worker_that_stalls_has_no_effect_when_it_comes_back(
    shop: Shop, early: bool
) -> None:
    if early and shop.host.engine.dialect.name == "sqlite":
        pytest.skip("its lock keeps everybody else from running anything")
    shop.open(STALLS.replace("WRITES_FIRST", str(early)), PROCORE_WEBHOOK_LEASE=1)
    record(shop.host, "evt_1")
    stalled = shop.worker("--poll", "0.1")
    wait_until(lambda: shop.is_running("evt_1"))
    shop.worker("--poll", "0.1")
    wait_until(all_done(shop.host, 1))
    assert shop.host.notes() == ["run 2"]
    before = shop.host.row("evt_1")

    stalled.send(signal.SIGCONT)
    wait_until(lambda: "had finished" in stalled.output())
    stalled.send(signal.SIGTERM)
    assert stalled.exit_code() == 0, stalled.output()
    assert shop.host.notes() == ["run 2"]
    assert shop.host.row("evt_1") == before
    assert [*shop.host.endpoint.inbox.receipts(before["id"])] == ["writer"]
    assert [call[1] for call in shop.calls()] == ["1", "2"]


@pytest.mark.slow
def test_a_worker_that_stalls_leaves_the_rest_of_its_batch_to_others(
    shop: Shop,
) -> None:
    shop.open(
        LARGE_BATCHES
        + """
@host.webhooks.on(name="writer")
def writer(event):
    say(event)
    # The first of the second batch, which is of two.
    if event.id == "evt_001" and event.attempt == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(0.5)
""",
        # Of which what is not begun is given back after a third.
        PROCORE_WEBHOOK_LEASE=6,
    )
    record(shop.host, *numbered(3))
    stalled = shop.worker("--poll", "0.1", "--concurrency", "1")
    wait_until(lambda: shop.is_running("evt_001"))
    assert attempts(shop.host)["evt_002"] == 1
    shop.worker("--poll", "0.1")
    wait_until(all_done(shop.host, 3))

    stalled.send(signal.SIGCONT)
    time.sleep(2)
    stalled.send(signal.SIGTERM)
    assert stalled.exit_code() == 0, stalled.output()
    ran = [call[0] for call in shop.calls()]
    assert sorted(ran) == ["evt_000", "evt_001", "evt_001", "evt_002"]


@pytest.mark.slow
def test_an_event_that_kills_its_process_takes_no_other_with_it(shop: Shop) -> None:
    shop.open(
        """
@host.webhooks.on(name="writer")
def writer(event):
    say(event)
    host.note(event.id)
    if event.id == "evt_020":
        os._exit(9)
""",
        PROCORE_WEBHOOK_LEASE=1,
        PROCORE_WEBHOOK_MAX_ATTEMPTS=2,
    )
    record(shop.host, *numbered(40))
    codes = []
    while statuses(shop.host)["dead"] == 0 and len(codes) < 5:
        codes.append(_run_until_it_ends(shop))
    wait_until(lambda: statuses(shop.host) == {"done": 39, "dead": 1})

    assert codes == [9, 9, 9, 0]
    found = attempts(shop.host)
    assert found.pop("evt_020") == 4
    # Those of its batch were claimed with it once, and never again.
    assert {*found.values()} == {1, 2}
    error = shop.host.row("evt_020")["error"]
    assert error == "every attempt ended without an outcome"
    assert sorted(shop.host.notes()) == sorted(found)


def _run_until_it_ends(shop: Shop) -> int:
    worker = shop.worker("--poll", "0.1")

    def is_over() -> bool:
        return worker.process.poll() is not None or statuses(shop.host)["dead"] > 0

    wait_until(is_over)
    if statuses(shop.host)["dead"]:
        wait_until(lambda: statuses(shop.host)["done"] == 39)
        worker.send(signal.SIGTERM)
    return worker.exit_code()


@pytest.mark.slow
@on_servers
def test_a_worker_survives_that_its_database_goes_away(
    shop: Shop, database_url: str
) -> None:
    url = database_url
    if url.startswith("postgresql"):
        url = _with_password(url)
    with relay_to(url) as relay:
        shop.url = relay.url
        shop.open(WRITER.replace("host.note", "time.sleep(0.02); host.note"))
        record(shop.host, *numbered(100))
        worker = shop.worker("--concurrency", "2")
        wait_until(lambda: len(shop.host.notes()) > 20)
        relay.cut()
        wait_until(lambda: worker.output().count("Looking again in") > 3)
        assert statuses(shop.host)["done"] < 100
        relay.mend()
        wait_until(all_done(shop.host, 100))
        worker.send(signal.SIGTERM)
        assert worker.exit_code() == 0, worker.output()

    assert sorted(shop.host.notes()) == numbered(100)
    assert "the inbox of 'procore_webhooks' cannot be used" in worker.output()
    for secret in (PASSWORD, SECRET):
        assert secret not in worker.output()
