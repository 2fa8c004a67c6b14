"""``reconcile``: the note of the last day: damaged, and after a first ``--since``."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from reconcile_support import integrated
from reconcile_support import Integration
from reconcile_support import MakeApp

from flask_procore_webhooks.hooks.cursor import CURSOR
from flask_procore_webhooks.operations.seen import put_state
from flask_procore_webhooks.operations.seen import states

#: Together they take longer than the others.
pytestmark = pytest.mark.slow

DAMAGED: list[Any] = [
    *({}, [], [1], "x", 7, None, {"day": "x"}, {"day": None}, {"day": 20261126}),
    *({"day": "0001-01-01"}, {"day": ["2026-11-26"]}, {"begins": "2026-11-26"}),
    *({"day": "2026-11-26", "begins": None}, {"day": "2026-11-26", "begins": "x"}),
]


def damaged(hook: str) -> list[str]:
    return [
        f"The row '{CURSOR}{hook}' of the state table is damaged, and is not believed."
    ]


def lose_five_days_ago(mine: Integration) -> list[str]:
    lost = mine.lose(2)
    mine.fake.advance(days=5)
    return lost


@pytest.mark.parametrize("value", DAMAGED, ids=str)
def test_damaged_note_is_taken_for_none(mine: Integration, value: Any) -> None:
    hook = mine.hook()
    lost = lose_five_days_ago(mine)
    put_state(mine.store, f"{CURSOR}{hook}", value)
    report = mine.report(code=2)
    assert (report["from"], report["inserted"]) == (f"{mine.day(-27)}", 2)
    assert report["notes"] == damaged(hook)
    assert mine.recorded == lost
    report = mine.report(code=0)
    assert (report["from"], report["notes"]) == (f"{mine.day(-3)}", [])


@pytest.mark.parametrize("text", ["", "{", "nonsense", "[" * 9999])
def test_note_that_is_no_json_is_taken_for_none(mine: Integration, text: str) -> None:
    hook = mine.hook()
    lost = lose_five_days_ago(mine)
    put_state(mine.store, f"{CURSOR}{hook}", {})
    s = mine.store.database.tables.state.c
    change = sa.update(s.name.table).where(s.name == f"{CURSOR}{hook}")
    mine.store.run(lambda connection: connection.execute(change.values(value=text)))
    assert mine.report(code=2)["notes"] == damaged(hook)
    assert mine.recorded == lost


@pytest.mark.parametrize("begins", ["2099-01-01", "9999-12-31"])
def test_first_day_in_the_future_is_not_believed(
    mine: Integration, begins: str
) -> None:
    hook = mine.hook()
    lost = mine.lose(2)
    note = {"day": f"{mine.day()}", "begins": begins}
    put_state(mine.store, f"{CURSOR}{hook}", note)
    report = mine.report(code=2)
    assert (report["from"], report["notes"]) == (f"{mine.day(-2)}", damaged(hook))
    assert mine.recorded == lost
    assert mine.report(code=0)["notes"] == []


def test_damaged_note_of_one_hook_does_not_stop_the_others(
    make_app: MakeApp, url: str
) -> None:
    scopes = [{"company": "1", "project": each} for each in ("2", "3")]
    with integrated(make_app, url, SCOPES=scopes) as mine:
        hook = mine.hook()
        mine.hook(project="3")
        mine.is_down = True
        mine.emit(2, project="3")
        mine.lose(1)
        put_state(mine.store, f"{CURSOR}{hook}", [1])
        first, second = mine.reports(code=2)
        assert (first["inserted"], second["inserted"]) == (1, 2)
        assert (first["notes"], second["notes"]) == (damaged(hook), [])


# The first day of a first run


def left_out(number: int, day: object) -> list[str]:
    return [
        f"{number} events before {day} are left out: --since of the first run. Give an"
        " earlier --since to include them."
    ]


def test_later_run_notes_what_the_since_of_the_first_run_leaves_out(
    mine: Integration,
) -> None:
    mine.hook()
    lost = mine.lose(2)
    mine.fake.advance(days=1)
    day = mine.day()
    assert mine.report("--since", day, code=0)["notes"] == []
    for _ in range(2):
        report = mine.report(code=0)
        assert (report["left_out"], report["seen"]) == (2, 0)
        assert report["notes"] == left_out(2, day)
    assert mine.recorded == []
    report = mine.report("--since", mine.day(-5), code=2)
    assert (report["inserted"], report["left_out"]) == (2, 0)
    assert mine.report(code=0)["notes"] == []
    assert mine.recorded == lost


def test_recorded_events_before_the_first_day_are_not_called_left_out(
    mine: Integration,
) -> None:
    mine.hook()
    mine.deliver(2)
    mine.fake.advance(days=1)
    mine.report("--since", mine.day(), code=0)
    report = mine.report(code=0)
    assert (report["left_out"], report["notes"]) == (0, [])


def test_note_of_a_whole_run_is_the_day_before(mine: Integration) -> None:
    hook = mine.hook()
    mine.lose(2)
    mine.report(code=2)
    (row,) = states(mine.store, CURSOR)
    assert row["name"] == f"{CURSOR}{hook}"
    assert row["value"] == {"day": f"{mine.day(-1)}", "begins": "0001-01-01"}
