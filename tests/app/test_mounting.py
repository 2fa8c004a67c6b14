"""The blueprint with every kind of database, app and extension."""

from __future__ import annotations

import gc
import logging
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable
from contextlib import closing
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import click
import pytest
import sqlalchemy as sa
from flask import abort
from flask import Blueprint
from flask import Flask
from flask import redirect
from flask import request
from flask import Response
from flask_sqlalchemy import SQLAlchemy
from flask_wtf import CSRFProtect
from sqlalchemy import orm
from sqlalchemy.ext.automap import automap_base
from support.values import SECRET
from support.web import recorded
from werkzeug.routing import Rule

from flask_procore_webhooks import ConfigError
from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import PrudraWebhooks
from flask_procore_webhooks import resource_event
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.operations.queries import find
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import payload
from flask_procore_webhooks.testing import sign

MakeApp = Callable[..., Flask]
PATH = "/webhooks/procore"
TABLES = [
    "procore_webhook_event",
    "procore_webhook_job",
    "procore_webhook_key",
    "procore_webhook_journal",
    "procore_webhook_tally",
    "procore_webhook_state",
]
EVENT_TABLE, JOB_TABLE, *_ = TABLES


def receives(app: Flask, endpoint: str | None = None, **fields: Any) -> bool:
    """Whether the endpoint records a new event and runs it, for subscribers or none."""
    event = payload("RFIs.create", **fields)
    answer = deliver(app.test_client(), event, endpoint=endpoint)
    status = recorded(app, endpoint)[0]["status"]
    return answer.json == {"received": True} and status in ("done", "unmatched")


def unauthentic(app: Flask, path: str = PATH) -> bool:
    """Whether an unsigned delivery to ``path`` gets the blueprint's own 401."""
    answer = app.test_client().post(path, data=b"{}")
    return (answer.status_code, answer.json) == (401, {"error": "Invalid signature"})


# db=: Flask-SQLAlchemy


def test_tables_are_in_the_metadata_of_the_host_before_any_app_is_made() -> None:
    """Migrations and db.create_all() include the inbox's tables."""
    db = SQLAlchemy()
    ProcoreWebhooks(db=db)
    assert {*TABLES} == set(db.metadata.tables)


def test_two_blueprints_share_the_tables_of_one_database() -> None:
    db = SQLAlchemy()
    ProcoreWebhooks(db=db)
    PrudraWebhooks(db=db)
    ProcoreWebhooks(metadata=db.metadata, session=db.session)
    assert len(db.metadata.tables) == len(TABLES)


@pytest.mark.parametrize("db_first", [True, False])
def test_init_app_and_registration_may_come_in_any_order(
    make_app: MakeApp, tmp_path: Path, db_first: bool
) -> None:
    db = SQLAlchemy()
    app = make_app(SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path / 'host.db'}")
    webhooks = ProcoreWebhooks(db=db)
    steps = [lambda: db.init_app(app), lambda: app.register_blueprint(webhooks)]
    for step in steps if db_first else reversed(steps):
        step()
    with app.app_context():
        db.create_all()
    assert receives(app)


def test_writes_through_the_host_session_are_committed(
    make_app: MakeApp, database_url: str
) -> None:
    db = SQLAlchemy()
    webhooks = ProcoreWebhooks(db=db)

    class Note(db.Model):
        id = db.Column(db.Integer, primary_key=True)
        text = db.Column(db.String(80))

    @webhooks.on("RFIs")
    def write(event: Event) -> None:
        db.session.add(Note(text=event.id))

    app = make_app(SQLALCHEMY_DATABASE_URI=database_url)
    db.init_app(app)
    app.register_blueprint(webhooks)
    with app.app_context():
        db.create_all()
    assert receives(app, id="evt_1")
    with app.app_context():
        assert db.session.scalars(sa.select(Note.text)).all() == ["evt_1"]
        db.session.remove()
        db.engine.dispose()


def test_in_memory_database_of_the_host_serves_its_tests(make_app: MakeApp) -> None:
    """The inbox and the session share the database's only connection."""
    db = SQLAlchemy()
    webhooks = ProcoreWebhooks(db=db)
    failures = [ValueError("the first time")]

    class Note(db.Model):
        id = db.Column(db.Integer, primary_key=True)

    @webhooks.on()
    def write(event: Event) -> None:
        db.session.add(Note())
        db.session.flush()
        if failures:
            raise failures.pop()

    app = make_app(SQLALCHEMY_DATABASE_URI="sqlite://")
    db.init_app(app)
    app.register_blueprint(webhooks)
    with app.app_context():
        db.create_all()
    event = payload("RFIs.create")
    statuses = [deliver(app.test_client(), event).status_code for _ in range(3)]
    assert statuses == [500, 200, 200]
    with app.app_context():
        assert db.session.scalar(sa.select(sa.func.count(Note.id))) == 1


