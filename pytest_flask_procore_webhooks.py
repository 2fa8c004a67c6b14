"""The pytest plug-in of flask-procore-webhooks: the fixture ``procore_webhooks``.

It stands outside the package, because pytest imports every plug-in at its start: the
package is imported when a test asks for the fixture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from flask import Flask

    from flask_procore_webhooks.testing import Deliveries


@pytest.fixture
def procore_webhooks(app: Flask) -> Deliveries:
    """Authentic deliveries to the app under test, which the fixture ``app`` returns."""
    from flask_procore_webhooks.testing import Deliveries

    return Deliveries(app)
