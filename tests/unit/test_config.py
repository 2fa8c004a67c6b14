from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import date
from datetime import datetime
from datetime import timedelta
from datetime import timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.configs import MISTAKES
from support.configs import PREFIX

from flask_procore_webhooks import ConfigError
from flask_procore_webhooks.config import KEYS
from flask_procore_webhooks.config import read_settings
from flask_procore_webhooks.config import Settings
from flask_procore_webhooks.config.api import ApiSettings
from flask_procore_webhooks.config.api import Scope

YEAR = 365 * 24 * 3600.0


def read(own_database: bool = True, /, **keys: object) -> Settings:
    """Settings read from ``keys``; SECRET is added if they hold no credentials."""
    if not {"SECRET", "AUTHORIZATION"} & keys.keys():
        keys["SECRET"] = "a secret"
    config = {PREFIX + key: value for key, value in keys.items()}
    return read_settings(config, PREFIX, own_database=own_database)


def problems(own_database: bool = True, /, **keys: object) -> list[str]:
    """The problems of a refused configuration, without the prefix."""
    with pytest.raises(ConfigError) as caught:
        read(own_database, **keys)
    for problem in caught.value.problems:
        assert PREFIX in problem
        assert problem.endswith(".") or problem.endswith("?")
        assert problem in str(caught.value)
    return [problem.removeprefix(PREFIX) for problem in caught.value.problems]


# Valid configurations


def test_secret_alone_is_enough_and_the_rest_has_its_documented_default() -> None:
    assert read(SECRET="a secret") == Settings(
        secrets=(b"a secret",),
        authorizations=(),
        tolerance=300.0,
        max_bytes=1024 * 1024,
        dispatch="background",
        max_attempts=57,
        retry_base=10.0,
        retry_cap=3600.0,
        lease=300.0,
        timeout=3600.0,
        max_age=7 * 24 * 3600.0,
        threads=4,
        retention=7 * 24 * 3600.0,
        ignore_user_ids=frozenset(),
        ignore_application_ids=frozenset(),
        database_uri=None,
    )


def test_every_key_is_read() -> None:
    values = {
        "SECRET": "new",
        "SECRET_FALLBACKS": ["old", "older"],
        "AUTHORIZATION": "Bearer new",
        "AUTHORIZATION_FALLBACKS": ("Basic old",),
        "TOLERANCE": 1,
        "MAX_BYTES": 1,
        "DISPATCH": "inline",
        "MAX_ATTEMPTS": 1,
        "RETRY_BASE": 0.5,
        "RETRY_CAP": 0.25,
        "LEASE": 1,
        "TIMEOUT": 0.5,
        "MAX_AGE": 1800,
        "THREADS": 2,
        "RETENTION": 43200,
        "IGNORE_USER_IDS": [1001, " 1002 ", "", 10**30],
        "IGNORE_APPLICATION_IDS": {"0123abcd"},
        "DATABASE_URI": "sqlite:///inbox.db",
        "URL": "https://app.example.com/webhooks/procore",
        "API_CLIENT_ID": "an id",
        "API_CLIENT_SECRET": "a client secret",
        "API_URL": "https://sandbox.procore.com/",
        "API_LOGIN_URL": "https://login-sandbox.procore.com",
        "NAMESPACE": "tracker",
        "PAYLOAD_VERSION": "v2.0",
        "SCOPES": [{"company": 1}, {"company": "1", "project": "2"}],
    }
    assert set(values) == set(KEYS)
    assert read(**values) == Settings(
        secrets=(b"new", b"old", b"older"),
        authorizations=(b"Bearer new", b"Basic old"),
        tolerance=1.0,
        max_bytes=1,
        dispatch="inline",
        max_attempts=1,
        retry_base=0.5,
        retry_cap=0.25,
        lease=1.0,
        timeout=0.5,
        max_age=1800.0,
        threads=2,
        retention=43200.0,
        ignore_user_ids=frozenset({"1001", "1002", "1" + "0" * 30}),
        ignore_application_ids=frozenset({"0123abcd"}),
        database_uri="sqlite:///inbox.db",
        api=ApiSettings(
            url="https://app.example.com/webhooks/procore",
            client_id="an id",
            client_secret="a client secret",
            api_url="https://sandbox.procore.com",
            login_url="https://login-sandbox.procore.com",
            namespace="tracker",
            payload_version="v2.0",
            scopes=(Scope("1"), Scope("1", "2")),
        ),
    )


