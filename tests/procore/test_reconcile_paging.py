"""``reconcile``: pages, days, interruptions, and the note of the last day."""

from __future__ import annotations

import pytest
from reconcile_support import DELIVERIES
from reconcile_support import Integration

#: Together they take longer than the others.
pytestmark = pytest.mark.slow

#: A request of a first run with pages of ten: of the days together, of each day before,
#: and of a later page of the day that is going on.
IN_TODAY = 2 + 27 + 5


def fill(mine: Integration, days: int, number: int) -> list[str]:
    """Days with so many events each, of which an outage takes one in five.

    :return: the ids of the lost events, sorted.
    """
    hook, lost = mine.hook(), list[str]()
    for _ in range(days):
        mine.deliver(number - number // 5)
        mine.fake.advance(minutes=5)
        mine.is_down = True
        lost += mine.emit(number // 5)
        mine.fake.deliver()
        mine.fake.discard(hook)
        mine.is_down = False
        mine.fake.advance(hours=23, minutes=55)
    return sorted(lost)


@pytest.mark.parametrize("order", ["newest", "oldest"])
@pytest.mark.parametrize("most_per_page", [7, 100])
@pytest.mark.parametrize("sends_link", [True, False])
@pytest.mark.parametrize("sends_total", [True, False])
def test_every_lost_event_of_many_pages_comes_back(
    mine: Integration,
    order: str,
    most_per_page: int,
    sends_link: bool,
    sends_total: bool,
) -> None:
    lost = fill(mine, 4, 40)
    switches = mine.fake.switches
    switches.order, switches.most_per_page = order, most_per_page
    switches.sends_link, switches.sends_total = sends_link, sends_total
    report = mine.report(code=2)
    assert (report["seen"], report["missing"], report["inserted"]) == (160, 32, 32)
    assert mine.came_back == lost


@pytest.mark.parametrize("number", [99, 100, 101])
def test_numbers_around_one_page_are_read_whole(mine: Integration, number: int) -> None:
    mine.hook()
    lost = mine.lose(number)
    assert mine.report(code=2)["inserted"] == number
    assert mine.recorded == lost


def test_few_events_take_one_request(mine: Integration) -> None:
    mine.hook()
    mine.deliver(50)
    mine.report(code=0)
    assert mine.list_requests() == 1


def test_second_run_asks_for_fewer_days(mine: Integration) -> None:
    fill(mine, 4, 40)
    mine.report(code=2)
    first = mine.list_requests()
    mine.deliver(120)
    report = mine.report(code=0)
    assert report["from"] == f"{mine.day(-3)}"
    assert mine.list_requests() - first < first / 2


def test_first_run_asks_for_the_days_that_procore_lists(mine: Integration) -> None:
    mine.hook()
    report = mine.report(code=0)
    assert (report["from"], report["to"]) == (f"{mine.day(-27)}", f"{mine.day(1)}")


def test_old_run_is_followed_by_one_of_the_listed_days(mine: Integration) -> None:
    mine.hook()
    mine.report(code=0)
    mine.fake.advance(days=60)
    assert mine.report(code=0)["from"] == f"{mine.day(-27)}"


def test_events_that_procore_lists_no_longer_are_gone(mine: Integration) -> None:
    mine.hook()
    mine.lose(2)
    mine.fake.advance(days=20)
    late = mine.lose(1)
    mine.fake.advance(days=9)
    assert mine.report(code=2)["inserted"] == 1
    assert mine.recorded == late


def test_since_names_the_first_day(mine: Integration) -> None:
    mine.hook()
    mine.lose()
    mine.fake.advance(days=4)
    second = mine.lose()
    report = mine.report("--since", mine.day(-1), code=2)
    assert (report["from"], report["inserted"]) == (f"{mine.day(-1)}", 1)
    assert mine.recorded == second


def test_since_goes_back_before_the_last_run(mine: Integration) -> None:
    hook = mine.hook()
    lost = mine.lose()
    mine.fake.discard(hook)
    mine.fake.advance(days=6)
    mine.report("--since", mine.day(), code=0)
    assert mine.report("--since", mine.day(-10), code=2)["inserted"] == 1
    assert mine.recorded == lost


def test_since_leaves_no_days_out_of_the_next_run(mine: Integration) -> None:
    mine.hook()
    mine.report(code=0)
    mine.fake.advance(days=5)
    lost = mine.lose()
    mine.fake.advance(days=5)
    mine.report("--since", mine.day(), code=0)
    assert mine.report(code=2)["inserted"] == 1
    assert mine.recorded == lost


def test_earlier_since_moves_the_first_day_of_later_runs(mine: Integration) -> None:
    mine.hook()
    mine.fake.advance(hours=13)
    mine.is_down = True
    mine.emit()
    mine.fake.advance(hours=3)
    mine.report("--since", mine.day(), code=0)
    # The event of the day before is still to come.
    assert mine.report("--since", mine.day(-1), code=0)["skipped"] == 1
    mine.fake.advance(hours=12)
    assert mine.report(code=2)["inserted"] == 1


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("500", ": 500"),
        ("503", ": 503, Procore is unavailable for 3000 s"),
        ("429", ": the hourly rate limit is used up for 3000 s"),
        ("reset", ": no answer"),
        ("truncated", ": the answer is not valid JSON"),
        ("html", ": the answer is HTML, not JSON"),
        ("null", ": the answer holds null where a list belongs"),
        ("null items", ": the list holds null where an object belongs"),
        ("repeat", "repeats the one before"),
    ],
)
def test_interrupted_run_says_where_and_the_next_one_completes(
    mine: Integration, kind: str, text: str
) -> None:
    lost = fill(mine, 6, 40)
    mine.fake.switches.most_per_page = 10
    path = f"{DELIVERIES}\\?.*&page=2&.*start.={mine.day(-2)}"
    mine.fake.answer_next(kind, path=path, seconds=3000)
    report = mine.report(code=1)
    hook = report["hook"]
    where = f"/rest/v2.0/companies/1/projects/2/webhooks/hooks/{hook}/deliveries"
    assert report["error"].startswith(f"GET {where}: ")
    assert text in report["error"]
    assert 0 < report["inserted"] < len(lost)
    assert report["inserted"] == len(mine.came_back)
    (entry,) = mine.journal()
    assert entry["actual"] == report["inserted"]
    mine.report(code=2)
    assert mine.came_back == lost
    mine.report(code=0)


