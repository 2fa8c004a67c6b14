"""FakeProcore's webhooks API: hooks, triggers and resources."""

from __future__ import annotations

from typing import Any

import pytest
from fake_support import Api
from fake_support import COMPANY
from fake_support import Destination
from fake_support import HOOK
from fake_support import hooked
from fake_support import PROJECT
from fake_support import URL

from flask_procore_webhooks.fake import FakeProcore

HOOK_KEYS = """
    id status payload_version namespace destination_url destination_headers
    trigger_count company_id project_id created_at updated_at hook_type
"""
TRIGGER_KEYS = (
    "id webhook_hook_id resource_name event_type company_id project_id".split()
)


def error(answer: Any) -> str:
    return str(answer.get_json()["error"]["message"])


def test_a_hook_has_the_fields_of_the_api(api: Api) -> None:
    hook = api.hook(destination_headers={"Authorization": "Bearer abcdefgh"})
    assert set(hook) == set(HOOK_KEYS.split())
    assert hook["status"] == "active"
    assert hook["destination_headers"] == {"Authorization": "*****defgh"}
    assert hook["created_at"] == "2026-11-23T09:00:00Z"
    assert hook["trigger_count"] == 0
    assert (hook["company_id"], hook["project_id"]) == (None, "2")


def test_a_company_hook_has_no_project(api: Api) -> None:
    hook = api.hook(COMPANY)
    assert (hook["company_id"], hook["project_id"]) == ("1", None)


def test_create_answers_201(api: Api) -> None:
    answer = api.call("POST", f"{PROJECT}/hooks", HOOK)
    assert answer.status_code == 201
    assert set(answer.get_json()) == {"data"}


@pytest.mark.parametrize("missing", HOOK)
def test_hook_without_a_required_field_is_refused(api: Api, missing: str) -> None:
    body = {name: value for name, value in HOOK.items() if name != missing}
    answer = api.call("POST", f"{PROJECT}/hooks", body)
    assert answer.status_code == 400
    assert answer.get_json()["error"]["code"] == "BAD_REQUEST"
    assert answer.get_json()["error"]["details"][0]["source"] == missing


@pytest.mark.parametrize(
    "fields",
    [
        {"namespace": "Mine"},
        {"namespace": "m" * 81},
        {"payload_version": "v5.0"},
        {"destination_url": "http://app.example.com/"},
        {"destination_url": "ftp://app.example.com/"},
        {"destination_headers": {"Authorization": 5}},
        {"destination_headers": "Bearer abc", "namespace": 5},
    ],
)
def test_hook_with_an_invalid_field_is_refused(
    api: Api, fields: dict[str, Any]
) -> None:
    answer = api.call("POST", f"{PROJECT}/hooks", {**HOOK, **fields})
    assert answer.status_code == 400


def test_body_that_is_not_an_object_is_refused(api: Api) -> None:
    assert api.call("POST", f"{PROJECT}/hooks", [HOOK]).status_code == 400


def test_second_hook_of_a_namespace_is_refused(api: Api) -> None:
    api.hook()
    answer = api.call("POST", f"{PROJECT}/hooks", HOOK)
    assert answer.status_code == 400
    assert "has already been taken" in error(answer)


def test_another_scope_may_have_the_namespace(api: Api) -> None:
    api.hook()
    api.hook(COMPANY)
    api.hook("/rest/v2.0/companies/1/projects/3/webhooks")


def test_short_version_is_accepted(api: Api) -> None:
    assert api.hook(payload_version="v2")["payload_version"] == "v2.0"


def test_short_authorization_is_shown_whole(api: Api) -> None:
    hook = api.hook(destination_headers={"Authorization": "12345"})
    assert hook["destination_headers"] == {"Authorization": "12345"}


def test_hook_without_authorization_shows_none(api: Api) -> None:
    assert api.hook()["destination_headers"] == {}


def test_masks_can_be_switched_off(api: Api, fake: FakeProcore) -> None:
    fake.switches.masks_authorization = False
    hook = api.hook(destination_headers={"Authorization": "Bearer abcdefgh"})
    assert hook["destination_headers"] == {"Authorization": "Bearer abcdefgh"}


def test_list_of_company_hooks_requires_the_namespace(
    api: Api, fake: FakeProcore
) -> None:
    api.hook(COMPANY)
    assert api.call("GET", f"{COMPANY}/hooks").status_code == 400
    assert len(api.data("GET", f"{COMPANY}/hooks", namespace="mine")) == 1
    assert api.data("GET", f"{COMPANY}/hooks", namespace="other") == []
    fake.switches.namespace_required = False
    assert len(api.data("GET", f"{COMPANY}/hooks")) == 1


def test_list_of_project_hooks_has_those_of_the_project(api: Api) -> None:
    hook = api.hook()
    api.hook(COMPANY)
    assert api.data("GET", f"{PROJECT}/hooks") == [hook]
    assert api.data("GET", f"{PROJECT}/hooks", payload_version="v2.0") == []
    assert api.data("GET", f"{PROJECT}/hooks", payload_version="v4") == [hook]


