"""The pytest plug-in in a user's project."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
from support.values import SECRET

pytest_plugins = ["pytester"]
PROJECT = {
    "shop.py": f"""
        from flask import Flask
        from flask_procore_webhooks import ProcoreWebhooks
        from flask_sqlalchemy import SQLAlchemy
        from sqlalchemy.orm import Mapped, mapped_column

        db = SQLAlchemy()
        webhooks = ProcoreWebhooks(db=db)

        class Rfi(db.Model):
            id: Mapped[int] = mapped_column(primary_key=True)
            updates: Mapped[int] = mapped_column(default=0)

        @webhooks.on("RFIs", "update")
        def sync_rfi(event):
            rfi = db.session.get(Rfi, int(event.resource_id)) or Rfi(
                id=int(event.resource_id), updates=0
            )
            rfi.updates += 1
            db.session.add(rfi)
            db.session.flush()
            if event.data.get("poison") and event.attempt == 1:
                raise RuntimeError("after it has written")

        def create_app():
            app = Flask(__name__)
            app.config["PROCORE_WEBHOOK_SECRET"] = {SECRET!r}
            app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
            app.config["TESTING"] = True
            db.init_app(app)
            app.register_blueprint(webhooks)
            return app
    """,
    "conftest.py": """
        import pytest
        from shop import create_app, db

        @pytest.fixture
        def app():
            app = create_app()
            with app.app_context():
                db.create_all()
                yield app
                db.session.remove()
                db.engine.dispose()
    """,
    "test_shop.py": """
        from shop import db, Rfi
        from sqlalchemy import select

        def updates():
            db.session.rollback()
            return dict(db.session.execute(select(Rfi.id, Rfi.updates)).all())

        def test_an_rfi_is_synced_once(procore_webhooks):
            payload = procore_webhooks.payload("RFIs.update", resource_id=7)
            for copy in range(3):
                assert procore_webhooks.deliver(payload).status_code == 200
            assert updates() == {7: 1}

        def test_a_failed_run_leaves_nothing_and_is_repeated(procore_webhooks):
            payload = procore_webhooks.payload("RFIs.update", resource_id=7, poison=1)
            assert procore_webhooks.deliver(payload).status_code == 500
            assert updates() == {}
            assert procore_webhooks.drain(advance=60) == 1
            assert updates() == {7: 1}
            assert procore_webhooks.events()[0]["status"] == "done"

        def test_rows_of_the_test_are_seen_and_changed(procore_webhooks):
            db.session.add(Rfi(id=7, updates=5))
            db.session.commit()
            mine = db.session.get(Rfi, 7)
            payload = procore_webhooks.payload("RFIs.update", resource_id=7)
            assert procore_webhooks.deliver(payload).status_code == 200
            db.session.refresh(mine)
            assert mine.updates == 6

        def test_each_test_has_an_inbox_of_its_own(procore_webhooks):
            assert procore_webhooks.events() == []

        def test_beside_the_client_fixture(client, procore_webhooks):
            assert client.post("/webhooks/procore").status_code == 401
            procore_webhooks.deliver(procore_webhooks.payload("RFIs.update"))
            assert updates() == {4001: 1}
    """,
}


#: The fixture ``app`` of a project without pytest-flask.
CLIENT = """
        @pytest.fixture
        def client(app):
            return app.test_client()
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """A user's project: an app with Flask-SQLAlchemy in memory, and its tests."""
    for name, text in PROJECT.items():
        (pytester.path / name).write_text(textwrap.dedent(text))
    return pytester


def run(project: pytest.Pytester, *options: str) -> pytest.RunResult:
    return project.runpytest_subprocess(
        "-W", "error", "-p", "no:cacheprovider", *options
    )


def test_plug_in_is_found_and_works_in_memory_under_pytest_flask(
    project: pytest.Pytester,
) -> None:
    """pytest-flask pushes a request context of its own around every test."""
    run(project, "-p", "flask").assert_outcomes(passed=5)


def test_plugin_needs_no_other_plugin(project: pytest.Pytester) -> None:
    with (project.path / "conftest.py").open("a") as conftest:
        conftest.write(textwrap.dedent(CLIENT))
    run(project, "-p", "no:flask").assert_outcomes(passed=5)


def test_missing_app_fixture_is_named(
    project: pytest.Pytester,
) -> None:
    (project.path / "conftest.py").write_text("")
    result = run(project, "-p", "no:flask", "-k", "synced_once")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*fixture 'app' not found"])


def test_plug_in_imports_the_package_only_for_the_fixture() -> None:
    """pytest imports every plug-in at its start, in any project."""
    script = """
        import sys
        import pytest_flask_procore_webhooks
        print(*(name for name in sys.modules if name.startswith("flask")))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout == "\n"


#: An app with the embedded default, and one test.
APP = """
import pytest
from flask import Flask
from flask_procore_webhooks import ProcoreWebhooks

def create_app(**arguments):
    app = Flask("shop", **arguments)
    app.config.update(TESTING=True, PROCORE_WEBHOOK_SECRET="a secret")
    return app

def test_delivers(procore_webhooks):
    sent = procore_webhooks.payload("RFIs.update")
    assert procore_webhooks.deliver(sent).status_code == 200

@pytest.fixture
def app(tmp_path):
    import tempfile
    {made}
    app.register_blueprint(ProcoreWebhooks())
    {then}
    return app