def test_run_after_an_interruption_goes_on_at_the_last_whole_day(
    mine: Integration,
) -> None:
    fill(mine, 8, 40)
    mine.fake.answer_next("500", path=f"{DELIVERIES}\\?.*start.={mine.day(-2)}")
    mine.report(code=1)
    assert mine.report()["from"] == f"{mine.day(-5)}"


@pytest.mark.parametrize(("kind", "seconds"), [("429", 1), ("503", 1)])
def test_short_wait_in_the_middle_is_waited_for(
    mine: Integration, kind: str, seconds: int
) -> None:
    lost = fill(mine, 3, 40)
    mine.fake.answer_next(kind, path=DELIVERIES, skip=3, seconds=seconds)
    mine.report(code=2)
    assert mine.came_back == lost


def test_rows_that_change_their_status_between_pages_are_not_missed(
    mine: Integration,
) -> None:
    hook = mine.hook()
    mine.fake.switches.most_per_page = 10
    mine.deliver(100)
    mine.is_down = True
    lost = mine.emit(25)
    mine.fake.deliver()
    mine.on_request(IN_TODAY, lambda: mine.fake.discard(hook))
    assert mine.report(code=2)["inserted"] == 25
    assert mine.came_back == lost


def test_events_that_come_between_pages_are_not_missed(mine: Integration) -> None:
    hook = mine.hook()
    mine.fake.switches.most_per_page = 10
    mine.deliver(100)
    more: list[str] = []

    def lose_more() -> None:
        mine.is_down = True
        more.extend(mine.emit(15))
        mine.fake.deliver()
        mine.fake.discard(hook)
        mine.is_down = False

    mine.on_request(IN_TODAY, lose_more)
    assert mine.report(code=2)["inserted"] == 15
    assert mine.came_back == sorted(more)
