"""The command ``discard``."""

from __future__ import annotations

import json

import pytest
from support.commands import run
from support.commands import stdout_of
from support.jobs import add_event
from support.jobs import failed
from support.jobs import states_of
from support.sites import Site

from flask_procore_webhooks.operations.journal import journal_of

GONE = {"subscriber": "gone", "state": "pending", "waits_for": "absent"}
DEAD = failed("sync", "TimeoutError: after 30 s", attempts=12)


def test_jobs_of_a_removed_subscriber_are_discarded(site: Site) -> None:
    rows = [add_event(site.store, f"{n}", GONE, {"subscriber": "mail"}) for n in (1, 2)]
    other = add_event(site.store, "3", DEAD)
    shown = stdout_of(site.app, "discard", "--subscriber", "gone", "--yes")
    assert "procore_webhooks: discarded 2 events, 2 jobs of 1 subscriber" in shown
    ended = {"gone": "discarded", "mail": "done"}
    assert [states_of(site.store, row) for row in rows] == [ended, ended]
    assert site.statuses() == ["done", "done", "dead"]
    assert journal_of(site.store, other) == []


@pytest.mark.parametrize("status", ["unmatched", "quarantined"])
def test_events_without_jobs_are_ended(site: Site, status: str) -> None:
    add_event(site.store, "1", status=status)
    assert "Nothing to discard." in stdout_of(site.app, "discard", "--all")
    stdout_of(site.app, "discard", "--status", status)
    assert site.statuses() == ["done"]


def test_discard_asks_like_replay(sqlite_site: Site) -> None:
    for number in range(2):
        add_event(sqlite_site.store, f"{number}", DEAD)
    refused = run(sqlite_site.app, "discard", "--all", ok=False)
    assert refused.exit_code == 2
    assert "Discard 2 events? Give --yes, or --dry-run to look." in refused.output
    shown = stdout_of(sqlite_site.app, "discard", "--all", "--dry-run")
    assert shown == "procore_webhooks: 2 events, 2 jobs of 1 subscriber\n"
    assert run(sqlite_site.app, "discard", ok=False).exit_code == 2
    assert sqlite_site.statuses() == ["dead"] * 2


def test_discard_prints_json(sqlite_site: Site) -> None:
    add_event(sqlite_site.store, "1", DEAD, {"subscriber": "mail"})
    shown = json.loads(stdout_of(sqlite_site.app, "discard", "1", "--json"))
    assert shown["endpoints"]["procore_webhooks"] == {
        "events": 1,
        "jobs": 1,
        "without_jobs": 0,
        "subscribers": ["sync"],
        "left_out": {"finished already": 1},
    }
    assert len(shown["batch"]) == 8
