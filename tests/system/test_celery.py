"""``DISPATCH="celery"``: messages, tasks, the sweep, and outages of brokers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextlib import ExitStack
from contextlib import suppress
from contextvars import Context
from datetime import datetime
from datetime import timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from support.brokers import as_env
from support.brokers import Broker
from support.brokers import celery_worker
from support.brokers import disconnect
from support.brokers import own_broker
from support.documents import blocks
from support.documents import text_of
from support.hosts import Host
from support.hosts import run_host
from support.inboxes import counted
from support.inboxes import due_rows
from support.inboxes import numbered
from support.outages import relay_to
from support.processes import Process
from support.values import Clock
from support.values import SECRET
from support.waiting import wait_until

from flask_procore_webhooks import Event
from flask_procore_webhooks import event_failed
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import PrudraWebhooks
from flask_procore_webhooks import RetryLater
from flask_procore_webhooks.dispatching import celery
from flask_procore_webhooks.dispatching import tasks
from flask_procore_webhooks.dispatching.celery import BREAKER_SECONDS
from flask_procore_webhooks.dispatching.celery import PATIENCE
from flask_procore_webhooks.dispatching.celery import publish
from flask_procore_webhooks.dispatching.celery import Publisher
from flask_procore_webhooks.dispatching.celery import RUN
from flask_procore_webhooks.dispatching.celery import SWEEP
from flask_procore_webhooks.dispatching.tasks import LONGEST_COUNTDOWN
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.errors import ConfigError
from flask_procore_webhooks.inbox import claims
from flask_procore_webhooks.inbox import due
from flask_procore_webhooks.operations import queries
from flask_procore_webhooks.operations.pauses import pause
from flask_procore_webhooks.operations.pauses import resume
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import payload

MakeApp = Callable[..., Flask]

#: Timeout in seconds of a condition on a busy machine.
DEADLINE = 90.0
#: Seconds within which a busy machine runs a batch.
PATIENT = 60.0


@pytest.fixture
def redis() -> Iterator[Broker]:
    with own_broker("redis") as broker:
        yield broker


@pytest.fixture(params=["redis", "rabbitmq"])
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    with own_broker(request.param) as broker:
        yield broker


@pytest.fixture
def calls() -> list[str]:
    return []


@pytest.fixture
def make_app(make_app: MakeApp) -> Iterator[MakeApp]:
    """The factory of apps, whose connections to brokers are closed at the end."""
    made: list[Flask] = []

    def make(**config: Any) -> Flask:
        made.append(make_app(**config))
        return made[-1]

    yield make
    for app in made:
        disconnect(app)


@pytest.fixture
def app(make_app: MakeApp, redis: Broker, calls: list[str]) -> Flask:
    """An app that publishes its events to a queue without workers."""
    webhooks = ProcoreWebhooks()

    @webhooks.on(name="noted")
    def noted(event: Event) -> None:
        calls.append(event.id)
        if "wait" in event.data:
            raise RetryLater(event.data["wait"])
        time.sleep(event.data.get("seconds", 0))
        if "fails" in event.data:
            raise ValueError("as asked for")
        if "exits" in event.data:
            raise SystemExit

    app = make_app(PROCORE_WEBHOOK_DISPATCH="celery", PROCORE_WEBHOOK_RETRY_BASE=60)
    app.register_blueprint(webhooks)
    redis.celery(app)
    return app


def send(app: Flask, **fields: Any) -> int:
    """Deliver an event, assert that it is accepted, and return its row id."""
    sent = payload("RFIs.update", **fields)
    answer = deliver(app.test_client(), sent, endpoint="procore_webhooks")
    assert answer.status_code == 200
    row = queries.find(endpoint_of(app).store, sent["id"])
    assert row
    return int(row["id"])


def endpoint_of(app: Flask, name: str = "procore_webhooks") -> Endpoint:
    return endpoints(app)[name]


def call(app: Flask, task: str, *arguments: Any, **options: Any) -> Any:
    """Run the task in this process, as a worker of the app's Celery does."""
    return app.extensions["celery"].tasks[task].apply(arguments, options).get()


def status(app: Flask, row_id: int) -> str:
    return str(due.status_of(endpoint_of(app).store, row_id))


def close_breaker(app: Flask) -> None:
    """Close the circuit breaker, which a failed message has opened."""
    publisher = endpoint_of(app).state.runtime.parts[Publisher]
    publisher._open_until = 0.0


# Messages


def test_message_carries_the_name_of_the_endpoint_and_the_row_id(
    app: Flask, broker: Broker, calls: list[str]
) -> None:
    broker.celery(app)
    row = send(app)
    (message,) = broker.take(1)
    assert message == {
        "task": "flask_procore_webhooks.run",
        "args": ["procore_webhooks", row],
        "kwargs": {"is_new": True},
        "eta": None,
    }
    assert calls == []
    assert status(app, row) == "pending"


def test_names_of_the_tasks_are_stable() -> None:
    """Names occur in users' beat_schedule and task_routes, and in queued messages."""
    assert RUN == "flask_procore_webhooks.run"
    assert SWEEP == "flask_procore_webhooks.sweep"


