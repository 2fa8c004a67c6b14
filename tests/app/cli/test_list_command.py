"""The command ``list``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from flask import Flask
from support.commands import mounted
from support.commands import run
from support.commands import send
from support.jobs import add_event
from support.jobs import copy_event
from support.jobs import failed
from support.values import Clock
from support.values import SECRET

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.operations.queries import MOST_COUNTED
from flask_procore_webhooks.storage.store import Store
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import payload

MakeApp = Callable[..., Flask]


def test_list_shows_the_newest_first_in_columns(app: Flask, clock: Clock) -> None:
    ids = []
    for number in range(3):
        clock.forward(60)
        ids.append(send(app, f"Type{number}.update"))
    deliver(app.test_client(), b"not JSON")
    header, unreadable, *rows, total = run(app, "list").output.splitlines()
    assert header.split()[:4] == ["id", "status", "attempts", "due_at"]
    assert "quarantined" in unreadable and "(unreadable)" in unreadable
    assert [row.split()[-2] for row in rows] == ids[::-1]
    assert total == "4 of 4, newest first"
    starts = {row.index("Type") for row in rows} | {header.index("type")}
    assert len(starts) == 1, "columns stand under their names"
    assert all(f"{clock():%Y-%m-%d}" in row for row in rows)


def test_list_filters_by_status_type_and_limit(app: Flask, clock: Clock) -> None:
    first = send(app, "A.create")
    deliver(app.test_client(), b"not JSON")
    clock.forward(1)
    send(app, "B.create")
    second = send(app, "A.create")

    def listed(*more: object) -> list[str]:
        rows = json.loads(run(app, "list", "--json", *more).output)
        return [row["event_id"] for row in rows]

    assert len(listed()) == 4
    assert listed("--type", "A.create") == [second, first]
    assert listed("--type", "A.create", "--limit", 1) == [second]
    assert len(listed("--status", "quarantined")) == 1
    assert listed("--status", "running") == []
    assert len(listed("--status", "quarantined", "--status", "unmatched")) == 4
    assert "No events." in run(app, "list", "--status", "running").output


def test_list_of_several_endpoints_has_an_endpoint_column(
    make_app: MakeApp, tmp_path: Path
) -> None:
    uri = f"sqlite:///{tmp_path}/shared.db"
    app = make_app(SQLALCHEMY_DATABASE_URI=uri, BOLT_SECRET=SECRET)
    bolt = ProcoreWebhooks("bolt", url_prefix="/bolt", config_prefix="BOLT_")
    mounted(app, ProcoreWebhooks("acme"), bolt)
    for name in ("acme", "bolt", "acme"):
        deliver(app.test_client(), payload("RFIs.update"), endpoint=name)
    listed = run(app, "list").output.splitlines()[1:-1]
    assert [row.split()[-3] for row in listed] == ["acme", "bolt", "acme"]
    assert len(run(app, "list", "--endpoint", "bolt").output.splitlines()) == 3
    assert len(json.loads(run(app, "list", "--limit", 2, "--json").output)) == 2


NASTY = "a\x1b[31mb\u202ec\nd\r\n2  done"


def test_sender_text_cannot_forge_rows_or_control_the_terminal(
    app: Flask, webhooks: ProcoreWebhooks
) -> None:
    @webhooks.on()
    def fail(event: object) -> None:
        raise RuntimeError(f"\x1b[31m line 1\nstatus  done{NASTY}")

    deliver(app.test_client(), payload(NASTY, id="1", resource_id=NASTY))
    listed = run(app, "list", color=True).output
    assert len(listed.splitlines()) == 3
    shown = run(app, "show", "1", color=True).output
    grouped = run(app, "errors", color=True).output
    for output in (listed, shown, grouped):
        assert "\u202e" not in output and r"\u202e" in output
        bold = output.replace("\x1b[1m", "").replace("\x1b[0m", "")
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", bold)
    names = re.findall(r"^\S+", shown, re.MULTILINE)
    assert names.count("status") == 1, "further lines are indented"


def test_list_json_has_every_column_except_the_body(app: Flask) -> None:
    send(app, created=1700000000)
    (row,) = json.loads(run(app, "list", "--json").output)
    names = ("received_at", "finished_at", "parked_at")
    times = [row.pop(name) for name in names]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", time) for time in times)
    assert row.pop("event_id").startswith("evt_")
    assert row == {
        "id": 1,
        "endpoint": "procore_webhooks",
        "type": "RFIs.update",
        "resource_type": "RFIs",
        "reason": "update",
        "resource_id": "4001",
        "company_id": "2001",
        "project_id": "3001",
        "user_id": "1001",
        "application_id": None,
        "event_at": "2023-11-14T22:13:20Z",
        "status": "unmatched",
        "attempts": 0,
        "origin": "delivery",
        "traceparent": None,
        "claims": 0,
        "due_at": None,
        "error": None,
        "repeats": 0,
        "conflicts": 0,
    }


def test_list_shows_next_try_resource_and_error(store: Store, app: Flask) -> None:
    waiting = failed("sync", "OSError: away\nand more", "pending", attempts=3)
    other = {"subscriber": "mail", "attempts": 1}
    add_event(store, "evt_1", {**waiting, "wait": 60}, other, resource_id="4711")
    run(app, "init-db")
    (row,) = json.loads(run(app, "list", "--json").output)
    due_at = row["due_at"].replace("T", " ").partition(".")[0] + "Z"
    header, line, _ = run(app, "list").output.splitlines()
    cells = [each.strip() for each in re.split("  +", line)]
    assert dict(zip(header.split(), cells, strict=True)) == {
        "id": "1",
        "status": "pending",
        "attempts": "3",
        "due_at": due_at,
        "received_at": cells[4],
        "type": "RFIs.update",
        "resource_id": "4711",
        "event_id": "evt_1",
        "error": "sync: away",
    }


def test_list_says_how_many_there_are_in_either_order(store: Store, app: Flask) -> None:
    for number in range(5):
        add_event(store, f"evt_{number}")

    def listed(*more: object) -> list[str]:
        return run(app, "list", "--limit", 2, *more).output.splitlines()

    newest, oldest = listed(), listed("--oldest-first")
    assert [line.split()[0] for line in newest[1:3]] == ["5", "4"]
    assert newest[-1] == "2 of 5, newest first"
    assert [line.split()[0] for line in oldest[1:3]] == ["1", "2"]
    assert oldest[-1] == "2 of 5, oldest first"
    assert listed("--status", "dead", "--status", "pending")[-1].startswith("2 of 5")
    assert listed("--status", "dead") == ["No events."]


def test_list_counts_exactly_to_ten_thousand(store: Store, app: Flask) -> None:
    row_id = add_event(store, "evt")
    copy_event(store, row_id, MOST_COUNTED - 1)
    assert run(app, "list").output.endswith("20 of 10,000, newest first\n")
    copy_event(store, row_id, 1, "more")
    assert run(app, "list").output.endswith("20 of 10,000+, newest first\n")


def test_event_of_an_unknown_shape_has_no_type(app: Flask) -> None:
    deliver(app.test_client(), {"unknown": 1})
    shown = run(app, "list").output
    assert "(no type)" in shown and "unreadable" not in shown
