"""``check``: secrets, logging, the platform, the embedded file, pools."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from support.commands import mounted
from support.commands import run
from support.inboxes import dispose
from support.services import drop_tables
from support.values import AUTHORIZATION
from support.values import SECRET

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.cli._check_settings import logger
from flask_procore_webhooks.config import Settings
from flask_procore_webhooks.endpoint import app_state
from flask_procore_webhooks.operations.seen import note_seen
from flask_procore_webhooks.operations.seen import SEEN
from flask_procore_webhooks.storage.servers import utc_now

MakeApp = Callable[..., Flask]

STRONG = "a7Vd93kPq0xLmZ28sTg5"


def warnings_of(app: Flask) -> str:
    return run(app, "check").output


# Secrets


def test_secret_of_two_endpoints_is_a_warning_that_shows_no_value(
    make_app: MakeApp,
) -> None:
    app = make_app(BOLT_SECRET=STRONG, PROCORE_WEBHOOK_SECRET=STRONG)
    bolt = ProcoreWebhooks("bolt", url_prefix="/bolt", config_prefix="BOLT_")
    mounted(app, ProcoreWebhooks(), bolt)
    shown = warnings_of(app)
    assert "PROCORE_WEBHOOK_SECRET has a value of BOLT_SECRET" in shown
    assert "BOLT_SECRET has a value of PROCORE_WEBHOOK_SECRET" in shown
    assert STRONG not in shown


def test_fallback_and_authorization_of_two_endpoints_are_compared(
    make_app: MakeApp,
) -> None:
    app = make_app(
        PROCORE_WEBHOOK_AUTHORIZATION=AUTHORIZATION,
        BOLT_SECRET=STRONG,
        BOLT_SECRET_FALLBACKS=[SECRET],
        BOLT_AUTHORIZATION=AUTHORIZATION,
    )
    bolt = ProcoreWebhooks("bolt", url_prefix="/bolt", config_prefix="BOLT_")
    shown = warnings_of(mounted(app, ProcoreWebhooks(), bolt))
    assert "PROCORE_WEBHOOK_SECRET has a value of BOLT_SECRET" in shown
    assert "PROCORE_WEBHOOK_AUTHORIZATION has a value of BOLT_AUTHORIZATION" in shown


def test_different_secrets_are_no_finding(make_app: MakeApp) -> None:
    app = make_app(BOLT_SECRET=STRONG, SECRET_KEY="k3" * 20)
    bolt = ProcoreWebhooks("bolt", url_prefix="/bolt", config_prefix="BOLT_")
    shown = warnings_of(mounted(app, ProcoreWebhooks(), bolt))
    assert "has a value of" not in shown and "SECRET_KEY" not in shown


def test_secret_that_signs_sessions_too_is_a_warning(make_app: MakeApp) -> None:
    shown = warnings_of(mounted(make_app(SECRET_KEY=SECRET)))
    assert "PROCORE_WEBHOOK_SECRET is the app's SECRET_KEY" in shown


def test_dated_fallback_of_two_endpoints_is_a_warning_until_it_ends(
    make_app: MakeApp,
) -> None:
    for day, is_accepted in (("2999-01-31", True), ("2020-01-31", False)):
        dated = [(STRONG, day)]
        app = make_app(
            PROCORE_WEBHOOK_SECRET_FALLBACKS=dated,
            PROCORE_WEBHOOK_AUTHORIZATION=AUTHORIZATION,
            PROCORE_WEBHOOK_AUTHORIZATION_FALLBACKS=dated,
            BOLT_SECRET=STRONG,
            BOLT_AUTHORIZATION=STRONG,
        )
        bolt = ProcoreWebhooks("bolt", url_prefix="/bolt", config_prefix="BOLT_")
        shown = warnings_of(mounted(app, ProcoreWebhooks(), bolt))
        for key in ("SECRET", "AUTHORIZATION"):
            said = f"PROCORE_WEBHOOK_{key} has a value of BOLT_{key}"
            assert (said in shown) is is_accepted
            said = f"a value of PROCORE_WEBHOOK_{key}_FALLBACKS was valid until {day}"
            assert (said in shown) is not is_accepted


@pytest.mark.parametrize(
    ("key", "config"),
    [
        ("SECRET", {"SECRET_KEY": STRONG, "SECRET_KEY_FALLBACKS": [SECRET]}),
        ("SECRET", {"SECRET_KEY": SECRET.encode()}),
        (
            "AUTHORIZATION",
            {"SECRET_KEY": STRONG, "PROCORE_WEBHOOK_AUTHORIZATION": f"Bearer {STRONG}"},
        ),
    ],
)
def test_every_key_that_signs_sessions_is_compared(
    make_app: MakeApp, key: str, config: dict[str, Any]
) -> None:
    shown = warnings_of(mounted(make_app(**config)))
    assert f"PROCORE_WEBHOOK_{key} is the app's SECRET_KEY" in shown


@pytest.mark.parametrize(
    ("secret", "finding"),
    [
        ("x" * 40, "PROCORE_WEBHOOK_SECRET is easy to guess"),
        ("changeme-changeme-changeme", "PROCORE_WEBHOOK_SECRET is easy to guess"),
        ("procore-webhook-secret-2026", "PROCORE_WEBHOOK_SECRET is easy to guess"),
        ("s3", "PROCORE_WEBHOOK_SECRET has 2 bytes and may be guessed"),
        (STRONG, None),
    ],
)
def test_weak_secrets_are_logged_and_are_warnings(
    make_app: MakeApp,
    secret: str,
    finding: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = mounted(make_app(PROCORE_WEBHOOK_SECRET=secret))
    shown = warnings_of(app)
    if finding:
        (said,) = caplog.messages
        assert said.startswith(f"procore_webhooks: {finding}")
        assert f"warning: {finding}" in shown and shown.count("guess") == 1
    else:
        assert "guess" not in shown and not caplog.messages


def test_factor_that_is_none_beside_one_that_is_set_is_a_warning(
    make_app: MakeApp,
) -> None:
    app = make_app(
        PROCORE_WEBHOOK_SECRET=None, PROCORE_WEBHOOK_AUTHORIZATION=AUTHORIZATION
    )
    shown = warnings_of(mounted(app))
    assert "PROCORE_WEBHOOK_SECRET is None" in shown
    app = make_app(PROCORE_WEBHOOK_AUTHORIZATION=AUTHORIZATION)
    del app.config["PROCORE_WEBHOOK_SECRET"]
    assert "is None" not in warnings_of(mounted(app))


def test_endpoint_without_any_secret_is_an_error(app: Flask) -> None:
    state = app_state(app)
    for name, endpoint in state.endpoints.items():
        state.endpoints[name] = replace(endpoint, settings=Settings())
    app.testing = False
    shown = run(app, "check", ok=False).output
    assert (
        "ERROR: Deliveries are answered 503 until PROCORE_WEBHOOK_SECRET or"
        " PROCORE_WEBHOOK_AUTHORIZATION is set." in shown
    )


def test_random_secret_of_tests_is_an_error(make_app: MakeApp) -> None:
    app = mounted(make_app(PROCORE_WEBHOOK_SECRET=None))
    shown = run(app, "check", ok=False).output
    assert "only deliver() of this process is accepted. Set PROCORE_WEBHOOK" in shown
    assert "Deliveries can come in." not in shown
    assert "503" not in shown


# Logging


@contextmanager
def bare_loggers() -> Iterator[tuple[logging.Logger, logging.Logger]]:
    """The package's logger and the root, without the handlers of pytest."""
    ours, root = logging.getLogger("flask_procore_webhooks"), logging.getLogger()
    before = {each: (each.handlers, each.level) for each in (ours, root)}
    ours.handlers, root.handlers = [], []
    try:
        yield ours, root
    finally:
        for each, (handlers, level) in before.items():
            each.handlers = handlers
            each.setLevel(level)
            each.disabled = False


