"""Renewal of leases, on each database."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Iterator

import pytest
from flask import Flask
from support.inboxes import by_id
from support.inboxes import record
from support.outages import relay_to
from support.values import Clock
from support.waiting import PATIENCE
from support.waiting import wait_until

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.inbox import batches
from flask_procore_webhooks.inbox.held import Claim
from flask_procore_webhooks.operations import queries
from flask_procore_webhooks.running.held import HeldClaims
from flask_procore_webhooks.running.leases import LeaseRenewer
from flask_procore_webhooks.running.leases import renewing
from flask_procore_webhooks.storage.store import Store

MakeApp = Callable[..., Flask]
NOT_RENEWED = "Leases are not renewed: the inbox cannot be used: "


@pytest.fixture
def app(
    make_app: MakeApp, webhooks: ProcoreWebhooks, database_url: str
) -> Iterator[Flask]:
    """An app with an inbox of its own, on each database in turn."""
    app = make_app(
        PROCORE_WEBHOOK_DATABASE_URI=database_url, PROCORE_WEBHOOK_DISPATCH="worker"
    )
    app.register_blueprint(webhooks)
    yield app
    for endpoint in endpoints(app).values():
        endpoint.store.database.engine.dispose()


def test_lease_is_renewed_until_removed(store: Store) -> None:
    record(store, "evt_1", "evt_2")
    first, second = batches.claim_due(store, 2, 30)

    with renewing(store, [first, second], 3) as held:
        assert held.start(first) and held.start(second)
        ends = by_id(store)["evt_1"]["due_at"]
        wait_until(lambda: by_id(store)["evt_1"]["due_at"] != ends)
        assert by_id(store)["evt_1"]["due_at"] == by_id(store)["evt_2"]["due_at"]
        held.remove(second)
        # A renewal may have started before the removal.
        wait_until(lambda: _renewed_once_more(store, "evt_1"))
        ends = by_id(store)["evt_2"]["due_at"]
        wait_until(lambda: _renewed_once_more(store, "evt_1"))
        assert by_id(store)["evt_2"]["due_at"] == ends

    # Both leases are still held, and expire without renewal.
    assert {row["lease"] for row in by_id(store).values()} == {first.lease}
    wait_until(lambda: batches.claim_due(store, 2, 60), 10 + PATIENCE)


def _renewed_once_more(store: Store, id: str) -> bool:
    ends = by_id(store)[id]["due_at"]
    wait_until(lambda: by_id(store)[id]["due_at"] != ends)
    return True


def test_queued_claim_is_released_after_a_while(store: Store) -> None:
    """A run of an hour keeps its lease, and other workers run the rest of the batch."""
    record(store, "evt_1", "evt_2", "evt_3")
    first, second, third = batches.claim_due(store, 3, 600)

    with renewing(store, [first, second, third], 1) as held:
        assert held.start(first)
        taken: list[Claim] = []
        wait_until(
            lambda: taken.extend(batches.claim_due(store, 3, 600)) or len(taken) == 2
        )
        wait_until(lambda: set(held.claims) == {first.row_id})
        assert not held.start(second)

    assert {claim.event_id for claim in taken} == {"evt_2", "evt_3"}
    assert by_id(store)["evt_1"]["lease"] == first.lease
    assert {row["claims"] for row in by_id(store).values()} == {1}


def test_claims_behind_a_long_event_are_released_long_before_the_renewal(
    store: Store,
) -> None:
    rows = record(store, "evt_1", "evt_2", "evt_3")
    claimed, released = batches.claim_due(store, 3, 600), list[int]()

    with renewing(store, claimed, 600, on_release=released.extend) as held:
        assert held.start(claimed[0])
        wait_until(lambda: released)
        assert released == rows[1:] and held.queued() == []
        taken = batches.claim_due(store, 3, 600)
        assert not held.start(claimed[1])

    assert {claim.event_id for claim in taken} == {"evt_2", "evt_3"}
    assert {row["claims"] for row in by_id(store).values()} == {1}


def test_claim_with_an_expired_lease_does_not_start(store: Store, clock: Clock) -> None:
    """A suspended process may continue with any of its threads first."""
    record(store, "evt_1")
    (claim,) = batches.claim_due(store, 1, 60)
    held = HeldClaims(store, 60, {claim.row_id: claim}, time.monotonic() + 20)
    clock.forward(61)
    assert not held.start(claim)
    assert held.queued() == [claim]


def test_released_claim_does_not_start(store: Store) -> None:
    record(store, "evt_1", "evt_2")
    first, second = batches.claim_due(store, 2, 60)
    with renewing(store, [first, second], 60) as held:
        assert held.start(first)
        held.close()
        assert not held.start(second)
        assert (held.started(), held.queued()) == ([first], [second])


@pytest.mark.serial
def test_short_lease_beside_a_long_one_is_renewed_in_time(store: Store) -> None:
    record(store, "evt_1", "evt_2")
    long, short = batches.claim_due(store, 2, 600)
    before = by_id(store)

    with renewing(store, [long], 600):
        renewer = store.database.parts[LeaseRenewer]
        # The thread sleeps until the renewal of the long lease.
        wait_until(lambda: time.monotonic() < renewer._wakes_at < float("inf"))
        with renewing(store, [short], 1) as held:
            held.start(short)
            wait_until(
                lambda: by_id(store)["evt_2"]["due_at"] != before["evt_2"]["due_at"]
            )

    assert by_id(store)["evt_1"]["due_at"] == before["evt_1"]["due_at"]


@pytest.mark.parametrize("server", ["postgresql", "mariadb"])
def test_renewal_continues_after_an_outage(
    request: pytest.FixtureRequest,
    make_app: MakeApp,
    caplog: pytest.LogCaptureFixture,
    server: str,
) -> None:
    with relay_to(request.getfixturevalue(f"{server}_url")) as relay:
        app = make_app(PROCORE_WEBHOOK_DATABASE_URI=relay.url)
        ProcoreWebhooks().init_app(app)
        (endpoint,) = endpoints(app).values()
        store = endpoint.store
        record(store, "evt_1")
        (claim,) = batches.claim_due(store, 1, 600)

        with renewing(store, [claim], 1) as held:
            held.start(claim)
            relay.cut()
            wait_until(
                lambda: (
                    "Leases are not renewed: the inbox cannot be used: " in caplog.text
                )
            )
            relay.mend()
            assert _renewed_once_more(store, "evt_1")

        assert queries.find(store, "evt_1") is not None
        store.columns.id.table.metadata.drop_all(store.database.engine)
        store.database.engine.dispose()
