"""Work signals run subscribers; lifecycle signals call receivers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from flask import current_app
from flask import Flask
from flask import g
from flask import has_app_context
from support.inboxes import attempts
from support.inboxes import states

from flask_procore_webhooks import Event
from flask_procore_webhooks import event_dead
from flask_procore_webhooks import event_failed
from flask_procore_webhooks import event_processed
from flask_procore_webhooks import event_recorded
from flask_procore_webhooks import event_repeated
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import resource_created
from flask_procore_webhooks import resource_deleted
from flask_procore_webhooks import resource_event
from flask_procore_webhooks import resource_updated
from flask_procore_webhooks import RetryLater
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.inbox import queries
from flask_procore_webhooks.running.worker import Worker
from flask_procore_webhooks.signals import delivery_rejected
from flask_procore_webhooks.signals import LifecycleSignal
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import drain
from flask_procore_webhooks.testing import payload

MakeApp = Callable[..., Flask]

LIFECYCLE = (
    event_recorded,
    event_repeated,
    event_processed,
    event_failed,
    event_dead,
    delivery_rejected,
)


# Work signals


@pytest.mark.parametrize(
    ("type", "format", "fired"),
    [
        ("RFIs.create", "v2", ["event", "created"]),
        ("RFIs.update", "v3", ["event", "updated"]),
        ("RFIs.delete", "v4", ["event", "deleted"]),
        ("resource.created", "signed", ["event", "created"]),
        ("resource.updated", "signed", ["event", "updated"]),
        ("resource.deleted", "signed", ["event", "deleted"]),
        ("RFIs.CREATE", "v4", ["event", "created"]),
        ("Document Upload.CREATED", "v4", ["event", "created"]),
        ("Document Upload.Deleted", "v2", ["event", "deleted"]),
        ("Document Upload.Updated", "signed", ["event", "updated"]),
        ("Document Upload.COMPLETED", "v4", ["event"]),
        ("RFIs.approve", "v4", ["event"]),
        ("payment.received", "signed", ["event"]),
        ("ping", "signed", ["event"]),
    ],
)
def test_reason_decides_which_work_signals_fire(
    app: Flask, type: str, format: str, fired: list[str]
) -> None:
    calls: list[str] = []
    signals = {
        "event": resource_event,
        "created": resource_created,
        "updated": resource_updated,
        "deleted": resource_deleted,
    }
    for name, signal in signals.items():
        signal.connect(lambda app, event, n=name: calls.append(n), name=f"on-{name}")

    assert deliver(app.test_client(), payload(type, format=format)).status_code == 200
    assert calls == fired


def test_receiver_is_called_with_the_app_and_the_event(app: Flask) -> None:
    calls = []

    @resource_event.connect
    def receiver(app: Flask, event: Event) -> None:
        calls.append((app, event.id))

    event = payload("RFIs.update")
    deliver(app.test_client(), event)

    assert calls == [(app, event["id"])]


def test_connect_via_makes_a_subscriber_of_one_app(
    make_app: MakeApp, webhooks: ProcoreWebhooks
) -> None:
    calls = []
    apps = [make_app(), make_app()]
    for app in apps:
        app.register_blueprint(webhooks)

    @resource_event.connect_via(apps[0])
    def of_the_first(app: Flask, event: Event) -> None:
        calls.append("of the first")
        assert app is apps[0]

    @resource_event.connect_via(apps[1], name="renamed")
    def of_the_second(app: Flask, event: Event) -> None:
        calls.append("of the second")
        assert app is apps[1]

    @resource_event.connect
    def of_both(app: Flask, event: Event) -> None:
        calls.append("of both")

    for app in apps:
        assert deliver(app.test_client(), payload("RFIs.update")).status_code == 200

    assert calls == ["of the first", "of both", "of the second", "of both"]


def test_one_function_may_be_connected_for_several_apps(
    make_app: MakeApp, webhooks: ProcoreWebhooks
) -> None:
    calls = []
    apps = [make_app(), make_app(), make_app()]

    def receiver(app: Flask, event: Event) -> None:
        calls.append(apps.index(app))

    for app in apps:
        app.register_blueprint(webhooks)
    for app in apps[:2]:
        resource_event.connect(receiver, app)
    resource_event.disconnect(receiver, apps[0])

    for app in apps:
        deliver(app.test_client(), payload("RFIs.update"))
    assert calls == [1]


def test_factory_scopes_its_closures_to_its_own_app(
    make_app: MakeApp, webhooks: ProcoreWebhooks
) -> None:
    """Closures of one definition stay separate for each app."""
    calls = []

    def create_app(number: int) -> Flask:
        app = make_app()
        app.register_blueprint(webhooks)

        @resource_event.connect_via(app)
        def receiver(app: Flask, event: Event) -> None:
            calls.append(number)

        return app

    apps = [create_app(number) for number in range(3)]
    for app in apps:
        deliver(app.test_client(), payload("RFIs.update"))

    assert calls == [0, 1, 2]


def test_function_connected_twice_runs_once(app: Flask) -> None:
    calls = []

    def receiver(app: Flask, event: Event) -> None:
        calls.append(event.id)

    for _ in range(3):
        resource_event.connect(receiver)
    resource_event.connect(receiver, app)

    deliver(app.test_client(), payload("RFIs.update"))
    assert len(calls) == 1


def test_function_may_be_connected_under_two_names(
    app: Flask, endpoint: Endpoint
) -> None:
    """Replacing the function under one name keeps it under the other name."""
    calls = []

    def make(number: int) -> Callable[..., None]:
        def receiver(app: Flask, event: Event) -> None:
            calls.append(number)

        return receiver

    first, second = make(1), make(2)
    resource_event.connect(first, name="one-name")
    resource_event.connect(first, name="another")
    resource_event.connect(second, name="one-name")

    deliver(app.test_client(), payload("RFIs.update"))
    (row,) = queries.newest(endpoint.store)
    found = states(endpoint.store, row["event_id"])
    assert found == {"another": "done", "one-name": "done"}
    assert sorted(calls) == [1, 2]


def test_disconnected_receiver_is_not_run(app: Flask) -> None:
    calls = []

    @resource_event.connect
    def gone(app: Flask, event: Event) -> None:
        calls.append("gone")

    @resource_event.connect
    def stays(app: Flask, event: Event) -> None:
        calls.append("stays")

    resource_event.disconnect(gone)
    deliver(app.test_client(), payload("RFIs.update"))
    resource_event.connect(gone)
    deliver(app.test_client(), payload("RFIs.update"))

    assert calls == ["stays", "stays", "gone"]


def test_disconnecting_an_unknown_receiver_does_nothing(app: Flask) -> None:
    resource_event.disconnect(print)
    resource_event.disconnect(print, app)
    assert deliver(app.test_client(), payload("RFIs.update")).status_code == 200


def test_connected_to_lasts_as_long_as_its_block(
    make_app: MakeApp, webhooks: ProcoreWebhooks
) -> None:
    calls = []
    apps = [make_app(), make_app()]
    for app in apps:
        app.register_blueprint(webhooks)

    def receiver(app: Flask, event: Event) -> None:
        calls.append(apps.index(app))

    def deliver_to_both() -> None:
        for app in apps:
            deliver(app.test_client(), payload("RFIs.update"))

    with resource_event.connected_to(receiver):
        deliver_to_both()
    with resource_event.connected_to(receiver, apps[1]):
        deliver_to_both()
    deliver_to_both()

    assert calls == [0, 1, 1]


def test_work_signal_sent_by_hand_calls_its_receivers_in_order(app: Flask) -> None:
    """A host's test may send a work signal; blinker's own order is undefined."""
    calls: list[int] = []
    for number in range(30):
        sender = {"sender": app} if number % 2 else {}
        resource_event.connect(
            lambda app, event, n=number: calls.append(n),
            name=f"in-order-{number}",
            **sender,
        )

    resource_event.send(app, event=Event("evt_1", "RFIs.update"))

    everyone, of_the_app = range(0, 30, 2), range(1, 30, 2)
    assert calls == [*everyone, *of_the_app]


def test_muted_work_signal_runs_no_subscribers(app: Flask) -> None:
    calls = []
    resource_event.connect(lambda app, event: calls.append("event"), name="of-event")
    resource_created.connect(
        lambda app, event: calls.append("created"), name="of-created"
    )

    with resource_created.muted():
        deliver(app.test_client(), payload("RFIs.create"))
    deliver(app.test_client(), payload("RFIs.create"))

    assert calls == ["event", "event", "created"]


# Lifecycle signals


class Watch:
    """Records each lifecycle signal with the event's row at that moment."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.seen: list[tuple[str, dict[str, Any], dict[str, Any] | None]] = []
        for signal in LIFECYCLE:
            signal.connect(self._receiver(signal.name))

    def _receiver(self, name: str) -> Callable[..., None]:
        def receiver(app: Flask, **fields: Any) -> None:
            assert app is self.endpoint.app
            event = fields.get("event")
            row = event and queries.find(self.endpoint.store, event.id)
            self.seen.append((name, fields, row and dict(row)))

        return receiver

    @property
    def names(self) -> list[str]:
        return [name for name, _, _ in self.seen]


