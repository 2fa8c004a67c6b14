"""The commands ``pause`` and ``resume``."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from flask import Flask
from support.commands import lines_of
from support.commands import ME
from support.commands import run
from support.sites import open_site
from support.sites import Site

from flask_procore_webhooks.inbox.due import is_paused
from flask_procore_webhooks.inbox.due import pause_of
from flask_procore_webhooks.storage.store import to_db_time

MakeApp = Callable[..., Flask]


def test_pause_keeps_its_reason(sqlite_site: Site) -> None:
    run(sqlite_site.app, "pause", "--reason", "deployment")
    assert pause_of(sqlite_site.store) == (
        ME,
        to_db_time(sqlite_site.clock()),
        "deployment",
    )
    run(sqlite_site.app, "resume")
    assert pause_of(sqlite_site.store) is None


def test_paused_endpoint_runs_no_events_until_resume(site: Site) -> None:
    site.subscribe_good_and_bad()
    assert "paused; events are recorded" in run(site.app, "pause").output
    site.send()
    assert "Ended after 0 runs" in run(site.app, "worker", "--once").output
    assert "resumed" in run(site.app, "resume").output
    assert "Ended after 1 runs" in run(site.app, "worker", "--once").output
    j = site.store.database.tables.journal.c
    look = sa.select(j.action, j.actor, j.event).order_by(j.id)
    assert [tuple(row) for row in site.store.rows(look)] == [
        ("pause", ME, None),
        ("resume", ME, None),
    ]


@pytest.mark.parametrize("command", ["pause", "resume"])
def test_pause_of_several_endpoints_needs_a_name_or_all(
    two_sites: tuple[Site, Site], command: str
) -> None:
    site, other = two_sites
    refused = run(site.app, command, ok=False)
    assert refused.exit_code == 2
    assert "Name an --endpoint (procore_webhooks, bolt) or give --all" in refused.output
    assert site.count("journal") == 0
    run(site.app, command, "--endpoint", "bolt")
    assert is_paused(other.store) is (command == "pause")
    assert not is_paused(site.store)
    assert len(lines_of(run(site.app, command, "--all").output)) == 2
    assert is_paused(site.store) is (command == "pause")


@pytest.mark.parametrize("command", ["pause", "resume"])
def test_inline_endpoint_cannot_be_paused(
    make_app: MakeApp, tmp_path: Path, command: str
) -> None:
    url = f"sqlite:///{tmp_path}/test.db"
    inline = {"PROCORE_WEBHOOK_DISPATCH": "inline"}
    with open_site(make_app(), url, **inline) as site:
        refused = run(site.app, command, ok=False)
        assert "which cannot be paused" in refused.output
        assert refused.exit_code == 1
        assert site.count("journal") == 0


def test_second_pause_keeps_the_first_one(sqlite_site: Site) -> None:
    run(sqlite_site.app, "pause", "--reason", "deployment")
    first = pause_of(sqlite_site.store)
    sqlite_site.clock.forward(60)
    shown = run(sqlite_site.app, "pause").output
    since = f"{sqlite_site.clock() - timedelta(seconds=60):%Y-%m-%d %H:%M:%SZ}"
    assert shown == f"procore_webhooks: paused already, by {ME} since {since}\n"
    assert pause_of(sqlite_site.store) == first
    assert sqlite_site.count("journal") == 1


def test_resume_without_a_pause_says_so(sqlite_site: Site) -> None:
    sqlite_site.store.database.create_tables()
    shown = run(sqlite_site.app, "resume").output
    assert shown == "procore_webhooks: is not paused\n"
    assert sqlite_site.count("journal") == 0


def test_stats_and_check_show_the_reason_of_a_pause(sqlite_site: Site) -> None:
    run(sqlite_site.app, "pause", "--reason", "the ERP\x1b[31m\nis down")
    now = f"{sqlite_site.clock():%Y-%m-%d %H:%M:%SZ}"
    shown = run(sqlite_site.app, "stats").output
    assert f"(by {ME} since {now}: the ERP\\x1b[31m\\nis down)" in shown
    shown = run(sqlite_site.app, "check").output
    assert f"Paused by {ME} since {now} (the ERP\\x1b[31m is down): no event" in shown
