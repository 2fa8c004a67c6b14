"""The settings of an app: from its config, the environment, and each prefix."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from flask import Flask
from support.configs import MISTAKES
from support.configs import PREFIX

from flask_procore_webhooks import ConfigError
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import PrudraWebhooks
from flask_procore_webhooks.config import Settings
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.testing import sign

BODY = b'{"id":"1","type":"resource.created"}'


def app_from_environment(monkeypatch: pytest.MonkeyPatch, **keys: str) -> Flask:
    """An app whose config comes from ``FLASK_PROCORE_WEBHOOK_…``, as Flask reads it."""
    for key, value in keys.items():
        monkeypatch.setenv(f"FLASK_{PREFIX}{key}", value)
    app = Flask("host")
    app.config.from_prefixed_env()
    return app


def settings_of(app: Flask, name: str = "procore_webhooks") -> Settings:
    return endpoints(app)[name].settings


# Refused


def test_app_with_mistakes_does_not_start(make_app: Callable[..., Flask]) -> None:
    app = make_app(**{PREFIX + key: value for key, value in MISTAKES.items()})
    with pytest.raises(ConfigError) as caught:
        app.register_blueprint(ProcoreWebhooks())
    assert len(caught.value.problems) == 18
    text = str(caught.value)
    assert text.startswith("18 problems:\n- PROCORE_WEBHOOK_")
    assert text.count("\n- ") == 18
    assert all(PREFIX + key in text for key in MISTAKES)


def test_app_that_ignores_the_config_error_accepts_nothing(
    make_app: Callable[..., Flask],
) -> None:
    app = make_app(TESTING=False, PROCORE_WEBHOOK_SECRET="")
    with pytest.raises(ConfigError):
        app.register_blueprint(ProcoreWebhooks())
    for secret in ("", "None", "a secret"):
        answer = app.test_client().post(
            "/webhooks/procore", data=BODY, headers=sign(BODY, secret)
        )
        assert answer.status_code == 500


# From the environment


@pytest.mark.parametrize("key", ["SECRET", "AUTHORIZATION"])
@pytest.mark.parametrize(
    ("value", "kind"), [("12345678", "int"), ("1e5", "float"), ("true", "bool")]
)
def test_numeric_secret_from_the_environment_is_refused_with_advice(
    monkeypatch: pytest.MonkeyPatch, key: str, value: str, kind: str
) -> None:
    app = app_from_environment(monkeypatch, **{key: value})
    with pytest.raises(ConfigError) as caught:
        app.register_blueprint(ProcoreWebhooks())
    assert str(caught.value) == (
        f"{PREFIX}{key} must be text, not {kind}; from_prefixed_env parses JSON, so"
        " write it in double quotes there."
    )
    assert value not in str(caught.value)


def test_quoted_numeric_secret_from_the_environment_is_accepted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = app_from_environment(monkeypatch, SECRET='"00012345"')
    app.register_blueprint(ProcoreWebhooks())
    assert settings_of(app).secrets == (b"00012345",)


def test_empty_environment_variable_is_refused_and_null_means_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = app_from_environment(monkeypatch, SECRET="", AUTHORIZATION="null")
    with pytest.raises(ConfigError) as caught:
        app.register_blueprint(ProcoreWebhooks())
    assert str(caught.value) == "PROCORE_WEBHOOK_SECRET is empty."


def test_secret_with_a_trailing_newline_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = app_from_environment(monkeypatch, SECRET="a secret\n")
    with pytest.raises(ConfigError, match="stray newline"):
        app.register_blueprint(ProcoreWebhooks())


def test_every_kind_of_value_comes_through_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = app_from_environment(
        monkeypatch,
        SECRET="a secret, with = and \\ and 'quotes'",
        SECRET_FALLBACKS='["old", "007"]',
        TOLERANCE="60",
        MAX_BYTES="1000",
        IGNORE_USER_IDS='[1001, "1002"]',
        DISPATCH="inline",
        RETENTION="1e6",
    )
    app.register_blueprint(ProcoreWebhooks())
    settings = settings_of(app)
    assert settings.secrets == (
        b"a secret, with = and \\ and 'quotes'",
        b"old",
        b"007",
    )
    assert (settings.tolerance, settings.max_bytes) == (60.0, 1000)
    assert settings.ignore_user_ids == {"1001", "1002"}
    assert settings.retention == 1e6


@pytest.mark.parametrize("value", ["old", "old,older", "['old']", '"old"'])
def test_list_that_the_environment_left_as_text_is_refused(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    app = app_from_environment(monkeypatch, SECRET="new", SECRET_FALLBACKS=value)
    with pytest.raises(ConfigError, match="SECRET_FALLBACKS must be a list, not str"):
        app.register_blueprint(ProcoreWebhooks())


@pytest.mark.parametrize("key", ["SECRET", "AUTHORIZATION"])
def test_environment_bytes_that_are_not_utf_8_stay_those_bytes(
    monkeypatch: pytest.MonkeyPatch, make_app: Callable[..., Flask], key: str
) -> None:
    raw = b"caf\xe9 \xff\x80"
    monkeypatch.setenv(f"FLASK_{PREFIX}{key}", os.fsdecode(raw))
    app = make_app(PROCORE_WEBHOOK_SECRET=None)
    app.config.from_prefixed_env()
    app.register_blueprint(ProcoreWebhooks())
    settings = settings_of(app)
    assert settings.secrets + settings.authorizations == (raw,)
    environ = {"HTTP_AUTHORIZATION": raw.decode("latin-1")}
    answer = app.test_client().post(
        "/webhooks/procore",
        data=BODY,
        headers=sign(BODY, raw),
        environ_overrides=environ,
    )
    assert answer.status_code == 200


def test_lone_surrogate_in_json_is_a_config_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = app_from_environment(monkeypatch, SECRET='"\\ud800"')
    with pytest.raises(ConfigError, match="PROCORE_WEBHOOK_SECRET holds a lone"):
        app.register_blueprint(ProcoreWebhooks())


# Read once


def test_config_changes_after_registration_have_no_effect(
    make_app: Callable[..., Flask],
) -> None:
    fallbacks = ["old"]
    app = make_app(
        PROCORE_WEBHOOK_SECRET="new", PROCORE_WEBHOOK_SECRET_FALLBACKS=fallbacks
    )
    app.register_blueprint(ProcoreWebhooks())
    before = settings_of(app)
    app.config["PROCORE_WEBHOOK_SECRET"] = None
    app.config["PROCORE_WEBHOOK_AUTHORIZATION"] = "Bearer later"
    app.config["PROCORE_WEBHOOK_MAX_BYTES"] = 1
    app.config["PROCORE_WEBHOOK_TYPO"] = 1
    fallbacks[:] = ["later"]
    client = app.test_client()
    answers = {
        secret: client.post(
            "/webhooks/procore", data=BODY, headers=sign(BODY, secret)
        ).status_code
        for secret in ("new", "old", "later", "None")
    }
    assert answers == {"new": 200, "old": 200, "later": 401, "None": 401}
    assert settings_of(app) is before


def test_each_app_of_one_blueprint_has_settings_of_its_own(
    make_app: Callable[..., Flask],
) -> None:
    blueprint = ProcoreWebhooks()
    apps = [make_app(PROCORE_WEBHOOK_SECRET=f"secret {n}") for n in range(3)]
    for app in apps:
        app.register_blueprint(blueprint)
    for n, app in enumerate(apps):
        assert settings_of(app).secrets == (b"secret %d" % n,)


# Prefixes


@pytest.mark.parametrize("first", ["live", "sandbox"])
def test_prefixes_that_extend_one_another_do_not_clash(
    make_app: Callable[..., Flask], first: str
) -> None:
    live = ProcoreWebhooks("live", url_prefix="/live")
    sandbox = ProcoreWebhooks(
        "sandbox", url_prefix="/sandbox", config_prefix="PROCORE_WEBHOOK_SANDBOX_"
    )
    app = make_app(
        PROCORE_WEBHOOK_SECRET="of live",
        PROCORE_WEBHOOK_TOLERANCE=10,
        PROCORE_WEBHOOK_SANDBOX_SECRET="of sandbox",
        PROCORE_WEBHOOK_SANDBOX_SECRET_FALLBACKS=["older"],
        PROCORE_WEBHOOK_SANDBOX_IGNORE_USER_IDS=[1001],
    )
    for blueprint in (live, sandbox) if first == "live" else (sandbox, live):
        app.register_blueprint(blueprint)
    assert settings_of(app, "live") == Settings(
        secrets=(b"of live",), tolerance=10.0, dispatch="inline"
    )
    assert settings_of(app, "sandbox") == Settings(
        secrets=(b"of sandbox", b"older"),
        ignore_user_ids=frozenset({"1001"}),
        dispatch="inline",
    )
    for path, secret in (("/live", "of live"), ("/sandbox", "of sandbox")):
        headers = sign(BODY, secret)
        answer = app.test_client().post(path, data=BODY, headers=headers)
        assert answer.status_code == 200


def test_procore_and_prudra_read_keys_of_their_own(
    make_app: Callable[..., Flask],
) -> None:
    app = make_app(PROCORE_WEBHOOK_SECRET="of procore", PRUDRA_WEBHOOK_SECRET="of p")
    app.register_blueprint(ProcoreWebhooks())
    app.register_blueprint(PrudraWebhooks())
    assert settings_of(app).secrets == (b"of procore",)
    assert settings_of(app, "prudra_webhooks").secrets == (b"of p",)
    app = make_app()
    app.register_blueprint(PrudraWebhooks())
    assert not settings_of(app, "prudra_webhooks").has_secret