def test_uninitialised_flask_sqlalchemy_is_answered_503_and_logged(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app()
    app.register_blueprint(ProcoreWebhooks(db=SQLAlchemy()))
    answer = deliver(app.test_client(), payload("RFIs.create"))
    assert (answer.status_code, answer.json) == (503, {"error": "Unavailable"})
    (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert "Did you forget to call 'init_app'" in record.getMessage()
    assert "Traceback" not in caplog.text


# metadata= and session=: plain SQLAlchemy


current_session: ContextVar[orm.Session] = ContextVar("current_session")


def scoped(engine: sa.Engine) -> Any:
    return orm.scoped_session(orm.sessionmaker(engine))


def scoped_by_the_host(engine: sa.Engine) -> Any:
    return orm.scoped_session(orm.sessionmaker(engine), scopefunc=lambda: 1)


def a_function(engine: sa.Engine) -> Any:
    current_session.set(orm.Session(engine))
    return lambda: current_session.get()


def a_method(engine: sa.Engine) -> Any:
    return a_function(engine).__call__


def bound_by_class(engine: sa.Engine) -> Any:
    class Router(orm.Session):
        def get_bind(self, *arguments: Any, **options: Any) -> sa.Engine:
            return engine

    return orm.scoped_session(orm.sessionmaker(class_=Router))


@pytest.mark.parametrize(
    "source",
    [scoped, scoped_by_the_host, a_function, a_method, bound_by_class],
)
def test_plain_sqlalchemy_session_may_be_given_in_any_form(
    make_app: MakeApp, tmp_path: Path, source: Callable[[sa.Engine], Any]
) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'host.db'}")
    metadata, session = sa.MetaData(), source(engine)
    note = sa.Table("note", metadata, sa.Column("text", sa.String(80)))
    webhooks = ProcoreWebhooks(metadata=metadata, session=session)

    @webhooks.on()
    def write(event: Event) -> None:
        session().execute(sa.insert(note).values(text=event.id))

    app = make_app()
    app.register_blueprint(webhooks)
    metadata.create_all(engine)
    assert receives(app, id="evt_1")
    assert receives(app, id="evt_2")
    with engine.connect() as connection:
        assert list(connection.scalars(sa.select(note.c.text))) == ["evt_1", "evt_2"]
    engine.dispose()


def test_metadata_without_session_leaves_table_creation_to_the_host(
    make_app: MakeApp, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"sqlite:///{tmp_path / 'host.db'}"
    metadata = sa.MetaData()
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI=url)
    app.register_blueprint(ProcoreWebhooks(metadata=metadata))
    assert deliver(app.test_client(), payload("RFIs.create")).status_code == 503
    assert "missing tables" in caplog.text
    metadata.create_all(sa.create_engine(url))
    assert receives(app)


# Without db= and metadata=: a database of the inbox's own


def test_without_a_database_the_inbox_is_a_file_in_the_instance_folder(
    app: Flask,
) -> None:
    folder = Path(app.instance_path)
    assert not folder.exists()
    assert receives(app)
    assert (folder / "procore_webhooks.db").is_file()


URI_KEYS = ("PROCORE_WEBHOOK_DATABASE_URI", "SQLALCHEMY_DATABASE_URI")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({URI_KEYS[0]: "sqlite:///ours.db"}, "ours.db"),
        ({URI_KEYS[1]: "sqlite:///theirs.db"}, "theirs.db"),
        (
            {URI_KEYS[0]: "sqlite:///ours.db", URI_KEYS[1]: "sqlite:///theirs.db"},
            "ours.db",
        ),
        ({URI_KEYS[1]: sa.make_url("sqlite:///theirs.db")}, "theirs.db"),
        ({URI_KEYS[1]: None}, "procore_webhooks.db"),
        ({URI_KEYS[0]: "sqlite:///../beside.db"}, "../beside.db"),
        ({URI_KEYS[0]: "sqlite+pysqlite:///driver.db"}, "driver.db"),
    ],
)
def test_relative_sqlite_paths_are_in_the_instance_folder(
    make_app: MakeApp, config: dict[str, Any], expected: str
) -> None:
    app = make_app(**config)
    app.register_blueprint(ProcoreWebhooks())
    assert receives(app)
    folder = Path(app.instance_path)
    assert (folder / expected).is_file()
    made = [path.name for path in folder.parent.rglob("*.db")]
    assert made == [Path(expected).name]


@pytest.mark.parametrize("key", URI_KEYS)
def test_uri_filename_is_the_same_file_for_us_and_for_flask_sqlalchemy(
    make_app: MakeApp, tmp_path: Path, key: str
) -> None:
    absolute = tmp_path / "absolute.db"
    for name, path in {"file:relative.db": None, f"file:{absolute}": absolute}.items():
        app = make_app(**{key: f"sqlite:///{name}?uri=true"})
        app.register_blueprint(ProcoreWebhooks())
        assert receives(app)
        assert (path or Path(app.instance_path) / "relative.db").is_file()


def test_absolute_file_needs_no_instance_folder(
    make_app: MakeApp, tmp_path: Path
) -> None:
    """In containers, often only the data folder is writable."""
    url = f"sqlite:///{tmp_path / 'absolute.db'}"
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI=url)
    app.register_blueprint(ProcoreWebhooks())
    assert receives(app)
    assert not Path(app.instance_path).exists()