@pytest.fixture
def watch(endpoint: Endpoint) -> Watch:
    return Watch(endpoint)


def test_successful_event_sends_recorded_and_processed(
    app: Flask, watch: Watch, webhooks: ProcoreWebhooks
) -> None:
    @webhooks.on()
    def subscriber(event: Event) -> None:
        watch.seen.append(("subscriber", {}, None))

    sent = payload("RFIs.update")
    deliver(app.test_client(), sent)

    assert watch.names == ["event-recorded", "subscriber", "event-processed"]
    (_, recorded, before), _, (_, processed, after) = watch.seen
    assert list(recorded) == list(processed) == ["event"]
    assert (recorded["event"].id, recorded["event"].attempt) == (sent["id"], 0)
    assert (processed["event"].id, processed["event"].attempt) == (sent["id"], 1)
    assert recorded["event"].endpoint == processed["event"].endpoint
    assert before and before["status"] == "pending"
    assert after and after["status"] == "done"


def test_event_repeated_reports_a_conflicting_body(app: Flask, watch: Watch) -> None:
    first = payload("RFIs.update", id="evt_1", resource_id=1)
    other = payload("RFIs.update", id="evt_1", resource_id=2)
    for each in (first, first, other, first):
        deliver(app.test_client(), each)

    repeats = [fields for name, fields, _ in watch.seen if name == "event-repeated"]
    assert watch.names.count("event-recorded") == 1
    assert [fields["conflict"] for fields in repeats] == [False, True, False]
    assert [fields["event"].resource_id for fields in repeats] == ["1", "2", "1"]
    assert all(list(fields) == ["event", "conflict"] for fields in repeats)


