"""The clock of an inbox is the host's, corrected to the database server's."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from datetime import datetime
from datetime import timedelta
from datetime import timezone

import pytest
import sqlalchemy as sa
from flask import Flask
from support.inboxes import claim_one
from support.inboxes import dispose
from support.inboxes import due_rows
from support.inboxes import record
from support.inboxes import row
from support.values import Clock

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.inbox import batches
from flask_procore_webhooks.inbox import claims
from flask_procore_webhooks.storage.servers import utc_now
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import payload

MakeApp = Callable[..., Flask]
MakeHost = Callable[[float], Endpoint]


@pytest.fixture(params=["postgresql", "mariadb"])
def make_host(request: pytest.FixtureRequest, make_app: MakeApp) -> Iterator[MakeHost]:
    """A factory of hosts that share a database, each with a clock of its own."""
    url = request.getfixturevalue(f"{request.param}_url")
    apps: list[Flask] = []

    def make_host(ahead: float) -> Endpoint:
        app = make_app(
            PROCORE_WEBHOOK_DATABASE_URI=url, PROCORE_WEBHOOK_DISPATCH="worker"
        )
        app.register_blueprint(ProcoreWebhooks())
        (endpoint,) = endpoints(app).values()
        endpoint.store.clock.host_now = lambda: utc_now() + timedelta(seconds=ahead)
        apps.append(app)
        return endpoint

    yield make_host
    (endpoint,) = endpoints(apps[0]).values()
    database = endpoint.store.database
    database.tables.event.metadata.drop_all(database.engine)
    for app in apps:
        dispose(app)


def test_hosts_with_different_clocks_agree_on_leases(make_host: MakeHost) -> None:
    right, fast, slow = [make_host(ahead).store for ahead in (0, 600, -600)]
    (row_id,) = record(right, "evt_1")
    held = claim_one(right, row_id, 300)
    for store in (fast, slow):
        assert due_rows(store) == []
        assert batches.claim_due(store, 1, 300) == []
        assert claims.claim(store, row_id, 300) is None
    batches.release(right, [held])
    assert due_rows(slow) == [row_id]
    batches.claim_due(slow, 1, 300)
    assert due_rows(fast) == [] and batches.claim_due(fast, 1, 300) == []


def test_stored_times_are_the_servers(
    make_host: MakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    fast = make_host(600).store
    record(fast, "evt_1", "evt_2")
    now = datetime.now(timezone.utc).replace(tzinfo=None)
    for id in ("evt_1", "evt_2"):
        assert abs(row(fast, id)["received_at"] - now) < timedelta(seconds=60)
    (said,) = [r.getMessage() for r in caplog.records if "clock" in r.getMessage()]
    assert said.startswith(
        "The clock of this host is 600 s ahead of the clock of the database server"
    )


def test_difference_is_measured_again_after_an_outage(make_host: MakeHost) -> None:
    store = make_host(600).store
    record(store, "evt_1")
    assert -610 < store.clock.offset.total_seconds() < -590
    store.clock.host_now = utc_now
    store.unavailable(ConnectionResetError())
    record(store, "evt_2")
    assert store.clock.offset == timedelta()


def test_timestamps_of_deliveries_are_judged_by_the_corrected_clock(
    make_host: MakeHost,
) -> None:
    endpoint = make_host(3600)
    record(endpoint.store, "evt_1")
    client = endpoint.app.test_client()
    assert deliver(client, payload("RFIs.update")).status_code == 200


def test_first_delivery_is_judged_by_the_corrected_clock(make_host: MakeHost) -> None:
    """No statement has compared the clocks before."""
    endpoint = make_host(3600)
    sent = deliver(endpoint.app.test_client(), payload("RFIs.update"))
    assert sent.status_code == 200


def test_clock_that_is_put_right_refuses_no_delivery(make_host: MakeHost) -> None:
    endpoint = make_host(3600)
    record(endpoint.store, "evt_1")
    endpoint.store.clock.host_now = utc_now
    client = endpoint.app.test_client()
    assert deliver(client, payload("RFIs.update")).status_code == 200


def test_stale_deliveries_have_the_clocks_compared_once_a_minute(
    make_host: MakeHost,
) -> None:
    endpoint = make_host(0)
    record(endpoint.store, "evt_1")
    client, compared = endpoint.app.test_client(), []
    engine = endpoint.store.database.engine
    sa.event.listen(engine, "engine_connect", lambda _: compared.append(1))
    for _ in range(5):
        stale = deliver(client, payload("RFIs.update"), timestamp=1_000_000_000)
        assert stale.status_code == 401
    assert len(compared) == 1


def test_injected_clock_is_used_as_it_is(make_host: MakeHost) -> None:
    store, clock = make_host(600).store, Clock()
    clock.forward(-7200)
    store.now = clock
    record(store, "evt_1")
    assert row(store)["received_at"] == clock().replace(tzinfo=None)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_sqlite_has_the_clock_of_the_host(endpoint: Endpoint) -> None:
    store = endpoint.store
    store.clock.host_now = lambda: utc_now() + timedelta(seconds=600)
    record(store, "evt_1")
    now = datetime.now(timezone.utc).replace(tzinfo=None)
    assert row(store)["received_at"] - now > timedelta(seconds=500)
    assert store.clock.offset == timedelta()