def test_instance_folder_that_cannot_be_made_does_not_stop_the_app(
    make_app: MakeApp, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    app = make_app()
    app.instance_path = str(tmp_path / "file" / "instance")
    app.register_blueprint(ProcoreWebhooks())
    assert deliver(app.test_client(), payload("RFIs.create")).status_code == 503
    assert "cannot be used" in caplog.text


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///:memory:"])
def test_in_memory_inbox_is_one_inbox_for_all_threads(
    make_app: MakeApp, uri: str
) -> None:
    app = make_app(SQLALCHEMY_DATABASE_URI=uri)
    app.register_blueprint(ProcoreWebhooks())
    ran: list[str] = []
    resource_event.connect(lambda app, event: ran.append(event.id), name="ran")
    bodies = [payload("RFIs.create") for _ in range(40)]
    together = threading.Barrier(8)
    answers: list[int] = []

    def send(some: list[Any]) -> None:
        together.wait()
        for each in some:
            answers.append(deliver(app.test_client(), each).status_code)

    threads = [threading.Thread(target=send, args=[bodies[i::8]]) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 40
    assert sorted(ran) == sorted(each["id"] for each in bodies)


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_tables_are_created_on_first_use_on_any_database(
    make_app: MakeApp, request: pytest.FixtureRequest, kind: str
) -> None:
    url = request.getfixturevalue(f"{kind}_url")
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI=url)
    app.register_blueprint(ProcoreWebhooks())
    assert receives(app)
    (endpoint,) = endpoints(app).values()
    engine = endpoint.store.database.engine
    endpoint.store.database.tables.event.metadata.drop_all(engine)
    engine.dispose()


# Several endpoints, several apps


def both_senders(app: Flask, **options: Any) -> None:
    app.config["PRUDRA_WEBHOOK_SECRET"] = "another secret of the test suite"
    app.register_blueprint(ProcoreWebhooks(**options))
    app.register_blueprint(PrudraWebhooks(**options))


def test_procore_and_prudra_live_in_one_app(make_app: MakeApp) -> None:
    app = make_app()
    both_senders(app)
    event = payload("payment.received", format="prudra", id="evt_1")
    answer = deliver(app.test_client(), event, endpoint="prudra_webhooks")
    assert answer.json == {"received": True}
    assert receives(app, "procore_webhooks", id="evt_1")
    seen = [recorded(app, name)[0]["type"] for name in endpoints(app)]
    assert seen == ["RFIs.create", "payment.received"]


def test_each_sender_has_its_own_headers(make_app: MakeApp) -> None:
    app = make_app()
    both_senders(app)
    procore = endpoints(app)["procore_webhooks"]
    headers = sign(b"{}", SECRET, source=procore.source)
    answer = app.test_client().post("/webhooks/prudra", data=b"{}", headers=headers)
    assert answer.status_code == 401


TENANTS = {"A_SECRET": "the secret of tenant A", "B_SECRET": "the secret of tenant B"}


@pytest.fixture
def tenants(make_app: MakeApp) -> Flask:
    app = make_app(**TENANTS)
    for name in ("a", "b"):
        prefix = f"{name.upper()}_"
        app.register_blueprint(
            ProcoreWebhooks(name, url_prefix=f"/{name}", config_prefix=prefix)
        )
    return app


def test_signature_of_one_tenant_is_refused_on_the_route_of_another(
    tenants: Flask,
) -> None:
    body = b'{"id": "evt_1", "type": "RFIs.create", "endpoint": "a", "tenant": "a"}'
    signed = sign(body, TENANTS["A_SECRET"])
    client = tenants.test_client()
    assert client.post("/b", data=body, headers=signed).status_code == 401
    assert client.post("/a", data=body, headers=signed).status_code == 200
    assert (len(recorded(tenants, "a")), len(recorded(tenants, "b"))) == (1, 0)


def test_same_id_at_two_endpoints_is_two_events(tenants: Flask) -> None:
    seen: list[tuple[str, str]] = []

    @resource_event.connect_via(tenants)
    def note(app: Flask, event: Event) -> None:
        seen.append((event.endpoint, event.id))

    assert receives(tenants, "a", id="evt_1")
    assert receives(tenants, "b", id="evt_1")
    assert seen == [("a", "evt_1"), ("b", "evt_1")]


def test_one_blueprint_serves_two_apps_and_each_has_its_own_secret(
    make_app: MakeApp, webhooks: ProcoreWebhooks
) -> None:
    first = make_app()
    second = make_app(PROCORE_WEBHOOK_SECRET="another secret of the test suite")
    for app in (first, second):
        app.register_blueprint(webhooks)
    signed = sign(b"{}", SECRET)
    statuses = [
        app.test_client().post(PATH, data=b"{}", headers=signed).status_code
        for app in (first, second)
    ]
    assert statuses == [200, 401]
    assert receives(second, id="evt_1")
    assert [len(recorded(app)) for app in (first, second)] == [1, 1]


def test_signal_of_one_app_does_not_reach_the_subscribers_of_another(
    make_app: MakeApp, webhooks: ProcoreWebhooks
) -> None:
    apps = [make_app(), make_app()]
    seen: list[str] = []
    for app in apps:
        app.register_blueprint(webhooks)
    resource_event.connect_via(apps[0], name="first")(lambda *_: seen.append("first"))
    resource_event.connect_via(apps[1], name="second")(lambda *_: seen.append("second"))
    assert receives(apps[1])
    assert seen == ["second"]


def test_app_factory_may_be_called_fifty_times(
    make_app: MakeApp, webhooks: ProcoreWebhooks, tmp_path: Path
) -> None:
    db = SQLAlchemy()
    hosted = ProcoreWebhooks("hosted", db=db, url_prefix="/hosted")
    seen: list[str] = []

    def create_app() -> Flask:
        app = make_app(SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path / 'host.db'}")
        db.init_app(app)

        @resource_event.connect
        def note(app: Flask, event: Event) -> None:
            seen.append(event.id)

        app.register_blueprint(webhooks)
        app.register_blueprint(hosted)
        return app

    before = len(webhooks.deferred_functions)
    apps = [create_app() for _ in range(50)]
    with apps[0].app_context():
        db.create_all()
    for number in (0, 49):
        assert receives(apps[number], "procore_webhooks", id=f"evt_{number}")
        assert receives(apps[number], "hosted", id=f"hosted_{number}")
    assert seen == ["evt_0", "hosted_0", "evt_49", "hosted_49"]
    assert len(webhooks.deferred_functions) == before


def test_blueprint_holds_no_reference_to_a_collected_app(
    make_app: MakeApp, webhooks: ProcoreWebhooks
) -> None:
    webhooks.on()(print)
    app = make_app()
    app.register_blueprint(webhooks)
    assert receives(app)
    gone = weakref.ref(app)
    del app
    gc.collect()
    assert gone() is None


# Names and paths


def test_init_app_is_another_way_to_register(
    make_app: MakeApp, webhooks: ProcoreWebhooks
) -> None:
    app = make_app()
    webhooks.init_app(app)
    assert receives(app)


def test_name_and_a_prefix_may_be_given_at_registration(
    make_app: MakeApp, webhooks: ProcoreWebhooks
) -> None:
    app = make_app()
    app.register_blueprint(webhooks, name="renamed", url_prefix="/moved")
    assert unauthentic(app, "/moved")
    assert app.test_client().post(PATH).status_code == 404
    assert receives(app, "renamed", id="evt_1")
    (endpoint,) = endpoints(app).values()
    row = find(endpoint.store, "evt_1")
    assert row is not None and row["endpoint"] == "renamed"


def test_one_blueprint_may_be_registered_twice_under_two_names(
    make_app: MakeApp, webhooks: ProcoreWebhooks
) -> None:
    app = make_app()
    app.register_blueprint(webhooks)
    app.register_blueprint(webhooks, name="second", url_prefix="/second")
    assert receives(app, "procore_webhooks", id="evt_1")
    assert receives(app, "second", id="evt_1")


def test_blueprint_may_be_nested(make_app: MakeApp, webhooks: ProcoreWebhooks) -> None:
    app, outer, inner = make_app(), Blueprint("api", __name__), Blueprint("v1", "v1")
    inner.register_blueprint(webhooks, url_prefix="/hooks")
    outer.register_blueprint(inner, url_prefix="/v1")
    app.register_blueprint(outer, url_prefix="/api")
    assert unauthentic(app, "/api/v1/hooks")
    assert receives(app)
    (endpoint,) = endpoints(app).values()
    assert endpoint.blueprint == "api.v1.procore_webhooks"


def test_blueprint_nested_in_ours_keeps_its_own_views(make_app: MakeApp) -> None:
    webhooks, inner = ProcoreWebhooks(), Blueprint("inner", __name__)
    inner.add_url_rule("/echo", "receive", lambda: request.get_data(), methods=["POST"])
    webhooks.register_blueprint(inner)
    app = make_app(PROCORE_WEBHOOK_MAX_BYTES=1)
    app.register_blueprint(webhooks)
    answer = app.test_client().post(f"{PATH}/echo", data=b"x" * 10)
    assert answer.data == b"x" * 10


@pytest.mark.parametrize("prefix", ["/", "/hooks/", "/a/b", "/h.ooks-1"])
def test_any_prefix_answers_with_and_without_a_slash(
    make_app: MakeApp, prefix: str
) -> None:
    app = make_app()
    app.register_blueprint(ProcoreWebhooks(url_prefix=prefix))
    without = prefix.rstrip("/")
    assert unauthentic(app, without or "/")
    assert unauthentic(app, f"{without}/")
    assert receives(app)


VARIABLE = "/<tenant>"


def in_the_blueprint(app: Flask) -> None:
    app.register_blueprint(ProcoreWebhooks(url_prefix=f"{VARIABLE}/hooks"))


def at_registration(app: Flask) -> None:
    app.register_blueprint(ProcoreWebhooks(), url_prefix="/<int:tenant>/hooks")


def with_a_default(app: Flask) -> None:
    prefix, defaults = f"{VARIABLE}/hooks", {"tenant": "acme"}
    app.register_blueprint(ProcoreWebhooks(), url_prefix=prefix, url_defaults=defaults)


def in_a_parent(app: Flask) -> None:
    outer = Blueprint("tenant", __name__, url_prefix=VARIABLE)
    outer.register_blueprint(ProcoreWebhooks(url_prefix="/hooks"))
    app.register_blueprint(outer)


def in_the_prefix_of_a_parents_registration(app: Flask) -> None:
    outer = Blueprint("tenant", __name__)
    outer.register_blueprint(ProcoreWebhooks())
    app.register_blueprint(outer, url_prefix=VARIABLE)


def in_the_subdomain(app: Flask) -> None:
    app.register_blueprint(ProcoreWebhooks(), subdomain="<tenant>")


def in_the_subdomain_of_a_parent(app: Flask) -> None:
    outer = Blueprint("tenant", __name__, subdomain="<tenant>")
    outer.register_blueprint(ProcoreWebhooks())
    app.register_blueprint(outer)


class TenantRule(Rule):
    def __init__(self, path: str, **options: Any) -> None:
        super().__init__(path, host="<tenant>.example.com", **options)


def in_the_host(app: Flask) -> None:
    app.url_map.host_matching = True
    app.url_rule_class = TenantRule
    app.register_blueprint(ProcoreWebhooks())


@pytest.mark.parametrize(
    "mount",
    [
        in_the_blueprint,
        at_registration,
        with_a_default,
        in_a_parent,
        in_the_prefix_of_a_parents_registration,
        in_the_subdomain,
        in_the_subdomain_of_a_parent,
        in_the_host,
    ],
)
def test_route_with_a_variable_is_refused(
    make_app: MakeApp, mount: Callable[[Flask], None]
) -> None:
    app = make_app(SERVER_NAME="example.com")
    app.subdomain_matching = app.url_map.subdomain_matching = True
    with pytest.raises(ConfigError) as caught:
        mount(app)
    (problem,) = caught.value.problems
    assert "tenant" in problem and "Register one blueprint for each tenant" in problem


def test_variable_is_reported_with_the_problems_of_the_keys(make_app: MakeApp) -> None:
    app = make_app(PROCORE_WEBHOOK_TOLERANCE=0)
    with pytest.raises(ConfigError) as caught:
        app.register_blueprint(ProcoreWebhooks(), url_prefix=VARIABLE)
    assert len(caught.value.problems) == 2


def test_subdomain_without_a_variable_receives(make_app: MakeApp) -> None:
    app = make_app(SERVER_NAME="example.com")
    app.subdomain_matching = app.url_map.subdomain_matching = True
    app.register_blueprint(ProcoreWebhooks(), subdomain="hooks")
    answer = app.test_client().post(PATH, base_url="http://hooks.example.com")
    assert answer.status_code == 401


def same_name(app: Flask) -> None:
    app.register_blueprint(ProcoreWebhooks())
    app.register_blueprint(ProcoreWebhooks(url_prefix="/other"))


def same_blueprint(app: Flask) -> None:
    webhooks = ProcoreWebhooks()
    app.register_blueprint(webhooks)
    app.register_blueprint(webhooks, url_prefix="/other")


def same_name_at_registration(app: Flask) -> None:
    app.register_blueprint(ProcoreWebhooks("one"))
    app.register_blueprint(ProcoreWebhooks("two", url_prefix="/other"), name="one")


def same_name_in_two_parents(app: Flask) -> None:
    for name in ("one", "two"):
        parent = Blueprint(name, __name__, url_prefix=f"/{name}")
        parent.register_blueprint(ProcoreWebhooks())
        app.register_blueprint(parent)


@pytest.mark.parametrize(
    "mount",
    [same_name, same_blueprint, same_name_at_registration, same_name_in_two_parents],
)
def test_second_endpoint_with_a_used_name_is_refused(
    make_app: MakeApp, mount: Callable[[Flask], None]
) -> None:
    """Endpoints of one name would share events and treat equal ids as duplicates."""
    with pytest.raises(ConfigError, match="name"):
        mount(make_app())


BAD_NAMES = ("", "a b", "é", "a\n", "x" * 81)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_unportable_endpoint_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="visible ASCII"):
        ProcoreWebhooks(name)


