"""Calls that come together are done together: group commit, alone and in the inbox."""

from __future__ import annotations

import threading
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from concurrent.futures import as_completed
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from support.outages import relay_to
from support.waiting import wait_until

from flask_procore_webhooks import browse
from flask_procore_webhooks import grouping
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.errors import InboxUnavailable
from flask_procore_webhooks.events import Event
from flask_procore_webhooks.grouping import Grouped
from flask_procore_webhooks.grouping import LARGEST_GROUP
from flask_procore_webhooks.inbox import Inbox
from flask_procore_webhooks.recorder import LARGEST_STATEMENT
from flask_procore_webhooks.samples import payload
from flask_procore_webhooks.samples import to_bytes
from flask_procore_webhooks.states import Status


class Work:
    """Doubles numbers, a group at a time; the first group waits until it is let go."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.go = threading.Event()
        self.started = threading.Event()

    def __call__(self, items: list[int]) -> list[int | Exception]:
        self.groups.append(items)
        self.started.set()
        assert self.go.wait(30)
        return [ValueError(str(i)) if i < 0 else 2 * i for i in items]


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody takes over because the machine is slow just now."""
    monkeypatch.setattr(grouping, "LONGEST_WAIT", 60)


def all_waiting(grouped: Grouped[Any, Any], number: int) -> None:
    wait_until(lambda: len(grouped._waiting) >= number)


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except BaseException as error:
        return error


# Alone


def test_a_lone_call_is_a_group_of_its_own() -> None:
    work = Work()
    work.go.set()
    grouped = Grouped(work)
    assert [grouped(1), grouped(2)] == [2, 4]
    assert work.groups == [[1], [2]]


def test_calls_that_come_meanwhile_are_done_together() -> None:
    work = Work()
    grouped = Grouped(work)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(grouped, 0)
        assert work.started.wait(30)
        others = [pool.submit(grouped, number) for number in range(1, 8)]
        all_waiting(grouped, 7)
        work.go.set()
        results = [each.result(30) for each in (first, *others)]
    assert results == [2 * number for number in range(8)]
    assert work.groups[0] == [0]
    assert [sorted(group) for group in work.groups[1:]] == [list(range(1, 8))]


def test_an_exception_is_raised_by_its_own_call_only() -> None:
    work = Work()
    grouped = Grouped(work)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(grouped, 0)
        assert work.started.wait(30)
        others = [pool.submit(grouped, number) for number in (1, -1, 2)]
        all_waiting(grouped, 3)
        work.go.set()
        assert first.result(30) == 0
        found = [outcome(each.result) for each in others]
    assert (found[0], found[2]) == (2, 4)
    assert isinstance(found[1], ValueError)