def test_each_failure_sends_event_failed_and_the_last_event_dead(
    make_app: MakeApp, webhooks: ProcoreWebhooks
) -> None:
    app = make_app(PROCORE_WEBHOOK_MAX_ATTEMPTS=3)
    app.register_blueprint(webhooks)
    (endpoint,) = endpoints(app).values()
    watch = Watch(endpoint)

    postponed: list[Event] = []

    @webhooks.on(name="fails")
    def fails(event: Event) -> None:
        if event.attempt == 2 and not postponed:
            postponed.append(event)
            raise RetryLater(5)
        raise ValueError("broken")

    sent = payload("RFIs.update")
    answers = [deliver(app.test_client(), sent).status_code for _ in range(2)]
    # A postponed job is no failure, and waits for its time.
    assert (answers, len(postponed)) == ([500, 200], 1)
    assert drain(app, advance=5) == 1
    answers = [deliver(app.test_client(), sent).status_code]

    told = [each for each in watch.seen if each[0] in ("event-failed", "event-dead")]
    assert answers == [200]
    assert [(name, row and row["status"]) for name, _, row in told] == [
        ("event-failed", "pending"),
        ("event-failed", "pending"),
        ("event-dead", "dead"),
    ]
    assert [fields["error"] for _, fields, _ in told] == [
        "fails: ValueError: broken",
        "fails: ValueError: broken",
        "fails: ValueError: broken",
    ]
    assert [fields["event"].attempt for _, fields, _ in told] == [1, 2, 3]
    names = ["event", "error", "exception"]
    assert all(list(fields) == names for _, fields, _ in told)
    assert [repr(fields["exception"]) for _, fields, _ in told] == [
        "ValueError('broken')",
        "ValueError('broken')",
        "ValueError('broken')",
    ]
    assert "event-processed" not in watch.names


def test_unreadable_body_sends_recorded_and_dead(app: Flask, watch: Watch) -> None:
    timestamp = int(_now(watch))
    for _ in range(2):
        deliver(app.test_client(), b"[1, 2]", timestamp=timestamp)

    assert watch.names == ["event-recorded", "event-dead", "event-repeated"]
    _, fields, row = watch.seen[1]
    assert fields["error"] == "the JSON is not an object"
    assert fields["event"].body == b"[1, 2]"
    assert row and (row["status"], row["error"]) == ("quarantined", fields["error"])


