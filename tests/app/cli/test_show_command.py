"""The command ``show``."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from pathlib import Path

import pytest
from flask import Flask
from support.commands import ME
from support.commands import run
from support.commands import send
from support.jobs import add_event
from support.receivers import Receiver
from support.sites import add_finished
from support.sites import DAY
from support.sites import Site
from support.values import Clock

from flask_procore_webhooks import Discard
from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import RetryLater
from flask_procore_webhooks.cli.show import WAITS
from flask_procore_webhooks.inbox.status import Wait
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import payload


def test_show_finds_an_event_by_either_id(app: Flask) -> None:
    send(app)
    event_id = send(app)
    for name in (event_id, "2"):
        shown = run(app, "show", name).output
        assert re.search(rf"^event_id +{event_id}$", shown, re.MULTILINE)
        assert json.loads(shown.splitlines()[-1])["id"] == event_id


def test_show_prefers_the_senders_id_to_a_row_id(app: Flask) -> None:
    send(app, id="2")
    send(app, id="1")
    (row,) = json.loads(run(app, "show", "1", "--json").output)
    assert (row["id"], row["event_id"]) == (2, "1")


@pytest.mark.parametrize("long", ["x" * 300, "mit Leerzeichen", "ünïcode"])
def test_show_finds_an_event_by_an_id_that_is_kept_as_a_digest(
    app: Flask, long: str
) -> None:
    send(app, id=long)
    (row,) = json.loads(run(app, "show", long, "--json").output)
    assert row["event_id"].startswith("sha256:")
    assert len(json.loads(run(app, "show", row["event_id"], "--json").output)) == 1


@pytest.mark.parametrize(
    "unknown", ["ü", "99999999999999999999", "-1", "", "\udcff", "'"]
)
def test_show_reports_an_unknown_event_on_every_database(
    database_app: Flask, unknown: str
) -> None:
    send(database_app)
    assert (
        "There is no event" in run(database_app, "show", "--", unknown, ok=False).output
    )


def test_show_prints_jobs_errors_and_conflicts(
    app: Flask, webhooks: ProcoreWebhooks, clock: Clock
) -> None:
    webhooks.on(name="easy")(lambda event: None)

    @webhooks.on(name="hard")
    def fail(event: object) -> None:
        raise RetryLater(60)

    send(app, id="1")
    send(app, id="1", resource_id=7)
    shown = run(app, "show", "1").output
    due = f"{clock() + timedelta(seconds=60):%Y-%m-%d %H:%M:%SZ}"
    assert re.search(r"^job +easy done, attempts: 1$", shown, re.MULTILINE)
    waits = "hard pending, attempts: 0, waits for the time of its RetryLater until"
    assert re.search(rf"^job +{waits} {due}$", shown, re.MULTILINE)
    assert re.search(r"^conflicts +1$", shown, re.MULTILINE)
    assert "repeats: 1, with another body: 1" in shown
    (row,) = json.loads(run(app, "show", "1", "--json").output)
    assert [job["subscriber"] for job in row["jobs"]] == ["easy", "hard"]
    assert (row["status"], row["conflicts"]) == ("pending", 1)
    assert "lease" not in row


def test_show_prints_the_traceback_on_request(
    app: Flask, webhooks: ProcoreWebhooks
) -> None:
    @webhooks.on(name="bad")
    def fail(event: object) -> None:
        raise ValueError("two\nlines")

    deliver(app.test_client(), payload("RFIs.update", id="1"))
    shown = run(app, "show", "1").output
    assert re.search(r"^  error +ValueError: two\n +lines$", shown, re.MULTILINE)
    assert "Traceback" not in shown
    shown = run(app, "show", "1", "--traceback").output
    assert re.search(r"^  traceback +Traceback \(most recent", shown, re.MULTILINE)
    assert 'raise ValueError("two' in shown
    (row,) = json.loads(run(app, "show", "1", "--json").output)
    (job,) = row["jobs"]
    assert job["traceback"].startswith("Traceback")
    assert (job["error_class"], job["error"]) == ("ValueError", "two\nlines")


def test_show_prints_what_happened_in_order(sqlite_site: Site) -> None:
    """A replay keeps the former error."""
    site = sqlite_site
    site.subscribe_good_and_bad()
    site.send(id="evt_1")
    site.clock.forward(10)
    site.work()
    site.clock.forward(10)
    run(site.app, "replay", "evt_1", "--yes")
    site.clock.forward(10)
    site.broken = False
    site.work()
    shown = run(site.app, "show", "evt_1").output
    seconds = [
        f"{site.clock() - timedelta(seconds=s):%H:%M:%SZ}" for s in (30, 20, 10, 0)
    ]
    received, ran, replay, again = seconds
    history = re.findall(r"^\d{4}-\d\d-\d\d ([\d:]{8}Z) *(.*)$", shown, re.MULTILINE)
    batch = history[3][1].removeprefix(f"replay by {ME}, batch ")
    assert history == [
        (received, "received (delivery)"),
        (ran, "good: attempt 1 began"),
        (ran, "good: done"),
        (replay, f"replay by {ME}, batch {batch}"),
        (replay, "before: bad, dead, attempts: 1: ValueError: broken"),
        (again, "bad: attempt 1 began"),
        (again, "bad: done"),
    ]
    assert re.search(r"^  former error +ValueError: broken$", shown, re.MULTILINE)
    (row,) = json.loads(run(site.app, "show", "evt_1", "--json").output)
    assert [entry["what"].strip() for entry in row["history"]] == [
        w for _, w in history
    ]


def test_show_body_prints_the_exact_bytes(app: Flask) -> None:
    body = b"\xff\x00\r\n\x1b[31m"
    deliver(app.test_client(), body)
    assert run(app, "show", "1", "--body").stdout_bytes == body
    (row,) = json.loads(run(app, "show", "1", "--json").output)
    assert (row["body"], row["body_base64"]) == (None, "/wANChtbMzFt")
    assert r"\xff\x00\r" in run(app, "show", "1", color=True).output
    send(app, id="text")
    (row,) = json.loads(run(app, "show", "text", "--json").output)
    assert json.loads(row["body"])["id"] == "text" and row["body_base64"] is None


def test_shown_body_can_be_verified_and_sent_again(
    app: Flask, receiver: Receiver, tmp_path: Path
) -> None:
    send(app, id="again")
    body = run(app, "show", "again", "--body").stdout_bytes
    run(app, "trigger", "--file", "-", "--url", receiver.url, input=body)
    assert receiver.got[0].body == body
    assert receiver.json()[0]["id"] == "again"


def test_show_prints_the_state_of_each_job(site: Site) -> None:
    site.webhooks.on(name="keeps")(lambda event: None)
    site.webhooks.on(name="picks", when=lambda event: False)(lambda event: None)

    @site.webhooks.on(name="declines")
    def declines(event: Event) -> None:
        raise Discard("not ours")

    site.send(id="evt_1")
    site.work()
    shown = run(site.app, "show", "evt_1").output
    for line in ("keeps done", "picks suppressed", "declines discarded"):
        assert re.search(rf"^job +{line}, attempts: \d", shown, re.MULTILINE)
    assert json.loads(shown.splitlines()[-1])["id"] == "evt_1"


@pytest.mark.parametrize("wait", Wait)
def test_show_says_what_a_job_waits_for(sqlite_site: Site, wait: Wait) -> None:
    job = {"subscriber": "sync", "state": "pending", "wait": 60, "key": "rfis/7"}
    add_event(sqlite_site.store, "evt_1", {**job, "waits_for": wait.value})
    shown = run(sqlite_site.app, "show", "evt_1").output
    due = f"{sqlite_site.clock() + timedelta(seconds=60):%Y-%m-%d %H:%M:%SZ}"
    assert f"attempts: 1, waits {WAITS[wait]} rfis/7 until {due}" in shown


def test_show_of_a_pruned_event_has_no_body(sqlite_site: Site) -> None:
    add_finished(sqlite_site, 1, age=8 * DAY)
    run(sqlite_site.app, "prune", "--yes")
    shown = run(sqlite_site.app, "show", "old0").output
    assert re.search(r"^status +done$", shown, re.MULTILINE)
    assert run(sqlite_site.app, "show", "old0", "--body").stdout_bytes == b""
    (row,) = json.loads(run(sqlite_site.app, "show", "old0", "--json").output)
    assert (row["body"], row["body_base64"]) == (None, None)
