"""Asynchronous commits, and statements that are committed together."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from support.hosts import Host
from support.hosts import run_host
from support.inboxes import done
from support.inboxes import states

from flask_procore_webhooks import Event
from flask_procore_webhooks.dispatching.worker import Worker
from flask_procore_webhooks.inbox import batches
from flask_procore_webhooks.inbox import completion
from flask_procore_webhooks.inbox import due
from flask_procore_webhooks.inbox.completion import finish
from flask_procore_webhooks.inbox.held import Claim
from flask_procore_webhooks.inbox.record import record as record_event
from flask_procore_webhooks.inbox.status import Status
from flask_procore_webhooks.testing import payload

SETTING = "synchronous_commit"


@pytest.fixture
def host(make_app: Callable[..., Flask], database_url: str) -> Iterator[Host]:
    app = make_app(PROCORE_WEBHOOK_DISPATCH="worker")
    with run_host(app, "flask_sqlalchemy", database_url) as host:
        yield host


def statements(engine: sa.Engine) -> list[str]:
    """A list that receives the engine's statements from now on."""
    given: list[str] = []

    def note(*args: Any) -> None:
        given.append(args[2])

    sa.event.listen(engine, "before_cursor_execute", note)
    return given


def claimed(host: Host) -> Claim:
    record_event(host.endpoint.store, Event("evt_1", "a.b", body=b"{}"))
    (claim,) = batches.claim_due(host.endpoint.store, 1, 60)
    return claim


def test_only_repeatable_statements_commit_asynchronously(host: Host) -> None:
    @host.webhooks.on(name="writer")
    def writer(event: Event) -> None:
        host.note(event.id)

    ours = statements(host.endpoint.store.database.engine)
    theirs = statements(host.engine)
    host.deliver()
    inserts = [text for text in ours if text.startswith("INSERT INTO")]
    assert len(inserts) == 1 and SETTING not in inserts[0]
    ours.clear()
    Worker([host.endpoint], poll=1).run_due()
    asynchronous = [text for text in ours if SETTING in text]

    # The claim and the outcome.
    assert len(asynchronous) == (2 if host.engine.dialect.name == "postgresql" else 0)
    assert states(host.endpoint.store, host.row()["event_id"]) == {"writer": "done"}
    assert [text for text in theirs if "INSERT INTO procore_webhook_job" in text]
    assert not [text for text in theirs if SETTING in text]


def test_synchronous_commit_applies_to_the_next_transaction(host: Host) -> None:
    if host.engine.dialect.name != "postgresql":
        pytest.skip("it has no such setting")
    store, claim = host.endpoint.store, claimed(host)
    finish(store, claim.row_id, done(store, "a:b"))
    jobs = [(claim.row_id, done(store, "c:d"))]
    assert completion.settle_done(store, [claim], jobs, store.db_now()) == {
        claim.row_id
    }
    ((setting,),) = store.rows(sa.text("SHOW synchronous_commit"))
    assert setting == "on"


def test_unused_session_is_not_committed(host: Host) -> None:
    """Commit hooks of the host are called only after writes of a subscriber."""
    commits: list[str] = []

    @sa.event.listens_for(host.session, "before_commit")
    def hook(session: Any) -> None:
        commits.append("hook")

    @host.webhooks.on(name="writer")
    def writer(event: Event) -> None:
        if event.id == "writes":
            host.note("written")

    theirs = statements(host.engine)
    host.deliver(payload("RFIs.create", id="reads"))
    Worker([host.endpoint], poll=1).run_due()
    assert host.row()["status"] == "done"
    assert states(host.endpoint.store, host.row()["event_id"]) == {"writer": "done"}
    assert not [text for text in theirs if "procore_webhook_job" in text]
    assert commits == []

    host.deliver(payload("RFIs.create", id="writes"))
    Worker([host.endpoint], poll=1).run_due()
    assert host.row()["status"] == "done"
    assert states(host.endpoint.store, host.row()["event_id"]) == {"writer": "done"}
    assert [text for text in theirs if "procore_webhook_job" in text]
    assert commits == ["hook"]


def test_existing_row_of_a_job_does_not_block_the_outcome(host: Host) -> None:
    store, claim = host.endpoint.store, claimed(host)
    finish(store, claim.row_id, done(store, "a:b"))
    jobs = [(claim.row_id, done(store, "a:b"))]
    assert completion.settle_done(store, [claim], jobs, store.db_now()) == {
        claim.row_id
    }
    assert due.status_of(store, claim.row_id) == Status.DONE
    assert states(store) == {"a:b": "done"}


def test_finished_job_is_kept_after_the_lease_was_lost(host: Host) -> None:
    store, claim = host.endpoint.store, claimed(host)
    batches.release(store, [claim])
    jobs = [(claim.row_id, done(store, "a:b"))]
    assert completion.settle_done(store, [claim], jobs, store.db_now()) == set()
    assert due.status_of(store, claim.row_id) == Status.PENDING
    assert states(store) == {"a:b": "done"}
