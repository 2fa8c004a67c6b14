"""``check``: pauses, processes that run events, hanging runs, unmatched patterns."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from flask import Flask
from support.commands import ME
from support.commands import run
from support.inboxes import event
from support.jobs import add_event
from support.processes import environment
from support.processes import start
from support.services import drop_tables
from support.sites import open_site
from support.sites import Site
from support.values import SECRET
from support.waiting import wait_until

from flask_procore_webhooks.dispatching.worker import Worker
from flask_procore_webhooks.inbox.record import record
from flask_procore_webhooks.operations.seen import note_seen

MakeApp = Callable[..., Flask]


def found_by(site: Site) -> str:
    return run(site.app, "check").output


def test_pause_is_a_warning_with_its_user_and_time(site: Site) -> None:
    site.send()
    assert "Paused" not in found_by(site)
    since = f"{site.clock():%Y-%m-%d %H:%M:%SZ}"
    run(site.app, "pause")
    site.clock.forward(70)
    shown = found_by(site)
    assert f"warning: Paused by {ME} since {since}: no event runs until" in shown
    assert "events have been due for 70 s" in shown
    run(site.app, "resume")
    assert "Paused" not in found_by(site)


def test_worker_that_was_never_seen_is_a_warning(site: Site) -> None:
    assert (
        "no process has been seen running events for 5 minutes (last seen: never)"
        in (found_by(site))
    )
    site.send()
    site.clock.forward(20)
    assert "and events have been due for 20 s" in found_by(site)
    assert run(site.app, "check", "--strict", ok=False).exit_code == 1


def test_worker_that_was_seen_is_no_finding_until_it_is_gone(site: Site) -> None:
    site.subscribe_good_and_bad()
    site.broken = False
    site.send()
    assert site.work() == 1
    assert "seen running" not in found_by(site)
    site.clock.forward(301)
    shown = found_by(site)
    assert "for 5 minutes (last seen: 301 s ago)" in shown
    assert "start flask procore-webhooks worker" in shown


def test_process_that_runs_other_endpoints_is_not_counted(
    two_sites: tuple[Site, Site],
) -> None:
    site, other = two_sites
    Worker([site.endpoint], poll=1).run_all()
    assert (
        "seen running"
        not in run(site.app, "check", "--endpoint", "procore_webhooks").output
    )
    assert "seen running" in run(site.app, "check", "--endpoint", "bolt").output


def test_background_without_a_process_is_a_warning_while_events_are_due(
    make_app: MakeApp, tmp_path: Path
) -> None:
    url, mode = f"sqlite:///{tmp_path}/test.db", "background"
    with open_site(make_app(), url, PROCORE_WEBHOOK_DISPATCH=mode) as site:
        assert "seen running" not in found_by(site)
        record(site.store, event())
        shown = found_by(site)
        assert "DISPATCH is 'background', and no process has been seen" in shown
        assert "call webhooks.start(app) in its start hook" in shown
        note_seen(site.store, "background")
        assert "webhooks.start" not in found_by(site)


def test_events_that_wait_although_a_worker_runs_are_a_warning(site: Site) -> None:
    site.send()
    site.clock.forward(400)
    note_seen(site.store, "worker", None, [7])
    assert "Events have been due for 400 s although 1 processes" in found_by(site)


def test_hanging_run_is_a_warning_with_subscriber_and_event(site: Site) -> None:
    run(site.app, "init-db")
    longest = {"subscriber": "app:sync", "event": "evt_1", "seconds": 1000.0}
    note_seen(site.store, "worker", None, [7], longest)
    shown = found_by(site)
    assert "The subscriber app:sync has been running event evt_1 for 1000 s" in shown
    assert f"in process {os.getpid()} of {socket.gethostname()}" in shown
    site.clock.forward(301)
    assert "app:sync" not in found_by(site), "the process is gone"


HANGING_APP = """
import sys, time
from flask import Flask
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.operations import seen

seen.SEEN_EVERY = 0.1  # seconds; a minute is too long for a test
app = Flask(__name__)
app.config.update({config!r})
webhooks = ProcoreWebhooks()
app.register_blueprint(webhooks)

@webhooks.on("RFIs", name="hangs")
def hang(event):
    time.sleep(3600)

