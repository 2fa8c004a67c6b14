"""Options of ``on``: refused values, defaults, keys and conditions."""

from __future__ import annotations

import dataclasses
import functools
import gc
import re
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from hypothesis import given
from hypothesis import strategies as st
from support.payloads import sha256

from flask_procore_webhooks import ConfigError
from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.options import Options
from flask_procore_webhooks.subscribers import Subscriber

#: Options with which each of the times is allowed.
WITH = {
    "settle": {"latest_only": True},
    "settle_max": {"latest_only": True},
    "lag": {"latest_only": True},
    "after": {},
    "timeout": {},
}
OPTIONS = [field.name for field in dataclasses.fields(Options)]
EVENT = Event(
    "evt_1",
    "RFIs.update",
    resource_type="RFIs",
    resource_id="4001",
    project_id="3001",
    company_id="2001",
)


def subscribe(**options: Any) -> Subscriber:
    webhooks = ProcoreWebhooks()
    webhooks.on(name="sync", **options)(lambda event: None)
    (subscriber,) = webhooks.subscribers
    return subscriber


def problems(**options: Any) -> list[str]:
    """The problems of refused options, without the subscriber's name."""
    with pytest.raises(ConfigError) as caught:
        subscribe(**options)
    assert all(problem.startswith("sync: ") for problem in caught.value.problems)
    return [problem.removeprefix("sync: ") for problem in caught.value.problems]


# Values


def test_options_have_defaults() -> None:
    subscriber = subscribe()
    assert not subscriber.latest_only
    assert not subscriber.one_at_a_time and not subscriber.durable
    assert subscriber.settle is subscriber.lag is subscriber.after is None
    assert subscriber.when is subscriber.timeout is None
    assert (subscriber.settle_max, subscriber.key) == (60.0, "resource")


def test_every_option_becomes_a_field() -> None:
    def pilot(event: Event) -> bool:
        return True

    options: dict[str, Any] = {
        "latest_only": True,
        "settle": 3,
        "settle_max": 4,
        "lag": 0.5,
        "after": 60,
        "key": pilot,
        "one_at_a_time": True,
        "when": pilot,
        "timeout": 1.5,
        "durable": True,
    }
    options["key"] = lambda event: "x"
    subscriber = subscribe(**options)
    assert {name: getattr(subscriber, name) for name in options} == options
    for name in WITH:
        assert isinstance(getattr(subscriber, name), float)


@pytest.mark.parametrize("option", WITH)
@pytest.mark.parametrize(
    "value",
    [0, -1, -0.0, float("nan"), float("inf"), "5", True, [5], 10**400, 4e10],
    ids=repr,
)
def test_time_that_is_no_number_of_seconds_is_refused(option: str, value: Any) -> None:
    (problem,) = problems(**{**WITH[option], option: value})
    assert problem.startswith(f"{option}= is a number of seconds above 0, not ")
    assert len(problem) < 150


@pytest.mark.parametrize("option", WITH)
def test_time_of_none_is_not_given(option: str) -> None:
    assert getattr(subscribe(**{option: None}), option) in (None, 60.0)


@pytest.mark.parametrize("option", ["latest_only", "one_at_a_time", "durable"])
@pytest.mark.parametrize("value", [1, 0, "yes", "", [True], 3.0])
def test_switch_is_true_or_false(option: str, value: Any) -> None:
    assert problems(**{option: value}) == [
        f"{option}= is True or False, not {value!r}."
    ]


@pytest.mark.parametrize("option", ["settle", "settle_max", "lag"])
def test_option_of_latest_only_is_refused_without_it(option: str) -> None:
    assert problems(**{option: 3}) == [f"{option}= needs latest_only=True."]
    assert problems(**{option: 3, "latest_only": False})


@pytest.mark.parametrize(
    ("options", "settle_max"),
    [
        ({}, 60),
        ({"settle": 3}, 30),
        ({"settle": 0.5}, 5),
        ({"settle": 90}, 900),
        ({"settle": 90, "settle_max": 90}, 90),
        ({"settle": 3, "settle_max": 3000}, 3000),
        ({"settle_max": 5}, 5),
    ],
)
def test_settle_max_is_ten_times_settle_or_a_minute(
    options: dict[str, Any], settle_max: float
) -> None:
    assert subscribe(latest_only=True, **options).settle_max == settle_max


def test_settle_max_below_settle_is_refused() -> None:
    found = problems(latest_only=True, settle=3, settle_max=2.9)
    assert found == ["settle_max= is at least settle= (3 s)."]


@pytest.mark.parametrize("lag", [0.49, 0.1, 1e-9])
def test_lag_below_half_a_second_is_refused(lag: float) -> None:
    (problem,) = problems(latest_only=True, lag=lag)
    assert problem.startswith("lag= is at least 0.5 s")
    assert subscribe(latest_only=True, lag=0.5).lag == 0.5


