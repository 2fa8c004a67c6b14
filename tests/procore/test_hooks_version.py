"""``hooks plan`` and ``apply`` where the hook has another payload version."""

from __future__ import annotations

from typing import Any

import pytest
from flask import request
from hooks_support import AUTHORIZATION
from hooks_support import COMPANY
from hooks_support import NAMESPACE
from hooks_support import OTHER_PROJECT
from hooks_support import pairs
from hooks_support import PROJECT
from hooks_support import SAME_TAIL
from hooks_support import Site
from hooks_support import URL

#: Together they take longer than the others.
pytestmark = pytest.mark.slow

RFI = ("RFIs", "update")
#: The namespace of a second hook.
SECOND = "tracker-v4-0"


def mount_with_both(site: Site, **second: Any) -> list[str]:
    """Add a hook of v2.0 and the second one; return their ids."""
    site.mount("RFIs.update")
    first = site.add_hook(triggers=[RFI], payload_version="v2.0")
    given = {"namespace": SECOND, "triggers": [RFI], **second}
    return [first, site.add_hook(**given)]


# Replace


@pytest.mark.parametrize("spelling", ["v2", "v2.0"])
@pytest.mark.parametrize("there", ["v2", "v2.0"])
def test_both_spellings_of_a_version_are_the_same(
    site: Site, spelling: str, there: str
) -> None:
    site.mount("RFIs.update", PAYLOAD_VERSION=spelling, SCOPES=[PROJECT, OTHER_PROJECT])
    site.add_hook(triggers=[RFI], payload_version=there)
    site.run("apply", "--yes")
    site.run("plan")
    assert {hook["payload_version"] for hook in site.fake.hooks()} == {"v2.0"}


def test_other_payload_version_replaces_the_hook(site: Site) -> None:
    site.mount("RFIs.update")
    old = site.add_hook(triggers=[RFI], payload_version="v2.0")
    output = site.run("plan", code=2)
    assert "replace the hook" in output
    assert "apply deletes the hook and creates it again" in output
    site.run("apply", "--yes")
    assert site.hook()["id"] != old
    assert site.hook()["payload_version"] == "v4.0"
    assert site.triggers() == ["RFIs.update"]
    site.run("plan")


def test_replaced_hook_keeps_its_surplus_triggers(site: Site) -> None:
    site.mount("RFIs.update")
    surplus = [("RFIs", "UPDATE"), ("Meetings", "CREATE"), ("Meetings", "create")]
    site.add_hook(triggers=[RFI, *surplus], payload_version="v2.0")
    lines = site.lines("plan", code=2)
    assert "surplus trigger Meetings.create; --prune deletes it" in lines
    site.run("apply", "--yes")
    assert site.hook()["payload_version"] == "v4.0"
    assert site.triggers() == ["Meetings.create", "RFIs.update"]


def test_hook_that_is_replaced_with_prune_has_no_surplus_triggers(site: Site) -> None:
    site.mount("RFIs.update")
    site.add_hook(triggers=[RFI, ("Meetings", "create")], payload_version="v2.0")
    site.run("apply", "--prune", "--yes")
    assert site.triggers() == ["RFIs.update"]
    site.run("plan")


def test_trigger_that_procore_has_ended_is_not_carried_over(site: Site) -> None:
    site.mount("RFIs.update")
    ended = ("Project Users", "update")
    site.add_hook(triggers=[RFI, ended], payload_version="v2.0")
    site.run("apply", "--yes")
    assert site.triggers() == ["RFIs.update"]


def test_surplus_trigger_that_procore_refuses_keeps_no_other_out(site: Site) -> None:
    site.mount("RFIs.update")
    site.add_hook(triggers=[RFI, ("Meetings", "create")], payload_version="v2.0")

    @site.fake.before_request
    def take_away() -> None:
        if request.path.endswith("/bulk"):
            site.fake.project_resources.pop("Meetings", None)

    output = site.run("apply", "--yes", code=1)
    assert "refused, Meetings.create: Meetings is not a resource" in output
    assert site.triggers() == ["RFIs.update"]


def test_surplus_triggers_of_a_hook_that_is_not_created_again_are_named(
    site: Site,
) -> None:
    site.mount("RFIs.update")
    surplus = [("Meetings", "create"), ("Forms", "update")]
    site.add_hook(triggers=[RFI, *surplus], payload_version="v2.0")
    site.fake.answer_next("500", method="POST", path="hooks$")
    output = site.run("apply", "--yes", code=1)
    assert (
        "create surplus triggers Meetings.create, Forms.update: refused, The hook was"
        " not created: name them in hooks_for=." in output
    )


