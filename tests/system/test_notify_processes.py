"""The command ``worker`` waits for notifications of PostgreSQL."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from flask import Flask
from support.listeners import listeners
from support.listeners import mounted
from support.listeners import send
from support.processes import environment
from support.processes import Process
from support.processes import running
from support.services import drop_tables
from support.waiting import wait_until

from flask_procore_webhooks import Event
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.inbox.record import record as record_event
from flask_procore_webhooks.inbox.tables import Status

MakeApp = Callable[..., Flask]


#: Timeout in seconds: far shorter than any poll here, far longer than a call.
SOON = 5.0


@pytest.fixture
def database_url(postgresql_url: str) -> Iterator[str]:
    yield postgresql_url
    drop_tables(postgresql_url)


@pytest.fixture
def site(make_app: MakeApp, database_url: str) -> Iterator[tuple[Endpoint, list[str]]]:
    with mounted(make_app, database_url) as site:
        yield site


APP = """
from flask import Flask
from flask_procore_webhooks import ProcoreWebhooks
app = Flask("waiting")
app.config.update({config!r})
webhooks = ProcoreWebhooks()
app.register_blueprint(webhooks)
@webhooks.on(name="notes")
def notes(event):
    print("ran", event.id, flush=True)
"""


@contextmanager
def process(folder: Path, endpoint: Endpoint, *options: str) -> Iterator[Process]:
    """The command ``worker``, idle."""
    names = ("SECRET", "DATABASE_URI", "DISPATCH")
    keys = [f"PROCORE_WEBHOOK_{name}" for name in names]
    config = {key: endpoint.app.config[key] for key in keys}
    (folder / "waiting.py").write_text(APP.format(config=config))
    command = ["-m", "flask", "--app", "waiting", "procore-webhooks", "worker"]
    env = environment(path=[folder])
    with running(
        [sys.executable, *command, *options], folder=folder, env=env
    ) as worker:
        wait_until(lambda: listeners(endpoint.store), report=worker.output)
        time.sleep(1)
        yield worker


@pytest.mark.serial
@pytest.mark.slow
def test_command_listens_on_one_connection_and_ends_at_once(
    site: tuple[Endpoint, list[str]], tmp_path: Path
) -> None:
    endpoint, _ = site
    options = ("--poll", "600", "--concurrency", "4")
    with process(tmp_path, endpoint, *options) as worker:
        worker.wait_for_output("4 at a time")
        assert len(listeners(endpoint.store)) == 1
        for _ in range(3):
            start, new = time.monotonic(), send(endpoint)
            worker.wait_for_output(f"ran {new}\n")
            assert time.monotonic() - start < SOON
        worker.send(signal.SIGTERM)
        assert worker.exit_code(SOON * 2) == 0
        assert "Ended after 3 runs." in worker.output()
    wait_until(lambda: not listeners(endpoint.store))


@pytest.mark.serial
@pytest.mark.slow
def test_replayed_and_resumed_events_are_run_at_once(
    site: tuple[Endpoint, list[str]], tmp_path: Path
) -> None:
    endpoint, _ = site
    run = endpoint.app.test_cli_runner().invoke
    record_event(endpoint.store, Event("evt_1", "a.b", body=b"{}"), Status.DEAD)
    with process(tmp_path, endpoint, "--poll", "600") as worker:
        run(args=["procore-webhooks", "replay", "evt_1"], catch_exceptions=False)
        worker.wait_for_output("ran evt_1\n")
        run(args=["procore-webhooks", "pause"], catch_exceptions=False)
        new = send(endpoint)
        time.sleep(0.5)
        run(args=["procore-webhooks", "resume"], catch_exceptions=False)
        worker.wait_for_output(f"ran {new}\n")
