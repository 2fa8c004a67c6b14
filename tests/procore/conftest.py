from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from datetime import timezone
from pathlib import Path

import pytest
import requests
from hooks_support import site as site
from reconcile_support import integrated
from reconcile_support import Integration
from reconcile_support import MakeApp

from flask_procore_webhooks.api import ProcoreAPI
from flask_procore_webhooks.fake import FakeProcore

NOW = datetime(2026, 11, 23, 9, tzinfo=timezone.utc)


@pytest.fixture
def fake() -> FakeProcore:
    """A fake whose clock stands still, with company 1 and its projects 2 and 3."""
    fake = FakeProcore("id", "a client secret", now=NOW)
    fake.add_company("1", projects=["2", "3"])
    return fake


@pytest.fixture
def session(fake: FakeProcore) -> Iterator[requests.Session]:
    """A session whose requests to Procore go to the fake, without sockets."""
    with requests.Session() as session:
        fake.mount(session)
        yield session


@pytest.fixture
def api(session: requests.Session) -> ProcoreAPI:
    """A client of the fake that waits for nothing."""
    return ProcoreAPI("id", "a client secret", company_id=1, session=session, wait=0)


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The URL of a database in a SQLite file."""
    return f"sqlite:///{tmp_path / 'test.db'}"


@pytest.fixture
def mine(make_app: MakeApp, url: str) -> Iterator[Integration]:
    """An integration on a SQLite file."""
    with integrated(make_app, url) as mine:
        yield mine
