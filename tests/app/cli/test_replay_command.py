"""The command ``replay``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
from flask import Flask
from flask_procore_webhooks.inbox.operations import BATCH
from flask_procore_webhooks.inbox.operations import journal_of
from support.commands import lines_of
from support.commands import listed
from support.commands import ME
from support.commands import run
from support.commands import stdout_of
from support.sites import add_finished
from support.sites import open_site
from support.sites import Site

from flask_procore_webhooks.inbox.status import Status

MakeApp = Callable[..., Flask]


def test_failed_event_can_be_listed_shown_and_replayed(
    site: Site,
) -> None:
    site.subscribe_good_and_bad()
    site.send(id="good-one", type="Submittals.update")
    site.send(id="bad-one", resource_id=42)
    site.work()

    (row,) = (
        run(site.app, "list", "--status", "dead", "--type", "RFIs.update")
        .output[:-1]
        .split("\n")[1:]
    )
    event_id = row.split()[-1]
    assert event_id == "bad-one"

    shown = run(site.app, "show", event_id).output
    assert re.search(r"^error +bad: ValueError: broken$", shown, re.MULTILINE)
    assert re.search(r"^receipt +good done \d{4}-", shown, re.MULTILINE)
    assert '"resource_id":42' in shown

    site.broken = False
    assert lines_of(stdout_of(site.app, "replay", event_id)) == [
        "procore_webhooks: replayed 1",
        "workers run them at their next poll",
    ]
    assert "Ended after 1 runs" in run(site.app, "worker", "--once").output
    shown = run(site.app, "show", event_id).output
    assert re.search(r"^status +done$", shown, re.MULTILINE)
    assert re.search(rf"^replay +\d{{4}}-.* by {ME}$", shown, re.MULTILINE)
    assert listed(site, "--status", "dead") == ["good-one"]
    assert site.calls.count(("good", "bad-one")) == 1


def dead_ones(site: Site, number: int = 3) -> list[int]:
    site.subscribe_good_and_bad()
    rows = [site.send(id=f"evt_{n}") for n in range(number)]
    site.work()
    site.calls.clear()
    site.broken = False
    return rows


def test_replay_takes_event_ids_and_row_ids(site: Site) -> None:
    rows = dead_ones(site, 4)
    run(site.app, "replay", "evt_1", rows[3])
    assert site.statuses() == ["dead", "pending", "dead", "pending"]
    assert [len(journal_of(site.store, row)) for row in rows] == [0, 1, 0, 1]


def test_replay_without_selection_is_refused(sqlite_site: Site) -> None:
    dead_ones(sqlite_site)
    refused = run(sqlite_site.app, "replay", ok=False)
    assert "Name events, give a filter, or give --all." in refused.output
    assert run(sqlite_site.app, "replay", "--anew", ok=False).exit_code == 2
    assert sqlite_site.statuses() == ["dead"] * 3


@pytest.mark.parametrize(
    "more", [["--status", "dead"], ["--since", "-60"], ["--all"]], ids=" ".join
)
def test_replay_of_named_events_takes_no_filter(
    sqlite_site: Site, more: list[str]
) -> None:
    dead_ones(sqlite_site)
    refused = run(sqlite_site.app, "replay", "evt_1", *more, ok=False)
    assert "Name events or" in refused.output and refused.exit_code == 2
    assert sqlite_site.statuses() == ["dead"] * 3


def test_replay_of_unknown_events_names_them_and_replays_nothing(
    sqlite_site: Site,
) -> None:
    dead_ones(sqlite_site)
    refused = run(sqlite_site.app, "replay", "nope", "evt_1", "12345", ok=False)
    assert refused.output.endswith("no such event in the inbox: 12345, nope.\n")
    assert sqlite_site.statuses() == ["dead"] * 3


def test_replay_all_selects_dead_events(site: Site) -> None:
    rows = dead_ones(site)
    add_finished(site, 2)
    assert lines_of(stdout_of(site.app, "replay", "--all"))[0].endswith("replayed 3")
    assert site.statuses() == ["pending"] * 3 + ["done"] * 2
    again = stdout_of(site.app, "replay", "--all")
    assert lines_of(again) == ["procore_webhooks: replayed 0"]
    assert all(len(journal_of(site.store, row)) == 1 for row in rows)


def test_replay_of_done_events_reruns_every_subscriber(site: Site) -> None:
    dead_ones(site)
    add_finished(site, 2)
    run(site.app, "replay", "--status", "done")
    assert site.statuses() == ["dead"] * 3 + ["pending"] * 2
    site.work()
    assert sorted(name for name, _ in site.calls) == ["bad"] * 2 + ["good"] * 2


def test_replay_anew_reruns_finished_subscribers(site: Site) -> None:
    dead_ones(site, 1)
    run(site.app, "replay", "--all", "--anew")
    site.work()
    assert site.calls == [("good", "evt_0"), ("bad", "evt_0")]


def test_replay_json_counts_by_endpoint(two_sites: tuple[Site, Site]) -> None:
    site, other = two_sites
    dead_ones(site)
    dead_ones(other, 2)
    site.send(id="waits")
    run(site.app, "replay", "evt_0", "--endpoint", "bolt")
    assert other.statuses() == ["pending", "dead"]
    assert site.statuses() == ["dead"] * 3 + ["pending"]
    shown = stdout_of(site.app, "replay", "evt_0", "evt_1", "waits", "--json")
    assert json.loads(shown) == {
        "procore_webhooks": {"replayed": 2, "skipped": 1},
        "bolt": {"replayed": 1, "skipped": 1},
    }
    shown = stdout_of(site.app, "replay", "--all", "--json")
    assert json.loads(shown) == {
        "procore_webhooks": {"replayed": 1, "skipped": 0},
        "bolt": {"replayed": 0, "skipped": 0},
    }


def test_replay_reports_skipped_events(sqlite_site: Site) -> None:
    sqlite_site.send(id="waits")
    shown = lines_of(stdout_of(sqlite_site.app, "replay", "waits"))
    assert shown == [
        "procore_webhooks: replayed 0",
        "skipped 1: not finished yet, or their bodies are pruned",
    ]


def test_replay_takes_more_than_a_batch(site: Site) -> None:
    add_finished(site, BATCH + 5, Status.DEAD)
    shown = stdout_of(site.app, "replay", "--all", "--json")
    assert json.loads(shown)["procore_webhooks"]["replayed"] == BATCH + 5
    assert set(site.statuses()) == {"pending"}


def test_replay_runs_the_events_of_inline_endpoints_itself(
    make_app: MakeApp, database_url: str
) -> None:
    inline = {"PROCORE_WEBHOOK_DISPATCH": "inline"}
    with open_site(make_app(), database_url, **inline) as site:
        dead_ones(site)
        shown = lines_of(stdout_of(site.app, "replay", "--all"))
        assert shown == [
            "procore_webhooks: replayed 3",
            "they were run here, because DISPATCH is inline; failed events wait for the"
            " sender's next delivery, or for worker --once",
        ]
        assert site.statuses() == ["done"] * 3
        assert site.calls == [("bad", f"evt_{n}") for n in range(3)]


def test_replay_accepts_a_time_filter_alone(sqlite_site: Site) -> None:
    dead_ones(sqlite_site)
    shown = stdout_of(sqlite_site.app, "replay", "--since", -60, "--json")
    assert json.loads(shown)["procore_webhooks"]["replayed"] == 3


def test_number_is_an_event_id_before_a_row_id(
    two_sites: tuple[Site, Site],
) -> None:
    one, other = two_sites
    rows = [one.send(id="2"), one.send(id="evt_b"), other.send(id="evt_c")]
    for each in two_sites:
        assert each.work()
    assert "replayed 1" in stdout_of(one.app, "replay", "2")
    assert [one.row(row)["status"] for row in rows] == ["pending", "done", "done"]
    one.work()
    assert "replayed 1" in stdout_of(one.app, "replay", str(rows[2]))
    assert [one.row(row)["status"] for row in rows] == ["done", "done", "pending"]


def test_replay_and_worker_mention_a_paused_endpoint(
    sqlite_site: Site,
) -> None:
    sqlite_site.send(id="evt_1")
    sqlite_site.work()
    run(sqlite_site.app, "pause")
    assert "paused: no event runs until resume" in stdout_of(
        sqlite_site.app, "replay", "evt_1"
    )
    shown = run(sqlite_site.app, "worker", "--once").output
    assert "is paused: no event runs until resume" in shown
    assert "Ended after 0 runs" in shown
