"""``reconcile`` after an outage: each lost event comes back once."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from reconcile_support import integrated
from reconcile_support import Integration
from reconcile_support import MakeApp
from reconcile_support import NOW
from support.counts import in_memory
from support.sites import at_once

from flask_procore_webhooks.dispatching.reconciling import reconcile_endpoint
from flask_procore_webhooks.hooks.report import Options


@pytest.fixture
def mine(make_app: MakeApp, database_url: str) -> Iterator[Integration]:
    """An integration on each kind of database."""
    with integrated(make_app, database_url) as mine:
        yield mine


def test_every_discarded_event_comes_back_and_runs_once(mine: Integration) -> None:
    mine.hook()
    before = mine.deliver(3)
    lost = mine.lose(5)
    after = mine.deliver(2)
    mine.work()
    assert mine.called == sorted(before + after)
    report = mine.report(code=2)
    numbers = ("seen", "delivered", "found", "missing", "inserted", "skipped")
    assert [report[name] for name in numbers] == [10, 5, 5, 5, 5, 0]
    mine.work()
    assert mine.called == sorted(before + lost + after)


def test_second_run_finds_nothing_missing(mine: Integration) -> None:
    mine.hook()
    mine.deliver(2)
    lost = mine.lose(3)
    mine.report(code=2)
    mine.work()
    report = mine.report(code=0)
    assert (report["missing"], report["inserted"]) == (0, 0)
    mine.work()
    assert set(lost) <= set(mine.called)
    assert len(mine.called) == 5


def test_runs_at_the_same_time_insert_each_event_once(mine: Integration) -> None:
    mine.hook()
    mine.deliver(2)
    lost = mine.lose(30)
    mine.rows()

    # The test runner of commands is not for threads.
    def run(number: int) -> list[str | None]:
        with mine.app.app_context():
            reports = reconcile_endpoint(mine.endpoint, Options(), f"run {number}")
            return [report.error for report in reports]

    assert at_once(run, range(3)) == [[None]] * 3
    mine.work()
    assert len(mine.called) == len(set(mine.called)) == 32
    assert set(lost) <= set(mine.called)
    assert sum(entry["actual"] for entry in mine.journal()) == 30


def test_delivery_that_comes_after_all_is_a_repeat(mine: Integration) -> None:
    mine.hook()
    (lost,) = mine.lose()
    mine.report(code=2)
    mine.work()
    mine.fake.redeliver(lost)
    mine.fake.deliver()
    (row,) = mine.rows()
    assert (row["repeats"], row["conflicts"]) == (1, 0)
    counted = in_memory(mine.store)
    assert counted.get("duplicate") == 1
    assert "conflict" not in counted
    mine.work()
    assert mine.called == [lost]


def test_event_has_its_own_time_and_says_where_it_comes_from(
    mine: Integration,
) -> None:
    mine.hook()
    mine.lose(resource_id="7", user_id="55")
    mine.report(code=2)
    mine.work()
    (event,) = mine.calls
    assert event.origin == "reconcile"
    assert event.timestamp == NOW
    assert (event.resource_id, event.user_id) == ("7", "55")
    assert (event.company_id, event.project_id) == ("1", "2")
    (row,) = mine.rows()
    assert row["received_at"] == (NOW + timedelta(hours=13)).replace(tzinfo=None)


def test_delivered_events_are_not_touched(mine: Integration) -> None:
    mine.hook()
    mine.deliver(3)
    before = mine.rows()
    mine.lose()
    mine.report(code=2)
    assert [row for row in mine.rows() if row["origin"] != "reconcile"] == before


def test_inserted_events_run_in_the_command_in_the_mode_inline(
    make_app: MakeApp, database_url: str
) -> None:
    with integrated(make_app, database_url, DISPATCH="inline") as mine:
        mine.hook()
        there = mine.deliver(2)
        lost = mine.lose(3)
        assert mine.called == there
        mine.report(code=2)
        assert mine.called == sorted(there + lost)
        assert {row["status"] for row in mine.rows()} == {"done"}


@pytest.mark.parametrize("mode", ["worker", "background"])
def test_inserted_events_wait_for_the_processes_of_other_modes(
    make_app: MakeApp, database_url: str, mode: str
) -> None:
    with integrated(make_app, database_url, DISPATCH=mode) as mine:
        mine.hook()
        lost = mine.lose(3)
        mine.report(code=2)
        assert mine.called == []
        assert mine.work() == 3
        assert mine.called == lost


def test_outage_that_goes_on_inserts_what_is_discarded_so_far(
    mine: Integration,
) -> None:
    mine.hook()
    lost = mine.lose(2)
    mine.is_down = True
    mine.emit(2)
    mine.fake.advance(minutes=1)
    report = mine.report(code=2)
    assert (report["inserted"], report["skipped"]) == (2, 2)
    assert mine.recorded == lost
    mine.is_down = False
    mine.fake.advance(hours=2)
    assert len(mine.recorded) == 4
    mine.report(code=0)
