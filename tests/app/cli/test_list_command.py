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
from support.values import Clock
from support.values import SECRET

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import payload

MakeApp = Callable[..., Flask]


def test_list_shows_the_newest_first_in_columns(app: Flask, clock: Clock) -> None:
    ids = []
    for number in range(3):
        clock.forward(60)
        ids.append(send(app, f"Type{number}.update"))
    deliver(app.test_client(), b"not JSON")
    header, unreadable, *rows = run(app, "list").output.splitlines()
    assert header.split()[:3] == ["id", "status", "attempts"]
    assert "quarantined" in unreadable and "(unreadable)" in unreadable
    assert [row.split()[-1] for row in rows] == ids[::-1]
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
    listed = run(app, "list").output.splitlines()[1:]
    assert [row.split()[-1] for row in listed] == ["acme", "bolt", "acme"]
    assert len(run(app, "list", "--endpoint", "bolt").output.splitlines()) == 2
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
    assert len(listed.splitlines()) == 2
    shown = run(app, "show", "1", color=True).output
    for output in (listed, shown, run(app, "stats", color=True).output):
        assert "\u202e" not in output and r"\u202e" in output
        bold = output.replace("\x1b[1m", "").replace("\x1b[0m", "")
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", bold)
    names = re.findall(r"^\S+", shown, re.MULTILINE)
    assert names.count("status") == 1, "further lines are indented"


def test_list_json_has_every_column_except_the_body(app: Flask) -> None:
    send(app, created=1700000000)
    (row,) = json.loads(run(app, "list", "--json").output)
    times = [row.pop(name) for name in ("received_at", "finished_at")]
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
        "event_at": "2023-11-14T22:13:20Z",
        "status": "done",
        "attempts": 1,
        "claims": 0,
        "due_at": None,
        "error": None,
        "repeats": 0,
        "conflicts": 0,
    }
