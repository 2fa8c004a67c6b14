"""``hooks ...``: scopes that are refused, several companies and endpoints, settings."""

from __future__ import annotations

from typing import Any

import pytest
from hooks_support import COMPANY
from hooks_support import OTHER_PROJECT
from hooks_support import PROJECT
from hooks_support import ROOT
from hooks_support import Site
from hooks_support import subscribe
from support.commands import run

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import PrudraWebhooks

COMMANDS = ["plan", "apply", "list", "delete", "pause", "resume"]
NINE = {"company": "9", "project": "7"}


def states(site: Site, *arguments: str, code: int) -> dict[str, str]:
    """The state of each scope in the plan."""
    document = site.document("plan", *arguments, code=code)
    return {
        f"{each['company']} {each['project'] or ''}".strip(): each["state"]
        for found in document.values()
        for each in found["scopes"]
    }


# Scopes that are refused


@pytest.mark.parametrize("status", [403, 404])
@pytest.mark.parametrize("project", ["2", "3", None])
def test_refused_scope_is_reported_and_the_others_are_done(
    site: Site, status: int, project: str | None
) -> None:
    site.fake.add_company("9", projects=["7"])
    scopes = [{"company": "9"}, NINE, PROJECT, OTHER_PROJECT]
    site.mount("RFIs.update", "Projects.update", SCOPES=scopes)
    refused: dict[str, Any] = {"company": "1" if project else "9", "project": project}
    site.fake.forbid(**refused, status=status)
    for command in (["plan"], ["apply", "--yes"]):
        output = site.run(*command, code=1)
        assert (
            f"could not look: GET /rest/v2.0/companies/{refused['company']}" in output
        )
        assert f": {status}, " in output
    assert len(site.fake.hooks()) == (2 if project is None else 3)
    site.fake.permit(**refused)
    site.run("apply", "--yes")
    site.run("plan")
    assert len(site.fake.hooks()) == 4


def test_company_that_has_not_installed_the_app_is_reported(site: Site) -> None:
    site.mount("RFIs.update", SCOPES=[NINE, PROJECT])
    output = site.run("apply", "--yes", code=1)
    assert "App is not connected to this company" in output
    assert site.triggers() == ["RFIs.update"]


@pytest.mark.parametrize("command", ["list", "delete", "pause", "resume"])
def test_refused_scope_does_not_keep_a_command_from_the_others(
    site: Site, command: str
) -> None:
    site.mount("RFIs.update", SCOPES=[PROJECT, OTHER_PROJECT])
    site.install()
    site.fake.forbid("1", "2")
    more = [] if command == "list" else ["--yes"]
    output = site.run(command, *more, code=1)
    assert (
        f"project 2 of company 1: {'' if command == 'list' else 'refused, '}" in output
    )
    assert f"GET {ROOT}/hooks: 403" in output
    changed = [path for method, path in site.changes()]
    assert len(changed) == (command != "list")
    assert all("/projects/3/" in path for path in changed)
    if command != "list":
        (rows,) = site.document(command, "--yes", code=1).values()
        assert len(rows) == (1 if command == "delete" else 2)


def test_unreadable_projects_leave_no_wrong_problem(site: Site) -> None:
    site.mount("RFIs.update", "Projects.update", SCOPES=[COMPANY, PROJECT])
    site.fake.forbid("1", "2", status=404)
    output = site.run("plan", code=1)
    assert "SCOPES names no project" not in output
    path = f"{ROOT}/resources"
    assert f"The resources of a project are unknown: GET {path}: 404" in output


# Narrowing


def test_company_and_project_narrow_the_plan(site: Site) -> None:
    site.fake.add_company("9", projects=["7"])
    site.mount("RFIs", "Projects", SCOPES=[COMPANY, PROJECT, OTHER_PROJECT, NINE])
    every = {"1": "differs", "1 2": "differs", "1 3": "differs", "9 7": "differs"}
    assert states(site, code=2) == every
    assert states(site, "--company", "9", code=2) == {"9 7": "differs"}
    assert states(site, "--project", "3", code=2) == {"1 3": "differs"}
    both = states(site, "--company", "1", "--project", "2", code=2)
    assert both == {"1 2": "differs"}


