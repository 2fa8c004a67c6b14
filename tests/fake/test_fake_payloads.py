"""FakeProcore's events: their payloads, and the hooks that get them."""

from __future__ import annotations

import re

import pytest
from fake_support import Api
from fake_support import Destination
from fake_support import hooked
from fake_support import PROJECT
from fake_support import URL

from flask_procore_webhooks.fake import FakeProcore


def test_v4_payload_has_text_fields(fake: FakeProcore, there: Destination) -> None:
    hooked(fake, there)
    event = fake.emit("RFIs", "update", project="2", resource_id="7", user_id="8")
    assert fake.deliver() == 1
    assert there.payloads == [
        {
            "id": event,
            "reason": "update",
            "user_id": "8",
            "timestamp": "2026-11-23T09:00:00.000000Z",
            "company_id": "1",
            "project_id": "2",
            "resource_id": "7",
            "resource_type": "RFIs",
            "payload_version": "v4.0",
        }
    ]
    assert re.fullmatch("[0-9A-HJKMNP-TV-Z]{26}", event)


def test_v2_payload_has_numbers(fake: FakeProcore, there: Destination) -> None:
    hooked(fake, there, payload_version="v2.0")
    event = fake.emit("RFIs", "create", project="2", resource_id="7")
    fake.deliver()
    payload = there.payloads[0]
    assert payload["ulid"] == event
    assert len(str(payload.pop("id"))) == 19
    del payload["ulid"]
    assert payload == {
        "timestamp": "2026-11-23T09:00:00.000000Z",
        "metadata": {
            "source_user_id": 1001,
            "source_company_id": 1,
            "source_project_id": 2,
            "source_application_id": None,
            "source_operation_id": None,
        },
        "user_id": 1001,
        "company_id": 1,
        "project_id": 2,
        "api_version": "v2.0",
        "event_type": "create",
        "resource_name": "RFIs",
        "resource_id": 7,
    }


def test_v3_payload_has_related_resources(
    fake: FakeProcore, there: Destination
) -> None:
    hooked(fake, there, payload_version="v3.0")
    fake.emit("RFIs", "create", project="2", related=[("9", "Direct Costs")])
    fake.deliver()
    assert there.payloads[0]["api_version"] == "v3.0"
    assert there.payloads[0]["related_resources"] == [{"id": 9, "name": "Direct Costs"}]


def test_ids_of_v4_and_v2_can_differ(fake: FakeProcore, there: Destination) -> None:
    fake.switches.same_id = False
    hooked(fake, there)
    hooked(fake, there, namespace="other", payload_version="v2.0")
    event = fake.emit("RFIs", "create", project="2")
    fake.deliver()
    v4, v2 = there.payloads
    assert v4["id"] == event != v2["ulid"]


def test_company_event_has_no_project(fake: FakeProcore, there: Destination) -> None:
    pairs = [("Projects", "create"), ("Projects", "update")]
    hooked(fake, there, project=None, company="1", triggers=pairs)
    hooked(
        fake,
        there,
        project=None,
        company="1",
        triggers=pairs,
        namespace="other",
        payload_version="v2.0",
    )
    id = fake.create("Projects", company="1", name="New")
    fake.update("Projects", id, name="Newer")
    assert fake.deliver() == 4
    seen = {
        payload.get("reason", payload.get("event_type")): payload["project_id"]
        for payload in there.payloads[::2] + there.payloads[1::2]
    }
    assert set(seen) == {"create", "update"}
    v4 = [p["project_id"] for p in there.payloads if "reason" in p]
    v2 = [p["project_id"] for p in there.payloads if "ulid" in p]
    assert (v4, v2) == (["", id], [None, int(id)])


def test_request_is_a_post_of_json(fake: FakeProcore, there: Destination) -> None:
    hooked(fake, there, authorization="Bearer s3cret")
    fake.emit("RFIs", "update", project="2")
    fake.deliver()
    assert there.headers[0]["Content-Type"] == "application/json"
    assert there.headers[0]["Authorization"] == "Bearer s3cret"
    assert there.urls == [URL]


def test_hook_without_authorization_sends_none(
    fake: FakeProcore, there: Destination
) -> None:
    hooked(fake, there)
    fake.emit("RFIs", "update", project="2")
    fake.deliver()
    assert "Authorization" not in there.headers[0]


def test_other_headers_can_be_sent(
    fake: FakeProcore, there: Destination, api: Api
) -> None:
    path = f"{PROJECT}/hooks/{hooked(fake, there)}"
    changes = {"destination_headers": {"Authorization": "Bearer abc", "X-Key": "key"}}
    api.data("PATCH", path, changes)
    fake.emit("RFIs", "update", project="2")
    fake.switches.sends_other_headers = True
    fake.deliver()
    changed = api.data("PATCH", path, changes)
    assert changed["destination_headers"] == {
        "Authorization": "*****r abc",
        "X-Key": "key",
    }
    fake.switches.delivery_header = "X-Delivery"
    fake.emit("RFIs", "update", project="2")
    fake.deliver()
    assert ["X-Key" in each for each in there.headers] == [False, True]
    ids = [each.get("X-Delivery") for each in there.headers]
    assert ids == [None, fake.deliveries()[1]["id"]]


def test_project_of_a_company_event_can_be_absent(
    fake: FakeProcore, there: Destination
) -> None:
    fake.switches.company_project = "absent"
    pairs = [("Company Users", "create")]
    company = {"project": None, "company": "1", "triggers": pairs}
    hooked(fake, there, payload_version="v2.0", **company)
    hooked(fake, there, namespace="other", **company)
    fake.emit("Company Users", "create", company="1")
    fake.deliver()
    v2, v4 = sorted(there.payloads, key=lambda each: "reason" in each)
    assert "project_id" not in v2
    assert v4["project_id"] == ""


# Which hooks


def test_event_goes_to_hooks_with_its_trigger(
    fake: FakeProcore, there: Destination
) -> None:
    hooked(fake, there, triggers=[("RFIs", "CREATE")])
    hooked(fake, there, project="3")
    hooked(fake, there, namespace="off", status="disabled")
    fake.emit("RFIs", "update", project="2")
    assert fake.deliver() == 0
    fake.emit("RFIs", "create", project="2")
    assert fake.deliver() == 1


def test_unknown_names_are_errors(fake: FakeProcore) -> None:
    with pytest.raises(LookupError, match="no resource 'RFI'"):
        fake.emit("RFI", "update", project="2")
    with pytest.raises(LookupError, match="resource of projects"):
        fake.emit("RFIs", "update", company="1")
    with pytest.raises(LookupError, match="project '9'"):
        fake.emit("RFIs", "update", project="9")
    with pytest.raises(LookupError, match="no resources Projects"):
        fake.add_hook(
            project="2", destination_url=URL, triggers=[("Projects", "update")]
        )


def test_second_hook_of_a_namespace_is_an_error(fake: FakeProcore) -> None:
    fake.add_hook(project="2", destination_url=URL)
    with pytest.raises(ValueError, match="has a hook"):
        fake.add_hook(project="2", destination_url=URL)


def test_a_burst_has_different_ids_and_one_timestamp(
    fake: FakeProcore, there: Destination
) -> None:
    fake.switches.events_per_change = 3
    hooked(fake, there)
    fake.create("RFIs", project="2")
    assert fake.deliver() == 3
    assert len({each["id"] for each in there.payloads}) == 3
    assert len({each["timestamp"] for each in there.payloads}) == 1
