"""Real processes of the command ``worker``: signals, leases, crashes, outages."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from collections.abc import Iterator
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
from support.inboxes import numbered
from support.inboxes import record
from support.inboxes import states
from support.outages import relay_to
from support.processes import environment
from support.processes import Process
from support.processes import start
from support.values import SECRET
from support.waiting import LARGE_BATCHES
from support.waiting import wait_until
from support.waiting import WHOLE_BATCHES
from support.workers import SETTINGS

from flask_procore_webhooks import Event
from flask_procore_webhooks.inbox.record import record as record_event
from flask_procore_webhooks.storage.store import Store

MakeApp = Callable[..., Flask]


@pytest.fixture
def host(make_app: MakeApp, database_url: str) -> Iterator[Host]:
    with run_host(make_app(**SETTINGS), "flask_sqlalchemy", database_url) as host:
        yield host


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

def is_first(name):
    if is_there(name):
        return False
    open(os.path.join({folder!r}, name), "w").close()
    return True

{subscribers}
"""
WRITER = """
@host.webhooks.on(name="writer")
def writer(event):
    say(event)
    host.note(event.id)
"""


#: A subscriber that waits for :meth:`Shop.go_on`.
WAITS = """
@host.webhooks.on(name="writer")
def writer(event):
    say(event)
    while not is_there("go on"):
        time.sleep(0.02)
    host.note(event.id)
"""


class Shop:
    """Starts ``flask procore-webhooks worker`` in separate processes."""

    def __init__(self, host: Host, url: str, folder: Path) -> None:
        self.host = host
        self.url = url
        self.folder = folder
        self.calls_file = folder / "calls"
        self.processes: list[Process] = []

    def open(self, subscribers: str, **config: Any) -> None:
        """Write the app of the workers started from now on."""
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
        worker = start(
            [sys.executable, *command, *options],
            folder=self.folder,
            env=environment(path=[self.folder]),
            log=self.folder / f"worker{len(self.processes)}.log",
        )
        self.processes.append(worker)
        return worker

    def go_on(self) -> None:
        (self.folder / "go on").touch()

    def calls(self) -> list[list[str]]:
        """Event id, attempt, process id and a word for each run so far."""
        if not self.calls_file.exists():
            return []
        return [line.split() for line in self.calls_file.read_text().splitlines()]

    def is_running(self, id: str) -> bool:
        return any(call[0] == id for call in self.calls())


