"""``hooks list``, ``delete``, ``pause`` and ``resume``; questions, and JSON."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from flask import request
from flask import Response
from hooks_support import COMPANY
from hooks_support import OTHER_PROJECT
from hooks_support import PROJECT
from hooks_support import Site
from hooks_support import URL

#: Together they take longer than the others.
pytestmark = pytest.mark.slow

RFI = ("RFIs", "update")
OLD_URL = "https://old.example.com/hook"
CHANGES = ["delete", "pause", "resume"]

APP = """
from flask import Flask
from flask_procore_webhooks import ProcoreWebhooks

app = Flask("host")
app.config.update({config!r})
webhooks = ProcoreWebhooks(hooks_for=["RFIs.update"])
app.register_blueprint(webhooks)
"""


# list


def test_list_shows_the_hooks_of_every_namespace(site: Site) -> None:
    site.mount("RFIs.update", SCOPES=[PROJECT, OTHER_PROJECT])
    first = site.add_hook(triggers=[("RFIs", "UPDATE"), ("Meetings", "create")])
    second = site.add_hook(
        namespace="other",
        project="3",
        status="disabled",
        payload_version="v2.0",
        destination_url=OLD_URL,
    )
    assert site.lines("list") == [
        "procore_webhooks",
        f"project 2 of company 1: hook {first} of 'tracker', v4.0, active, to {URL}",
        "Meetings.create, RFIs.update",
        f"project 3 of company 1: hook {second} of 'other', v2.0, disabled, to"
        f" {OLD_URL}",
        "no triggers",
    ]
    assert site.changes() == []


def test_list_as_json_has_the_fields_of_a_hook(site: Site) -> None:
    site.mount("RFIs.update")
    id = site.add_hook(triggers=[RFI])
    assert site.document("list") == {
        "procore_webhooks": [
            {
                "company": "1",
                "project": "2",
                "hook": id,
                "namespace": "tracker",
                "url": URL,
                "version": "v4.0",
                "status": "active",
                "authorization": "*****c8b2e",
                "triggers": ["RFIs.update"],
            }
        ]
    }


def test_list_without_hooks_names_the_endpoint(site: Site) -> None:
    site.mount("RFIs.update")
    assert site.lines("list") == ["procore_webhooks"]


@pytest.mark.parametrize("is_required", [True, False])
def test_list_shows_other_hooks_of_a_company_where_procore_lists_them(
    site: Site, is_required: bool
) -> None:
    site.fake.switches.namespace_required = is_required
    site.mount("Projects.update", SCOPES=[COMPANY])
    for namespace in ("tracker", "other"):
        site.add_hook(project=None, namespace=namespace)
    rows = site.document("list")["procore_webhooks"]
    shown = [row["namespace"] for row in rows]
    assert shown == (["tracker"] if is_required else ["tracker", "other"])


# delete, pause, resume


def test_delete_removes_the_hooks_of_the_namespace(site: Site) -> None:
    site.mount("RFIs.update", SCOPES=[PROJECT, OTHER_PROJECT])
    ids = [site.add_hook(project=p, triggers=[RFI]) for p in ("2", "3")]
    site.add_hook(namespace="other")
    assert site.lines("delete", "--yes") == [
        f"project 2 of company 1: deleted hook {ids[0]} of 'tracker'",
        f"project 3 of company 1: deleted hook {ids[1]} of 'tracker'",
    ]
    assert [hook["namespace"] for hook in site.fake.hooks()] == ["other"]
    assert site.lines("delete") == ["No hook of this namespace."]


def test_pause_and_resume_change_the_status_only(site: Site) -> None:
    site.mount("RFIs.update")
    id = site.add_hook(triggers=[RFI])
    before = site.hook()
    line = f"project 2 of company 1: paused hook {id} of 'tracker'"
    assert site.lines("pause", "--yes") == [line]
    assert site.hook() == {**before, "status": "disabled"}
    assert "change status: disabled to active" in site.lines("plan", code=2)
    line = f"project 2 of company 1: resumed hook {id} of 'tracker'"
    assert site.lines("resume", "--yes") == [line]
    assert site.hook() == before


@pytest.mark.parametrize("action", CHANGES)
def test_namespace_names_other_hooks(site: Site, action: str) -> None:
    site.mount("RFIs.update", "Projects.update", SCOPES=[COMPANY, PROJECT])
    status = "disabled" if action == "resume" else "active"
    for namespace in ("tracker", "other"):
        site.add_hook(namespace=namespace, status=status)
        site.add_hook(namespace=namespace, status=status, project=None)
    mine = [h for h in site.fake.hooks() if h["namespace"] == "tracker"]
    site.run(action, "--namespace", "other", "--yes")
    left = site.fake.hooks()
    assert [h for h in left if h["namespace"] == "tracker"] == mine
    others = {h["status"] for h in left if h["namespace"] == "other"}
    expected: dict[str, list[str]] = {
        "delete": [],
        "pause": ["disabled"],
        "resume": ["active"],
    }
    assert [*others] == expected[action]


@pytest.mark.parametrize("action", CHANGES)
def test_changes_as_json_have_the_hook_as_it_is_then(site: Site, action: str) -> None:
    site.mount("RFIs.update", SCOPES=[OTHER_PROJECT, PROJECT])
    site.fake.forbid("1", "3")
    id = site.add_hook(status="disabled" if action == "resume" else "active")
    (rows,) = site.document(action, "--yes", code=1).values()
    refused, changed = rows
    assert [*refused] == ["company", "project", "error"]
    assert (changed["hook"], changed["namespace"]) == (id, "tracker")
    status = {"delete": "active", "pause": "disabled", "resume": "active"}
    assert changed["status"] == status[action]


@pytest.mark.parametrize("action", ["pause", "resume"])
def test_status_that_procore_does_not_change_is_an_error(
    site: Site, action: str
) -> None:
    site.mount("RFIs.update")
    site.add_hook(status="disabled" if action == "resume" else "active")
    as_it_is = json.dumps({"data": site.hook()})

    @site.fake.before_request
    def ignore_status() -> Response | None:
        return Response(as_it_is, 200) if request.method == "PATCH" else None

    output = site.run(action, "--yes", code=1)
    assert f"Procore answers with the status {site.hook()['status']!r}." in output


# Questions


@pytest.mark.parametrize("command", ["apply", *CHANGES])
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_change_without_yes_and_without_a_terminal_is_refused(
    site: Site, command: str, more: list[str]
) -> None:
    site.mount("RFIs.update")
    site.add_hook(status="disabled")
    output = site.run(command, *more, code=2)
    question = "Change 1 scope at Procore?"
    look = "hooks plan"
    if command != "apply":
        question = f"{command.capitalize()} 1 hook (project 2 of company 1)?"
        look = "hooks list"
    assert f"{question} Give --yes, or {look} to look." in output
    assert site.changes() == []


@pytest.mark.parametrize("command", ["apply", *CHANGES])
@pytest.mark.parametrize("answer", ["y", "n"])
def test_in_a_terminal_the_command_asks(
    site: Site, tmp_path: Path, command: str, answer: str
) -> None:
    site.add_hook(status="active" if command == "pause" else "disabled")
    (tmp_path / "host.py").write_text(APP.format(config=site.keys()))
    ours, theirs = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    result = subprocess.run(
        [sys.executable, "-m", "flask", "--app", "host", "procore-webhooks"]
        + ["hooks", command],
        cwd=tmp_path,
        stdin=theirs,
        capture_output=True,
        text=True,
    )
    os.close(ours)
    os.close(theirs)
    assert "? [y/N]" in result.stdout, result.stderr
    assert result.returncode == (answer == "n"), result.stdout
    assert bool(site.changes()) is (answer == "y")


# JSON


def plan_document(site: Site, code: int) -> dict[str, Any]:
    (result,) = site.document("plan", code=code).values()
    assert [*result] == ["scopes", "problems", "notes", "keeps_surplus"]
    (scope,) = result["scopes"]
    return dict(scope)


def test_plan_as_json_names_every_difference(site: Site) -> None:
    site.mount("RFIs.update")
    expected: dict[str, Any] = {
        "company": "1",
        "project": "2",
        "state": "differs",
        "hook": None,
        "creates": True,
        "replaces": False,
        "parallel": None,
        "changes": {},
        "missing": ["RFIs.update"],
        "surplus": [],
        "surplus_hooks": [],
        "notes": [],
        "error": None,
    }
    assert plan_document(site, 2) == expected
    id = site.add_hook(
        triggers=[("RFIs", "delete")], destination_url=OLD_URL, authorization=None
    )
    assert plan_document(site, 2) == {
        **expected,
        "hook": id,
        "creates": False,
        "changes": {
            "destination_url": {"from": OLD_URL, "to": URL},
            "authorization": {"from": None, "to": "*****c8b2e"},
        },
        "surplus": ["RFIs.delete"],
    }


def test_plan_as_json_has_errors_and_problems(site: Site) -> None:
    site.mount("RFI.update", SCOPES=[PROJECT, OTHER_PROJECT])
    site.fake.forbid("1", "3")
    (result,) = site.document("plan", code=1).values()
    assert [scope["state"] for scope in result["scopes"]] == ["same", "error"]
    assert "403" in result["scopes"][1]["error"]
    assert len(result["problems"]) == 1


def test_apply_as_json_has_its_steps_and_what_is_there_afterwards(site: Site) -> None:
    site.mount("RFIs.update", "RFIs.create")
    site.fake.answer_next("500", method="POST", path="bulk")
    (result,) = site.document("apply", "--yes", code=1).values()
    assert [*result] == ["steps", "after", "problems", "notes", "keeps_surplus"]
    id = site.hook()["id"]
    path = f"/rest/v2.0/companies/1/projects/2/webhooks/hooks/{id}/triggers/bulk"
    scope = {"company": "1", "project": "2"}
    first, second = result["steps"]
    assert first == {**scope, "text": "create a hook of 'tracker'", "refused": None}
    assert second["text"] == f"create 2 triggers of hook {id}"
    assert second["refused"].startswith(f"POST {path}: 500")
    (after,) = result["after"]
    assert (after["hook"], after["missing"]) == (id, ["RFIs.create", "RFIs.update"])


def test_json_of_a_clean_apply_has_no_refusal(site: Site) -> None:
    site.mount("RFIs.update")
    (result,) = site.document("apply", "--yes").values()
    assert [step["refused"] for step in result["steps"]] == [None, None]
    assert [after["state"] for after in result["after"]] == ["same"]
    (result,) = site.document("apply").values()
    assert result["steps"] == []