@pytest.mark.parametrize("key", KEYS)
def test_none_means_not_set(key: str) -> None:
    other = "AUTHORIZATION" if key == "SECRET" else "SECRET"
    assert read(**{other: "x", key: None}) == read(**{other: "x"})


def test_authorization_alone_is_enough() -> None:
    settings = read(AUTHORIZATION="Bearer abc")
    assert (settings.secrets, settings.authorizations) == ((), (b"Bearer abc",))


@pytest.mark.parametrize("container", [list, tuple, set, frozenset])
def test_lists_may_be_of_any_kind(container: Callable[[list[str]], object]) -> None:
    settings = read(SECRET="new", SECRET_FALLBACKS=container(["old"]))
    assert settings.secrets == (b"new", b"old")


@pytest.mark.parametrize(
    "key", ["TOLERANCE", "RETRY_BASE", "LEASE", "RETENTION", "MAX_AGE"]
)
def test_seconds_may_be_a_timedelta(key: str) -> None:
    settings = read(**{key: timedelta(days=1, milliseconds=500)})
    assert getattr(settings, key.lower()) == 86400.5


def test_secrets_are_utf_8_bytes_and_may_hold_white_space_inside() -> None:
    settings = read(SECRET="ein Schlüssel 🔑", AUTHORIZATION="Token token=a b")
    assert settings.secrets == ("ein Schlüssel 🔑".encode(),)
    assert settings.authorizations == (b"Token token=a b",)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        read().tolerance = 10**6  # type: ignore[misc]


# One mistake


@pytest.mark.parametrize("key", ["SECRET", "AUTHORIZATION"])
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("", "is empty."),
        (" ", "is blank."),
        ("\n", "is blank."),
        ("\u3000\t", "is blank."),
        ("abc\n", "has white space around it (a stray newline?)."),
        (" abc", "has white space around it (a stray newline?)."),
        ("abc\r", "has white space around it (a stray newline?)."),
        ("\ufeff ", "has white space around it (a stray newline?)."),
        (b"abc", "must be text, not bytes."),
        (b"", "must be text, not bytes."),
        ([], "must be text, not list."),
        (["abc"], "must be text, not list."),
        ({"a": "b"}, "must be text, not dict."),
        ("a\ud800b", "holds a lone surrogate, which cannot be encoded."),
    ],
)
def test_secret_that_protects_nothing_is_refused(
    key: str, value: object, problem: str
) -> None:
    assert problems(**{key: value}) == [f"{key} {problem}"]


@pytest.mark.parametrize("key", ["SECRET", "AUTHORIZATION"])
@pytest.mark.parametrize(
    ("value", "where", "problem"),
    [
        ([""], "[0]", "is empty."),
        (["old", ""], "[1]", "is empty."),
        (["old", "older", " "], "[2]", "is blank."),
        (["old\n"], "[0]", "has white space around it (a stray newline?)."),
        ([None], "[0]", "must be text, not NoneType."),
        ([b"old"], "[0]", "must be text, not bytes."),
        ([["old"]], "[0]", "must be text, not list."),
        (["\udfff"], "[0]", "holds a lone surrogate, which cannot be encoded."),
        ("old", "", "must be a list, not str."),
        ("", "", "must be a list, not str."),
        (b"old", "", "must be a list, not bytes."),
        ({"old": 1}, "", "must be a list, not dict."),
        (True, "", "must be a list, not bool."),
    ],
)
def test_fallback_that_protects_nothing_is_refused_and_not_skipped(
    key: str, value: object, where: str, problem: str
) -> None:
    found = problems(**{key: "new", f"{key}_FALLBACKS": value})
    assert found == [f"{key}_FALLBACKS{where} {problem}"]


