"""Subscribers that run: patterns, order, names and lifetime."""

from __future__ import annotations

import functools
import gc
import importlib
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from flask import Flask
from support.inboxes import states

from flask_procore_webhooks import ConfigError
from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import resource_created
from flask_procore_webhooks import resource_event
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.inbox import queries
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import Deliveries
from flask_procore_webhooks.testing import payload

MakeApp = Callable[..., Flask]


@pytest.fixture
def calls() -> list[str]:
    """A list to which subscribers append their names."""
    return []


@pytest.fixture
def send(app: Flask) -> Callable[..., int]:
    """Deliver an event and run its subscribers."""

    def send(type: str = "RFIs.update", format: str = "v4") -> int:
        event = payload(type, format=format)
        return deliver(app.test_client(), event).status_code

    return send


def names_of_jobs(endpoint: Endpoint) -> list[str]:
    (row,) = queries.newest(endpoint.store)
    return sorted(states(endpoint.store, row["event_id"]))


# Patterns


@pytest.mark.parametrize(
    ("pattern", "type", "runs"),
    [
        ((), "RFIs.update", True),
        (("*", "*"), "RFIs.update", True),
        (("RFIs",), "RFIs.update", True),
        (("RFIs", "*"), "RFIs.delete", True),
        (("*", "update"), "Submittals.update", True),
        (("RFIs", "update"), "RFIs.update", True),
        (("rfis", "UPDATE"), "RFIs.update", True),
        (("Purchase Order Contracts", "create"), "Purchase Order Contracts.create", 1),
        (("STRASSEN", "*"), "Straßen.update", True),
        (("RFIs", "updated"), "RFIs.update", True),
        (("RFIs", "Deleted"), "RFIs.DELETED", True),
        (("Document Upload", "create"), "Document Upload.CREATED", True),
        (("Document Upload", "Completed"), "Document Upload.COMPLETED", True),
        (("RFIs ", "update"), "RFIs.update", False),
        (("RFIs", "update"), "RFIs .update", False),
        (("RFIs", "update"), "RFIs.create", False),
        (("RFIs", "update"), "Submittals.update", False),
        (("RFI", "update"), "RFIs.update", False),
        (("RFIs*", "update"), "RFIs.update", False),
        (("", "update"), "RFIs.update", False),
        (("RFIs", "approved"), "RFIs.approved", True),
    ],
)
def test_pattern_is_a_resource_type_and_a_reason(
    webhooks: ProcoreWebhooks,
    send: Callable[..., int],
    calls: list[str],
    pattern: tuple[str, ...],
    type: str,
    runs: bool,
) -> None:
    @webhooks.on(*pattern)
    def subscriber(event: Event) -> None:
        calls.append("ran")

    assert send(type) == 200
    assert calls == ["ran"] * runs


@pytest.mark.parametrize(
    ("type", "pattern"),
    [
        ("resource.created", ("resource", "create")),
        ("payment.received", ("payment", "received")),
        ("ping", ("ping", "*")),
    ],
)
def test_pattern_matches_events_of_the_signed_envelope(
    webhooks: ProcoreWebhooks,
    send: Callable[..., int],
    calls: list[str],
    type: str,
    pattern: tuple[str, str],
) -> None:
    @webhooks.on(*pattern)
    def subscriber(event: Event) -> None:
        calls.append(event.type)

    assert send(type, format="signed") == 200
    assert calls == [type]


# Order


def test_subscribers_and_receivers_run_in_order_of_registration(
    webhooks: ProcoreWebhooks, send: Callable[..., int], calls: list[str]
) -> None:
    """Subscribers alternate between the blueprint and signals; the third raises."""

    def subscriber(name: str) -> Callable[..., None]:
        def run(*arguments: object) -> None:
            calls.append(name)
            if name == "3":
                raise ValueError("third")

        return run

    webhooks.on(name="1")(subscriber("1"))
    resource_event.connect(subscriber("2"), name="2")
    webhooks.on("RFIs", name="3")(subscriber("3"))
    resource_created.connect(subscriber("4"), name="4")
    webhooks.on("*", "create", name="5")(subscriber("5"))
    resource_event.connect(subscriber("6"), name="6")

    assert send("RFIs.create") == 500
    assert calls == ["1", "2", "3", "4", "5", "6"]


def test_many_receivers_of_one_signal_run_in_order(
    send: Callable[..., int], calls: list[str]
) -> None:
    """So many receivers are not in order by chance in blinker's sets."""
    names = [f"number-{n}" for n in range(30)]
    for name in names:
        resource_event.connect(lambda app, event, n=name: calls.append(n), name=name)

    assert send() == 200
    assert calls == names


# Names


