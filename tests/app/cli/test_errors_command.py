"""The command ``errors``."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flask import Flask
from support.commands import run
from support.commands import stdout_of
from support.jobs import add_event
from support.jobs import failed
from support.sites import Site

from flask_procore_webhooks import Event
from flask_procore_webhooks.operations.filters import EVERY_EVENT
from flask_procore_webhooks.operations.queries import incidents


def groups_of(app: Flask, *options: str) -> list[dict[str, Any]]:
    found = json.loads(stdout_of(app, "errors", "--json", *options))
    assert isinstance(found, list)
    return found


def test_errors_group_by_subscriber_class_and_masked_message(site: Site) -> None:
    store = site.store
    times = []
    for number in range(3):
        types = {"resource_type": ("RFIs", "Submittals")[number % 2]}
        error = failed("sync", f"api.Error: HTTP 50{number} for 'x{number}'")
        add_event(store, f"evt_{number}", error, {"subscriber": "mail"}, **types)
        times.append(f"{store.db_now().isoformat()}Z")
        site.clock.forward(60)
    add_event(store, "evt_mail", failed("mail", "api.Error: HTTP 503 for 'y'"))
    add_event(store, "evt_class", failed("sync", "OSError: HTTP 503 for 'y'"))
    first, *others = groups_of(site.app)
    assert first == {
        "endpoint": "procore_webhooks",
        "subscriber": "sync",
        "error_class": "api.Error",
        "message": "HTTP # for '…'",
        "count": 3,
        "first_seen": times[0],
        "last_seen": times[2],
        "types": ["RFIs.update", "Submittals.update"],
    }
    found = {(g["subscriber"], g["error_class"], g["count"]) for g in others}
    assert found == {("sync", "OSError", 1), ("mail", "api.Error", 1)}


def test_errors_print_each_group_with_an_example(site: Site) -> None:
    times = []
    for id, subscriber, error in [
        ("evt_1", "sync", "OSError: away for 5 s"),
        ("evt_2", "mail", "OSError: closed"),
        ("evt_3", "sync", "OSError: away for 7 s"),
    ]:
        add_event(site.store, id, failed(subscriber, error))
        times.append(f"{site.clock():%Y-%m-%d %H:%M:%SZ}")
        site.clock.forward(60)
    assert run(site.app, "errors").output.splitlines() == [
        "2  sync",
        "    OSError: away for # s",
        f"    {times[0]} to {times[2]}, RFIs.update, as in evt_3",
        "1  mail",
        "    OSError: closed",
        f"    {times[1]} to {times[1]}, RFIs.update, as in evt_2",
        "2 of 2 groups, 3 jobs",
    ]
    assert run(site.app, "errors", "--limit", 1).output.endswith(
        "1 of 2 groups, 3 jobs\n"
    )
    assert run(site.app, "errors", "--error", "nothing").output == "No errors.\n"


def test_errors_of_jobs_that_wait_are_grouped_with_dead_ones(site: Site) -> None:
    store = site.store
    add_event(store, "dead", failed("sync", "OSError: no 1"))
    add_event(store, "waits", failed("sync", "OSError: no 2", "pending", wait=60))
    add_event(store, "mended", failed("sync", "OSError: no 3", "done"))
    add_event(store, "new", {"subscriber": "sync", "state": "pending"})
    (group,) = groups_of(site.app)
    assert group["count"] == 2
    for status, count in (("dead", 1), ("pending", 1), ("done", 0)):
        found = groups_of(site.app, "--status", status)
        assert sum(group["count"] for group in found) == count


def test_errors_of_real_runs_are_grouped(site: Site) -> None:
    @site.webhooks.on(name="sync")
    def sync(event: Event) -> None:
        raise OSError(f"no answer for {event.resource_id}")

    for number in (7, 8):
        site.send(resource_id=number)
    site.work()
    (group,) = groups_of(site.app)
    assert (group["message"], group["count"]) == ("no answer for #", 2)
    assert group["error_class"] == "OSError"
    selected = stdout_of(site.app, "list", "--error", group["message"], "--json")
    assert len(json.loads(selected)) == 2


def test_errors_of_several_endpoints_have_groups_of_their_own(
    two_sites: tuple[Site, Site],
) -> None:
    for site in two_sites:
        add_event(site.store, "evt_1", failed("sync", "OSError: no"))
    app = two_sites[0].app
    names = {group["endpoint"] for group in groups_of(app)}
    assert names == {"procore_webhooks", "bolt"}
    (group,) = groups_of(app, "--endpoint", "bolt")
    assert group["endpoint"] == "bolt"


@pytest.mark.parametrize("state", ["dead", "pending"])
def test_the_newest_failures_are_read_and_more_are_reported(
    site: Site, state: str
) -> None:
    for number in range(3):
        add_event(site.store, f"evt_{number}", failed(f"s{number}", "E: no", state))
        site.clock.forward(1)
    found, is_cut = incidents(site.store, EVERY_EVENT, 2)
    assert (len(found), is_cut) == (2, True)
    if state == "dead":
        assert {group.subscriber for group in found} == {"s1", "s2"}
    found, is_cut = incidents(site.store, EVERY_EVENT, 3)
    assert (len(found), is_cut) == (3, False)


def test_long_and_missing_messages_are_grouped(site: Site) -> None:
    for number in range(2):
        add_event(site.store, f"long_{number}", failed("sync", "E: " + "x y " * 500))
    add_event(site.store, "none", {"subscriber": "sync", "state": "dead"})
    first, second = groups_of(site.app)
    assert (first["count"], first["message"][-1]) == (2, "…")
    assert (second["error_class"], second["message"]) == ("", "")
    assert len(groups_of(site.app, "--error", first["message"])) == 1


def test_errors_of_events_without_a_type_say_so(sqlite_site: Site) -> None:
    add_event(sqlite_site.store, "1", failed("sync", "OSError: no"), type="")
    assert "Z, (no type), as in 1" in run(sqlite_site.app, "errors").output


def test_error_takes_the_message_that_is_printed_of_control_characters(
    site: Site,
) -> None:
    store = site.store
    add_event(store, "1", failed("sync", "OSError: \x1b[1mno\u202e 7\x07"))
    add_event(store, "2", failed("sync", "OSError: \x1b[1mno\u202e 8\x07"))
    (group,) = groups_of(site.app)
    assert (group["message"], group["count"]) == ("…[#mno… #…", 2)
    shown = run(site.app, "errors").output
    assert f"OSError: {group['message']}" in shown
    for each in (group["message"], f"OSError: {group['message']}"):
        assert "2 of 2, newest" in run(site.app, "list", "--error", each).output