def test_ignored_event_sends_only_recorded(
    make_app: MakeApp, webhooks: ProcoreWebhooks
) -> None:
    app = make_app(PROCORE_WEBHOOK_IGNORE_USER_IDS=["42"])
    app.register_blueprint(webhooks)
    (endpoint,) = endpoints(app).values()
    watch = Watch(endpoint)

    deliver(app.test_client(), payload("RFIs.update", user_id=42))

    assert watch.names == ["event-recorded"]
    assert watch.seen[0][2] and watch.seen[0][2]["status"] == "ignored"


def test_delivery_rejected_has_status_and_reason(
    app: Flask, endpoint: Endpoint, watch: Watch
) -> None:
    forged = {"X-Procore-Signature": "0" * 64}
    sent = payload("RFIs.update")

    assert deliver(app.test_client(), sent, headers=forged).status_code == 401
    assert deliver(app.test_client(), b" " * (1024 * 1024 + 1)).status_code == 413
    endpoint.store.columns.id.table.drop(endpoint.store.database.engine)
    assert deliver(app.test_client(), sent).status_code == 503

    assert watch.names == ["delivery-rejected"] * 3
    told = [fields for _, fields, _ in watch.seen]
    assert all(list(fields) == ["endpoint", "status", "reason"] for fields in told)
    assert [fields["endpoint"] for fields in told] == ["procore_webhooks"] * 3
    assert [fields["status"] for fields in told] == [401, 413, 503]
    assert told[0]["reason"] == "no secret matches"
    assert "MAX_BYTES" in told[1]["reason"]
    assert "missing tables: procore_webhook_event" in told[2]["reason"]


class AsyncReceiver:
    async def __call__(self, app: Flask, **fields: Any) -> None:
        await asyncio.sleep(0)
        raise ValueError("in an async callable")


def _raises(app: Flask, **fields: Any) -> None:
    raise ValueError("in a function")


async def _raises_async(app: Flask, **fields: Any) -> None:
    raise ValueError("in a coroutine")


async def _cancelled(app: Flask, **fields: Any) -> None:
    raise asyncio.CancelledError


def _wrong_arguments() -> None: ...


@pytest.mark.parametrize(
    "receiver",
    [_raises, _raises_async, AsyncReceiver(), _cancelled, _wrong_arguments],
    ids=["function", "coroutine", "async object", "cancelled", "arguments"],
)
def test_lifecycle_receiver_error_is_logged_and_ignored(
    app: Flask,
    endpoint: Endpoint,
    webhooks: ProcoreWebhooks,
    caplog: pytest.LogCaptureFixture,
    receiver: Callable[..., Any],
) -> None:
    for signal in LIFECYCLE:
        signal.connect(receiver)
    watch = Watch(endpoint)

    @webhooks.on()
    def subscriber(event: Event) -> None:
        if event.attempt == 1:
            raise ValueError("not yet")

    sent = payload("RFIs.update")
    forged = {"X-Procore-Signature": "0" * 64}
    answers = [
        deliver(app.test_client(), sent).status_code,
        deliver(app.test_client(), sent).status_code,
        deliver(app.test_client(), b"{").status_code,
        deliver(app.test_client(), sent, headers=forged).status_code,
    ]

    assert answers == [500, 200, 200, 401]
    # Receivers connected after the failing receiver are called too.
    assert watch.names == [
        "event-recorded",
        "event-failed",
        "delivery-rejected",
        "event-repeated",
        "event-processed",
        "event-recorded",
        "event-dead",
        "delivery-rejected",
    ]
    logged = [r for r in caplog.records if r.msg.startswith("A receiver of")]
    assert len(logged) == len(watch.names)
    assert all(record.levelno == logging.ERROR for record in logged)
    assert all("Traceback (most recent call last)" in r.getMessage() for r in logged)


def test_lifecycle_receivers_get_the_fields_that_they_name(
    app: Flask, webhooks: ProcoreWebhooks
) -> None:
    class Reporter:
        def report(self, app: Flask, exception: BaseException | None = None) -> None:
            told.update(exception=exception)

    told: dict[str, Any] = {}
    event_failed.connect(Reporter().report)
    event_failed.connect(lambda app, event, error: told.update(error=error))
    event_failed.connect(lambda app, **fields: told.update(fields=sorted(fields)))
    event_failed.connect(lambda *positional: told.update(positional=positional))
    webhooks.on(name="fails")(lambda event: 1 / 0)

    assert deliver(app.test_client(), payload("RFIs.update")).status_code == 500
    exception = told.pop("exception")
    assert isinstance(exception, ZeroDivisionError)
    assert exception.__traceback__ is not None
    assert told == {
        "error": "fails: ZeroDivisionError: division by zero",
        "fields": ["error", "event", "exception"],
        "positional": (app,),
    }


