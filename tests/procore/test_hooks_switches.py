"""``hooks apply`` and ``plan`` with each switch of the fake."""

from __future__ import annotations

from typing import Any

import pytest
from hooks_support import AUTHORIZATION
from hooks_support import COMPANY
from hooks_support import OTHER_PROJECT
from hooks_support import OTHER_TAIL
from hooks_support import PROJECT
from hooks_support import Site
from hooks_support import URL

#: Together they take longer than the others.
pytestmark = pytest.mark.slow

SETTINGS: list[dict[str, Any]] = [
    {"error_body": "object"},
    {"error_body": "errors"},
    {"error_body": "text"},
    {"patch_version": 400},
    {"patch_version": 200},
    {"missing_company": 400},
    {"missing_company": 403},
    {"masks_authorization": True},
    {"masks_authorization": False},
    {"trigger_case": "upper"},
    {"trigger_case": "lower"},
    {"action_case": "upper"},
    {"action_case": "lower"},
    {"namespace_required": True},
    {"namespace_required": False},
    {"https_required": True},
    {"https_required": False},
    {"default_per_page": 1},
    {"default_per_page": 100},
    {"most_per_page": 3},
    {"most_per_page": 100},
    {"bulk_limit": 100},
    {"sends_link": False},
    {"sends_total": False},
    {"sends_link": False, "sends_total": False},
    {"sends_link": False, "most_per_page": 3},
    {"limit_headers": "none", "hourly_limit": 1000},
    {"limit_headers": "spike", "hourly_limit": 1000, "spike_limit": 500},
    {"limit_headers": "nearest", "hourly_limit": 1000, "spike_limit": 500},
    {"limit_by": "app", "hourly_limit": 1000},
    {"limit_by": "company", "hourly_limit": 1000},
    {"clock_offset": 3600, "hourly_limit": 1000},
    {"clock_offset": -3600, "hourly_limit": 1000},
    {"pause_keeps_queue": False},
    {"fresh_deliveries": 404},
    {"record_ids": "text"},
]


def turn(site: Site, switches: dict[str, Any]) -> None:
    for name, value in switches.items():
        setattr(site.fake.switches, name, value)


def prepare(site: Site) -> None:
    """A company, a project without a hook, and one whose hook differs."""
    site.mount(
        "RFIs", "Meetings.create", "Projects", SCOPES=[COMPANY, PROJECT, OTHER_PROJECT]
    )
    site.add_hook(
        destination_url="https://old.example.com",
        payload_version="v3.0",
        authorization=OTHER_TAIL,
        status="disabled",
        triggers=[("RFIs", "update"), ("Submittals", "create")],
    )
    site.add_hook(
        project="3",
        destination_url="https://old.example.com",
        authorization=OTHER_TAIL,
        status="disabled",
        triggers=[("RFIs", "update"), ("Submittals", "create")],
    )


@pytest.mark.parametrize("switches", SETTINGS, ids=str)
def test_apply_then_plan_says_same(site: Site, switches: dict[str, Any]) -> None:
    turn(site, switches)
    prepare(site)
    site.run("plan", code=2)
    site.run("apply", "--prune", "--yes")
    site.run("plan")
    hooks = site.fake.hooks()
    assert sorted(str(hook["project_id"]) for hook in hooks) == ["2", "3", "None"]
    for hook in hooks:
        assert hook["destination_url"] == URL
        assert hook["destination_headers"] == {"Authorization": AUTHORIZATION}
        assert (hook["payload_version"], hook["status"]) == ("v4.0", "active")
        assert hook["trigger_count"] == (4 if hook["project_id"] else 2)
    assert len(site.document("list")["procore_webhooks"]) == 3
    site.run("pause", "--yes")
    site.run("resume", "--yes")
    site.run("plan")
    site.run("delete", "--yes")
    assert site.fake.hooks() == []


@pytest.mark.parametrize("retry_after", ["both", "reset", "retry-after"])
def test_command_waits_for_what_a_429_names(site: Site, retry_after: str) -> None:
    turn(site, {"retry_after": retry_after, "spike_limit": 1000})
    prepare(site)
    site.fake.answer_next("429", method="*", path="/rest/", seconds=1)
    site.run("apply", "--prune", "--yes")
    site.run("plan")


@pytest.mark.parametrize("retry_after", ["both", "reset", "retry-after"])
def test_hourly_limit_that_is_used_up_is_a_clear_error(
    site: Site, retry_after: str
) -> None:
    prepare(site)
    turn(site, {"retry_after": retry_after, "hourly_limit": 3})
    output = site.run("plan", code=1)
    assert "the hourly rate limit is used up for 3600 s" in output


def test_busy_procore_is_a_clear_error(site: Site) -> None:
    prepare(site)
    turn(site, {"busy": 3600})
    output = site.run("apply", "--yes", code=1)
    assert output.count("503, Procore is unavailable for 3600 s") >= 3
    assert site.changes() == []


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, {"error": "invalid_client", "error_description": "Failed."}),
        (401, "Client authentication failed."),
        (400, {"error": {"code": "BAD_REQUEST", "message": "Failed."}}),
        (403, {"errors": ["Failed."]}),
        (422, None),
    ],
)
def test_refused_login_is_a_clear_error(site: Site, status: int, body: Any) -> None:
    site.fake.switches.token_error = (status, body)
    site.mount("RFIs.update", API_CLIENT_SECRET="a wrong secret")
    output = site.run("plan", code=1)
    text = f"could not look: POST /oauth/token: {status}, no access token: check"
    assert text in output


@pytest.mark.parametrize("error_body", ["object", "errors", "text"])
def test_refused_call_shows_what_procore_says(site: Site, error_body: str) -> None:
    turn(site, {"error_body": error_body})
    site.mount("RFIs.update")
    site.fake.forbid("1", "2")
    output = site.run("plan", code=1)
    said = "" if error_body == "text" else ", Forbidden"
    assert f"/projects/2/webhooks/resources: 403{said}\n" in output


def test_refused_address_shows_what_procore_says(site: Site) -> None:
    prepare(site)
    turn(site, {"bulk_limit": 1})
    output = site.run("apply", "--yes", code=1)
    assert "refused, POST /rest/v2.0/companies/1/webhooks/hooks/" in output
    assert "400, There are more than 1 triggers" in output
