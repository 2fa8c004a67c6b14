"""The command ``stats``."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from support.commands import down
from support.commands import lines_of
from support.commands import ME
from support.commands import mounted
from support.commands import run
from support.commands import run_apart
from support.commands import send
from support.commands import stdout_of
from support.jobs import add_event
from support.jobs import copy_event
from support.jobs import set_status
from support.sites import at_once
from support.sites import DAY
from support.sites import Site

from flask_procore_webhooks.operations.queries import MOST_COUNTED
from flask_procore_webhooks.operations.seen import note_seen
from flask_procore_webhooks.operations.seen import put_state
from flask_procore_webhooks.operations.seen import SEEN
from flask_procore_webhooks.operations.seen import states

MakeApp = Callable[..., Flask]

HERE = f"{socket.gethostname()}:{os.getpid()}"
EMPTY: dict[str, Any] = {
    "events": dict.fromkeys(
        ("pending", "running", "dead", "unmatched", "quarantined"), 0
    ),
    "dead_jobs": 0,
    "capped": [],
    "history": {},
    "unmatched_types": [],
    "oldest_due_seconds": None,
    "next_retry": None,
    "paused": False,
    "paused_by": None,
    "paused_since": None,
    "paused_reason": None,
    "workers": 0,
    "processes": [],
    "longest_run": None,
    "hanging_runs": [],
    "failing": [],
}


def numbers_of(app: Flask, *options: str) -> dict[str, Any]:
    """What ``stats --json`` prints for the only endpoint."""
    (numbers,) = json.loads(stdout_of(app, "stats", "--json", *options)).values()
    assert isinstance(numbers, dict)
    return numbers


def add_some(site: Site) -> None:
    """Events of every status that is counted, at different times."""
    store = site.store
    add_event(store, "due", {"state": "pending", "wait": 0})
    add_event(store, "waits", {"state": "pending", "wait": 100})
    add_event(store, "later", {"state": "pending", "wait": 200})
    row_id = add_event(store, "runs", {"state": "pending", "wait": 50})
    set_status(store, row_id, "running")
    add_event(store, "dead", {"state": "dead"})
    both = {"state": "dead"}, {"subscriber": "slow", "state": "pending", "wait": 150}
    add_event(store, "both", *both)
    for number in range(3):
        status = "unmatched"
        add_event(store, f"u{number}", status=status, resource_type="Photos")
    add_event(store, "x", status="unmatched", reason="archive")
    add_event(store, "bytes", status="quarantined")
    add_event(store, "done", {"state": "done"})
    add_event(store, "own", status="ignored")
    site.clock.forward(30)


def test_stats_of_an_empty_inbox(app: Flask) -> None:
    assert numbers_of(app) == EMPTY
    assert "oldest due: -" in run(app, "stats").output


def test_stats_count_what_is_live_and_what_is_parked(site: Site) -> None:
    add_some(site)
    retry = site.store.db_now() + timedelta(seconds=70)
    assert numbers_of(site.app) == {
        **EMPTY,
        "events": {
            "pending": 4,
            "running": 1,
            "dead": 1,
            "unmatched": 4,
            "quarantined": 1,
        },
        "dead_jobs": 2,
        "unmatched_types": [
            {"type": "Photos.update", "events": 3},
            {"type": "RFIs.archive", "events": 1},
        ],
        "oldest_due_seconds": 30.0,
        "next_retry": f"{retry.isoformat()}Z",
    }
    assert lines_of(run(site.app, "stats").output) == [
        "procore_webhooks",
        "pending 4",
        "running 1",
        "dead 1",
        "unmatched 4",
        "quarantined 1",
        "dead jobs 2",
        "oldest due: 30.0 s ago",
        f"next retry: {retry:%Y-%m-%d %H:%M:%SZ}",
        "unmatched types: Photos.update (3), RFIs.archive (1)",
        "workers: 0",
    ]


def test_stats_sum_the_tally_of_a_minute_an_hour_and_a_day(site: Site) -> None:
    run(site.app, "init-db")
    now = site.store.db_now().replace(second=0, microsecond=0)
    rows = [
        {"minute": now - timedelta(minutes=ago), "outcome": outcome, "count": count}
        for ago, outcome, count in [
            (0, "recorded", 1),
            (1, "recorded", 2),
            (2, "recorded", 4),
            (60, "recorded", 8),
            (61, "recorded", 16),
            (1440, "recorded", 32),
            (1441, "recorded", 64),
            (90, "dead", 5),
            (1441, "failed", 3),
        ]
    ]
    rows = [{**row, "endpoint": site.endpoint.name} for row in rows]
    rows.append({**rows[0], "endpoint": "another"})
    with site.store.connection() as connection:
        connection.execute(sa.insert(site.store.database.tables.tally), rows)
    assert numbers_of(site.app)["history"] == {
        "dead": {"minute": 0, "hour": 0, "day": 5},
        "recorded": {"minute": 3, "hour": 15, "day": 63},
    }
    header, dead, recorded = lines_of(run(site.app, "stats").output)[-3:]
    assert header == "in the last minute hour day"
    assert (dead, recorded) == ("dead 0 0 5", "recorded 3 15 63")


def test_stats_count_exactly_to_ten_thousand(sqlite_site: Site) -> None:
    site = sqlite_site
    row_id = add_event(site.store, "evt", {"state": "dead"})
    copy_event(site.store, row_id, MOST_COUNTED - 1)
    numbers = numbers_of(site.app)
    assert (numbers["events"]["dead"], numbers["capped"]) == (MOST_COUNTED, [])
    copy_event(site.store, row_id, 1, "more")
    numbers = numbers_of(site.app)
    assert (numbers["events"]["dead"], numbers["capped"]) == (MOST_COUNTED, ["dead"])
    shown = lines_of(run(site.app, "stats").output)
    assert "dead 10,000+" in shown and "pending 0" in shown
    assert run(site.app, "stats", "--fail-if", "dead>10000", ok=False).exit_code == 2


FAILING = ["dead>0", "dead == 1", "pending>=4", "oldest>29.5", "workers<1", "longest<1"]
FAILING += ["dead_jobs>1"]
FINE = ["dead>1", "unmatched<=3", "oldest>31", "workers==1", "quarantined<1"]
FINE += ["dead_jobs>2"]


def test_stats_fail_if_a_condition_holds(site: Site) -> None:
    add_some(site)
    for text in FAILING:
        failed = run(site.app, "stats", "--fail-if", text, ok=False)
        assert failed.exit_code == 2, text
        assert failed.output.splitlines()[-1] == f"  FAILS: {text}"
    fine = [each for text in FINE for each in ("--fail-if", text)]
    assert "FAILS" not in run(site.app, "stats", *fine).output
    assert run(site.app, "stats", "--quiet", *fine).output == ""
    loud = run(site.app, "stats", "--quiet", *fine, "--fail-if", "dead>0", ok=False)
    assert "FAILS: dead>0" in loud.output
    both = run_apart(site.app, "stats", *fine, "--fail-if", "dead>0", "--json")
    (numbers,) = json.loads(both.stdout).values()
    assert (both.exit_code, both.stderr) == (2, "")
    assert numbers["failing"] == ["dead>0"]


@pytest.mark.parametrize("wrong", ["dead", "dead>", "dead>-1", "done>1", "dead>10001"])
def test_wrong_conditions_are_not_taken_for_failing_ones(
    app: Flask, wrong: str
) -> None:
    refused = run(app, "stats", "--fail-if", wrong, ok=False)
    assert refused.exit_code == 1
    assert f"--fail-if {wrong!r}" in refused.output


def test_stats_that_cannot_look_exit_with_1(make_app: MakeApp, tmp_path: Path) -> None:
    app = mounted(make_app(PROCORE_WEBHOOK_DATABASE_URI=down("sqlite", tmp_path)))
    assert run(app, "stats", "--fail-if", "dead>0", ok=False).exit_code == 1
    unknown = ("--endpoint", "another", "--fail-if", "dead>0")
    assert run(app, "stats", *unknown, ok=False).exit_code == 1


def test_inbox_commands_read_every_database(database_app: Flask) -> None:
    app = database_app
    event_id = send(app, "Überall.create", resource_id="1'\"")
    assert event_id in run(app, "list", "--type", "überall.Create").output
    assert "1'\"" in run(app, "show", event_id).output
    assert numbers_of(app)["events"]["unmatched"] == 1
    assert "Überall.create (1)" in run(app, "stats").output


def test_stats_print_the_pause_and_the_worker(site: Site) -> None:
    site.subscribe_good_and_bad()
    site.work()
    run(site.app, "pause")
    shown = lines_of(run(site.app, "stats").output)
    now = f"{site.clock():%Y-%m-%d %H:%M:%SZ}"
    assert "workers: 1" in shown
    assert f"worker {HERE}, 1 threads, 0 runs, seen 0.0 s ago" in shown
    assert f"paused: no event runs until resume (by {ME} since {now})" in shown
    numbers = numbers_of(site.app)
    assert numbers["paused"] is True
    assert numbers["paused_by"] == ME
    assert numbers["paused_since"] == f"{site.store.db_now().isoformat()}Z"
    run(site.app, "resume")
    assert "paused" not in run(site.app, "stats").output


def test_stats_show_the_processes_that_run_events(site: Site) -> None:
    longest = {"subscriber": "good", "event": "evt_1", "seconds": 70.5}
    note_seen(site.store, "worker", ["another"], [1], {**longest, "seconds": 9})
    (numbers,) = json.loads(run(site.app, "stats", "--json").output).values()
    assert numbers["processes"] == [], "it runs the events of another endpoint"
    site.store.database.parts.clear()
    note_seen(site.store, "background", [site.endpoint.name], [3, 4], longest)
    note_seen(site.store, "background", None, [5, 6])
    site.clock.forward(60)
    (numbers,) = json.loads(run(site.app, "stats", "--json").output).values()
    assert numbers["processes"] == [
        {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "mode": "background",
            "threads": 2,
            "runs": 7,
            "longest": longest,
            "seen_seconds": 60.0,
        }
    ]
    assert numbers["longest_run"] == longest
    assert numbers["hanging_runs"] == []
    assert "longest run: good, event evt_1, 70.5 s" in run(site.app, "stats").output
    site.clock.forward(DAY)
    assert "longest run" not in run(site.app, "stats").output
    run(site.app, "prune", "--yes")
    assert states(site.store, SEEN) == []


def test_values_of_the_state_table_are_set_at_the_same_time(site: Site) -> None:
    site.send()

    def put(number: int) -> None:
        put_state(site.store, "cursor", {"number": number})

    at_once(put, range(8))
    put_state(site.store, "cursor", 1, endpoint="")
    put_state(site.store, "%", 2)
    found = states(site.store, "curs")
    assert [each["name"] for each in found] == ["cursor", "cursor"]
    assert 1 in [each["value"] for each in found]
    assert [each["value"] for each in states(site.store, "%")] == [2]
