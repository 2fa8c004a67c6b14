"""Reading the inbox: ``webhooks.events`` and ``webhooks.last_received``."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from datetime import timedelta
from datetime import timezone
from typing import Any

import pytest
from flask import Flask
from support.inboxes import dispose
from support.values import Clock

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import payload


@pytest.fixture
def app(
    make_app: Callable[..., Flask], webhooks: ProcoreWebhooks, database_url: str
) -> Iterator[Flask]:
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI=database_url)
    app.config["PROCORE_WEBHOOK_DISPATCH"] = "worker"
    app.register_blueprint(webhooks)
    yield app
    dispose(app)


def send(app: Flask, clock: Clock, type: str, **fields: Any) -> str:
    sent = payload(type, format="v2", **fields)
    timestamp = int(clock.time.timestamp())
    answer = deliver(app.test_client(), sent, timestamp=timestamp)
    assert answer.status_code == 200
    return str(sent["ulid"])


def test_events_are_those_that_match_every_filter(
    app: Flask, endpoint: Endpoint, webhooks: ProcoreWebhooks, clock: Clock
) -> None:
    fields: dict[str, Any] = {"project_id": 1, "company_id": 2, "user_id": 3}
    first = send(app, clock, "RFIs.create", resource_id=4, **fields)
    start = clock.time
    clock.forward(60)
    second = send(app, clock, "Submittals.update", resource_id=5, project_id=6)

    def found(**filters: Any) -> list[str]:
        return [row["event_id"] for row in webhooks.events(**filters)]

    with app.app_context():
        assert found() == [second, first]
        assert found(limit=1) == [second]
        assert found(status="pending") == [second, first]
        assert found(status=["dead", "running"]) == []
        assert found(type="RFIs.create") == [first]
        assert found(resource_type="Submittals") == [second]
        assert found(reason="updated") == [second]
        assert found(resource_id=4) == found(resource_id="4") == [first]
        assert found(project_id=1, company_id=2, user_id=3) == [first]
        assert found(project_id=6, company_id=99) == []
        assert found(since=start + timedelta(seconds=1)) == [second]
        assert found(until=clock.time) == [first]
        with pytest.raises(ValueError):
            found(status="deed")


def test_rows_have_aware_times_and_no_body(
    app: Flask, endpoint: Endpoint, webhooks: ProcoreWebhooks, clock: Clock
) -> None:
    send(app, clock, "RFIs.create", resource_id=4)
    with app.app_context():
        (row,) = webhooks.events()
    assert row["received_at"] == clock.time
    assert row["received_at"].tzinfo is timezone.utc
    assert row["finished_at"] is None
    assert (row["type"], row["resource_id"]) == ("RFIs.create", "4")
    assert (row["origin"], row["repeats"]) == ("delivery", 0)
    assert "body" not in row


def test_last_received_is_the_time_of_the_newest_delivered_event(
    app: Flask, endpoint: Endpoint, webhooks: ProcoreWebhooks, clock: Clock
) -> None:
    with app.app_context():
        assert webhooks.last_received() is None
        webhooks.enqueue("RFIs.update")
        assert webhooks.last_received() is None
        send(app, clock, "RFIs.create")
        received = clock.time
        clock.forward(60)
        webhooks.enqueue("RFIs.update")
        assert webhooks.last_received() == received


def test_reading_needs_an_app_context(webhooks: ProcoreWebhooks) -> None:
    with pytest.raises(RuntimeError, match="inside of 'with app.app_context"):
        webhooks.events()
    with pytest.raises(RuntimeError, match="inside of 'with app.app_context"):
        webhooks.last_received()
