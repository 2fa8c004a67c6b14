from __future__ import annotations

from datetime import datetime
from datetime import timezone

import pytest
from fake_support import Api
from fake_support import Destination

from flask_procore_webhooks.fake import FakeProcore

NOW = datetime(2026, 11, 23, 9, tzinfo=timezone.utc)


@pytest.fixture
def fake() -> FakeProcore:
    """A fake with company 1 and its projects 2 and 3, without a spike limit.

    Its tokens are valid for years.
    """
    fake = FakeProcore("id", "secret", now=NOW, spike_limit=None, token_seconds=10**9)
    fake.add_company("1", projects=["2", "3"])
    return fake


@pytest.fixture
def api(fake: FakeProcore) -> Api:
    """A client of the fake with a token."""
    return Api(fake)


@pytest.fixture
def there() -> Destination:
    """A destination that answers 200, unless a test tells it otherwise."""
    return Destination()
