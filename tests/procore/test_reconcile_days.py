"""``reconcile``: Procore's days, whatever this host's clock says, and ``--since``."""

from __future__ import annotations

from datetime import datetime
from datetime import timedelta
from datetime import timezone

import pytest
from reconcile_support import integrated
from reconcile_support import Integration
from reconcile_support import MakeApp

from flask_procore_webhooks.hooks.cursor import CURSOR
from flask_procore_webhooks.operations.seen import put_state

#: Together they take longer than the others.
pytestmark = pytest.mark.slow


def lose_days_ago(mine: Integration, days: int) -> list[str]:
    """An event that Procore discards, and so many days after it."""
    lost = mine.lose()
    mine.fake.advance(days=days)
    return lost


# Procore's clock


@pytest.mark.parametrize("days", [-40, -3, -1, 0, 1, 3, 40])
@pytest.mark.parametrize("number", [2, 120])
def test_lost_events_come_back_whatever_the_clock_of_this_host_says(
    make_app: MakeApp, url: str, days: int, number: int
) -> None:
    now = datetime.now(timezone.utc) + timedelta(days=days)
    with integrated(make_app, url, now=now) as mine:
        mine.store.now = mine.store.corrected_now
        mine.hook()
        there = mine.deliver(2)
        lost = mine.lose(number)
        report = mine.report(code=2)
        assert (report["found"], report["inserted"]) == (2, number)
        assert (report["from"], report["to"]) == (f"{mine.day(-27)}", f"{mine.day(1)}")
        assert mine.recorded == sorted(there + lost)
        mine.report(code=0)


@pytest.mark.parametrize("days", [-3, 3])
def test_daily_runs_find_each_outage_whatever_the_clock_of_this_host_says(
    make_app: MakeApp, url: str, days: int
) -> None:
    now = datetime.now(timezone.utc) + timedelta(days=days)
    with integrated(make_app, url, now=now) as mine:
        mine.store.now = mine.store.corrected_now
        mine.hook()
        lost: list[str] = []
        for _ in range(3):
            lost += mine.lose(2)
            mine.fake.advance(hours=11)
            assert mine.report(code=2)["inserted"] == 2
        assert mine.report(code=0)["from"] == f"{mine.day(-3)}"
        assert mine.recorded == sorted(lost)


def test_clock_of_procore_that_jumps_ahead_leaves_out_no_listed_day(
    make_app: MakeApp, url: str
) -> None:
    with integrated(make_app, url, now=datetime.now(timezone.utc)) as mine:
        mine.store.now = mine.store.corrected_now
        mine.hook()
        mine.report(code=0)
        mine.fake.advance(days=3)
        lost = mine.lose(2)
        assert mine.report(code=2)["inserted"] == 2
        assert mine.recorded == lost


def test_noted_day_in_the_future_is_not_believed(mine: Integration) -> None:
    hook = mine.hook()
    lost = lose_days_ago(mine, 4)
    note = {"day": f"{mine.day(30)}", "begins": "0001-01-01"}
    put_state(mine.store, f"{CURSOR}{hook}", note)
    report = mine.report(code=2)
    assert report["from"] == f"{mine.day(-27)}"
    assert mine.recorded == lost


def test_scope_that_gives_no_answer_has_the_days_of_this_host(
    mine: Integration,
) -> None:
    mine.hook()
    mine.fake.answer_next("reset", path="/webhooks/hooks")
    mine.store.now = lambda: datetime(2031, 1, 2, tzinfo=timezone.utc)
    mine.fake.answer_next("reset", method="POST", path="/oauth/token")
    report = mine.report(code=1)
    assert "no answer" in report["error"]
    assert report["from"] == "2031-01-02"


# The first day that the operator names


@pytest.mark.parametrize(
    ("since", "first"),
    [
        *[("-3d", -3), ("-8h", 0), ("-10h", -1), ("-72h", -3), ("-1w", -7)],
        *[("-33000", -1), ("-0", 0), ("-4w", -28), ("-28d", -28)],
    ],
)
def test_since_names_the_day_of_a_time_ago(
    mine: Integration, since: str, first: int
) -> None:
    mine.hook()  # at nine o'clock
    assert mine.report("--since", since, code=0)["from"] == f"{mine.day(first)}"


def test_time_ago_is_counted_on_the_clock_of_procore(mine: Integration) -> None:
    mine.hook()
    lose_days_ago(mine, 5)
    lost = lose_days_ago(mine, 2)
    mine.store.now = lambda: datetime(2031, 1, 2, tzinfo=timezone.utc)
    mine.report("--since", "-3d", code=2)
    assert mine.recorded == lost


@pytest.mark.parametrize("days", [-28, -27, -1, 0])
def test_since_may_name_each_listed_day(mine: Integration, days: int) -> None:
    mine.hook()
    report = mine.report("--since", mine.day(days), code=0)
    assert (report["from"], report["to"]) == (f"{mine.day(days)}", f"{mine.day(1)}")


def test_since_of_28_days_ago_finds_what_procore_still_lists(
    mine: Integration,
) -> None:
    mine.hook()
    mine.is_down = True
    lost = mine.emit()
    mine.fake.advance(hours=13)
    mine.fake.advance(days=27, hours=10)
    assert mine.report("--since", "-4w", code=2)["from"] == f"{mine.day(-28)}"
    assert mine.recorded == lost


@pytest.mark.parametrize("days", [-29, -300, -9999])
def test_since_before_the_listed_days_is_refused(mine: Integration, days: int) -> None:
    mine.hook()
    mine.lose()
    result = mine.reconcile("--since", mine.day(days))
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: Procore lists deliveries of the last 28 days:"
        f" --since {mine.day(days)} is earlier.\n"
    )
    assert mine.recorded == []
    assert mine.list_requests() == 0


@pytest.mark.parametrize("since", ["-29d", "-900000h"])
def test_time_ago_before_the_listed_days_is_refused(
    mine: Integration, since: str
) -> None:
    mine.hook()
    result = mine.reconcile("--since", since)
    assert result.exit_code == 1
    assert "Procore lists deliveries of the last 28 days: --since " in result.stderr


@pytest.mark.parametrize("days", [1, 300])
def test_since_in_the_future_is_refused(mine: Integration, days: int) -> None:
    mine.hook()
    mine.lose()
    result = mine.reconcile("--since", mine.day(days))
    assert result.exit_code == 1
    assert result.stderr == (
        f"Error: --since {mine.day(days)} is in the future:"
        " Procore's time is 2026-11-26 22:00 UTC.\n"
    )
    assert mine.recorded == []


def test_time_in_the_future_is_refused(mine: Integration) -> None:
    mine.hook()
    result = mine.reconcile("--since", "+2d")
    assert result.exit_code == 1
    assert f"--since {mine.day(2)} is in the future" in result.stderr


def test_since_that_is_refused_changes_nothing_for_the_next_run(
    mine: Integration,
) -> None:
    mine.hook()
    lost = lose_days_ago(mine, 4)
    mine.reconcile("--since", mine.day(300))
    assert mine.report(code=2)["inserted"] == 1
    assert mine.recorded == lost