@pytest.mark.parametrize("name", BAD_NAMES[1:])
def test_unportable_endpoint_name_is_refused_at_registration(
    make_app: MakeApp, webhooks: ProcoreWebhooks, name: str
) -> None:
    with pytest.raises(ConfigError, match="visible ASCII"):
        make_app().register_blueprint(webhooks, name=name)


@pytest.mark.parametrize("kind", [ProcoreWebhooks, PrudraWebhooks])
@pytest.mark.parametrize("given", ["db metadata", "db session", "db metadata session"])
def test_database_may_be_given_only_once(
    kind: type[ProcoreWebhooks], given: str
) -> None:
    db = SQLAlchemy()
    every = {"db": db, "metadata": db.metadata, "session": db.session}
    with pytest.raises(ConfigError, match="either db= or metadata="):
        kind(**{name: every[name] for name in given.split()})


def test_session_without_metadata_is_refused() -> None:
    with pytest.raises(ConfigError, match="Pass metadata= with session="):
        ProcoreWebhooks(session=SQLAlchemy().session)


def test_all_wrong_arguments_are_named_at_once() -> None:
    db = SQLAlchemy()
    with pytest.raises(ConfigError) as caught:
        ProcoreWebhooks("a name", db=db, session=db.session)
    assert len(caught.value.problems) >= 2


