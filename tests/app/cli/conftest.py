from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from support.commands import mounted
from support.receivers import Receiver
from support.receivers import receiving
from support.sites import open_site
from support.sites import Site

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import PrudraWebhooks
from flask_procore_webhooks.endpoint import endpoints

MakeApp = Callable[..., Flask]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving(Receiver()) as receiver:
        yield receiver


@pytest.fixture
def host(make_app: MakeApp, tmp_path: Path) -> Flask:
    """An app with Flask-SQLAlchemy and without tables."""
    db = SQLAlchemy()
    app = make_app(SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path / 'host.db'}")
    db.init_app(app)
    return mounted(app, ProcoreWebhooks(db=db))


@pytest.fixture
def tenants(make_app: MakeApp) -> Flask:
    """Three endpoints; the secret of each is the endpoint's name."""
    names = {"ACME_SECRET": "acme", "BOLT_SECRET": "bolt", "PRUDRA_SECRET": "prudra"}
    return mounted(
        make_app(**names),
        ProcoreWebhooks("acme", url_prefix="/hooks", config_prefix="ACME_"),
        ProcoreWebhooks("bolt", url_prefix="/bolt/hooks", config_prefix="BOLT_"),
        PrudraWebhooks("prudra", config_prefix="PRUDRA_"),
    )


@pytest.fixture
def database_app(make_app: MakeApp, database_url: str) -> Iterator[Flask]:
    """An app with an inbox of its own, on each kind of database."""
    app = mounted(make_app(PROCORE_WEBHOOK_DATABASE_URI=database_url))
    yield app
    for endpoint in endpoints(app).values():
        endpoint.store.database.engine.dispose()


@pytest.fixture
def site(make_app: MakeApp, database_url: str) -> Iterator[Site]:
    with open_site(make_app(), database_url) as site:
        yield site


@pytest.fixture
def sqlite_site(make_app: MakeApp, tmp_path: Path) -> Iterator[Site]:
    """A site on a SQLite file."""
    with open_site(make_app(), f"sqlite:///{tmp_path}/test.db") as site:
        yield site


@pytest.fixture
def two_sites(sqlite_site: Site) -> Iterator[tuple[Site, Site]]:
    config = sqlite_site.app.config
    config["BOLT_SECRET"] = "another secret"
    config["BOLT_DATABASE_URI"] = config["PROCORE_WEBHOOK_DATABASE_URI"]
    config["BOLT_DISPATCH"] = "worker"
    config["BOLT_MAX_ATTEMPTS"] = 1
    bolt = ProcoreWebhooks("bolt", url_prefix="/bolt", config_prefix="BOLT_")
    sqlite_site.app.register_blueprint(bolt)
    other = Site(
        sqlite_site.app, bolt, endpoints(sqlite_site.app)["bolt"], sqlite_site.clock
    )
    yield sqlite_site, other
    other.store.database.engine.dispose()
