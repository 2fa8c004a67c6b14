"""FakeProcore's records, from the test's side and over REST."""

from __future__ import annotations

import pytest
from fake_support import Api
from fake_support import Destination
from fake_support import hooked

from flask_procore_webhooks.fake import FakeProcore

RFIS = "/rest/v1.0/projects/2/rfis"


def test_record_has_the_times_of_the_clock(fake: FakeProcore, api: Api) -> None:
    id = fake.create("RFIs", project="2", subject="Door")
    fake.clock.advance(60)
    fake.update("RFIs", id, subject="Window")
    assert fake.records("RFIs", project="2") == [
        {
            "id": id,
            "subject": "Window",
            "created_at": "2026-11-23T09:00:00Z",
            "updated_at": "2026-11-23T09:01:00Z",
        }
    ]
    assert api.call("GET", f"{RFIS}/{id}").get_json() == {
        **fake.records("RFIs")[0],
        "id": int(id),
    }
    fake.switches.record_ids = "text"
    assert api.call("GET", RFIS).get_json() == fake.records("RFIs", project="2")


def test_deleted_record_answers_404(fake: FakeProcore, api: Api) -> None:
    id = fake.create("RFIs", project="2")
    fake.delete("RFIs", id)
    assert api.call("GET", f"{RFIS}/{id}").status_code == 404
    assert api.call("GET", f"{RFIS}/7").status_code == 404
    assert fake.records("RFIs") == []
    with pytest.raises(LookupError):
        fake.update("RFIs", id, subject="Door")


def test_each_change_makes_an_event(fake: FakeProcore) -> None:
    there = Destination()
    hooked(fake, there)
    id = fake.create("RFIs", project="2", user_id="5")
    fake.update("RFIs", id)
    fake.delete("RFIs", id)
    fake.create("RFIs", project="3")
    fake.create("Submittals", project="2")
    fake.deliver()
    assert [each["reason"] for each in there.payloads] == ["create", "update", "delete"]
    assert {each["resource_id"] for each in there.payloads} == {id}
    assert [each["user_id"] for each in there.payloads] == ["5", "1001", "1001"]


@pytest.mark.parametrize("key", ["rfi", None])
def test_rest_changes_a_record(fake: FakeProcore, api: Api, key: str | None) -> None:
    there = Destination()
    hooked(fake, there, payload_version="v2.0")
    fields = {"subject": "Door"}
    answer = api.call("POST", RFIS, {key: fields} if key else fields)
    assert answer.status_code == 201
    path = f"{RFIS}/{answer.get_json()['id']}"
    answer = api.call("PATCH", path, {"rfi": {"subject": "Window"}})
    assert answer.get_json()["subject"] == "Window"
    assert api.call("DELETE", path).status_code == 204
    assert api.call("PATCH", path, {}).status_code == 404
    fake.deliver()
    assert [each["event_type"] for each in there.payloads] == [
        "create",
        "update",
        "delete",
    ]
    sources = {each["metadata"]["source_application_id"] for each in there.payloads}
    assert sources == {"id"}
    assert {each["user_id"] for each in there.payloads} == {90001}


@pytest.mark.parametrize(
    ("resource", "path", "query"),
    [
        ("Submittals", "/rest/v1.1/projects/2/submittals", {}),
        ("Submittals", "/rest/v1.0/projects/2/submittals", {}),
        ("Punch Items", "/rest/v1.0/punch_items", {"project_id": "2"}),
        ("Observation Items", "/rest/v1.0/observations/items", {"project_id": "2"}),
        ("Change Events", "/rest/v1.0/change_events", {"project_id": "2"}),
    ],
)
def test_resources_have_their_paths(
    fake: FakeProcore, api: Api, resource: str, path: str, query: dict[str, str]
) -> None:
    id = fake.create(resource, project="2")
    fake.create(resource, project="3")
    rows = api.call("GET", path, **query).get_json()
    assert [row["id"] for row in rows] == [int(id)]
    assert api.call("GET", f"{path}/{id}", **query).get_json() == rows[0]


def test_path_without_a_project_requires_the_parameter(api: Api) -> None:
    assert api.call("GET", "/rest/v1.0/punch_items").status_code == 400
    body = {"project_id": 2, "punch_item": {"name": "Paint"}}
    assert api.call("POST", "/rest/v1.0/punch_items", body).status_code == 201


def test_projects_are_records_of_their_company(fake: FakeProcore, api: Api) -> None:
    path = "/rest/v1.0/projects"
    rows = api.call("GET", path, company_id="1").get_json()
    assert [row["id"] for row in rows] == [2, 3]
    id = fake.create("Projects", company="1", name="New")
    assert api.call("GET", f"/rest/v1.0/projects/{id}/rfis").status_code == 200
    assert api.call("GET", f"{path}/{id}").get_json()["name"] == "New"
    made = api.call("POST", path, {"company_id": 1, "project": {"name": "B"}})
    other = made.get_json()["id"]
    assert api.call("GET", f"/rest/v1.0/projects/{other}/rfis").status_code == 200


def test_list_is_filtered_by_time(fake: FakeProcore, api: Api) -> None:
    ids = []
    for _ in range(3):
        ids.append(int(fake.create("RFIs", project="2")))
        fake.clock.advance(days=1)

    def found(name: str, text: str) -> list[int]:
        rows = api.call("GET", RFIS, **{f"filters[{name}]": text}).get_json()
        return [row["id"] for row in rows]

    days = "2026-11-23T10:00:00Z...2026-11-25T09:00:00Z"
    assert found("updated_at", days) == ids[1:]
    fake.update("RFIs", str(ids[0]))
    assert found("updated_at", "2026-11-26T00:00:00Z...2026-11-27T00:00:00Z") == ids[:1]
    assert found("created_at", days) == ids[1:]
    answer = api.call("GET", RFIS, **{"filters[updated_at]": "yesterday"})
    assert answer.status_code == 400


def test_list_has_pages(fake: FakeProcore, api: Api) -> None:
    for _ in range(5):
        fake.create("RFIs", project="2")
    answer = api.call("GET", RFIS, per_page=2, page=2)
    assert len(answer.get_json()) == 2
    assert answer.headers["Total"] == "5"


def test_read_after_a_change_can_be_stale(fake: FakeProcore, api: Api) -> None:
    fake.switches.stale_seconds = 5
    id = fake.create("RFIs", project="2", subject="Door")
    path = f"{RFIS}/{id}"
    assert api.call("GET", path).status_code == 404
    fake.clock.advance(5)
    fake.update("RFIs", id, subject="Window")
    assert api.call("GET", path).get_json()["subject"] == "Door"
    assert fake.records("RFIs")[0]["subject"] == "Window"
    fake.clock.advance(5)
    assert api.call("GET", RFIS).get_json()[0]["subject"] == "Window"
    fake.delete("RFIs", id)
    assert api.call("GET", path).status_code == 200
    fake.clock.advance(5)
    assert api.call("GET", path).status_code == 404


def test_companies_are_those_that_are_permitted(fake: FakeProcore, api: Api) -> None:
    fake.add_company("5")
    fake.forbid("5")
    rows = api.call("GET", "/rest/v1.0/companies").get_json()
    assert [row["id"] for row in rows] == [1]
    assert api.call("GET", "/rest/v1.0/me").get_json()["id"] == 90001