def test_narrowed_plan_has_no_problem_that_the_whole_plan_has_not(site: Site) -> None:
    site.fake.add_company("9")
    scopes = [COMPANY, PROJECT, {"company": "9"}]
    site.mount("RFIs.update", "Projects.update", SCOPES=scopes)
    site.install()
    for more in ([], ["--project", "2"], ["--company", "9"], ["--company", "1"]):
        assert "error:" not in site.run("plan", *more)


def test_company_and_project_narrow_changes(site: Site) -> None:
    site.mount("RFIs.update", SCOPES=[PROJECT, OTHER_PROJECT])
    site.run("apply", "--project", "3", "--yes")
    assert [hook["project_id"] for hook in site.fake.hooks()] == ["3"]
    site.run("apply", "--yes")
    site.run("pause", "--project", "2", "--yes")
    status = {hook["project_id"]: hook["status"] for hook in site.fake.hooks()}
    assert status == {"2": "disabled", "3": "active"}
    site.run("delete", "--company", "1", "--project", "2", "--yes")
    assert [hook["project_id"] for hook in site.fake.hooks()] == ["3"]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "more", [["--company", "8"], ["--project", "8"], ["--company", "2"]]
)
def test_unknown_company_or_project_is_an_error(
    site: Site, command: str, more: list[str]
) -> None:
    site.mount("RFIs.update")
    output = site.run(command, *more, code=1)
    assert "PROCORE_WEBHOOK_SCOPES has no such company or project." in output
    assert site.fake.requests == []


# Several companies and endpoints


def test_one_credential_serves_several_companies(site: Site) -> None:
    site.fake.add_company("9", projects=["7"])
    site.mount("RFIs.update", SCOPES=[PROJECT, NINE])
    site.run("apply", "--yes")
    assert sorted(h["project_id"] for h in site.fake.hooks()) == ["2", "7"]
    assert len([p for _, p, _ in site.fake.requests if p == "/oauth/token"]) == 1
    site.run("plan")


def mount_two(site: Site, **config: Any) -> None:
    """An app with two endpoints of Procore and one of Prudra."""
    site.fake.add_company("9", projects=["7"])
    first, second = (
        ProcoreWebhooks(),
        ProcoreWebhooks("sandbox", url_prefix="/sandbox", config_prefix="SANDBOX_"),
    )
    subscribe(first, "RFIs.update")
    subscribe(second, "Meetings.create")
    site.app = site.make_app()
    keys = {"NAMESPACE": "sandbox", "SCOPES": [NINE], **config}
    site.app.config.update(site.keys("SANDBOX_", **keys))
    site.app.config["PRUDRA_WEBHOOK_SECRET"] = "a secret of prudra"
    for blueprint in (first, PrudraWebhooks(), second):
        site.app.register_blueprint(blueprint)


def test_each_endpoint_has_its_own_hooks(site: Site) -> None:
    mount_two(site)
    site.run("apply", "--yes")
    assert site.triggers() == ["RFIs.update"]
    assert site.triggers("sandbox") == ["Meetings.create"]
    assert site.hook("sandbox")["project_id"] == "7"
    site.run("plan")
    assert [*site.document("list")] == ["procore_webhooks", "sandbox"]


def test_endpoint_narrows_a_command(site: Site) -> None:
    mount_two(site)
    site.run("apply", "--endpoint", "sandbox", "--yes")
    assert [hook["namespace"] for hook in site.fake.hooks()] == ["sandbox"]
    assert [*site.document("plan", "--endpoint", "sandbox")] == ["sandbox"]
    assert "no endpoint 'x'" in site.run("plan", "--endpoint", "x", code=1)


def test_company_of_one_endpoint_narrows_to_that_endpoint(site: Site) -> None:
    mount_two(site)
    site.run("apply", "--company", "9", "--yes")
    assert [hook["namespace"] for hook in site.fake.hooks()] == ["sandbox"]
    output = site.run("plan", "--company", "8", code=1)
    assert "PROCORE_WEBHOOK_SCOPES, SANDBOX_SCOPES has no such company" in output


def test_endpoint_without_credentials_is_left_out(site: Site) -> None:
    mount_two(site, API_CLIENT_ID=None, API_CLIENT_SECRET=None)
    site.run("apply", "--yes")
    assert [hook["namespace"] for hook in site.fake.hooks()] == ["tracker"]
    output = site.run("plan", "--endpoint", "sandbox", code=1)
    assert "sandbox: set SANDBOX_API_CLIENT_ID and SANDBOX_API_CLIENT_SECRET" in output


