"""The filters that ``list`` and ``replay`` share."""

from __future__ import annotations

import json
from datetime import datetime
from datetime import timedelta
from datetime import timezone
from typing import Any

from support.commands import listed
from support.commands import run
from support.commands import stdout_of
from support.sites import Site

from flask_procore_webhooks import Event

EVENTS: dict[str, dict[str, Any]] = {
    "rfi": {"type": "RFIs.update"},
    "rfi-new": {"type": "RFIs.create", "resource_id": 77},
    "sub": {"type": "Submittals.update", "company_id": 88},
    "sub-new": {"type": "Submittals.create", "project_id": 99},
    "both": {"type": "RFIs.update", "company_id": 88, "project_id": 99},
}
FILTERS: dict[str, set[str]] = {
    "--type RFIs.update": {"rfi", "both"},
    "--resource-type Submittals": {"sub", "sub-new"},
    "--reason create": {"rfi-new", "sub-new"},
    "--resource-id 77": {"rfi-new"},
    "--company-id 88": {"sub", "both"},
    "--project-id 99": {"sub-new", "both"},
    "--company-id 88 --project-id 99": {"both"},
    "--resource-type RFIs --reason update --company-id 88": {"both"},
    "--type nothing": set(),
    "--resource-id 7": set(),
    "--status dead": set(EVENTS),
    "--status done": set(),
    "--status dead --reason create --resource-type RFIs": {"rfi-new"},
}


def send_all(site: Site) -> None:
    @site.webhooks.on(name="bad")
    def bad(event: Event) -> None:
        raise ValueError("broken")

    for id, fields in EVENTS.items():
        site.send(**fields, id=id)
    site.work()


def test_list_and_replay_select_the_same_events(site: Site) -> None:
    send_all(site)
    for given, wanted in FILTERS.items():
        assert set(listed(site, *given.split())) == wanted, given
    total = 0
    for given, wanted in FILTERS.items():
        shown = stdout_of(site.app, "replay", *given.split(), "--json")
        counted = json.loads(shown)["procore_webhooks"]
        assert counted == {"replayed": len(wanted), "skipped": 0}, given
        assert site.statuses().count("pending") == len(wanted)
        site.work()
        total += len(wanted)
    assert site.count("journal") == total


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
    for since in (f"{unix:.6f}", iso, zulu, elsewhere, str(-2.5 * 3600)):
        assert listed(site, "--since", since) == ["middle", "young"]
    assert listed(site, f"--since={-2.5 * 3600}") == ["middle", "young"]
    for until in (f"{unix:.6f}", iso, elsewhere, str(-2.5 * 3600)):
        assert listed(site, "--until", until) == ["old"], "then itself is left out"
    both = ["--since", -2.5 * 3600, "--until", -1.5 * 3600]
    assert listed(site, *both) == ["middle"]
    site.work()
    run(site.app, "replay", "--status", "done", *both)
    assert site.statuses() == ["done", "pending", "done"]
    refused = run(site.app, "list", "--since", "yesterday", ok=False)
    assert "not in Unix seconds or ISO 8601" in refused.output
    for far in ("99999999999999", "-1e15", "1e300"):
        refused = run(site.app, "list", f"--since={far}", ok=False)
        assert "is not in the years 1 to 9999" in refused.output
