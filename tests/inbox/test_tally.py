"""The tally: counts in memory, and their addition to the table."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import types
import weakref
from collections.abc import Callable
from datetime import datetime
from datetime import timedelta
from datetime import timezone
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from support.counts import in_memory
from support.counts import in_table
from support.counts import LONG_AGO
from support.outages import relay_to
from support.processes import run_at_once
from support.sites import at_once
from support.values import Clock
from support.waiting import wait_until

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.errors import InboxUnavailable
from flask_procore_webhooks.inbox import tally
from flask_procore_webhooks.storage.store import Store
from flask_procore_webhooks.storage.upserts import update_or_insert

MakeApp = Callable[..., Flask]


def tally_threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "webhook tally"]


@pytest.fixture
def serving(app: Flask, monkeypatch: pytest.MonkeyPatch) -> Flask:
    """An app outside of tests, whose counts are added within a fraction of a second."""
    monkeypatch.setattr(tally, "FLUSH_SECONDS", 0.05)
    app.testing = False
    return app


def store_of(app: Flask) -> Store:
    (endpoint,) = endpoints(app).values()
    return endpoint.store


# Counting and adding


def test_counts_are_added_by_minute_and_outcome(store: Store, clock: Clock) -> None:
    clock.time = datetime(2026, 11, 27, 9, 30, 59, tzinfo=timezone.utc)
    tally.count(store, "recorded")
    tally.count(store, "recorded", 2)
    tally.count(store, "dead")
    clock.forward(1)
    tally.count(store, "recorded")
    assert tally.minutes(store, LONG_AGO) == []
    tally.flush(store)

    first = datetime(2026, 11, 27, 9, 30, tzinfo=timezone.utc)
    second = first + timedelta(minutes=1)
    assert tally.minutes(store, LONG_AGO) == [
        tally.Minute(first, "dead", 1),
        tally.Minute(first, "recorded", 3),
        tally.Minute(second, "recorded", 1),
    ]
    assert tally.minutes(store, clock()) == [tally.Minute(second, "recorded", 1)]
    assert tally.history(store, LONG_AGO) == {"dead": 1, "recorded": 4}
    assert tally.history(store, second + timedelta(seconds=59)) == {"recorded": 1}


def test_a_flush_adds_to_what_is_there(store: Store, clock: Clock) -> None:
    for number in (1, 2, 4):
        tally.count(store, "recorded", number)
        tally.flush(store)
    tally.flush(store)
    assert in_table(store) == {"recorded": 7}
    assert len(tally.minutes(store, LONG_AGO)) == 1


def test_endpoints_of_one_database_are_added_together(
    make_app: MakeApp, database_url: str
) -> None:
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI=database_url)
    app.register_blueprint(ProcoreWebhooks())
    app.register_blueprint(ProcoreWebhooks("second", url_prefix="/second"))
    first, second = (endpoint.store for endpoint in endpoints(app).values())
    tally.count(first, "recorded")
    tally.count(second, "recorded", 5)
    tally.flush(second)
    assert (in_table(first), in_table(second)) == ({"recorded": 1}, {"recorded": 5})


def test_no_count_of_many_threads_is_lost(store: Store) -> None:
    def work(_: int) -> None:
        for number in range(200):
            tally.count(store, "recorded")
            if number % 50 == 0:
                tally.flush(store)

    at_once(work, range(8))
    tally.flush(store)
    assert in_table(store) == {"recorded": 1600}


def test_counting_executes_no_statement(store: Store) -> None:
    store.database.open()
    executed: list[str] = []

    @sa.event.listens_for(store.database.engine, "before_cursor_execute")
    def note(_c: Any, _cursor: Any, statement: str, *_: object) -> None:
        executed.append(statement)

    tally.count(store, "recorded")
    assert executed == []


def test_two_statements_add_on_any_database(store: Store, clock: Clock) -> None:
    minute = clock.time.replace(second=0, microsecond=0, tzinfo=None)
    key = {"endpoint": store.endpoint, "minute": minute, "outcome": "recorded"}
    table = store.database.tables.tally
    for number in (1, 5):
        rows = [{**key, "count": number}, {**key, "outcome": "dead", "count": 1}]
        store.run(partial(update_or_insert, table=table, rows=rows))
    assert in_table(store) == {"dead": 2, "recorded": 6}


ADDS = """
import json, sys
from flask import Flask
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.inbox import tally
from support.values import Clock

