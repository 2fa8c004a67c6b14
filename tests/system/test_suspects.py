"""An event that kills its process: it becomes dead, and events beside it do not."""

from __future__ import annotations

import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from support.hosts import Host
from support.hosts import run_host
from support.inboxes import attempts
from support.inboxes import counted
from support.inboxes import numbered
from support.inboxes import record
from support.inboxes import statuses
from support.processes import environment
from support.processes import Process
from support.processes import start
from support.values import SECRET
from support.workers import SETTINGS

MakeApp = Callable[..., Flask]
CONFIG = {
    **SETTINGS,
    "PROCORE_WEBHOOK_SECRET": SECRET,
    "PROCORE_WEBHOOK_LEASE": 1,
    "PROCORE_WEBHOOK_MAX_ATTEMPTS": 3,
}

APP = """
import ctypes, os, threading, time
from flask import Flask
from support.hosts import run_host

app = Flask("child", instance_path={folder!r})
app.config.update({config!r})
scope = run_host(app, "flask_sqlalchemy", {url!r}, create=False)
host = scope.__enter__()

def crash(event):
    if event.id == "evt_killer":
        ctypes.string_at(0)
    return "text"

@host.webhooks.on(name="works", timeout={timeout!r}, **{options})
def works(event):
    crash(event)
    if event.id.startswith("hang"):
        threading.Event().wait()
    time.sleep({seconds!r})
    host.note(event.id)
"""


@pytest.fixture
def host(make_app: MakeApp, database_url: str) -> Iterator[Host]:
    with run_host(make_app(**SETTINGS), "flask_sqlalchemy", database_url) as host:
        yield host


class Fleet:
    """Processes that are started again when they end, as a supervisor does."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        self.processes: list[Process] = []
        self.codes: list[int] = []

    def write_app(
        self, seconds: float, timeout: float = 60, options: str = "{}", **config: object
    ) -> None:
        module = APP.format(
            folder=str(self.folder),
            config={**CONFIG, **config},
            url=self.url,
            seconds=seconds,
            timeout=timeout,
            options=options,
        )
        (self.folder / "workapp.py").write_text(module)

    def start(self, *options: str) -> None:
        command = ["-m", "flask", "--app", "workapp", "procore-webhooks", "worker"]
        process = start(
            [sys.executable, *command, "--poll", "0.1", *options],
            folder=self.folder,
            env=environment(path=[self.folder]),
            log=self.folder / "worker.log",
        )
        self.processes.append(process)

    def keep_up(self, done: Callable[[], bool], *options: str, count: int = 1) -> None:
        """Restart what ends until ``done``, for two minutes at most."""
        for _ in range(count):
            self.start(*options)
        deadline = time.monotonic() + 120
        while not done():
            assert time.monotonic() < deadline, self.output()
            for process in list(self.processes):
                if not process.is_running:
                    self.codes.append(process.exit_code())
                    self.processes.remove(process)
                    self.start(*options)
            time.sleep(0.05)

    def output(self) -> str:
        return (self.folder / "worker.log").read_text(errors="replace")


@pytest.fixture
def fleet(host: Host, database_url: str, tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path, database_url)
    yield fleet
    for process in fleet.processes:
        process.kill()


def are_finished(host: Host, count: int) -> Callable[[], bool]:
    return lambda: counted(host.store) == Counter(done=count, dead=1)


@pytest.mark.seldom("mariadb")
@pytest.mark.serial
@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3], ids=["one process", "three processes"])
def test_only_the_event_that_kills_its_process_becomes_dead(
    host: Host, fleet: Fleet, count: int
) -> None:
    fleet.write_app(seconds=1.5 if count == 1 else 0.3)
    record(host.store, "evt_killer", *numbered(7))
    fleet.keep_up(are_finished(host, 7), "--concurrency", "4", count=count)

    assert statuses(host.store)["evt_killer"] == "dead"
    assert attempts(host.store)["evt_killer"] == 3
    error = host.row("evt_killer")["error"]
    assert error.endswith(": every attempt ended without an outcome")
    assert set(fleet.codes) == {-signal.SIGSEGV}
    # The first crash is not counted, and a crash beside others is not either.
    assert len(fleet.codes) >= 4
    assert sorted(host.notes()) == numbered(7)
    others = [attempts(host.store)[id] for id in numbered(7)]
    assert others == [1] * 7


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", ["{'when': crash}", "{'key': crash, 'one_at_a_time': True}"]
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_function_of_an_option_that_kills_its_process_is_an_attempt(
    host: Host, fleet: Fleet, options: str
) -> None:
    fleet.write_app(seconds=0, options=options)
    record(host.store, "evt_killer")
    fleet.keep_up(are_finished(host, 0))
    assert attempts(host.store)["evt_killer"] == 3


@pytest.mark.serial
@pytest.mark.slow
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_worker_whose_threads_hang_ends_with_an_exit_code(
    host: Host, fleet: Fleet
) -> None:
    fleet.write_app(seconds=0, timeout=0.3, PROCORE_WEBHOOK_RETRY_BASE=3600)
    record(host.store, "hang_1", "hang_2", "hang_3", "evt_1")
    fleet.start("--concurrency", "2", "--grace", "1")
    (worker,) = fleet.processes
    assert worker.exit_code() == 3, fleet.output()
    assert "3 threads hang in subscribers that exceeded" in fleet.output()
    assert statuses(host.store)["evt_1"] == "done"
    assert counted(host.store)["running"] == 0
    assert "no answer within 0.3 s (timeout)" in host.row("hang_1")["error"]