@pytest.mark.parametrize("key", ["SECRET", "AUTHORIZATION"])
def test_fallbacks_need_the_current_one(key: str) -> None:
    other = "AUTHORIZATION" if key == "SECRET" else "SECRET"
    (problem,) = problems(**{other: "x", f"{key}_FALLBACKS": ["old"]})
    assert problem == f"{key}_FALLBACKS is set, but {PREFIX}{key} is not."
    assert len(problems(SECRET=None, **{f"{key}_FALLBACKS": ["old"]})) == 1


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"SECRET": None},
        {"SECRET": None, "AUTHORIZATION": None},
        {"SECRET": None, "SECRET_FALLBACKS": []},
        {"SECRET": None, "TOLERANCE": 300},
    ],
)
def test_configuration_without_secret_and_authorization_has_no_secret(
    config: dict[str, object],
) -> None:
    keys = {PREFIX + key: value for key, value in config.items()}
    settings = read_settings(keys, PREFIX)
    assert not settings.has_secret and not settings.warnings


# Fallbacks with a day


DAY = "2027-01-31"
LAST_SECOND = datetime(2027, 1, 31, 23, 59, 59, tzinfo=timezone.utc).timestamp()


@pytest.mark.parametrize("key", ["SECRET", "AUTHORIZATION"])
@pytest.mark.parametrize(
    "pair", [("old", DAY), ["old", DAY], ("old", date(2027, 1, 31))]
)
def test_fallback_may_have_a_last_day(key: str, pair: Any) -> None:
    settings = read(**{key: "x" * 16, f"{key}_FALLBACKS": ["older" * 4, pair]})
    plain, dated = {
        "SECRET": (settings.secrets, settings.dated_secrets),
        "AUTHORIZATION": (settings.authorizations, settings.dated_authorizations),
    }[key]
    assert plain == (b"x" * 16, b"older" * 4)
    (fallback,) = dated
    assert (fallback.value, str(fallback.until)) == (b"old", DAY)
    assert not fallback.ended(LAST_SECOND)
    assert fallback.ended(LAST_SECOND + 1)
    assert "old" not in repr(fallback) and "old" not in repr(settings)


@pytest.mark.parametrize("key", ["SECRET", "AUTHORIZATION"])
@pytest.mark.parametrize(
    "day", ["", "soon", "2027-02-30", "2027-1-1", "20270131", "9999-12-31", None, 2027]
)
def test_fallback_with_a_malformed_day_is_refused(key: str, day: object) -> None:
    (problem,) = problems(**{key: "x" * 16, f"{key}_FALLBACKS": [("the-old", day)]})
    assert problem == (
        f'{key}_FALLBACKS[0] must be text or [text, day], the day as "2027-01-31".'
    )


def test_pair_that_is_not_in_a_list_is_refused() -> None:
    """The day would be accepted as a secret."""
    (problem,) = problems(SECRET="x" * 16, SECRET_FALLBACKS=("the-old", DAY))
    assert problem == (
        "SECRET_FALLBACKS[1] is a day; write the fallback as [text, day]."
    )


def test_dated_fallback_that_protects_nothing_is_refused() -> None:
    found = problems(SECRET="x" * 16, SECRET_FALLBACKS=[("", DAY), (b"old", DAY)])
    assert found == [
        "SECRET_FALLBACKS[0] is empty.",
        "SECRET_FALLBACKS[1] must be text, not bytes.",
    ]


# Warnings


def warnings(**keys: object) -> list[str]:
    return [text.removeprefix(PREFIX) for text in read(**keys).warnings]


STRONG = "a7Vd93kPq0xLmZ28"


