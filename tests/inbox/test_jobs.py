"""Receipts of subscribers on each database."""

from __future__ import annotations

from support.inboxes import claim_one
from support.inboxes import event
from support.values import Clock

from flask_procore_webhooks.inbox import jobs
from flask_procore_webhooks.inbox.jobs import Receipt
from flask_procore_webhooks.inbox.record import record as record_event
from flask_procore_webhooks.storage.store import Store
from flask_procore_webhooks.storage.store import to_db_time


def test_receipt_is_written_once(store: Store, clock: Clock) -> None:
    row_id = record_event(store, event()).row_id
    other = claim_one(store, record_event(store, event("evt_2")).row_id)
    claim = claim_one(store, row_id)
    jobs.finish(store, claim.row_id, Receipt("a:b"))
    first = to_db_time(clock.time)
    clock.forward(60)
    jobs.finish(store, claim.row_id, Receipt("a:b"))
    jobs.finish(store, claim.row_id, Receipt("A:B"))
    jobs.finish(store, other.row_id, Receipt("a:b"))

    later = to_db_time(clock.time)
    assert jobs.receipts(store, row_id) == {"a:b": first, "A:B": later}
    assert jobs.receipts(store, other.row_id) == {"a:b": later}
    assert jobs.receipts(store, 999_999) == {}
