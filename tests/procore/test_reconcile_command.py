"""``reconcile``: exit codes, output, the journal, and texts that Procore chooses."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask import request
from flask import Response
from reconcile_support import forget
from reconcile_support import integrated
from reconcile_support import Integration
from reconcile_support import MakeApp
from support.commands import ME
from support.commands import run

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import PrudraWebhooks

KEYS = [
    *("company", "project", "hook", "from", "to", "seen", "delivered", "found"),
    *("missing", "unreadable", "inserted", "skipped", "coming"),
    *("left_out", "notes", "error"),
]


@pytest.fixture
def on_each(make_app: MakeApp, database_url: str) -> Iterator[Integration]:
    """An integration on each kind of database."""
    with integrated(make_app, database_url) as mine:
        yield mine


def test_dry_run_inserts_nothing_and_exits_with_2(on_each: Integration) -> None:
    on_each.hook()
    there = on_each.deliver(2)
    on_each.lose(3)
    report = on_each.report("--dry-run", code=2)
    assert (report["missing"], report["inserted"]) == (3, 0)
    assert on_each.recorded == there
    assert on_each.journal() == []


def test_dry_run_changes_nothing_for_the_next_run(mine: Integration) -> None:
    mine.hook()
    mine.lose(3)
    mine.fake.advance(days=10)
    mine.report("--dry-run", code=2)
    assert mine.report(code=2)["inserted"] == 3


def test_dry_run_without_anything_missing_exits_with_0(mine: Integration) -> None:
    mine.hook()
    mine.deliver(2)
    mine.report("--dry-run", code=0)


def test_dry_run_on_another_database_exits_with_1(mine: Integration) -> None:
    mine.hook()
    mine.fake.receive("https://app.example.com", lambda environ, start: accept(start))
    mine.deliver(3)
    mine.report("--dry-run", code=1)


def accept(start: Any) -> list[bytes]:
    start("200 OK", [])
    return []


def test_text_has_a_line_for_each_hook(mine: Integration) -> None:
    hook = mine.hook()
    mine.deliver(4)
    mine.lose(2)
    where = (
        f"  project 2 of company 1, hook {hook}, {mine.day(-27)} to {mine.day(1)}:"
        " 6 seen, 4 of 4 delivered found, 2 missing"
    )
    dry = mine.reconcile("--dry-run")
    assert dry.stdout == f"procore_webhooks\n{where}, 2 to insert, 0 skipped\n"
    result = mine.reconcile()
    assert result.exit_code == 2
    assert result.stdout == f"procore_webhooks\n{where}, 2 inserted, 0 skipped\n"
    assert result.stderr == ""


def test_text_names_what_is_still_to_come_beside_what_is_skipped(
    mine: Integration,
) -> None:
    mine.hook()
    there = mine.deliver(20)
    forget(mine, there[:2])
    mine.is_down = True
    mine.emit(3)
    mine.fake.deliver()
    text = "18 of 20 delivered found, 0 missing, 0 inserted, 2 skipped, 3 still to come"
    assert text in mine.reconcile().stdout
    report = mine.report(code=0)
    assert (report["skipped"], report["coming"]) == (5, 3)


def test_dry_run_counts_what_can_be_inserted(mine: Integration) -> None:
    lost: list[str] = []
    mine.rewrite(
        lambda row: row["payload"]["id"] in lost[:2] and row.update(payload=None)
    )
    mine.hook()
    lost += mine.lose(5)
    text = "5 missing, 3 to insert, 0 skipped"
    assert text in mine.reconcile("--dry-run").stdout
    report = mine.report("--dry-run", code=2)
    assert (report["missing"], report["unreadable"]) == (5, 2)
    assert "5 missing, 3 inserted, 0 skipped" in mine.reconcile().stdout


def test_json_has_an_object_for_each_hook(mine: Integration) -> None:
    hook = mine.hook()
    mine.deliver(4)
    mine.lose(2)
    result = mine.reconcile("--json")
    assert result.stderr == ""
    found = json.loads(result.stdout)
    assert [*found] == ["procore_webhooks"]
    ((report),) = found["procore_webhooks"]
    assert [*report] == KEYS
    assert report == {
        "company": "1",
        "project": "2",
        "hook": hook,
        "from": f"{mine.day(-27)}",
        "to": f"{mine.day(1)}",
        "seen": 6,
        "delivered": 4,
        "found": 4,
        "missing": 2,
        "unreadable": 0,
        "inserted": 2,
        "skipped": 0,
        "coming": 0,
        "left_out": 0,
        "notes": [],
        "error": None,
    }


def test_progress_of_a_slow_run_is_printed_beside_the_output(
    mine: Integration,
) -> None:
    mine.hook()
    mine.deliver(10)
    mine.fake.answer_next("slow", path="/deliveries", seconds=1.1)
    result = mine.reconcile()
    assert result.exit_code == 0
    assert result.stderr == "procore_webhooks, deliveries read: 10 so far\n"
    assert "so far" not in result.stdout


def test_journal_says_who_inserted_what(on_each: Integration) -> None:
    hook = on_each.hook()
    on_each.deliver(4)
    on_each.lose(3)
    on_each.is_down = True
    on_each.emit()
    on_each.report(code=2)
    (entry,) = on_each.journal()
    assert entry["actor"] == ME
    assert entry["filter"] == {
        "hook": hook,
        "scope": "project 2 of company 1",
        "from": f"{on_each.day(-27)}",
        "to": f"{on_each.day(1)}",
        "seen": 8,
        "found": 4,
        "skipped": 1,
    }
    assert (entry["expected"], entry["actual"]) == (3, 3)


def test_journal_is_shown_by_its_command(mine: Integration) -> None:
    mine.hook()
    mine.lose(3)
    mine.report(code=2)
    shown = run(mine.app, "journal").output
    assert "reconcile" in shown
    assert ME in shown
    batch = mine.journal()[0]["batch"]
    assert "project 2 of company 1" in run(mine.app, "journal", "--batch", batch).output


def test_journal_has_no_entry_where_nothing_was_missing(mine: Integration) -> None:
    mine.hook()
    mine.deliver(2)
    mine.report(code=0)
    assert mine.journal() == []


def test_list_names_the_origin_of_the_events(mine: Integration) -> None:
    mine.hook()
    (id,) = mine.lose()
    mine.report(code=2)
    assert "reconcile" in run(mine.app, "show", id).output


@pytest.mark.parametrize("day", ["yesterday", "2026-13-01", "-8y", "", "-", "-1e300"])
def test_since_that_is_no_day_is_refused(mine: Integration, day: str) -> None:
    result = mine.reconcile(f"--since={day}")
    assert result.exit_code == 2
    problem = "is not a day like 2026-11-26, and not a time ago like -3d."
    assert f"{day!r} {problem}" in result.stderr


@pytest.mark.parametrize("key", ["CLIENT_ID", "CLIENT_SECRET"])
def test_missing_credentials_are_named(mine: Integration, key: str) -> None:
    app = Flask("another", instance_path=mine.app.instance_path)
    app.config.update(mine.app.config)
    del app.config[f"PROCORE_WEBHOOK_API_{key}"]
    app.register_blueprint(ProcoreWebhooks())
    result = run(app, "reconcile", ok=False)
    assert result.exit_code == 1
    assert f"PROCORE_WEBHOOK_API_{key}" in result.output


@pytest.mark.parametrize("key", ["NAMESPACE", "SCOPES", "URL"])
def test_missing_settings_are_named(mine: Integration, key: str) -> None:
    app = Flask("another", instance_path=mine.app.instance_path)
    app.config.update(mine.app.config)
    del app.config[f"PROCORE_WEBHOOK_{key}"]
    app.register_blueprint(ProcoreWebhooks())
    result = run(app, "reconcile", ok=False)
    assert result.exit_code == 1
    assert f"PROCORE_WEBHOOK_{key}" in result.output


def test_endpoint_of_another_sender_is_refused(make_app: MakeApp) -> None:
    app = make_app(PRUDRA_WEBHOOK_SECRET="a secret")
    app.register_blueprint(ProcoreWebhooks())
    app.register_blueprint(PrudraWebhooks())
    result = run(app, "reconcile", "--endpoint", "prudra_webhooks", ok=False)
    assert result.exit_code == 2
    assert "Hooks are Procore's" in result.output


HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    "id of control characters": lambda p: p.update(id=f"{p['id']}\r\n\x1b[31m\x00"),
    "id of another script": lambda p: p.update(id=f"{p['id']}-é-\u202e"),
    "long id": lambda p: p.update(id=p["id"] + "x" * 9000),
    "id like a digest": lambda p: p.update(id=f"sha256:{p['id']}"),
    "half a character": lambda p: p.update(resource_id="\ud800"),
    "NUL": lambda p: p.update(resource_type="RFIs\x00", user_id="\x00"),
    "escapes": lambda p: p.update(reason="\x1b[2J\r\nupdate"),
    "time": lambda p: p.update(timestamp="99999-99-99T99:99:99Z"),
    "first year": lambda p: p.update(timestamp="0001-01-01T00:00:00+14:00"),
    "SQL": lambda p: p.update(user_id="'; DROP TABLE procore_webhook_event; --"),
    "deep": lambda p: p.update(more=nested(90)),
    "number": lambda p: p.update(more=10**400),
}


def nested(levels: int) -> Any:
    return [nested(levels - 1)] if levels else []


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_payload_is_inserted_and_prints_no_control_character(
    on_each: Integration, name: str
) -> None:
    on_each.rewrite(lambda row: HOSTILE[name](row["payload"]))
    on_each.hook()
    on_each.lose(2)
    result = on_each.reconcile()
    assert result.exit_code == 2
    assert "2 missing, 2 inserted" in result.stdout
    assert all(char.isprintable() or char == "\n" for char in result.output)
    assert len(on_each.rows()) == 2
    on_each.report(code=0)


def test_hostile_error_prints_no_control_character(mine: Integration) -> None:
    @mine.fake.before_request
    def hostile() -> Response | None:
        if not request.path.endswith("/deliveries"):
            return None
        body = json.dumps({"message": "no\x1b[2J\r\nway\u202e" + "x" * 9000})
        return Response(body, 418, mimetype="application/json")

    mine.hook()
    result = mine.reconcile()
    assert result.exit_code == 1
    assert "/deliveries: 418, no" in result.stdout
    assert all(char.isprintable() or char == "\n" for char in result.output)
    assert len(result.stdout) < 1000


def test_inbox_that_goes_away_is_an_error_and_says_what_was_inserted(
    make_app: MakeApp, tmp_path: Path, short_retries: None
) -> None:
    file = tmp_path / "test.db"
    scopes = [{"company": "1", "project": each} for each in ("2", "3")]
    with integrated(make_app, f"sqlite:///{file}", SCOPES=scopes) as mine:
        with closing(sqlite3.connect(file, check_same_thread=False)) as other:
            mine.on_request(2, lambda: other.execute("BEGIN EXCLUSIVE"))
            mine.hook()
            mine.hook(project="3")
            mine.is_down = True
            mine.emit(2)
            mine.emit(3, project="3")
            mine.fake.advance(hours=13)
            result = mine.reconcile("--json")
            other.rollback()
        assert result.exit_code == 1
        first, second = json.loads(result.stdout)["procore_webhooks"]
        assert (first["inserted"], first["error"]) == (2, None)
        assert (second["inserted"], bool(second["error"])) == (0, True)
        assert [each["inserted"] for each in mine.reports(code=2)] == [0, 3]