@pytest.mark.parametrize(
    "value",
    [
        STRONG,
        "correct horse battery staple",
        "0f" * 8 + "13579bde",  # hexadecimal digits
        "правильная лошадь",
    ],
)
def test_strong_secrets_have_no_warnings(value: str) -> None:
    assert not warnings(SECRET=value, SECRET_FALLBACKS=[value[::-1]])
    assert not warnings(SECRET=value, AUTHORIZATION=f"Bearer {value}")


@pytest.mark.parametrize(
    "value",
    [
        "x" * 64,
        "changeme" * 8,
        "procore-webhook-secret-2026",
        "0123456789" * 4,
        "qwertyuiopasdfghjkl",
        "test_secret_for_development",
    ],
)
@pytest.mark.parametrize("key", ["SECRET", "AUTHORIZATION"])
def test_known_words_and_few_characters_are_easy_to_guess(key: str, value: str) -> None:
    (text,) = warnings(**{key: value})
    assert text.startswith(f"{key} is easy to guess: ") and value not in text
    (text,) = warnings(AUTHORIZATION=f"Bearer {value}")
    assert text.startswith("AUTHORIZATION is easy to guess: ")
    (text,) = warnings(
        **{key: STRONG, f"{key}_FALLBACKS": [(value, "2999-01-31")]},
    )
    assert text.startswith(f"a value of {PREFIX}{key}_FALLBACKS is easy to guess: ")


def test_scheme_of_an_authorization_protects_nothing() -> None:
    (text,) = warnings(AUTHORIZATION=f"Bearer {STRONG[:10]}")
    assert text.startswith(
        "AUTHORIZATION has 17 bytes, 7 of them the scheme, and may be guessed; use at"
        " least 16."
    )
    assert STRONG[:10] not in text


@pytest.mark.parametrize("key", ["SECRET", "AUTHORIZATION"])
def test_short_secrets_are_named_with_their_length(key: str) -> None:
    (short,) = warnings(**{key: "x"})
    assert short.startswith(f"{key} has 1 byte and may be guessed; use at least 16.")
    fallbacks = ["o" * 15, ("p" * 5, "2999-01-31")]
    found = warnings(**{key: STRONG, f"{key}_FALLBACKS": fallbacks})
    assert [text.partition(" and ")[0] for text in found] == [
        f"a value of {PREFIX}{key}_FALLBACKS has 15 bytes",
        f"a value of {PREFIX}{key}_FALLBACKS has 5 bytes",
    ]
    assert "\n" not in short and "oooo" not in str(found)


@pytest.mark.parametrize("key", ["SECRET", "AUTHORIZATION"])
def test_none_beside_a_secret_is_a_dropped_factor(key: str) -> None:
    other = "AUTHORIZATION" if key == "SECRET" else "SECRET"
    (text,) = warnings(**{other: STRONG, key: None})
    assert text.startswith(f"{key} is None, so that only {PREFIX}{other} is checked.")
    assert not warnings(**{other: STRONG})


@pytest.mark.parametrize(
    "value", [f"Authorization: Bearer {STRONG}", f"authorization :Basic {STRONG}"]
)
def test_authorization_with_the_name_of_the_header_is_a_warning(value: str) -> None:
    (text,) = warnings(AUTHORIZATION=value)
    assert text.startswith("AUTHORIZATION begins with the name of the header")


def test_fallback_whose_last_day_is_over_is_a_warning() -> None:
    (text,) = warnings(SECRET=STRONG, SECRET_FALLBACKS=[[STRONG[::-1], "2020-01-31"]])
    assert text == (
        f"a value of {PREFIX}SECRET_FALLBACKS was valid until 2020-01-31 and is"
        " ignored; remove it."
    )


# Numbers


