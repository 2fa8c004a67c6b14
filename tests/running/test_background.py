"""``background``: a thread of the process runs due and abandoned events."""

from __future__ import annotations

import socket
import sys
import threading
import time
import types
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import suppress
from contextvars import ContextVar
from contextvars import copy_context
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask import has_request_context
from support.inboxes import are_done
from support.inboxes import record
from support.inboxes import statuses
from support.outages import Relay
from support.services import drop_tables
from support.waiting import PATIENCE
from support.waiting import wait_until
from support.workers import CountingWorker
from support.workers import look_again
from support.workers import running

from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import PrudraWebhooks
from flask_procore_webhooks import RetryLater
from flask_procore_webhooks.dispatching.background import stop_all
from flask_procore_webhooks.dispatching.worker import Worker
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.errors import InboxUnavailable
from flask_procore_webhooks.inbox import batches
from flask_procore_webhooks.inbox import claims
from flask_procore_webhooks.inbox import due
from flask_procore_webhooks.inbox.claims import Settlement
from flask_procore_webhooks.inbox.status import Status
from flask_procore_webhooks.operations import queries
from flask_procore_webhooks.operations.pauses import pause
from flask_procore_webhooks.operations.pauses import resume
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import payload

MakeApp = Callable[..., Flask]
NOT_RENEWED = "Leases are not renewed: the inbox cannot be used: "


@pytest.fixture
def app(make_app: MakeApp, webhooks: ProcoreWebhooks) -> Flask:
    """An app as in production, with the default dispatch mode."""
    app = make_app(TESTING=False, PROCORE_WEBHOOK_RETRY_BASE=0.05)
    app.add_url_rule("/page", view_func=lambda: "a page", endpoint="page")
    app.register_blueprint(webhooks)
    return app


def background_threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "procore webhooks"]


def send(app: Flask, id: str, endpoint: str | None = None) -> int:
    format = "prudra" if endpoint and "prudra" in endpoint else "signed"
    sent = payload("RFIs.update", format=format, id=id)
    return deliver(app.test_client(), sent, endpoint=endpoint).status_code


# Start of the thread


def test_delivery_is_answered_before_subscribers_finish(
    app: Flask, endpoint: Endpoint, webhooks: ProcoreWebhooks
) -> None:
    answered, runs_in = threading.Event(), []

    @webhooks.on()
    def slow(event: Event) -> None:
        runs_in.append(threading.current_thread())
        assert answered.wait(PATIENCE)

    assert send(app, "evt_1") == 200
    wait_until(lambda: runs_in)
    assert statuses(endpoint.store) == {"evt_1": "running"}
    answered.set()

    wait_until(lambda: are_done(endpoint.store, "evt_1"))
    assert runs_in[0] in background_threads()
    assert runs_in != [threading.current_thread()]


def test_threads_start_in_an_empty_context(
    app: Flask, endpoint: Endpoint, webhooks: ProcoreWebhooks
) -> None:
    """An error reporter would attach the request of that moment to every error."""
    mark: ContextVar[str] = ContextVar("mark", default="")
    seen: list[tuple[str, str]] = []
    barrier = threading.Barrier(2, timeout=PATIENCE)

    @webhooks.on()
    def look(event: Event) -> None:
        seen.append((event.id, mark.get()))
        barrier.wait()

    def send_two() -> None:
        mark.set("of the request")
        record(endpoint.store, "evt_1")
        assert send(app, "evt_2") == 200

    copy_context().run(send_two)
    wait_until(lambda: are_done(endpoint.store, "evt_1", "evt_2"))
    assert sorted(seen) == [("evt_1", ""), ("evt_2", "")]


