"""The pytest plug-in: the fixture ``procore_webhooks``, found by its entry point."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from flask import Flask

    from .testing import Deliveries


@pytest.fixture
def procore_webhooks(app: Flask) -> Deliveries:
    """Authentic deliveries to the app under test, which the fixture ``app`` returns."""
    from .testing import Deliveries

    return Deliveries(app)