def test_name_is_module_and_qualname(
    webhooks: ProcoreWebhooks, send: Callable[..., int], endpoint: Endpoint
) -> None:
    class Service:
        def method(self, event: Event) -> None: ...

        def __call__(self, event: Event) -> None: ...

    def decorated(event: Event) -> None: ...

    @functools.wraps(decorated)
    def wrapper(event: Event) -> None: ...

    def partly(more: object, event: Event) -> None: ...

    webhooks.on()(Service().method)
    webhooks.on()(Service())
    webhooks.on()(wrapper)
    webhooks.on()(functools.partial(functools.partial(partly), 1))
    send()

    here = f"{__name__}:test_name_is_module_and_qualname.<locals>"
    assert names_of_jobs(endpoint) == [
        f"{here}.Service",
        f"{here}.Service.method",
        f"{here}.decorated",
        f"{here}.partly",
    ]


def test_explicit_name_is_stored_with_its_jobs(
    webhooks: ProcoreWebhooks, send: Callable[..., int], endpoint: Endpoint
) -> None:
    @webhooks.on(name="rfi-sync")
    def subscriber(event: Event) -> None: ...

    resource_event.connect(lambda app, event: None, name="audit")
    send()

    assert names_of_jobs(endpoint) == ["audit", "rfi-sync"]


def test_name_up_to_the_column_size_is_stored_whole(
    webhooks: ProcoreWebhooks, send: Callable[..., int], endpoint: Endpoint
) -> None:
    name = "x" * 190
    webhooks.on(name=name)(lambda event: None)
    send()

    assert names_of_jobs(endpoint) == [name]


def test_names_are_case_sensitive(
    webhooks: ProcoreWebhooks, send: Callable[..., int], endpoint: Endpoint
) -> None:
    webhooks.on(name="sync")(lambda event: None)
    webhooks.on(name="Sync")(lambda event: None)
    send()

    assert names_of_jobs(endpoint) == ["Sync", "sync"]


def _on(webhooks: ProcoreWebhooks, function: Any, name: str) -> None:
    webhooks.on(name=name)(function)


def _signal(webhooks: ProcoreWebhooks, function: Any, name: str) -> None:
    resource_event.connect(function, name=name)


def _other_signal(webhooks: ProcoreWebhooks, function: Any, name: str) -> None:
    resource_created.connect(function, name=name)


@pytest.mark.parametrize("second", [_on, _signal, _other_signal])
@pytest.mark.parametrize("first", [_on, _signal, _other_signal])
def test_second_function_with_a_used_name_is_refused(
    webhooks: ProcoreWebhooks,
    send: Callable[..., int],
    calls: list[str],
    first: Callable[..., None],
    second: Callable[..., None],
) -> None:
    name = f"{first.__name__}-{second.__name__}"
    first(webhooks, lambda *arguments: calls.append("first"), name)

    # Twice: a refusal must not release the name.
    for _ in range(2):
        with pytest.raises(ConfigError, match=f"{name}.*give one of them another"):
            second(webhooks, lambda *arguments: calls.append("second"), name)

    assert send("RFIs.create") == 200
    assert calls == ["first"]


def test_name_of_a_removed_subscriber_can_be_reused(
    webhooks: ProcoreWebhooks, send: Callable[..., int], calls: list[str]
) -> None:
    with resource_event.connected_to(lambda app, event: calls.append("first")):
        send()
    with resource_event.connected_to(lambda app, event: calls.append("second")):
        send()
    send()

    assert calls == ["first", "second"]


def test_two_blueprints_may_use_the_same_subscriber_name(make_app: MakeApp) -> None:
    """The two subscribers never run for the same event."""
    calls = []
    app = make_app(SANDBOX_SECRET="a secret of the sandbox")
    one = ProcoreWebhooks("production")
    two = ProcoreWebhooks("sandbox", url_prefix="/sandbox", config_prefix="SANDBOX_")
    one.on(name="sync")(lambda event: calls.append(f"one {event.endpoint}"))
    two.on(name="sync")(lambda event: calls.append(f"two {event.endpoint}"))
    app.register_blueprint(one)
    app.register_blueprint(two)

    client = app.test_client()
    for endpoint in ("production", "sandbox"):
        assert deliver(client, payload("RFIs.update"), endpoint=endpoint).json

    assert calls == ["one production", "two sandbox"]


# The same function again


def test_function_on_several_patterns_runs_once_for_an_event(
    webhooks: ProcoreWebhooks, send: Callable[..., int], calls: list[str]
) -> None:
    @webhooks.on("RFIs", "create")
    @webhooks.on("RFIs", "update")
    @webhooks.on("*", "update")
    def subscriber(event: Event) -> None:
        calls.append(event.type)

    for type in ("RFIs.create", "RFIs.update", "Submittals.update", "RFIs.delete"):
        assert send(type) == 200

    assert calls == ["RFIs.create", "RFIs.update", "Submittals.update"]


def test_function_on_a_signal_and_on_the_blueprint_runs_once(
    webhooks: ProcoreWebhooks, send: Callable[..., int], calls: list[str]
) -> None:
    def subscriber(*arguments: object) -> None:
        calls.append("once")

    webhooks.on()(subscriber)
    resource_event.connect(subscriber)
    resource_created.connect(subscriber)

    assert send("RFIs.create") == 200
    assert calls == ["once"]


