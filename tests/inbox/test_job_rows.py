"""Rows of jobs on each database: inserted once, changed by version."""

from __future__ import annotations

from support.inboxes import claim_one
from support.inboxes import done
from support.inboxes import event
from support.inboxes import jobs
from support.inboxes import states
from support.values import Clock

from flask_procore_webhooks.inbox.completion import finish
from flask_procore_webhooks.inbox.jobs import are_complete
from flask_procore_webhooks.inbox.jobs import Job
from flask_procore_webhooks.inbox.record import record as record_event
from flask_procore_webhooks.inbox.status import JobState
from flask_procore_webhooks.storage.store import Store
from flask_procore_webhooks.storage.store import to_db_time


def test_job_is_finished_once(store: Store, clock: Clock) -> None:
    other = claim_one(store, record_event(store, event("evt_2")).row_id)
    claim = claim_one(store, record_event(store, event()).row_id)
    finish(store, claim.row_id, done(store, "a:b"))
    first = to_db_time(clock.time)
    clock.forward(60)
    finish(store, claim.row_id, done(store, "a:b"))
    finish(store, claim.row_id, done(store, "A:B"))
    finish(store, other.row_id, done(store, "a:b"))

    later = to_db_time(clock.time)
    found = {name: job["finished_at"] for name, job in jobs(store).items()}
    assert found == {"a:b": first, "A:B": later}
    assert jobs(store, "evt_2")["a:b"]["finished_at"] == later


def test_completion_of_an_older_version_changes_nothing(store: Store) -> None:
    claim = claim_one(store, record_event(store, event()).row_id)
    now = store.db_now()
    finish(store, claim.row_id, Job("a:b").ended(JobState.DISCARDED, now, now))
    finish(store, claim.row_id, done(store, "a:b", version=2))
    assert states(store) == {"a:b": "discarded"}
    finish(store, claim.row_id, done(store, "a:b", version=1))
    job = jobs(store)["a:b"]
    assert (job["state"], job["version"], job["attempts"]) == ("done", 2, 1)


def test_rows_of_finished_jobs_alone_may_be_incomplete() -> None:
    """A killed first run leaves them, and has not begun the other jobs (rule 1)."""
    finished = Job("a:b", JobState.DONE, version=1)
    assert not are_complete([])
    assert not are_complete([finished])
    assert are_complete([finished, Job("c:d", version=1)])
    assert are_complete([Job("a:b", JobState.DONE, version=2)])
