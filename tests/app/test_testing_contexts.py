"""The test kit in the suites of apps: pushed contexts, sessions, hosts, clients."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import flask
import flask_login
import flask_sqlalchemy.session
import pytest
import sqlalchemy as sa
from flask import Flask
from flask import g
from flask import request
from flask import session
from flask.testing import FlaskClient
from flask_sqlalchemy import SQLAlchemy
from flask_talisman import Talisman
from sqlalchemy.orm import scoped_session
from sqlalchemy.orm import sessionmaker
from support.hosts import begin_by_itself
from support.services import drop_tables
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.routing import Rule

from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import Deliveries
from flask_procore_webhooks.testing import drain
from flask_procore_webhooks.testing import payload

MakeApp = Callable[..., Flask]


# Contexts that the suite has pushed


@contextmanager
def app_context(app: Flask) -> Iterator[None]:
    with app.app_context():
        yield


@contextmanager
def request_context(app: Flask) -> Iterator[None]:
    with app.test_request_context("/of-the-test", headers={"X-Mine": "1"}):
        yield


@contextmanager
def nested_contexts(app: Flask) -> Iterator[None]:
    with app.app_context(), app.test_request_context("/of-the-test"), app.app_context():
        yield


@contextmanager
def preserved_context(app: Flask) -> Iterator[None]:
    client = app.test_client()
    with client:
        client.get("/of-the-test")
        yield


@contextmanager
def no_context(app: Flask) -> Iterator[None]:
    yield


CONTEXTS = [app_context, request_context, nested_contexts, preserved_context]


@pytest.fixture
def seen() -> list[Any]:
    """What deliveries and runs of ``pushed`` have seen."""
    return []


@pytest.fixture(params=CONTEXTS, ids=lambda pushed: pushed.__name__)
def pushed(
    request: pytest.FixtureRequest, app: Flask, seen: list[Any]
) -> Iterator[Flask]:
    """An app with a context that the suite has pushed, and what is in it."""
    app.secret_key = "of the sessions"
    app.add_url_rule("/of-the-test", view_func=lambda: "the test's")
    login = flask_login.LoginManager(app)
    login.user_loader(lambda name: User(name))

    @app.before_request
    def before() -> None:
        path = flask.request.path
        if path != "/of-the-test":
            seen.append(("request", path, dict(vars(g)), session.get("name")))
            seen.append(("user", flask_login.current_user.is_authenticated))
            g.user = "of the delivery"

    with request.param(app):
        g.user, g.kept = "of the test", []
        g._login_user = User("of the test")
        # pytest-flask has pushed a request context around all of these.
        has_request = flask.has_request_context()
        has_own_request = has_request and flask.request.path == "/of-the-test"
        if has_own_request:
            session["name"] = "ann"
        yield app
        assert (g.user, g.kept) == ("of the test", [])
        assert g._login_user.get_id() == "of the test"
        if has_own_request:
            assert flask.request.path == "/of-the-test"
            assert session["name"] == "ann"


@dataclass
class User(flask_login.UserMixin):  # type: ignore[misc]
    id: str


def test_a_delivery_has_a_context_of_its_own(
    pushed: Flask, webhooks: ProcoreWebhooks, seen: list[Any]
) -> None:
    @webhooks.on(name="looks")
    def looks(event: Event) -> None:
        seen.append(("run", dict(vars(g))))
        g.user = "of the run"

    assert deliver(pushed.test_client(), payload("RFIs.update")).status_code == 200
    assert seen == [
        ("request", "/webhooks/procore", {}, None),
        ("user", False),
        ("run", {}),
    ]


def test_a_drain_has_contexts_of_its_own(
    make_app: MakeApp, webhooks: ProcoreWebhooks
) -> None:
    app, seen = make_app(PROCORE_WEBHOOK_DISPATCH="worker"), []
    app.register_blueprint(webhooks)

    @webhooks.on(name="looks")
    def looks(event: Event) -> None:
        seen.append((flask.has_request_context(), dict(vars(g))))

    with app.test_request_context("/of-the-test"):
        g.user = "of the test"
        deliver(app.test_client(), payload("RFIs.update"))
        assert drain(app) == 1
        assert g.user == "of the test"
    assert seen == [(False, {})]


def test_a_client_in_a_with_block_keeps_its_context(make_app: MakeApp) -> None:
    app = make_app()
    app.register_blueprint(ProcoreWebhooks())
    app.add_url_rule("/page", view_func=lambda: "page")
    with app.test_client() as client:
        assert deliver(client, payload("a.b")).status_code == 200
        assert not flask.has_request_context()
        client.get("/page?n=1")
        assert deliver(client, payload("a.b")).status_code == 200
        assert request.args["n"] == "1"
        client.get("/page?n=2")
        assert request.args["n"] == "2"
    assert not flask.has_request_context()


def test_other_variables_of_the_context_stay(
    app: Flask, webhooks: ProcoreWebhooks
) -> None:
    tenant: ContextVar[str] = ContextVar("tenant")
    tenant.set("of the suite")
    seen: list[str] = []
    webhooks.on(name="looks")(lambda event: seen.append(tenant.get()))
    deliver(app.test_client(), payload("RFIs.update"))
    assert seen == ["of the suite"]


def test_the_fixture_with_a_pushed_context(
    pushed: Flask, webhooks: ProcoreWebhooks
) -> None:
    fixture = Deliveries(pushed)
    webhooks.on(name="fails")(raise_once)
    assert fixture.deliver(fixture.payload("RFIs.update")).status_code == 500
    assert fixture.drain(advance=3600) == 1
    assert [row["status"] for row in fixture.events()] == ["done"]


def raise_once(event: Event) -> None:
    if event.attempt == 1:
        raise RuntimeError("the first attempt fails")


# The session of the suite


@dataclass
class Host:
    """An app with Flask-SQLAlchemy whose subscriber counts the updates of an RFI."""

    app: Flask
    db: SQLAlchemy
    Rfi: Any

    def updates(self) -> dict[int, int]:
        rfi = self.Rfi
        self.db.session.expire_all()
        return dict(self.db.session.execute(sa.select(rfi.id, rfi.updates)).all())


@pytest.fixture(params=["memory", "sqlite", "postgresql", "mariadb"])
def host(
    request: pytest.FixtureRequest, make_app: MakeApp, tmp_path: Any
) -> Iterator[Host]:
    url = {"memory": "sqlite://", "sqlite": f"sqlite:///{tmp_path / 'host.db'}"}.get(
        request.param
    ) or request.getfixturevalue(f"{request.param}_url")
    host = new_host(make_app(SQLALCHEMY_DATABASE_URI=url))
    with host.app.app_context():
        engine = host.db.engine
        host.db.create_all()
    yield host
    engine.dispose()
    if request.param not in ("memory", "sqlite"):
        drop_tables(url)


def new_host(app: Flask) -> Host:
    db: Any = SQLAlchemy(app)

    class Rfi(db.Model):  # type: ignore[name-defined,misc]
        id = sa.Column(sa.Integer, primary_key=True)
        updates = sa.Column(sa.Integer, default=0)

    webhooks = ProcoreWebhooks(db=db)

    @webhooks.on("RFIs", "update", name="counts")
    def counts(event: Event) -> None:
        id = int(event.resource_id or 0)
        rfi = db.session.get(Rfi, id) or Rfi(id=id, updates=0)
        rfi.updates += 1
        db.session.add(rfi)
        db.session.flush()
        if event.data.get("poison") and event.attempt == 1:
            raise RuntimeError("after it has written")

    app.register_blueprint(webhooks)
    with app.app_context():
        engine = db.engine
    if engine.dialect.name == "sqlite":
        begin_by_itself(engine)
    return Host(app, db, Rfi)


def joined(host: Host, connection: sa.Connection) -> Any:
    return scoped_session(
        sessionmaker(bind=connection, join_transaction_mode="create_savepoint")
    )


def joined_by_default(host: Host, connection: sa.Connection) -> Any:
    return scoped_session(sessionmaker(bind=connection))


def of_flask_sqlalchemy(host: Host, connection: sa.Connection) -> Any:
    class Bound(flask_sqlalchemy.session.Session):
        def get_bind(self, *_: Any, **__: Any) -> Any:
            return connection

    return host.db._make_scoped_session({"class_": Bound})


def on_engines(host: Host, connection: sa.Connection) -> Any:
    host.db.engines[None] = connection  # type: ignore[assignment]
    return host.db.session


@contextmanager
def rolled_back(host: Host, replace: Callable[[Host, Any], Any]) -> Iterator[None]:
    """The usual fixture: what a test commits is rolled back at its end."""
    with host.app.app_context():
        engine, before = host.db.engine, host.db.session
        connection = engine.connect()
        transaction = connection.begin()
        host.db.session = replace(host, connection)
        try:
            yield
        finally:
            host.db.session.remove()
            transaction.rollback()
            connection.close()
            host.db.session, host.db.engines[None] = before, engine


@pytest.mark.parametrize("context", [no_context, request_context])
@pytest.mark.parametrize(
    "replace", [joined, joined_by_default, of_flask_sqlalchemy, on_engines]
)
def test_a_rollback_fixture_sees_and_undoes_everything(
    host: Host, replace: Callable[[Host, Any], Any], context: Any
) -> None:
    fixture, db = Deliveries(host.app), host.db
    with rolled_back(host, replace), context(host.app):
        mine = host.Rfi(id=7, updates=5)
        db.session.add(mine)
        db.session.commit()
        draft = host.Rfi(id=8, updates=0)
        db.session.add(draft)

        sent = payload("RFIs.update", resource_id=7, id="evt_1")
        assert fixture.deliver(sent).get_json() == {"received": True}
        assert draft in db.session.new, "the session of the test stays as it is"
        assert fixture.deliver(sent).get_json()["duplicate"]
        poisoned = payload("RFIs.update", resource_id=7, poison=True)
        assert fixture.deliver(poisoned).status_code == 500
        db.session.refresh(mine)
        assert mine.updates == 6
        assert fixture.drain(advance=3600) == 1

        db.session.commit()
        assert host.updates() == {7: 7, 8: 0}
        assert [row["status"] for row in fixture.events()] == ["done"] * 2
    with host.app.app_context():
        assert host.updates() == {}
    assert fixture.events() == []


def test_a_delivery_leaves_the_identity_map_of_the_test_alone(host: Host) -> None:
    """A subscriber that shares the session would delete what the test still holds."""
    with host.app.app_context():
        mine = host.Rfi(id=7, updates=5)
        host.db.session.add(mine)
        host.db.session.commit()
        assert mine.updates == 5
        host.db.session.rollback()
        sent = payload("RFIs.update", resource_id=7)
        assert deliver(host.app.test_client(), sent).status_code == 200
        assert mine in host.db.session
        mine.updates += 10
        host.db.session.commit()
        assert host.updates() == {7: 16}


def test_a_fixture_may_replace_the_session_by_one_for_all_contexts(
    make_app: MakeApp,
) -> None:
    host = new_host(make_app(SQLALCHEMY_DATABASE_URI="sqlite:///host.db"))
    with host.app.app_context():
        host.db.create_all()
        mine = host.db.session = host.db._make_scoped_session({"scopefunc": lambda: 1})
        rfi = host.Rfi(id=7, updates=0)
        mine.add(rfi)
        mine.commit()
    held = mine()
    sent = payload("RFIs.update", resource_id=7)
    assert deliver(host.app.test_client(), sent).status_code == 200
    assert drain(host.app) == 0
    assert mine() is held
    with host.app.app_context():
        assert host.updates() == {7: 1}
        host.db.engine.dispose()


def test_a_session_that_only_a_request_has(make_app: MakeApp) -> None:
    app = make_app(PROCORE_WEBHOOK_DISPATCH="worker")
    metadata = sa.MetaData()
    engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
    makes = sessionmaker(engine)

    def current() -> Any:
        if "session" not in g:
            g.session = makes()
        return g.session

    webhooks, seen = ProcoreWebhooks(metadata=metadata, session=current), []
    webhooks.on(name="sees")(lambda event: seen.append(event.id))
    app.register_blueprint(webhooks)
    metadata.create_all(engine)
    assert deliver(app.test_client(), payload("RFIs.update", id="1")).status_code == 200
    assert drain(app) == 1
    assert seen == ["1"]
    engine.dispose()


# The address of the app


@pytest.mark.parametrize(
    ("config", "arguments", "options", "url"),
    [
        ({}, {}, {}, "https://localhost/webhooks/procore"),
        (
            {"SERVER_NAME": "a.test:8443"},
            {},
            {},
            "https://a.test:8443/webhooks/procore",
        ),
        (
            {"APPLICATION_ROOT": "/app"},
            {},
            {},
            "https://localhost/app/webhooks/procore",
        ),
        ({"TRUSTED_HOSTS": ["a.test"]}, {}, {}, "https://a.test/webhooks/procore"),
        ({"TRUSTED_HOSTS": [".a.test"]}, {}, {}, "https://a.test/webhooks/procore"),
        (
            {"SERVER_NAME": "a.test", "TRUSTED_HOSTS": [".a.test"]},
            {"subdomain_matching": True},
            {"subdomain": "hooks", "url_prefix": "/in"},
            "https://hooks.a.test/in",
        ),
    ],
)
def test_deliver_finds_the_address(
    make_app: MakeApp,
    config: dict[str, Any],
    arguments: dict[str, Any],
    options: dict[str, Any],
    url: str,
) -> None:
    configured = make_app(**config)
    app = Flask("host", instance_path=configured.instance_path, **arguments)
    app.config.update(configured.config)
    app.register_blueprint(ProcoreWebhooks(), **options)
    answer = deliver(app.test_client(), payload("a.b"))
    assert answer.status_code == 200
    assert answer.request.url == url


def test_deliver_finds_the_host_of_the_rule(make_app: MakeApp) -> None:
    class OfOneHost(Rule):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{"host": "hooks.a.test", **options})

    made = make_app()
    app = Flask("host", instance_path=made.instance_path, static_folder=None)
    app.url_map.host_matching = True
    app.url_rule_class = OfOneHost
    app.config.update(made.config)
    app.register_blueprint(ProcoreWebhooks())
    answer = deliver(app.test_client(), payload("a.b"))
    assert answer.status_code == 200
    assert answer.request.url == "https://hooks.a.test/webhooks/procore"


def test_an_endpoint_without_a_host_is_not_found_as_in_production(
    make_app: MakeApp,
) -> None:
    made = make_app()
    app = Flask("host", instance_path=made.instance_path, static_folder=None)
    app.url_map.host_matching = True
    app.config.update(made.config)
    app.register_blueprint(ProcoreWebhooks())
    assert deliver(app.test_client(), payload("a.b")).status_code == 404


@pytest.mark.parametrize("proxied", [False, True])
def test_deliver_passes_talisman(app: Flask, proxied: bool) -> None:
    Talisman(app)
    if proxied:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_host=1)  # type: ignore[method-assign]
    assert deliver(app.test_client(), payload("a.b")).status_code == 200
    plain = {"X-Forwarded-Proto": "http"} if proxied else None
    assert deliver(app.test_client(), payload("a.b"), headers=plain).status_code in (
        200,
        302,
    )


# The client of the suite


class OwnClient(FlaskClient):
    """A client of a suite, with an argument and headers of its own."""

    def __init__(self, *arguments: Any, token: str, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.token = token

    def open(self, *arguments: Any, **options: Any) -> Any:
        options["headers"] = {**(options.get("headers") or {}), "X-Token": self.token}
        return super().open(*arguments, **options)


def test_deliver_uses_the_class_and_environment_of_the_client(app: Flask) -> None:
    app.test_client_class = OwnClient
    client = app.test_client(token="of the suite")
    client.environ_base["REMOTE_ADDR"] = "10.0.0.7"
    answer = deliver(client, payload("a.b"))
    assert answer.status_code == 200
    assert answer.request.headers["X-Token"] == "of the suite"
    assert answer.request.remote_addr == "10.0.0.7"


def test_a_delivery_has_no_cookies_of_the_suite(app: Flask) -> None:
    app.secret_key = "of the sessions"
    client, seen = app.test_client(), []
    with client.session_transaction() as of_the_test:
        of_the_test["name"] = "ann"

    @app.before_request
    def before() -> None:
        seen.append((dict(request.cookies), session.get("name")))
        session["name"] = "of the delivery"

    assert deliver(client, payload("a.b")).status_code == 200
    assert seen == [({}, None)]
    with client.session_transaction() as of_the_test:
        assert of_the_test["name"] == "ann"
