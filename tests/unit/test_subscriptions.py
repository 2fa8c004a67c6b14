"""Subscriptions on a blueprint or a signal: arguments, names and signatures."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
from flask import Flask

from flask_procore_webhooks import ConfigError
from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import resource_event
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.subscribers import run_to_end


@pytest.mark.parametrize("arguments", [(len,), (7,), (None,), ("RFIs", None)])
def test_on_with_wrong_arguments_explains_its_syntax(
    webhooks: ProcoreWebhooks, arguments: tuple[Any, ...]
) -> None:
    with pytest.raises(ConfigError, match='Write @webhooks.on\\("RFIs", "update"\\)'):
        webhooks.on(*arguments)


def test_on_without_parentheses_is_refused(webhooks: ProcoreWebhooks) -> None:
    with pytest.raises(ConfigError, match="Write @webhooks.on"):

        @webhooks.on
        def subscriber(event: Event) -> None: ...


def test_on_returns_the_function_itself(webhooks: ProcoreWebhooks) -> None:
    def subscriber(event: Event) -> None: ...

    assert webhooks.on("RFIs")(subscriber) is subscriber


@pytest.mark.parametrize("type_", ["RFIs.update", "RFIs.updated", "resource.Created"])
def test_event_type_as_resource_pattern_is_refused(type_: str) -> None:
    """Lists and logs show types; as a pattern, a type would match no event."""
    webhooks = ProcoreWebhooks()
    with pytest.raises(ConfigError, match=r"is a type: write on\('\w+', '\w+e'\)"):
        webhooks.on(type_)(lambda event: None)


def test_resource_whose_name_has_a_dot_is_a_pattern() -> None:
    webhooks = ProcoreWebhooks()
    webhooks.on("site.diary")(lambda event: None)
    assert [s.resource_type for s in webhooks.subscribers] == ["site.diary"]


@pytest.mark.parametrize("name", ["x" * 191, "with space", "ä", "a\nb", "\0"])
def test_unportable_subscriber_name_is_refused(
    webhooks: ProcoreWebhooks, name: str
) -> None:
    with pytest.raises(ConfigError, match="is not a subscriber name"):
        webhooks.on(name=name)(lambda event: None)
    with pytest.raises(ConfigError, match="is not a subscriber name"):
        resource_event.connect(lambda app, event: None, name=name)


def test_function_with_an_incompatible_signature_is_refused() -> None:
    def forgot() -> None: ...

    with pytest.raises(ConfigError, match=r"forgot is called with \(event\)"):
        ProcoreWebhooks().on()(forgot)
    with pytest.raises(ConfigError, match=r"forgot is called with \(app, event\)"):
        resource_event.connect(forgot)


def test_functions_behind_a_decorator_without_wraps_stay_distinct() -> None:
    def traced(function: Callable[..., object]) -> Callable[..., object]:
        return lambda app, event: function(app, event)

    def one(app: Flask, event: Event) -> None: ...

    def other(app: Flask, event: Event) -> None: ...

    resource_event.connect(traced(one))
    resource_event.connect(traced(one))
    with pytest.raises(ConfigError, match="Two different subscribers"):
        resource_event.connect(traced(other))


def test_same_subscription_made_again_is_held_once() -> None:
    def handler(event: Event) -> None: ...

    webhooks = ProcoreWebhooks()
    for _ in range(5):
        webhooks.on("RFIs")(handler)
    webhooks.on("Submittals")(handler)
    assert [s.resource_type for s in webhooks.subscribers] == ["RFIs", "Submittals"]


def test_newer_options_of_one_subscription_replace_the_older() -> None:
    def handler(event: Event) -> None: ...

    webhooks = ProcoreWebhooks()
    webhooks.on("RFIs", "update", after=60, latest_only=True)(handler)
    webhooks.on("rfis", "UPDATED", timeout=5)(handler)
    (subscriber,) = webhooks.subscribers
    assert (subscriber.after, subscriber.timeout) == (None, 5)
    assert not subscriber.latest_only


def test_event_of_two_patterns_of_one_name_has_the_options_of_the_last(
    webhooks: ProcoreWebhooks, endpoint: Endpoint
) -> None:
    def handler(event: Event) -> None: ...

    webhooks.on("RFIs", after=60)(handler)
    webhooks.on(timeout=5)(handler)
    rfi = Event("1", "RFIs.update", resource_type="RFIs", reason="update")
    (subscriber,) = endpoint.subscribers_for(rfi)
    assert (subscriber.after, subscriber.timeout) == (None, 5)


def test_one_function_may_have_several_subscriptions_of_other_names() -> None:
    webhooks = ProcoreWebhooks()

    @webhooks.on("Submittals", latest_only=True, settle=3)
    @webhooks.on("Submittals", after=60, name="reread")
    def handler(event: Event) -> None: ...

    found = [(each.name == "reread", each.after) for each in webhooks.subscribers]
    assert found == [(True, 60), (False, None)]


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("created", "create"),
        ("Updated", "update"),
        ("DELETED", "delete"),
        ("CREATE", "create"),
        ("Completed", "completed"),
        ("*", "*"),
    ],
)
def test_reason_of_a_pattern_is_spelt_like_that_of_an_event(
    pattern: str, reason: str
) -> None:
    webhooks = ProcoreWebhooks()
    webhooks.on("Document Upload", pattern)(lambda event: None)
    (subscriber,) = webhooks.subscribers
    assert subscriber.pattern == ("document upload", reason)
    sent = reason if reason != "*" else "any"
    fields = {"resource_type": "DOCUMENT UPLOAD", "reason": sent}
    assert subscriber.matches(Event("1", "a.b", **fields))
    for other in ("Document Uploads", "Document Upload ", " Document Upload"):
        fields["resource_type"] = other
        assert not subscriber.matches(Event("1", "a.b", **fields))


# Generators


def generator(event: Event) -> Any:
    yield event


async def async_generator(event: Event) -> Any:
    yield event


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(event: Event) -> Any:
        return function(event)

    return wrapper


def with_more(more: object, event: Event) -> Any:
    yield event


class Service:
    def method(self, event: Event) -> Any:
        yield event

    @staticmethod
    def static(event: Event) -> Any:
        yield event

    @classmethod
    def of_class(cls, event: Event) -> Any:
        yield event

    def __call__(self, event: Event) -> Any:
        yield event


class Inherits(Service):
    pass


class Decorated:
    @decorated
    def __call__(self, event: Event) -> Any:
        yield event


GENERATORS = {
    "function": generator,
    "async": async_generator,
    "lambda": lambda event: (yield),
    "partial": functools.partial(with_more, 1),
    "partial of a partial": functools.partial(functools.partial(with_more), 1),
    "wrapped": decorated(generator),
    "wrapped async": decorated(async_generator),
    "wrapped twice": decorated(decorated(generator)),
    "wrapped partial": decorated(functools.partial(with_more, 1)),
    "partial of a wrapped": functools.partial(decorated(generator)),
    "method": Service().method,
    "static method": Service.static,
    "class method": Service.of_class,
    "partial of a method": functools.partial(Service().method),
    "callable object": Service(),
    "inherited call": Inherits(),
    "partial of an object": functools.partial(Service()),
    "context manager": contextlib.contextmanager(generator),
}


@pytest.mark.parametrize("kind", GENERATORS)
def test_generator_function_is_refused(webhooks: ProcoreWebhooks, kind: str) -> None:
    with pytest.raises(ConfigError, match="x is a generator function: .* never runs"):
        webhooks.on(name="x")(GENERATORS[kind])
    assert not [*webhooks.subscribers]


def test_generator_function_is_refused_by_a_signal() -> None:
    def generates(app: Flask, event: Event) -> Any:
        yield event

    with pytest.raises(ConfigError, match="generates is a generator function"):
        resource_event.connect(generates)
    with pytest.raises(ConfigError, match="generates is a generator function"):
        resource_event.connect_via(Flask("host"))(generates)
    assert not resource_event.receivers


def test_plain_functions_and_coroutines_are_no_generators(
    webhooks: ProcoreWebhooks,
) -> None:
    async def coroutine(event: Event) -> None: ...

    for number, function in enumerate([len, print, coroutine, str, Mock(), list]):
        webhooks.on(name=f"{number}")(function)
    assert len([*webhooks.subscribers]) == 6


def plain(function: Callable[[Event], Any]) -> Callable[[Event], Any]:
    return lambda event: function(event)


async def returns_generator(event: Event) -> Any:
    return generator(event)


@pytest.mark.parametrize(
    "function", [plain(generator), plain(async_generator), returns_generator]
)
def test_returned_generator_is_a_failed_call(
    webhooks: ProcoreWebhooks, function: Callable[[Event], Any]
) -> None:
    """Its body has not run, so the attempt must not count as done."""
    webhooks.on(name="x")(function)
    (subscriber,) = webhooks.subscribers
    app = Flask("host")
    with pytest.raises(TypeError, match="the subscriber returned a generator"):
        run_to_end(app, subscriber(app, Event("1", "a.b")))


def test_other_iterators_may_be_returned(webhooks: ProcoreWebhooks) -> None:
    app, event = Flask("host"), Event("1", "a.b")
    for number, value in enumerate([iter([1]), [1], "text", None, range(3)]):
        webhooks.on(name=f"{number}")(lambda event, value=value: value)
    for subscriber in webhooks.subscribers:
        run_to_end(app, subscriber(app, event))