@pytest.mark.parametrize(
    "key", ["TOLERANCE", "RETRY_BASE", "RETRY_CAP", "LEASE", "TIMEOUT", "MAX_AGE"]
)
@pytest.mark.parametrize(
    "value", [0, -1, -0.0, 0.0, timedelta(0), -timedelta(days=1), float("nan")]
)
def test_seconds_that_are_not_positive_are_refused(key: str, value: object) -> None:
    least = {"TOLERANCE": "at least 1 s", "LEASE": "at least 1 s"}.get(key)
    shown = value.total_seconds() if isinstance(value, timedelta) else value
    expected = f"{key} must be {least or 'more than 0 s'}, not {shown}."
    assert problems(**{key: value}) == [expected]


@pytest.mark.parametrize("key", ["TOLERANCE", "LEASE"])
def test_tolerance_and_lease_below_one_second_are_refused(key: str) -> None:
    assert problems(**{key: 0.999}) == [f"{key} must be at least 1 s, not 0.999."]
    assert read(**{key: 1})


@pytest.mark.parametrize(
    "key", ["TOLERANCE", "RETRY_BASE", "RETRY_CAP", "LEASE", "RETENTION", "MAX_AGE"]
)
@pytest.mark.parametrize(
    "value", [1001 * YEAR, timedelta.max, 10**400, 1e300, float("inf")]
)
def test_seconds_that_reach_past_the_last_date_are_refused(
    key: str, value: object
) -> None:
    (problem,) = problems(**{key: value})
    assert problem.startswith(f"{key} must be at most 31536000000 s, not ")
    assert len(problem) < 150


@pytest.mark.parametrize(
    "key", ["TOLERANCE", "RETRY_BASE", "RETRY_CAP", "LEASE", "RETENTION", "MAX_AGE"]
)
def test_largest_accepted_seconds_give_a_valid_date(key: str) -> None:
    seconds = getattr(read(**{key: 1000 * YEAR}), key.lower())
    assert datetime.now(timezone.utc) + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "key", ["TOLERANCE", "RETRY_BASE", "RETRY_CAP", "LEASE", "RETENTION", "MAX_AGE"]
)
@pytest.mark.parametrize("value", [True, False, "300", "", [300], "five\nminutes"])
def test_seconds_are_numbers(key: str, value: object) -> None:
    found = problems(**{key: value})
    assert found == [f"{key} must be a number of seconds, not {value!r}."]


@pytest.mark.parametrize(
    "value", [43199, 43199.999, 1, 0, -1, timedelta(hours=11, minutes=59)]
)
def test_retention_shorter_than_the_senders_retries_is_refused(
    value: object,
) -> None:
    (problem,) = problems(RETENTION=value)
    assert problem.startswith("RETENTION must be at least 12 h (43200 s)")
    assert read(RETENTION=timedelta(hours=12)).retention == 43200.0


@pytest.mark.parametrize("key", ["MAX_BYTES", "MAX_ATTEMPTS"])
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (0, "must be at least 1, not 0."),
        (-1, "must be at least 1, not -1."),
        ("1048576", "must be a whole number, not '1048576'."),
        ("1 MiB", "must be a whole number, not '1 MiB'."),
        (1e6, "must be a whole number, not 1000000.0."),
        (float("inf"), "must be a whole number, not inf."),
        (True, "must be a whole number, not True."),
        ([1], "must be a whole number, not [1]."),
        ("x" * 999, f"must be a whole number, not '{'x' * 59}...."),
    ],
)
def test_counts_are_whole_numbers_from_one(
    key: str, value: object, problem: str
) -> None:
    assert problems(**{key: value}) == [f"{key} {problem}"]


def test_value_without_a_text_is_refused_without_it() -> None:
    """Python converts no integer of so many digits to text."""
    for key in ("MAX_BYTES", "MAX_ATTEMPTS"):
        (problem,) = problems(**{key: 10**5000})
        assert problem == f"{key} must be at most 1000000000000, not this int."
    (problem,) = problems(IGNORE_USER_IDS=[10**5000])
    assert problem == "IGNORE_USER_IDS must hold ids of at most 80 digits."
    assert problems(MAX_BYTES=-(10**5000)) == [
        "MAX_BYTES must be at least 1, not this int."
    ]


KNOWN = "'background', 'worker', 'celery', 'inline'"