REQUESTS = {
    "a page": ("GET", "/page"),
    "a page that is not there": ("GET", "/missing"),
    "a method that is not allowed": ("DELETE", "/page"),
    "a forged delivery": ("POST", "/webhooks/procore"),
    "a look at the endpoint": ("HEAD", "/webhooks/procore"),
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_first_request_starts_the_thread_and_runs_pending_events(
    app: Flask, endpoint: Endpoint, webhooks: ProcoreWebhooks, request_: tuple[str, str]
) -> None:
    webhooks.on()(lambda event: None)
    record(endpoint.store, "evt_1")
    with app.app_context():
        assert not background_threads()

    method, path = request_
    app.test_client().open(path, method=method)

    wait_until(lambda: are_done(endpoint.store, "evt_1"))
    assert len(background_threads()) == 1


def test_request_answered_by_before_request_starts_the_thread(
    make_app: MakeApp, webhooks: ProcoreWebhooks
) -> None:
    """A login check may answer every request except deliveries."""
    app = make_app(TESTING=False)
    app.before_request(lambda: ("log in", 401))
    app.register_blueprint(webhooks)
    webhooks.on()(lambda event: None)
    (endpoint,) = endpoints(app).values()
    record(endpoint.store, "evt_1")
    assert app.test_client().get("/").status_code == 401
    wait_until(lambda: are_done(endpoint.store, "evt_1"))


def test_many_requests_at_once_start_no_more_than_the_threads(
    app: Flask, endpoint: Endpoint, webhooks: ProcoreWebhooks
) -> None:
    webhooks.on()(lambda event: None)
    barrier = threading.Barrier(16)

    def get() -> None:
        barrier.wait(PATIENCE)
        app.test_client().get("/page")

    threads = [threading.Thread(target=get) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert 1 <= len(background_threads()) <= 4


@pytest.mark.parametrize(
    "config",
    [{"TESTING": True}, {"PROCORE_WEBHOOK_DISPATCH": "worker"}],
    ids=["inline", "worker"],
)
def test_no_thread_is_started_for_other_dispatch_modes(
    make_app: MakeApp, webhooks: ProcoreWebhooks, config: dict[str, Any]
) -> None:
    app = make_app(**{"TESTING": False, **config})
    app.register_blueprint(webhooks)
    webhooks.on()(lambda event: None)
    (endpoint,) = endpoints(app).values()
    record(endpoint.store, "evt_left")
    app.test_client().get("/")
    assert send(app, "evt_1") == 200
    assert not background_threads()
    # Inline runs the delivered event; other events wait for their redelivery.
    done_now = "done" if config.get("TESTING") else "pending"
    assert statuses(endpoint.store) == {"evt_left": "pending", "evt_1": done_now}


def test_slow_subscribers_run_in_up_to_as_many_threads(
    make_app: MakeApp, webhooks: ProcoreWebhooks
) -> None:
    app = make_app(TESTING=False, PROCORE_WEBHOOK_THREADS=3)
    app.register_blueprint(webhooks)
    (endpoint,) = endpoints(app).values()
    go_on, running = threading.Event(), []

    @webhooks.on()
    def slow(event: Event) -> None:
        running.append(threading.current_thread())
        assert go_on.wait(PATIENCE)

    for number in range(5):
        assert send(app, f"evt_{number}") == 200
    wait_until(lambda: len(running) == 3)
    assert set(running) == set(background_threads())
    assert len(background_threads()) == 3
    go_on.set()
    wait_until(lambda: are_done(endpoint.store, *(f"evt_{n}" for n in range(5))))


def test_backlog_starts_threads_without_further_deliveries(
    make_app: MakeApp, webhooks: ProcoreWebhooks
) -> None:
    app = make_app(TESTING=False, PROCORE_WEBHOOK_THREADS=2)
    app.register_blueprint(webhooks)
    (endpoint,) = endpoints(app).values()
    go_on = threading.Event()

    @webhooks.on()
    def hangs_once(event: Event) -> None:
        if event.id == "evt_0":
            assert go_on.wait(PATIENCE)

    ids = [f"evt_{number}" for number in range(5)]
    record(endpoint.store, *ids)
    app.test_client().get("/")
    wait_until(lambda: are_done(endpoint.store, *ids[1:]))
    assert statuses(endpoint.store)["evt_0"] == "running"
    go_on.set()
    wait_until(lambda: are_done(endpoint.store, *ids))


def test_threads_are_started_apart_from_the_context_of_the_request(
    app: Flask,
    endpoint: Endpoint,
    webhooks: ProcoreWebhooks,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Error reporters attach the context in which a thread was started."""
    seen: dict[str, bool] = {}
    start = threading.Thread.start

    def note(self: threading.Thread) -> None:
        seen[self.name] = has_request_context()
        start(self)

    webhooks.on()(lambda event: None)
    monkeypatch.setattr(threading.Thread, "start", note)
    assert send(app, "evt_1") == 200
    wait_until(lambda: are_done(endpoint.store, "evt_1"))
    assert seen["procore webhooks"] is False
    assert not any(seen.values())


# Due events


def test_event_of_a_crashed_process_is_run_after_its_lease(
    app: Flask, endpoint: Endpoint, webhooks: ProcoreWebhooks
) -> None:
    ran = []
    webhooks.on()(lambda event: ran.append((event.id, event.attempt)))
    record(endpoint.store, "evt_1")
    record(endpoint.store, "evt_2")
    assert len(batches.claim_due(endpoint.store, 2, 1.0)) == 2
    record(endpoint.store, "evt_new")

    app.test_client().get("/page")

    wait_until(lambda: are_done(endpoint.store, "evt_1", "evt_2", "evt_new"))
    # Claims that ended without an outcome are no attempts.
    assert sorted(ran) == [("evt_1", 1), ("evt_2", 1), ("evt_new", 1)]
    assert ran[0] == ("evt_new", 1)


def test_retry_runs_when_it_is_due_without_a_new_delivery(
    app: Flask, endpoint: Endpoint, webhooks: ProcoreWebhooks
) -> None:
    times = []

    @webhooks.on()
    def fails_twice(event: Event) -> None:
        times.append(time.monotonic())
        if len(times) == 1:
            raise RetryLater(after=0.7)
        if event.attempt == 1:
            raise ValueError("the tracker is down")

    assert send(app, "evt_1") == 200
    wait_until(lambda: are_done(endpoint.store, "evt_1"))
    assert len(times) == 3
    assert times[1] - times[0] > 0.6


def test_new_delivery_wakes_the_sleeping_thread(
    app: Flask, endpoint: Endpoint, webhooks: ProcoreWebhooks
) -> None:
    """Without a wake-up the thread would poll after ``POLL``, half a minute."""
    webhooks.on()(lambda event: None)
    app.test_client().get("/page")
    for number in range(5):
        Statements(endpoint).wait(0.2)
        assert send(app, f"evt_{number}") == 200
        wait_until(lambda n=number: are_done(endpoint.store, f"evt_{n}"), 20)


class Statements:
    """Counts the statements of an endpoint's engine."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.count = 0
        engine = endpoint.store.database.engine
        sa.event.listen(engine, "before_cursor_execute", self._add)

    def _add(self, *_: object) -> None:
        self.count += 1

    def wait_for(self, number: int) -> None:
        """Return after ``number`` more statements."""
        start = self.count
        wait_until(lambda: self.count >= start + number)

    def wait(self, seconds: float) -> None:
        """Return after a pause of ``seconds`` without a statement."""
        deadline, before = time.monotonic() + PATIENCE, -1
        while before != self.count:
            assert time.monotonic() < deadline, "it is asked all the time"
            before = self.count
            time.sleep(seconds)


def _nothing(endpoint: Endpoint) -> None: ...


def _paused(endpoint: Endpoint) -> None:
    record(endpoint.store, "evt_1")
    pause(endpoint.store, "test")


def _due_later(endpoint: Endpoint) -> None:
    record(endpoint.store, "evt_1")
    (claim,) = batches.claim_due(endpoint.store, 1, 60)
    later = endpoint.store.db_now() + timedelta(hours=1)
    claims.settle(endpoint.store, claim, Settlement(Status.PENDING, due_at=later))


def _run_by_another(endpoint: Endpoint) -> None:
    record(endpoint.store, "evt_1")
    batches.claim_due(endpoint.store, 1, 3600)


@pytest.mark.parametrize("prepare", [_nothing, _paused, _due_later, _run_by_another])
def test_idle_thread_sends_no_queries(
    app: Flask, endpoint: Endpoint, prepare: Callable[[Endpoint], None]
) -> None:
    prepare(endpoint)
    statements = Statements(endpoint)
    app.test_client().get("/page")
    wait_until(lambda: statements.count)
    statements.wait(0.8)
    assert len(background_threads()) == 1
    assert set(statuses(endpoint.store).values()) <= {"pending", "running"}


def test_pause_stops_one_endpoint_and_resume_is_seen_at_the_next_poll(
    make_app: MakeApp,
) -> None:
    app = make_app(TESTING=False, PRUDRA_WEBHOOK_SECRET="another of the test suite")
    procore, prudra = ProcoreWebhooks(), PrudraWebhooks()
    for webhooks in (procore, prudra):
        webhooks.on(name=webhooks.name)(lambda event: None)
        app.register_blueprint(webhooks)
    held, free = endpoints(app).values()
    pause(held.store, "test")
    for number in range(3):
        assert send(app, f"evt_{number}", "procore_webhooks") == 200
        assert send(app, f"evt_{number}", "prudra_webhooks") == 200
    ids = list(statuses(free.store))

    wait_until(lambda: are_done(free.store, *ids))
    assert set(statuses(held.store).values()) == {"pending"}
    resume(held.store, "test")
    # A delivery wakes the thread for every endpoint.
    assert send(app, "evt_more", "prudra_webhooks") == 200
    wait_until(lambda: are_done(held.store, *statuses(held.store)))


def test_event_without_notification_is_found_by_polling(
    endpoint: Endpoint, webhooks: ProcoreWebhooks
) -> None:
    """Another process has recorded the event and ended before its run."""
    webhooks.on()(lambda event: None)
    worker = CountingWorker([endpoint], poll=0.1)
    with running(worker) as (thread,):
        record(endpoint.store, "evt_1")
        wait_until(lambda: are_done(endpoint.store, "evt_1"))
        pause(endpoint.store, "test")
        look_again(worker)
        record(endpoint.store, "evt_2")
        look_again(worker)
        assert statuses(endpoint.store)["evt_2"] == "pending"
        resume(endpoint.store, "test")
        wait_until(lambda: are_done(endpoint.store, "evt_2"))
    assert not thread.is_alive()
    assert worker.ran == 2


@pytest.mark.usefixtures("whole_batches")
def test_stopped_worker_releases_queued_claims(
    endpoint: Endpoint, webhooks: ProcoreWebhooks
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    ran = []

    @webhooks.on()
    def stalls(event: Event) -> None:
        ran.append(event.id)
        if len(ran) > 7:
            begun.set()
            assert go_on.wait(PATIENCE)

    # Each batch is twice as large as the batch before: 1, 2, 4, 8.
    ids = [f"evt_{number:02}" for number in range(15)]
    for id in ids:
        record(endpoint.store, id)
    worker = Worker([endpoint], poll=30)
    with running(worker) as (thread,):
        assert begun.wait(PATIENCE)
        assert list(statuses(endpoint.store).values()).count("running") > 1
        worker.stop()
        go_on.set()
        thread.join(PATIENCE)
    assert sorted(set(statuses(endpoint.store).values())) == ["done", "pending"]
    assert are_done(endpoint.store, *ran)
    begun_before = len(ran)
    assert begun_before < 15
    assert Worker([endpoint], poll=30).run_all() == 15 - begun_before
    assert are_done(endpoint.store, *ids)
    assert sorted(ran) == ids


# Subscribers


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), BaseException("no")]
)
def test_system_exit_in_a_subscriber_ends_only_its_run(
    make_app: MakeApp,
    webhooks: ProcoreWebhooks,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
) -> None:
    app = make_app(
        TESTING=False,
        PROCORE_WEBHOOK_RETRY_BASE=0.01,
        PROCORE_WEBHOOK_MAX_ATTEMPTS=3,
    )
    app.register_blueprint(webhooks)
    (endpoint,) = endpoints(app).values()
    attempts = []

    @webhooks.on()
    def ends(event: Event) -> None:
        if event.id == "evt_bad":
            attempts.append(event.attempt)
            raise error

    assert send(app, "evt_bad") == 200
    assert send(app, "evt_good") == 200

    wait_until(
        lambda: statuses(endpoint.store) == {"evt_bad": "dead", "evt_good": "done"}
    )
    assert attempts == [1, 2, 3]
    assert 1 <= len(background_threads()) <= 4
    assert type(error).__name__ in caplog.text


def test_one_endpoint_runs_inline_beside_one_in_the_background(
    make_app: MakeApp,
) -> None:
    app = make_app(
        TESTING=False,
        PROCORE_WEBHOOK_DISPATCH="inline",
        PRUDRA_WEBHOOK_SECRET="another of the test suite",
    )
    runs_in: dict[str, threading.Thread] = {}
    for webhooks in (ProcoreWebhooks(), PrudraWebhooks()):

        @webhooks.on(name=webhooks.name)
        def note(event: Event) -> None:
            runs_in[event.endpoint] = threading.current_thread()

        app.register_blueprint(webhooks)
    inline, background = endpoints(app).values()
    (left,) = record(inline.store, "evt_left")

    assert send(app, "evt_1", "procore_webhooks") == 200
    assert statuses(inline.store)["evt_1"] == "done"
    assert send(app, "evt_2", "prudra_webhooks") == 200
    wait_until(lambda: "done" in statuses(background.store).values())

    assert runs_in["procore_webhooks"] is threading.current_thread()
    assert runs_in["prudra_webhooks"] in background_threads()
    # An inline endpoint's event waits for its redelivery, not for the thread.
    assert due.status_of(inline.store, left) == "pending"


def test_two_apps_of_a_process_have_threads_of_their_own(
    make_app: MakeApp, webhooks: ProcoreWebhooks
) -> None:
    """A slow subscriber of one app does not delay events of the other app."""
    go_on = threading.Event()
    runs_in: dict[str, threading.Thread] = {}

    @webhooks.on()
    def note(event: Event) -> None:
        runs_in[event.id] = threading.current_thread()
        if event.id == "evt_1":
            assert go_on.wait(PATIENCE)

    apps = [make_app(TESTING=False) for _ in range(2)]
    for number, app in enumerate(apps, 1):
        app.register_blueprint(webhooks)
        assert send(app, f"evt_{number}") == 200
        wait_until(lambda id=f"evt_{number}": id in runs_in)
    first, second = (next(iter(endpoints(app).values())) for app in apps)
    wait_until(lambda: are_done(second.store, "evt_2"))
    assert statuses(first.store) == {"evt_1": "running"}
    go_on.set()
    wait_until(lambda: are_done(first.store, "evt_1"))
    assert set(runs_in.values()) <= set(background_threads())
    assert len(set(runs_in.values())) == 2


def test_subscriber_may_deliver_to_its_own_endpoint(
    app: Flask, endpoint: Endpoint, webhooks: ProcoreWebhooks
) -> None:
    answers = []

    @webhooks.on()
    def delivers(event: Event) -> None:
        number = int(event.id.removeprefix("evt_"))
        if number < 3:
            answers.append(send(app, f"evt_{number + 1}"))

    assert send(app, "evt_1") == 200
    wait_until(lambda: are_done(endpoint.store, "evt_1", "evt_2", "evt_3"))
    assert answers == [200, 200]
    assert 1 <= len(background_threads()) <= 4


def test_subscriber_may_start_threads(
    app: Flask, endpoint: Endpoint, webhooks: ProcoreWebhooks
) -> None:
    found = []

    @webhooks.on()
    def starts_threads(event: Event) -> None:
        def work() -> None:
            with app.app_context():
                found.append(due.status_of(endpoint.store, 1))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)

    assert send(app, "evt_1") == 200
    wait_until(lambda: are_done(endpoint.store, "evt_1"))
    assert found == ["running"] * 4