@pytest.fixture
def shop(host: Host, database_url: str, tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(host, database_url, tmp_path)
    yield shop
    for process in shop.processes:
        process.kill()
    for log in sorted(tmp_path.glob("worker*.log")):
        print(f"--- {log.name}\n{log.read_text(errors='replace')}")


on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
on_servers = pytest.mark.parametrize(
    "database_url", ["postgresql", "mariadb"], indirect=True
)


@pytest.mark.slow
def test_once_runs_all_due_events_in_several_threads(shop: Shop) -> None:
    shop.open(
        """
@host.webhooks.on(name="writer")
def writer(event):
    say(event)
    time.sleep(0.05)
    host.note(event.id)
"""
    )
    record(shop.host.store, *numbered(40))
    worker = shop.worker("--once", "--concurrency", "4")

    assert worker.exit_code() == 0, worker.output()
    assert "4 at a time" in worker.output()
    assert "Ended after 40 runs." in worker.output()
    assert counted(shop.host.store) == {"done": 40}
    assert sorted(shop.host.notes()) == numbered(40)
    assert {call[1] for call in shop.calls()} == {"1"}

    assert shop.worker("--once").exit_code() == 0
    assert len(shop.calls()) == 40


@pytest.mark.slow
def test_once_fails_without_its_database(
    make_app: MakeApp, postgresql_url: str, tmp_path: Path
) -> None:
    with relay_to(_with_password(postgresql_url)) as relay:
        url = relay.url
        with run_host(make_app(**SETTINGS), "flask_sqlalchemy", postgresql_url) as host:
            shop = Shop(host, url, tmp_path)
            shop.open(WRITER)
            record(host.store, "evt_1")
            relay.cut()
            worker = shop.worker("--once", "--concurrency", "3")
            assert worker.exit_code() == 1
            assert "Error: the inbox cannot be used: " in worker.output()
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
def test_inbox_in_memory_is_refused(shop: Shop) -> None:
    shop.url = "sqlite://"
    shop.open(WRITER)
    worker = shop.worker("--once")
    assert worker.exit_code() == 1
    assert "in the memory of the server's process" in worker.output()


@pytest.mark.slow
@on_sqlite
def test_worker_may_be_of_one_endpoint(shop: Shop) -> None:
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
    record(shop.host.store, "evt_1")
    mine = shop.host.endpoint.store
    others = Store("prudra_webhooks", mine.database)
    record_event(others, Event("evt_2", "payment.received", body=b"{}"))

    assert shop.worker("--once", "--endpoint", "prudra_webhooks").exit_code() == 0
    assert [call[3] for call in shop.calls()] == ["other"]
    assert shop.worker("--once", "--endpoint", "procore_webhooks").exit_code() == 0
    assert [call[3] for call in shop.calls()] == ["other", "runs"]
    nobodys = shop.worker("--once", "--endpoint", "nobodys")
    assert nobodys.exit_code() == 1
    assert "There is no endpoint 'nobodys'" in nobodys.output()


@pytest.mark.soak
@on_sqlite
def test_new_events_are_found_by_polling(shop: Shop) -> None:
    shop.open(WRITER)
    worker = shop.worker("--poll", "0.05")
    for number in range(3):
        record(shop.host.store, f"evt_{number}")
        wait_until(all_done(shop.host.store, number + 1))
    worker.send(signal.SIGTERM)
    assert worker.exit_code() == 0, worker.output()
    assert "Ended after 3 runs." in worker.output()


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
def test_signal_ends_a_worker_after_its_event(shop: Shop, number: int) -> None:
    shop.open(
        WHOLE_BATCHES
        + """
@host.webhooks.on(name="writer")
def writer(event):
    while event.id == "slow" and not is_there("go on"):
        say(event)
        time.sleep(0.02)
    host.note(event.id)
"""
    )
    # Enough fast events for large batches before the slow event.
    record(shop.host.store, *numbered(63), "slow", *(f"late_{n:02}" for n in range(40)))
    worker = shop.worker()
    wait_until(lambda: shop.is_running("slow"))
    assert counted(shop.host.store)["running"] > 1
    worker.send(number)
    wait_until(lambda: not worker.catches(number))
    assert worker.is_running
    shop.go_on()

    assert worker.exit_code() == 0, worker.output()
    found = counted(shop.host.store)
    assert (found["running"], found["dead"]) == (0, 0)
    assert shop.host.row("slow")["status"] == "done"
    assert found["pending"] >= 9
    assert "slow" in shop.host.notes()
    assert f"Ended after {found['done']} runs." in worker.output()
    assert sum(attempts(shop.host.store).values()) == found["done"]


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
def test_run_is_released_after_the_grace(shop: Shop, subscribers: str) -> None:
    shop.open(subscribers)
    record(shop.host.store, "evt_1", "evt_2")
    worker = shop.worker("--grace", "0.5", "--concurrency", "2")
    wait_until(lambda: shop.is_running("evt_1") and shop.is_running("evt_2"))
    worker.send(signal.SIGTERM)

    assert worker.exit_code(30) == 0, worker.output()
    assert counted(shop.host.store) == {"pending": 2}
    assert shop.host.notes() == []
    assert {row["lease"] for row in _leases(shop.host)} == {None}


def _leases(host: Host) -> list[Any]:
    c = host.endpoint.store.columns
    return [r._mapping for r in host.endpoint.store.rows(sa.select(c.lease))]


@pytest.mark.slow
@on_sqlite
@pytest.mark.parametrize("subscribers", [WAITS, ASYNC_WAITS], ids=["plain", "async"])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_ends_a_worker_at_once(
    shop: Shop, second: int, subscribers: str
) -> None:
    shop.open(subscribers)
    record(shop.host.store, "evt_1")
    worker = shop.worker("--grace", "3600")
    wait_until(lambda: shop.is_running("evt_1"))
    worker.send(signal.SIGTERM)
    wait_until(lambda: not worker.catches(second))
    assert worker.is_running
    worker.send(second)
    assert worker.exit_code(20) == -second


@pytest.mark.soak
def test_processes_share_the_work_and_effects_are_made_once(shop: Shop) -> None:
    shop.open(WRITER.replace("host.note", "time.sleep(0.02); host.note"))
    workers = [shop.worker("--concurrency", "2", "--poll", "0.1") for _ in range(3)]
    for first in range(0, 120, 20):
        record(shop.host.store, *numbered(120)[first : first + 20])
    wait_until(all_done(shop.host.store, 120))
    for worker in workers:
        worker.send(signal.SIGTERM)

    assert [worker.exit_code() for worker in workers] == [0, 0, 0]
    assert sorted(shop.host.notes()) == numbered(120)
    assert len(shop.calls()) == sum(attempts(shop.host.store).values())
    if shop.host.engine.dialect.name != "sqlite":
        assert {call[1] for call in shop.calls()} == {"1"}


@pytest.mark.seldom("mariadb")
@pytest.mark.serial
@pytest.mark.slow
def test_run_longer_than_its_lease_stays_with_its_worker(shop: Shop) -> None:
    shop.open(WAITS, PROCORE_WEBHOOK_LEASE=6)
    record(shop.host.store, "evt_1")
    for _ in range(2):
        shop.worker("--poll", "0.1")
    wait_until(lambda: shop.is_running("evt_1"))
    first_end = shop.host.row("evt_1")["due_at"]
    wait_until(lambda: shop.host.endpoint.store.db_now() > first_end)
    time.sleep(1)
    shop.go_on()
    wait_until(all_done(shop.host.store, 1))

    assert len(shop.calls()) == 1
    assert shop.host.notes() == ["evt_1"]
    assert attempts(shop.host.store) == {"evt_1": 1}


#: Stops its process in the first run: before its write, or after it if possible.
STALLS = """
@host.webhooks.on(name="writer")
def writer(event):
    first = is_first("run")
    say(event)
    if WRITES_FIRST:
        host.note("run 1" if first else "run 2")
        host.session.flush()
    if first:
        os.kill(os.getpid(), signal.SIGSTOP)
        # Another thread may take the signal, and this one run on for a moment.
        time.sleep(0.5)
    if not WRITES_FIRST:
        host.note("run 1" if first else "run 2")
"""


@pytest.mark.serial
@pytest.mark.slow
@pytest.mark.parametrize("first", [False, True], ids=["writes late", "writes first"])
def test_stalled_worker_has_no_effect_after_it_continues(
    shop: Shop, first: bool
) -> None:
    if first and shop.host.engine.dialect.name == "sqlite":
        pytest.skip("its lock keeps everybody else from running anything")
    shop.open(STALLS.replace("WRITES_FIRST", str(first)), PROCORE_WEBHOOK_LEASE=1)
    record(shop.host.store, "evt_1")
    stalled = shop.worker("--poll", "0.1")
    wait_until(lambda: shop.is_running("evt_1"))
    shop.worker("--poll", "0.1")
    wait_until(all_done(shop.host.store, 1))
    assert shop.host.notes() == ["run 2"]
    before = shop.host.row("evt_1")

    stalled.send(signal.SIGCONT)
    wait_until(lambda: "had finished" in stalled.output())
    stalled.send(signal.SIGTERM)
    assert stalled.exit_code() == 0, stalled.output()
    assert shop.host.notes() == ["run 2"]
    assert shop.host.row("evt_1") == before
    assert states(shop.host.store) == {"writer": "done"}
    # A claim that ended without an outcome is no attempt.
    assert [call[1] for call in shop.calls()] == ["1", "1"]


@pytest.mark.seldom("mariadb")
@pytest.mark.serial
@pytest.mark.slow
def test_stalled_worker_releases_the_rest_of_its_batch(
    shop: Shop,
) -> None:
    shop.open(
        LARGE_BATCHES
        + """
@host.webhooks.on(name="writer")
def writer(event):
    say(event)
    # The first of the second batch, which is of two.
    if event.id == "evt_001" and is_first("evt_001"):
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(0.5)
""",
        # The lease ends while the worker is stopped.
        PROCORE_WEBHOOK_LEASE=6,
    )
    record(shop.host.store, *numbered(3))
    stalled = shop.worker("--poll", "0.1", "--concurrency", "1")
    wait_until(lambda: shop.is_running("evt_001"))
    assert shop.host.row("evt_002")["claims"] == 1
    shop.worker("--poll", "0.1")
    wait_until(all_done(shop.host.store, 3))

    stalled.send(signal.SIGCONT)
    time.sleep(2)
    stalled.send(signal.SIGTERM)
    assert stalled.exit_code() == 0, stalled.output()
    ran = [call[0] for call in shop.calls()]
    assert sorted(ran) == ["evt_000", "evt_001", "evt_001", "evt_002"]


@pytest.mark.seldom("mariadb")
@pytest.mark.serial
@pytest.mark.slow
def test_event_that_kills_its_process_loses_no_other_event(shop: Shop) -> None:
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
    record(shop.host.store, *numbered(40))
    codes = []
    while counted(shop.host.store)["dead"] == 0 and len(codes) < 5:
        codes.append(_run_until_it_ends(shop))
    wait_until(lambda: counted(shop.host.store) == {"done": 39, "dead": 1})

    assert codes == [9, 9, 9, 0]
    found = attempts(shop.host.store)
    assert found.pop("evt_020") == 2
    # The other events of its batch lose no attempt.
    assert {*found.values()} == {1}
    error = shop.host.row("evt_020")["error"]
    assert error.endswith(": every attempt ended without an outcome")
    assert sorted(shop.host.notes()) == sorted(found)


def _run_until_it_ends(shop: Shop) -> int:
    worker = shop.worker("--poll", "0.1")

    def is_over() -> bool:
        return not worker.is_running or counted(shop.host.store)["dead"] > 0

    wait_until(is_over)
    if counted(shop.host.store)["dead"]:
        wait_until(lambda: counted(shop.host.store)["done"] == 39)
        worker.send(signal.SIGTERM)
    return worker.exit_code()


@pytest.mark.slow
@on_servers
def test_worker_survives_a_database_outage(shop: Shop, database_url: str) -> None:
    url = database_url
    if url.startswith("postgresql"):
        url = _with_password(url)
    with relay_to(url) as relay:
        shop.url = relay.url
        shop.open(WRITER.replace("host.note", "time.sleep(0.02); host.note"))
        record(shop.host.store, *numbered(100))
        worker = shop.worker("--concurrency", "2")
        wait_until(lambda: len(shop.host.notes()) > 20)
        relay.cut()
        wait_until(lambda: worker.output().count("Polling again in") > 3)
        assert counted(shop.host.store)["done"] < 100
        relay.mend()
        wait_until(all_done(shop.host.store, 100))
        worker.send(signal.SIGTERM)
        assert worker.exit_code() == 0, worker.output()

    assert sorted(shop.host.notes()) == numbered(100)
    assert "the inbox cannot be used: " in worker.output()
    for secret in (PASSWORD, SECRET):
        assert secret not in worker.output()
