"""Keys on each database: who holds them, what was done, and who waits."""

from __future__ import annotations

from datetime import datetime
from datetime import timedelta
from datetime import timezone
from typing import Any

import pytest
import sqlalchemy as sa
from support.inboxes import claim_one
from support.inboxes import done
from support.inboxes import due_in
from support.inboxes import due_rows
from support.inboxes import event
from support.inboxes import row
from support.jobs import set_event
from support.sites import at_once
from support.values import Clock

from flask_procore_webhooks.event import Event
from flask_procore_webhooks.inbox import claims
from flask_procore_webhooks.inbox.claims import Settlement
from flask_procore_webhooks.inbox.completion import finish
from flask_procore_webhooks.inbox.held import Claim
from flask_procore_webhooks.inbox.jobs import Job
from flask_procore_webhooks.inbox.keys import free_key
from flask_procore_webhooks.inbox.keys import held_key
from flask_procore_webhooks.inbox.keys import HeldKey
from flask_procore_webhooks.inbox.keys import is_free
from flask_procore_webhooks.inbox.keys import key_state
from flask_procore_webhooks.inbox.keys import note_waiting
from flask_procore_webhooks.inbox.keys import take
from flask_procore_webhooks.inbox.others import other_events
from flask_procore_webhooks.inbox.others import wake
from flask_procore_webhooks.inbox.record import record as record_event
from flask_procore_webhooks.inbox.status import JobState
from flask_procore_webhooks.inbox.status import Status
from flask_procore_webhooks.inbox.status import Wait
from flask_procore_webhooks.storage.store import Store
from flask_procore_webhooks.storage.store import to_db_time
from flask_procore_webhooks.subscribers import new_subscriber
from flask_procore_webhooks.subscribers import Subscriber

START = datetime(2026, 5, 4, 10, 0, tzinfo=timezone.utc)


def subscriber(**options: Any) -> Subscriber:
    return new_subscriber(lambda event: None, "a:b", takes_app=False, **options)


ALONE = subscriber(one_at_a_time=True)
LATEST = subscriber(latest_only=True)


class Held:
    """A recorded event that is claimed, with its key."""

    def __init__(
        self, store: Store, id: str, wanted: Subscriber = ALONE, **fields: Any
    ) -> None:
        values = {"resource_type": "RFIs", "reason": "update", "resource_id": "7"}
        self.event: Event = event(id, **(values | fields))
        self.store = store
        self.row_id = record_event(store, self.event).row_id
        self.subscriber = wanted

    def claim(self, seconds: float = 60, hurry: bool = False) -> tuple[Claim, HeldKey]:
        claim = claim_one(self.store, self.row_id, seconds, hurry=hurry)
        key = held_key(self.subscriber, self.event, self.row_id, claim.lease)
        assert key is not None
        return claim, key

    def put_off(self, wait: Wait, seconds: float, hurry: bool = False) -> None:
        """Claim the event, and settle it with a waiting job."""
        claim, key = self.claim(hurry=hurry)
        due_at = due_in(self.store, seconds)
        job = claim.jobs.get("a:b", Job("a:b")).put_off(due_at, wait, key=key.value)
        end = Settlement(Status.PENDING, due_at=due_at, jobs=[job])
        assert claims.settle(self.store, claim, end)


# Who holds it


def test_key_is_held_by_one_run(store: Store, clock: Clock) -> None:
    first, second = Held(store, "evt_1"), Held(store, "evt_2")
    claim, key = first.claim()
    _, other = second.claim()

    assert take(store, key) is None
    assert take(store, key) is None
    assert take(store, other) == claim.ends
    assert not is_free(store, other)
    free_key(store, other)
    assert not is_free(store, other)
    free_key(store, key)
    assert is_free(store, other)
    assert take(store, other) is None


def test_key_of_a_killed_run_is_free_when_its_lease_has_ended(
    store: Store, clock: Clock
) -> None:
    _, key = Held(store, "evt_1").claim(60)
    assert take(store, key) is None
    _, other = Held(store, "evt_2").claim(600)
    clock.forward(59)
    assert take(store, other) is not None
    clock.forward(2)
    assert take(store, other) is None
    # The killed run comes back.
    free_key(store, key)
    assert not is_free(store, key)


def test_key_is_held_as_long_as_the_lease_is_renewed(
    store: Store, clock: Clock
) -> None:
    from flask_procore_webhooks.inbox import batches

    claim, key = Held(store, "evt_1").claim(60)
    assert take(store, key) is None
    _, other = Held(store, "evt_2").claim(600)
    clock.forward(50)
    batches.renew(store, [claim], 60)
    clock.forward(50)
    ends = take(store, other)
    assert ends == store.db_now() + timedelta(seconds=10)


