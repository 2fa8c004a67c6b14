"""``check``: whether deliveries reach the route, whatever the host does around it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import abort
from flask import Flask
from flask import g
from flask import request
from flask import Response
from flask.testing import FlaskClient
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address
from flask_login import LoginManager
from flask_talisman import Talisman
from flask_wtf import CSRFProtect
from support.commands import mounted
from support.commands import run
from support.values import SECRET

from flask_procore_webhooks import ProcoreWebhooks

MakeApp = Callable[..., Flask]

STRONG = "a7Vd93kPq0xLmZ28sTg5"
REACHED = "Deliveries can come in."


def found_by(app: Flask, *, ok: bool = True) -> str:
    return run(app, "check", ok=ok).output


@pytest.mark.parametrize("trusted", [None, ["hooks.example.com"], [".example.com"]])
def test_route_of_a_subdomain_is_reached(
    make_app: MakeApp, trusted: list[str] | None
) -> None:
    app = make_app(SERVER_NAME="example.com", TRUSTED_HOSTS=trusted)
    app.url_map.default_subdomain = ""
    app.subdomain_matching = True
    app.register_blueprint(ProcoreWebhooks(), subdomain="hooks")
    assert REACHED in found_by(app)


def test_subdomain_that_the_app_does_not_trust_is_an_error(make_app: MakeApp) -> None:
    app = make_app(SERVER_NAME="example.com", TRUSTED_HOSTS=["example.com"])
    app.subdomain_matching = True
    app.register_blueprint(ProcoreWebhooks(), subdomain="hooks")
    assert "400 BAD REQUEST" in found_by(app, ok=False)


def test_two_endpoints_at_one_path_of_two_subdomains_are_reached(
    make_app: MakeApp,
) -> None:
    app = make_app(SERVER_NAME="example.com", BOLT_SECRET="another secret of the suite")
    app.subdomain_matching = True
    bolt = ProcoreWebhooks("bolt", config_prefix="BOLT_")
    app.register_blueprint(ProcoreWebhooks(), subdomain="a")
    app.register_blueprint(bolt, url_prefix="/webhooks/procore", subdomain="b")
    assert REACHED in found_by(app)


@pytest.mark.parametrize("host", ["hooks.example.com", None])
def test_route_of_a_host_is_reached(tmp_path: Path, host: str | None) -> None:
    app = Flask(
        "host", host_matching=True, static_host="x", instance_path=str(tmp_path)
    )
    app.config.update(TESTING=True, PROCORE_WEBHOOK_SECRET=SECRET)
    mounted(app)
    name = "procore_webhooks.receive"
    if host:
        path, view = "/webhooks/procore", app.view_functions[name]
        app.add_url_rule(path, name, view, host=host, methods=["POST"])
        assert REACHED in found_by(app)
    else:
        assert "404 NOT FOUND" in found_by(app, ok=False)


@pytest.mark.parametrize("scheme", ["Bearer ", "Basic ", ""])
@pytest.mark.parametrize("signs", [True, False])
def test_before_request_that_demands_the_configured_headers_is_passed(
    make_app: MakeApp, scheme: str, signs: bool
) -> None:
    configured = f"{scheme}{STRONG}"
    app = make_app(PROCORE_WEBHOOK_AUTHORIZATION=configured)
    if not signs:
        app.config["PROCORE_WEBHOOK_SECRET"] = None
    mounted(app)

    @app.before_request
    def demand_headers() -> None:
        demanded = ["X-Procore-Signature", "X-Procore-Timestamp"] if signs else []
        sent = request.headers.get("Authorization", "")
        if not sent.startswith(scheme) or request.authorization is None:
            abort(401)
        if STRONG in sent or not all(name in request.headers for name in demanded):
            abort(401)

    assert REACHED in found_by(app)
    assert run(app, "list").output == "No events.\n"


def test_before_request_that_demands_another_header_is_an_error(app: Flask) -> None:
    @app.before_request
    def demand_authorization() -> None:
        if "Authorization" not in request.headers:
            abort(401)

    assert "answered 401 UNAUTHORIZED by another handler" in found_by(app, ok=False)


def test_server_name_and_a_strict_host_are_used(make_app: MakeApp) -> None:
    app = mounted(make_app(SERVER_NAME="example.com", APPLICATION_ROOT="/app"))

    @app.before_request
    def insist() -> None:
        if request.host != "example.com" or request.script_root != "/app":
            abort(421)

    assert REACHED in found_by(app)


def redirect_unauthorized(response: Response) -> Response:
    if response.status_code == 401:
        response = Response(status=302, headers={"Location": "/login"})
    return response


def test_wrapped_answers_are_recognised(app: Flask) -> None:
    @app.after_request
    def wrap(response: Response) -> Response:
        wrapped = json.dumps({"data": response.get_json(), "ok": False})
        response.set_data(wrapped)
        response.headers["X-Frame-Options"] = "DENY"
        return response

    assert REACHED in found_by(app)


def test_changed_status_of_an_answer_is_a_warning(app: Flask) -> None:
    app.after_request(redirect_unauthorized)
    shown = found_by(app)
    assert (
        "warning: A POST with wrong credentials to /webhooks/procore reached the"
        in shown
    )
    assert "its answer 401 became 302 FOUND" in shown


def test_after_request_that_fails_is_an_error(make_app: MakeApp) -> None:
    app = mounted(make_app(TESTING=False, PROPAGATE_EXCEPTIONS=False))

    @app.after_request
    def fail(response: Response) -> Response:
        raise LookupError("no user")

    shown = found_by(app, ok=False)
    assert (
        "ERROR: A POST with wrong credentials to /webhooks/procore reached the endpoint"
        in shown
    )


def test_talisman_csrf_and_login_extensions_let_the_probe_pass(
    make_app: MakeApp,
) -> None:
    app = make_app(SECRET_KEY="k" * 40, TESTING=False)
    CSRFProtect(app)
    mounted(app)
    Talisman(app)
    LoginManager(app)
    assert REACHED in found_by(app)


def test_login_check_for_every_route_is_named(app: Flask) -> None:
    @app.before_request
    def demand_login() -> None:
        abort(401)

    shown = found_by(app, ok=False)
    assert "answered 401 UNAUTHORIZED by another handler" in shown
    assert "The app's before_request functions: " in shown
    assert "demand_login" in shown


def test_default_limits_of_a_limiter_are_a_warning_unless_exempt(
    make_app: MakeApp,
) -> None:
    webhooks = ProcoreWebhooks()
    app = mounted(make_app(), webhooks)
    limiter = Limiter(
        get_remote_address, app=app, default_limits=["5/day"], storage_uri="memory://"
    )
    assert "warning: Flask-Limiter's limits apply to deliveries" in found_by(app)
    assert run(app, "check", "--strict", ok=False).exit_code == 1
    limiter.exempt(webhooks)
    assert "Limiter" not in found_by(app)


def test_limiter_without_defaults_is_no_finding(make_app: MakeApp) -> None:
    app = mounted(make_app())
    Limiter(get_remote_address, app=app, storage_uri="memory://")
    assert "Limiter" not in found_by(app)


def test_probe_leaves_the_context_and_the_test_client_of_the_app_alone(
    app: Flask,
) -> None:
    class Client(FlaskClient):
        def open(self, *args: Any, **options: Any) -> Any:
            raise AssertionError("the app's own client adds headers")

    app.test_client_class = Client
    seen: list[bool] = []
    app.before_request(lambda: seen.append("user" in g))
    with app.app_context():
        g.user = "someone"
        found_by(app)
    assert seen == [False]


def test_probe_counts_announces_and_records_nothing(app: Flask) -> None:
    before = run(app, "stats", "--json").output
    found_by(app)
    assert run(app, "stats", "--json").output == before
    assert run(app, "list").output == "No events.\n"
