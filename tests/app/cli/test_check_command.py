"""The command ``check``: its output, warnings and errors."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import abort
from flask import Flask
from flask import redirect
from flask import request
from flask_sqlalchemy import SQLAlchemy
from support.commands import mounted
from support.commands import run
from support.values import AUTHORIZATION
from support.values import SECRET

from flask_procore_webhooks import delivery_rejected
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import PrudraWebhooks
from flask_procore_webhooks import resource_created
from flask_procore_webhooks.endpoint import app_state
from flask_procore_webhooks.running.background import background_of

MakeApp = Callable[..., Flask]


def test_check_passes_for_the_embedded_default_and_names_its_file(app: Flask) -> None:
    shown = run(app, "check").output
    assert f"sqlite:///{app.instance_path}/procore_webhooks.db" in shown
    assert "tables present" in shown
    assert "POST /webhooks/procore" in shown
    assert "Deliveries can come in." in shown


def test_check_shows_no_secret(make_app: MakeApp) -> None:
    app = make_app(
        PROCORE_WEBHOOK_SECRET="current-secret-0123",
        PROCORE_WEBHOOK_SECRET_FALLBACKS=["older-secret-0123456", "oldest-secret-0123"],
        PROCORE_WEBHOOK_AUTHORIZATION="Bearer current-token",
        PROCORE_WEBHOOK_AUTHORIZATION_FALLBACKS=["Bearer older-token"],
        PROCORE_WEBHOOK_DATABASE_URI="postgresql+psycopg://me:hunter2@127.0.0.1:1/x"
        "?password=hunter3&sslpassword=hunter4",
    )
    mounted(app)
    for arguments in (["check"], ["check", "--json"]):
        shown = run(app, *arguments, ok=False).output
        assert not re.search(r"secret-0|-token|hunter", shown)
        assert "***** (19 bytes, fallbacks: 2)" in shown


def test_check_fails_until_init_db_has_made_the_tables(host: Flask) -> None:
    shown = run(host, "check", ok=False).output
    assert "missing tables: procore_webhook_event" in shown
    assert "flask db upgrade" in shown and "init-db" in shown
    assert "Deliveries can come in" not in shown
    assert "created procore_webhook_event, procore_webhook_job" in (
        run(host, "init-db").output
    )
    assert "tables present" in run(host, "check").output
    assert "all tables exist" in run(host, "init-db").output


def to_login() -> Any:
    return redirect("/login")


def refused_as_we_do() -> Any:
    return {"error": "Log in first"}, 401


def forbidden() -> Any:
    abort(403)


def broken() -> Any:
    raise LookupError("no current user")


@pytest.mark.parametrize(
    ("before", "answer"),
    [
        (to_login, "302 FOUND"),
        (refused_as_we_do, "401 UNAUTHORIZED"),
        (forbidden, "403 FORBIDDEN"),
        (broken, "LookupError: no current user"),
    ],
)
def test_check_reports_a_before_request_that_blocks_deliveries(
    app: Flask, before: Callable[[], Any], answer: str
) -> None:
    app.before_request(before)
    shown = run(app, "check", ok=False).output
    assert "ERROR: A POST with wrong credentials to /webhooks/procore" in shown
    assert answer in shown and "request.blueprint is 'procore_webhooks'" in shown


def test_check_finds_a_route_of_the_host_at_the_same_path(make_app: MakeApp) -> None:
    app = make_app()
    app.add_url_rule("/webhooks/procore", "mine", lambda: "mine", methods=["POST"])
    assert "answered 200 OK by another handler" in (
        run(mounted(app), "check", ok=False).output
    )


def test_check_finds_two_endpoints_at_one_path(make_app: MakeApp) -> None:
    app = make_app(BOLT_SECRET=SECRET)
    bolt = ProcoreWebhooks("bolt", url_prefix="/hooks/", config_prefix="BOLT_")
    app.register_blueprint(ProcoreWebhooks(), url_prefix="/hooks")
    shown = run(mounted(app, bolt), "check", ok=False).output
    assert "'bolt' is mounted at /hooks/ too" in shown
    assert "'procore_webhooks' is mounted at /hooks too" in shown


@pytest.mark.parametrize("hosts", [None, [".example.com"]])
def test_check_passes_where_https_and_a_trusted_host_are_required(
    make_app: MakeApp, hosts: list[str] | None
) -> None:
    app = mounted(make_app(TRUSTED_HOSTS=hosts))

    @app.before_request
    def insist() -> Any:
        return None if request.is_secure else redirect("https://example.com")

    run(app, "check")


def test_check_passes_where_every_route_is_reachable(make_app: MakeApp) -> None:
    app = make_app(
        APPLICATION_ROOT="/app",
        SERVER_NAME="example.com",
        PRUDRA_WEBHOOK_AUTHORIZATION=AUTHORIZATION,
    )
    app.register_blueprint(ProcoreWebhooks(), url_prefix="/tenant/hooks/")
    app.register_blueprint(ProcoreWebhooks("b"), url_prefix="/2/b")
    run(mounted(app, PrudraWebhooks()), "check")


def test_probe_of_check_is_neither_logged_nor_signalled(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[object] = []
    delivery_rejected.connect(lambda app, **fields: seen.append(fields))
    run(app, "check")
    assert not seen and not caplog.records
    app.test_client().post("/webhooks/procore")
    assert seen and caplog.records, "the log and the signal work again"


def test_probe_of_check_starts_no_background_thread(make_app: MakeApp) -> None:
    app = mounted(make_app(TESTING=False), ProcoreWebhooks())
    run(app, "check")
    assert not background_of(app_state(app)).was_started
    app.test_client().get("/")
    assert background_of(app_state(app)).was_started, "as the first request does"


def test_check_finds_an_async_subscriber_that_cannot_run(
    app: Flask, webhooks: ProcoreWebhooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    @webhooks.on(name="sync-rfis")
    async def work(event: object) -> None: ...

    run(app, "check")
    monkeypatch.setitem(sys.modules, "asgiref", None)
    shown = run(app, "check").output
    assert "sync-rfis cannot run: pip install 'flask[async]'" in shown


def test_check_lists_subscribers_in_order_with_what_they_are_run_for(
    app: Flask, webhooks: ProcoreWebhooks
) -> None:
    webhooks.on("RFIs", "update", name="first")(print)
    resource_created.connect(lambda app, event: None, name="second")
    webhooks.on(name="third")(repr)
    resource_created.connect(lambda app, event: None, sender=Flask("x"), name="other")
    shown = run(app, "check").output
    assert re.findall("^  subscriber (.*)$", shown, re.MULTILINE) == [
        "first (RFIs update)",
        "second (resource-created)",
        "third (* *)",
    ]


@pytest.mark.parametrize(
    ("config", "warning"),
    [
        (
            {"SECRET": "short"},
            "PROCORE_WEBHOOK_SECRET has 5 bytes and may be guessed",
        ),
        ({"AUTHORIZATION": "Basic eDp5"}, "PROCORE_WEBHOOK_AUTHORIZATION has 10"),
        ({"SECRET_FALLBACKS": ["old"]}, "PROCORE_WEBHOOK_SECRET_FALLBACKS has 3"),
        (
            {"SECRET": None, "AUTHORIZATION": AUTHORIZATION},
            "PROCORE_WEBHOOK_SECRET is None, so that only",
        ),
        ({"SANDBOX_SECRET": SECRET}, "PROCORE_WEBHOOK_SANDBOX_SECRET is read by no"),
        ({"DATABASE_URI": "sqlite://"}, "inbox is in memory"),
        ({}, "There are no subscribers"),
    ],
)
def test_check_warns_and_still_passes(
    make_app: MakeApp, config: dict[str, Any], warning: str
) -> None:
    settings = {f"PROCORE_WEBHOOK_{key}": value for key, value in config.items()}
    shown = run(mounted(make_app(**settings)), "check", ok=None)
    assert re.search(f"warning: .*{warning}", shown.output), shown.output
    assert shown.exit_code == 0, shown.output


def test_check_accepts_keys_of_another_endpoint(
    make_app: MakeApp,
) -> None:
    app = make_app(PROCORE_WEBHOOK_SANDBOX_SECRET=SECRET)
    sandbox = ProcoreWebhooks(
        "sandbox", url_prefix="/sandbox", config_prefix="PROCORE_WEBHOOK_SANDBOX_"
    )
    assert "is read by no endpoint" not in (
        run(mounted(app, ProcoreWebhooks(), sandbox), "check").output
    )


def test_check_prints_long_times_in_plain_digits(make_app: MakeApp) -> None:
    app = mounted(make_app(PROCORE_WEBHOOK_RETENTION=400 * 24 * 3600))
    assert "PROCORE_WEBHOOK_RETENTION = 34560000 s" in run(app, "check").output


def test_check_json_is_complete(host: Flask) -> None:
    (report,) = json.loads(run(host, "check", "--json", ok=False).output).values()
    assert report.pop("settings")["PROCORE_WEBHOOK_TOLERANCE"] == "300 s"
    assert report.pop("database").startswith("sqlite:///")
    assert report == {
        "source": "procore",
        "path": "/webhooks/procore",
        "tables": "missing: procore_webhook_event, procore_webhook_job,"
        " procore_webhook_key, procore_webhook_journal, procore_webhook_tally,"
        " procore_webhook_state",
        "subscribers": [],
        "errors": [
            "The inbox cannot be used: missing tables: procore_webhook_event,"
            " procore_webhook_job, procore_webhook_key, procore_webhook_journal,"
            " procore_webhook_tally, procore_webhook_state;"
            " create them with your migrations (flask db migrate, flask db upgrade) or,"
            " if you have none, with the command init-db."
        ],
        "warnings": [
            "There are no subscribers: events are recorded, and no work is done."
        ],
    }


def test_check_finds_a_blueprint_without_the_apps_flask_sqlalchemy(
    app: Flask, tmp_path: Path
) -> None:
    """Writes of subscribers through ``db.session`` would be rolled back silently."""
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path / 'host.db'}"
    SQLAlchemy(app)
    result = app.test_cli_runner().invoke(args=["procore-webhooks", "check"])
    assert (
        "warning: The app has Flask-SQLAlchemy, and the blueprint was" in result.output
    )


NO_TIMEOUT = "warning: The app's database connections have no timeout"


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "pymysql", "sqlite"])
@pytest.mark.parametrize("bounded", [False, True])
def test_check_warns_of_host_connections_without_a_timeout(
    make_app: MakeApp, request: pytest.FixtureRequest, driver: str, bounded: bool
) -> None:
    """A delivery that uses a connection of a vanished server would hang."""
    options: dict[str, Any] = {}
    if driver == "sqlite":
        url = sa.make_url("sqlite:///app.db")
    elif driver == "pymysql":
        url = sa.make_url(request.getfixturevalue("mariadb_url"))
        options = {"read_timeout": 5}
    else:
        url = sa.make_url(request.getfixturevalue("postgresql_url"))
        url = url.set(drivername=f"postgresql+{driver}")
        options = {"tcp_user_timeout": 5000}
    app = make_app(
        SQLALCHEMY_DATABASE_URI=url,
        SQLALCHEMY_ENGINE_OPTIONS={"connect_args": options if bounded else {}},
    )
    db = SQLAlchemy(app)
    mounted(app, ProcoreWebhooks(db=db))
    shown = run(app, "check", ok=None).output
    assert (NO_TIMEOUT in shown) is (driver != "sqlite" and not bounded)
    if NO_TIMEOUT in shown:
        assert next(iter(options)) in shown
    with app.app_context():
        db.engine.dispose()