@pytest.mark.parametrize("with_session", [True, False])
def test_database_uri_without_effect_is_refused(
    make_app: MakeApp, with_session: bool
) -> None:
    db = SQLAlchemy()
    webhooks = (
        ProcoreWebhooks(metadata=db.metadata, session=db.session)
        if with_session
        else ProcoreWebhooks(db=db)
    )
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI="sqlite://")
    with pytest.raises(ConfigError, match="DATABASE_URI has no effect"):
        app.register_blueprint(webhooks)


# Beside other extensions


@pytest.mark.parametrize("place", ["plain", "renamed", "nested"])
@pytest.mark.parametrize("csrf_first", [True, False])
def test_csrf_protection_exempts_only_deliveries(
    make_app: MakeApp, csrf_first: bool, place: str
) -> None:
    app, csrf = make_app(SECRET_KEY="of the sessions"), CSRFProtect()
    app.add_url_rule("/form", "form", lambda: "changed", methods=["POST"])

    def mount() -> None:
        if place == "nested":
            outer = Blueprint("outer", __name__, url_prefix="/outer")
            outer.add_url_rule("/form", "form", lambda: "changed", methods=["POST"])
            outer.register_blueprint(ProcoreWebhooks())
            app.register_blueprint(outer)
        else:
            name = {"name": "renamed"} if place == "renamed" else {}
            app.register_blueprint(ProcoreWebhooks(), **name)

    steps = [lambda: csrf.init_app(app), mount]
    for step in steps if csrf_first else reversed(steps):
        step()
    assert receives(app)
    assert unauthentic(app, next(iter(endpoints(app).values())).path)
    assert app.test_client().post("/form").status_code == 400
    if place == "nested":
        assert app.test_client().post("/outer/form").status_code == 400