url, at, outcomes = json.loads(sys.stdin.readline())
app = Flask("host")
app.config.update(TESTING=True, PROCORE_WEBHOOK_DATABASE_URI=url)
app.register_blueprint(ProcoreWebhooks())
(endpoint,) = endpoints(app).values()
store = endpoint.store
store.now = clock = Clock()
clock.time = clock.time.fromisoformat(at)
store.traits()
print("ready", flush=True)
sys.stdin.readline()
for number in range(50):
    for outcome in outcomes:
        tally.count(store, outcome)
    tally.flush(store)
print("null")
"""


def test_processes_add_to_the_same_minute(
    store: Store, clock: Clock, database_url: str
) -> None:
    """They count in different orders, and their rows are locked in one."""
    store.database.open()
    outcomes = ["recorded", "done", "dead"]
    orders = [outcomes, outcomes[::-1], outcomes]
    at = clock.time.isoformat()
    run_at_once(ADDS, [(database_url, at, each) for each in orders])
    assert in_table(store) == dict.fromkeys(outcomes, 150)
    assert len(tally.minutes(store, LONG_AGO)) == 3


# Failures


def test_counts_are_kept_when_a_flush_fails(store: Store) -> None:
    table, engine = store.database.tables.tally, store.database.engine
    table.drop(engine)
    tally.count(store, "recorded")
    with pytest.raises(InboxUnavailable):
        tally.flush(store)
    tally.count(store, "recorded")
    assert in_memory(store) == {"recorded": 2}
    table.create(engine)
    tally.flush(store)
    assert in_table(store) == {"recorded": 2}


def test_oldest_minutes_are_dropped_when_too_many_are_kept(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An endpoint without a secret counts, and nothing adds its counts."""
    monkeypatch.setattr(tally, "MOST_KEPT", 4)
    for _ in range(4):
        tally.count(store, "unavailable")
        clock.forward(60)
    assert in_memory(store) == {"unavailable": 4}
    tally.count(store, "unavailable", 10)
    assert in_memory(store) == {"unavailable": 11}


