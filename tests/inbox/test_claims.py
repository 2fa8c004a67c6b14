"""Claims on each database: exclusive until their lease ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from support.inboxes import by_id
from support.inboxes import claim_all
from support.inboxes import claim_one
from support.inboxes import done
from support.inboxes import due_in
from support.inboxes import due_rows
from support.inboxes import event
from support.inboxes import ids_of
from support.inboxes import jobs
from support.inboxes import numbered
from support.inboxes import record
from support.inboxes import row
from support.inboxes import states
from support.outages import relay_to
from support.sites import at_once
from support.values import Clock

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import PrudraWebhooks
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.errors import InboxUnavailable
from flask_procore_webhooks.inbox import batches
from flask_procore_webhooks.inbox import claims
from flask_procore_webhooks.inbox import completion
from flask_procore_webhooks.inbox import cut
from flask_procore_webhooks.inbox.claims import Settlement
from flask_procore_webhooks.inbox.held import Claim
from flask_procore_webhooks.inbox.held import NotHeld
from flask_procore_webhooks.inbox.held import take_back
from flask_procore_webhooks.inbox.held import write_held
from flask_procore_webhooks.inbox.jobs import Failure
from flask_procore_webhooks.inbox.jobs import Job
from flask_procore_webhooks.inbox.record import record as record_event
from flask_procore_webhooks.inbox.status import JobState
from flask_procore_webhooks.inbox.status import Status
from flask_procore_webhooks.inbox.status import Wait
from flask_procore_webhooks.storage.store import Store
from flask_procore_webhooks.storage.store import to_db_time

MakeApp = Callable[..., Flask]


# Single claims


def test_claim_is_exclusive_until_its_lease_expires(store: Store, clock: Clock) -> None:
    row_id = record_event(store, event(body=b"[7]")).row_id
    first = claim_one(store, row_id, 60)

    assert (first.event_id, first.jobs, first.body) == ("evt_1", {}, b"[7]")
    assert claims.claim(store, row_id, 60) is None
    assert claims.claim(store, row_id, 60, hurry=True) is None
    assert due_rows(store) == due_rows(store, hurry=True) == []

    clock.forward(59.9)
    assert claims.claim(store, row_id, 60) is None
    clock.forward(0.2)
    assert due_rows(store) == [row_id]
    second = claim_one(store, row_id, 60)
    assert second.unsettled == 1
    assert second.lease != first.lease


@pytest.mark.parametrize("status", list(Status))
def test_claim_with_a_lost_lease_cannot_be_settled(
    store: Store, clock: Clock, status: Status
) -> None:
    row_id = record_event(store, event()).row_id
    stale = claim_one(store, row_id)
    clock.forward(61)
    current = claim_one(store, row_id)
    before = row(store)

    assert not claims.settle(store, stale, Settlement(status, error="of the stale one"))
    assert row(store) == before
    assert claims.settle(store, current, Settlement(Status.DONE))
    assert not claims.settle(store, current, Settlement(Status.PENDING))
    assert not claims.settle(store, stale, Settlement(Status.PENDING))
    assert row(store)["status"] == "done"


def test_claim_with_an_expired_unclaimed_lease_can_be_settled(
    store: Store, clock: Clock
) -> None:
    claim = claim_one(store, record_event(store, event()).row_id)
    clock.forward(3600)
    assert claims.settle(store, claim, Settlement(Status.DONE))


def test_pending_event_is_claimed_before_its_time_only_if_hurried(
    store: Store, clock: Clock
) -> None:
    row_id = record_event(store, event()).row_id
    claims.settle(
        store,
        claim_one(store, row_id),
        Settlement(Status.PENDING, "failed", due_in(store, 600)),
    )

    kept = row(store)
    assert (kept["status"], kept["error"], kept["lease"]) == ("pending", "failed", None)
    assert kept["due_at"] == to_db_time(clock.time + timedelta(seconds=600))
    assert claims.claim(store, row_id, 60) is None
    assert (due_rows(store), due_rows(store, hurry=True)) == ([], [row_id])
    clock.forward(600)
    assert due_rows(store) == [row_id]
    assert claim_one(store, row_id).unsettled == 0


def test_events_are_due_in_the_order_of_their_times(store: Store, clock: Clock) -> None:
    rows = []
    for number in range(5):
        rows.append(record_event(store, event(f"evt_{number}")).row_id)
        clock.forward(0.001)
    waits = claim_one(store, rows[0])
    claims.settle(store, waits, Settlement(Status.PENDING, due_at=due_in(store, 1)))
    claims.settle(store, claim_one(store, rows[1]), Settlement(Status.DONE))
    claim_one(store, rows[2])

    assert due_rows(store) == rows[3:]
    assert due_rows(store, limit=1) == rows[3:4]
    clock.forward(2)
    assert due_rows(store) == [*rows[3:], rows[0]]


# Batches


def test_batch_has_due_events_longest_due_first(store: Store, clock: Clock) -> None:
    for id in ("c", "a", "b", "d"):
        record(store, id)
        clock.forward(1)

    assert ids_of(batches.claim_due(store, 3, 60)) == ["c", "a", "b"]
    assert ids_of(batches.claim_due(store, 3, 60)) == ["d"]
    assert batches.claim_due(store, 3, 60) == []


def test_batch_excludes_waiting_running_and_finished_events(
    store: Store, clock: Clock
) -> None:
    record(store, *numbered(6))
    failed, running, *finished = batches.claim_due(store, 5, 60)
    claims.settle(
        store, failed, Settlement(Status.PENDING, "failed", due_in(store, 30))
    )
    for claim, status in zip(
        finished, (Status.DONE, Status.DEAD, Status.IGNORED), strict=True
    ):
        claims.settle(store, claim, Settlement(status))

    assert ids_of(batches.claim_due(store, 9, 600)) == ["evt_005"]
    clock.forward(31)
    assert ids_of(batches.claim_due(store, 9, 600)) == [failed.event_id]
    clock.forward(30)
    assert ids_of(batches.claim_due(store, 9, 600)) == [running.event_id]


def test_event_with_an_expired_lease_is_claimed_alone(
    store: Store, clock: Clock
) -> None:
    record(store, "evt_1", "evt_2", "evt_3")
    first, _ = batches.claim_due(store, 2, 60)
    assert claims.settle(
        store, first, Settlement(Status.PENDING, "failed", due_in(store, 30))
    )
    clock.forward(61)

    claimed = [ids_of(batches.claim_due(store, 9, 600)) for _ in range(3)]
    assert claimed == [["evt_3", "evt_1"], ["evt_2"], []]


def test_batch_is_of_one_endpoint(app: Flask, store: Store) -> None:
    app.config.update(
        PRUDRA_WEBHOOK_SECRET="another secret of the test suite",
        PRUDRA_WEBHOOK_DATABASE_URI=app.config["PROCORE_WEBHOOK_DATABASE_URI"],
    )
    app.register_blueprint(PrudraWebhooks())
    other = endpoints(app)["prudra_webhooks"].store
    record(store, "mine", "both")
    record(other, "yours", "both")

    assert sorted(ids_of(batches.claim_due(other, 9, 60))) == ["both", "yours"]
    assert sorted(ids_of(batches.claim_due(store, 9, 60))) == ["both", "mine"]


def test_claims_without_an_outcome_are_counted(store: Store, clock: Clock) -> None:
    record(store, "evt_1", "evt_2")
    first, second = batches.claim_due(store, 2, 60)
    assert first.unsettled == 0
    assert {row["claims"] for row in by_id(store).values()} == {1}
    assert {row["status"] for row in by_id(store).values()} == {"running"}

    clock.forward(61)
    again = [*batches.claim_due(store, 2, 60), *batches.claim_due(store, 2, 60)]
    assert [each.unsettled for each in again] == [1, 1]

    # A released claim was none; a settled one ends the count.
    batches.release(store, again[:1])
    claims.settle(store, again[1], Settlement(Status.PENDING, "failed"))
    kept, failed = (by_id(store)[each.event_id] for each in again)
    assert (kept["claims"], failed["claims"]) == (1, 0)


def test_jobs_of_a_running_event_are_written_by_its_holder(
    store: Store, clock: Clock
) -> None:
    """Only the run with the lease of the event changes its jobs (rule 3)."""
    row_id = record_event(store, event()).row_id
    lost = claim_one(store, row_id)
    clock.forward(61)
    mine = claim_one(store, row_id)
    begun = Job("a:b", attempts=1, is_begun=True)
    rest = Job("c:d")

    with pytest.raises(NotHeld):
        write_held(store, lost, [begun])
    assert jobs(store) == {}
    write_held(store, mine, [begun, rest])
    found = jobs(store)
    assert {each["version"] for each in found.values()} == {1}
    assert (found["a:b"]["attempts"], found["c:d"]["attempts"]) == (1, 0)
    # Its version has risen since.
    again = replace(begun, version=1)
    write_held(store, mine, [again])
    with pytest.raises(NotHeld):
        write_held(store, mine, [again])
    assert jobs(store)["a:b"]["version"] == 2


def test_early_count_is_taken_back_without_a_new_version(store: Store) -> None:
    claim = claim_one(store, record_event(store, event()).row_id)
    begun = Job("a:b", attempts=3, is_begun=True)
    write_held(store, claim, [begun])
    take_back(store, claim, replace(begun, version=1))
    take_back(store, claim, replace(begun, version=7))

    job = jobs(store)["a:b"]
    assert (job["attempts"], job["version"]) == (2, 1)


def test_jobs_come_with_the_claim(store: Store, clock: Clock) -> None:
    record(store, "evt_1", "evt_2", "evt_3")
    first, second, third = batches.claim_due(store, 3, 60)
    for claim, name in ((first, "a:b"), (first, "c:d"), (third, "a:b")):
        completion.finish(store, claim.row_id, done(store, name))

    batches.release(store, [first, second, third])
    found = {
        claim.event_id: {name: job.state for name, job in claim.jobs.items()}
        for claim in batches.claim_due(store, 3, 60)
    }

    done_ = JobState.DONE
    assert found == {
        "evt_1": {"a:b": done_, "c:d": done_},
        "evt_2": {},
        "evt_3": {"a:b": done_},
    }


# Concurrent claims


def test_threads_that_claim_at_once_never_get_the_same_event(store: Store) -> None:
    record(store, *numbered(150))

    found = at_once(lambda number: claim_all(store, 1 + number % 7), range(10))

    everything = [id for each in found for id in each]
    assert sorted(everything) == sorted(numbered(150))


def test_concurrent_claims_of_one_event_have_one_winner(store: Store) -> None:
    for id in numbered(12):
        record(store, id)
        found = at_once(lambda number: len(batches.claim_due(store, 5, 600)), range(4))
        assert sum(found) == 1
        assert by_id(store)[id]["claims"] == 1


# Locks


@pytest.fixture(params=["postgresql", "mariadb"])
def server_inbox(
    request: pytest.FixtureRequest, make_app: MakeApp, webhooks: ProcoreWebhooks
) -> Iterator[Store]:
    """An inbox on a database that locks rows."""
    url = request.getfixturevalue(f"{request.param}_url")
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI=url)
    app.register_blueprint(webhooks)
    (endpoint,) = endpoints(app).values()
    store = endpoint.store
    yield store
    store.columns.id.table.metadata.drop_all(store.database.engine)
    store.database.engine.dispose()


def in_time(work: Callable[[], Any]) -> Any:
    """The result of ``work``; fail if it does not return in time."""
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(work()), daemon=True)
    thread.start()
    thread.join(20)
    assert answers, "it waited"
    return answers[0]


def test_locked_row_is_skipped(server_inbox: Store) -> None:
    store, c = server_inbox, server_inbox.columns
    first, *_ = record(store, *numbered(4))

    with store.connection(begin=True) as other:
        other.execute(sa.select(c.id).where(c.id == first).with_for_update())
        assert ids_of(in_time(lambda: batches.claim_due(store, 2, 60))) == [
            "evt_001",
            "evt_002",
        ]
        assert ids_of(in_time(lambda: batches.claim_due(store, 9, 60))) == ["evt_003"]
        assert in_time(lambda: batches.claim_due(store, 9, 60)) == []

    assert ids_of(batches.claim_due(store, 9, 60)) == ["evt_000"]


def test_events_are_recorded_during_an_open_claim_transaction(
    server_inbox: Store,
) -> None:
    """New events before, between and after the claimed rows, and duplicates."""
    store = server_inbox
    record(store, "evt_b", "evt_d", "evt_f")
    batches.claim_due(store, 1, 60)
    engine = store.database.engine
    came: list[bool] = []

    @sa.event.listens_for(engine, "before_cursor_execute")
    def deliver(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement == "COMMIT" and not came:
            came.append(False)
            for id in ("evt_a", "evt_c", "evt_e", "evt_g"):
                came.append(in_time(lambda id=id: bool(record(store, id))))

    assert ids_of(batches.claim_due(store, 2, 60)) == ["evt_d", "evt_f"]
    assert came == [False, True, True, True, True]
    assert sorted(ids_of(batches.claim_due(store, 9, 60))) == [
        "evt_a",
        "evt_c",
        "evt_e",
        "evt_g",
    ]


def test_skip_locked_is_used_only_where_supported(store: Store) -> None:
    statements: list[str] = []
    record(store, "evt_1")
    engine = store.database.engine

    @sa.event.listens_for(engine, "before_cursor_execute")
    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    assert ids_of(batches.claim_due(store, 1, 60)) == ["evt_1"]
    asked = any("FOR UPDATE SKIP LOCKED" in statement for statement in statements)
    assert asked == store.traits().skips_locked == (engine.dialect.name != "sqlite")


@pytest.mark.parametrize(
    ("is_mariadb", "version", "skips"),
    [
        (True, (10, 5, 29), False),
        (True, (10, 6, 0), True),
        (True, (10, 11, 6), True),
        (True, (11, 4, 2), True),
        (False, (5, 7, 44), False),
        (False, (8, 0, 36), True),
        (False, (9, 1, 0), True),
    ],
)
def test_skip_locked_depends_on_the_server_version(
    make_app: MakeApp,
    mariadb_url: str,
    is_mariadb: bool,
    version: tuple[int, ...],
    skips: bool,
) -> None:
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI=mariadb_url)
    ProcoreWebhooks().init_app(app)
    (endpoint,) = endpoints(app).values()
    engine = endpoint.store.database.engine
    dialect: Any = engine.dialect
    engine.connect().close()
    dialect.is_mariadb, dialect.server_version_info = is_mariadb, version

    assert endpoint.store.traits().skips_locked is skips
    endpoint.store.columns.id.table.metadata.drop_all(engine)
    engine.dispose()


def test_claims_are_exclusive_without_skip_locked(
    make_app: MakeApp, mariadb_url: str
) -> None:
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI=mariadb_url)
    ProcoreWebhooks().init_app(app)
    (endpoint,) = endpoints(app).values()
    store, engine = endpoint.store, endpoint.store.database.engine
    dialect: Any = engine.dialect
    engine.connect().close()
    dialect.is_mariadb, dialect.server_version_info = True, (10, 5, 29)
    assert not store.traits().skips_locked
    record(store, *numbered(60))

    found = at_once(lambda number: claim_all(store, 1 + number % 7), range(6))

    assert sorted(id for each in found for id in each) == sorted(numbered(60))
    store.columns.id.table.metadata.drop_all(engine)
    engine.dispose()


@pytest.mark.parametrize("failing", range(3))
def test_claim_is_tried_again_on_a_new_connection(store: Store, failing: int) -> None:
    record(store, "evt_1", "evt_2")
    engine = store.database.engine
    seen: list[str] = []

    @sa.event.listens_for(engine, "before_cursor_execute")
    def break_it(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith(("SELECT", "UPDATE")):
            seen.append(statement)
            if len(seen) == failing + 1:
                connection.connection.dbapi_connection.close()

    assert ids_of(batches.claim_due(store, 2, 60)) == ["evt_1", "evt_2"]
    assert len(seen) > failing + 1
    assert {row["claims"] for row in by_id(store).values()} == {1}


# Changes by the claim's holder


class LostAnswer:
    """Loses the answer to the first statement that begins so, once it is made."""

    def __init__(self, store: Store, *texts: str) -> None:
        self.texts = texts
        self.made: list[str] = []
        sa.event.listen(store.database.engine, "after_cursor_execute", self._lose)

    def _lose(self, connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith(self.texts):
            self.made.append(statement)
            if len(self.made) == 1:
                raise ConnectionError("the answer is lost")


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("status", [Status.DONE, Status.PENDING, Status.DEAD])
@pytest.mark.parametrize("others", [0, 2])
def test_settlement_whose_answer_is_lost_is_made(
    store: Store, status: Status, durable: bool, others: int
) -> None:
    row_id = record_event(store, event()).row_id
    claim = claim_one(store, row_id, durable=durable)
    rest = [Job(f"other{number}") for number in range(others)]
    lost = LostAnswer(store, "COMMIT" if others else "UPDATE")
    end = Settlement(status, "failed", due_in(store, 60), rest)
    assert claims.settle(store, claim, end)
    assert lost.made and row(store)["status"] == status
    assert states(store) == dict.fromkeys([each.subscriber for each in rest], "pending")
    assert not claims.settle(store, claim, Settlement(Status.IGNORED))


# Events that are done, settled together


def claimed_batch(store: Store, number: int) -> list[Claim]:
    for each in range(number):
        record_event(store, event(str(each)))
    found = batches.claim_due(store, number, 60)
    assert len(found) == number
    return found


def ends(store: Store, claimed: list[Claim], name: str) -> list[tuple[int, Job]]:
    return [(claim.row_id, done(store, name)) for claim in claimed]


@pytest.mark.parametrize("durable", [False, True])
def test_events_that_are_done_are_settled_with_their_jobs(
    store: Store, durable: bool
) -> None:
    found = [replace(claim, durable=durable) for claim in claimed_batch(store, 3)]
    jobs = ends(store, found, "a:b") + ends(store, found[:1], "c:d")
    rows = {claim.row_id for claim in found}
    assert completion.settle_done(store, found, jobs, store.db_now()) == rows
    for claim in found:
        settled = by_id(store)[claim.event_id]
        assert (settled["status"], settled["lease"], settled["claims"]) == (
            Status.DONE,
            None,
            0,
        )
        assert (settled["due_at"], settled["error"]) == (None, None)
        assert settled["finished_at"] is not None
        both = {"a:b": "done", "c:d": "done"} if claim is found[0] else {"a:b": "done"}
        assert states(store, claim.event_id) == both
    assert completion.settle_done(store, found, [], store.db_now()) == set()


def test_jobs_are_written_before_their_event_is_done(store: Store) -> None:
    (claim,) = claimed_batch(store, 1)
    assert (
        completion.settle_done(store, [], ends(store, [claim], "a:b"), store.db_now())
        == set()
    )
    assert row(store, claim.event_id)["status"] == Status.RUNNING
    assert states(store, claim.event_id) == {"a:b": "done"}


@pytest.mark.parametrize("durable", [False, True])
def test_batch_whose_answer_is_lost_is_settled(store: Store, durable: bool) -> None:
    found = [replace(claim, durable=durable) for claim in claimed_batch(store, 2)]
    is_one = store.dialect_name == "postgresql"
    lost = LostAnswer(store, "WITH" if is_one else "COMMIT")
    rows = {claim.row_id for claim in found}
    assert (
        completion.settle_done(store, found, ends(store, found, "a:b"), store.db_now())
        == rows
    )
    assert lost.made
    assert {each["status"] for each in by_id(store).values()} == {Status.DONE}


def test_lost_lease_leaves_the_rest_of_a_batch(store: Store, clock: Clock) -> None:
    """A subscriber that wrote nothing has finished, whoever holds the event now."""
    found = claimed_batch(store, 3)
    batches.release(store, found[:1])
    again = claim_one(store, found[0].row_id)
    rows = {claim.row_id for claim in found[1:]}
    assert (
        completion.settle_done(store, found, ends(store, found, "a:b"), store.db_now())
        == rows
    )
    first = by_id(store)[again.event_id]
    assert (first["status"], first["lease"]) == (Status.RUNNING, again.lease)
    for claim in found:
        assert states(store, claim.event_id) == {"a:b": "done"}


def test_row_of_a_later_run_blocks_no_batch(store: Store) -> None:
    found = claimed_batch(store, 3)
    write_held(store, found[1], [Job("a:b")])
    rows = {claim.row_id for claim in found}
    assert (
        completion.settle_done(store, found, ends(store, found, "a:b"), store.db_now())
        == rows
    )
    kept = [states(store, claim.event_id)["a:b"] for claim in found]
    assert kept == ["done", "pending", "done"]


# Abandoned calls


def test_abandonment_whose_answer_is_lost_is_made(store: Store) -> None:
    row_id = record_event(store, event()).row_id
    claim, rest = claim_one(store, row_id), Job("c:d")
    lost = LostAnswer(store, "COMMIT")
    state = cut.abandon(store, claim, timed_out(store), [rest], 60)
    assert (state, len(lost.made)) == (JobState.PENDING, 1)
    assert claims.settle(store, claim, Settlement(Status.PENDING))

    again = claim_one(store, row_id)
    assert {name: job.version for name, job in again.jobs.items()} == {
        "a:b": 1,
        "c:d": 1,
    }
    LostAnswer(store, "COMMIT")
    state = cut.abandon(store, again, timed_out(store, 1), [], 60)
    assert state is JobState.PENDING
    assert claims.settle(store, again, Settlement(Status.PENDING))
    assert claim_one(store, row_id).jobs["a:b"].version == 2


def test_abandonment_of_a_later_run_is_not_ours(store: Store, clock: Clock) -> None:
    row_id = record_event(store, event()).row_id
    first = claim_one(store, row_id)
    clock.forward(61)
    second = claim_one(store, row_id)
    state = cut.abandon(store, second, timed_out(store), [], 60)
    assert state is JobState.PENDING
    assert cut.abandon(store, first, timed_out(store), [], 60) is None


def test_abandonment_leaves_a_finished_job_as_it_is(store: Store) -> None:
    claim = claim_one(store, record_event(store, event()).row_id)
    completion.finish(store, claim.row_id, done(store, "a:b"))
    rest = Job("c:d")
    state = cut.abandon(store, claim, timed_out(store), [rest], 60)
    assert (state, states(store)) == (JobState.DONE, {"a:b": "done"})


def timed_out(store: Store, version: int = 0) -> Job:
    """A job whose call was given up."""
    failure = Failure("Timeout", "no answer")
    job = Job("a:b", version=version, attempts=1, failure=failure)
    return job.put_off(due_in(store, 10), Wait.RETRY)


@pytest.fixture
def lost_claim(store: Store, clock: Clock) -> Claim:
    """A claim whose lease has expired and whose event is claimed anew."""
    record(store, "evt_1")
    (claim,) = batches.claim_due(store, 1, 60)
    clock.forward(61)
    assert len(batches.claim_due(store, 1, 60)) == 1
    return claim


def test_claim_with_a_lost_lease_changes_nothing(
    store: Store, clock: Clock, lost_claim: Claim
) -> None:
    before = by_id(store)
    clock.forward(10)

    batches.renew(store, [lost_claim], 3600)
    batches.release(store, [lost_claim])
    for status in (Status.DONE, Status.DEAD, Status.PENDING):
        assert (
            claims.settle(store, lost_claim, Settlement(status, error="late")) is False
        )

    assert by_id(store) == before


def test_settled_claim_holds_no_lease(store: Store, clock: Clock) -> None:
    record(store, "evt_1")
    (claim,) = batches.claim_due(store, 1, 60)
    assert claims.settle(
        store, claim, Settlement(Status.PENDING, "failed", due_in(store, 30))
    )
    before = by_id(store)

    batches.renew(store, [claim], 3600)
    batches.release(store, [claim])
    assert not claims.settle(store, claim, Settlement(Status.DONE))

    assert by_id(store) == before


def test_renewal_returns_the_held_leases(store: Store, clock: Clock) -> None:
    record(store, "evt_1", "evt_2", "evt_3")
    kept, settled, lost = batches.claim_due(store, 3, 60)
    claims.settle(store, settled, Settlement(Status.DONE))
    clock.forward(50)
    batches.renew(store, [kept, settled], 60)
    clock.forward(20)

    assert ids_of(batches.claim_due(store, 9, 600)) == ["evt_3"]
    batches.renew(store, [kept, settled, lost], 60)
    clock.forward(59)
    assert batches.claim_due(store, 9, 600) == []
    clock.forward(2)
    assert ids_of(batches.claim_due(store, 9, 600)) == ["evt_1"]


def test_released_event_is_as_before_its_claim(store: Store) -> None:
    record(store, "evt_1", "evt_2", "evt_3")
    before = by_id(store)
    first, second, third = batches.claim_due(store, 3, 600)
    batches.release(store, [first, second])

    found = by_id(store)
    for id in ("evt_1", "evt_2"):
        assert {**found[id], "due_at": None} == {**before[id], "due_at": None}
    assert found["evt_3"]["status"] == "running"
    again = batches.claim_due(store, 9, 600)
    assert sorted(ids_of(again)) == ["evt_1", "evt_2"]


def test_empty_changes_send_no_statement(
    make_app: MakeApp, postgresql_url: str
) -> None:
    with relay_to(postgresql_url) as relay:
        app = make_app(PROCORE_WEBHOOK_DATABASE_URI=relay.url)
        ProcoreWebhooks().init_app(app)
        (endpoint,) = endpoints(app).values()
        relay.cut()
        batches.release(endpoint.store, [])
        batches.renew(endpoint.store, [], 60)
        with pytest.raises(InboxUnavailable):
            due_rows(endpoint.store)