def test_logger_without_a_handler_is_a_warning(app: Flask) -> None:
    with bare_loggers() as (_, root):
        assert "and its parents have no handler" in warnings_of(app)
        root.addHandler(logging.StreamHandler())
        assert "have no handler" not in warnings_of(app)


def test_handler_that_writes_no_warnings_is_a_warning() -> None:
    with bare_loggers() as (ours, root):
        root.addHandler(logging.NullHandler())
        (finding,) = logger()
        assert "No handler" in finding.text and not finding.error
        handler = logging.StreamHandler()
        root.addHandler(handler)
        assert list(logger()) == []
        handler.setLevel(logging.CRITICAL)
        assert len(list(logger())) == 1
        handler.setLevel(logging.WARNING)
        ours.setLevel(logging.ERROR)
        (finding,) = logger()
        assert "its level is ERROR" in finding.text
        ours.setLevel(logging.NOTSET)
        ours.disabled = True
        (finding,) = logger()
        assert "is disabled" in finding.text


# The embedded file, and the platform


def test_embedded_file_that_others_can_read_is_a_warning(app: Flask) -> None:
    run(app, "check")
    path = os.path.join(app.instance_path, "procore_webhooks.db")
    for name in (path, f"{path}-wal", f"{path}-shm"):
        if os.path.exists(name):
            os.chmod(name, 0o600)
    os.chmod(app.instance_path, 0o755)
    assert "Other users" not in warnings_of(app)
    os.chmod(path, 0o640)
    assert f"chmod 600 {path} (0640)" in warnings_of(app)
    os.chmod(path, 0o600)
    os.chmod(app.instance_path, 0o777)
    assert f"can replace files in {app.instance_path} (mode 0777)" in warnings_of(app)