# Servers that cannot run threads


def test_failure_to_start_a_thread_is_logged(
    app: Flask,
    endpoint: Endpoint,
    webhooks: ProcoreWebhooks,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    webhooks.on()(lambda event: None)

    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as without_threads:
        without_threads.setattr(threading.Thread, "start", start)
        assert app.test_client().get("/page").status_code == 200
        assert send(app, "evt_1") == 200
    said = [each for each in caplog.records if "no thread can be" in each.getMessage()]
    assert {each.levelname for each in said} == {"ERROR"}
    assert "(can't start new thread)" in said[0].getMessage()
    assert "flask procore-webhooks worker" in said[0].getMessage()
    assert statuses(endpoint.store) == {"evt_1": "pending"}

    # The next delivery starts the thread, once threads can start again.
    assert send(app, "evt_2") == 200
    wait_until(lambda: are_done(endpoint.store, "evt_1", "evt_2"))


@pytest.mark.parametrize(
    ("options", "warns"),
    [
        ({}, True),
        ({"http": b":8000", "processes": b"2"}, True),
        ({"enable-threads": True}, False),
        ({"threads": b"2"}, False),
    ],
)
def test_uwsgi_without_threads_is_reported_at_registration(
    make_app: MakeApp,
    webhooks: ProcoreWebhooks,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    warns: bool,
) -> None:
    uwsgi = types.ModuleType("uwsgi")
    uwsgi.opt = options  # type: ignore[attr-defined]
    uwsgi.worker_id = lambda: 0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "uwsgi", uwsgi)
    make_app(TESTING=False).register_blueprint(webhooks)
    assert ("uWSGI without enable-threads" in caplog.text) == warns


