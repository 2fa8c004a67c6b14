from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from datetime import timezone

import pytest
import requests
from hooks_support import site as site

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