@pytest.mark.parametrize(
    ("variable", "platform", "serverless"),
    [
        ("K_SERVICE", "Cloud Run", True),
        ("AWS_LAMBDA_FUNCTION_NAME", "AWS Lambda", True),
        ("VERCEL", "Vercel", True),
        ("DYNO", "Heroku", False),
        ("KUBERNETES_SERVICE_HOST", "Kubernetes", False),
        ("WEBSITE_INSTANCE_ID", "Azure App Service", False),
        ("FLY_APP_NAME", "Fly.io", False),
    ],
)
def test_embedded_file_on_a_platform_of_several_instances_is_a_warning(
    make_app: MakeApp,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    platform: str,
    serverless: bool,
) -> None:
    app = mounted(make_app(PROCORE_WEBHOOK_DISPATCH="background"))
    assert "one machine" not in warnings_of(app)
    monkeypatch.setenv(variable, "x")
    shown = warnings_of(app)
    assert "SQLite file, which is for one machine, and this is " + platform in shown
    assert (f"{platform} suspends a process" in shown) is serverless


def test_database_server_on_such_a_platform_is_no_finding(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch, postgresql_url: str
) -> None:
    monkeypatch.setenv("K_SERVICE", "x")
    app = mounted(make_app(PROCORE_WEBHOOK_DATABASE_URI=postgresql_url))
    run(app, "init-db")
    assert "one machine" not in warnings_of(app)
    for endpoint in app_state(app).endpoints.values():
        database = endpoint.store.database
        database.tables.event.metadata.drop_all(database.engine)
        database.engine.dispose()


# Clocks and engines


@pytest.mark.parametrize(
    ("ahead", "lease", "side"),
    [
        (0, 300, None),
        (4, 300, None),
        (4, 3, "4 s ahead of"),
        (600, 300, "600 s ahead of"),
        (-600, 300, "600 s behind"),
    ],
)
@pytest.mark.parametrize("server", ["postgresql", "mariadb"])
def test_clock_that_differs_from_the_database_servers_is_a_warning(
    make_app: MakeApp,
    request: pytest.FixtureRequest,
    server: str,
    ahead: float,
    lease: float,
    side: str | None,
) -> None:
    url = request.getfixturevalue(f"{server}_url")
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI=url, PROCORE_WEBHOOK_LEASE=lease)
    mounted(app)
    (endpoint,) = app_state(app).endpoints.values()
    endpoint.store.clock.host_now = lambda: utc_now() + timedelta(seconds=ahead)
    run(app, "init-db")
    shown = warnings_of(app)
    if side:
        assert f"warning: The clock of this host is {side} the clock of the" in shown
    else:
        assert "clock" not in shown
    drop_tables(url)
    dispose(app)