@pytest.mark.parametrize("signal", LIFECYCLE, ids=lambda signal: signal.name)
def test_lifecycle_receivers_have_an_app_context(
    make_app: MakeApp, signal: LifecycleSignal
) -> None:
    app, other = make_app(), make_app()
    seen: list[tuple[Any, Any]] = []

    @signal.connect
    def receiver(app: Flask, **fields: Any) -> None:
        seen.append((current_app._get_current_object(), g.get("owner")))  # type: ignore[attr-defined]

    signal.announce(app)
    with other.app_context():
        g.owner = "other"
        signal.announce(app)
    with app.app_context():
        g.owner = "mine"
        signal.announce(app)
    assert seen == [(app, None), (app, None), (app, "mine")]
    assert not has_app_context()


def test_receiver_in_a_worker_has_a_context_whose_error_changes_nothing(
    make_app: MakeApp, webhooks: ProcoreWebhooks, caplog: pytest.LogCaptureFixture
) -> None:
    app, seen = make_app(PROCORE_WEBHOOK_DISPATCH="worker"), list[str]()
    app.register_blueprint(webhooks)
    (endpoint,) = endpoints(app).values()
    webhooks.on(name="works")(lambda event: None)

    @event_processed.connect
    def receiver(app: Flask, event: Event) -> None:
        g.fails = True
        seen.append(current_app.name)

    @app.teardown_appcontext
    def teardown(error: BaseException | None) -> None:
        if g.get("fails"):
            raise RuntimeError("in the teardown")

    sent = payload("RFIs.update")
    deliver(app.test_client(), sent)
    assert Worker([endpoint], poll=1).run_due() == 1
    assert seen == [app.name]
    row = queries.find(endpoint.store, sent["id"])
    assert row and row["status"] == "done"
    assert attempts(endpoint.store) == {sent["id"]: 1}
    (logged,) = [m for m in caplog.messages if m.startswith("A receiver of")]
    assert "in the teardown" in logged


@pytest.mark.parametrize("signal", LIFECYCLE, ids=lambda signal: signal.name)
def test_async_lifecycle_receivers_are_awaited(
    app: Flask, signal: LifecycleSignal
) -> None:
    calls = []

    class Receiver:
        async def __call__(self, app: Flask, **fields: Any) -> None:
            await asyncio.sleep(0)
            calls.append("object")

    @signal.connect
    async def receiver(app: Flask, **fields: Any) -> None:
        await asyncio.sleep(0)
        calls.append("function")

    signal.connect(Receiver())
    signal.announce(app)

    assert sorted(calls) == ["function", "object"]


def test_lifecycle_receivers_follow_blinker_semantics(
    make_app: MakeApp, webhooks: ProcoreWebhooks
) -> None:
    calls = []
    apps = [make_app(), make_app()]
    for app in apps:
        app.register_blueprint(webhooks)

    def watch(name: str) -> Callable[..., None]:
        def receiver(app: Flask, **fields: Any) -> None:
            calls.append(name)

        return receiver

    def deliver_to_both() -> list[str]:
        calls.clear()
        for app in apps:
            deliver(app.test_client(), payload("RFIs.update"))
        return sorted(calls)

    # The signal holds its receivers, and equal names do not replace one another.
    event_recorded.connect(watch("every"))
    event_recorded.connect(watch("every"))
    event_recorded.connect_via(apps[0])(watch("first"))
    assert deliver_to_both() == ["every"] * 4 + ["first"]

    with event_recorded.muted():
        assert deliver_to_both() == []

    temporary = watch("temporary")
    with event_recorded.connected_to(temporary, apps[1]):
        assert deliver_to_both().count("temporary") == 1
    assert "temporary" not in deliver_to_both()


def test_weakly_connected_receiver_is_collected_with_its_owner(app: Flask) -> None:
    calls = []

    class Owner:
        def receiver(self, app: Flask, **fields: Any) -> None:
            calls.append(fields)

    owner = Owner()
    event_recorded.connect(owner.receiver, weak=True)
    deliver(app.test_client(), payload("RFIs.update"))
    assert len(calls) == 1
    del owner
    deliver(app.test_client(), payload("RFIs.update"))
    assert len(calls) == 1


def _now(watch: Watch) -> float:
    return watch.endpoint.store.now().timestamp()
