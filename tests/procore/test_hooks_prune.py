"""``hooks apply --prune`` where what looks like surplus may be needed."""

from __future__ import annotations

import pytest
from flask import Flask
from hooks_support import COMPANY
from hooks_support import PROJECT
from hooks_support import Site

from flask_procore_webhooks import Event
from flask_procore_webhooks import resource_updated

RFI = ("RFIs", "update")
REASON = "hooks_for= does not name what receivers of signals need"
ERRORS = "--prune deletes nothing, because of the errors"


def connect() -> None:
    """Connect a receiver to a signal, for every app."""

    @resource_updated.connect
    def follow(app: Flask, event: Event) -> None: ...


@pytest.mark.parametrize("patterns", [[], ["RFIs.update"]])
def test_receivers_without_hooks_for_keep_every_hook_and_trigger(
    site: Site, patterns: list[str]
) -> None:
    connect()
    site.mount(*patterns)
    id = site.add_hook(triggers=[RFI, ("Meetings", "update")])
    output = site.run("apply", "--prune", "--yes", code=1)
    assert f"--prune deletes nothing, because {REASON}" in output
    assert "what looks like surplus was kept" in output
    assert "--prune deletes it" not in output
    assert site.changes() == []
    assert site.hook()["id"] == id


def test_prune_with_receivers_does_the_rest(site: Site) -> None:
    connect()
    site.mount("RFIs.update")
    site.add_hook(triggers=[("Meetings", "update")])
    site.run("apply", "--prune", "--yes", code=1)
    assert site.triggers() == ["Meetings.update", "RFIs.update"]


def test_prune_with_receivers_succeeds_where_nothing_is_surplus(site: Site) -> None:
    connect()
    site.mount("RFIs.update")
    output = site.run("apply", "--prune", "--yes")
    assert "--prune" not in output
    assert site.triggers() == ["RFIs.update"]


def test_replaced_hook_keeps_the_triggers_that_receivers_need(site: Site) -> None:
    connect()
    site.mount("RFIs.update")
    triggers = [RFI, ("Meetings", "update")]
    site.add_hook(triggers=triggers, payload_version="v2.0")
    site.run("apply", "--prune", "--yes", code=1)
    assert site.hook()["payload_version"] == "v4.0"
    assert site.triggers() == ["Meetings.update", "RFIs.update"]


def test_prune_with_hooks_for_deletes_what_is_surplus(site: Site) -> None:
    connect()
    site.mount("RFIs.update", hooks_for=["Meetings.update"])
    site.add_hook(triggers=[RFI, ("Meetings", "update"), ("Forms", "update")])
    output = site.run("apply", "--prune", "--yes")
    assert site.triggers() == ["Meetings.update", "RFIs.update"]
    assert "Receivers of signals ask for no trigger: " in output
    assert "Name what they need" not in output


def test_plan_says_once_why_surplus_would_be_kept(site: Site) -> None:
    connect()
    site.mount("RFIs.update")
    site.add_hook(triggers=[RFI, ("Meetings", "update"), ("Forms", "update")])
    output = site.run("plan", code=2)
    assert output.count(REASON) == 1
    assert "surplus trigger Meetings.update\n" in output


def test_reason_to_keep_surplus_is_in_the_json(site: Site) -> None:
    site.mount("RFIs.update")
    id = site.add_hook(triggers=[RFI, ("Meetings", "update")])
    (result,) = site.document("plan", code=2).values()
    assert result["keeps_surplus"] is None
    connect()
    (result,) = site.document("plan", code=2).values()
    assert result["keeps_surplus"] == REASON
    (result,) = site.document("apply", "--prune", "--yes", code=1).values()
    assert result["keeps_surplus"] == REASON
    assert [after["surplus"] for after in result["after"]] == [["Meetings.update"]]
    assert site.hook()["id"] == id


# Errors


def test_misspelt_pattern_prunes_nothing(site: Site) -> None:
    site.mount("RFIs.update", "Meetings.create")
    site.install()
    site.mount("RFI.update", "Meetings.create")
    output = site.run("apply", "--prune", "--yes", code=1)
    assert ERRORS in output
    assert "--prune deletes it" not in output
    assert site.changes() == []


def test_errors_are_printed_before_the_plans(site: Site) -> None:
    site.mount("RFI.update", "Meetings.create")
    site.add_hook(triggers=[RFI])
    for command in ("plan", "apply"):
        lines = site.lines(command, *["--yes"] * (command == "apply"), code=1)
        assert lines[1].startswith("error: RFI.update: Procore has no resource 'RFI'")
        assert lines[2] == "project 2 of company 1: differs"
        assert "surplus trigger RFIs.update" in lines
        assert ERRORS in lines


@pytest.mark.parametrize("status", [403, 404])
def test_pattern_of_resources_that_cannot_be_read_is_not_called_misspelt(
    site: Site, status: int
) -> None:
    site.mount("RFIs.update", "*.burn", "Projects.update", SCOPES=[COMPANY, PROJECT])
    site.fake.forbid("1", "2", status=status)
    request = f"GET /rest/v2.0/companies/1/projects/2/webhooks/resources: {status}"
    text = f"is not found. The resources of a project are unknown: {request}"
    for command in (["plan"], ["apply", "--prune", "--yes"]):
        output = site.run(*command, code=1)
        assert f"error: RFIs.update: RFIs.update {text}" in output
        assert f"error: *.burn: *.burn {text}" in output
        assert "no resource" not in output
        assert "did you mean" not in output


def test_company_without_projects_in_scopes_leaves_their_resources_unknown(
    site: Site,
) -> None:
    site.mount("RFIs.update", SCOPES=[COMPANY])
    output = site.run("plan", code=1)
    assert "RFIs.update is not found. SCOPES names no project" in output
    assert "Procore has no resource" not in output


def test_action_that_a_readable_resource_lacks_is_named(site: Site) -> None:
    site.mount("Projects.burn", SCOPES=[COMPANY, PROJECT])
    site.fake.forbid("1", "2")
    output = site.run("plan", code=1)
    assert "Projects has no action 'burn'; it has " in output