def test_hook_is_found_in_its_scope_only(api: Api) -> None:
    hook = api.hook()
    path = f"/hooks/{hook['id']}"
    assert api.data("GET", PROJECT + path) == hook
    assert api.call("GET", COMPANY + path).status_code == 404
    assert api.call("GET", f"{PROJECT}/hooks/7").status_code == 404


def test_patch_changes_the_given_fields(api: Api, fake: FakeProcore) -> None:
    hook = api.hook()
    fake.clock.advance(60)
    changes = {
        "status": "disabled",
        "destination_headers": {"Authorization": "Bearer 123456"},
    }
    after = api.data("PATCH", f"{PROJECT}/hooks/{hook['id']}", changes)
    assert after["status"] == "disabled"
    assert after["updated_at"] == "2026-11-23T09:01:00Z"
    assert after["destination_url"] == URL
    assert fake.hooks()[0]["destination_headers"] == {"Authorization": "Bearer 123456"}


def test_patch_of_the_payload_version_is_refused(api: Api, fake: FakeProcore) -> None:
    path = f"{PROJECT}/hooks/{api.hook()['id']}"
    assert api.call("PATCH", path, {"payload_version": "v4.0"}).status_code == 200
    assert api.call("PATCH", path, {"payload_version": "v2.0"}).status_code == 400
    fake.switches.patch_version = 200
    assert api.data("PATCH", path, {"payload_version": "v2.0"})["payload_version"] == (
        "v2.0"
    )


def test_patch_to_a_taken_namespace_is_refused(api: Api) -> None:
    api.hook()
    path = f"{PROJECT}/hooks/{api.hook(namespace='other')['id']}"
    answer = api.call("PATCH", path, {"namespace": "mine"})
    assert (answer.status_code, "has already been taken" in error(answer)) == (
        400,
        True,
    )
    assert api.call("PATCH", path, {"namespace": "other"}).status_code == 200


def test_patch_to_an_unknown_status_is_refused(api: Api) -> None:
    path = f"{PROJECT}/hooks/{api.hook()['id']}"
    assert api.call("PATCH", path, {"status": "asleep"}).status_code == 400


def test_triggers_and_deliveries_go_away_with_the_hook(
    api: Api, fake: FakeProcore
) -> None:
    id = hooked(fake, Destination())
    fake.emit("RFIs", "update", project="2")
    answer = api.call("DELETE", f"{PROJECT}/hooks/{id}")
    assert (answer.status_code, answer.data) == (204, b"")
    assert (fake.hooks(), fake.deliveries(), fake.deliver()) == ([], [], 0)
    assert api.call("GET", f"{PROJECT}/hooks/{id}/triggers").status_code == 404
    assert api.call("DELETE", f"{PROJECT}/hooks/{id}").status_code == 404


# Triggers


def triggers(hook: Any, base: str = PROJECT) -> str:
    return f"{base}/hooks/{hook['id']}/triggers"


def rfi(event_type: str = "update") -> dict[str, str]:
    return {"resource_name": "RFIs", "event_type": event_type}


def test_a_trigger_has_the_fields_of_the_api(api: Api) -> None:
    hook = api.hook()
    answer = api.call("POST", triggers(hook), rfi())
    trigger = answer.get_json()["data"]
    assert answer.status_code == 201
    assert sorted(trigger) == sorted(TRIGGER_KEYS)
    assert trigger["webhook_hook_id"] == hook["id"]
    assert (trigger["resource_name"], trigger["event_type"]) == ("RFIs", "UPDATE")
    assert (trigger["company_id"], trigger["project_id"]) == (None, "2")
    assert api.data("GET", triggers(hook)) == [trigger]
    assert api.data("GET", f"{PROJECT}/hooks/{hook['id']}")["trigger_count"] == 1


def test_case_of_triggers_can_be_switched(api: Api, fake: FakeProcore) -> None:
    fake.switches.trigger_case = "lower"
    assert api.data("POST", triggers(api.hook()), rfi())["event_type"] == "update"


def test_repeated_trigger_is_refused_in_any_case(api: Api) -> None:
    path = triggers(api.hook())
    api.data("POST", path, rfi())
    answer = api.call("POST", path, rfi("UPDATE"))
    assert answer.status_code == 400
    assert "already exists" in error(answer)


@pytest.mark.parametrize(
    "body",
    [
        {"resource_name": "Projects", "event_type": "update"},
        {"resource_name": "rfis", "event_type": "update"},
        {"resource_name": "RFQ Quotes", "event_type": "delete"},
        {"resource_name": "RFIs"},
        {"event_type": "update"},
        [],
    ],
)
def test_trigger_that_the_scope_does_not_have_is_refused(api: Api, body: Any) -> None:
    assert api.call("POST", triggers(api.hook()), body).status_code == 400