@pytest.mark.parametrize("testing", [False, None])
def test_dispatch_defaults_to_background_and_to_inline_under_test(
    testing: object,
) -> None:
    keys = {"PROCORE_WEBHOOK_SECRET": "a secret"}
    assert read_settings(keys, PREFIX).dispatch == "background"
    assert read_settings({**keys, "TESTING": testing}, PREFIX).dispatch == "background"
    assert read_settings({**keys, "TESTING": True}, PREFIX).dispatch == "inline"


@pytest.mark.parametrize("value", ["background", "worker", "celery", "inline"])
@pytest.mark.parametrize("testing", [True, False])
def test_configured_dispatch_is_used(value: str, testing: bool) -> None:
    config = {PREFIX + "SECRET": "a secret", PREFIX + "DISPATCH": value}
    assert read_settings({**config, "TESTING": testing}, PREFIX).dispatch == value


@pytest.mark.parametrize(
    "value", ["", "Inline", "Celery", "thread", 1, True, ["inline"], {}]
)
def test_unknown_dispatch_is_refused(value: object) -> None:
    assert problems(DISPATCH=value) == [
        f"DISPATCH must be one of {KNOWN}, not {value!r}."
    ]


@pytest.mark.parametrize("key", ["IGNORE_USER_IDS", "IGNORE_APPLICATION_IDS"])
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("1001", "must be a list, not '1001'."),
        (1001, "must be a list, not 1001."),
        ({"1001": 1}, "must be a list, not {'1001': 1}."),
        ([True], "must hold ids, not True."),
        ([None], "must hold ids, not None."),
        ([1001.0], "must hold ids, not 1001.0."),
        ([["1001"]], "must hold ids, not ['1001']."),
        ([b"1001"], "must hold ids, not b'1001'."),
    ],
)
def test_ignored_ids_are_a_list_of_ids(key: str, value: object, problem: str) -> None:
    assert problems(**{key: value}) == [f"{key} {problem}"]


def test_database_uri_beside_the_hosts_database_is_refused() -> None:
    (problem,) = problems(False, DATABASE_URI="sqlite:///inbox.db")
    assert problem == "DATABASE_URI has no effect with db= or session=; remove it."
    assert read(False).database_uri is None


@pytest.mark.parametrize("value", ["", " ", " sqlite://", 5, True, b"sqlite://"])
def test_database_uri_of_another_type_is_refused(value: object) -> None:
    (problem,) = problems(DATABASE_URI=value)
    assert problem.startswith("DATABASE_URI ")


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("SECRETS", "SECRET"),
        ("SECERT", "SECRET"),
        ("secret", "SECRET"),
        ("Max_Bytes", "MAX_BYTES"),
        ("SECRET_FALLBACK", "SECRET_FALLBACKS"),
        ("AUTHORISATION", "AUTHORIZATION"),
        ("TOLERANCES", "TOLERANCE"),
        ("MAXBYTES", "MAX_BYTES"),
        ("IGNORE_USER_ID", "IGNORE_USER_IDS"),
        ("DATABASE_URL", "DATABASE_URI"),
        ("RETENTION_", "RETENTION"),
    ],
)
def test_misspelt_key_is_refused_with_a_suggestion(misspelt: str, meant: str) -> None:
    (problem,) = problems(SECRET="a secret", **{misspelt: None})
    assert problem == (
        f"{misspelt} is not a setting; did you mean {PREFIX}{meant}? If it is yours,"
        " give the blueprint another config_prefix=."
    )


@pytest.mark.parametrize("unknown", ["", "_", "X", "QQ", "ALLOW_UNSIGNED", "é"])
def test_unknown_key_with_the_prefix_is_refused(unknown: str) -> None:
    (problem,) = problems(SECRET="a secret", **{unknown: True})
    assert problem.startswith(f"{unknown} is not a setting; ")
    assert problem.endswith(" give the blueprint another config_prefix=.")


