"""The keys of Procore's REST side, and ``hooks_for=``."""

from __future__ import annotations

from typing import Any

import pytest
from support.configs import PREFIX

from flask_procore_webhooks import ConfigError
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.config import read_settings
from flask_procore_webhooks.config.api import ApiSettings
from flask_procore_webhooks.config.api import is_secure
from flask_procore_webhooks.config.api import read_scopes
from flask_procore_webhooks.config.api import Scope

SECRET = "a client secret of 30 characters"


def read(**keys: Any) -> ApiSettings:
    config = {PREFIX + key: value for key, value in keys.items()}
    config[f"{PREFIX}AUTHORIZATION"] = "Bearer 9f3b1c6e0a7d"
    return read_settings(config, PREFIX, own_database=True).api


def problem(**keys: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read(**keys)
    (found,) = caught.value.problems
    return found


def test_no_key_is_needed_to_receive() -> None:
    settings = read()
    assert settings == ApiSettings()
    assert not settings.is_configured
    assert settings.api_url == "https://api.procore.com"
    assert settings.login_url == "https://login.procore.com"
    assert settings.payload_version == "v4.0"


def test_missing_keys_are_named() -> None:
    assert read(API_CLIENT_ID="an id", NAMESPACE="tracker").missing() == [
        "URL",
        "API_CLIENT_SECRET",
        "SCOPES",
    ]


def test_repr_leaves_the_client_secret_out() -> None:
    settings = read(API_CLIENT_ID="an id", API_CLIENT_SECRET=SECRET)
    assert settings.is_configured
    assert SECRET not in repr(settings)


@pytest.mark.parametrize("key", ["URL", "API_URL", "API_LOGIN_URL"])
@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8001",
        "http://127.9.9.9",
        "http://[::1]:8001",
        "http://localhost:5000",
        "https://app.example.com:8443",
        "https://xn--bcher-kva.example",
    ],
)
def test_addresses_are_https_or_on_this_machine(key: str, url: str) -> None:
    assert (
        getattr(
            read(**{key: url}), {"API_LOGIN_URL": "login_url"}.get(key, key.lower())
        )
        == url
    )


@pytest.mark.parametrize("key", ["URL", "API_URL", "API_LOGIN_URL"])
@pytest.mark.parametrize(
    "url",
    [
        "http://api.procore.com",
        "http://localhost.example.com",
        "http://127.0.0.1.example.com",
        "http://192.168.1.5",
        "ftp://api.procore.com",
        "api.procore.com",
        "https://",
        "https://host:port",
        "https://host:99999",
        "https://[::1",
        "https://api.procore.com:0",
        "https://api.procore.com/\x00",
        "https://api.procore.com/\u202e",
        "https://user:word@api.procore.com",
        "https://api.procore.com/a b",
        "https://api.procore.com/#top",
        "",
        443,
        b"https://api.procore.com",
    ],
)
def test_other_addresses_are_refused(key: str, url: object) -> None:
    text = problem(**{key: url})
    assert text.startswith(f"{PREFIX}{key} must ")
    assert "word" not in text.replace("password", "")


@pytest.mark.parametrize("key", ["API_URL", "API_LOGIN_URL"])
def test_addresses_of_procore_have_no_query(key: str) -> None:
    assert "must not hold a query" in problem(**{key: "https://api.example?x=1"})
    assert (
        read(URL="https://app.example/hook?x=1").url == "https://app.example/hook?x=1"
    )


@pytest.mark.parametrize("value", ["Tracker", "a b", "", "ä", "a_b", "x" * 81, 5])
def test_namespace_has_procores_alphabet(value: object) -> None:
    text = problem(NAMESPACE=value)
    assert text.startswith(f"{PREFIX}NAMESPACE must be lower-case letters, digits and")


@pytest.mark.parametrize("value", ["4.0", "v", "v4.0.1", "", 4.0])
def test_payload_version_is_a_version(value: object) -> None:
    assert problem(PAYLOAD_VERSION=value).startswith(f"{PREFIX}PAYLOAD_VERSION must be")


@pytest.mark.parametrize(
    "scope",
    [
        {},
        {"project": "2"},
        {"company": "1", "projects": ["2"]},
        {"company": "one"},
        {"company": "1", "project": "../2"},
        {"company": True},
        {"company": 1.5},
        {"company": "01"},
        {"company": "0"},
        {"company": -1},
        {"company": "１"},
        "1",
        None,
        ["1", "2"],
    ],
)
def test_scopes_name_a_company_and_perhaps_a_project(scope: object) -> None:
    text = problem(SCOPES=[{"company": "1"}, scope])
    assert text.startswith(f"{PREFIX}SCOPES must hold scopes, as in ")


@pytest.mark.parametrize("value", ["1", {"company": "1"}, 5, True])
def test_scopes_are_a_list_or_a_function(value: object) -> None:
    assert problem(SCOPES=value).startswith(f"{PREFIX}SCOPES must be a list or a func")


def test_scopes_hold_each_scope_once_with_ids_as_text() -> None:
    values: list[object] = [
        {"company": 1, "project": None},
        Scope("1"),
        {"company": " 1 "},
    ]
    assert read_scopes(values) == ([Scope("1")], [])


def test_function_of_scopes_is_not_called_by_registration() -> None:
    def scopes() -> list[dict[str, str]]:
        raise AssertionError

    assert read(SCOPES=scopes).scopes is scopes


@pytest.mark.parametrize(
    ("url", "expected"),
    [("https://a.example", True), ("http://[::1]", True), ("http://a.example", False)],
)
def test_secure_addresses_are_encrypted_or_local(url: str, expected: bool) -> None:
    assert is_secure(url) is expected


@pytest.mark.parametrize(
    "patterns", [["RFIs.updated.twice", "RFIs", 5], [""], [".update"], "RFIs", [None]]
)
def test_patterns_of_hooks_for_are_checked_at_the_constructor(patterns: Any) -> None:
    with pytest.raises((ConfigError, ValueError, TypeError)) as caught:
        ProcoreWebhooks(hooks_for=patterns)
    assert "hooks_for" in str(caught.value)
