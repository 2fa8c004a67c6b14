"""Tests of the app with real deliveries: signed, verified, recorded and run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import app as tasks
import pytest
from flask import Flask
from sqlalchemy import select

from flask_procore_webhooks.testing import Deliveries


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    """Return the app under test, for the fixture ``procore_webhooks``."""
    app = tasks.create_app(
        {
            "TESTING": True,
            "SQLALCHEMY_DATABASE_URI": f"sqlite:///{tmp_path / 'test.db'}",
            "PROCORE_WEBHOOK_SECRET": "a secret for tests",
        }
    )
    yield app
    with app.app_context():
        tasks.db.engine.dispose()


def tasks_of(app: Flask) -> list[str]:
    with app.app_context():
        return list(tasks.db.session.scalars(select(tasks.Task.text)))


def test_a_new_rfi_becomes_a_task(app: Flask, procore_webhooks: Deliveries) -> None:
    rfi = procore_webhooks.payload("RFIs.create", format="v4", resource_id="7")
    assert procore_webhooks.deliver(rfi).status_code == 200
    assert tasks_of(app) == ["Answer RFI 7"]


def test_a_delivery_sent_twice_makes_one_task(
    app: Flask, procore_webhooks: Deliveries
) -> None:
    rfi = procore_webhooks.payload("RFIs.create", format="v4", resource_id="7")
    procore_webhooks.deliver(rfi)
    again = procore_webhooks.deliver(rfi)
    assert again.get_json() == {"received": True, "duplicate": True}
    assert tasks_of(app) == ["Answer RFI 7"]


def test_an_updated_rfi_makes_no_task(app: Flask, procore_webhooks: Deliveries) -> None:
    update = procore_webhooks.payload("RFIs.update", format="v4")
    assert procore_webhooks.deliver(update).status_code == 200
    assert tasks_of(app) == []


def test_a_forgery_makes_no_task(app: Flask, procore_webhooks: Deliveries) -> None:
    rfi = procore_webhooks.payload("RFIs.create", format="v4")
    forged = {"X-Procore-Signature": "0" * 64}
    assert procore_webhooks.deliver(rfi, headers=forged).status_code == 401
    assert tasks_of(app) == []


def test_the_next_delivery_repeats_a_failed_run(
    app: Flask, procore_webhooks: Deliveries
) -> None:
    rfi = procore_webhooks.payload("RFIs.create", format="v4", resource_id="7")
    with app.app_context():
        tasks.Base.metadata.tables["task"].drop(tasks.db.engine)
    assert procore_webhooks.deliver(rfi).status_code == 500
    with app.app_context():
        tasks.db.create_all()
    assert procore_webhooks.deliver(rfi).status_code == 200
    assert tasks_of(app) == ["Answer RFI 7"]