@pytest.mark.parametrize("config", [{"TESTING": True}, {"DISPATCH": "worker"}])
def test_uwsgi_without_threads_is_accepted_for_other_dispatch_modes(
    make_app: MakeApp,
    webhooks: ProcoreWebhooks,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    config: dict[str, Any],
) -> None:
    monkeypatch.setitem(sys.modules, "uwsgi", types.ModuleType("uwsgi"))
    dispatch = config.get("DISPATCH")
    testing = config.get("TESTING", False)
    app = make_app(TESTING=testing, PROCORE_WEBHOOK_DISPATCH=dispatch)
    app.register_blueprint(webhooks)
    assert not caplog.messages


# Unreachable databases


@pytest.fixture
def relay(postgresql_url: str) -> Iterator[Relay]:
    relay = Relay(postgresql_url)
    yield relay
    relay.cut()
    drop_tables(postgresql_url)


@pytest.fixture
def relayed_app(
    relay: Relay, make_app: MakeApp, webhooks: ProcoreWebhooks
) -> Iterator[Flask]:
    """An app whose database URL has a password and leads through a relay."""
    url = sa.make_url(relay.url)
    url = url.set(password=url.password or "the password")
    app = make_app(
        TESTING=False,
        PROCORE_WEBHOOK_THREADS=1,
        PROCORE_WEBHOOK_DATABASE_URI=url.render_as_string(hide_password=False),
    )
    app.register_blueprint(webhooks)
    yield app
    stop_all()
    (endpoint,) = endpoints(app).values()
    endpoint.store.database.engine.dispose()


