"""The command ``stats``."""

from __future__ import annotations

import json
import os
import socket
from typing import Any

from flask import Flask
from support.commands import lines_of
from support.commands import ME
from support.commands import run
from support.commands import send
from support.sites import at_once
from support.sites import DAY
from support.sites import Site
from support.values import Clock

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import RetryLater
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.inbox.seen import note_seen
from flask_procore_webhooks.inbox.seen import put_state
from flask_procore_webhooks.inbox.seen import SEEN
from flask_procore_webhooks.inbox.seen import states
from flask_procore_webhooks.testing import deliver

HERE = f"{socket.gethostname()}:{os.getpid()}"
NOT_PAUSED: dict[str, Any] = {
    "paused": False,
    "paused_by": None,
    "paused_since": None,
    "processes": [],
    "longest_run": None,
    "hanging_runs": [],
}


def test_stats_count_by_status_and_type(
    app: Flask, webhooks: ProcoreWebhooks, endpoint: Endpoint, clock: Clock
) -> None:
    @webhooks.on("Hard")
    def fail(event: object) -> None:
        raise RetryLater(10)

    for resource_id in (7, 7, 8):
        send(app, id="one", created=1700000000, resource_id=resource_id)
    send(app, "Hard.create")
    deliver(app.test_client(), b"not JSON")
    shown = [" ".join(row.split()) for row in run(app, "stats").output.splitlines()]
    assert shown == [
        "procore_webhooks",
        "dead (unreadable) 1",
        "done RFIs.update 1",
        "pending Hard.create 1",
        "attempts: 2",
        "repeats: 2",
        "conflicts: 1",
        "oldest due: -",
    ]
    clock.forward(70)
    (numbers,) = json.loads(run(app, "stats", "--json").output).values()
    assert numbers.pop("events")[0] == {"status": "dead", "type": "", "events": 1}
    assert numbers == {
        "attempts": 2,
        "repeats": 2,
        "conflicts": 1,
        "oldest_due_seconds": 60.0,
        **NOT_PAUSED,
    }


def test_stats_of_an_empty_inbox(app: Flask) -> None:
    assert json.loads(run(app, "stats", "--json").output) == {
        "procore_webhooks": {
            "events": [],
            "attempts": 0,
            "repeats": 0,
            "conflicts": 0,
            "oldest_due_seconds": None,
            **NOT_PAUSED,
        }
    }
    assert "oldest due: -" in run(app, "stats").output


def test_inbox_commands_read_every_database(database_app: Flask) -> None:
    app = database_app
    event_id = send(app, "Überall.create", resource_id="1'\"")
    assert event_id in run(app, "list", "--type", "Überall.create").output
    assert "1'\"" in run(app, "show", event_id).output
    (numbers,) = json.loads(run(app, "stats", "--json").output).values()
    assert numbers["events"][0]["events"] == 1
    assert isinstance(numbers["attempts"], int)


def test_stats_print_the_pause_and_the_oldest_due_event(site: Site) -> None:
    site.subscribe_good_and_bad()
    site.send()
    site.work()
    site.send()
    site.clock.forward(30)
    site.send()
    run(site.app, "pause")
    shown = lines_of(run(site.app, "stats").output)
    now = f"{site.clock():%Y-%m-%d %H:%M:%S}"
    assert shown[1:] == [
        "dead RFIs.update 1",
        "pending RFIs.update 2",
        "attempts: 1",
        "repeats: 0",
        "conflicts: 0",
        "oldest due: 30.0 s ago",
        f"worker {HERE}, 1 threads, 0 runs, seen 30.0 s ago",
        f"paused: no event runs until resume (by {ME} since {now} UTC)",
    ]
    (numbers,) = json.loads(run(site.app, "stats", "--json").output).values()
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
    run(site.app, "prune")
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