@webhooks.on("Submittals", name="works")
def work(event): ...
"""


@pytest.mark.slow
@pytest.mark.parametrize("concurrency", ["1", "2"])
def test_hanging_call_of_a_worker_process_is_shown(
    make_app: MakeApp, database_url: str, tmp_path: Path, concurrency: str
) -> None:
    """Also when it occupies the only thread."""
    config = {
        "PROCORE_WEBHOOK_SECRET": SECRET,
        "PROCORE_WEBHOOK_DATABASE_URI": database_url,
        "PROCORE_WEBHOOK_DISPATCH": "worker",
        "PROCORE_WEBHOOK_LEASE": 1,
    }
    (tmp_path / "hangapp.py").write_text(HANGING_APP.format(config=config))
    command = ["-m", "flask", "--app", "hangapp", "procore-webhooks", "worker"]
    with open_site(make_app(), database_url, **config) as site:
        site.endpoint.store.now = site.endpoint.store.corrected_now
        site.send("RFIs.update", id="evt_hangs")
        assert "hangs" not in found_by(site)
        worker = start(
            [sys.executable, *command, "--concurrency", concurrency],
            folder=tmp_path,
            env=environment(path=[tmp_path]),
            log=tmp_path / "worker.log",
        )
        try:
            wait_until(lambda: "has been running" in found_by(site), 60, worker.output)
            shown, told = found_by(site), run(site.app, "stats").output
            assert "The subscriber hangs has been running event evt_hangs for" in shown
            assert f"in process {worker.pid} of {socket.gethostname()}" in shown
            assert re.search(r"hanging run: hangs, event evt_hangs, \d+\.\d s", told)
            (numbers,) = json.loads(run(site.app, "stats", "--json").output).values()
            (hanging,) = numbers["hanging_runs"]
            assert (hanging["event"], hanging["pid"]) == ("evt_hangs", worker.pid)
            assert hanging["seconds"] > 1
        finally:
            worker.kill()
        drop_tables(database_url)


def test_long_run_within_a_lease_is_no_finding(site: Site) -> None:
    run(site.app, "init-db")
    lease = site.endpoint.settings.lease
    longest = {"subscriber": "app:sync", "event": "evt_1", "seconds": lease - 1}
    note_seen(site.store, "worker", None, [7], longest)
    assert "app:sync" not in found_by(site)


def test_running_event_whose_process_is_gone_is_a_warning(site: Site) -> None:
    row_id = site.send()
    c = site.events.c
    with site.store.connection() as connection:
        connection.execute(
            sa.update(site.events).where(c.id == row_id).values(status="running")
        )
    site.clock.forward(61)
    assert "1 events are running with a lease that ended more than" in found_by(site)


@pytest.mark.parametrize(
    ("pattern", "suggestion"),
    [
        (("Submittal", "update"), "'Submittals'"),
        (("Submittal", "*"), "'Submittals'"),
        (("Submittals", "updates"), "'update'"),
        (("Timecards", "create"), None),
    ],
)
def test_pattern_that_never_matched_is_a_warning_with_the_nearest_name(
    site: Site, pattern: tuple[str, str], suggestion: str | None
) -> None:
    site.webhooks.on("RFIs", name="rfis")(print)
    site.webhooks.on(*pattern, name="sync")(print)
    site.send("RFIs.update")
    assert "matched none" not in found_by(site), "all types are subscribed"
    site.send("Submittals.update")
    site.send("Submittals.update")
    shown = found_by(site)
    type, reason = pattern
    assert f"warning: on('{type}', '{reason}') of sync matched none of the" in shown
    assert "have no subscriber: Submittals.update (2)" in shown
    found = re.search("Did you mean ('.*?')", shown)
    assert (found and found[1]) == suggestion


def test_patterns_that_match_are_no_finding(site: Site) -> None:
    site.webhooks.on("rfis", "UPDATE", name="rfis")(print)
    site.send("RFIs.update")
    site.send("Submittals.update")
    assert "matched none" not in found_by(site)


def test_types_without_a_subscriber_are_a_warning_until_replayed(site: Site) -> None:
    site.send("Submittals.update")
    site.work()
    assert "These types have no subscriber: Submittals.update (1)." in found_by(site)
    assert "have a subscriber now" not in found_by(site)
    site.webhooks.on("Submittals", name="sync")(print)
    shown = found_by(site)
    assert "Unmatched events have a subscriber now: Submittals.update (1)." in shown
    assert "These types have no subscriber" not in shown
    unmatched = ("--status", "unmatched", "--type", "Submittals.update")
    run(site.app, "replay", *unmatched, "--yes")
    site.work()
    assert "Submittals.update" not in found_by(site)


def test_pattern_like_a_subscribed_type_is_a_warning(sqlite_site: Site) -> None:
    site = sqlite_site
    site.webhooks.on(name="all")(print)
    site.webhooks.on("Submittal", name="typo")(print)
    site.webhooks.on("Timecards", name="rare")(print)
    site.send("Submittals.update")
    shown = found_by(site)
    assert "on('Submittal', '*') of typo matched none of the newest" in shown
    assert "Did you mean 'Submittals'?" in shown
    assert "of rare matched none" not in shown


def test_jobs_of_a_subscriber_that_the_app_lacks_are_a_warning(site: Site) -> None:
    site.webhooks.on(name="here")(print)
    for id in ("evt_1", "evt_2"):
        jobs = [{"subscriber": name, "state": "pending"} for name in ("gone", "here")]
        add_event(site.store, id, *jobs, {"subscriber": "left", "state": "dead"})
    shown = found_by(site)
    assert "2 jobs wait for the subscriber gone, which this app does not have" in shown
    assert "discard --subscriber gone" in shown
    assert "subscriber here" not in shown.partition("warning")[2]
    assert "subscriber left" not in shown


def test_postponed_jobs_need_a_worker_when_inline(
    make_app: MakeApp, tmp_path: Path
) -> None:
    url, mode = f"sqlite:///{tmp_path}/test.db", "inline"
    with open_site(make_app(), url, PROCORE_WEBHOOK_DISPATCH=mode) as site:
        site.webhooks.on("RFIs", name="plain")(print)
        assert "is 'inline'" not in found_by(site)
        site.webhooks.on("RFIs", name="later", after=60)(print)
        site.webhooks.on("RFIs", name="single", one_at_a_time=True)(print)
        assert "the subscribers later, single have after, settle or" in found_by(site)
        site.send()
        shown = found_by(site)
        assert "and postponed jobs wait, which no delivery runs: start flask" in shown
        note_seen(site.store, "worker")
        assert "is 'inline'" not in found_by(site)