def test_key_has_one_winner_among_threads(store: Store) -> None:
    held = [Held(store, f"evt_{number}").claim(600)[1] for number in range(6)]
    found = at_once(lambda number: take(store, held[number]), range(6))
    assert sum(ends is None for ends in found) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"resource_id": "8"},
        {"resource_type": "Submittals"},
        {"resource_type": "RFIs "},
        {"resource_type": "RFÍs"},
    ],
    ids=str,
)
def test_keys_are_compared_exactly(store: Store, fields: dict[str, Any]) -> None:
    _, key = Held(store, "evt_1").claim()
    _, other = Held(store, "evt_2", **fields).claim()
    assert take(store, key) is None
    assert take(store, other) is None


def test_keys_are_the_same_whatever_the_case_of_the_resource_type(
    store: Store,
) -> None:
    _, key = Held(store, "evt_1").claim()
    _, other = Held(store, "evt_2", resource_type="rfis").claim()
    assert take(store, key) is None
    assert take(store, other) is not None


# What was done


def test_only_done_work_is_noted(store: Store, clock: Clock) -> None:
    first, second = Held(store, "evt_1", LATEST), Held(store, "evt_2", LATEST)
    claim, key = second.claim()
    note_waiting(store, key, key_state(store, key), store.db_now())
    now = store.db_now()
    finish(store, claim.row_id, Job("a:b").ended(JobState.DISCARDED, now, now), key)
    # A key without a noted end has no row.
    state = key_state(store, first.claim()[1])
    assert (state.done_event, state.began_at, state.first_at) == (None, None, None)
    assert not state.is_stored


@pytest.mark.parametrize(
    ("mine", "done_at", "is_superseded"),
    [
        (START, START, True),
        (START, START + timedelta(seconds=1), True),
        (START + timedelta(seconds=1), START, False),
        (None, None, True),
        (None, START, False),
        (START, None, False),
    ],
    ids=str,
)
def test_newer_done_work_supersedes(
    store: Store, mine: datetime | None, done_at: datetime | None, is_superseded: bool
) -> None:
    """By time and row, by row without times; else they are not compared."""
    older = Held(store, "evt_1", LATEST, timestamp=mine)
    newer = Held(store, "evt_2", LATEST, timestamp=done_at)
    claim, key = newer.claim()
    note_waiting(store, key, key_state(store, key), store.db_now())
    finish(store, claim.row_id, done(store, "a:b"), key)
    _, own = older.claim()
    assert key_state(store, own).supersedes(own) is is_superseded
    assert not key_state(store, key).supersedes(key)


def test_end_of_an_older_event_leaves_the_newest_in_its_place(store: Store) -> None:
    older = Held(store, "evt_1", LATEST, timestamp=START)
    newer = Held(store, "evt_2", LATEST, timestamp=START + timedelta(seconds=5))
    for each in (newer, older):
        claim, key = each.claim()
        note_waiting(store, key, key_state(store, key), store.db_now())
        finish(store, claim.row_id, done(store, "a:b"), key)
    assert key_state(store, key).done_event == newer.row_id


# Newer events


def test_other_events_of_the_resource_are_found_before_they_have_jobs(
    store: Store,
) -> None:
    older = Held(store, "evt_1", LATEST, timestamp=START)
    _, key = older.claim()
    assert not other_events(store, key, older.event).has_newer
    times = {"timestamp": START + timedelta(seconds=1)}
    Held(store, "evt_2", LATEST, timestamp=START - timedelta(seconds=1))
    Held(store, "evt_3", LATEST, resource_id="8", **times)
    Held(store, "evt_4", LATEST, resource_type="Submittals", **times)
    Held(store, "evt_5", LATEST)
    assert not other_events(store, key, older.event).has_newer
    newer = Held(store, "evt_6", LATEST, resource_type="rfis", **times)
    found = other_events(store, key, older.event)
    assert (found.has_newer, found.ready) == (True, newer.row_id)
    newer.put_off(Wait.SETTLE, 5)
    found = other_events(store, key, older.event)
    assert (found.has_newer, found.ready) == (True, newer.row_id)
    newer.put_off(Wait.RETRY, 5, hurry=True)
    found = other_events(store, key, older.event)
    assert (found.has_newer, found.ready) == (True, None)


def test_newer_event_whose_job_has_ended_is_none(store: Store) -> None:
    older = Held(store, "evt_1", LATEST)
    newer = Held(store, "evt_2", LATEST)
    _, key = older.claim()
    claim, _ = newer.claim()
    assert other_events(store, key, older.event).has_newer
    now = store.db_now()
    jobs = [Job("a:b").ended(JobState.DISCARDED, now, now), Job("other")]
    assert claims.settle(store, claim, Settlement(Status.PENDING, jobs=jobs))
    assert not other_events(store, key, older.event).has_newer