@pytest.mark.parametrize("key", ["project", "company", lambda event: None])
def test_other_key_than_the_resource_needs_settle_or_one_at_a_time(key: Any) -> None:
    for options in ({}, {"latest_only": True}, {"latest_only": True, "lag": 1}):
        assert problems(key=key, **options) == [
            'a key= other than "resource" needs settle= or one_at_a_time=True.'
        ]
    assert subscribe(key=key, one_at_a_time=True).key is key
    assert subscribe(key=key, latest_only=True, settle=1).key is key


@pytest.mark.parametrize("key", ["", "Project", "user", 7, ["project"], b"project"])
def test_unknown_key_is_refused(key: Any) -> None:
    (problem,) = problems(key=key, one_at_a_time=True)
    assert problem.startswith('key= is "resource", "project", "company" or a function')


def test_all_problems_of_the_values_are_listed() -> None:
    found = problems(settle=0, lag="1", key=7, when=True, durable=1)
    names = [problem.partition("=")[0] for problem in found]
    assert names == ["durable", "settle", "lag", "key", "when"]


# Functions of options


def no_arguments() -> None: ...


async def is_async(event: Event) -> bool:
    return False


def generates(event: Event) -> Any:
    yield


@pytest.mark.parametrize("option", ["key", "when"])
@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (no_arguments, "is called with (event): too many positional arguments."),
        (is_async, "is a plain function: neither async nor a generator."),
        (generates, "is a plain function: neither async nor a generator."),
        (functools.partial(is_async), "is a plain function: neither async nor"),
    ],
)
def test_function_of_an_option_is_a_plain_function_of_the_event(
    option: str, function: Any, problem: str
) -> None:
    """Its result would be an object that is always true."""
    (found,) = problems(**{option: function, "one_at_a_time": True})
    assert found.startswith(f"{option}= {problem}")


@pytest.mark.parametrize("when", ["", 7, True, "pilot"])
def test_condition_that_cannot_be_called_is_refused(when: Any) -> None:
    (problem,) = problems(when=when)
    assert problem == f"when= is a function of the event, not {when!r}."


@pytest.mark.parametrize("found", [True, False, 1, 0, "x", "", None, [], [0]])
def test_condition_counts_as_true_or_false(found: object) -> None:
    assert subscribe(when=lambda event: found).wants(EVENT) is bool(found)


def test_subscriber_without_a_condition_wants_every_event() -> None:
    assert subscribe().wants(EVENT) is True


def test_condition_is_called_with_the_event() -> None:
    seen: list[Event] = []
    assert not subscribe(when=seen.append).wants(EVENT)
    assert seen == [EVENT]


@pytest.mark.parametrize("function", [is_async, generates])
@pytest.mark.filterwarnings("error")
def test_result_that_has_yet_to_be_made_is_an_error(
    function: Callable[[Event], Any],
) -> None:
    subscriber = subscribe(
        when=lambda event: function(event),
        key=lambda event: function(event),
        one_at_a_time=True,
    )
    with pytest.raises(TypeError, match="when= returned .*; it is a plain function"):
        subscriber.wants(EVENT)
    with pytest.raises(TypeError, match="key= returned .*; it is a plain function"):
        subscriber.key_of(EVENT)


# Keys


@pytest.mark.parametrize(
    ("key", "fields", "stored"),
    [
        ("resource", {}, "rfis/4001"),
        ("project", {}, "3001"),
        ("company", {}, "2001"),
        ("resource", {"resource_type": "STRAßE"}, "strasse/4001"),
        ("resource", {"resource_type": " RFIs "}, None),
        ("resource", {"resource_type": "Daily Logs"}, "daily logs/4001"),
        ("resource", {"resource_id": None}, None),
        ("resource", {"resource_type": None}, None),
        ("project", {"project_id": None}, None),
        ("company", {"company_id": None}, None),
        ("resource", {"resource_id": "A/b"}, "rfis/A/b"),
        ("project", {"project_id": "x" * 190}, "x" * 190),
    ],
)
def test_key_is_text_of_the_event(
    key: str, fields: dict[str, Any], stored: str | None
) -> None:
    values = {**vars(EVENT), **fields}
    found = subscribe(key=key, one_at_a_time=True).key_of(Event(**values))
    if fields.get("resource_type") == " RFIs ":
        # A type is compared with its spaces, and no key begins with one.
        stored = sha256(b" rfis /4001")
    assert found == stored


def key_of(text: Any) -> str | None:
    subscriber = subscribe(key=lambda event: text, one_at_a_time=True)
    return subscriber.key_of(EVENT)