def test_who_waits_for_a_failure_that_comes_late_has_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A database that does not answer is not waited for by group after group."""
    monkeypatch.setattr("flask_procore_webhooks.grouping.LATE", 0.0)
    work = Work()
    grouped = Grouped(work)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(grouped, -1)
        assert work.started.wait(30)
        others = [pool.submit(grouped, number) for number in (1, 2, 3)]
        all_waiting(grouped, 3)
        work.go.set()
        found = [outcome(each.result) for each in (first, *others)]
    assert [str(each) for each in found] == ["-1"] * 4
    assert work.groups == [[-1]]
    assert grouped(5) == 10


def test_groups_have_a_largest_size() -> None:
    work = Work()
    grouped = Grouped(work)
    with ThreadPoolExecutor(LARGEST_GROUP + 11) as pool:
        first = pool.submit(grouped, 0)
        assert work.started.wait(30)
        others = [pool.submit(grouped, number) for number in range(LARGEST_GROUP + 10)]
        all_waiting(grouped, LARGEST_GROUP + 10)
        work.go.set()
        assert first.result(30) == 0
        for number, each in enumerate(others):
            assert each.result(30) == 2 * number
    assert [len(group) for group in work.groups] == [1, LARGEST_GROUP, 10]


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_nobody_waits_for_a_leader_that_was_interrupted(
    kind: type[BaseException],
) -> None:
    interrupted: list[int] = []
    led = threading.Event()

    def work(items: list[int]) -> list[int | Exception]:
        if 0 in items:
            led.set()
            all_waiting(grouped, 3)
            return list(items)
        if not interrupted:
            interrupted.extend(items)
            raise kind
        return list(items)

    grouped = Grouped(work)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(grouped, 0)
        assert led.wait(30)
        others = [pool.submit(outcome, lambda n=n: grouped(n)) for n in (1, 2, 3)]
        assert first.result(30) == 0
        found = [each.result(30) for each in others]
    assert sorted(interrupted) == [1, 2, 3]
    # One of them was interrupted itself; the others were done without it.
    assert len([each for each in found if isinstance(each, kind)]) == 1
    assert {each for each in found if isinstance(each, int)} < {1, 2, 3}
    assert len([each for each in found if isinstance(each, int)]) == 2
    assert grouped(5) == 5


def test_who_has_waited_for_long_goes_on_without_one_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grouping, "LONGEST_WAIT", 2.5)
    monkeypatch.setattr(grouping, "LATE", 2.0)
    hang, hanging = threading.Event(), threading.Event()
    groups: list[list[int]] = []

    def work(items: list[int]) -> list[int | Exception]:
        groups.append(items)
        if len(groups) == 1:
            # So that the next one that hangs does so with others.
            all_waiting(grouped, 3)
        elif len(groups) == 2:
            hanging.set()
            assert hang.wait(30)
        return list(items)

    grouped = Grouped(work)
    with ThreadPoolExecutor(8) as pool:
        calls = {pool.submit(grouped, number): number for number in range(4)}
        assert hanging.wait(30)
        calls |= {pool.submit(grouped, number): number for number in range(4, 7)}
        done = list(islice(as_completed(calls, 30), 6))
        hang.set()
        assert {each.result(30): number for each, number in calls.items()} == {
            number: number for number in range(7)
        }
    assert len(done) == 6, "all but the leader that hangs"
    assert grouped(9) == 9
    assert groups[-1] == [9]


def test_when_everybody_hangs_who_waits_is_told_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grouping, "LONGEST_WAIT", 0.3)
    monkeypatch.setattr(grouping, "LATE", 2.0)
    work = Work()
    grouped = Grouped(work)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(grouped, 0)
        assert work.started.wait(30)
        others = [pool.submit(grouped, number) for number in (1, 2, 3)]
        told = list(islice(as_completed(others, 30), 2))
        assert [type(each.exception()) for each in told] == [TimeoutError] * 2
        work.go.set()
        (second,) = [each for each in others if each not in told]
        assert (first.result(30), second.result(30) in (2, 4, 6)) == (0, True)
    assert grouped(5) == 10


# In the inbox


@pytest.fixture
def app(
    make_app: Callable[..., Flask], webhooks: ProcoreWebhooks, database_url: str
) -> Iterator[Flask]:
    """An app with an inbox of its own, on each database in turn."""
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI=database_url)
    app.register_blueprint(webhooks)
    yield app
    (endpoint,) = endpoints(app).values()
    endpoint.inbox.database.engine.dispose()


@pytest.fixture
def inbox(endpoint: Endpoint) -> Inbox:
    endpoint.inbox.database.create_tables()
    return endpoint.inbox


def new_event(endpoint: Endpoint, **fields: Any) -> Event:
    return endpoint.read(to_bytes(payload("RFIs.update", **fields)))


def statements(inbox: Inbox) -> list[str]:
    """The inserts of events from now on."""
    seen: list[str] = []

    @sa.event.listens_for(inbox.database.engine, "before_cursor_execute")
    def note(c: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.startswith("INSERT") and "procore_webhook_event" in statement:
            seen.append(statement)

    return seen


def record_together(inbox: Inbox, events: Iterable[Event]) -> list[Any]:
    """Record the first; the others come while it is being committed."""
    first, *others = events
    insert_new, entered, go = inbox._insert._work, threading.Event(), threading.Event()

    def slow_for_the_first(rows: list[dict[str, Any]]) -> list[int | Exception]:
        if not entered.is_set():
            entered.set()
            assert go.wait(30)
        return insert_new(rows)

    inbox._insert._work = slow_for_the_first
    with ThreadPoolExecutor(len(others) + 1) as pool:
        calls = [pool.submit(inbox.record, first)]
        assert entered.wait(30)
        calls += [pool.submit(inbox.record, each) for each in others]
        all_waiting(inbox._insert, len(others))
        go.set()
        return [outcome(lambda each=each: each.result(60)) for each in calls]


def test_large_bodies_that_come_together_are_not_one_statement(
    inbox: Inbox, endpoint: Endpoint
) -> None:
    note = "x" * (LARGEST_STATEMENT // 2)
    events = [new_event(endpoint, id=f"evt_{n}", note=note) for n in range(4)]
    seen = statements(inbox)
    recorded = record_together(inbox, events)
    assert len({each.row_id for each in recorded}) == len(seen) == 4


def test_events_that_come_together_are_one_statement_and_each_has_its_row(
    inbox: Inbox, endpoint: Endpoint
) -> None:
    events = [new_event(endpoint, resource_id=number) for number in range(12)]
    seen = statements(inbox)
    recorded = record_together(inbox, events)
    assert len(seen) == 2
    assert all(each.fresh for each in recorded)
    for event, each in zip(events, recorded, strict=True):
        row = browse.find(inbox, event.id)
        assert row and row["id"] == each.row_id
        assert (row["body"], row["status"]) == (event.body, "pending")
        assert row["resource_id"] == event.resource_id


def test_repeats_among_events_that_come_together_are_told_apart(
    inbox: Inbox, endpoint: Endpoint
) -> None:
    there = new_event(endpoint)
    inbox.record(there)
    new = new_event(endpoint)
    other_body = endpoint.read(
        to_bytes(payload("RFIs.update", id=there.id, resource_id=8))
    )
    dead = new_event(endpoint)
    inbox.record(dead, Status.DEAD, "gone")
    group = [new_event(endpoint), there, new, other_body, new, dead, new]
    recorded = record_together(inbox, group)
    assert recorded[0].fresh
    assert [recorded[i].fresh for i in (1, 3, 5)] == [False] * 3
    assert [recorded[i].conflict for i in (1, 3, 5)] == [False, True, False]
    assert recorded[5].status is Status.PENDING
    copies = [recorded[i] for i in (2, 4, 6)]
    assert sorted(each.fresh for each in copies) == [False, False, True]
    assert len({each.row_id for each in copies}) == 1
    row = browse.find(inbox, new.id)
    assert row and row["repeats"] == 2


def test_a_row_that_the_database_refuses_harms_nobody_else(
    inbox: Inbox, endpoint: Endpoint
) -> None:
    with inbox.connection() as connection:
        if connection.dialect.name == "sqlite":
            # It has no sizes; this stands for any limit of a database.
            connection.exec_driver_sql(
                "CREATE TRIGGER no_monsters BEFORE INSERT ON procore_webhook_event"
                " WHEN NEW.reason = 'monster' BEGIN SELECT RAISE(ABORT, 'no'); END"
            )
        elif connection.dialect.name == "postgresql":
            connection.exec_driver_sql(
                "ALTER TABLE procore_webhook_event"
                " ADD CONSTRAINT no_monsters CHECK (reason <> 'monster')"
            )
        else:
            connection.exec_driver_sql(
                "CREATE TRIGGER no_monsters BEFORE INSERT ON procore_webhook_event"
                " FOR EACH ROW BEGIN IF NEW.reason = 'monster' THEN"
                " SIGNAL SQLSTATE '45000'; END IF; END"
            )
    good = [new_event(endpoint) for _ in range(5)]
    bad = endpoint.read(to_bytes(payload("RFIs.monster")))
    recorded = record_together(inbox, [*good[:2], bad, *good[2:]])
    refused = recorded.pop(2)
    assert isinstance(refused, InboxUnavailable)
    assert all(each.fresh for each in recorded)
    assert browse.find(inbox, bad.id) is None
    assert all(browse.find(inbox, each.id) for each in good)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_connection_that_has_gone_silent_holds_up_one_delivery_alone(
    make_app: Callable[..., Flask],
    webhooks: ProcoreWebhooks,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grouping, "LONGEST_WAIT", 0.5)
    monkeypatch.setattr(grouping, "LATE", 30.0)
    with relay_to(database_url) as relay:
        app = make_app(PROCORE_WEBHOOK_DATABASE_URI=relay.url)
        app.register_blueprint(webhooks)
        (endpoint,) = endpoints(app).values()
        inbox = endpoint.inbox
        inbox.record(new_event(endpoint))
        relay.forget()
        with ThreadPoolExecutor(4) as pool:
            calls = [pool.submit(inbox.record, new_event(endpoint)) for _ in range(4)]
            others = list(islice(as_completed(calls, 60), 3))
            (hanging,) = [each for each in calls if each not in others]
            assert not hanging.done()
            relay.cut()
            assert isinstance(outcome(hanging.result), InboxUnavailable)
        assert [each.result().fresh for each in others] == [True] * 3
        inbox.database.engine.dispose()


@pytest.mark.server
def test_when_the_database_is_away_all_are_told_so(
    make_app: Callable[..., Flask], webhooks: ProcoreWebhooks
) -> None:
    nowhere = "postgresql+psycopg://nobody@127.0.0.1:1/nothing"
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI=nowhere)
    app.register_blueprint(webhooks)
    (endpoint,) = endpoints(app).values()
    events = [new_event(endpoint) for _ in range(4)]
    recorded = record_together(endpoint.inbox, events)
    assert [type(each) for each in recorded] == [InboxUnavailable] * 4
