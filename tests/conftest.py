from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from hypothesis import HealthCheck
from hypothesis import settings
from support.counts import stop_tallies
from support.selection import mark_seldom_cases
from support.selection import mark_server_tests
from support.serial import pytest_runtest_protocol as pytest_runtest_protocol
from support.serial import pytest_sessionfinish as pytest_sessionfinish
from support.serial import pytest_terminal_summary as pytest_terminal_summary
from support.services import drop_tables
from support.services import MARIADB
from support.services import own_database
from support.services import POSTGRESQL
from support.values import Clock
from support.values import SECRET
from support.waiting import PATIENCE

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import signals
from flask_procore_webhooks import subscribers
from flask_procore_webhooks.dispatching.background import stop_all
from flask_procore_webhooks.dispatching.crew import Crew
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.log import log
from flask_procore_webhooks.running import held
from flask_procore_webhooks.storage.store import Store

# On a busy machine, both generating and running an example may take long.
settings.register_profile(
    "suite", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")

# A shell starts a command in the background with SIGINT ignored, and the servers of the
# tests, which are ended by it, would ignore it too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mark_server_tests(items)
    mark_seldom_cases(items)


@pytest.fixture
def whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a worker keep its batch, however long the machine stalls during an event."""
    monkeypatch.setattr(Crew, "batch_seconds", PATIENCE)
    monkeypatch.setattr(held, "LONGEST_WAIT", PATIENCE)


@pytest.fixture(autouse=True)
def _end_threads() -> Iterator[None]:
    """Stop the threads that a test has started to run events."""
    yield
    stop_all()
    stop_tallies()


@pytest.fixture(autouse=True)
def _disconnect_receivers() -> Iterator[None]:
    """Signals and names are global: remove the receivers that a test has connected."""
    # Of modules that were imported since, and of blueprints that are not collected yet.
    subscribers._collections.clear()
    yield
    for each in signals._signals.values():
        each._clear_state()


@pytest.fixture(autouse=True)
def _restore_loggers() -> Iterator[None]:
    """Loggers are global: remove the handlers that a test has added."""
    loggers = logging.getLogger(), log
    before = [(each, each.level, each.propagate, [*each.handlers]) for each in loggers]
    yield
    for logger, level, propagate, handlers in before:
        logger.setLevel(level)
        logger.propagate = propagate
        for handler in {*logger.handlers} - {*handlers}:
            logger.removeHandler(handler)


@pytest.fixture
def make_app(tmp_path: Path) -> Callable[..., Flask]:
    """A factory of configured apps, each with an instance folder of its own."""
    made = 0

    def make_app(**config: Any) -> Flask:
        nonlocal made
        made += 1
        app = Flask("host", instance_path=str(tmp_path / f"instance{made}"))
        app.config.update(TESTING=True, PROCORE_WEBHOOK_SECRET=SECRET)
        app.config.update(config)
        return app

    return make_app


@pytest.fixture
def webhooks() -> ProcoreWebhooks:
    return ProcoreWebhooks()


@pytest.fixture
def app(make_app: Callable[..., Flask], webhooks: ProcoreWebhooks) -> Flask:
    """An app with the embedded default: a SQLite file in its instance folder."""
    app = make_app()
    app.register_blueprint(webhooks)
    return app


@pytest.fixture
def endpoint(app: Flask) -> Endpoint:
    (endpoint,) = endpoints(app).values()
    return endpoint


@pytest.fixture
def store(endpoint: Endpoint) -> Store:
    return endpoint.store


@pytest.fixture
def clock(endpoint: Endpoint) -> Clock:
    """The clock of ``endpoint``, stopped at the start of the test."""
    clock = Clock()
    endpoint.store.now = clock
    return clock


@pytest.fixture
def short_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """For outages that no retry outlasts: a statement fails after 0.2 s."""
    monkeypatch.setattr(Store, "retry_seconds", 0.2)


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    with own_database(*POSTGRESQL) as url:
        yield url


@pytest.fixture(scope="session")
def mariadb_url() -> Iterator[str]:
    with own_database(*MARIADB) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database; the test runs once on each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'test.db'}"
        return
    url = request.getfixturevalue(f"{request.param}_url")
    yield url
    drop_tables(url)


@pytest.fixture(autouse=True)
def _clear_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("FLASK_", "PROCORE_", "PRUDRA_")):
            monkeypatch.delenv(name)