@pytest.mark.parametrize("plain", ["a", "~", "a b  c", "x" * 190, "!\"#'%", "sha25"])
def test_key_of_a_function_is_stored_as_it_is(plain: str) -> None:
    assert key_of(plain) == plain


@pytest.mark.parametrize(
    "strange",
    [
        "",
        " ",
        " a",
        "a ",
        "a\n",
        "a\tb",
        "a\0b",
        "\x7f",
        "é",
        "x" * 191,
        "sha256:",
        "sha256:" + "0" * 64,
        "\ud800",
    ],
)
def test_key_that_databases_may_change_is_stored_as_its_digest(strange: str) -> None:
    assert key_of(strange) == sha256(strange.encode("utf-8", "surrogatepass"))


def test_different_keys_are_stored_as_different_texts() -> None:
    texts = ["a", "A", "a ", " a", "á", "", sha256(b"a"), sha256(b" a")]
    assert len({key_of(text) for text in texts}) == len(texts)


@pytest.mark.parametrize("wrong", [7, 0, b"x", ["x"], True, EVENT])
def test_key_of_a_function_is_text_or_none(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"key= returned \w+; return text, or None"):
        key_of(wrong)
    assert key_of(None) is None


@given(st.text())
def test_stored_key_is_plain_text_of_at_most_190_characters(text: str) -> None:
    stored = key_of(text)
    assert stored is not None and re.fullmatch("[!-~]([ -~]{0,188}[!-~])?", stored)
    assert stored == text or stored == sha256(text.encode("utf-8", "surrogatepass"))


# Any options

_value = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.sampled_from(["resource", "project", "company", 3, 0.5, len, generates, print]),
)


@given(st.dictionaries(st.sampled_from(OPTIONS), _value, max_size=5))
def test_any_options_are_accepted_or_refused_with_a_config_error(
    options: dict[str, Any],
) -> None:
    try:
        subscriber = subscribe(**options)
    except ConfigError as error:
        assert all(problem.startswith("sync: ") for problem in error.problems)
        return
    for name, value in options.items():
        assert value is None or getattr(subscriber, name) == value
    assert subscriber.settle_max >= (subscriber.settle or 0)
    assert subscriber.latest_only or not (subscriber.settle or subscriber.lag)


# MAX_AGE


@pytest.fixture
def make_limited(make_app: Callable[..., Flask]) -> Callable[[float], Flask]:
    return lambda seconds: make_app(PROCORE_WEBHOOK_MAX_AGE=seconds)


def test_after_beyond_max_age_is_refused_with_the_other_problems(
    make_limited: Callable[[float], Flask], webhooks: ProcoreWebhooks
) -> None:
    for after in (60, 61, 3600):
        webhooks.on(name=f"after-{after}", after=after)(lambda event: None)
    app = make_limited(60)
    app.config["PROCORE_WEBHOOK_TOLERANCE"] = 0
    with pytest.raises(ConfigError) as caught:
        app.register_blueprint(webhooks)
    beyond = "is beyond MAX_AGE (60 s), at which a postponed job is dead."
    assert caught.value.problems == (
        "PROCORE_WEBHOOK_TOLERANCE must be at least 1 s, not 0.",
        f"after-61: after=61 {beyond}",
        f"after-3600: after=3600 {beyond}",
    )


def test_later_subscription_is_checked_against_the_apps_that_exist(
    make_limited: Callable[[float], Flask], webhooks: ProcoreWebhooks
) -> None:
    webhooks.on(name="before", after=3600)(lambda event: None)
    apps = [make_limited(7200)]
    apps[0].register_blueprint(webhooks)
    webhooks.on(name="second", after=7200)(lambda event: None)
    with pytest.raises(ConfigError, match="third: after=7201 is beyond MAX_AGE"):
        webhooks.on(name="third", after=7201)(lambda event: None)
    assert [each.name for each in webhooks.subscribers] == ["before", "second"]


def test_app_that_is_gone_limits_no_subscription(
    make_limited: Callable[[float], Flask], webhooks: ProcoreWebhooks
) -> None:
    app = make_limited(60)
    app.register_blueprint(webhooks)
    del app
    gc.collect()
    webhooks.on(name="hourly", after=3600)(lambda event: None)
    assert len([*webhooks.subscribers]) == 1


def test_default_of_max_age_allows_a_week() -> None:
    app, webhooks = Flask("host"), ProcoreWebhooks()
    webhooks.on(name="week", after=7 * 24 * 3600)(lambda event: None)
    app.register_blueprint(webhooks)
    with pytest.raises(ConfigError, match="more: after=604801 is beyond MAX_AGE"):
        webhooks.on(name="more", after=7 * 24 * 3600 + 1)(lambda event: None)
