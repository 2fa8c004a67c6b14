"""``reconcile`` of several scopes, hooks and endpoints, of own changes, and prune."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from reconcile_support import HOST
from reconcile_support import integrated
from reconcile_support import Integration
from reconcile_support import MakeApp
from reconcile_support import SCOPE
from support.commands import run
from support.inboxes import own_rows

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.endpoint import endpoints

PROJECTS = [{"company": "1", "project": each} for each in ("2", "3")]
DAY = 24 * 3600


@pytest.fixture
def mine(make_app: MakeApp, url: str) -> Iterator[Integration]:
    """An integration with two projects, on a SQLite file."""
    with integrated(make_app, url, SCOPES=PROJECTS) as mine:
        yield mine


def lose_in_both(mine: Integration) -> tuple[list[str], list[str]]:
    """An outage of the hooks of both projects."""
    mine.hook()
    mine.hook(project="3")
    mine.is_down = True
    second = mine.emit(3, project="3")
    return mine.lose(2), second


def test_every_scope_is_reconciled(mine: Integration) -> None:
    first, second = lose_in_both(mine)
    reports = mine.reports(code=2)
    assert [(e["project"], e["inserted"]) for e in reports] == [("2", 2), ("3", 3)]
    assert mine.recorded == sorted(first + second)
    assert len(mine.journal()) == 2


@pytest.mark.parametrize("status", [403, 404])
@pytest.mark.parametrize("project", ["2", "3"])
def test_scope_that_is_refused_does_not_stop_the_others(
    mine: Integration, status: int, project: str
) -> None:
    lost = dict(zip(("2", "3"), lose_in_both(mine), strict=True))
    mine.fake.forbid("1", project, status)
    reports = {each["project"]: each for each in mine.reports(code=1)}
    path = f"/rest/v2.0/companies/1/projects/{project}/webhooks/hooks"
    assert reports[project]["error"].startswith(f"GET {path}: {status}")
    assert reports[project]["hook"] is None
    (other,) = {"2", "3"} - {project}
    assert reports[other]["inserted"] == len(lost[other])
    mine.fake.permit("1", project)
    mine.reports(code=2)
    assert mine.recorded == sorted(lost["2"] + lost["3"])


def test_refused_scope_is_named_in_text(mine: Integration) -> None:
    lose_in_both(mine)
    mine.fake.forbid("1", "2")
    lines = mine.reconcile().stdout.splitlines()
    assert lines[1].startswith("  project 2 of company 1: GET /rest/v2.0/")
    assert lines[2].startswith("  project 3 of company 1, hook ")
    assert len(lines) == 3


def test_app_that_is_not_installed_in_a_company_is_named(
    make_app: MakeApp, url: str
) -> None:
    scopes = [{"company": "9", "project": "2"}, SCOPE]
    with integrated(make_app, url, SCOPES=scopes) as mine:
        mine.hook()
        mine.lose(2)
        first, second = mine.reports(code=1)
        assert "403, App is not connected to this company" in first["error"]
        assert second["inserted"] == 2


def test_scope_without_subscribers_needs_no_hook(make_app: MakeApp, url: str) -> None:
    """The app subscribes to ``RFIs``, which belong to projects."""
    scopes = [{"company": "1"}, {"company": "1", "project": "2"}]
    with integrated(make_app, url, SCOPES=scopes) as mine:
        mine.hook()
        (report,) = mine.reports(code=0)
        assert report["project"] == "2"


NO_HOOK = "Procore has no hook of namespace 'tracker' here: run hooks apply."


def test_scope_without_a_hook_is_an_error(mine: Integration) -> None:
    mine.hook()
    mine.hook(project="3", namespace="another")
    first, second = mine.reports(code=1)
    assert (first["error"], second["error"]) == (None, NO_HOOK)
    assert (second["hook"], second["project"], second["notes"]) == (None, "3", [])
    _, _, line = mine.reconcile().stdout.splitlines()
    assert line == f"  project 3 of company 1: {NO_HOOK}"


def test_app_whose_hooks_are_all_deleted_has_an_error_for_each_scope(
    mine: Integration,
) -> None:
    result = mine.reconcile()
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "procore_webhooks",
        f"  project 2 of company 1: {NO_HOOK}",
        f"  project 3 of company 1: {NO_HOOK}",
    ]


def test_scope_without_a_hook_does_not_stop_the_others(mine: Integration) -> None:
    mine.hook(project="3")
    mine.is_down = True
    lost = mine.emit(2, project="3")
    mine.fake.advance(hours=13)
    first, second = mine.reports(code=1)
    assert (first["error"], second["inserted"]) == (NO_HOOK, 2)
    assert mine.recorded == lost


def test_hooks_of_other_namespaces_are_left_alone(mine: Integration) -> None:
    mine.hook()
    mine.hook(namespace="another")
    lost = mine.lose(2)
    reports = mine.reports(code=1)
    assert [each["inserted"] for each in reports] == [2, 0]
    assert mine.recorded == lost


def test_scopes_of_a_function_are_asked_for_at_each_run(
    make_app: MakeApp, url: str
) -> None:
    scopes = [SCOPE]
    with integrated(make_app, url, SCOPES=lambda app: scopes) as mine:
        lose_in_both(mine)
        assert len(mine.reports(code=2)) == 1
        scopes.append({"company": "1", "project": "3"})
        assert [each["inserted"] for each in mine.reports(code=2)] == [0, 3]


def test_disabled_hook_is_reconciled(mine: Integration) -> None:
    mine.fake.switches.disables_after_flush = True
    mine.hook()
    mine.lose(2)
    (hook,) = mine.fake.hooks()
    assert hook["status"] == "disabled"
    assert mine.reports(code=1)[0]["inserted"] == 2


@pytest.mark.parametrize("version", ["v2.0", "v3.0", "v4.0"])
@pytest.mark.parametrize("delivery_payload", ["sent", "v2"])
def test_events_of_each_payload_version_come_back_once(
    make_app: MakeApp, database_url: str, version: str, delivery_payload: str
) -> None:
    switches = {"delivery_payload": delivery_payload}
    with integrated(
        make_app, database_url, switches=switches, PAYLOAD_VERSION=version
    ) as mine:
        mine.hook(payload_version=version)
        mine.deliver(5)
        lost = mine.lose(3, resource_id="70", user_id="55")
        report = mine.report(code=2)
        assert (report["found"], report["inserted"]) == (5, 3)
        mine.work()
        assert len(mine.called) == len(set(mine.called)) == 8
        events = [each for each in mine.calls if each.origin == "reconcile"]
        assert sorted(each.id for each in events) == lost
        assert {each.resource_id for each in events} == {"70"}
        assert {each.resource_type for each in events} == {"RFIs"}
        assert {each.reason for each in events} == {"update"}
        mine.fake.redeliver(lost[0])
        mine.fake.deliver()
        assert len(mine.rows()) == 8
        assert sum(row["conflicts"] for row in mine.rows()) == 0


def test_own_changes_are_recorded_and_ignored(make_app: MakeApp, url: str) -> None:
    with integrated(make_app, url, IGNORE_USER_IDS=["90001"]) as mine:
        mine.hook()
        mine.is_down = True
        mine.emit(user_id="90001")
        others = mine.lose(2, user_id="55")
        assert mine.report(code=2)["inserted"] == 3
        mine.work()
        assert mine.called == others
        found = sorted(row["status"] for row in mine.rows())
        assert found == ["done", "done", "ignored"]
        mine.report(code=0)


def test_event_without_a_subscriber_is_recorded(mine: Integration) -> None:
    mine.hook(triggers=[("Submittals", "create")])
    mine.is_down = True
    mine.fake.emit("Submittals", "create", project="2")
    mine.fake.advance(hours=13)
    assert mine.reports(code=1)[0]["inserted"] == 1
    mine.work()
    assert [row["status"] for row in mine.rows()] == ["unmatched"]


def add_endpoint(mine: Integration, name: str, **config: Any) -> ProcoreWebhooks:
    """Another endpoint of the app, in the same inbox."""
    prefix = f"{name.upper()}_"
    for key, value in [*mine.app.config.items()]:
        if key.startswith("PROCORE_WEBHOOK_"):
            mine.app.config[key.replace("PROCORE_WEBHOOK_", prefix)] = value
    for key, value in config.items():
        mine.app.config[f"{prefix}{key}"] = value
    added = ProcoreWebhooks(name, url_prefix=f"/{name}", config_prefix=prefix)
    mine.app.register_blueprint(added)
    endpoints(mine.app)[name].store.now = mine.fake.clock.now
    return added


def test_every_endpoint_is_reconciled(mine: Integration) -> None:
    add_endpoint(mine, "bolt", NAMESPACE="bolt", SCOPES=[SCOPE])
    mine.hook()
    mine.hook(
        namespace="bolt",
        destination_url=f"{HOST}/bolt/webhooks/procore",
        triggers=[("Submittals", "create")],
    )
    mine.is_down = True
    mine.fake.emit("Submittals", "create", project="2")
    mine.lose(2)
    result = mine.reconcile("--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert [*found] == ["procore_webhooks", "bolt"]
    assert [each["inserted"] for each in found["procore_webhooks"]] == [2, 0]
    assert [each["inserted"] for each in found["bolt"]] == [1]
    assert len(own_rows(endpoints(mine.app)["bolt"].store)) == 1


def test_one_endpoint_may_be_named(mine: Integration) -> None:
    add_endpoint(mine, "bolt", NAMESPACE="bolt", SCOPES=[SCOPE])
    mine.hook()
    mine.lose(2)
    result = mine.reconcile("--json", "--endpoint", "bolt")
    # It has no subscribers, so it needs no hook.
    assert result.exit_code == 0
    assert [*json.loads(result.stdout)] == ["bolt"]
    assert mine.recorded == []


def test_wrong_setting_of_one_endpoint_stops_the_command_before_it_inserts(
    mine: Integration,
) -> None:
    add_endpoint(mine, "bolt", NAMESPACE=None)
    mine.hook()
    mine.lose(2)
    result = mine.reconcile()
    assert result.exit_code == 1
    assert "BOLT_NAMESPACE is not set" in result.stderr
    assert mine.recorded == []


def test_endpoint_without_an_api_is_left_out(mine: Integration) -> None:
    add_endpoint(mine, "bolt", API_CLIENT_ID=None)
    mine.hook()
    mine.hook(project="3")
    mine.lose(2)
    result = mine.reconcile("--json")
    assert result.exit_code == 2
    assert [*json.loads(result.stdout)] == ["procore_webhooks"]


def test_pruned_events_are_not_inserted_again(make_app: MakeApp, url: str) -> None:
    with integrated(make_app, url, RETENTION=DAY) as mine:
        mine.hook()
        mine.deliver(5)
        mine.lose(3)
        mine.report(code=2)
        mine.work()
        for _ in range(31):
            mine.fake.advance(days=1)
            run(mine.app, "prune", "--yes")
            since = mine.day(-28)
            assert mine.report("--since", since, "--all", code=0)["inserted"] == 0
        assert mine.recorded == []
        assert len(mine.called) == 8


def kept(mine: Integration, days: float) -> int:
    """How many events a prune leaves after so many days."""
    mine.fake.advance(days=days)
    run(mine.app, "prune", "--yes")
    return len(mine.rows())


def test_prune_keeps_events_for_as_long_as_procore_lists_them(
    make_app: MakeApp, url: str
) -> None:
    with integrated(make_app, url, RETENTION=DAY) as mine:
        mine.hook()
        mine.deliver(5)
        mine.work()
        assert kept(mine, 27.9) == 5
        assert all(row["body"] is None for row in mine.rows())
        assert kept(mine, 0.2) == 0


def test_prune_keeps_events_four_times_as_long_as_bodies_without_an_api(
    make_app: MakeApp, url: str
) -> None:
    with integrated(make_app, url, RETENTION=DAY, API_CLIENT_ID=None) as mine:
        mine.hook()
        mine.deliver(5)
        mine.work()
        assert kept(mine, 3.9) == 5
        assert kept(mine, 0.2) == 0


def test_hook_that_was_created_again_is_read_from_the_start(
    mine: Integration,
) -> None:
    first = mine.hook()
    mine.reports(code=1)
    mine.fake.advance(days=10)
    assert mine.reports(code=1)[0]["from"] == f"{mine.day(-13)}"
    run(mine.app, "hooks", "delete", "--yes")
    second = mine.hook()
    report = mine.reports(code=1)[0]
    assert first != second
    assert (report["hook"], report["from"]) == (second, f"{mine.day(-27)}")
