"""``reconcile`` against each behaviour of Procore that nothing documents."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from reconcile_support import integrated
from reconcile_support import Integration
from reconcile_support import MakeApp

#: Together they take longer than the others.
pytestmark = pytest.mark.slow

#: One difference from the default, and the worst of all together. The others tell much
#: the same, and run with ``make soak``.
CHOSEN = {
    (True, True, 0, "event"),
    (False, True, 0, "event"),
    (True, False, 0, "event"),
    (True, True, -12, "event"),
    (True, True, 12, "event"),
    (True, True, 0, "delivery"),
    (False, False, -12, "delivery"),
    (False, False, 12, "event"),
}
NAMES = "filter_start_inclusive", "filter_end_inclusive", "filter_zone", "filter_by"


def filters() -> Iterator[Any]:
    """How the filters of days may work."""
    for each in product(
        (True, False), (True, False), (-12, 0, 12), ("event", "delivery")
    ):
        marks = [] if each in CHOSEN else [pytest.mark.soak]
        name = "-".join(map(str, each))
        yield pytest.param(dict(zip(NAMES, each, strict=True)), marks=marks, id=name)


FILTERS = [*filters()]


def switch(mine: Integration, **switches: Any) -> None:
    for name, value in switches.items():
        setattr(mine.fake.switches, name, value)


def lose_on_days(mine: Integration, days: int, number: int) -> list[str]:
    """Outages on each of some days; return the ids of the lost events, sorted."""
    lost: list[str] = []
    for _ in range(days):
        lost += mine.lose(number)
        mine.deliver(1)
        mine.fake.advance(hours=11)
    return sorted(lost)


@pytest.mark.parametrize("switches", FILTERS)
@pytest.mark.parametrize("number", [3, 30])
def test_every_lost_event_comes_back_whatever_the_filters_mean(
    mine: Integration, switches: dict[str, Any], number: int
) -> None:
    switch(mine, **switches)
    mine.hook()
    lost = lose_on_days(mine, 5, number)
    report = mine.report(code=2)
    assert report["inserted"] == len(lost)
    assert report["error"] is None
    mine.work()
    assert set(lost) <= set(mine.called)
    assert len(mine.called) == len(lost) + 5
    mine.report(code=0)


@pytest.mark.parametrize("switches", FILTERS)
def test_daily_runs_get_back_every_lost_event_whatever_the_filters_mean(
    mine: Integration, switches: dict[str, Any]
) -> None:
    switch(mine, **switches, most_per_page=10)
    hook, lost = mine.hook(), list[str]()
    for _ in range(4):
        mine.deliver(20)
        lost += mine.lose(5)
        mine.fake.advance(hours=11)
        assert mine.report()["error"] is None
    mine.fake.discard(hook)
    mine.report()
    assert set(lost) <= set(mine.recorded)
    mine.report(code=0)


@pytest.mark.parametrize("switches", FILTERS)
def test_since_gets_back_the_whole_day_whatever_the_filters_mean(
    mine: Integration, switches: dict[str, Any]
) -> None:
    mine.fake.advance(hours=15, minutes=1)
    switch(mine, **switches)
    mine.hook()
    early = mine.lose(120)
    mine.fake.advance(hours=9)
    late = mine.lose(2)
    mine.fake.advance(days=3)
    report = mine.report("--since", mine.day(-5), code=2)
    assert report["inserted"] == len(early) + len(late)
    assert mine.recorded == sorted(early + late)


def test_outage_without_a_delivered_event_comes_back_with_exclusive_days(
    mine: Integration,
) -> None:
    switch(mine, filter_start_inclusive=False, filter_end_inclusive=False)
    mine.hook()
    lost = mine.lose(150)
    assert mine.report(code=2)["inserted"] == 150
    assert mine.recorded == lost


def test_width_of_days_is_found_once_for_all_hooks(
    make_app: MakeApp, tmp_path: Path
) -> None:
    scopes = [{"company": "1", "project": each} for each in ("2", "3")]
    url = f"sqlite:///{tmp_path / 'test.db'}"
    with integrated(make_app, url, SCOPES=scopes) as mine:
        switch(mine, filter_end_inclusive=False)
        first, second = mine.hook(), mine.hook(project="3")
        mine.is_down = True
        mine.emit(120)
        mine.emit(120, project="3")
        mine.fake.advance(hours=13)
        assert [each["inserted"] for each in mine.reports(code=2)] == [120, 120]
        asked = [path.split("/")[-2] for _, path, _ in mine.fake.requests[3:]]
        assert asked.count(first) > asked.count(second) > 0


@pytest.mark.parametrize("discards_same_row", [True, False])
@pytest.mark.parametrize("flush_status", ["discarded", "failed"])
@pytest.mark.parametrize("order", ["newest", "oldest"])
@pytest.mark.parametrize("number", [3, 120])
def test_every_lost_event_comes_back_whatever_becomes_of_its_row(
    mine: Integration,
    discards_same_row: bool,
    flush_status: str,
    order: str,
    number: int,
) -> None:
    switch(
        mine,
        discards_same_row=discards_same_row,
        flush_status=flush_status,
        order=order,
    )
    mine.hook()
    mine.deliver(5)
    lost = mine.lose(number)
    report = mine.report(code=2)
    assert (report["missing"], report["inserted"]) == (number, number)
    assert set(lost) <= set(mine.recorded)
    mine.report(code=0)


def test_row_that_is_replaced_between_two_passes_counts_once(
    mine: Integration,
) -> None:
    switch(mine, discards_same_row=False)
    hook = mine.hook()
    mine.deliver(100)
    mine.is_down = True
    lost = mine.emit(4)
    mine.fake.deliver()
    # The second pass of the day that is going on.
    mine.on_request(30, lambda: mine.fake.discard(hook))
    report = mine.report(code=2)
    assert report["inserted"] == report["missing"] == 4
    assert set(lost) <= set(mine.recorded)


@pytest.mark.parametrize("days", [1, 7, 60])
def test_bound_of_the_list_is_procores(mine: Integration, days: int) -> None:
    switch(mine, listed_days=days)
    mine.hook()
    old = mine.lose(2)
    mine.fake.advance(days=5)
    new = mine.lose(3)
    mine.report(code=2)
    assert mine.recorded == sorted(new if days < 6 else old + new)


def test_hook_that_has_sent_nothing_may_be_answered_404(mine: Integration) -> None:
    switch(mine, fresh_deliveries=404)
    mine.hook()
    report = mine.report(code=0)
    assert (report["seen"], report["error"]) == (0, None)
    assert report["notes"] == [
        "Procore answers 404: the hook has sent nothing yet.",
    ]
    lost = mine.lose(2)
    mine.report(code=2)
    assert mine.recorded == lost


@pytest.mark.parametrize("error_body", ["object", "errors", "text"])
def test_errors_of_every_shape_are_named(mine: Integration, error_body: str) -> None:
    switch(mine, error_body=error_body)
    mine.hook()
    mine.fake.answer_next("500", path="/deliveries")
    error = mine.report(code=1)["error"]
    assert error.startswith("GET /rest/v2.0/companies/1/projects/2/webhooks/hooks/")
    assert "/deliveries: 500" in error


@pytest.mark.parametrize("namespace_required", [True, False])
@pytest.mark.parametrize("company_project", ["null", "absent"])
def test_hook_of_a_company_is_reconciled(
    make_app: MakeApp, tmp_path: Path, namespace_required: bool, company_project: str
) -> None:
    url = f"sqlite:///{tmp_path / 'test.db'}"
    with integrated(make_app, url, SCOPES=[{"company": "1"}]) as mine:
        switch(
            mine,
            namespace_required=namespace_required,
            company_project=company_project,
        )
        mine.hook(company="1", triggers=[("Company Users", "update")])
        mine.is_down = True
        mine.fake.emit("Company Users", "update", company="1")
        mine.fake.advance(hours=13)
        report = mine.report(code=2)
        assert (report["project"], report["inserted"]) == (None, 1)