def test_thread_continues_after_a_database_outage(
    relayed_app: Flask,
    relay: Relay,
    webhooks: ProcoreWebhooks,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ran = []

    @webhooks.on()
    def postpones(event: Event) -> None:
        ran.append(event.attempt)
        if len(ran) == 1:
            raise RetryLater(after=1)

    (endpoint,) = endpoints(relayed_app).values()
    assert send(relayed_app, "evt_1") == 200
    wait_until(lambda: statuses(endpoint.store) == {"evt_1": "pending"} and ran)
    relay.cut()
    wait_until(lambda: "Polling again in 1 s" in caplog.text)
    relay.mend()
    wait_until(lambda: are_done(endpoint.store, "evt_1"))

    assert ran == [1, 1]
    assert "the inbox cannot be used" in caplog.text
    for secret in (*_secrets_of(relayed_app), "Traceback"):
        assert secret not in caplog.text


def _secrets_of(app: Flask) -> list[str]:
    password = sa.make_url(app.config["PROCORE_WEBHOOK_DATABASE_URI"]).password
    return [str(password), app.config["PROCORE_WEBHOOK_SECRET"]]


def test_outcome_of_a_run_during_an_outage_is_stored_later(
    relayed_app: Flask,
    relay: Relay,
    webhooks: ProcoreWebhooks,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ran = []

    @webhooks.on()
    def cuts(event: Event) -> None:
        ran.append(event.attempt)
        if len(ran) == 1:
            relay.cut()

    (endpoint,) = endpoints(relayed_app).values()
    assert send(relayed_app, "evt_1") == 200
    wait_until(lambda: "Polling again in" in caplog.text)
    relay.mend()
    wait_until(lambda: are_done(endpoint.store, "evt_1"))
    # The thread has kept the end of the attempt.
    assert ran == [1]


@pytest.mark.slow
def test_wait_after_a_database_error_doubles_up_to_a_limit(
    relayed_app: Flask,
    relay: Relay,
    webhooks: ProcoreWebhooks,
    caplog: pytest.LogCaptureFixture,
) -> None:
    webhooks.on()(lambda event: None)
    (endpoint,) = endpoints(relayed_app).values()
    record(endpoint.store, "evt_1")
    relay.cut()
    relayed_app.test_client().get("/")

    def waits() -> list[str]:
        looks = [m for m in caplog.messages if m.startswith("Polling again")]
        return [look.split()[3] for look in looks]

    wait_until(lambda: len(waits()) >= 6)
    assert waits()[:6] == ["0.5", "1", "2", "4", "8", "15"]
    relay.mend()
    # A delivery shows that the database is reachable, and wakes the thread.
    assert send(relayed_app, "evt_2") == 200
    wait_until(lambda: are_done(endpoint.store, "evt_1", "evt_2"), 10)
    assert len(background_threads()) == 1


@pytest.mark.server
def test_silent_server_does_not_delay_another_inbox(
    app: Flask, endpoint: Endpoint, webhooks: ProcoreWebhooks, make_app: MakeApp
) -> None:
    webhooks.on()(lambda event: None)
    record(endpoint.store, "evt_1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(PATIENCE)
        port = silent.getsockname()[1]
        url = f"postgresql+psycopg://127.0.0.1:{port}/x?connect_timeout=50"
        other = make_app(PROCORE_WEBHOOK_DATABASE_URI=url)
        other.register_blueprint(webhooks)
        (hanging,) = endpoints(other).values()

        def claim() -> None:
            with suppress(InboxUnavailable):
                batches.claim_due(hanging.store, 1, 1)

        thread = threading.Thread(target=claim)
        thread.start()
        silent.settimeout(PATIENCE)
        client, _ = silent.accept()
        app.test_client().get("/page")
        wait_until(lambda: are_done(endpoint.store, "evt_1"), 30)
        assert thread.is_alive()
        client.close()
    thread.join(PATIENCE)


def test_locked_file_is_polled_again(
    app: Flask,
    endpoint: Endpoint,
    webhooks: ProcoreWebhooks,
    caplog: pytest.LogCaptureFixture,
) -> None:
    webhooks.on()(lambda event: None)
    record(endpoint.store, "evt_1")
    url = endpoint.store.database.url
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        app.test_client().get("/page")
        wait_until(lambda: "Polling again in 0.5 s" in caplog.text)
        assert "database is locked" in caplog.text
    engine.dispose()
    wait_until(lambda: are_done(endpoint.store, "evt_1"))


def test_missing_tables_are_logged_and_polled_again(
    app: Flask,
    endpoint: Endpoint,
    webhooks: ProcoreWebhooks,
    caplog: pytest.LogCaptureFixture,
) -> None:
    webhooks.on()(lambda event: None)
    tables = endpoint.store.database.tables
    for table in tables:
        table.drop(endpoint.store.database.engine)
    app.test_client().get("/page")
    wait_until(lambda: "Polling again" in caplog.text)
    assert "missing tables" in caplog.text
    endpoint.store.database.create_tables()
    record(endpoint.store, "evt_1")
    wait_until(lambda: are_done(endpoint.store, "evt_1"))


# Leases


def test_process_exit_releases_a_run_that_exceeds_the_grace(
    app: Flask, endpoint: Endpoint, webhooks: ProcoreWebhooks
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    @webhooks.on()
    def stalls(event: Event) -> None:
        begun.set()
        assert go_on.wait(PATIENCE)

    assert send(app, "evt_1") == 200
    assert begun.wait(PATIENCE)
    stop_all(grace=0.1)
    assert statuses(endpoint.store) == {"evt_1": "pending"}
    go_on.set()


def test_no_run_starts_during_process_exit(
    app: Flask, endpoint: Endpoint, webhooks: ProcoreWebhooks
) -> None:
    ran: list[str] = []
    webhooks.on()(lambda event: ran.append(event.id))
    assert app.test_client().get("/").status_code == 404
    stop_all()
    before = background_threads()
    assert send(app, "evt_1") == 200
    assert set(background_threads()) <= set(before)
    assert (ran, statuses(endpoint.store)) == ([], {"evt_1": "pending"})


@pytest.fixture
def short_lease(make_app: MakeApp, webhooks: ProcoreWebhooks) -> Flask:
    app = make_app(TESTING=False, PROCORE_WEBHOOK_LEASE=9)
    app.register_blueprint(webhooks)
    return app


def test_lease_is_renewed_during_a_long_run(
    short_lease: Flask, webhooks: ProcoreWebhooks, caplog: pytest.LogCaptureFixture
) -> None:
    go_on, ran = threading.Event(), []

    @webhooks.on()
    def stalls(event: Event) -> None:
        ran.append(event.attempt)
        assert go_on.wait(PATIENCE)

    (endpoint,) = endpoints(short_lease).values()
    assert send(short_lease, "evt_1") == 200
    wait_until(lambda: ran)
    found = queries.find(endpoint.store, "evt_1")
    assert found
    first_end = found["due_at"]

    def is_renewed() -> bool:
        row = queries.find(endpoint.store, "evt_1")
        return row is not None and (row["due_at"] - first_end).total_seconds() > 1

    wait_until(is_renewed)
    # The renewal fails while the file is locked.
    engine = sa.create_engine(endpoint.store.database.url)
    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        wait_until(
            lambda: "Leases are not renewed: the inbox cannot be used: " in caplog.text
        )
    engine.dispose()
    go_on.set()
    wait_until(lambda: are_done(endpoint.store, "evt_1"))
    assert ran == [1]


def test_runs_keep_their_initial_lease_without_a_renewal_thread(
    make_app: MakeApp,
    webhooks: ProcoreWebhooks,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = make_app()
    app.register_blueprint(webhooks)
    webhooks.on()(lambda event: None)

    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert send(app, "evt_1") == 200
    assert "Leases are not renewed: can't start new thread" in caplog.text
    (endpoint,) = endpoints(app).values()
    assert are_done(endpoint.store, "evt_1")
