"""``reconcile``: rows without ids, unknown statuses, other projects, wrong times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from reconcile_support import integrated
from reconcile_support import Integration
from reconcile_support import MakeApp

#: Together they take longer than the others.
pytestmark = pytest.mark.slow

Row = dict[str, Any]

#: Ids of rows that identify nothing, and payloads that cannot be read.
NO_IDS: list[Row] = [
    {"id": None, "payload": None},
    {"id": 0, "payload": ""},
    {"id": True, "payload": {}},
    {"id": 1.5, "payload": None},
    {"id": "", "payload": "not JSON"},
]
STATUSES = [("expired", "expired"), ("Dropped", "dropped"), (None, "none"), (3, "3")]


def of_lost(**fields: Any) -> Callable[[Row], None]:
    """A change of the rows that are discarded."""
    return lambda row: row.update(fields) if row["status"] == "discarded" else None


def in_payload(**fields: Any) -> Callable[[Row], None]:
    """A change of the payload of the rows that are discarded."""

    def change(row: Row) -> None:
        if row["status"] == "discarded":
            row["payload"].update(fields)

    return change


# Rows without ids


@pytest.mark.parametrize("number", [3, 120])
@pytest.mark.parametrize("fields", NO_IDS, ids=str)
def test_lost_row_without_an_id_and_a_payload_is_missing_and_unreadable(
    mine: Integration, fields: Row, number: int
) -> None:
    mine.rewrite(of_lost(**fields))
    mine.hook()
    there = mine.deliver(2)
    mine.lose(number)
    report = mine.report(code=2)
    assert (report["seen"], report["missing"]) == (2 + number, number)
    assert (report["unreadable"], report["inserted"]) == (number, 0)
    assert report["notes"] == [f"{number} missing events have no readable payload."]
    assert mine.recorded == there


def test_lost_rows_without_an_id_are_counted_on_each_day(mine: Integration) -> None:
    mine.rewrite(of_lost(id=None, payload=None))
    mine.hook()
    mine.deliver(120)
    mine.lose(3)
    mine.fake.advance(days=1)
    mine.lose(4)
    assert mine.report(code=2)["unreadable"] == 7


def test_different_events_of_one_row_id_are_inserted(mine: Integration) -> None:
    mine.rewrite(of_lost(id="one for all"))
    mine.hook()
    there = mine.deliver(2)
    lost = mine.lose(3)
    report = mine.report(code=2)
    assert (report["seen"], report["missing"], report["inserted"]) == (5, 3, 3)
    assert mine.recorded == sorted(there + lost)


# Statuses


@pytest.mark.parametrize(("status", "shown"), STATUSES)
def test_unknown_status_is_skipped_and_noted(
    mine: Integration, status: Any, shown: str
) -> None:
    mine.rewrite(of_lost(status=status))
    mine.hook()
    there = mine.deliver(2)
    mine.lose(3)
    report = mine.report(code=0)
    assert (report["skipped"], report["coming"], report["missing"]) == (3, 0, 0)
    assert report["notes"] == [
        "3 events have a status that is not documented, and are not inserted:"
        f" {shown} (3)."
    ]
    assert mine.recorded == there


def test_unknown_statuses_are_named_with_their_numbers(mine: Integration) -> None:
    names = iter(["expired", "dropped", "expired"])
    mine.rewrite(lambda row: row.update(status=next(names)))
    mine.hook()
    mine.lose(3)
    (note,) = mine.report(code=0)["notes"]
    assert note.endswith(": expired (2), dropped (1).")


def test_long_unknown_status_is_cut(mine: Integration) -> None:
    mine.rewrite(of_lost(status="x" * 5000))
    mine.hook()
    mine.lose()
    (note,) = mine.report(code=0)["notes"]
    assert len(note) < 150


@pytest.mark.parametrize("number", [2, 120])
@pytest.mark.parametrize("timestamp", ["as sent", None, "2099-01-01T00:00:00Z"])
def test_event_of_an_unknown_status_is_found_when_its_status_becomes_known(
    mine: Integration, number: int, timestamp: Any
) -> None:
    renamed = {"status": "dropped"}
    mine.rewrite(lambda row: row["status"] == "discarded" and row.update(renamed))
    if timestamp != "as sent":
        mine.rewrite(lambda row: row["payload"].update(timestamp=timestamp))
    mine.hook()
    lost = mine.lose(number)
    for _ in range(7):
        mine.fake.advance(days=1)
        assert mine.report(code=0)["skipped"] == number
    renamed.update(status="discarded")
    assert mine.report(code=2)["inserted"] == number
    assert mine.recorded == lost


def test_recorded_event_of_an_unknown_status_holds_up_nothing(
    mine: Integration,
) -> None:
    mine.rewrite(lambda row: row.update(status="archived"))
    mine.hook()
    mine.deliver(2)
    mine.fake.advance(days=9)
    assert mine.report(code=0)["notes"] == []
    mine.fake.advance(days=1)
    assert mine.report(code=0)["from"] == f"{mine.day(-4)}"


# Other companies and projects


@pytest.mark.parametrize(
    "fields",
    [{"company_id": "999"}, {"project_id": "777"}, {"project_id": 777}],
    ids=str,
)
@pytest.mark.parametrize("options", [[], ["--all"]])
def test_event_of_another_company_or_project_is_not_inserted(
    mine: Integration, fields: Row, options: list[str]
) -> None:
    mine.rewrite(in_payload(**fields))
    mine.hook()
    there = mine.deliver(2)
    mine.lose(3)
    report = mine.report(*options, code=0)
    assert (report["seen"], report["skipped"], report["missing"]) == (5, 3, 0)
    assert report["notes"] == [
        "3 events of another company or project are not inserted."
    ]
    assert mine.recorded == there


@pytest.mark.parametrize(
    "fields",
    [{"company_id": 1, "project_id": 2}, {"company_id": None, "project_id": ""}],
    ids=str,
)
def test_ids_of_the_scope_may_be_numbers_or_absent(
    mine: Integration, fields: Row
) -> None:
    mine.rewrite(in_payload(**fields))
    mine.hook()
    lost = mine.lose(2)
    assert mine.report(code=2)["inserted"] == 2
    assert mine.recorded == lost


@pytest.mark.parametrize(("company", "number"), [("1", 1), ("9", 0)])
def test_hook_of_a_company_has_events_of_its_projects(
    make_app: MakeApp, url: str, company: str, number: int
) -> None:
    with integrated(make_app, url, SCOPES=[{"company": "1"}]) as mine:
        mine.rewrite(in_payload(company_id=company, project_id="777"))
        mine.hook(company="1", triggers=[("Company Users", "update")])
        mine.is_down = True
        mine.fake.emit("Company Users", "update", company="1")
        mine.fake.advance(hours=13)
        assert mine.report()["inserted"] == number


# Wrong times


@pytest.mark.parametrize("number", [3, 120])
@pytest.mark.parametrize("timestamp", ["1970-01-01T00:00:00Z", "2026-10-20T00:00:00Z"])
def test_event_of_a_time_that_procore_does_not_list_is_inserted_with_since(
    mine: Integration, timestamp: str, number: int
) -> None:
    mine.rewrite(in_payload(timestamp=timestamp))
    mine.hook()
    there = mine.deliver(2)
    lost = mine.lose(number)
    report = mine.report("--since", mine.day(-3), code=2)
    assert (report["inserted"], report["left_out"]) == (number, 0)
    assert mine.recorded == sorted(there + lost)
    mine.report(code=0)