def test_duplicate_of_an_unfinished_event_is_published_again(
    app: Flask, redis: Broker
) -> None:
    row = send(app, id="evt_1")
    assert send(app, id="evt_1") == row
    assert redis.taken_rows() == [row, row]
    call(app, RUN, "procore_webhooks", row)
    send(app, id="evt_1")
    assert redis.take() == []


def test_ignored_and_unreadable_events_are_not_published(
    app: Flask, redis: Broker
) -> None:
    assert deliver(app.test_client(), b"no json").get_json()["quarantined"]
    assert redis.take() == []


def test_task_routes_of_the_host_are_used(app: Flask, redis: Broker) -> None:
    other = f"{redis.queue}:other"
    app.extensions["celery"].conf.task_routes = {RUN: {"queue": other}}
    row = send(app)
    assert redis.take() == []
    elsewhere = Broker(redis.url, other)
    options = redis.config()["broker_transport_options"]
    with elsewhere.connection(transport_options=options) as connection:
        message = connection.default_channel.basic_get(other, no_ack=True)
    assert message.decode()[0] == ["procore_webhooks", row]


def test_always_eager_celery_runs_the_event_in_the_request(
    app: Flask, calls: list[str]
) -> None:
    app.extensions["celery"].conf.task_always_eager = True
    row = send(app, fails=True)
    assert status(app, row) == "pending"
    assert len(calls) == 1


def test_without_dispatch_a_test_runs_events_in_the_request(
    make_app: MakeApp, webhooks: ProcoreWebhooks, redis: Broker, calls: list[str]
) -> None:
    webhooks.on(name="noted")(lambda event: calls.append(event.id))
    app = make_app()
    app.register_blueprint(webhooks)
    redis.celery(app)
    assert status(app, send(app)) == "done"
    assert len(calls) == 1 and redis.take() == []


# The task of one event


def test_repeated_message_runs_the_event_once(
    app: Flask, redis: Broker, calls: list[str]
) -> None:
    row = send(app, id="evt_1")
    for _ in range(3):
        call(app, RUN, "procore_webhooks", row)
    assert status(app, row) == "done"
    assert calls == ["evt_1"]


def test_note_of_the_process_is_rare_and_fails_no_task(
    app: Flask, redis: Broker, calls: list[str]
) -> None:
    store, writes = endpoint_of(app).store, list[str]()
    table = store.database.tables.state.name

    @sa.event.listens_for(store.database.engine, "before_cursor_execute")
    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith(f"INSERT INTO {table}"):
            writes.append(statement)

    rows = [send(app, id=f"evt_{number}") for number in range(3)]
    with store.connection() as connection:
        # The endpoint's pause is still read from the table.
        for change in ("INSERT", "UPDATE"):
            connection.exec_driver_sql(
                f"CREATE TRIGGER no_{change} BEFORE {change} ON {table}"
                " BEGIN SELECT RAISE(ABORT, 'no'); END"
            )
    writes.clear()
    for row in rows:
        call(app, RUN, "procore_webhooks", row)
    assert [status(app, row) for row in rows] == ["done"] * 3
    assert len(writes) == 1
    call(app, SWEEP)


@pytest.mark.parametrize("fields", [{"wait": 100}, {"fails": True}])
def test_failed_run_is_published_with_a_countdown(
    app: Flask, redis: Broker, calls: list[str], fields: dict[str, Any]
) -> None:
    row = send(app, **fields)
    assert redis.taken_rows() == [row]
    call(app, RUN, "procore_webhooks", row)
    (message,) = redis.take()
    assert message["args"] == ["procore_webhooks", row]
    due_at = queries.find(endpoint_of(app).store, str(row))["due_at"]  # type: ignore[index]
    eta = datetime.fromisoformat(message["eta"])
    early = (eta - due_at.replace(tzinfo=timezone.utc)).total_seconds()
    assert 0 < early < 30, "not before it can be claimed, and not long after"
    # A message before the due time has no effect.
    call(app, RUN, "procore_webhooks", row)
    assert len(calls) == 1 and redis.take() == []


def test_long_wait_is_left_to_the_sweep(app: Flask, redis: Broker) -> None:
    """Brokers redeliver a message held for half an hour or an hour."""
    assert LONGEST_COUNTDOWN < 1800
    endpoint, clock = endpoint_of(app), Clock()
    row = send(app, wait=LONGEST_COUNTDOWN + 60)
    redis.take()
    call(app, RUN, "procore_webhooks", row)
    assert redis.take() == []
    endpoint.store.now = clock
    assert call(app, SWEEP) == 0
    clock.forward(LONGEST_COUNTDOWN + 120)
    assert call(app, SWEEP) == 1
    assert redis.taken_rows() == [row]


