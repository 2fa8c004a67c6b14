"""``reconcile``: the control group, ``--all``, and which statuses are inserted."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from reconcile_support import forget
from reconcile_support import integrated
from reconcile_support import Integration
from reconcile_support import MakeApp


def back_up(source: Path, copy: Path) -> None:
    """Copy a SQLite file with what it has not written to its main part yet."""
    with (
        closing(sqlite3.connect(source)) as first,
        closing(sqlite3.connect(copy)) as second,
    ):
        first.backup(second)


def test_nothing_is_inserted_into_another_database(mine: Integration) -> None:
    mine.hook()
    forget(mine, mine.deliver(10))
    mine.lose(3)
    report = mine.report(code=1)
    assert (report["delivered"], report["found"]) == (10, 0)
    assert (report["missing"], report["inserted"]) == (3, 0)
    assert report["error"].startswith(
        "of 10 delivered events, the inbox has 0. The inbox"
    )
    assert "it is another database, or" in report["error"]
    assert mine.recorded == []
    assert mine.journal() == []


@pytest.mark.parametrize(("lacking", "code"), [(0, 2), (2, 2), (3, 1), (20, 1)])
def test_nine_tenths_of_the_delivered_events_must_be_there(
    mine: Integration, lacking: int, code: int
) -> None:
    mine.hook()
    there = mine.deliver(20)
    forget(mine, there[:lacking])
    lost = mine.lose(2)
    report = mine.report(code=code)
    assert report["inserted"] == (2 if code == 2 else 0)
    expected = there[lacking:] + (lost if code == 2 else [])
    assert mine.recorded == sorted(expected)


def test_nothing_is_inserted_before_the_control_knows_enough(
    mine: Integration,
) -> None:
    mine.hook()
    mine.lose(110)
    mine.fake.advance(days=1)
    forget(mine, mine.deliver(15))
    report = mine.report(code=1)
    assert (report["missing"], report["inserted"]) == (110, 0)
    assert mine.recorded == []


def test_event_that_is_listed_twice_counts_once(mine: Integration) -> None:
    mine.rewrite(lambda row: row["payload"].update(id="one of two rows"))
    mine.hook()
    mine.lose(2)
    report = mine.report(code=2)
    assert (report["seen"], report["missing"], report["inserted"]) == (2, 1, 1)


def test_stopped_run_says_so_in_text(mine: Integration) -> None:
    mine.hook()
    forget(mine, mine.deliver(5))
    mine.lose()
    result = mine.reconcile()
    assert result.exit_code == 1
    _, stopped, numbers, explanation = result.stdout.splitlines()
    assert stopped.endswith(": stopped: of 5 delivered events, the inbox has 0")
    assert "1 missing, 0 inserted" in numbers
    assert explanation.startswith("The inbox has less than 90% of what Procore has")


def test_stopped_hooks_share_one_explanation(make_app: MakeApp, tmp_path: Path) -> None:
    scopes = [{"company": "1", "project": each} for each in ("2", "3")]
    url = f"sqlite:///{tmp_path / 'test.db'}"
    with integrated(make_app, url, SCOPES=scopes) as mine:
        mine.hook()
        mine.hook(project="3")
        forget(mine, mine.deliver(5) + mine.deliver(6, project="3"))
        shown = mine.reconcile().stdout
        assert shown.count("stopped: of 5 delivered events, the inbox has 0\n") == 1
        assert shown.count("stopped: of 6 delivered events, the inbox has 0\n") == 1
        assert shown.count("give --all") == shown.count("give --since") == 1
        assert shown.splitlines()[-1].endswith("the first day of this one.")
        first, second = mine.reports(code=1)
        assert "give --all" in first["error"] and "give --all" in second["error"]


def test_control_is_skipped_without_a_delivered_event(mine: Integration) -> None:
    mine.hook()
    lost = mine.lose(2)
    report = mine.report(code=2)
    assert (report["delivered"], report["inserted"]) == (0, 2)
    assert mine.recorded == lost


def test_stopped_run_is_stopped_again(mine: Integration) -> None:
    mine.hook()
    forget(mine, mine.deliver(5))
    mine.lose()
    mine.report(code=1)
    mine.report(code=1)
    assert mine.recorded == []


def test_v2_shape_with_the_same_id_is_the_same_event(mine: Integration) -> None:
    mine.hook()
    there = mine.deliver(5)
    lost = mine.lose(3)
    mine.fake.switches.delivery_payload = "v2"
    report = mine.report(code=2)
    assert (report["found"], report["inserted"]) == (5, 3)
    assert mine.recorded == sorted(there + lost)
    (event_id, *_) = lost
    mine.fake.redeliver(event_id)
    mine.fake.deliver()
    assert len(mine.rows()) == 8
    assert sum(row["conflicts"] for row in mine.rows()) == 0


def test_v2_shape_with_another_id_is_stopped(mine: Integration) -> None:
    mine.fake.switches.same_id = False
    mine.hook()
    there = mine.deliver(5)
    mine.lose(3)
    mine.fake.switches.delivery_payload = "v2"
    report = mine.report(code=1)
    assert "Procore's record has other ids than its deliveries" in report["error"]
    assert mine.recorded == there


def test_v2_shape_with_another_id_is_stopped_also_with_all(mine: Integration) -> None:
    mine.fake.switches.same_id = False
    mine.hook()
    there = mine.deliver(5)
    mine.lose(3)
    mine.fake.switches.delivery_payload = "v2"
    assert mine.report("--all", code=1)["inserted"] == 0
    assert mine.recorded == there


def test_since_leaves_out_what_another_receiver_had(mine: Integration) -> None:
    hook = mine.hook()
    forget(mine, mine.deliver(10))
    mine.is_down = True
    mine.emit(2)
    mine.fake.deliver()
    mine.fake.discard(hook)
    mine.is_down = False
    mine.fake.advance(days=1)
    there = mine.deliver(4)
    lost = mine.lose(3)
    assert "give --all. If another receiver" in mine.report(code=1)["error"]
    report = mine.report("--since", mine.day(), code=2)
    assert (report["found"], report["inserted"]) == (4, 3)
    assert mine.recorded == sorted(there + lost)
    mine.fake.advance(days=1)
    mine.report(code=0)


def test_all_inserts_what_a_restored_copy_lacks(
    mine: Integration, tmp_path: Path
) -> None:
    mine.hook()
    file, copy = tmp_path / "test.db", tmp_path / "copy.db"
    there = mine.deliver(4)
    back_up(file, copy)
    later = mine.deliver(30)
    lost = mine.lose(2)
    mine.store.database.engine.dispose()
    back_up(copy, file)
    assert mine.recorded == there
    assert "give --all" in mine.report(code=1)["error"]
    report = mine.report("--all", code=2)
    assert (report["missing"], report["inserted"]) == (32, 32)
    assert mine.recorded == sorted(there + later + lost)
    mine.report("--all", code=0)
    mine.report(code=0)


def test_all_fills_an_empty_inbox(mine: Integration) -> None:
    mine.hook()
    there = mine.deliver(3)
    forget(mine, there)
    report = mine.report("--all", code=2)
    assert report["inserted"] == 3
    assert mine.recorded == there


def test_delivered_events_that_are_lacking_are_inserted_with_all_only(
    mine: Integration,
) -> None:
    mine.hook()
    there = mine.deliver(20)
    forget(mine, there[:1])
    report = mine.report(code=0)
    assert (report["missing"], report["skipped"]) == (0, 1)
    report = mine.report("--all", code=2)
    assert (report["missing"], report["inserted"], report["skipped"]) == (1, 1, 0)
    assert mine.recorded == there


@pytest.mark.parametrize("options", [[], ["--all"]])
def test_events_that_are_still_coming_are_not_inserted(
    mine: Integration, options: list[str]
) -> None:
    mine.hook()
    mine.is_down = True
    mine.emit(3)
    mine.fake.advance(minutes=10)
    states = sorted(row["status"] for row in mine.fake.deliveries())
    assert states == ["enqueued", "enqueued", "retrying"]
    report = mine.report(*options, code=0)
    assert (report["seen"], report["skipped"], report["inserted"]) == (3, 3, 0)
    assert mine.recorded == []


def test_failed_events_are_inserted_like_discarded_ones(mine: Integration) -> None:
    mine.fake.switches.flush_status = "failed"
    mine.hook()
    lost = mine.lose(2)
    assert mine.report(code=2)["inserted"] == 2
    assert mine.recorded == lost


def test_events_that_were_still_coming_are_found_when_they_are_discarded_later(
    mine: Integration,
) -> None:
    hook = mine.hook()
    mine.is_down = True
    mine.fake.switches.gives_up_after = 40 * 24 * 3600
    lost = mine.emit(2)
    for _ in range(7):
        mine.fake.advance(days=1)
        assert mine.report(code=0)["skipped"] == 2
    mine.fake.discard(hook)
    assert mine.report(code=2)["inserted"] == 2
    assert mine.recorded == lost