def test_delivery_with_a_form_type_passes_csrf_protection(make_app: MakeApp) -> None:
    app = make_app(SECRET_KEY="of the sessions")
    CSRFProtect(app)
    app.register_blueprint(ProcoreWebhooks())
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = deliver(app.test_client(), payload("RFIs.create"), headers=form)
    assert answer.json == {"received": True}


@pytest.mark.parametrize("guard_first", [True, False])
def test_login_check_can_exempt_the_blueprint_by_name(
    make_app: MakeApp, webhooks: ProcoreWebhooks, guard_first: bool
) -> None:
    app = make_app()

    def login_required() -> Any:
        if request.blueprint == webhooks.name:
            return None
        return redirect("/login")

    steps = [
        lambda: app.before_request(login_required),
        lambda: app.register_blueprint(webhooks),
    ]
    for step in steps if guard_first else reversed(steps):
        step()
    assert receives(app)
    assert unauthentic(app)
    assert app.test_client().get("/page").status_code == 302


def test_login_check_without_exemption_blocks_deliveries(
    make_app: MakeApp, webhooks: ProcoreWebhooks
) -> None:
    """Exemption is up to the host; the command ``check`` reports a blocked route."""
    app = make_app()
    app.before_request(lambda: abort(Response("log in", 403)))
    app.register_blueprint(webhooks)
    answer = deliver(app.test_client(), payload("RFIs.create"))
    assert (answer.status_code, answer.text) == (403, "log in")


# Declarative bases, schemas, conventions


class PlainBase(orm.DeclarativeBase):
    pass


class DataclassBase(orm.MappedAsDataclass, orm.DeclarativeBase):
    pass


class NoMetaBase(orm.DeclarativeBaseNoMeta):
    pass


class NoMetaDataclassBase(orm.MappedAsDataclass, orm.DeclarativeBaseNoMeta):
    pass


def new_base(kind: type) -> Any:
    """A new base with its own metadata; a subclass would share the parent's."""
    return type("Base", kind.__bases__, {"metadata": sa.MetaData()})


FLASK_SQLALCHEMY_BASES: dict[str, Callable[[], Any]] = {
    "default": lambda: None,
    "DeclarativeBase": lambda: new_base(PlainBase),
    "MappedAsDataclass": lambda: new_base(DataclassBase),
    "DeclarativeBaseNoMeta": lambda: new_base(NoMetaBase),
    "NoMeta MappedAsDataclass": lambda: new_base(NoMetaDataclassBase),
    "declarative_base": lambda: orm.declarative_base(),
}


@pytest.mark.parametrize("base", FLASK_SQLALCHEMY_BASES)
def test_flask_sqlalchemy_may_have_any_base(
    make_app: MakeApp, tmp_path: Path, base: str
) -> None:
    made = FLASK_SQLALCHEMY_BASES[base]()
    try:
        db = SQLAlchemy(model_class=made) if made else SQLAlchemy()
    except sa.exc.InvalidRequestError as error:
        pytest.skip(f"this Flask-SQLAlchemy cannot with this SQLAlchemy: {error}")
    webhooks = ProcoreWebhooks(db=db)

    class Note(db.Model):
        __tablename__ = "note"
        text: orm.Mapped[str] = orm.mapped_column(sa.String(80), primary_key=True)

    @webhooks.on()
    def write(event: Event) -> None:
        db.session.add(Note(text=event.id))

    app = make_app(SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path / 'host.db'}")
    db.init_app(app)
    app.register_blueprint(webhooks)
    with app.app_context():
        db.create_all()
    assert receives(app, id="evt_1")
    with app.app_context():
        assert db.session.scalars(sa.select(Note.text)).all() == ["evt_1"]


