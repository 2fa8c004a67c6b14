"""Which commits wait for the disk, and what is committed together."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from support.hosts import Host
from support.hosts import run_host

from flask_procore_webhooks import Event
from flask_procore_webhooks.inbox import claims
from flask_procore_webhooks.inbox import due
from flask_procore_webhooks.inbox import jobs
from flask_procore_webhooks.inbox.claims import Claim
from flask_procore_webhooks.inbox.claims import Settlement
from flask_procore_webhooks.inbox.jobs import Receipt
from flask_procore_webhooks.inbox.record import record as record_event
from flask_procore_webhooks.inbox.status import Status
from flask_procore_webhooks.running.worker import Worker

HURRIED = "synchronous_commit"


@pytest.fixture
def host(make_app: Callable[..., Flask], database_url: str) -> Iterator[Host]:
    app = make_app(PROCORE_WEBHOOK_DISPATCH="worker")
    with run_host(app, "flask_sqlalchemy", database_url) as host:
        yield host


def statements(engine: sa.Engine) -> list[str]:
    """Those that the engine is given from now on."""
    given: list[str] = []

    def note(*args: Any) -> None:
        given.append(args[2])

    sa.event.listen(engine, "before_cursor_execute", note)
    return given


def claimed(host: Host) -> Claim:
    record_event(host.endpoint.store, Event("evt_1", "a.b", body=b"{}"))
    (claim,) = claims.claim_due(host.endpoint.store, 1, 60)
    return claim


def test_only_what_a_run_may_lose_does_not_wait_for_the_disk(host: Host) -> None:
    @host.webhooks.on(name="writer")
    def writer(event: Event) -> None:
        host.note(event.id)

    ours = statements(host.endpoint.store.database.engine)
    theirs = statements(host.engine)
    host.deliver()
    inserts = [text for text in ours if text.startswith("INSERT INTO")]
    assert len(inserts) == 1 and HURRIED not in inserts[0]
    ours.clear()
    Worker([host.endpoint], poll=1).run_due()
    hurried = [text for text in ours if HURRIED in text]

    # The claim and the outcome.
    assert len(hurried) == (2 if host.engine.dialect.name == "postgresql" else 0)
    assert host.receipts() == ["writer"]
    assert [text for text in theirs if "INSERT INTO procore_webhook_receipt" in text]
    assert not [text for text in theirs if HURRIED in text]


def test_the_next_transaction_waits_again(host: Host) -> None:
    if host.engine.dialect.name != "postgresql":
        pytest.skip("it has no such setting")
    store = host.endpoint.store
    claim = claimed(host)
    jobs.finish(store, claim.row_id, Receipt("a:b"))
    assert claims.settle(store, claim, Settlement(Status.DONE, receipt=Receipt("c:d")))
    ((setting,),) = store.rows(sa.text("SHOW synchronous_commit"))
    assert setting == "on"


def test_an_unused_session_is_not_committed_and_one_with_hooks_is(host: Host) -> None:
    commits: list[str] = []
    host.webhooks.on(name="leaves")(lambda event: None)
    theirs = statements(host.engine)
    host.deliver()
    Worker([host.endpoint], poll=1).run_due()
    assert host.row()["status"] == "done" and host.receipts() == ["leaves"]
    assert not [text for text in theirs if "procore_webhook_receipt" in text]

    @sa.event.listens_for(host.session, "before_commit")
    def hook(session: Any) -> None:
        commits.append("hook")

    record_event(host.endpoint.store, Event("evt_2", "a.b", body=b"{}"))
    Worker([host.endpoint], poll=1).run_due()
    assert commits == ["hook"]
    assert host.row("evt_2")["status"] == "done"


def test_a_receipt_that_is_there_keeps_no_outcome_back(host: Host) -> None:
    store, claim = host.endpoint.store, claimed(host)
    jobs.finish(store, claim.row_id, Receipt("a:b"))
    assert claims.settle(store, claim, Settlement(Status.DONE, receipt=Receipt("a:b")))
    assert due.status_of(store, claim.row_id) == Status.DONE
    assert list(jobs.receipts(store, claim.row_id)) == ["a:b"]


def test_a_receipt_stands_though_the_lease_has_passed_to_another(host: Host) -> None:
    store, claim = host.endpoint.store, claimed(host)
    claims.release(store, [claim])
    assert not claims.settle(
        store, claim, Settlement(Status.DONE, receipt=Receipt("a:b"))
    )
    assert due.status_of(store, claim.row_id) == Status.PENDING
    assert list(jobs.receipts(store, claim.row_id)) == ["a:b"]
