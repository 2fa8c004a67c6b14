"""Batches of claims on each database: nobody else has them, until they are let go."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from support.inboxes import by_id
from support.inboxes import claim_all
from support.inboxes import ids_of
from support.inboxes import numbered
from support.inboxes import record
from support.outages import relay_to
from support.sites import at_once
from support.values import Clock
from support.waiting import PATIENCE
from support.waiting import wait_until

from flask_procore_webhooks import browse
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import PrudraWebhooks
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.errors import InboxUnavailable
from flask_procore_webhooks.inbox import Claim
from flask_procore_webhooks.inbox import Inbox
from flask_procore_webhooks.leases import Holding
from flask_procore_webhooks.leases import keeping
from flask_procore_webhooks.states import Status

MakeApp = Callable[..., Flask]
#: As much as a busy machine may need; tests end as soon as what they wait for is there.


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
        endpoint.inbox.database.engine.dispose()


@pytest.fixture
def inbox(endpoint: Endpoint) -> Inbox:
    return endpoint.inbox


# Batches


def test_a_batch_is_of_what_is_due_the_longest_due_first(
    inbox: Inbox, clock: Clock
) -> None:
    for id in ("c", "a", "b", "d"):
        record(inbox, id)
        clock.forward(1)

    assert ids_of(inbox.claim_due(3, 60)) == ["c", "a", "b"]
    assert ids_of(inbox.claim_due(3, 60)) == ["d"]
    assert inbox.claim_due(3, 60) == []


def test_a_batch_holds_what_waits_for_nothing_and_nobody(
    inbox: Inbox, clock: Clock
) -> None:
    record(inbox, *numbered(6))
    failed, running, *finished = inbox.claim_due(5, 60)
    inbox.settle(failed, Status.PENDING, error="failed", wait=30)
    for claim, status in zip(
        finished, (Status.DONE, Status.DEAD, Status.IGNORED), strict=True
    ):
        inbox.settle(claim, status)

    assert ids_of(inbox.claim_due(9, 600)) == ["evt_005"]
    clock.forward(31)
    assert ids_of(inbox.claim_due(9, 600)) == [failed.event_id]
    clock.forward(30)
    assert ids_of(inbox.claim_due(9, 600)) == [running.event_id]


def test_what_may_have_killed_its_process_is_taken_alone(
    inbox: Inbox, clock: Clock
) -> None:
    record(inbox, "evt_1", "evt_2", "evt_3")
    first, _ = inbox.claim_due(2, 60)
    assert inbox.settle(first, Status.PENDING, error="failed", wait=30)
    clock.forward(61)

    batches = [ids_of(inbox.claim_due(9, 600)) for _ in range(3)]
    assert batches == [["evt_3", "evt_1"], ["evt_2"], []]


def test_a_batch_is_of_one_endpoint(app: Flask, inbox: Inbox) -> None:
    app.config.update(
        PRUDRA_WEBHOOK_SECRET="another secret of the test suite",
        PRUDRA_WEBHOOK_DATABASE_URI=app.config["PROCORE_WEBHOOK_DATABASE_URI"],
    )
    app.register_blueprint(PrudraWebhooks())
    other = endpoints(app)["prudra_webhooks"].inbox
    record(inbox, "mine", "both")
    record(other, "yours", "both")

    assert sorted(ids_of(other.claim_due(9, 60))) == ["both", "yours"]
    assert sorted(ids_of(inbox.claim_due(9, 60))) == ["both", "mine"]


def test_an_attempt_is_counted_with_the_claim(inbox: Inbox, clock: Clock) -> None:
    record(inbox, "evt_1", "evt_2")
    first, second = inbox.claim_due(2, 60)
    assert (first.attempt, second.attempt) == (1, 1)
    assert {row["attempts"] for row in by_id(inbox).values()} == {1}
    assert {row["status"] for row in by_id(inbox).values()} == {"running"}

    clock.forward(61)
    again = [*inbox.claim_due(2, 60), *inbox.claim_due(2, 60)]
    assert {claim.event_id: claim.attempt for claim in again} == {
        "evt_1": 2,
        "evt_2": 2,
    }


def test_receipts_come_with_the_claim(inbox: Inbox, clock: Clock) -> None:
    record(inbox, "evt_1", "evt_2", "evt_3")
    first, second, third = inbox.claim_due(3, 60)
    for claim, name in ((first, "a:b"), (first, "c:d"), (third, "a:b")):
        inbox.commit_receipt(claim, name)

    inbox.give_back([first, second, third])
    found = {claim.event_id: claim.finished for claim in inbox.claim_due(3, 60)}

    assert found == {"evt_1": {"a:b", "c:d"}, "evt_2": set(), "evt_3": {"a:b"}}


# Many at once


def test_threads_that_claim_at_once_never_get_the_same_event(inbox: Inbox) -> None:
    record(inbox, *numbered(150))

    found = at_once(lambda number: claim_all(inbox, 1 + number % 7), range(10))

    everything = [id for each in found for id in each]
    assert sorted(everything) == sorted(numbered(150))


def test_one_event_is_claimed_by_one_of_many(inbox: Inbox) -> None:
    for id in numbered(12):
        record(inbox, id)
        claims = at_once(lambda number: len(inbox.claim_due(5, 600)), range(4))
        assert sum(claims) == 1
        assert by_id(inbox)[id]["attempts"] == 1


# Locks


@pytest.fixture(params=["postgresql", "mariadb"])
def server_inbox(
    request: pytest.FixtureRequest, make_app: MakeApp, webhooks: ProcoreWebhooks
) -> Iterator[Inbox]:
    """An inbox on a database that locks rows."""
    url = request.getfixturevalue(f"{request.param}_url")
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI=url)
    app.register_blueprint(webhooks)
    (endpoint,) = endpoints(app).values()
    inbox = endpoint.inbox
    yield inbox
    inbox.columns.id.table.metadata.drop_all(inbox.database.engine)
    inbox.database.engine.dispose()


def in_time(work: Callable[[], Any]) -> Any:
    """What ``work`` gives, unless it waits for something that never happens."""
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(work()), daemon=True)
    thread.start()
    thread.join(20)
    assert answers, "it waited"
    return answers[0]


def test_a_row_that_another_has_locked_is_passed_over(server_inbox: Inbox) -> None:
    inbox, c = server_inbox, server_inbox.columns
    first, *_ = record(inbox, *numbered(4))

    with inbox.transaction() as other:
        other.execute(sa.select(c.id).where(c.id == first).with_for_update())
        assert ids_of(in_time(lambda: inbox.claim_due(2, 60))) == ["evt_001", "evt_002"]
        assert ids_of(in_time(lambda: inbox.claim_due(9, 60))) == ["evt_003"]
        assert in_time(lambda: inbox.claim_due(9, 60)) == []

    assert ids_of(inbox.claim_due(9, 60)) == ["evt_000"]


def test_events_come_in_while_a_claim_is_open(server_inbox: Inbox) -> None:
    """Before the first row, between rows, after the last, and known ones too."""
    inbox = server_inbox
    record(inbox, "evt_b", "evt_d", "evt_f")
    inbox.claim_due(1, 60)
    engine = inbox.database.engine
    came: list[bool] = []

    @sa.event.listens_for(engine, "before_cursor_execute")
    def deliver(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement == "COMMIT" and not came:
            came.append(False)
            for id in ("evt_a", "evt_c", "evt_e", "evt_g"):
                came.append(in_time(lambda id=id: bool(record(inbox, id))))

    assert ids_of(inbox.claim_due(2, 60)) == ["evt_d", "evt_f"]
    assert came == [False, True, True, True, True]
    assert sorted(ids_of(inbox.claim_due(9, 60))) == [
        "evt_a",
        "evt_c",
        "evt_e",
        "evt_g",
    ]


def test_only_servers_that_can_are_asked_to_skip_locked_rows(inbox: Inbox) -> None:
    statements: list[str] = []
    record(inbox, "evt_1")
    engine = inbox.database.engine

    @sa.event.listens_for(engine, "before_cursor_execute")
    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    assert ids_of(inbox.claim_due(1, 60)) == ["evt_1"]
    asked = any("FOR UPDATE SKIP LOCKED" in statement for statement in statements)
    assert asked == inbox.skips_locked == (engine.dialect.name != "sqlite")


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
def test_rows_are_skipped_from_the_version_on_that_can(
    make_app: MakeApp,
    mariadb_url: str,
    is_mariadb: bool,
    version: tuple[int, ...],
    skips: bool,
) -> None:
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI=mariadb_url)
    ProcoreWebhooks().init_app(app)
    (endpoint,) = endpoints(app).values()
    engine = endpoint.inbox.database.engine
    dialect: Any = engine.dialect
    engine.connect().close()
    dialect.is_mariadb, dialect.server_version_info = is_mariadb, version

    assert endpoint.inbox.skips_locked is skips
    endpoint.inbox.columns.id.table.metadata.drop_all(engine)
    engine.dispose()


def test_an_older_server_gives_each_event_to_one_too(
    make_app: MakeApp, mariadb_url: str
) -> None:
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI=mariadb_url)
    ProcoreWebhooks().init_app(app)
    (endpoint,) = endpoints(app).values()
    inbox, engine = endpoint.inbox, endpoint.inbox.database.engine
    dialect: Any = engine.dialect
    engine.connect().close()
    dialect.is_mariadb, dialect.server_version_info = True, (10, 5, 29)
    assert not inbox.skips_locked
    record(inbox, *numbered(60))

    found = at_once(lambda number: claim_all(inbox, 1 + number % 7), range(6))

    assert sorted(id for each in found for id in each) == sorted(numbered(60))
    inbox.columns.id.table.metadata.drop_all(engine)
    engine.dispose()


@pytest.mark.parametrize("failing", range(4))
def test_a_claim_that_fails_half_way_holds_nothing(inbox: Inbox, failing: int) -> None:
    record(inbox, "evt_1", "evt_2")
    assert inbox.skips_locked is not None
    engine = inbox.database.engine
    seen: list[str] = []

    @sa.event.listens_for(engine, "before_cursor_execute")
    def break_it(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith(("SELECT", "UPDATE")):
            seen.append(statement)
            if len(seen) == failing + 1:
                connection.connection.dbapi_connection.close()

    with pytest.raises(InboxUnavailable):
        inbox.claim_due(2, 60)
    assert len(seen) == failing + 1
    wait_until(lambda: len(inbox.claim_due(2, 60)) == 2, 5)


# Only the holder


@pytest.fixture
def lost(inbox: Inbox, clock: Clock) -> Claim:
    """A claim whose event another has taken when its lease was over."""
    record(inbox, "evt_1")
    (claim,) = inbox.claim_due(1, 60)
    clock.forward(61)
    assert len(inbox.claim_due(1, 60)) == 1
    return claim


def test_who_has_lost_the_lease_changes_nothing(
    inbox: Inbox, clock: Clock, lost: Claim
) -> None:
    before = by_id(inbox)
    clock.forward(10)

    inbox.renew([lost], 3600)
    inbox.give_back([lost])
    for status in (Status.DONE, Status.DEAD, Status.PENDING):
        assert inbox.settle(lost, status, error="late") is False

    assert by_id(inbox) == before


def test_who_has_settled_holds_nothing(inbox: Inbox, clock: Clock) -> None:
    record(inbox, "evt_1")
    (claim,) = inbox.claim_due(1, 60)
    assert inbox.settle(claim, Status.PENDING, error="failed", wait=30)
    before = by_id(inbox)

    inbox.renew([claim], 3600)
    inbox.give_back([claim])
    assert not inbox.settle(claim, Status.DONE)

    assert by_id(inbox) == before


def test_renewed_leases_are_those_still_held(inbox: Inbox, clock: Clock) -> None:
    record(inbox, "evt_1", "evt_2", "evt_3")
    kept, settled, lost = inbox.claim_due(3, 60)
    inbox.settle(settled, Status.DONE)
    clock.forward(50)
    inbox.renew([kept, settled], 60)
    clock.forward(20)

    assert ids_of(inbox.claim_due(9, 600)) == ["evt_3"]
    inbox.renew([kept, settled, lost], 60)
    clock.forward(59)
    assert inbox.claim_due(9, 600) == []
    clock.forward(2)
    assert ids_of(inbox.claim_due(9, 600)) == ["evt_1"]


def test_what_is_given_back_is_as_it_was_before_the_claim(inbox: Inbox) -> None:
    record(inbox, "evt_1", "evt_2", "evt_3")
    before = by_id(inbox)
    first, second, third = inbox.claim_due(3, 600)
    inbox.give_back([first, second])

    found = by_id(inbox)
    for id in ("evt_1", "evt_2"):
        assert {**found[id], "due_at": None} == {**before[id], "due_at": None}
    assert found["evt_3"]["status"] == "running"
    again = inbox.claim_due(9, 600)
    assert {each.event_id: each.attempt for each in again} == {"evt_1": 1, "evt_2": 1}


def test_nothing_to_change_needs_no_database(
    make_app: MakeApp, postgresql_url: str
) -> None:
    with relay_to(postgresql_url) as relay:
        app = make_app(PROCORE_WEBHOOK_DATABASE_URI=relay.url)
        ProcoreWebhooks().init_app(app)
        (endpoint,) = endpoints(app).values()
        relay.cut()
        endpoint.inbox.give_back([])
        endpoint.inbox.renew([], 60)
        with pytest.raises(InboxUnavailable):
            endpoint.inbox.due()


# Renewal


def test_a_lease_is_renewed_until_it_is_let_go(inbox: Inbox) -> None:
    record(inbox, "evt_1", "evt_2")
    first, second = inbox.claim_due(2, 30)

    with keeping(inbox, [first, second], 3) as holding:
        assert holding.begin(first) and holding.begin(second)
        ends = by_id(inbox)["evt_1"]["due_at"]
        wait_until(lambda: by_id(inbox)["evt_1"]["due_at"] != ends)
        assert by_id(inbox)["evt_1"]["due_at"] == by_id(inbox)["evt_2"]["due_at"]
        holding.drop(second)
        # A renewal that had begun may still be on its way.
        wait_until(lambda: _renewed_once_more(inbox, "evt_1"))
        ends = by_id(inbox)["evt_2"]["due_at"]
        wait_until(lambda: _renewed_once_more(inbox, "evt_1"))
        assert by_id(inbox)["evt_2"]["due_at"] == ends

    # Nobody else got them meanwhile, and anybody does now.
    assert {row["lease"] for row in by_id(inbox).values()} == {first.lease}
    wait_until(lambda: inbox.claim_due(2, 60), 10 + PATIENCE)


def _renewed_once_more(inbox: Inbox, id: str) -> bool:
    ends = by_id(inbox)[id]["due_at"]
    wait_until(lambda: by_id(inbox)[id]["due_at"] != ends)
    return True


def test_what_waits_too_long_for_its_turn_is_given_back(inbox: Inbox) -> None:
    """A run of an hour keeps its lease, and the rest of its batch from nobody."""
    record(inbox, "evt_1", "evt_2", "evt_3")
    first, second, third = inbox.claim_due(3, 600)

    with keeping(inbox, [first, second, third], 1) as holding:
        assert holding.begin(first)
        taken: list[Claim] = []
        wait_until(lambda: taken.extend(inbox.claim_due(3, 600)) or len(taken) == 2)
        wait_until(lambda: set(holding.claims) == {first.row_id})
        assert not holding.begin(second)

    assert {claim.event_id for claim in taken} == {"evt_2", "evt_3"}
    assert by_id(inbox)["evt_1"]["lease"] == first.lease
    assert {row["attempts"] for row in by_id(inbox).values()} == {1}


def test_nothing_begins_whose_lease_is_over(inbox: Inbox, clock: Clock) -> None:
    """In a process that was stopped for a while, whichever thread goes on first."""
    record(inbox, "evt_1")
    (claim,) = inbox.claim_due(1, 60)
    holding = Holding(inbox, 60, {claim.row_id: claim}, time.monotonic() + 20)
    clock.forward(61)
    assert not holding.begin(claim)
    assert holding.not_begun() == [claim]


def test_nothing_begins_once_the_rest_is_given_back(inbox: Inbox) -> None:
    record(inbox, "evt_1", "evt_2")
    first, second = inbox.claim_due(2, 60)
    with keeping(inbox, [first, second], 60) as holding:
        assert holding.begin(first)
        holding.close()
        assert not holding.begin(second)
        assert (holding.begun(), holding.not_begun()) == ([first], [second])


@pytest.mark.serial
def test_a_short_lease_beside_a_long_one_is_renewed_in_time(inbox: Inbox) -> None:
    record(inbox, "evt_1", "evt_2")
    long, short = inbox.claim_due(2, 600)
    before = by_id(inbox)

    with keeping(inbox, [long], 600):
        time.sleep(0.1)  # the thread is asleep, for long
        with keeping(inbox, [short], 1) as holding:
            holding.begin(short)
            wait_until(
                lambda: by_id(inbox)["evt_2"]["due_at"] != before["evt_2"]["due_at"]
            )

    assert by_id(inbox)["evt_1"]["due_at"] == before["evt_1"]["due_at"]


@pytest.mark.parametrize("server", ["postgresql", "mariadb"])
def test_renewal_goes_on_after_an_outage(
    request: pytest.FixtureRequest,
    make_app: MakeApp,
    caplog: pytest.LogCaptureFixture,
    server: str,
) -> None:
    with relay_to(request.getfixturevalue(f"{server}_url")) as relay:
        app = make_app(PROCORE_WEBHOOK_DATABASE_URI=relay.url)
        ProcoreWebhooks().init_app(app)
        (endpoint,) = endpoints(app).values()
        inbox = endpoint.inbox
        record(inbox, "evt_1")
        (claim,) = inbox.claim_due(1, 600)

        with keeping(inbox, [claim], 1) as holding:
            holding.begin(claim)
            relay.cut()
            wait_until(lambda: "Leases are not renewed: the inbox of" in caplog.text)
            relay.mend()
            assert _renewed_once_more(inbox, "evt_1")

        assert browse.find(inbox, "evt_1") is not None
        inbox.columns.id.table.metadata.drop_all(inbox.database.engine)
        inbox.database.engine.dispose()
