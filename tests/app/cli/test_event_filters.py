"""The filters that ``list``, ``errors`` and ``replay`` share."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from datetime import timedelta
from datetime import timezone
from typing import Any

import pytest
import sqlalchemy as sa
from support.commands import listed
from support.commands import run
from support.commands import stdout_of
from support.jobs import add_event
from support.jobs import failed
from support.sites import Site

#: Each has one dead job; ``mail`` has done its work for the events of RFIs.
DEAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "rfi": ({}, "sync", "OSError: timeout after 30 s"),
    "rfi-new": ({"reason": "create", "resource_id": "77"}, "sync", "OSError: gone"),
    "sub": (
        {"resource_type": "Submittals", "company_id": "88", "user_id": "5"},
        "mail",
        "SMTPError: no 'ann' here",
    ),
    "sub-new": (
        {"resource_type": "Submittals", "reason": "create", "project_id": "99"},
        "sync",
        "OSError: timeout after 7 s",
    ),
    "both": ({"company_id": "88", "project_id": "99"}, "sync", "KeyError: 'a'"),
}
FILTERS: dict[str, set[str]] = {
    "--type RFIs.update": {"rfi", "both"},
    "--type rfis.UPDATE": {"rfi", "both"},
    "--type RFIs.Created": {"rfi-new"},
    "--resource-type submittals": {"sub", "sub-new"},
    "--reason create": {"rfi-new", "sub-new"},
    "--reason CREATED": {"rfi-new", "sub-new"},
    "--subscriber sync": {"rfi", "rfi-new", "sub-new", "both"},
    "--subscriber mail": {"sub"},
    "--subscriber nobody": set(),
    "--error oserror": {"rfi", "rfi-new", "sub-new"},
    "--error 'timeout after # s'": {"rfi", "sub-new"},
    "--error \"SMTPError: no '…' here\"": {"sub"},
    "--error OSError --subscriber mail": set(),
    "--resource 77": {"rfi-new"},
    "--company 88": {"sub", "both"},
    "--project 99": {"sub-new", "both"},
    "--user 5": {"sub"},
    "--company 88 --project 99": {"both"},
    "--resource-type RFIs --reason update --company 88": {"both"},
    "--type nothing": set(),
    "--resource 7": set(),
    "--since -90m": {"sub-new", "both"},
    "--until -90m": {"rfi", "rfi-new", "sub"},
    "--died-since -90m": {"sub-new", "both"},
    "--died-since -5h --subscriber mail": {"sub"},
    "--status done": set(),
    "--status dead --status done": set(DEAD),
    "": set(DEAD),
}


def add_all(site: Site) -> None:
    """``rfi``, ``rfi-new`` and ``sub`` are two hours old, the others one."""
    now = datetime.now(timezone.utc)
    for index, (id, (fields, subscriber, error)) in enumerate(DEAD.items()):
        site.clock.time = now - timedelta(hours=2 if index < 3 else 1)
        add_event(site.store, id, failed(subscriber, error), **fields)
    site.clock.time = now
    add_event(site.store, "waits", status="pending")


@contextmanager
def restored(site: Site) -> Iterator[None]:
    """Put the events and jobs back as they were."""
    tables = site.store.database.tables
    rows = {
        table: [dict(row._mapping) for row in site.store.rows(sa.select(table))]
        for table in (tables.event, tables.job)
    }
    yield
    with site.store.connection(begin=True) as connection:
        for table, before in rows.items():
            connection.execute(sa.delete(table))
            connection.execute(sa.insert(table), before)


def replayed(site: Site, *given: str) -> set[str]:
    """The ids of the events that ``replay`` has made pending."""
    with restored(site):
        run(site.app, "replay", *given, "--yes")
        return {*listed(site, "--status", "pending")} - {"waits"}


def test_list_errors_and_replay_select_the_same_events(site: Site) -> None:
    add_all(site)
    for given, wanted in FILTERS.items():
        options = shlex.split(given)
        if "--status" not in options:
            options += ["--status", "dead"]
        assert set(listed(site, *options)) == wanted, given
        groups = json.loads(stdout_of(site.app, "errors", *options, "--json"))
        assert sum(group["count"] for group in groups) == len(wanted), given
        assert replayed(site, *options) == wanted, given


def test_times_may_be_relative_iso_8601_or_unix(site: Site) -> None:
    real = datetime.now(timezone.utc)
    times = {
        "old": real - timedelta(hours=3),
        "middle": real - timedelta(hours=2),
        "young": real - timedelta(hours=1),
    }
    for id, time_ in times.items():
        site.clock.time = time_
        site.send(id=id)
    unix = times["middle"].timestamp()
    iso = times["middle"].isoformat()
    zulu = iso.replace("+00:00", "Z")
    elsewhere = times["middle"].astimezone(timezone(timedelta(hours=-7))).isoformat()
    relative = (str(-2.5 * 3600), "-2.5h", "-150m", "-9000s")
    for since in (f"{unix:.6f}", iso, zulu, elsewhere, *relative):
        assert listed(site, "--since", since) == ["middle", "young"]
    assert listed(site, f"--since={-2.5 * 3600}") == ["middle", "young"]
    for until in (f"{unix:.6f}", iso, elsewhere, str(-2.5 * 3600), "-2.5h"):
        assert listed(site, "--until", until) == ["old"], "then itself is left out"
    assert listed(site, "--since", "-1d") == ["old", "middle", "young"]
    both = ["--since", -2.5 * 3600, "--until", -1.5 * 3600]
    assert listed(site, *both) == ["middle"]


def test_times_may_be_dates_and_times_without_seconds(sqlite_site: Site) -> None:
    site = sqlite_site
    for id, hour in (("early", 9), ("late", 11)):
        site.clock.time = datetime(2026, 11, 26, hour, 30, tzinfo=timezone.utc)
        site.send(id=id)
    for since in ("2026-11-26", "2026-11-26T09:30", "2026-11-26 02:30-07:00"):
        assert listed(site, "--since", since) == ["early", "late"]
    assert listed(site, "--until", "2026-11-26T11:30Z") == ["early"]
    assert listed(site, "--until", "2026-11-26") == []
    assert listed(site, "--since", "2026-11-27") == []


@pytest.mark.parametrize(
    "wrong", ["yesterday", "-8x", "-h", "2026-11", "2026-13-01", ""]
)
def test_other_times_are_refused(sqlite_site: Site, wrong: str) -> None:
    refused = run(sqlite_site.app, "list", f"--since={wrong}", ok=False)
    assert "not in Unix seconds or ISO 8601" in refused.output
    assert "like -8h" in refused.output


@pytest.mark.parametrize("far", ["99999999999999", "-1e15", "1e300", "-1e9d"])
def test_times_outside_of_the_calendar_are_refused(sqlite_site: Site, far: str) -> None:
    refused = run(sqlite_site.app, "list", f"--since={far}", ok=False)
    assert "is not in the years 1 to 9999" in refused.output