def test_endpoint_of_another_sender_has_no_hooks(site: Site) -> None:
    mount_two(site)
    output = site.run("plan", "--endpoint", "prudra_webhooks", code=2)
    assert "Hooks are Procore's: name an --endpoint of it." in output


@pytest.mark.parametrize("command", COMMANDS)
def test_endpoints_that_ask_for_one_hook_are_named(site: Site, command: str) -> None:
    mount_two(site, NAMESPACE="tracker", SCOPES=[NINE, PROJECT])
    output = site.run(command, code=1)
    assert "procore_webhooks and sandbox ask for the same hook, of 'tracker'" in output
    assert "in project 2 of company 1: give each its own NAMESPACE." in output
    assert site.fake.requests == []


def test_failure_of_one_endpoint_does_not_keep_the_other_out(site: Site) -> None:
    mount_two(site)
    site.fake.forbid("1")
    site.run("apply", "--yes", code=1)
    assert [hook["namespace"] for hook in site.fake.hooks()] == ["sandbox"]


@pytest.mark.parametrize("command", ["delete", "pause", "resume"])
@pytest.mark.parametrize("is_json", [True, False])
def test_hook_of_a_scope_of_two_endpoints_is_changed_once(
    site: Site, command: str, is_json: bool
) -> None:
    mount_two(site, SCOPES=[PROJECT, NINE])
    for project, company in (("2", "1"), ("7", "9")):
        site.add_hook(namespace="old", project=project, company=company)
    arguments = [command, "--namespace", "old"]
    output = site.run(*arguments, code=2)
    assert "2 hooks (project 2 of company 1, project 7 of company 9)" in output
    if is_json:
        rows = site.document(*arguments, "--yes")
        assert [[row["project"] for row in found] for found in rows.values()] == [
            ["2"],
            ["7"],
        ]
    else:
        assert len(site.lines(*arguments, "--yes")) == 2
    assert len(site.changes()) == 2


@pytest.mark.parametrize("command", ["delete", "pause", "resume"])
def test_changes_as_json_are_by_endpoint(site: Site, command: str) -> None:
    mount_two(site)
    site.add_hook()
    rows = site.document(command, "--yes")
    assert [*rows] == ["procore_webhooks", "sandbox"]
    assert [row["namespace"] for row in rows["procore_webhooks"]] == ["tracker"]
    assert rows["sandbox"] == []


# Settings


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("API_CLIENT_ID", "set PROCORE_WEBHOOK_API_CLIENT_ID and PROCORE_WEBHOOK_API"),
        ("API_CLIENT_SECRET", "set PROCORE_WEBHOOK_API_CLIENT_ID and PROCORE_WEBHO"),
        ("URL", "PROCORE_WEBHOOK_URL is not set."),
        ("NAMESPACE", "PROCORE_WEBHOOK_NAMESPACE is not set."),
        ("SCOPES", "PROCORE_WEBHOOK_SCOPES names no company and no project."),
    ],
)
def test_missing_key_is_named(site: Site, command: str, key: str, text: str) -> None:
    config: dict[str, Any] = {key: None}
    site.mount("RFIs.update", **config)
    output = site.run(command, code=1)
    assert output.startswith("Error: ")
    assert text in output
    assert site.fake.requests == []


def test_app_without_any_key_gets_a_sentence(site: Site) -> None:
    nothing: dict[str, Any] = dict.fromkeys(site.keys(prefix=""))
    site.mount("RFIs.update", **{**nothing, "SECRET": "a secret of this app"})
    result = run(site.app, "hooks", "plan", ok=False)
    assert "to call Procore's API" in result.output


def test_wrong_client_secret_is_a_sentence_for_each_scope(site: Site) -> None:
    site.mount(
        "RFIs.update",
        API_CLIENT_SECRET="a wrong secret",
        SCOPES=[PROJECT, OTHER_PROJECT],
    )
    output = site.run("plan", code=1)
    text = "could not look: POST /oauth/token: 401, no access token: check client id"
    assert output.count(text) == 2
    assert "a wrong secret" not in output
