"""Subscriptions on a blueprint or a signal: arguments, names and signatures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask

from flask_procore_webhooks import ConfigError
from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import resource_event


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


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "5", True])
def test_timeout_that_is_no_time_is_refused(
    webhooks: ProcoreWebhooks, timeout: Any
) -> None:
    with pytest.raises(ConfigError, match="timeout= is a number of seconds above 0"):
        webhooks.on(name="slow", timeout=timeout)(lambda event: None)


def test_timeout_belongs_to_the_subscriber(webhooks: ProcoreWebhooks) -> None:
    webhooks.on(name="slow", timeout=0.5)(lambda event: None)
    webhooks.on(name="usual")(lambda event: None)
    assert [each.timeout for each in webhooks.subscribers] == [0.5, None]
