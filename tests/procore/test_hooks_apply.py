"""``hooks apply``: differences of hooks that are there, and repeated runs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flask import request
from flask import Response
from hooks_support import AUTHORIZATION
from hooks_support import COMPANY
from hooks_support import OTHER_PROJECT
from hooks_support import OTHER_TAIL
from hooks_support import PROJECT
from hooks_support import ROOT
from hooks_support import SAME_TAIL
from hooks_support import Site
from hooks_support import URL

RFI = ("RFIs", "update")
OLD_URL = "https://old.example.com/hook"


def patches(site: Site) -> list[str]:
    return [path for method, path in site.changes() if method == "PATCH"]


# The Authorization value


def test_equal_tail_of_the_authorization_is_a_note_and_nothing_is_written(
    site: Site,
) -> None:
    site.mount("RFIs.update")
    site.add_hook(triggers=[RFI], authorization=SAME_TAIL)
    assert "The Authorization value cannot be compared" in site.run("plan")
    site.run("apply", "--yes")
    assert site.changes() == []
    assert site.hook()["destination_headers"] == {"Authorization": SAME_TAIL}


def test_values_that_cannot_be_compared_are_one_note_of_the_endpoint(
    site: Site,
) -> None:
    site.mount("RFIs.update", SCOPES=[PROJECT, OTHER_PROJECT])
    for project in ("2", "3"):
        site.add_hook(triggers=[RFI], authorization=SAME_TAIL, project=project)
    assert site.run("plan").count("cannot be compared") == 1
    (result,) = site.document("plan").values()
    notes = [scope["notes"] for scope in result["scopes"]]
    assert [len(each) for each in notes] == [1, 1]
    assert "cannot be compared" in notes[0][0]


def test_value_that_was_written_gets_no_note(site: Site) -> None:
    site.mount("RFIs.update", SCOPES=[PROJECT, OTHER_PROJECT])
    site.add_hook(triggers=[RFI], authorization=SAME_TAIL)
    output = site.run("apply", "--rotate", "--yes")
    before, _, after = output.partition("at Procore now:")
    assert "cannot be compared" in before
    assert "cannot be compared" not in after
    (result,) = site.document("apply", "--rotate", "--yes").values()
    assert [scope["notes"] for scope in result["after"]] == [[], []]


def test_value_that_procore_did_not_take_keeps_its_note(site: Site) -> None:
    site.mount("RFIs.update")
    site.add_hook(triggers=[RFI], authorization=SAME_TAIL)
    site.fake.answer_next("500", method="PATCH", path="hooks")
    output = site.run("apply", "--rotate", "--yes", code=1)
    assert "cannot be compared" in output.partition("at Procore now:")[2]


def test_value_that_this_run_has_not_written_keeps_its_note(site: Site) -> None:
    site.mount("RFIs.update", "RFIs.create")
    site.add_hook(triggers=[RFI], authorization=SAME_TAIL)
    output = site.run("apply", "--yes")
    assert "cannot be compared" in output.partition("at Procore now:")[2]


def test_rotate_writes_the_authorization_to_every_hook(site: Site) -> None:
    site.mount("RFIs.update", SCOPES=[PROJECT, OTHER_PROJECT])
    site.add_hook(triggers=[RFI], authorization=SAME_TAIL)
    site.add_hook(triggers=[RFI], authorization=SAME_TAIL, project="3")
    site.run("apply", "--rotate", "--yes")
    assert len(patches(site)) == len(site.changes()) == 2
    for hook in site.fake.hooks():
        assert hook["destination_headers"] == {"Authorization": AUTHORIZATION}


@pytest.mark.parametrize("there", [OTHER_TAIL, None])
def test_other_authorization_is_a_difference(site: Site, there: str | None) -> None:
    site.mount("RFIs.update")
    site.add_hook(triggers=[RFI], authorization=there)
    shown = "*****00000" if there else "none"
    assert f"change authorization: {shown} to *****c8b2e" in site.lines("plan", code=2)
    site.run("apply", "--yes")
    assert len(patches(site)) == 1
    assert site.hook()["destination_headers"] == {"Authorization": AUTHORIZATION}


@pytest.mark.parametrize(("there", "code"), [(AUTHORIZATION, 0), (SAME_TAIL, 2)])
def test_authorization_that_is_shown_whole_is_compared_whole(
    site: Site, there: str, code: int
) -> None:
    site.fake.switches.masks_authorization = False
    site.mount("RFIs.update")
    site.add_hook(triggers=[RFI], authorization=there)
    for command in ("plan", "list"):
        for more in ([], ["--json"]):
            output = site.run(command, *more, code=code if command == "plan" else 0)
            assert there.rpartition(" ")[2] not in output
            assert "cannot be compared" not in output


@pytest.mark.parametrize("value", ["short", "12345", "x"])
@pytest.mark.parametrize("command", ["plan", "apply"])
def test_authorization_of_five_characters_is_refused(
    site: Site, command: str, value: str
) -> None:
    site.mount("RFIs.update", AUTHORIZATION=value)
    output = site.run(command, code=1)
    assert "PROCORE_WEBHOOK_AUTHORIZATION has at most 5 characters" in output
    assert site.fake.requests == []


def test_hook_keeps_its_authorization_if_none_is_configured(site: Site) -> None:
    site.mount("RFIs.update", AUTHORIZATION=None, SECRET="a secret of this app")
    site.add_hook(triggers=[RFI])
    assert "AUTHORIZATION is not set: it is not compared" in site.run("plan")
    site.run("apply", "--rotate", "--yes")
    assert site.changes() == []


def test_refusal_that_quotes_the_authorization_shows_nothing_of_it(
    site: Site,
) -> None:
    site.mount("RFIs.update")
    site.add_hook(triggers=[RFI], authorization=None)
    said = f"{'x' * 280} {AUTHORIZATION.split()[1]} of {AUTHORIZATION}"

    @site.fake.before_request
    def quote() -> Response | None:
        return Response(f'{{"errors": "{said}"}}', 400) if patched() else None

    output = site.run("apply", "--yes", code=1)
    assert "xxx *****" in output
    assert AUTHORIZATION.split()[1][:8] not in output


def patched() -> bool:
    return request.method == "PATCH"


# Other fields


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"destination_url": OLD_URL}, f"change destination_url: {OLD_URL} to {URL}"),
        ({"status": "disabled"}, "change status: disabled to active"),
    ],
)
def test_field_that_differs_is_changed(
    site: Site, fields: dict[str, Any], line: str
) -> None:
    site.mount("RFIs.update")
    site.add_hook(triggers=[RFI], **fields)
    before = site.hook()
    assert line in site.lines("plan", code=2)
    site.run("apply", "--yes")
    assert len(patches(site)) == len(site.changes()) == 1
    after = site.hook()
    assert after["id"] == before["id"]
    assert (after["destination_url"], after["status"]) == (URL, "active")
    site.run("plan")


def test_surplus_trigger_goes_only_with_prune(site: Site) -> None:
    site.mount("RFIs.update")
    site.add_hook(triggers=[RFI, ("RFIs", "delete"), ("RFIs", "UPDATE")])
    lines = site.lines("plan", code=2)
    assert "surplus trigger RFIs.delete; --prune deletes it" in lines
    # Nothing to change: it does not ask.
    site.run("apply")
    assert site.changes() == []
    site.run("apply", "--prune", "--yes")
    assert site.triggers() == ["RFIs.update"]
    site.run("plan")


def test_surplus_hook_goes_only_with_prune(site: Site) -> None:
    site.mount("RFIs.update", SCOPES=[COMPANY, PROJECT])
    id = site.add_hook(project=None, triggers=[("Projects", "create")])
    line = f"surplus hook {id} of 'tracker'; --prune deletes it"
    assert line in site.lines("plan", code=2)
    site.run("apply", "--yes")
    assert len(site.fake.hooks()) == 2
    site.run("apply", "--prune", "--yes")
    assert [hook["project_id"] for hook in site.fake.hooks()] == ["2"]


@pytest.mark.parametrize("options", [["--prune"], ["--prune", "--rotate"], []])
def test_hooks_of_other_namespaces_stay_as_they_are(
    site: Site, options: list[str]
) -> None:
    site.fake.switches.namespace_required = False
    site.mount("RFIs.update", SCOPES=[COMPANY, PROJECT])
    for project in ("2", None):
        resource = "Meetings" if project else "Projects"
        site.add_hook(
            project=project,
            namespace="other",
            payload_version="v2.0",
            destination_url=OLD_URL,
            status="disabled",
            triggers=[(resource, "update")],
        )
    before = site.fake.hooks()
    site.run("apply", "--yes", *options)
    assert site.fake.hooks()[:2] == before
    assert site.triggers() == ["RFIs.update"]


def test_other_namespace_is_a_second_hook(site: Site) -> None:
    site.mount("RFIs.update")
    site.install()
    site.mount("RFIs.update", NAMESPACE="other")
    output = site.run("apply", "--yes")
    assert "The hook of namespace 'tracker' (v4.0) sends to this address too" in output
    assert "hooks delete --namespace tracker" in output
    assert site.triggers() == site.triggers("other") == ["RFIs.update"]


# Refusals and interruptions


def test_refused_triggers_of_a_bulk_call_are_named(site: Site) -> None:
    site.mount("RFIs.update", "Meetings.create")
    bulk = f"{ROOT}/hooks"

    @site.fake.before_request
    def take_away() -> None:
        if request.path.startswith(bulk) and request.path.endswith("/bulk"):
            site.fake.project_resources.pop("Meetings", None)

    output = site.run("apply", "--yes", code=1)
    assert (
        "refused, Meetings.create: Meetings is not a resource of this scope" in output
    )
    assert site.triggers() == ["RFIs.update"]
    (result,) = site.document("apply", "--yes", code=1).values()
    assert len(result["problems"]) == 1


def test_refused_deletions_of_a_bulk_call_are_named(site: Site) -> None:
    site.mount("RFIs.update")
    hook = site.add_hook(triggers=[RFI, ("RFIs", "delete"), ("RFIs", "create")])
    (gone,) = [t for t in site.fake.triggers(hook) if t["event_type"] == "DELETE"]

    @site.fake.before_request
    def take_away() -> None:
        if request.method == "DELETE" and gone["id"]:
            id, gone["id"] = gone["id"], ""
            path = f"{ROOT}/hooks/{hook}/triggers/{id}"
            headers = dict(request.headers)
            site.fake.test_client().delete(path, headers=headers)

    refused = gone["id"]
    output = site.run("apply", "--prune", "--yes", code=1)
    assert f"refused, trigger {refused}" in output
    assert site.triggers() == ["RFIs.update"]


CUTS = [
    ("POST", r"hooks$", 0),
    ("POST", r"hooks$", 1),
    ("POST", "bulk", 0),
    ("POST", "bulk", 1),
    ("POST", "bulk", 2),
    ("PATCH", "hooks", 0),
    ("DELETE", "hooks/[0-9]+$", 0),
    ("DELETE", "bulk", 0),
    ("GET", "hooks", 1),
    ("GET", "triggers", 0),
    ("GET", "resources", 0),
]


@pytest.mark.seldom("reset")
@pytest.mark.parametrize("kind", ["reset", "500", "empty"])
@pytest.mark.parametrize(("method", "path", "skip"), CUTS)
def test_apply_that_is_cut_off_can_be_repeated(
    site: Site, kind: str, method: str, path: str, skip: int
) -> None:
    scopes = [COMPANY, PROJECT, OTHER_PROJECT]
    site.fake.add_company("1", projects=["4"])
    scopes.append({"company": "1", "project": "4"})
    site.mount("*", SCOPES=scopes)
    site.add_hook(triggers=[RFI, ("RFIs", "UPDATE")], destination_url=OLD_URL)
    site.add_hook(project="3", payload_version="v3.0", triggers=[RFI])
    site.fake.answer_next(kind, method=method, path=path, skip=skip)
    output = site.run("apply", "--prune", "--yes", code=1)
    statuses = {status for _, _, status in site.fake.requests}
    assert kind == "empty" or statuses & {0, 500}
    assert "could not look" in output or "at Procore now:" in output
    site.run("apply", "--prune", "--yes")
    site.run("plan")
    assert len(site.fake.hooks()) == 4


def test_part_of_a_bulk_that_fails_keeps_the_others_not_out(site: Site) -> None:
    site.mount("*")
    site.fake.answer_next("500", method="POST", path="bulk", skip=1)
    output = site.run("apply", "--yes", code=1)
    assert "create 100 triggers" in output
    assert "create 100 triggers of hook" in output
    assert "bulk: 500" in output
    every = sum(map(len, site.fake.project_resources.values()))
    assert len(site.triggers()) == every - 100
    site.run("apply", "--yes")
    site.run("plan")


def test_apply_whose_calls_have_no_effect_fails(site: Site) -> None:
    site.mount("RFIs.update")
    site.fake.answer_next("null", method="POST", path="bulk")
    output = site.run("apply", "--yes", code=1)
    line = "project 2 of company 1: not everything was changed; run apply again"
    assert line in output


@pytest.mark.parametrize("failed", [3, {"a": 1}, "text"])
def test_bulk_answer_without_a_list_of_failures_is_an_error(
    site: Site, failed: Any
) -> None:
    site.mount("RFIs.update")
    site.add_hook(triggers=[("RFIs", "update"), ("RFIs", "delete")])
    answer_bulk(site, {"data": {"failed": failed}})
    output = site.run("apply", "--prune", "--yes", code=1)
    assert "the answer has no list of what has failed" in output


def test_bulk_answer_shows_no_secret_and_is_cut(site: Site) -> None:
    site.mount("RFIs.update")
    site.add_hook(triggers=[("RFIs", "update"), ("RFIs", "delete")])
    answer_bulk(site, {"data": {"failed": ["<token> " + "x" * 5000]}})
    output = site.run("apply", "--prune", "--yes", code=1)
    assert "refused, trigger ***** xxx" in output
    assert len(output) < 2000


def answer_bulk(site: Site, value: Any) -> None:
    """Answer bulk calls with 207 and the value."""

    @site.fake.after_request
    def replace(answer: Response) -> Response:
        if not request.path.endswith("/bulk"):
            return answer
        token = request.headers["Authorization"].removeprefix("Bearer ")
        text = json.dumps(value).replace("<token>", token)
        return Response(text, 207, mimetype="application/json")