PLAIN_BASES: dict[str, Callable[[], Any]] = {
    **{name: make for name, make in FLASK_SQLALCHEMY_BASES.items() if make()},
    "generate_base": lambda: orm.registry().generate_base(),
    "registry": lambda: orm.registry(),
    "automap": lambda: automap_base(),
    "MetaData": lambda: type("Plain", (), {"metadata": sa.MetaData()}),
}


@pytest.mark.parametrize("base", PLAIN_BASES)
def test_plain_sqlalchemy_may_have_any_base(
    make_app: MakeApp, tmp_path: Path, base: str
) -> None:
    made = PLAIN_BASES[base]()
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'host.db'}")
    webhooks = ProcoreWebhooks(metadata=made.metadata, session=scoped(engine))
    app = make_app()
    app.register_blueprint(webhooks)
    made.metadata.create_all(engine)
    assert receives(app)
    engine.dispose()


def test_previously_reflected_tables_are_used(
    make_app: MakeApp, tmp_path: Path
) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'host.db'}")
    first = sa.MetaData()
    ProcoreWebhooks(metadata=first)
    first.create_all(engine)
    base = automap_base()
    webhooks = ProcoreWebhooks(metadata=base.metadata, session=scoped(engine))
    base.prepare(autoload_with=engine)
    app = make_app()
    app.register_blueprint(webhooks)
    assert receives(app)
    engine.dispose()


def with_a_hooks_schema(url: str, tmp_path: Path) -> tuple[sa.Engine, str]:
    engine = sa.create_engine(url)
    if engine.dialect.name == "sqlite":

        @sa.event.listens_for(engine, "connect")
        def attach(connection: Any, record: Any) -> None:
            connection.execute(f"ATTACH '{tmp_path / 'hooks.db'}' AS hooks")

        return engine, "hooks"
    schema = f"hooks_{os.urandom(4).hex()}"
    with engine.begin() as connection:
        connection.execute(sa.schema.CreateSchema(schema))
    return engine, schema


def test_tables_may_be_in_a_schema(
    make_app: MakeApp, database_url: str, tmp_path: Path
) -> None:
    engine, schema = with_a_hooks_schema(database_url, tmp_path)
    metadata = sa.MetaData(schema=schema)
    app = make_app()
    app.register_blueprint(ProcoreWebhooks(metadata=metadata, session=scoped(engine)))
    try:
        answer = deliver(app.test_client(), payload("RFIs.create"))
        assert answer.status_code == 503
        (endpoint,) = endpoints(app).values()
        expected = [f"{schema}.{table}" for table in TABLES]
        assert endpoint.store.database.missing_tables() == expected
        metadata.create_all(engine)
        assert receives(app)
    finally:
        metadata.drop_all(engine)
        if schema != "hooks":
            with engine.begin() as connection:
                connection.execute(sa.schema.DropSchema(schema))
        engine.dispose()


CONVENTION = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


def test_naming_convention_of_the_host_is_kept(
    make_app: MakeApp, database_url: str
) -> None:
    engine = sa.create_engine(database_url)
    metadata = sa.MetaData(naming_convention=CONVENTION)
    app = make_app()
    app.register_blueprint(ProcoreWebhooks(metadata=metadata, session=scoped(engine)))
    metadata.create_all(engine)
    assert receives(app)
    found = sa.inspect(engine).get_pk_constraint(JOB_TABLE)["name"]
    assert found in (f"pk_{JOB_TABLE}", None)  # MariaDB has no name for it.
    engine.dispose()


# Commands


def custom_command(blueprint: Blueprint) -> None:
    blueprint.cli.add_command(click.Command(f"of-{blueprint.name}"))


def commands(app: Flask, group: str = "procore-webhooks") -> set[str]:
    found = app.cli.commands[group]
    assert isinstance(found, click.Group)
    return set(found.list_commands(click.Context(found)))


def test_two_blueprints_of_one_group_keep_all_their_commands(tenants: Flask) -> None:
    assert commands(tenants) >= {"init-db", "check", "list", "stats"}


def test_commands_that_a_user_added_survive_a_second_blueprint(
    make_app: MakeApp,
) -> None:
    app = make_app(**TENANTS)
    for name in ("a", "b"):
        webhooks = ProcoreWebhooks(
            name, url_prefix=f"/{name}", config_prefix=f"{name.upper()}_"
        )
        custom_command(webhooks)
        app.register_blueprint(webhooks)
    assert commands(app) >= {"init-db", "of-a", "of-b"}


def test_existing_command_group_of_the_host_keeps_its_commands(
    make_app: MakeApp, webhooks: ProcoreWebhooks
) -> None:
    app = make_app()
    theirs = Blueprint("theirs", __name__, cli_group="procore-webhooks")
    custom_command(theirs)
    app.register_blueprint(theirs)
    app.register_blueprint(webhooks)
    assert commands(app) >= {"init-db", "of-theirs"}