def test_keys_without_the_prefix_are_ignored() -> None:
    config = {
        "PROCORE_WEBHOOK_SECRET": "a secret",
        "PROCORE_CLIENT_ID": "x",
        "PROCORE_WEBHOOKS_SECRET": "x",
        "procore_webhook_SECRETS": "x",
        "SECRET_KEY": "",
        "MY_PROCORE_WEBHOOK_SECRETS": "x",
    }
    assert read_settings(config, PREFIX).secrets == (b"a secret",)


# Several mistakes


def test_config_error_names_all_mistakes_and_no_values() -> None:
    found = problems(**MISTAKES)
    names = [problem.partition(" ")[0].partition("[")[0] for problem in found]
    assert sorted(names) == sorted([*MISTAKES, "SECRET_FALLBACKS"])
    everything = "\n".join(found)
    assert "the-secret" not in everything
    assert "not 'thread'." in everything
    assert "7777777" not in everything
    assert all(text in everything for text in ("'1 MiB'", "'ten'", "nan", "'user 7'"))


def test_config_error_for_one_mistake_is_one_line() -> None:
    with pytest.raises(ConfigError) as caught:
        read(TOLERANCE=0)
    assert str(caught.value) == "PROCORE_WEBHOOK_TOLERANCE must be at least 1 s, not 0."


_value = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=5),
        st.characters(categories=["Cs"]),
        st.binary(max_size=5),
        st.timedeltas(),
        st.sampled_from(["inline", "worker", 43200, 10**400]),
    ),
    lambda children: st.one_of(
        st.lists(children, max_size=3),
        st.dictionaries(st.text(max_size=3), children, max_size=2),
    ),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from([*KEYS, "X", "SECRE"]), _value, max_size=6))
def test_any_configuration_is_read_or_refused_with_a_config_error(
    config: dict[str, Any],
) -> None:
    try:
        settings = read_settings({PREFIX + k: v for k, v in config.items()}, PREFIX)
    except ConfigError as error:
        assert error.problems
    else:
        assert settings.has_secret or not config.get("SECRET")
        assert all(settings.secrets) and all(settings.authorizations)
        assert 1 <= settings.tolerance <= 1000 * YEAR
        assert 43200 <= settings.retention <= 1000 * YEAR


def test_further_problems_are_reported_with_those_of_the_keys() -> None:
    config = {PREFIX + "MAX_AGE": 60, PREFIX + "LEASE": 0}
    with pytest.raises(ConfigError) as caught:
        read_settings(config, PREFIX, further=lambda s: [f"MAX_AGE is {s.max_age:g}."])
    assert caught.value.problems == (
        "PROCORE_WEBHOOK_LEASE must be at least 1 s, not 0.",
        "MAX_AGE is 60.",
    )


# Prefixes


def test_longer_prefix_does_not_inherit_values_of_the_shorter() -> None:
    config = {"PROCORE_WEBHOOK_SECRET": "of live"}
    assert not read_settings(config, "PROCORE_WEBHOOK_SANDBOX_").has_secret


def test_misspelt_key_of_the_longer_prefix_is_found() -> None:
    config = {
        "PROCORE_WEBHOOK_SANDBOX_SECRET": "x",
        "PROCORE_WEBHOOK_SANDBOX_TOLERANC": 5,
    }
    with pytest.raises(ConfigError) as caught:
        read_settings(config, "PROCORE_WEBHOOK_SANDBOX_")
    assert str(caught.value) == (
        "PROCORE_WEBHOOK_SANDBOX_TOLERANC is not a setting;"
        " did you mean PROCORE_WEBHOOK_SANDBOX_TOLERANCE? If it is yours, give the"
        " blueprint another config_prefix=."
    )


def test_control_character_within_a_value_is_refused() -> None:
    """A header cannot contain control characters, so no delivery could match."""
    with pytest.raises(ConfigError, match="AUTHORIZATION holds a control character"):
        read_settings({"P_AUTHORIZATION": "Bearer a\nb"}, "P_")