@pytest.mark.parametrize("database_url", ["postgresql", "mariadb"], indirect=True)
def test_counts_are_not_added_twice_when_the_answer_to_the_commit_is_lost(
    make_app: MakeApp, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with relay_to(database_url) as relay:
        app = make_app(PROCORE_WEBHOOK_DATABASE_URI=relay.url)
        app.register_blueprint(ProcoreWebhooks())
        store = store_of(app)
        engine = store.database.engine

        def lose_answer(_: Any, cursor: Any, statement: str, *others: object) -> None:
            if statement == "COMMIT":
                cursor.execute("COMMIT")
                sa.event.remove(engine, "before_cursor_execute", lose_answer)
                relay.cut()

        store.traits()
        sa.event.listen(engine, "before_cursor_execute", lose_answer)
        tally.count(store, "recorded")
        tally.flush(store)
        assert "Counts of the last seconds may be lost" in caplog.text
        relay.mend()
        tally.count(store, "recorded")
        tally.flush(store)
        assert in_table(store) == {"recorded": 2}
        engine.dispose()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_counts_are_added_once_when_a_reader_delays_the_commit(
    make_app: MakeApp, database_url: str, tmp_path: Path
) -> None:
    """In a file with a rollback journal, the COMMIT waits for readers and fails."""
    app = make_app(SQLALCHEMY_DATABASE_URI=database_url)
    app.register_blueprint(ProcoreWebhooks())
    store = store_of(app)
    store.traits()
    reader = sa.create_engine(database_url).connect()
    assert reader.exec_driver_sql("PRAGMA journal_mode").scalar() == "delete"
    reader.exec_driver_sql("BEGIN")
    reader.exec_driver_sql("SELECT * FROM procore_webhook_state").all()
    tally.count(store, "recorded")
    with pytest.raises(InboxUnavailable, match="locked"):
        tally.flush(store, 0.3)
    assert in_memory(store) == {"recorded": 1}
    reader.close()
    tally.flush(store)
    assert in_table(store) == {"recorded": 1}


# The thread


def test_a_thread_adds_what_was_counted_and_ends_when_idle(serving: Flask) -> None:
    store = store_of(serving)
    assert not tally_threads()
    tally.count(store, "recorded")
    tally.count(store, "recorded")
    assert len(tally_threads()) == 1
    wait_until(lambda: in_table(store) == {"recorded": 2})
    wait_until(lambda: not tally_threads())
    tally.count(store, "recorded")
    wait_until(lambda: in_table(store) == {"recorded": 3})


def test_the_thread_goes_on_after_an_outage(
    serving: Flask, caplog: pytest.LogCaptureFixture, short_retries: None
) -> None:
    store = store_of(serving)
    table, engine = store.database.tables.tally, store.database.engine
    table.drop(engine)
    tally.count(store, "recorded")
    text = "Counts are kept in memory until they can be added"
    wait_until(lambda: text in caplog.text)
    time.sleep(0.5)
    assert caplog.text.count(text) == 1
    table.create(engine)
    wait_until(lambda: in_table(store) == {"recorded": 1})


def test_the_sleeping_thread_holds_no_app(make_app: MakeApp) -> None:
    app = make_app(TESTING=False)
    app.register_blueprint(ProcoreWebhooks())
    tally.count(store_of(app), "recorded")
    assert len(tally_threads()) == 1
    gone = weakref.ref(app)
    del app
    gc.collect()
    assert gone() is None


def test_no_thread_is_started_in_tests(app: Flask, store: Store) -> None:
    tally.count(store, "recorded")
    assert not tally_threads()
    tally.flush_all()
    assert in_table(store) == {}


def test_no_thread_is_started_in_a_command(app: Flask) -> None:
    app.testing = False

    @app.cli.command("sweep")
    def sweep() -> None:
        tally.count(store_of(app), "recorded")
        assert not tally_threads()

    result = app.test_cli_runner().invoke(args=["sweep"])
    assert result.exit_code == 0, result.output
    tally.flush_all()
    assert in_table(store_of(app)) == {"recorded": 1}


def test_a_process_without_threads_adds_at_a_count(
    serving: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    uwsgi: Any = types.ModuleType("uwsgi")
    uwsgi.opt = {"master": True}
    monkeypatch.setitem(sys.modules, "uwsgi", uwsgi)
    store = store_of(serving)
    tally.count(store, "recorded")
    assert not tally_threads()
    assert in_memory(store) == {"recorded": 1}
    time.sleep(0.1)
    # A refused delivery waits for no database.
    tally.count(store, "rejected")
    assert in_table(store) == {}
    time.sleep(0.1)
    tally.count(store, "recorded")
    assert in_table(store) == {"recorded": 2, "rejected": 1}


# Processes

ENDS = """
import os, secrets, sys
from flask import Flask
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.inbox import tally

url, forks = sys.argv[1:]
secret = secrets.token_hex()
app = Flask("host")
app.config.update(PROCORE_WEBHOOK_DATABASE_URI=url, PROCORE_WEBHOOK_SECRET=secret)
app.register_blueprint(ProcoreWebhooks())
(endpoint,) = endpoints(app).values()
tally.count(endpoint.store, "recorded")
if forks == "forks":
    child = os.fork()
    if child == 0:
        # It ends regularly, and adds its own count only.
        tally.count(endpoint.store, "done")
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.parametrize("how", ["forks", "ends"])
def test_a_process_adds_its_own_counts_at_its_end(
    store: Store, database_url: str, how: str
) -> None:
    store.database.open()
    # Python 3.12 warns of a fork beside threads.
    command = [sys.executable, "-W", "ignore", "-c", ENDS, database_url, how]
    ended = subprocess.run(command, timeout=60, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    expected = {"recorded": 1, "done": 1} if how == "forks" else {"recorded": 1}
    assert in_table(store) == expected
