"""``reconcile``: whether the queries of single days have what all days have."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from datetime import timezone
from pathlib import Path

import pytest
from flask import request
from flask import Response
from reconcile_support import DELIVERIES
from reconcile_support import integrated
from reconcile_support import Integration
from reconcile_support import MakeApp

from flask_procore_webhooks.hooks.cursor import CURSOR
from flask_procore_webhooks.operations.seen import states

MIDNIGHT = datetime(2026, 11, 26, tzinfo=timezone.utc)


@pytest.fixture
def mine(make_app: MakeApp, tmp_path: Path) -> Iterator[Integration]:
    """An integration on a SQLite file, at midnight."""
    url = f"sqlite:///{tmp_path / 'test.db'}"
    with integrated(make_app, url, now=MIDNIGHT) as mine:
        yield mine


def end_days_where_they_begin(mine: Integration) -> None:
    """Have ``filter[end]`` name the first moment of the day."""

    @mine.fake.after_request
    def ended(answer: Response) -> Response:
        if request.path.endswith(DELIVERIES) and answer.status_code == 200:
            end = f"{request.args['filter[end]']}T00:00:00"
            rows = json.loads(answer.get_data())["data"]
            rows = [row for row in rows if row["payload"]["timestamp"][:19] <= end]
            answer.set_data(json.dumps({"data": rows}))
        return answer


def live(mine: Integration, days: int, at_midnight: int, number: int) -> list[str]:
    """Days with events at midnight and later, and losses in between.

    :return: the ids of the lost events, sorted.
    """
    hook, lost = mine.hook(), list[str]()
    for _ in range(days):
        mine.deliver(at_midnight)
        mine.fake.advance(hours=9)
        mine.deliver(number)
        mine.fake.advance(minutes=5)
        mine.is_down = True
        lost += mine.emit(2)
        mine.fake.deliver()
        mine.fake.discard(hook)
        mine.is_down = False
        mine.fake.advance(hours=14, minutes=55)
    return sorted(lost)


@pytest.mark.parametrize(("days", "at_midnight"), [(1, 1), (4, 1), (4, 8), (4, 0)])
def test_every_lost_event_comes_back_where_days_end_at_midnight(
    mine: Integration, days: int, at_midnight: int
) -> None:
    end_days_where_they_begin(mine)
    lost = live(mine, days, at_midnight, 120)
    report = mine.report(code=2)
    assert report["seen"] == days * (at_midnight + 120 + 2)
    assert report["delivered"] == report["found"] == days * (at_midnight + 120)
    assert (report["missing"], report["inserted"]) == (2 * days,) * 2
    assert report["skipped"] == 0
    assert mine.came_back == lost
    mine.report(code=0)


def test_interrupted_run_notes_no_day_of_which_it_has_read_a_moment(
    mine: Integration,
) -> None:
    end_days_where_they_begin(mine)
    lost = live(mine, 8, 8, 40)
    path = f"{DELIVERIES}\\?.*start.={mine.day()}"
    mine.fake.answer_next("500", path=path)
    mine.report(code=1)
    assert states(mine.store, CURSOR) == []
    mine.report(code=2)
    assert mine.came_back == lost


@pytest.mark.parametrize("leaves", [0, 1, 5])
def test_events_that_no_query_of_a_day_has_stop_the_run(
    mine: Integration, leaves: int
) -> None:
    """The query of all days shows them."""

    @mine.fake.after_request
    def shortened(answer: Response) -> Response:
        if request.path.endswith(DELIVERIES) and answer.status_code == 200:
            first, last = (request.args[f"filter[{end}]"] for end in ("start", "end"))
            if first > f"{mine.day(-9)}" or last < f"{mine.day()}":
                rows = json.loads(answer.get_data())["data"]
                answer.set_data(json.dumps({"data": rows[:leaves]}))
        return answer

    lost = live(mine, 2, 0, 120)
    report = mine.report(code=1)
    assert report["error"] == (
        f"Procore lists deliveries from {mine.day(-27)} to {mine.day(1)} that it lists"
        " for none of these days"
    )
    mine.fake.after_request_funcs.clear()
    assert mine.report()["from"] == f"{mine.day(-27)}"
    assert mine.came_back == lost


def test_days_are_read_once_where_they_are_whole(mine: Integration) -> None:
    live(mine, 3, 8, 120)
    mine.report(code=2)
    days = 29
    pages = 3  # of each day with 130 events, one more
    assert mine.list_requests() <= 1 + days + pages
