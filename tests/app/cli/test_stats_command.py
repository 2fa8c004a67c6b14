"""The command ``stats``."""

from __future__ import annotations

import json

from flask import Flask
from support.commands import lines_of
from support.commands import run
from support.commands import send
from support.sites import Site
from support.values import Clock

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import RetryLater
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.testing import deliver


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
        "paused": False,
    }


def test_stats_of_an_empty_inbox(app: Flask) -> None:
    assert json.loads(run(app, "stats", "--json").output) == {
        "procore_webhooks": {
            "events": [],
            "attempts": 0,
            "repeats": 0,
            "conflicts": 0,
            "oldest_due_seconds": None,
            "paused": False,
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
    assert shown[1:] == [
        "dead RFIs.update 1",
        "pending RFIs.update 2",
        "attempts: 1",
        "repeats: 0",
        "conflicts: 0",
        "oldest due: 30.0 s ago",
        "paused: no event runs until resume",
    ]
    (numbers,) = json.loads(run(site.app, "stats", "--json").output).values()
    assert numbers["paused"] is True
    run(site.app, "resume")
    assert "paused" not in run(site.app, "stats").output