def test_surplus_triggers_that_are_not_created_again_are_named(site: Site) -> None:
    site.mount("RFIs.update")
    site.add_hook(triggers=[RFI, ("Meetings", "create")], payload_version="v2.0")
    site.fake.answer_next("500", method="POST", path="bulk", skip=1)
    output = site.run("apply", "--yes", code=1)
    assert "create surplus trigger Meetings.create of hook" in output
    assert site.triggers() == ["RFIs.update"]


# A second hook


def test_parallel_creates_a_second_hook_and_keeps_the_first(site: Site) -> None:
    site.mount("RFIs.update")
    old = site.add_hook(triggers=[RFI], payload_version="v2.0")
    before = site.hook()
    site.run("apply", "--parallel", "--yes")
    assert site.hook() == before
    assert site.hook()["id"] == old
    second = site.hook("tracker-v4-0")
    assert (second["payload_version"], second["destination_url"]) == ("v4.0", URL)
    assert site.triggers("tracker-v4-0") == ["RFIs.update"]
    site.mount("RFIs.update", NAMESPACE="tracker-v4-0")
    site.run("plan")
    site.run("delete", "--namespace", "tracker", "--yes")
    assert [hook["namespace"] for hook in site.fake.hooks()] == ["tracker-v4-0"]


def test_repeated_parallel_creates_what_the_second_hook_lacks(site: Site) -> None:
    site.mount("RFIs.update")
    site.add_hook(triggers=[RFI], payload_version="v2.0")
    site.fake.answer_next("500", method="POST", path="bulk")
    site.run("apply", "--parallel", "--yes", code=1)
    assert site.triggers("tracker-v4-0") == []
    for _ in range(2):
        site.run("apply", "--parallel", "--yes")
        assert site.triggers("tracker-v4-0") == ["RFIs.update"]
    assert len(site.fake.hooks()) == 2


def test_parallel_with_rotate_writes_to_both_hooks(site: Site) -> None:
    site.mount("RFIs.update")
    site.add_hook(triggers=[RFI], payload_version="v2.0", authorization=SAME_TAIL)
    site.run("apply", "--parallel", "--rotate", "--yes")
    for namespace in (NAMESPACE, "tracker-v4-0"):
        headers = site.hook(namespace)["destination_headers"]
        assert headers == {"Authorization": AUTHORIZATION}


def test_second_hook_has_the_surplus_triggers_of_the_first(site: Site) -> None:
    site.mount("RFIs.update")
    surplus = ("Meetings", "create")
    site.add_hook(triggers=[RFI, surplus], payload_version="v2.0")
    site.run("apply", "--parallel", "--yes")
    assert site.triggers(SECOND) == ["Meetings.create", "RFIs.update"]
    site.fake.requests.clear()
    # There is nothing left to change: it does not ask.
    site.run("apply", "--parallel")
    assert site.changes() == []


def test_second_hook_gets_what_it_lacks_of_the_first(site: Site) -> None:
    site.mount("RFIs.update")
    surplus = ("Meetings", "create")
    site.add_hook(triggers=[RFI, surplus], payload_version="v2.0")
    site.add_hook(namespace=SECOND, triggers=[RFI])
    site.run("apply", "--parallel", "--yes")
    assert site.triggers(SECOND) == ["Meetings.create", "RFIs.update"]


def test_plan_with_both_hooks_says_how_to_go_on(site: Site) -> None:
    _, second = mount_with_both(site)
    output = site.run("plan", code=2)
    assert f"replace the hook; beside it is hook {second} of '{SECOND}'" in output
    assert (
        f"When it delivers, set NAMESPACE to '{SECOND}', deploy, and delete the old"
        f" hook with hooks delete --namespace {NAMESPACE}." in output
    )
    assert f"hooks delete --namespace {SECOND}" not in output
    assert "apply deletes the hook" not in output
    assert "add trigger" not in output
    assert "run apply --parallel first" not in output


def test_note_after_parallel_says_how_to_go_on(site: Site) -> None:
    site.mount("RFIs.update")
    site.add_hook(triggers=[RFI], payload_version="v2.0")
    output = site.run("apply", "--parallel", "--yes")
    after = output.partition("at Procore now:")[2]
    assert f"set NAMESPACE to '{SECOND}', deploy, and delete the old hook" in after
    assert "not everything was changed" not in after