@pytest.mark.parametrize("key", ["project", "company"])
def test_newer_events_of_a_project_are_found_before_they_have_jobs(
    store: Store, key: str
) -> None:
    wanted = subscriber(latest_only=True, settle=5, key=key)
    fields = {"resource_id": "9", f"{key}_id": "1"}
    older = Held(store, "evt_1", wanted, **{f"{key}_id": "1"})
    _, held = older.claim()
    Held(store, "evt_2", wanted, **{f"{key}_id": "2"})
    assert not other_events(store, held, older.event).has_newer
    Held(store, "evt_3", wanted, **fields, resource_type="Photos")
    assert other_events(store, held, older.event).has_newer


def test_newer_events_of_a_callable_key_are_found_by_their_jobs(store: Store) -> None:
    wanted = subscriber(latest_only=True, settle=5, key=lambda event: event.user_id)
    older = Held(store, "evt_1", wanted, user_id="1")
    newer = Held(store, "evt_2", wanted, user_id="1", resource_id="9")
    _, key = older.claim()
    assert not other_events(store, key, older.event).has_newer
    newer.put_off(Wait.SETTLE, 5)
    assert other_events(store, key, older.event).has_newer


def test_last_receipt_of_a_key_counts_whatever_its_time(
    store: Store, clock: Clock
) -> None:
    first = Held(store, "evt_1", LATEST, timestamp=START)
    _, key = first.claim()
    clock.forward(3)
    last = Held(store, "evt_2", LATEST, timestamp=START - timedelta(seconds=9))
    found = other_events(store, key, first.event)
    assert (found.has_newer, found.last_at) == (False, to_db_time(clock.time))
    claim, _ = last.claim()
    assert claims.settle(store, claim, Settlement(Status.DONE))
    assert other_events(store, key, first.event).last_at is None


# Who waits


def test_end_of_a_run_wakes_the_oldest_waiting_job(store: Store, clock: Clock) -> None:
    holder = Held(store, "evt_1")
    waiting = [Held(store, f"evt_{number}") for number in (2, 3)]
    _, key = holder.claim(3600)
    for each in waiting:
        each.put_off(Wait.KEY, 300)
    assert due_rows(store) == []
    assert wake(store, key) == [waiting[0].row_id]
    assert due_rows(store) == [waiting[0].row_id]
    assert wake(store, key) == [waiting[1].row_id]
    assert wake(store, key) == []


def test_end_of_the_latest_wakes_every_waiting_job(store: Store, clock: Clock) -> None:
    holder = Held(store, "evt_1", LATEST)
    waiting = [Held(store, f"evt_{number}", LATEST) for number in (2, 3, 4)]
    _, key = holder.claim(3600)
    for each, wait in zip(waiting, (Wait.NEWER, Wait.KEY, Wait.RETRY), strict=True):
        each.put_off(wait, 300)
    # The backoff of a failed job is its own.
    assert wake(store, key) == [each.row_id for each in waiting[:2]]
    assert row(store, "evt_4")["due_at"] > store.db_now()


def test_running_event_is_left_to_its_run(store: Store, clock: Clock) -> None:
    """Only its holder changes the jobs of a running event (rule 3)."""
    holder, waiting = Held(store, "evt_1"), Held(store, "evt_2")
    _, key = holder.claim(3600)
    waiting.put_off(Wait.KEY, 300)
    clock.forward(301)
    waiting.claim()
    clock.forward(-10)
    before = row(store, "evt_2")
    assert wake(store, key) == []
    assert row(store, "evt_2") == before


def test_earliest_receipt_that_waits_is_kept(store: Store, clock: Clock) -> None:
    _, key = Held(store, "evt_1", LATEST).claim()
    now = store.db_now()
    for seconds in (0, 5, -5, 7):
        at = now + timedelta(seconds=seconds)
        note_waiting(store, key, key_state(store, key), at)
    assert key_state(store, key).first_at == now - timedelta(seconds=5)


def test_claim_that_has_read_the_jobs_before_they_are_woken_fails(
    store: Store, clock: Clock
) -> None:
    """Also if the event is due already, for another job: its time changes."""
    holder, waiting = Held(store, "evt_1"), Held(store, "evt_2")
    _, key = holder.claim(3600)
    waiting.put_off(Wait.KEY, 300)
    clock.forward(-1)
    due_at = store.db_now()
    clock.forward(1)
    set_event(store, waiting.row_id, due_at=due_at)
    woken: list[list[int]] = []

    def wake_meanwhile(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        # After the jobs were read, before the claim.
        if statement.startswith("UPDATE") and not woken:
            woken.append([])
            woken[0] += wake(store, key)

    engine = store.database.find_engine()
    sa.event.listen(engine, "before_cursor_execute", wake_meanwhile)
    try:
        assert claims.claim(store, waiting.row_id, 60) is None
    finally:
        sa.event.remove(engine, "before_cursor_execute", wake_meanwhile)
    assert woken == [[waiting.row_id]]
    assert claim_one(store, waiting.row_id).jobs["a:b"].due_at == store.db_now()
