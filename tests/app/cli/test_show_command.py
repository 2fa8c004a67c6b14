"""The command ``show``."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from flask import Flask
from support.commands import ME
from support.commands import run
from support.commands import send
from support.receivers import Receiver
from support.sites import add_finished
from support.sites import DAY
from support.sites import Site

from flask_procore_webhooks import Discard
from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import RetryLater
from flask_procore_webhooks.testing import deliver


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


def test_show_prints_receipts_error_and_conflicts(
    app: Flask, webhooks: ProcoreWebhooks
) -> None:
    webhooks.on(name="easy")(lambda event: None)

    @webhooks.on(name="hard")
    def fail(event: object) -> None:
        raise RetryLater(60)

    send(app, id="1")
    send(app, id="1", resource_id=7)
    shown = run(app, "show", "1").output
    assert re.search(r"^receipt +easy done \d{4}", shown, re.MULTILINE)
    assert re.search(r"^error +hard: retry after 60 s$", shown, re.MULTILINE)
    assert re.search(r"^conflicts +1$", shown, re.MULTILINE)
    (row,) = json.loads(run(app, "show", "1", "--json").output)
    assert [r["subscriber"] for r in row["receipts"]] == ["easy"]
    assert (row["status"], row["attempts"], row["conflicts"]) == ("pending", 2, 1)
    assert "lease" not in row


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


def test_show_prints_the_receipt_of_each_subscriber(site: Site) -> None:
    site.webhooks.on(name="keeps")(lambda event: None)
    site.webhooks.on(name="latest", latest_only=True)(lambda event: None)

    @site.webhooks.on(name="declines")
    def declines(event: Event) -> None:
        raise Discard("not ours")

    site.send(id="older", created=1_700_000_000)
    site.send(id="newer", created=1_700_000_001)
    site.work()
    run(site.app, "replay", "newer")
    shown = run(site.app, "show", "older").output
    for line in ("keeps done", "latest superseded", "declines discarded"):
        assert re.search(rf"^receipt +{line} \d{{4}}-", shown, re.MULTILINE)
    assert json.loads(shown.splitlines()[-1])["id"] == "older"
    (row,) = json.loads(run(site.app, "show", "newer", "--json").output)
    assert row["receipts"] == []
    ((action, actor),) = [(e["action"], e["actor"]) for e in row["journal"]]
    assert (action, actor) == ("replay", ME)
    assert row["journal"][0]["at"].endswith("Z")


def test_show_of_a_pruned_event_has_no_body(sqlite_site: Site) -> None:
    add_finished(sqlite_site, 1, age=8 * DAY)
    run(sqlite_site.app, "prune")
    shown = run(sqlite_site.app, "show", "old0").output
    assert re.search(r"^status +done$", shown, re.MULTILINE)
    assert run(sqlite_site.app, "show", "old0", "--body").stdout_bytes == b""
    (row,) = json.loads(run(sqlite_site.app, "show", "old0", "--json").output)
    assert (row["body"], row["body_base64"]) == (None, None)
