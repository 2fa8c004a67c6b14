from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator

import pytest
from flask import Flask
from support.sites import open_site
from support.sites import Site

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.storage.store import Store

MakeApp = Callable[..., Flask]


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengthen the lock timeout: one file on a slow disk has many connections."""
    monkeypatch.setattr(Store, "retry_seconds", 30)


@pytest.fixture
def site(make_app: MakeApp, database_url: str) -> Iterator[Site]:
    """A site on each kind of database."""
    with open_site(make_app(), database_url) as site:
        yield site


@pytest.fixture
def two_sites(make_app: MakeApp, database_url: str) -> Iterator[tuple[Site, Site]]:
    """Two endpoints of one app that share their tables."""
    with open_site(make_app(BOLT_SECRET="another secret"), database_url) as site:
        bolt = ProcoreWebhooks("bolt", url_prefix="/bolt", config_prefix="BOLT_")
        site.app.config["BOLT_DATABASE_URI"] = database_url
        site.app.config["BOLT_DISPATCH"] = "worker"
        site.app.register_blueprint(bolt)
        other = Site(site.app, bolt, endpoints(site.app)["bolt"], site.clock)
        yield site, other
        other.store.database.engine.dispose()
