"""The command ``replay``."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from flask import Flask
from support.commands import lines_of
from support.commands import ME
from support.commands import run
from support.commands import stdout_of
from support.jobs import add_event
from support.jobs import failed
from support.jobs import jobs_of
from support.jobs import set_event
from support.jobs import states_of
from support.jobs import take_lease
from support.sites import open_site
from support.sites import Site

from flask_procore_webhooks import Event
from flask_procore_webhooks import event_dead
from flask_procore_webhooks.operations.journal import batch_of
from flask_procore_webhooks.operations.journal import journal_of
from flask_procore_webhooks.operations.selection import PART

MakeApp = Callable[..., Flask]

DEAD = failed("sync", "TimeoutError: after 30 s", attempts=12)
MAIL = {"subscriber": "mail"}


def subscribe(site: Site) -> None:
    for name in ("sync", "mail", "new"):
        site.webhooks.on("RFIs", name=name)(lambda event: None)


def dead_ones(site: Site, number: int = 3) -> list[int]:
    subscribe(site)
    return [add_event(site.store, f"evt_{n}", DEAD, MAIL) for n in range(number)]


def replayed(site: Site, *arguments: object) -> dict[str, int]:
    """What the command says of the endpoint, as JSON."""
    shown = json.loads(stdout_of(site.app, "replay", *arguments, "--json"))
    counts: dict[str, int] = shown["endpoints"][site.endpoint.name]
    return counts


# The selection


def test_replay_takes_event_ids_and_row_ids(site: Site) -> None:
    rows = dead_ones(site, 4)
    run(site.app, "replay", "evt_1", rows[3], "--yes")
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
def test_replay_of_named_events_takes_no_filter_of_events(
    sqlite_site: Site, more: list[str]
) -> None:
    dead_ones(sqlite_site)
    refused = run(sqlite_site.app, "replay", "evt_1", *more, ok=False)
    assert "Name events or" in refused.output and refused.exit_code == 2
    assert sqlite_site.statuses() == ["dead"] * 3


def test_replay_of_named_events_takes_a_subscriber(sqlite_site: Site) -> None:
    rows = dead_ones(sqlite_site)
    counts = replayed(sqlite_site, "evt_1", "--subscriber", "mail", "--anew")
    assert (counts["jobs"], counts["subscribers"]) == (1, ["mail"])
    assert states_of(sqlite_site.store, rows[1]) == {"mail": "pending", "sync": "dead"}


def test_replay_of_unknown_events_names_them_and_replays_nothing(
    sqlite_site: Site,
) -> None:
    dead_ones(sqlite_site)
    refused = run(sqlite_site.app, "replay", "nope", "evt_1", "12345", ok=False)
    assert refused.output.endswith("no such event in the inbox: 12345, nope.\n")
    assert sqlite_site.statuses() == ["dead"] * 3


def test_replay_all_selects_dead_jobs(site: Site) -> None:
    rows = dead_ones(site)
    done = add_event(site.store, "done", MAIL)
    assert replayed(site, "--all", "--yes")["events"] == 3
    assert site.statuses() == ["pending"] * 3 + ["done"]
    assert "Nothing to replay." in stdout_of(site.app, "replay", "--all")
    assert all(len(journal_of(site.store, row)) == 1 for row in rows)
    assert journal_of(site.store, done) == []


def test_replay_of_done_events_needs_anew(site: Site) -> None:
    subscribe(site)
    rows = [add_event(site.store, f"{n}", MAIL) for n in range(2)]
    shown = stdout_of(site.app, "replay", "--status", "done")
    assert "2 finished already: left out" in shown
    assert replayed(site, "--status", "done", "--anew", "--yes")["jobs"] == 2
    assert [states_of(site.store, row) for row in rows] == [{"mail": "pending"}] * 2


def test_waiting_jobs_are_hurried(site: Site) -> None:
    subscribe(site)
    waits = {"subscriber": "sync", "state": "pending", "wait": 900}
    rows = [add_event(site.store, f"{n}", waits) for n in range(5)]
    assert replayed(site, "--status", "pending", "--yes")["jobs"] == 5
    assert {site.row(row)["due_at"] for row in rows} == {site.store.db_now()}


def test_unmatched_events_become_pending(site: Site) -> None:
    subscribe(site)
    row = add_event(site.store, "1", status="unmatched")
    counts = replayed(site, "--status", "unmatched", "--type", "rfis.update")
    assert (counts["events"], counts["without_jobs"]) == (1, 1)
    assert site.row(row)["status"] == "pending"


def test_new_subscriber_gets_jobs_of_done_events(site: Site) -> None:
    subscribe(site)
    row = add_event(site.store, "1", MAIL)
    add_event(site.store, "2", MAIL, resource_type="Submittals")
    hint = stdout_of(site.app, "replay", "--subscriber", "new")
    assert "With --status done, events without a job of it get one." in hint
    counts = replayed(site, "--status", "done", "--subscriber", "new")
    assert (counts["events"], counts["subscribers"]) == (1, ["new"])
    assert states_of(site.store, row) == {"mail": "done", "new": "pending"}


def test_misspelt_subscriber_is_named(sqlite_site: Site) -> None:
    dead_ones(sqlite_site)
    shown = stdout_of(sqlite_site.app, "replay", "--subscriber", "synk", "--yes")
    assert "The app has no subscriber 'synk'. Did you mean 'sync'?" in shown
    assert "Nothing to replay." in shown
    assert sqlite_site.statuses() == ["dead"] * 3


def test_absent_subscriber_of_replayed_jobs_is_named(sqlite_site: Site) -> None:
    add_event(sqlite_site.store, "1", failed("gone", "KeyError: x"))
    shown = stdout_of(sqlite_site.app, "replay", "1")
    assert "The app has no subscriber 'gone': its jobs wait for it." in shown


def test_replay_counts_by_endpoint(two_sites: tuple[Site, Site]) -> None:
    site, other = two_sites
    dead_ones(site)
    add_event(other.store, "evt_0", DEAD)
    add_event(other.store, "evt_1", DEAD)
    run(site.app, "replay", "evt_0", "--endpoint", "bolt")
    assert other.statuses() == ["pending", "dead"]
    assert site.statuses() == ["dead"] * 3
    shown = json.loads(stdout_of(site.app, "replay", "--all", "--yes", "--json"))
    counts = {name: each["events"] for name, each in shown["endpoints"].items()}
    assert counts == {"procore_webhooks": 3, "bolt": 1}
    for each in two_sites:
        assert batch_of(each.store, shown["batch"]) is not None


def test_number_is_an_event_id_before_a_row_id(
    two_sites: tuple[Site, Site],
) -> None:
    one, other = two_sites
    rows = [
        add_event(one.store, "2", DEAD),
        add_event(one.store, "evt_b", DEAD),
        add_event(other.store, "evt_c", DEAD),
    ]
    run(one.app, "replay", "2")
    assert [one.row(row)["status"] for row in rows] == ["pending", "dead", "dead"]
    run(one.app, "replay", rows[2])
    assert [one.row(row)["status"] for row in rows] == ["pending", "dead", "pending"]


# Before and after


def test_dry_run_counts_and_changes_nothing(site: Site) -> None:
    rows = dead_ones(site, 5)
    take_lease(site.store, rows[0], 100)
    set_event(site.store, rows[1], body=None)
    before = [site.row(row) for row in rows]
    assert lines_of(stdout_of(site.app, "replay", "--all", "--dry-run")) == [
        "procore_webhooks: 3 events, 3 jobs of 1 subscriber; 3 finished already: left"
        " out; 1 running: left out; 1 without their bodies, which are pruned: left out"
    ]
    assert [site.row(row) for row in rows] == before
    assert site.count("journal") == 0
    shown = json.loads(stdout_of(site.app, "replay", "--all", "--dry-run", "--json"))
    assert shown["dry_run"] is True and shown["batch"] is None


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_without_a_terminal_several_events_need_yes(
    sqlite_site: Site, more: list[str]
) -> None:
    dead_ones(sqlite_site)
    refused = run(sqlite_site.app, "replay", "--all", *more, ok=False)
    assert refused.exit_code == 2
    assert "Replay 3 events? Give --yes, or --dry-run to look." in refused.output
    assert sqlite_site.statuses() == ["dead"] * 3
    assert sqlite_site.count("journal") == 0


APP = """
from flask import Flask
from flask_procore_webhooks import ProcoreWebhooks