@pytest.mark.parametrize(
    "options", [{"isolation_level": "AUTOCOMMIT"}, {"connect_args": "driver"}, {}]
)
def test_engine_that_commits_by_itself_is_one_warning(
    make_app: MakeApp, database_url: str, options: dict[str, Any]
) -> None:
    if "connect_args" in options:
        is_sqlite = database_url.startswith("sqlite")
        options = {
            "connect_args": (
                {"isolation_level": None} if is_sqlite else {"autocommit": True}
            )
        }
    db = SQLAlchemy()
    app = make_app(
        SQLALCHEMY_DATABASE_URI=database_url, SQLALCHEMY_ENGINE_OPTIONS=options
    )
    db.init_app(app)
    mounted(app, ProcoreWebhooks(db=db))
    run(app, "init-db")
    shown = warnings_of(app)
    assert shown.count("warning: The app's engine is in AUTOCOMMIT") == bool(options)
    with app.app_context():
        db.engine.dispose()


# Pools


@pytest.mark.parametrize(
    ("options", "finding"),
    [
        ({"pool_size": 2, "max_overflow": 0}, "The app's pool has 2 connections"),
        ({"pool_size": 2, "max_overflow": 4}, None),
        ({"pool_size": 2, "max_overflow": -1}, None),
        ({"poolclass": sa.StaticPool}, "The app's engine has a StaticPool"),
        ({"poolclass": sa.NullPool}, None),
        ({}, None),
    ],
)
def test_pool_that_is_too_small_for_its_threads_is_a_warning(
    make_app: MakeApp, tmp_path: Any, options: dict[str, Any], finding: str | None
) -> None:
    db = SQLAlchemy()
    app = make_app(
        SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path}/host.db",
        SQLALCHEMY_ENGINE_OPTIONS=options,
        PROCORE_WEBHOOK_DISPATCH="background",
    )
    db.init_app(app)
    mounted(app, ProcoreWebhooks(db=db))
    run(app, "init-db")
    shown = warnings_of(app)
    if finding:
        assert f"warning: {finding}" in shown
    else:
        assert "The app's pool" not in shown and "The app's engine" not in shown
    with app.app_context():
        db.engine.dispose()


def test_pool_is_compared_with_the_threads_of_live_workers(
    make_app: MakeApp, tmp_path: Path
) -> None:
    db = SQLAlchemy()
    app = make_app(
        SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path}/host.db",
        SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 4, "max_overflow": 0},
        PROCORE_WEBHOOK_DISPATCH="worker",
    )
    db.init_app(app)
    mounted(app, ProcoreWebhooks(db=db))
    run(app, "init-db")
    assert "The app's pool" not in warnings_of(app)
    (endpoint,) = app_state(app).endpoints.values()
    note_seen(endpoint.store, "worker", None, [0] * 2)
    assert "The app's pool" not in warnings_of(app)
    endpoint.store.database.parts.pop(SEEN)
    note_seen(endpoint.store, "worker", None, [0] * 3)
    shown = warnings_of(app)
    assert "The app's pool has 4 connections, and 3 threads that run" in shown
    assert "lower --concurrency" in shown
    with app.app_context():
        db.engine.dispose()


def test_network_file_system_and_a_full_disk_are_warnings(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This machine's own kind of file system stands for a network's."""
    module = "flask_procore_webhooks.cli._check_database"
    shown = warnings_of(app)
    assert "network file system" not in shown and "MiB left" not in shown
    mounts = Path("/proc/self/mounts").read_text()
    kinds = {line.split()[2] for line in mounts.splitlines()}
    monkeypatch.setattr(f"{module}.NETWORK_FILE_SYSTEMS", kinds)
    monkeypatch.setattr(f"{module}.LITTLE_SPACE", 2**62)
    shown = warnings_of(app)
    assert "is a SQLite file on a network file system (" in shown
    assert f"The disk of {app.instance_path} has " in shown


# Attempts


@pytest.mark.parametrize(("most", "warns"), [(20, False), (21, True)])
def test_inline_with_more_attempts_than_procore_makes_is_a_warning(
    make_app: MakeApp, most: int, warns: bool
) -> None:
    app = make_app(PROCORE_WEBHOOK_DISPATCH="inline", PROCORE_WEBHOOK_MAX_ATTEMPTS=most)
    mounted(app, ProcoreWebhooks())
    assert ("Procore gives up after about 22" in warnings_of(app)) is warns


def test_other_modes_may_have_any_number_of_attempts(make_app: MakeApp) -> None:
    app = make_app(PROCORE_WEBHOOK_DISPATCH="worker", PROCORE_WEBHOOK_MAX_ATTEMPTS=57)
    mounted(app, ProcoreWebhooks())
    assert "Procore gives up" not in warnings_of(app)