@pytest.mark.parametrize(
    "more", [[], ["--prune"], ["--rotate"], ["--prune", "--rotate"]]
)
@pytest.mark.parametrize("project", ["2", None])
def test_apply_with_both_hooks_changes_nothing_and_says_so(
    site: Site, more: list[str], project: str | None
) -> None:
    pattern = "RFIs.update" if project else "Projects.update"
    site.mount(pattern, SCOPES=[PROJECT if project else COMPANY])
    trigger = RFI if project else ("Projects", "update")
    for namespace, version in ((NAMESPACE, "v2.0"), (SECOND, "v4.0")):
        site.add_hook(
            project=project,
            namespace=namespace,
            payload_version=version,
            triggers=[trigger],
        )
    # It does not ask.
    output = site.run("apply", *more, code=1)
    assert f"nothing was changed beside the hook of '{SECOND}'" in output
    assert "set NAMESPACE to it, deploy, and delete the old hook" in output
    assert site.changes() == []


def test_apply_with_both_hooks_in_one_scope_goes_on_in_the_others(site: Site) -> None:
    mount_with_both(site)
    site.mount("RFIs.update", SCOPES=[PROJECT, OTHER_PROJECT])
    site.add_hook(project="3", payload_version="v2.0", triggers=[RFI])
    site.run("apply", "--yes", code=1)
    versions = {
        (hook["project_id"], hook["namespace"]): hook["payload_version"]
        for hook in site.fake.hooks()
    }
    assert versions == {
        ("2", NAMESPACE): "v2.0",
        ("2", SECOND): "v4.0",
        ("3", NAMESPACE): "v4.0",
    }


def test_second_hook_that_lacks_a_trigger_is_completed_first(site: Site) -> None:
    mount_with_both(site, triggers=[])
    assert "add trigger RFIs.update" in site.lines("plan", code=2)
    output = site.run("apply", code=1)
    line = f"nothing was changed beside the hook of '{SECOND}': run apply --parallel"
    assert line in output
    assert site.changes() == []
    site.run("apply", "--parallel", "--yes")
    assert site.triggers(SECOND) == ["RFIs.update"]
    assert "run apply --parallel first" not in site.run("plan", code=2)


def test_parallel_whose_calls_have_no_effect_fails(site: Site) -> None:
    mount_with_both(site, triggers=[])
    site.fake.answer_next("null", method="POST", path="bulk")
    output = site.run("apply", "--parallel", "--yes", code=1)
    assert "not everything was changed; run apply again" in output


def test_both_hooks_as_json_are_named(site: Site) -> None:
    first, second = mount_with_both(site)
    (result,) = site.document("apply", "--yes", code=1).values()
    (after,) = result["after"]
    assert (after["hook"], after["parallel"]) == (first, second)
    assert (after["state"], after["replaces"]) == ("differs", True)
    assert result["steps"] == []


def test_old_hook_is_to_be_deleted_after_the_new_namespace_is_set(site: Site) -> None:
    mount_with_both(site)
    site.mount("RFIs.update", NAMESPACE=SECOND)
    output = site.run("plan")
    assert "The hook of namespace 'tracker' (v2.0) sends to this address too" in output
    assert "Delete it with hooks delete --namespace tracker." in output


def test_second_hook_whose_first_is_gone_is_not_to_be_deleted(site: Site) -> None:
    site.mount("RFIs.update")
    site.add_hook(namespace=SECOND, triggers=[RFI])
    output = site.run("plan", code=2)
    assert (
        f"The hook of namespace '{SECOND}' (v4.0) is one of apply --parallel" in output
    )
    assert "set NAMESPACE to it, and deploy" in output
    assert "hooks delete" not in output


def test_second_hook_beside_one_of_the_same_version_is_to_be_deleted(
    site: Site,
) -> None:
    site.mount("RFIs.update")
    site.add_hook(triggers=[RFI])
    site.add_hook(namespace=SECOND, triggers=[RFI])
    assert f"Delete it with hooks delete --namespace {SECOND}." in site.run("plan")


def test_hook_of_a_third_version_in_the_second_namespace_stays(site: Site) -> None:
    mount_with_both(site, payload_version="v3.0")
    output = site.run("apply", "--parallel", "--yes", code=1)
    assert "refused, The namespace has a hook of payload version v3.0" in output
    assert f"hooks delete --namespace {SECOND}" in output
    assert site.changes() == []
    site.run("apply", "--yes")
    versions = [hook["payload_version"] for hook in site.fake.hooks()]
    assert versions == ["v3.0", "v4.0"]


def test_second_hook_that_cannot_be_read_keeps_the_first(site: Site) -> None:
    _, second = mount_with_both(site)
    site.fake.answer_next("500", path=f"hooks/{second}/triggers")
    output = site.run("apply", "--yes", code=1)
    assert "could not look: GET" in output
    assert site.changes() == []
    assert [pairs(site.fake, hook["id"]) for hook in site.fake.hooks()] == [
        ["RFIs.update"]
    ] * 2
