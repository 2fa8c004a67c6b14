"""A night in which another system was down, as its operator sees it at three.

500 events, three subscribers, five kinds of error. The operator uses commands only.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from support.commands import run
from support.commands import stdout_of
from support.sites import Site

from flask_procore_webhooks import Event

EVENTS = 500


class Night:
    """The app, whose other systems are down until they are mended."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.is_down = True
        #: Each call that has succeeded: the subscriber and the event's id.
        self.done: list[tuple[str, str]] = []
        for subscriber in (self.sync_erp, self.send_mail, self.update_report):
            site.webhooks.on(name=subscriber.__name__)(subscriber)

    def sync_erp(self, event: Event) -> None:
        number = int(event.id)
        if self.is_down and number % 5 < 3:
            raise TimeoutError(f"erp-{number % 4}: no answer after {number} s")
        if self.is_down and number % 5 == 3:
            raise ConnectionError(f"reset by '10.0.0.{number}'")
        self.done.append(("sync_erp", event.id))

    def send_mail(self, event: Event) -> None:
        if self.is_down and int(event.id) % 2:
            raise OSError(f"message {event.id} refused")
        self.done.append(("send_mail", event.id))

    def update_report(self, event: Event) -> None:
        number = int(event.id)
        if self.is_down and number % 5 == 4:
            raise (KeyError if number % 2 else ValueError)(f"report {number}")
        self.done.append(("update_report", event.id))

    def run_workers(self) -> None:
        run(self.site.app, "worker", "--once")

    def look(self, *command: object) -> Any:
        return json.loads(stdout_of(self.site.app, *command, "--json"))


@pytest.mark.seldom("mariadb")
@pytest.mark.slow
def test_operator_finds_tries_replays_and_proves_with_commands_alone(
    site: Site,
) -> None:
    night = Night(site)
    for number in range(EVENTS):
        site.send(id=f"{number}")
    site.clock.forward(3600)
    began = site.clock()
    night.run_workers()
    app = site.app

    # What happened?
    incidents = night.look("errors")
    found = {(g["subscriber"], g["error_class"], g["message"]) for g in incidents}
    assert found == {
        ("sync_erp", "TimeoutError", "erp-#: no answer after # s"),
        ("sync_erp", "ConnectionError", "reset by '…'"),
        ("send_mail", "OSError", "message # refused"),
        ("update_report", "KeyError", "'…'"),
        ("update_report", "ValueError", "report #"),
    }
    (timeouts, *_) = incidents
    assert (timeouts["count"], timeouts["types"]) == (300, ["RFIs.update"])

    # When did it begin? By the time of death, not of receipt.
    assert timeouts["first_seen"].startswith(began.strftime("%Y-%m-%dT%H:%M"))
    since = ("--died-since", began.isoformat())
    assert len(night.look("list", *since, "--limit", 1000)) == EVENTS
    (oldest,) = night.look("list", *since, "--oldest-first", "--limit", 1)

    # The ERP is back. Try one.
    night.is_down = False
    one = ("--subscriber", "sync_erp", "--error", "TimeoutError")
    shown = stdout_of(app, "replay", oldest["event_id"], *one)
    assert "replayed 1 event, 1 job of 1 subscriber" in shown
    (batch,) = re.findall(r"Batch (\w+)", shown)
    night.run_workers()
    shown = run(app, "progress", batch).output
    assert shown == "all 1 accounted for: 1 done\n"

    # It works. What would the rest be?
    shown = stdout_of(app, "replay", *one, *since, "--dry-run")
    assert shown == "procore_webhooks: 299 events, 299 jobs of 1 subscriber\n"
    # Not without a confirmation.
    refused = run(app, "replay", *one, *since, ok=False)
    assert refused.exit_code == 2 and "Replay 299 events?" in refused.output
    batch = night.look("replay", *one, *since, "--rate", "100/s", "--yes")["batch"]
    waiting = run(app, "progress", batch, ok=False)
    assert waiting.exit_code == 1 and "299 of 299 to come" in waiting.output
    for _ in range(4):
        night.run_workers()
        site.clock.forward(1)
    shown = run(app, "progress", batch).output
    assert shown == "all 299 accounted for: 299 done\n"

    # Then everything else, and none of what has finished.
    batch = night.look("replay", "--all", "--yes")["batch"]
    night.run_workers()
    found = night.look("progress", batch)["endpoints"]["procore_webhooks"]
    assert found["counts"] == {"done": found["expected"]}
    assert night.look("errors") == []
    assert len(night.done) == len(set(night.done)) == 3 * EVENTS

    # Is somebody working? What waits?
    run(app, "pause", "--reason", "until the ERP is tested")
    site.send(id="later")
    numbers = night.look("stats")["procore_webhooks"]
    assert numbers["paused"] and numbers["paused_by"]
    assert len(numbers["processes"]) == 1
    run(app, "resume")
    night.run_workers()
    actions = [(e["action"], e["expected"], e["actual"]) for e in night.look("journal")]
    assert actions[2:] == [
        ("replay", found["expected"], found["expected"]),
        ("replay", 299, 299),
        ("replay", 1, 1),
    ]