app = Flask("host")
app.config.update({config!r})
app.register_blueprint(ProcoreWebhooks())
"""


@pytest.mark.parametrize(("answer", "status"), [("y", "pending"), ("n", "dead")])
def test_in_a_terminal_the_command_asks(
    sqlite_site: Site, tmp_path: Path, answer: str, status: str
) -> None:
    dead_ones(sqlite_site)
    names = ("PROCORE_WEBHOOK_SECRET", "PROCORE_WEBHOOK_DATABASE_URI")
    config = {name: sqlite_site.app.config[name] for name in names}
    (tmp_path / "host.py").write_text(APP.format(config=config))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "flask", "--app", "host", "procore-webhooks"]
    os.write(ours, f"{answer}\n".encode())
    result = subprocess.run(
        [*command, "replay", "--all"],
        cwd=tmp_path,
        stdin=theirs,
        capture_output=True,
        text=True,
    )
    os.close(ours)
    os.close(theirs)
    assert "Replay 3 events? [y/N]" in result.stdout, result.stderr
    assert result.returncode == (answer == "n")
    assert sqlite_site.statuses() == [status] * 3


def test_replay_says_what_happens_next_and_names_the_batch(site: Site) -> None:
    dead_ones(site)
    shown = lines_of(stdout_of(site.app, "replay", "--all", "--yes"))
    next_command = r"see how it goes with \w+ procore-webhooks progress"
    batch = re.fullmatch(rf"Batch (\w{{8}}): {next_command} \1", shown[2])
    assert batch is not None
    assert [*shown[:2], *shown[3:]] == [
        "procore_webhooks: 3 events, 3 jobs of 1 subscriber; 3 finished already: left"
        " out",
        "procore_webhooks: replayed 3 events, 3 jobs of 1 subscriber",
        "procore_webhooks: workers run them at their next poll",
    ]
    found = batch_of(site.store, batch[1])
    assert found is not None
    assert (found.actor, found.expected, found.actual) == (ME, 3, 3)


def test_replay_takes_more_than_a_part(site: Site) -> None:
    subscribe(site)
    for number in range(PART + 5):
        add_event(site.store, f"{number}", DEAD)
    assert replayed(site, "--all", "--yes")["events"] == PART + 5
    assert set(site.statuses()) == {"pending"}


def test_interrupted_batch_is_continued_by_its_id(site: Site) -> None:
    dead_ones(site)
    batch = json.loads(stdout_of(site.app, "replay", "evt_0", "--json"))["batch"]
    again = stdout_of(site.app, "replay", "--batch", batch)
    assert "replayed 0 events" in again
    refused = run(site.app, "replay", "--batch", batch, "--all", ok=False)
    assert refused.exit_code == 2
    assert "--batch selects what the batch had selected" in refused.output
    refused = run(site.app, "discard", "--batch", batch, ok=False)
    assert f"Batch {batch} is a replay." in refused.output
    refused = run(site.app, "replay", "--batch", "nope", ok=False)
    assert "There is no batch 'nope' in the journal." in refused.output


def test_rate_spaces_the_due_times(site: Site) -> None:
    rows = dead_ones(site)
    shown = stdout_of(site.app, "replay", "--all", "--yes", "--rate", "30/m")
    assert "they become due one after the other" in shown
    start = site.store.db_now()
    waits = [(site.row(row)["due_at"] - start).total_seconds() for row in rows]
    assert waits == [0.0, 2.0, 4.0]
    refused = run(site.app, "replay", "--all", "--rate", "fast", ok=False)
    assert "not a rate like 10/s, 600/m or 5/h" in refused.output


def test_replay_runs_the_events_of_inline_endpoints_itself(
    make_app: MakeApp, database_url: str
) -> None:
    inline = {"PROCORE_WEBHOOK_DISPATCH": "inline"}
    with open_site(make_app(), database_url, **inline) as site:
        site.webhooks.on(name="notes")(lambda event: site.calls.append(event.id))
        for number in range(3):
            add_event(site.store, f"evt_{number}", status="unmatched")
        shown = stdout_of(site.app, "replay", "--status", "unmatched", "--yes")
        assert "they were run here, because DISPATCH is inline" in shown
        assert site.statuses() == ["done"] * 3
        assert site.calls == [f"evt_{n}" for n in range(3)]


def test_replay_and_worker_mention_a_paused_endpoint(
    sqlite_site: Site,
) -> None:
    dead_ones(sqlite_site)
    run(sqlite_site.app, "pause")
    assert "paused: no event runs until resume" in stdout_of(
        sqlite_site.app, "replay", "evt_1"
    )
    shown = run(sqlite_site.app, "worker", "--once").output
    assert "is paused: no event runs until resume" in shown
    assert "Ended after 0 runs" in shown


def test_replay_with_a_died_since_and_an_error(site: Site) -> None:
    dead_ones(site)
    site.clock.forward(3600)
    when = site.clock().isoformat()
    row = add_event(site.store, "late", failed("sync", "HTTPError: 503"))
    assert replayed(site, "--died-since", when, "--error", "TimeoutError") == {
        "events": 0,
        "jobs": 0,
        "left_out": {},
        "subscribers": [],
        "without_jobs": 0,
    }
    assert replayed(site, "--died-since", when)["events"] == 1
    assert jobs_of(site.store, row)["sync"]["state"] == "pending"


def test_replay_that_leaves_out_all_says_what_takes_them(sqlite_site: Site) -> None:
    add_event(sqlite_site.store, "1", {"subscriber": "sync"}, status="done")
    shown = run(sqlite_site.app, "replay", "1").output
    assert lines_of(shown)[1:] == [
        "With --anew, jobs that have finished run again.",
        "Nothing to replay.",
    ]


def test_replay_with_a_rate_says_when_the_last_event_is_due(sqlite_site: Site) -> None:
    for number in range(31):
        add_event(sqlite_site.store, f"{number}", DEAD)
    shown = run(sqlite_site.app, "replay", "--all", "--yes", "--rate", "30/m").output
    assert "one after the other, the last in 60 s" in shown


def test_dead_event_has_the_errors_of_its_dead_jobs_only(site: Site) -> None:
    errors = {"mended": OSError("away"), "other": KeyError("x")}

    def subscribe(name: str) -> None:
        @site.webhooks.on(name=name)
        def fail(event: Event) -> None:
            if name in errors:
                raise errors[name]

    subscribe("mended")
    subscribe("other")
    site.send()
    site.work()
    row = site.row(1)
    assert row["error"] == "mended: OSError: away\nother: KeyError: 'x'"

    del errors["mended"]
    told = []

    def note(app: Flask, event: Event, error: str, **fields: object) -> None:
        told.append(error)

    with event_dead.connected_to(note, site.app):
        run(site.app, "replay", "--subscriber", "mended", "--yes")
        site.work()
    row = site.row(1)
    assert (row["status"], row["error"]) == ("dead", "other: KeyError: 'x'")
    assert told == [row["error"]]