def test_dead_event_is_not_published(make_app: MakeApp, redis: Broker) -> None:
    webhooks = ProcoreWebhooks()
    webhooks.on(name="bad")(lambda event: 1 / 0)
    keys = {"PROCORE_WEBHOOK_DISPATCH": "celery", "PROCORE_WEBHOOK_MAX_ATTEMPTS": 1}
    app = make_app(**keys)
    app.register_blueprint(webhooks)
    redis.celery(app)
    row = send(app)
    redis.take()
    call(app, RUN, "procore_webhooks", row)
    assert status(app, row) == "dead"
    assert redis.take() == []
    assert call(app, SWEEP, overdue=0) == 0


def test_paused_endpoint_is_swept_after_resume(
    app: Flask, redis: Broker, calls: list[str]
) -> None:
    store = endpoint_of(app).store
    row = send(app)
    redis.take()
    pause(store, "test")
    call(app, RUN, "procore_webhooks", row)
    assert call(app, SWEEP, overdue=0) == 0
    assert calls == [] and redis.take() == []
    resume(store, "test")
    assert call(app, SWEEP, overdue=0) == 1
    call(app, RUN, "procore_webhooks", redis.taken_rows()[0])
    assert status(app, row) == "done"


def test_message_for_an_unknown_endpoint_is_logged(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    call(app, RUN, "of_another_app", 7)
    assert "this worker's app has no endpoint 'of_another_app'" in caplog.text


def test_tasks_outside_an_app_context_log_what_to_do(
    app: Flask, redis: Broker, calls: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    row = send(app)
    redis.take()
    theirs = redis.contextless_celery()

    def run_tasks() -> int:
        theirs.tasks[RUN].apply(["procore_webhooks", row]).get()
        return int(theirs.tasks[SWEEP].apply(kwargs={"overdue": 0}).get())

    # In a test, pytest-flask has pushed a context of the app.
    assert Context().run(run_tasks) == 0
    logged = [record.message for record in caplog.records]
    assert logged == [celery.NO_CONTEXT % task for task in (RUN, SWEEP)]
    assert calls == [] and redis.take() == []
    assert status(app, row) == "pending"


def test_each_app_of_a_process_runs_its_own_events(
    make_app: MakeApp, redis: Broker, webhooks: ProcoreWebhooks
) -> None:
    ran: list[str] = []

    @webhooks.on(name="which")
    def which(event: Event) -> None:
        from flask import current_app

        ran.append(current_app.config["WHICH"])

    apps = []
    for name in "ab":
        app = make_app(PROCORE_WEBHOOK_DISPATCH="celery", WHICH=name)
        app.register_blueprint(webhooks)
        redis.celery(app)
        apps.append((app, send(app)))
    for app, row in apps:
        call(app, RUN, "procore_webhooks", row)
    assert ran == ["a", "b"]


def test_event_is_swept_after_a_database_outage(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    row = send(app)
    file = Path(str(endpoint_of(app).store.database.url.database))
    endpoint_of(app).store.database.engine.dispose()
    away = file.rename(file.with_suffix(".away"))
    file.mkdir()
    call(app, RUN, "procore_webhooks", row)
    assert call(app, SWEEP, overdue=0) == 0
    assert (
        f"Event {row} is left to the sweep: the inbox cannot be used: " in caplog.text
    )
    assert "procore_webhooks is not swept: the inbox cannot be used: " in caplog.text
    file.rmdir()
    away.rename(file)
    assert call(app, SWEEP, overdue=0) == 1


# Batches


@pytest.fixture
def large_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The batches of an endpoint grow (1, 2, 4 …) even on a slow machine."""
    monkeypatch.setattr(tasks.Batches, "batch_seconds", PATIENT)


def run_new(app: Flask, row_id: int) -> list[str]:
    """Run the task of the event's first message; return its statements."""
    statements: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    engine = endpoint_of(app).store.database.engine
    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        call(app, RUN, "procore_webhooks", row_id, is_new=True)
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)
    return statements


@pytest.mark.usefixtures("large_batches")
def test_task_runs_other_due_events_whose_tasks_then_end_at_once(
    app: Flask, redis: Broker, calls: list[str]
) -> None:
    ids = numbered(7, "evt")
    rows = [send(app, id=id) for id in ids]
    # The first batch has one event, the second one two, the third one four.
    for row, count in ((rows[0], 2), (rows[2], 5), (rows[5], 7)):
        call(app, RUN, "procore_webhooks", row, is_new=True)
        assert sorted(calls) == ids[:count]
    assert [status(app, row) for row in rows] == ["done"] * 7
    for row in rows[1], rows[3], rows[4], rows[6]:
        assert run_new(app, row) == [], "this process has run the event"
        assert len(run_new(app, row)) == 1, "the inbox has no due event"
    assert sorted(calls) == ids


@pytest.mark.usefixtures("large_batches")
def test_replayed_event_of_a_batch_is_run_by_its_message(
    app: Flask, redis: Broker, calls: list[str]
) -> None:
    """The first message of the event is still queued when the event is replayed."""
    rows = [send(app, id=id) for id in ("evt_1", "evt_2")]
    redis.take()
    call(app, RUN, "procore_webhooks", rows[0], is_new=True)
    assert calls == ["evt_1", "evt_2"]
    commands = app.test_cli_runner()
    commands.invoke(args=["procore-webhooks", "replay", "evt_2", "--anew"])
    (message,) = redis.take()
    assert message["args"] == ["procore_webhooks", rows[1]]
    call(app, RUN, *message["args"], **message["kwargs"])
    assert calls == ["evt_1", "evt_2", "evt_2"]
    assert status(app, rows[1]) == "done"


@pytest.mark.usefixtures("large_batches")
def test_batch_holds_events_of_its_endpoint_only(app: Flask, redis: Broker) -> None:
    ran: list[str] = []
    prudra = PrudraWebhooks()
    prudra.on(name="of_prudra")(lambda event: ran.append(event.id))
    app.config["PRUDRA_WEBHOOK_SECRET"] = SECRET
    app.config["PRUDRA_WEBHOOK_DISPATCH"] = "celery"
    app.register_blueprint(prudra)
    sent = payload("payment.received", format="prudra")
    deliver(app.test_client(), sent, endpoint="prudra_webhooks")
    rows = [send(app) for _ in range(2)]
    call(app, RUN, "procore_webhooks", rows[0])
    assert [status(app, row) for row in rows] == ["done"] * 2
    assert ran == []
    call(app, RUN, "prudra_webhooks", 1)
    assert len(ran) == 1


@pytest.mark.usefixtures("large_batches")
def test_failed_event_of_a_batch_is_published_with_a_countdown(
    app: Flask, redis: Broker
) -> None:
    rows = [send(app), send(app, fails=True)]
    redis.take()
    call(app, RUN, "procore_webhooks", rows[0], is_new=True)
    (message,) = redis.take()
    assert message["args"] == ["procore_webhooks", rows[1]]
    assert message["eta"] and message["kwargs"] == {}


@pytest.mark.usefixtures("large_batches")
def test_rest_of_a_long_batch_is_published(
    app: Flask, redis: Broker, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other workers may have taken the messages of claimed events meanwhile."""
    rows = [send(app, id=id) for id in numbered(7, "evt")]
    for row in rows[0], rows[2]:
        call(app, RUN, "procore_webhooks", row, is_new=True)
    assert len(calls) == 5
    rows += [send(app, id="evt_slow", seconds=1.5), *(send(app) for _ in range(3))]
    redis.take()
    monkeypatch.setattr(tasks.Batches, "batch_seconds", 1.0)
    call(app, RUN, "procore_webhooks", rows[5], is_new=True)
    assert calls[6:] == ["evt_006", "evt_slow"]
    rest = rows[8:10]
    assert [status(app, row) for row in rows[8:]] == ["pending"] * 3
    assert redis.taken_rows() == rest
    for row in rest:
        call(app, RUN, "procore_webhooks", row)
    assert [status(app, row) for row in rows] == ["done"] * 11


@pytest.mark.usefixtures("large_batches")
def test_rest_of_a_batch_is_published_while_its_event_goes_on(
    app: Flask, redis: Broker, calls: list[str]
) -> None:
    rows = [send(app, id=id) for id in numbered(7, "evt")]
    for row in rows[0], rows[2]:
        call(app, RUN, "procore_webhooks", row, is_new=True)
    rest: list[int] = []
    statuses: list[str] = []

    @event_failed.connect
    def look(sender: Flask, event: Event, **_: Any) -> None:
        """Called at the end of the slow event, by its thread."""
        rest.extend(redis.taken_rows())
        statuses.extend(status(app, row) for row in rows[8:])

    rows += [send(app, id="evt_slow", seconds=1.5, fails=True)]
    rows += [send(app) for _ in range(2)]
    redis.take()
    call(app, RUN, "procore_webhooks", rows[5], is_new=True)
    event_failed.disconnect(look)
    assert rest == rows[8:] and statuses == ["pending"] * 2


def test_no_batch_follows_a_slow_event(
    app: Flask, redis: Broker, calls: list[str]
) -> None:
    rows = [send(app, id="evt_slow", seconds=0.6), send(app)]
    call(app, RUN, "procore_webhooks", rows[0])
    assert calls == ["evt_slow"]


@pytest.mark.usefixtures("large_batches")
def test_request_to_stop_ends_the_task_and_releases_its_batch(
    app: Flask, redis: Broker, calls: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    rows = [send(app, id=id) for id in numbered(3, "evt")]
    call(app, RUN, "procore_webhooks", rows[0])
    stopping, last = send(app, id="evt_exit", exits=True), send(app)
    redis.take()
    with pytest.raises(SystemExit):
        app.extensions["celery"].tasks[RUN]("procore_webhooks", rows[2])
    assert calls[-1] == "evt_exit"
    assert status(app, last) == "pending"
    assert redis.taken_rows() == [stopping, last]


def test_eager_task_leaves_other_events_to_their_own_tasks(
    app: Flask, redis: Broker, calls: list[str]
) -> None:
    send(app, id="evt_1")
    app.extensions["celery"].conf.task_always_eager = True
    send(app, id="evt_2")
    assert calls == ["evt_2"]


# The sweep


def test_sweep_publishes_overdue_events(app: Flask, redis: Broker) -> None:
    endpoint, clock = endpoint_of(app), Clock()
    endpoint.store.now = clock
    rows = []
    for _ in range(5):
        rows.append(send(app))
        clock.forward(10)
    redis.take()
    assert call(app, SWEEP) == 3
    assert redis.taken_rows() == rows[:3]
    assert call(app, SWEEP, overdue=0, limit=4) == 4
    assert redis.taken_rows() == rows[:4]


def test_sweep_publishes_the_event_of_a_killed_worker(
    app: Flask, redis: Broker
) -> None:
    endpoint, clock = endpoint_of(app), Clock()
    endpoint.store.now = clock
    row = send(app)
    redis.take()
    assert claims.claim(endpoint.store, row, 300)
    assert call(app, SWEEP, overdue=0) == 0
    clock.forward(301)
    assert call(app, SWEEP, overdue=0) == 1
    call(app, RUN, *redis.take()[0]["args"])
    assert status(app, row) == "done"


def test_sweep_ignores_endpoints_with_other_dispatch_modes(
    app: Flask, redis: Broker
) -> None:
    app.config["PRUDRA_WEBHOOK_SECRET"] = SECRET
    app.config["PRUDRA_WEBHOOK_DISPATCH"] = "worker"
    app.register_blueprint(PrudraWebhooks())
    sent = payload("payment.received", format="prudra")
    deliver(app.test_client(), sent, endpoint="prudra_webhooks")
    row = send(app)
    redis.take()
    assert call(app, SWEEP, overdue=0) == 1
    assert redis.take()[0]["args"] == ["procore_webhooks", row]


# Missing Celery and failing brokers


def test_app_without_celery_records_events_and_logs_advice(
    app: Flask, redis: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = app.extensions.pop("celery")
    rows = [send(app) for _ in range(3)]
    assert caplog.text.count("has no app.extensions['celery']: set your Celery up") == 1
    app.extensions["celery"] = theirs
    close_breaker(app)
    rows.append(send(app))
    assert redis.taken_rows() == rows[3:]
    assert call(app, SWEEP, overdue=0) == 4
    assert redis.taken_rows() == rows


def test_refusing_broker_is_tried_and_logged_once(
    app: Flask, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    with relay_to(broker.url) as relay:
        relay.cut()
        broker.celery(app, relay.url)
        rows = [send(app) for _ in range(10)]
        assert caplog.text.count(f"No messages are sent for {BREAKER_SECONDS:g} s") == 1
        relay.mend()
        # After the pause, the sweep publishes the messages.
        close_breaker(app)
        assert call(app, SWEEP, overdue=0) == 10
        assert broker.taken_rows(10) == rows


def test_silent_broker_is_tried_once(
    app: Flask, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with relay_to(broker.url) as relay:
            url = relay.url.replace(str(relay.port), str(silent.getsockname()[1]))
        broker.celery(app, url)
        start = time.monotonic()
        send(app)
        assert time.monotonic() - start >= PATIENCE, "it was asked"
        assert connections(silent)
        for _ in range(5):
            send(app)
        assert not connections(silent), "it was not asked again"
    assert caplog.text.count("No messages are sent") == 1


def connections(listener: socket.socket) -> int:
    """Accept and close the waiting connections; return their number."""
    listener.setblocking(False)
    taken = 0
    with suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()
            taken += 1
    return taken


def test_broken_idle_connection_loses_no_message(app: Flask, broker: Broker) -> None:
    with relay_to(broker.url) as relay:
        broker.celery(app, relay.url)
        first = send(app)
        # A breaking connection would lose a message that has not arrived yet.
        assert broker.taken_rows(1) == [first]
        relay.cut()
        relay.mend()
        second = send(app)
        assert broker.taken_rows(1) == [second]


def test_broker_password_is_not_logged(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    with own_broker("rabbitmq") as broker:
        url = broker.url.replace("guest:guest", "guest:hunter2")
        broker.celery(app, url)
        send(app)
    assert "No messages are sent" in caplog.text
    assert "hunter2" not in caplog.text


NOT_INSTALLED = """
import sys
sys.modules["celery"] = None
from flask import Flask
from flask_procore_webhooks import ProcoreWebhooks
app = Flask("host", instance_path=sys.argv[1])
app.config["PROCORE_WEBHOOK_SECRET"] = "a secret"
app.config["PROCORE_WEBHOOK_DISPATCH"] = sys.argv[2]
app.register_blueprint(ProcoreWebhooks())
"""


@pytest.mark.parametrize("dispatch", ["celery", "background"])
def test_celery_is_required_only_for_dispatch_celery(
    tmp_path: Path, dispatch: str
) -> None:
    command = [sys.executable, "-c", NOT_INSTALLED, str(tmp_path), dispatch]
    ran = subprocess.run(command, capture_output=True, text=True)
    if dispatch == "celery":
        assert "ConfigError: DISPATCH is 'celery', and Celery is not" in ran.stderr
        assert "pip install 'flask-procore-webhooks[celery]'" in ran.stderr
    else:
        assert ran.returncode == 0, ran.stderr


# Commands


def test_check_reports_missing_celery_broker_and_schedule(
    app: Flask, redis: Broker
) -> None:
    theirs = app.extensions.pop("celery")
    assert "has no app.extensions['celery']" in check(app)
    redis.celery(app, "redis://127.0.0.1:1/0")
    text = check(app)
    assert "warning: No event runs: The broker cannot be used: Operati" in text
    app.extensions["celery"] = theirs
    text = check(app)
    assert "warning: No entry of Celery's beat_schedule calls" in text
    assert "ERROR" not in text
    theirs.conf.beat_schedule = {"webhooks": {"task": SWEEP, "schedule": 60}}
    assert "beat_schedule" not in check(app)


def check(app: Flask) -> str:
    result = app.test_cli_runner().invoke(args=["procore-webhooks", "check"])
    assert result.exit_code == 0, result.output
    return result.output


def test_replayed_event_is_published(app: Flask, redis: Broker) -> None:
    row = send(app, id="evt_1")
    redis.take()
    call(app, RUN, "procore_webhooks", row)
    commands = app.test_cli_runner()
    result = commands.invoke(args=["procore-webhooks", "replay", "evt_1", "--anew"])
    assert "Celery's workers run them" in result.output
    assert redis.taken_rows() == [row]
    result = commands.invoke(args=["procore-webhooks", "pause"])
    result = commands.invoke(args=["procore-webhooks", "resume"])
    assert "the next sweep publishes the events that have waited" in result.output


def test_worker_command_runs_events_of_celery_endpoints(
    app: Flask, calls: list[str]
) -> None:
    row = send(app, id="evt_1")
    app.test_cli_runner().invoke(args=["procore-webhooks", "worker", "--once"])
    assert status(app, row) == "done"
    call(app, RUN, "procore_webhooks", row)
    assert calls == ["evt_1"]


# Real workers


SITE = """
import os
import time
from pathlib import Path
from celery import Celery, Task
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_procore_webhooks import ProcoreWebhooks, RetryLater

db = SQLAlchemy()
webhooks = ProcoreWebhooks(db=db)


class Note(db.Model):
    id = db.Column(db.Integer, primary_key=True)
    text = db.Column(db.String(190))


@webhooks.on(name="writer")
def writer(event):
    with open("calls", "a") as calls:
        calls.write(f"{event.id}\\n")
    # Differs in each run, so that two runs leave two notes.
    text = f"{event.id} {os.getpid()} {time.monotonic_ns()}"
    db.session.add(Note(text=text))
    db.session.flush()
    if "seconds" in event.data and not os.environ.get("SITE_IS_QUICK"):
        # Not for 0: gevent would run another event, which waits for SQLite's lock.
        time.sleep(event.data["seconds"])
    if event.attempt <= event.data.get("fails", 0):
        raise ValueError("not yet")
    postponed = event.data.get("postponed", 0)
    if postponed and Path("calls").read_text().split().count(event.id) <= postponed:
        raise RetryLater(0.2)


def celery_init_app(app):
    class FlaskTask(Task):
        def __call__(self, *args, **kwargs):
            with app.app_context():
                return self.run(*args, **kwargs)

    celery_app = Celery(app.name, task_cls=FlaskTask)
    celery_app.config_from_object(app.config["CELERY"])
    celery_app.set_default()
    app.extensions["celery"] = celery_app
    return celery_app


def create_app():
    app = Flask(__name__)
    app.config.from_prefixed_env()
    db.init_app(app)
    if app.config.get("CELERY_FIRST"):
        celery_init_app(app)
    app.register_blueprint(webhooks)
    if not app.config.get("CELERY_FIRST"):
        celery_init_app(app)
    return app


celery_app = create_app().extensions["celery"]
"""


class Site:
    """An app in this process, its workers in others, one database and one queue."""

    def __init__(self, folder: Path, host: Host, url: str, broker: Broker) -> None:
        self.folder = folder
        self.host = host
        self.broker = broker
        self.celery = broker.celery(host.app)
        self.env = {
            "FLASK_SQLALCHEMY_DATABASE_URI": url,
            "FLASK_PROCORE_WEBHOOK_SECRET": SECRET,
            "FLASK_PROCORE_WEBHOOK_DISPATCH": "celery",
            "FLASK_PROCORE_WEBHOOK_RETRY_BASE": "0.2",
            "FLASK_PROCORE_WEBHOOK_LEASE": "3",
            "FLASK_PROCORE_WEBHOOK_MAX_ATTEMPTS": "4",
            "FLASK_CELERY": as_env(broker.config()),
        }
        (folder / "site_of_celery.py").write_text(SITE)

    @property
    def app(self) -> Flask:
        return self.host.app

    def worker(self, *options: str, **env: str) -> AbstractContextManager[Process]:
        return celery_worker(
            "site_of_celery:celery_app",
            self.folder,
            {**self.env, **env},
            *(options or ("-c", "2")),
        )

    def send(self, ids: list[str], **fields: Any) -> None:
        for id in ids:
            send(self.app, id=id, **fields)

    def sweep(self) -> None:
        """Publish the sweep's message, as beat does."""
        with self.celery.connection_for_write() as connection:
            self.celery.tasks[SWEEP].apply_async(
                kwargs={"overdue": 0}, connection=connection
            )

    def statuses(self) -> Counter[str]:
        return counted(self.host.store)

    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().split() if path.exists() else []

    def wait_for(self, condition: Callable[[], object], worker: Process) -> None:
        wait_until(condition, DEADLINE, lambda: f"{self.statuses()}\n{worker.output()}")

    def wait_until_finished(self, worker: Process, **statuses: int) -> None:
        self.wait_for(lambda: self.statuses() == Counter(statuses), worker)

    def sweep_until_finished(self, worker: Process, **statuses: int) -> None:
        """Sweep every two seconds until the events have these statuses."""
        last = 0.0

        def are_finished() -> bool:
            nonlocal last
            if time.monotonic() - last > 2:
                last = time.monotonic()
                self.sweep()
            return self.statuses() == Counter(statuses)

        self.wait_for(are_finished, worker)

    def check_effects(self, ids: list[str]) -> None:
        """Assert that each event has had its effect exactly once."""
        assert Counter(note.split()[0] for note in self.host.notes()) == Counter(ids)


@pytest.fixture
def site(make_app: MakeApp, broker: Broker, tmp_path: Path) -> Iterator[Site]:
    url = f"sqlite:///{tmp_path / 'host.db'}"
    app = make_app(PROCORE_WEBHOOK_DISPATCH="celery")
    with run_host(app, "flask_sqlalchemy", url) as host:
        yield Site(tmp_path, host, url, broker)


@pytest.fixture
def large_site(
    make_app: MakeApp, broker: Broker, tmp_path: Path, postgresql_url: str
) -> Iterator[Site]:
    app = make_app(PROCORE_WEBHOOK_DISPATCH="celery")
    with run_host(app, "flask_sqlalchemy", postgresql_url) as host:
        yield Site(tmp_path, host, postgresql_url, broker)


only_redis = pytest.mark.parametrize("broker", ["redis"], indirect=True)


def test_every_event_is_done_and_has_its_effect_once(site: Site) -> None:
    """Celery set up before or after the blueprint; duplicate messages; retries without
    a sweep."""
    plain, failing = numbered(15, "evt_plain"), numbered(3, "evt_fails")
    postponed = numbered(3, "evt_later")
    first = "true" if site.broker.url.startswith("redis") else "false"
    site.send(plain[:5])
    rows = due_rows(site.host.endpoint.store, 100)
    assert publish(site.host.endpoint, rows) == 5
    with site.worker(FLASK_CELERY_FIRST=first) as worker:
        site.send(failing, fails=2)
        site.send(postponed, postponed=2)
        site.send(plain[5:])
        site.wait_until_finished(worker, done=21)
        assert publish(site.host.endpoint, rows) == 5
        site.send(["evt_last"])
        site.wait_until_finished(worker, done=22)
    everything = [*plain, *failing, *postponed, "evt_last"]
    site.check_effects(everything)
    runs = Counter(site.calls())
    assert {runs[id] for id in plain} == {1}
    assert {runs[id] for id in failing + postponed} == {3}


@pytest.mark.slow
def test_event_that_keeps_failing_is_dead_after_its_attempts(site: Site) -> None:
    with site.worker() as worker:
        site.send(["evt_bad"], fails=100)
        site.wait_until_finished(worker, dead=1)
        site.sweep()
        site.send(["evt_good"])
        site.wait_until_finished(worker, dead=1, done=1)
    assert site.calls().count("evt_bad") == 4
    site.check_effects(["evt_good"])


@pytest.mark.slow
def test_broker_outage_loses_no_event(
    large_site: Site,
) -> None:
    site, ids = large_site, numbered(120, "evt_cut")
    with ExitStack() as stack:
        relay = stack.enter_context(relay_to(site.broker.url))
        site.broker.celery(site.app, relay.url)
        theirs = as_env(site.broker.config(relay.url))
        worker = stack.enter_context(site.worker(FLASK_CELERY=theirs))
        site.send(ids[:40])
        relay.cut()
        site.send(ids[40:80])
        relay.mend()
        close_breaker(site.app)
        site.send(ids[80:])
        # Several sweeps: the worker may reconnect slowly, and Redis withholds the
        # messages it had fetched until their visibility timeout has passed.
        site.sweep_until_finished(worker, done=120)
    site.check_effects(ids)


@pytest.mark.slow
def test_purged_messages_are_published_by_the_sweep(site: Site) -> None:
    ids = numbered(10, "evt_purged")
    site.send(ids)
    assert len(site.broker.take(10)) == 10
    with site.worker() as worker:
        site.sweep()
        site.wait_until_finished(worker, done=10)
    site.check_effects(ids)
    assert Counter(site.calls()) == Counter(ids)


@pytest.mark.slow
def test_run_of_a_killed_worker_is_done_by_another(
    large_site: Site,
) -> None:
    site, ids = large_site, ["evt_slow_1", "evt_slow_2", "evt_quick"]
    with site.worker() as killed:
        site.send(ids[:2], seconds=600)
        site.wait_for(lambda: len(site.calls()) == 2, killed)
        killed.kill()
    assert site.statuses() == Counter(running=2)
    # The event is quick now; only the recovery takes time.
    with site.worker(SITE_IS_QUICK="yes") as worker:
        site.send(ids[2:])
        site.sweep_until_finished(worker, done=3)
    site.check_effects(ids)


@pytest.mark.slow
def test_batch_of_a_killed_worker_is_run_once(large_site: Site) -> None:
    """The kill leaves an event running and the rest of its batch claimed."""
    site, ids = large_site, numbered(40, "evt_batch")
    site.send(ids)
    site.send(["evt_slow"], seconds=600)
    site.send(more := numbered(10, "evt_more"))
    with site.worker("-P", "solo") as killed:
        site.wait_for(lambda: "evt_slow" in site.calls(), killed)
        killed.kill()
    found = site.statuses()
    assert found["running"] >= 1 and found["done"] >= 30, found
    with site.worker("-c", "2", SITE_IS_QUICK="yes") as worker:
        site.sweep_until_finished(worker, done=51)
    site.check_effects([*ids, "evt_slow", *more])


def documented_settings() -> dict[str, Any]:
    """``CELERY`` as in docs/dispatch.md."""
    found_in = blocks("docs/dispatch.md", "python")
    (block,) = (each for each in found_in if "CELERY" in each.text)
    found: dict[str, Any] = {}
    exec(block.text, found)
    return dict(found["CELERY"])


def test_documented_celery_settings_are_valid(app: Flask) -> None:
    theirs = app.extensions["celery"]
    theirs.conf.update(documented_settings())
    (entry,) = theirs.conf.beat_schedule.values()
    assert entry["task"] in theirs.tasks
    page = text_of("docs/dispatch.md")
    assert f"`{RUN}`" in page
    assert f'"overdue": {tasks.OVERDUE:g}, "limit": {tasks.LARGEST_SWEEP}' in page


@pytest.mark.slow
@only_redis
def test_beat_calls_the_sweep(site: Site) -> None:
    """The event's message is lost, as after a crash right after the commit."""
    (entry,) = documented_settings()["beat_schedule"].values()
    assert entry == {"task": SWEEP, "schedule": 60.0}
    # The documented schedule, with shorter times.
    entry |= {"schedule": 1.0, "kwargs": {"overdue": 0.5}}
    schedule = {"webhooks": entry}
    site.send(["evt_forgotten"])
    assert len(site.broker.take()) == 1
    config = site.broker.config(beat_schedule=schedule)
    beat = ("-B", "-s", str(site.folder / "beat"), "-c", "1")
    with site.worker(*beat, FLASK_CELERY=as_env(config)) as worker:
        site.wait_until_finished(worker, done=1)
    site.check_effects(["evt_forgotten"])


@pytest.mark.slow
@only_redis
@pytest.mark.parametrize("acks_late", [False, True])
@pytest.mark.parametrize("pool", ["prefork", "solo", "threads", "gevent"])
def test_celery_pools_run_queued_events(site: Site, pool: str, acks_late: bool) -> None:
    ids = numbered(30, f"evt_{pool}")
    site.send(ids[:25])
    theirs = as_env(site.broker.config(task_acks_late=acks_late))
    with site.worker("-P", pool, "-c", "2", FLASK_CELERY=theirs) as worker:
        site.send(ids[25:])
        site.wait_until_finished(worker, done=30)
        wait_until(lambda: not site.broker.take(), DEADLINE)
    site.check_effects(ids)
    assert Counter(site.calls()) == Counter(ids)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_forked_process_has_its_own_broker_connections(
    app: Flask, broker: Broker
) -> None:
    broker.celery(app)
    first = send(app)
    child = os.fork()
    if not child:
        try:
            os._exit(0 if publish(endpoint_of(app), [7]) else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert publish(endpoint_of(app), [8]) == 1
    assert sorted(broker.taken_rows(3)) == sorted([first, 7, 8])


def test_dispatch_celery_without_celery_is_a_config_error(
    make_app: MakeApp, webhooks: ProcoreWebhooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks._register_tasks.cache_clear()
    monkeypatch.setitem(sys.modules, "celery", None)
    app = make_app(PROCORE_WEBHOOK_DISPATCH="celery")
    with pytest.raises(ConfigError, match="Celery is not installed"):
        app.register_blueprint(webhooks)


def test_check_reports_a_celery_whose_tasks_have_no_app_context(
    app: Flask, redis: Broker
) -> None:
    """Workers of such a Celery could not find the Flask app."""
    theirs = app.extensions["celery"]
    app.extensions["celery"] = redis.contextless_celery()
    assert "warning: No event runs: The task flask_procore_webhooks.run" in check(app)
    app.extensions["celery"] = theirs
    assert "outside an app context" not in check(app)