def test_projects_are_a_resource_of_companies(api: Api) -> None:
    path = triggers(api.hook(COMPANY), COMPANY)
    body = {"resource_name": "Projects", "event_type": "update"}
    assert api.data("POST", path, body)["company_id"] == "1"
    assert api.call("POST", path, rfi()).status_code == 400


def test_trigger_is_deleted(api: Api) -> None:
    path = triggers(api.hook())
    trigger = api.data("POST", path, rfi())
    assert api.call("DELETE", f"{path}/{trigger['id']}").status_code == 204
    assert api.call("DELETE", f"{path}/{trigger['id']}").status_code == 404
    assert api.data("GET", path) == []


def test_bulk_create_answers_201_or_207(api: Api) -> None:
    path = triggers(api.hook()) + "/bulk"
    answer = api.call("POST", path, [rfi("create"), rfi("update")])
    assert answer.status_code == 201
    assert [each["event_type"] for each in answer.get_json()["data"]] == [
        "CREATE",
        "UPDATE",
    ]
    answer = api.call("POST", path, [rfi("update"), rfi("delete"), 5])
    assert answer.status_code == 207
    failed, made, other = answer.get_json()["data"]
    assert failed["code"] == other["code"] == "400"
    assert "already exists" in failed["message"]
    assert failed["trigger"] == rfi("update")
    assert made["event_type"] == "DELETE"


def test_bulk_delete_answers_200_or_207(api: Api, fake: FakeProcore) -> None:
    hook = api.hook()
    path = triggers(hook) + "/bulk"
    rows = api.data("POST", path, [rfi("create"), rfi("update")])
    first, second = [row["id"] for row in rows]
    answer = api.call("DELETE", path, [first])
    assert answer.status_code == 200
    assert answer.get_json() == {"data": {"succeeded": [first]}}
    answer = api.call("DELETE", path, [first, second])
    assert answer.status_code == 207
    assert answer.get_json() == {"data": {"succeeded": [second], "failed": [first]}}
    assert fake.triggers(hook["id"]) == []


@pytest.mark.parametrize("body", [{"triggers": [rfi()]}, [rfi()] * 501])
def test_bulk_body_that_is_no_short_array_is_refused(api: Api, body: Any) -> None:
    assert api.call("POST", triggers(api.hook()) + "/bulk", body).status_code == 400


# Resources


def test_resources_list_the_actions_of_the_scope(api: Api) -> None:
    rows = api.data(
        "GET", f"{COMPANY}/resources", payload_version="v4.0", per_page="100"
    )
    assert len(rows) == 25
    assert set(rows[0]) == {"category", "tool", "name", "payload_version", "actions"}
    projects = next(row for row in rows if row["name"] == "Projects")
    assert projects["actions"] == ["create", "update"]
    assert projects["payload_version"] == "v4.0"


def test_resources_require_the_payload_version(api: Api) -> None:
    assert api.call("GET", f"{PROJECT}/resources").status_code == 400


def test_catalogue_belongs_to_one_fake(api: Api, fake: FakeProcore) -> None:
    fake.project_resources["Workflow Instance"] = ("STARTED",)
    assert "Workflow Instance" not in FakeProcore().project_resources
    body = {"resource_name": "Workflow Instance", "event_type": "started"}
    assert api.data("POST", triggers(api.hook()), body)["event_type"] == "STARTED"


# Pages


def test_pages_have_ten_rows_and_links(api: Api) -> None:
    path = f"{PROJECT}/resources"
    answer = api.call("GET", path, payload_version="v4.0")
    total = int(answer.headers["Total"])
    assert len(answer.get_json()["data"]) == 10
    assert answer.headers["Per-Page"] == "10"
    last = -(-total // 10)
    names, page = set(), 1
    while 'rel="next"' in answer.headers["Link"]:
        names |= {row["name"] for row in answer.get_json()["data"]}
        page += 1
        assert f"page={page}&per_page=10" in answer.headers["Link"]
        answer = api.call("GET", path, payload_version="v4.0", page=page)
    assert page == last
    names |= {row["name"] for row in answer.get_json()["data"]}
    assert len(names) == total


def test_a_page_has_at_most_a_hundred_rows(api: Api, fake: FakeProcore) -> None:
    fake.switches.most_per_page = 20
    rows = api.data(
        "GET", f"{PROJECT}/resources", payload_version="v4.0", per_page=1000
    )
    assert len(rows) == 20


def test_headers_of_pages_can_be_switched_off(api: Api, fake: FakeProcore) -> None:
    fake.switches.sends_link = fake.switches.sends_total = False
    answer = api.call("GET", f"{PROJECT}/resources", payload_version="v4.0")
    assert not {"Link", "Total", "Per-Page"} & {*answer.headers.keys()}


def test_page_that_is_no_number_is_refused(api: Api) -> None:
    assert api.call("GET", f"{PROJECT}/hooks", page="x").status_code == 400