"""
IN_DEVELOPMENT = [
    ("app = create_app()", "pass"),
    ("app = create_app(instance_path='{folder}/instance')", "pass"),
    (
        "app = create_app();"
        " app.config['PROCORE_WEBHOOK_DATABASE_URI'] = 'sqlite:///hooks.db'",
        "pass",
    ),
    (
        "app = create_app();"
        " app.config['SQLALCHEMY_DATABASE_URI'] = 'sqlite:///of_the_host.db'",
        "pass",
    ),
    (
        "app = create_app(); app.config['PROCORE_WEBHOOK_DATABASE_URI'] ="
        " f'sqlite:///{{app.instance_path}}/hooks.db'",
        "app.instance_path = str(tmp_path)",
    ),
]
OF_THE_TEST = [
    ("app = create_app()", "app.instance_path = str(tmp_path)"),
    ("app = create_app(instance_path=tempfile.mkdtemp())", "pass"),
    (
        "app = create_app();"
        " app.config['PROCORE_WEBHOOK_DATABASE_URI'] = f'sqlite:///{{tmp_path}}/x.db'",
        "pass",
    ),
    (
        "app = create_app(); app.config['PROCORE_WEBHOOK_DATABASE_URI'] = 'sqlite://'",
        "pass",
    ),
    (
        "app = create_app();"
        " app.config['SQLALCHEMY_DATABASE_URI'] = 'sqlite:///of_the_host.db'",
        "app.instance_path = str(tmp_path)",
    ),
]


def run_app(pytester: pytest.Pytester, made: str, then: str) -> pytest.RunResult:
    made = made.format(folder=pytester.path, tmp_path="{tmp_path}")
    (pytester.path / "test_app.py").write_text(APP.format(made=made, then=then))
    return run(pytester, "-p", "no:flask")


@pytest.mark.parametrize(("made", "then"), IN_DEVELOPMENT)
def test_the_inbox_of_the_app_in_development_is_refused(
    pytester: pytest.Pytester, made: str, then: str
) -> None:
    result = run_app(pytester, made, then)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["*UsageError: The tests would write into *instance_path=str(tmp_path)*"]
    )
    assert not (pytester.path / "instance").exists()


#: An app whose inbox is in the database of the host, and one test. Its conftest gives
#: it a folder after the engine was made.
HOST_APP = """
import os
import pytest
from flask import Flask
from flask_procore_webhooks import ProcoreWebhooks
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import create_engine, MetaData
from sqlalchemy.orm import scoped_session, sessionmaker

def with_db(app, folder):
    db = SQLAlchemy()
    app.config.setdefault("SQLALCHEMY_DATABASE_URI", "sqlite:///tracker.db")
    db.init_app(app)
    app.register_blueprint(ProcoreWebhooks(db=db))
    with app.app_context():
        db.create_all()

def with_session(app, folder):
    os.makedirs(folder, exist_ok=True)
    engine = create_engine(f"sqlite:///{{folder}}/tracker.db")
    metadata, session = MetaData(), scoped_session(sessionmaker(engine))
    app.register_blueprint(ProcoreWebhooks(metadata=metadata, session=session))
    metadata.create_all(engine)

def test_delivers(procore_webhooks):
    sent = procore_webhooks.payload("RFIs.update")
    assert procore_webhooks.deliver(sent).status_code == 200

@pytest.fixture
def app(tmp_path):
    app = Flask("shop")
    app.config.update(TESTING=True, PROCORE_WEBHOOK_SECRET="a secret")
    {made}
    app.instance_path = str(tmp_path)
    return app
"""
HOST_IN_DEVELOPMENT = [
    ("with_db(app, None)", "set SQLALCHEMY_DATABASE_URI in the config"),
    ("with_session(app, app.instance_path)", "Bind session= to a database of the"),
]
HOST_OF_THE_TEST = [
    "app.config['SQLALCHEMY_DATABASE_URI'] = 'sqlite://'; with_db(app, None)",
    "app.config['SQLALCHEMY_DATABASE_URI'] = f'sqlite:///{tmp_path}/test.db';"
    " with_db(app, None)",
    "with_session(app, tmp_path)",
]


def run_host_app(pytester: pytest.Pytester, made: str) -> pytest.RunResult:
    text = HOST_APP.replace("{made}", made).replace("{{folder}}", "{folder}")
    (pytester.path / "test_app.py").write_text(text)
    options = ("-p", "no:flask", "-p", "no:cacheprovider")
    # The app keeps its connections: the database is that of one short process.
    return pytester.runpytest_subprocess("-W", "ignore::ResourceWarning", *options)


@pytest.mark.parametrize(("made", "advice"), HOST_IN_DEVELOPMENT)
def test_the_database_of_the_host_in_development_is_refused(
    pytester: pytest.Pytester, made: str, advice: str
) -> None:
    result = run_host_app(pytester, made)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        [f"*The tests would write into *instance/tracker.db, *{advice}*"]
    )


@pytest.mark.parametrize("made", HOST_OF_THE_TEST)
def test_a_database_of_the_host_for_the_test_is_used(
    pytester: pytest.Pytester, made: str
) -> None:
    run_host_app(pytester, made).assert_outcomes(passed=1)


@pytest.mark.parametrize(("made", "then"), OF_THE_TEST)
def test_an_inbox_of_the_test_is_used(
    pytester: pytest.Pytester, made: str, then: str
) -> None:
    run_app(pytester, made, then).assert_outcomes(passed=1)