def test_app_factory_may_be_called_many_times(
    make_app: MakeApp, webhooks: ProcoreWebhooks, calls: list[str]
) -> None:
    def create_app(number: int) -> Flask:
        @webhooks.on("RFIs", "update")
        @webhooks.on("RFIs", "create")
        def on_blueprint(event: Event) -> None:
            calls.append(f"on {number}")

        @resource_event.connect
        def on_signal(app: Flask, event: Event) -> None:
            calls.append(f"signal {number}")

        app = make_app()
        app.register_blueprint(webhooks)
        return app

    apps = [create_app(number) for number in (1, 2, 3)]
    for type in ("RFIs.update", "RFIs.create"):
        deliver(apps[-1].test_client(), payload(type))

    assert calls == ["on 3", "signal 3"] * 2
    assert len(list(resource_event.receivers_for(apps[-1]))) == 1


def test_reloaded_module_replaces_its_subscribers(
    app: Flask,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    webhooks: ProcoreWebhooks,
    send: Callable[..., int],
    calls: list[str],
) -> None:
    source = """
from flask_procore_webhooks import resource_event
from shared_of_the_reload_test import calls, webhooks

@webhooks.on("RFIs", "update")
def on_blueprint(event):
    calls.append("blueprint")

@resource_event.connect
def on_signal(app, event):
    calls.append("signal")

class Service:
    def __call__(self, event):
        calls.append("object")

webhooks.on()(Service())
"""
    (tmp_path / "reloaded_subscribers.py").write_text(source)
    shared = ModuleType("shared_of_the_reload_test")
    shared.__dict__.update(calls=calls, webhooks=webhooks)
    monkeypatch.setitem(sys.modules, shared.__name__, shared)
    monkeypatch.syspath_prepend(tmp_path)

    module = importlib.import_module("reloaded_subscribers")
    for _ in range(3):
        importlib.reload(module)
    monkeypatch.delitem(sys.modules, module.__name__)

    assert send() == 200
    assert calls == ["blueprint", "signal", "object"]
    assert len(list(webhooks.subscribers)) == 2


def test_closures_of_a_loop_need_names_of_their_own(
    webhooks: ProcoreWebhooks, send: Callable[..., int], calls: list[str]
) -> None:
    """Functions of one definition have one default name; the last would replace all."""
    with pytest.raises(ConfigError, match="give one of them another name="):
        for type in ("RFIs", "Submittals"):

            @webhooks.on(type, "update")
            def subscriber(event: Event, type: str = type) -> None:
                calls.append(type)

    for type in ("Drawings", "Punch Items"):

        @webhooks.on(type, "update", name=f"sync-{type.split()[0]}")
        def named(event: Event, type: str = type) -> None:
            calls.append(type)

    for type in ("RFIs", "Submittals", "Drawings", "Punch Items"):
        assert send(f"{type}.update") == 200
    assert calls == ["RFIs", "Drawings", "Punch Items"]


# Lifetime


def test_subscriber_is_held_by_its_blueprint(
    webhooks: ProcoreWebhooks, send: Callable[..., int], calls: list[str]
) -> None:
    class Service:
        def on(self, event: Event) -> None:
            calls.append("method on the blueprint")

        def connected(self, app: Flask, event: Event) -> None:
            calls.append("method on the signal")

    def subscribe() -> None:
        webhooks.on(name="closure")(lambda event: calls.append("closure"))
        webhooks.on()(Service().on)
        resource_event.connect(
            lambda app, event: calls.append("closure on the signal"), name="lambda"
        )
        resource_event.connect(Service().connected)
        resource_created.connect(
            lambda app, event: calls.append("weak"), weak=True, name="weak"
        )

    subscribe()
    gc.collect()

    assert send("RFIs.create") == 200
    assert calls == [
        "closure",
        "method on the blueprint",
        "closure on the signal",
        "method on the signal",
        "weak",
    ]


def test_subscribers_of_many_threads_are_all_kept(
    webhooks: ProcoreWebhooks, send: Callable[..., int], calls: list[str]
) -> None:
    barrier = threading.Barrier(8)

    def register(thread: int) -> None:
        barrier.wait(10)
        for number in range(50):
            name = f"{thread}-{number}"
            webhooks.on(name=name)(lambda event, name=name: calls.append(name))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=register, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)

    assert len({subscriber.name for subscriber in webhooks.subscribers}) == 400


def test_subscriber_may_subscribe_others_while_it_runs(
    webhooks: ProcoreWebhooks, send: Callable[..., int], calls: list[str]
) -> None:
    def late(*arguments: object) -> None:
        calls.append("late")

    @webhooks.on()
    def subscriber(event: Event) -> None:
        calls.append("first")
        webhooks.on()(late)
        resource_event.connect(late)

    assert [send(), send()] == [200, 200]
    assert calls == ["first", "first", "late"]


def test_event_is_hashable(
    app: Flask, webhooks: ProcoreWebhooks, procore_webhooks: Deliveries
) -> None:
    kept: set[Event] = set()
    webhooks.on()(kept.add)
    assert procore_webhooks.deliver(payload("RFIs.create")).status_code == 200
    assert len(kept) == 1
