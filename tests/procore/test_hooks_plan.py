"""``hooks plan`` and ``apply``: scopes, patterns, and the first install."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from flask import current_app
from flask import Flask
from hooks_support import COMPANY
from hooks_support import OTHER_PROJECT
from hooks_support import PROJECT
from hooks_support import Site
from hooks_support import URL
from support.receivers import Receiver
from support.receivers import receiving

from flask_procore_webhooks import ConfigError
from flask_procore_webhooks import Event
from flask_procore_webhooks import resource_updated
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.hooks.survey import scopes_of

PLAN = """
procore_webhooks
company 1: differs
create a hook
add trigger Projects.create
project 2 of company 1: differs
create a hook
add trigger RFIs.update
""".strip().splitlines()


def test_plan_shows_the_hooks_of_the_first_install(site: Site) -> None:
    site.mount("RFIs.update", "Projects.create", SCOPES=[COMPANY, PROJECT])
    assert site.lines("plan", code=2) == PLAN
    assert site.fake.hooks() == []


def test_apply_creates_the_hook_and_its_triggers(site: Site) -> None:
    site.mount("RFIs.update", "RFIs.create")
    site.run("apply", "--yes")
    hook = site.hook()
    assert hook["destination_url"] == URL
    assert hook["payload_version"] == "v4.0"
    assert hook["destination_headers"] == {
        "Authorization": "Bearer 9f3b1c6e0a7d4f5c8b2e"
    }
    assert (hook["company_id"], hook["project_id"]) == (None, "2")
    assert site.triggers() == ["RFIs.create", "RFIs.update"]
    assert site.lines("plan")[1] == "project 2 of company 1: same"


def test_apply_ends_with_what_procore_has_afterwards(site: Site) -> None:
    site.mount("RFIs.update")
    lines = site.lines("apply", "--yes")
    id = site.hook()["id"]
    assert lines == [
        "procore_webhooks",
        "project 2 of company 1: differs",
        "create a hook",
        "add trigger RFIs.update",
        "project 2 of company 1: create a hook of 'tracker'",
        f"project 2 of company 1: create 1 trigger of hook {id}",
        "at Procore now:",
        "project 2 of company 1: same",
    ]


def test_repeated_apply_changes_nothing_and_does_not_ask(site: Site) -> None:
    site.mount("RFIs.update")
    site.install()
    site.run("apply")
    assert site.changes() == []


def test_apply_requests_nothing_of_the_url(site: Site) -> None:
    with receiving(Receiver()) as destination:
        site.mount("RFIs.update", URL=destination.url)
        site.run("apply", "--yes")
    assert destination.got == []
    assert site.hook()["destination_url"] == destination.url


# Scopes


def without_argument() -> list[dict[str, Any]]:
    return [{"company": int(current_app.config["COMPANY"]), "project": 2}, COMPANY]


def with_app(app: Flask) -> Iterator[dict[str, Any]]:
    yield {"company": app.config["COMPANY"], "project": "2"}
    yield COMPANY


class Scopes:
    def __call__(self, app: Flask) -> tuple[dict[str, Any], ...]:
        return PROJECT, COMPANY, PROJECT


@pytest.mark.parametrize("scopes", [without_argument, with_app, Scopes()])
def test_scopes_come_from_a_function(site: Site, scopes: Any) -> None:
    site.mount("RFIs.update", "Projects.update", SCOPES=scopes)
    site.app.config["COMPANY"] = "1"
    site.run("apply", "--yes")
    scopes_of_hooks = [(h["company_id"], h["project_id"]) for h in site.fake.hooks()]
    assert scopes_of_hooks == [(None, "2"), ("1", None)]
    assert site.lines("plan").count("company 1: same") == 1


def test_function_of_scopes_is_called_by_each_command(site: Site) -> None:
    found = [PROJECT]
    site.mount("RFIs.update", SCOPES=lambda: found)
    site.install()
    found.append(OTHER_PROJECT)
    assert "project 3 of company 1: differs" in site.lines("plan", code=2)


@pytest.mark.parametrize(
    ("returned", "text"),
    [
        (None, "PROCORE_WEBHOOK_SCOPES: the function returned no list."),
        (7, "PROCORE_WEBHOOK_SCOPES: the function returned no list."),
        ("1", "PROCORE_WEBHOOK_SCOPES: the function returned no list."),
        (PROJECT, "PROCORE_WEBHOOK_SCOPES: the function returned no list."),
        ([], "PROCORE_WEBHOOK_SCOPES names no company and no project."),
        ([{"project": "2"}], "PROCORE_WEBHOOK_SCOPES must hold scopes, as in"),
        ([{"company": "1/.."}], "PROCORE_WEBHOOK_SCOPES must hold scopes, as in"),
        (["1"], "PROCORE_WEBHOOK_SCOPES must hold scopes, as in"),
    ],
)
def test_function_that_returns_no_scopes_is_named(
    site: Site, returned: Any, text: str
) -> None:
    site.mount("RFIs.update", SCOPES=lambda: returned)
    assert text in site.run("plan", code=1)
    assert site.fake.requests == []


def failing() -> list[dict[str, Any]]:
    raise LookupError("the table project is missing")


def failing_later() -> Iterator[dict[str, Any]]:
    yield PROJECT
    failing()


@pytest.mark.parametrize("function", [failing, failing_later])
@pytest.mark.parametrize("command", ["plan", "apply", "list", "delete"])
def test_function_of_scopes_that_raises_is_named(
    site: Site, function: Any, command: str
) -> None:
    site.mount("RFIs.update", SCOPES=function)
    assert site.run(command, code=1) == (
        "Error: PROCORE_WEBHOOK_SCOPES: the function raised LookupError: the table"
        " project is missing\n"
    )
    assert site.fake.requests == []


def test_error_of_the_database_shows_no_statement(site: Site) -> None:
    engine = sa.create_engine("sqlite://")

    def from_the_database() -> list[dict[str, Any]]:
        with engine.connect() as connection:
            query = sa.text("SELECT id FROM project WHERE owner = :owner")
            connection.execute(query, {"owner": "hunter2"})
        return []

    site.mount("RFIs.update", SCOPES=from_the_database)
    output = site.run("plan", code=1)
    engine.dispose()
    assert "no such table: project" in output
    assert "hunter2" not in output
    assert output.count("\n") == 1


def test_error_of_a_function_of_scopes_is_kept_as_the_cause(site: Site) -> None:
    site.mount("RFIs.update", SCOPES=failing)
    (endpoint,) = endpoints(site.app).values()
    with pytest.raises(ConfigError) as caught:
        scopes_of(endpoint)
    assert isinstance(caught.value.__cause__, LookupError)


def test_scope_for_which_nothing_is_asked_gets_no_hook(site: Site) -> None:
    site.mount("RFIs.update", SCOPES=[COMPANY, PROJECT])
    assert site.lines("plan", code=2)[1] == "company 1: same"
    site.run("apply", "--yes")
    assert [hook["project_id"] for hook in site.fake.hooks()] == ["2"]


# Patterns


@pytest.mark.parametrize("trigger_case", ["upper", "lower"])
@pytest.mark.parametrize("action_case", ["upper", "lower"])
def test_letter_case_of_actions_does_not_count(
    site: Site, trigger_case: str, action_case: str
) -> None:
    site.fake.switches.trigger_case = trigger_case
    site.fake.switches.action_case = action_case
    site.mount("rfis.UPDATE", "Submittals.Created")
    site.install()
    assert site.triggers() == ["RFIs.update", "Submittals.create"]
    site.run("plan")
    site.run("apply")
    assert site.changes() == []


def test_resource_without_an_action_asks_for_every_action(site: Site) -> None:
    site.mount("RFIs", "Markup Layers")
    site.install()
    assert site.triggers() == [
        "Markup Layers.create",
        "Markup Layers.update",
        "RFIs.create",
        "RFIs.delete",
        "RFIs.update",
    ]


def test_action_of_any_resource_asks_for_it_of_every_resource(site: Site) -> None:
    site.mount("*.delete", SCOPES=[COMPANY, PROJECT])
    site.install()
    for hook in site.fake.hooks():
        listed = (
            site.fake.project_resources
            if hook["project_id"]
            else site.fake.company_resources
        )
        names = {t["resource_name"] for t in site.fake.triggers(hook["id"])}
        assert names == {
            name for name, actions in listed.items() if "delete" in actions
        }


def test_any_event_asks_for_every_trigger_of_the_scope(site: Site) -> None:
    site.mount("*")
    site.install()
    every = sum(map(len, site.fake.project_resources.values()))
    assert every > 200
    assert len(site.triggers()) == every
    site.run("plan")


def test_many_triggers_are_created_in_several_calls(site: Site) -> None:
    site.fake.switches.bulk_limit = 100
    site.mount("*")
    site.run("apply", "--yes")
    bulks = [path for _, path in site.changes() if path.endswith("/bulk")]
    assert len(bulks) == -(-len(site.triggers()) // 100) > 2


def test_hooks_for_replaces_what_a_subscriber_to_everything_asks_for(
    site: Site,
) -> None:
    site.mount("*", "Meetings.create", hooks_for=["RFIs", "Submittals.update"])
    note = "note: Subscribers to any resource get the triggers of hooks_for: *."
    assert note in site.lines("plan", code=2)
    site.install()
    assert site.triggers() == [
        "Meetings.create",
        "RFIs.create",
        "RFIs.delete",
        "RFIs.update",
        "Submittals.update",
    ]


def test_receiver_of_a_signal_is_named_and_asks_for_no_trigger(site: Site) -> None:
    site.mount()

    @resource_updated.connect
    def follow(app: Flask, event: Event) -> None: ...

    output = site.run("plan")
    assert "Receivers of signals ask for no trigger: test_hooks_plan" in output
    assert "follow" in output
    assert 'hooks_for=["RFIs", "Submittals.update"]' in output
    (note,) = site.document("plan")["procore_webhooks"]["notes"]
    assert "follow" in note


@pytest.mark.parametrize("name", ["Project Users", "Project Vendors"])
@pytest.mark.parametrize("pattern", ["{}.update", "{}"])
@pytest.mark.parametrize("is_listed", [True, False])
def test_trigger_that_procore_has_ended_gets_a_note(
    site: Site, name: str, pattern: str, is_listed: bool
) -> None:
    if not is_listed:
        site.fake.project_resources[name] = ("create", "delete")
    site.mount(pattern.format(name), "RFIs.update")
    lines = site.lines("plan", code=2)
    note = f"note: {name}.update: Procore ended this trigger on 2026-06-30"
    says_so = any(line.startswith(note) for line in lines)
    assert says_so is (is_listed or pattern.endswith("update"))
    site.run("apply", "--yes")


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("RFI.update", "Procore has no resource 'RFI'; did you mean 'RFIs'?"),
        ("submital", "Procore has no resource 'submital'; did you mean 'Submittals'?"),
        ("Qq", "Procore has no resource 'Qq'."),
        ("Weather Logs.delete", "Weather Logs has no action 'delete'; it has create,"),
        ("*.burn", "no resource has the action 'burn'."),
    ],
)
def test_pattern_that_procore_does_not_have_is_an_error_with_the_nearest_name(
    site: Site, pattern: str, text: str
) -> None:
    site.mount(pattern, "Meetings.create", SCOPES=[COMPANY, PROJECT])
    name = pattern.replace(" ", "-")
    output = site.run("plan", code=1)
    assert f"error: {name}: {text}" in output
    assert "add trigger Meetings.create" in output
    assert f"error: {name}: {text}" in site.run("apply", "--yes", code=1)
    assert site.triggers() == ["Meetings.create"]


def test_misspelt_pattern_of_hooks_for_is_named(site: Site) -> None:
    site.mount("*", hooks_for=["RFI"])
    output = site.run("plan", code=1)
    assert "hooks_for: Procore has no resource 'RFI'; did you mean 'RFIs'?" in output


def test_resource_of_projects_without_a_project_in_scopes_is_an_error(
    site: Site,
) -> None:
    site.mount("RFIs.update", SCOPES=[COMPANY])
    text = "SCOPES names no project: resources of projects are unknown."
    assert text in site.run("plan", code=1)


def test_resource_of_the_company_without_it_in_scopes_is_an_error(site: Site) -> None:
    site.mount("Projects.create", "RFIs.update")
    text = 'Projects is a resource of the company: add {"company": "1"} to SCOPES.'
    assert text in site.run("plan", code=1)
    assert text in site.run("apply", "--yes", code=1)
    assert site.triggers() == ["RFIs.update"]


def test_misspelt_resource_of_the_company_gets_its_nearest_name(site: Site) -> None:
    site.mount("Project.create", "RFIs.update")
    text = "Procore has no resource 'Project'; did you mean 'Projects'?"
    assert text in site.run("plan", code=1)


def test_unreadable_company_leaves_a_pattern_unknown(site: Site) -> None:
    site.mount("Zebras", "RFIs.update")
    root = "/rest/v2.0/companies/1/webhooks/resources"
    site.fake.answer_next("500", path=root)
    output = site.run("plan", code=1)
    assert f"The resources of a company are unknown: GET {root}: 500" in output


# The address


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (URL, False),
        (f"{URL}/", False),
        ("https://app.example.com/tracker/webhooks/procore", False),
        ("https://app.example.com/webhooks/procor", True),
        ("https://app.example.com", True),
    ],
)
def test_address_with_another_path_than_the_route_gets_a_note(
    site: Site, url: str, says: bool
) -> None:
    site.mount("RFIs.update", URL=url)
    note = "and the route is /webhooks/procore: deliveries would not arrive"
    assert (note in site.run("plan", code=2)) is says
