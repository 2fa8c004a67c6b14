"""An app without a secret starts, and its deliveries are answered 503."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from support.values import AUTHORIZATION
from support.web import BODY
from support.web import exact
from support.web import PATH
from support.web import post

from flask_procore_webhooks import delivery_rejected
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import PrudraWebhooks
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import Deliveries
from flask_procore_webhooks.testing import payload
from flask_procore_webhooks.testing import sign

MakeApp = Callable[..., Flask]
UNAVAILABLE = (503, {"error": "Unavailable"}, "60")


@pytest.fixture
def bare(make_app: MakeApp) -> Flask:
    """An app outside of tests, without a secret."""
    app = make_app(TESTING=False)
    del app.config["PROCORE_WEBHOOK_SECRET"]
    return app


def test_registration_succeeds_and_logs_one_line(
    bare: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    bare.register_blueprint(ProcoreWebhooks())
    (line,) = caplog.records
    assert (line.levelname, line.name) == ("WARNING", "flask_procore_webhooks")
    text = line.getMessage()
    assert text.startswith(
        "procore_webhooks: Deliveries are answered 503 until PROCORE_WEBHOOK_SECRET or"
        " PROCORE_WEBHOOK_AUTHORIZATION is set. "
    )
    assert "secrets.token_urlsafe(32)" in text and "\n" not in text


@pytest.mark.parametrize("config", [{}, {"SECRET": None}, {"AUTHORIZATION": None}])
@pytest.mark.parametrize("secret", ["", "None", "a guess"])
def test_every_delivery_is_answered_503(
    bare: Flask, config: dict[str, None], secret: str
) -> None:
    bare.config.update({f"PROCORE_WEBHOOK_{key}": v for key, v in config.items()})
    bare.register_blueprint(ProcoreWebhooks())
    headers = {**sign(BODY, secret), "Authorization": secret}
    assert exact(post(bare, BODY, headers=headers)) == UNAVAILABLE
    assert exact(post(bare, BODY)) == UNAVAILABLE


class Untouchable:
    """A body that fails the test if it is read."""

    def read(self, *_: object) -> bytes:
        raise AssertionError("the body was read")

    readline = readlines = readinto = read


def test_neither_body_nor_database_is_touched(bare: Flask) -> None:
    """An unreachable database is answered with another Retry-After."""
    bare.config["PROCORE_WEBHOOK_DATABASE_URI"] = "sqlite:////nowhere/inbox.db"
    bare.config["PROCORE_WEBHOOK_DISPATCH"] = "worker"
    bare.register_blueprint(ProcoreWebhooks())
    environ = {"wsgi.input": Untouchable(), "CONTENT_LENGTH": "99999999"}
    answer = bare.test_client().post(PATH, environ_overrides=environ)
    assert exact(answer) == UNAVAILABLE


def test_deliveries_are_counted_in_the_log_and_signalled(
    bare: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[object] = []
    delivery_rejected.connect(lambda app, **fields: seen.append(fields["status"]))
    bare.register_blueprint(ProcoreWebhooks())
    caplog.clear()
    for _ in range(50):
        post(bare, BODY)
    assert seen == [503] * 50
    (line,) = caplog.records
    assert line.levelname == "ERROR"
    assert line.getMessage().startswith("procore_webhooks answered 503: no secret is")


def test_head_is_answered_204(bare: Flask) -> None:
    bare.register_blueprint(ProcoreWebhooks())
    assert bare.test_client().head(PATH).status_code == 204


# In tests


def test_random_secret_is_used_while_the_app_is_tested(
    bare: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    """Many suites set ``TESTING`` after the app is made."""
    bare.register_blueprint(ProcoreWebhooks())
    bare.testing = True
    assert deliver(bare.test_client(), payload("RFIs.create")).status_code == 200
    assert Deliveries(bare).deliver(payload("RFIs.create")).status_code == 200
    forged = {"X-Procore-Signature": "0" * 64}
    answer = deliver(bare.test_client(), payload("RFIs.create"), headers=forged)
    assert answer.status_code == 401
    (endpoint,) = endpoints(bare).values()
    assert endpoint.test_secret not in caplog.text + repr(endpoint)
    bare.testing = False
    assert exact(deliver(bare.test_client(), payload("RFIs.create"))) == UNAVAILABLE


def test_tested_app_logs_nothing_at_registration(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    make_app(PROCORE_WEBHOOK_SECRET=None).register_blueprint(ProcoreWebhooks())
    assert not caplog.records


def test_each_endpoint_and_app_has_a_random_secret_of_its_own(
    make_app: MakeApp,
) -> None:
    blueprints = ProcoreWebhooks(), PrudraWebhooks()
    found = set()
    for _ in range(2):
        app = make_app(PROCORE_WEBHOOK_SECRET=None)
        for blueprint in blueprints:
            app.register_blueprint(blueprint)
        for endpoint in endpoints(app).values():
            found.add(endpoint.test_secret)
            answer = deliver(
                app.test_client(), payload("RFIs.create"), endpoint=endpoint.name
            )
            assert answer.status_code == 200
    assert len(found) == 4 and all(len(secret) >= 32 for secret in found)


def test_configured_secret_is_used_in_tests_too(app: Flask) -> None:
    (endpoint,) = endpoints(app).values()
    headers = sign(BODY, endpoint.test_secret)
    assert post(app, BODY, headers=headers).status_code == 401


# Commands


@pytest.mark.parametrize("command", ["secret", "init-db"])
def test_commands_work_without_a_secret(bare: Flask, command: str) -> None:
    db = SQLAlchemy()
    bare.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    db.init_app(bare)
    bare.register_blueprint(ProcoreWebhooks(db=db))
    result = bare.test_cli_runner().invoke(args=["procore-webhooks", command])
    assert result.exit_code == 0, result.output


def test_check_fails_without_a_secret(bare: Flask) -> None:
    bare.register_blueprint(ProcoreWebhooks())
    result = bare.test_cli_runner().invoke(args=["procore-webhooks", "check"])
    assert result.exit_code == 1
    assert "ERROR: Deliveries are answered 503 until PROCORE_WEBHOOK_SEC" in (
        result.output
    )
    assert "another handler" not in result.output


def test_trigger_and_verify_say_that_there_is_no_secret(bare: Flask) -> None:
    bare.register_blueprint(ProcoreWebhooks())
    runner = bare.test_cli_runner()
    url = "http://127.0.0.1:1/"
    args = ["procore-webhooks", "trigger", "RFIs.create", "--url", url]
    result = runner.invoke(args=args)
    assert result.exit_code != 0 and "has no secret" in result.output
    args = ["procore-webhooks", "verify", "-"]
    result = runner.invoke(args=args, input=b"{}")
    assert result.exit_code == 1 and "no secret is configured" in result.output


# Weak secrets


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"SECRET": "x"}, "PROCORE_WEBHOOK_SECRET has 1 byte and may be guessed"),
        ({"SECRET": "changeme" * 4}, "PROCORE_WEBHOOK_SECRET is easy to guess"),
        (
            {"SECRET": None, "AUTHORIZATION": AUTHORIZATION},
            "PROCORE_WEBHOOK_SECRET is None, so that only PROCORE_WEBHOOK_AUTH",
        ),
    ],
)
def test_weak_configuration_is_logged_at_registration(
    make_app: MakeApp,
    caplog: pytest.LogCaptureFixture,
    config: dict[str, object],
    text: str,
) -> None:
    app = make_app(**{f"PROCORE_WEBHOOK_{key}": v for key, v in config.items()})
    app.register_blueprint(ProcoreWebhooks())
    (line,) = caplog.records
    assert line.levelno == logging.WARNING
    assert line.getMessage().startswith(f"procore_webhooks: {text}")