def test_commands_of_one_app_do_not_appear_in_another(
    make_app: MakeApp, webhooks: ProcoreWebhooks
) -> None:
    first, second = make_app(), make_app()
    theirs = Blueprint("theirs", __name__, cli_group="procore-webhooks")
    custom_command(theirs)
    first.register_blueprint(theirs)
    first.register_blueprint(webhooks)
    second.register_blueprint(webhooks)
    assert "of-theirs" not in commands(second)


def test_group_may_have_another_name(make_app: MakeApp) -> None:
    app = make_app()
    app.register_blueprint(ProcoreWebhooks(cli_group="hooks"))
    assert "init-db" in commands(app, "hooks")
    assert "procore-webhooks" not in app.cli.commands


def test_commands_see_all_endpoints_of_the_app(tenants: Flask) -> None:
    result = tenants.test_cli_runner().invoke(args=["procore-webhooks", "init-db"])
    assert result.exit_code == 0
    assert {line.partition(":")[0] for line in result.output.splitlines()} == {"a", "b"}


def test_sqlite_file_of_the_host_keeps_its_journal_mode(
    make_app: MakeApp, tmp_path: Path
) -> None:
    for key, mode in (
        ("SQLALCHEMY_DATABASE_URI", "delete"),
        ("PROCORE_WEBHOOK_DATABASE_URI", "wal"),
    ):
        file = tmp_path / f"{mode}.db"
        app = make_app(**{key: f"sqlite:///{file}"})
        app.register_blueprint(ProcoreWebhooks())
        assert receives(app)
        with closing(sqlite3.connect(file)) as connection:
            assert connection.execute("PRAGMA journal_mode").fetchone() == (mode,)


def test_wrapped_view_is_verified_like_the_original(make_app: MakeApp) -> None:
    """Tracing agents and limiters wrap view functions."""
    app = make_app(PROCORE_WEBHOOK_MAX_BYTES=100)
    app.register_blueprint(ProcoreWebhooks())
    view = app.view_functions["procore_webhooks.receive"]
    app.view_functions["procore_webhooks.receive"] = lambda **values: view(**values)

    @app.before_request
    def consume() -> None:
        request.form.get("x")

    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    small = deliver(app.test_client(), b'{"id": "a"}', headers=headers)
    assert small.get_json() == {"received": True}
    assert deliver(app.test_client(), b"x" * 101).status_code == 413


def test_csrf_exemption_covers_only_the_webhook_view(make_app: MakeApp) -> None:
    webhooks, admin = ProcoreWebhooks(), Blueprint("admin", __name__)
    webhooks.add_url_rule("/upload", "upload", lambda: "uploaded", methods=["POST"])
    admin.add_url_rule("/purge", "purge", lambda: "purged", methods=["POST"])
    webhooks.register_blueprint(admin, url_prefix="/admin")
    app = make_app(SECRET_KEY="k")
    CSRFProtect(app)
    app.register_blueprint(webhooks)
    client = app.test_client()
    assert receives(app)
    assert client.post("/webhooks/procore/upload").status_code == 400
    assert client.post("/webhooks/procore/admin/purge").status_code == 400


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("postgresql:/user:TOPSECRET@host/db", "cannot be parsed"),
        (
            "postgresql+psycopg://user:TOPSECRET@host/db?prepare_threshold=often",
            "prepare_threshold must be a whole number",
        ),
        ("postgresql+psycopg://user:TOP@SECRET@host/db", "write @ as %40"),
        ("postgresql+psycopg://user:TOP@SECRET:5@host:5432/db", "write @ as %40"),
        ("postgresql+psycopg://user:TOP@SEC/RET@host/db", "write @ as %40"),
        ("postgresql+psycopg://us/er:TOPSECRET@host/db", "write @ as %40"),
        ("postgresql+psycopg://user:TOP@SECRET?b@host/db", "write @ as %40"),
        ("postgresql+psycopg://user:TOP@SEC?RET=b@host/db", "write @ as %40"),
    ],
)
def test_malformed_database_uri_is_a_config_error_without_its_password(
    make_app: MakeApp, uri: str, problem: str
) -> None:
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI=uri)
    with pytest.raises(ConfigError) as raised:
        app.register_blueprint(ProcoreWebhooks())
    assert str(raised.value).startswith("PROCORE_WEBHOOK_DATABASE_URI is wrong: ")
    assert problem in str(raised.value)
    assert not any(part in str(raised.value) for part in ("TOP", "SEC", "RET"))
    other = make_app(PROCORE_WEBHOOK_DATABASE_URI=uri, PROCORE_WEBHOOK_LEASE=0)
    with pytest.raises(ConfigError) as raised:
        other.register_blueprint(ProcoreWebhooks())
    assert len(raised.value.problems) == 2, "all that is wrong is told at once"


def test_malformed_uri_of_the_host_does_not_log_its_password(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app(SQLALCHEMY_DATABASE_URI="postgresql:/user:TOPSECRET@host/db")
    app.register_blueprint(ProcoreWebhooks())
    assert deliver(app.test_client(), payload("RFIs.create")).status_code == 503
    assert "cannot be parsed" in caplog.text and "TOPSECRET" not in caplog.text
