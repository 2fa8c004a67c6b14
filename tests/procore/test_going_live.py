"""The procedures of docs/hooks.md against a FakeProcore, step by step."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from live_support import AUTHORIZATION
from live_support import commands
from live_support import exports
from live_support import hook_of
from live_support import Live
from live_support import live_at
from live_support import OLD_URL
from live_support import PAGE
from live_support import page_keys
from live_support import PROJECT
from live_support import RFIS
from live_support import set_environment
from live_support import settings_of
from live_support import URL
from support.documents import blocks
from support.waiting import wait_until

from flask_procore_webhooks.testing import drain

OTHER = {"company": "1", "project": "3"}


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    with live_at(tmp_path / "instance") as live:
        yield live


def url_of(live: Live, namespace: str = "tracker") -> str:
    (hook,) = [each for each in live.fake.hooks() if each["namespace"] == namespace]
    return str(hook["destination_url"])


# Go live


def newcomer(live: Live, monkeypatch: pytest.MonkeyPatch, *further: str) -> Flask:
    """An app as the page tells it: keys of the environment, scopes in the code."""
    addresses = {
        f"FLASK_PROCORE_WEBHOOK_{key}": live.address
        for key in ("API_URL", "API_LOGIN_URL")
    }
    set_environment(monkeypatch, **addresses)
    app = Flask("tracker", instance_path=str(live.folder))
    app.testing = True
    app.config.from_prefixed_env()
    settings_of(0, app)
    live.subscribe(app, "Projects.create", "RFIs.update", *further)
    live.put(app)
    return app


def test_first_install_prints_what_the_page_shows(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    newcomer(live, monkeypatch)
    check, plan, apply, *_ = commands()
    assert (plan, apply) == (
        "flask procore-webhooks hooks plan",
        "flask procore-webhooks hooks apply",
    )
    assert live.type(check)
    shown = blocks(PAGE, "text")[0].text
    assert live.type(plan, code=2) == shown
    assert live.type(f"{apply} --yes").startswith(shown)
    assert "same" in live.type(plan)


def test_apply_without_a_terminal_changes_nothing_without_yes(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    newcomer(live, monkeypatch)
    live.run("hooks", "apply", code=2)
    assert live.fake.hooks() == []


def test_newcomer_loses_nothing_in_an_outage_beyond_the_flush(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    newcomer(live, monkeypatch, "RFIs")
    live.apply()
    before = [live.emit("2"), live.emit("3")]
    live.go_down()
    lost = [live.emit(project) for project in ("2", "3", "2", "3", "2")]
    live.fake.advance(hours=13)
    live.come_back()
    after = [live.emit("2"), live.emit("3")]
    assert set(live.effects) == {*before, *after}
    assert live.statuses() == {"delivered", "discarded"}

    live.run("reconcile", code=2)
    drain(live.app)
    every = [*before, *lost, *after]
    assert live.runs == Counter(
        (s, id) for s in ("RFIs.update", "RFIs") for id in every
    )
    live.run("reconcile")
    assert drain(live.app) == 0


def test_reconcile_prints_what_the_page_shows(live: Live) -> None:
    shown = blocks(PAGE, "text")[1].text
    numbers = re.search(r"(\d+) seen, (\d+) of \2 .*, (\d+) missing", shown)
    assert numbers
    seen, found, missing = map(int, numbers.groups())
    live.deploy("RFIs.update", **page_keys())
    live.apply()
    for _ in range(found):
        live.emit()
    live.go_down()
    for _ in range(missing):
        live.emit(deliver=False)
    live.fake.advance(hours=13)
    assert seen == found + missing
    dry = live.run("reconcile", "--dry-run", code=2)
    assert f"{missing} missing, {missing} to insert" in dry
    assert live.run("reconcile", code=2) == shown


def test_crontab_of_the_page_exits_with_0_while_nothing_is_wrong(live: Live) -> None:
    live.deploy("RFIs.update", **page_keys())
    live.apply()
    live.emit()
    (block,) = blocks(PAGE, "crontab")
    for line in block.text.splitlines():
        live.type(line)


# Move over from another receiver


@pytest.mark.parametrize("authorization", ["Bearer of the old route", None])
def test_move_from_a_hand_written_route_loses_no_event(
    live: Live, authorization: str | None
) -> None:
    hook = live.fake.add_hook(
        project="2",
        namespace="by-hand",
        destination_url=OLD_URL,
        payload_version="v2.0",
        authorization=authorization,
        triggers=RFIS,
    )
    live.deploy()
    live.emit()
    keys = page_keys(AUTHORIZATION=authorization or AUTHORIZATION)
    live.deploy("Meetings", **keys)
    live.run("check")
    live.emit()
    live.deploy("RFIs", **keys)
    live.emit()
    assert "by-hand" in live.run("hooks", "list")
    live.deploy("RFIs", **keys | {"NAMESPACE": "by-hand", "PAYLOAD_VERSION": "v2.0"})
    plan = live.run("hooks", "plan", code=2)
    assert "change destination_url" in plan
    assert ("change authorization" in plan) is (authorization is None)
    assert "replace" not in plan and "trigger" not in plan
    live.emit()
    assert len(live.old_route) == 4 and not live.effects

    live.go_down()
    live.emit()  # waits for the old route
    live.apply()
    live.come_back()
    live.fake.advance(seconds=1)
    live.emit()
    assert len(live.effects) == 2
    assert live.every_event_was_handled_once()
    assert url_of(live, "by-hand") == URL
    (only,) = live.fake.hooks()
    assert only["id"] == hook
    assert live.statuses() == {"delivered"}


def test_reconcile_after_a_move_needs_the_day_of_the_move_once(live: Live) -> None:
    live.fake.add_hook(**hook_of(destination_url=OLD_URL))
    live.deploy("RFIs.update", **page_keys())
    for _ in range(20):
        live.emit()
    live.fake.advance(hours=4)
    live.apply()
    live.emit()
    assert "If another receiver" in live.run("reconcile", code=1)
    live.fake.advance(days=1)
    live.emit()
    day = live.fake.clock.now().date()
    live.run("reconcile", "--since", f"{day}")
    for _ in range(4):
        live.fake.advance(days=1)
        live.emit()
        live.run("reconcile")
    live.go_down()
    live.emit()
    live.fake.advance(hours=13)
    live.come_back()
    live.run("reconcile", code=2)
    live.emit()
    assert live.every_event_was_handled_once()


# Change something


def test_change_of_the_address_loses_no_event(live: Live) -> None:
    live.deploy("RFIs", **page_keys(URL=f"{URL}/"))
    live.apply()
    live.emit()
    live.deploy("RFIs", **page_keys())
    live.emit()
    live.go_down()
    live.emit()
    live.apply()
    live.come_back()
    live.fake.advance(seconds=1)
    live.emit()
    assert url_of(live) == URL
    assert live.every_event_was_handled_once()
    live.run("hooks", "plan")


def test_change_of_the_authorization_value_loses_no_event(live: Live) -> None:
    old = "Bearer the-old-value"
    live.deploy("RFIs", **page_keys(AUTHORIZATION=old))
    live.apply()
    live.emit()
    app = live.deploy(**page_keys())
    settings_of(3, app)
    live.subscribe(app, "RFIs")
    live.emit()
    live.go_down()
    live.emit()
    assert "change authorization" in live.run("hooks", "plan", code=2)
    (command,) = [each for each in commands() if "--rotate" in each]
    live.type(f"{command} --yes")
    live.run("hooks", "plan")
    live.come_back()
    live.fake.advance(seconds=1)
    live.emit()
    (hook,) = live.fake.hooks()
    new = app.config["PROCORE_WEBHOOK_AUTHORIZATION"]
    assert app.config["PROCORE_WEBHOOK_AUTHORIZATION_FALLBACKS"] == [old]
    assert hook["destination_headers"] == {"Authorization": new}
    live.deploy("RFIs", **page_keys(AUTHORIZATION=new))
    live.emit()
    assert live.every_event_was_handled_once()


@pytest.mark.parametrize("same_id", [True, False])
def test_parallel_change_of_the_payload_version_loses_no_event(
    live: Live, same_id: bool
) -> None:
    live.fake.switches.same_id = same_id
    live.deploy("RFIs", **page_keys(PAYLOAD_VERSION="v2.0"))
    live.apply()
    first = live.emit()
    live.deploy("RFIs", **page_keys())
    (apply,) = [each for each in commands() if "--parallel" in each]
    live.type(f"{apply} --yes")
    both = live.emit()
    live.deploy("RFIs", **page_keys(NAMESPACE="tracker-v4-0"))
    live.emit()
    (delete,) = [each for each in commands() if "--namespace" in each]
    live.type(f"{delete} --yes")
    last = live.emit()
    live.run("hooks", "plan")
    (hook,) = live.fake.hooks()
    assert (hook["namespace"], hook["payload_version"]) == ("tracker-v4-0", "v4.0")
    assert live.effects[last] == live.effects[both] == 1
    # Of each event that came twice, the subscriber ran once more if the id differs.
    assert live.effects.total() == (4 if same_id else 6)
    assert live.effects[first] == same_id


def test_change_of_the_payload_version_without_options_replaces_the_hook(
    live: Live,
) -> None:
    live.deploy("RFIs", **page_keys(PAYLOAD_VERSION="v2.0"))
    live.apply()
    live.emit()
    live.deploy("RFIs", **page_keys())
    live.apply()
    live.emit()
    (hook,) = live.fake.hooks()
    assert hook["payload_version"] == "v4.0"
    assert len(live.fake.deliveries()) == 1


def test_change_of_the_namespace_records_each_event_once(live: Live) -> None:
    live.deploy("RFIs", **page_keys())
    live.apply()
    live.emit()
    live.deploy("RFIs", **page_keys(NAMESPACE="tracker-2"))
    live.apply()
    live.emit()
    assert len(live.fake.deliveries()) == 3
    live.run("hooks", "delete", "--namespace", "tracker", "--yes")
    live.emit()
    assert live.every_event_was_handled_once()
    assert [hook["namespace"] for hook in live.fake.hooks()] == ["tracker-2"]


def test_a_project_comes_and_leaves(live: Live) -> None:
    live.deploy("RFIs", **page_keys())
    live.apply()
    live.deploy("RFIs", **page_keys(SCOPES=[PROJECT, OTHER]))
    assert "create a hook" in live.run("hooks", "plan", code=2)
    live.apply()
    live.emit("3")
    live.run("hooks", "delete", "--project", "2", "--yes")
    live.deploy("RFIs", **page_keys(SCOPES=[OTHER]))
    live.run("hooks", "plan")
    live.emit("3")
    assert live.every_event_was_handled_once()
    assert [hook["project_id"] for hook in live.fake.hooks()] == ["3"]


def test_one_credential_serves_several_companies(live: Live) -> None:
    scopes = [PROJECT, {"company": "9", "project": "91"}]
    live.deploy("RFIs", **page_keys(SCOPES=scopes))
    live.apply()
    live.emit("2")
    live.emit("91")
    assert live.every_event_was_handled_once()
    live.run("reconcile")


@pytest.mark.parametrize("status", [403, 404])
def test_project_that_is_not_permitted_is_reported_and_others_are_done(
    live: Live, status: int
) -> None:
    live.fake.forbid("1", "3", status)
    scopes = [OTHER, PROJECT, {"company": "7"}]
    live.deploy("RFIs", **page_keys(SCOPES=scopes))
    assert "project 3 of company 1: could not look" in live.run("hooks", "plan", code=1)
    applied = live.apply(code=1)
    assert "company 7: could not look" in applied and f"{status}" in applied
    live.emit("2")
    assert live.every_event_was_handled_once()
    live.go_down()
    live.emit("2")
    live.fake.advance(hours=13)
    live.come_back()
    report = live.run("reconcile", code=1)
    assert "1 missing, 1 inserted" in report
    live.emit("2")
    assert live.every_event_was_handled_once()


# While Procore sends


def test_apply_loses_no_event_while_procore_sends(live: Live) -> None:
    live.fake.add_hook(**hook_of(destination_url=OLD_URL))
    live.deploy("RFIs.update", **page_keys())
    live.fake.start_sending(0.001)
    try:
        for _ in range(10):
            live.emit(deliver=False)
        live.apply()
        for _ in range(10):
            live.emit(deliver=False)
        wait_until(lambda: live.statuses() == {"delivered"})
    finally:
        live.fake.stop_sending()
    assert live.every_event_was_handled_once()
    assert live.effects and url_of(live) == exports()["FLASK_PROCORE_WEBHOOK_URL"]
