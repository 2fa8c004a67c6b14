"""What docs/hooks.md says of plans and of calls, beside what the commands print."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_support import hook_of
from live_support import Live
from live_support import live_at
from live_support import OLD_URL
from live_support import PAGE
from live_support import page_keys
from live_support import PROJECT
from live_support import RFIS
from support.documents import text_of


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    with live_at(tmp_path / "instance") as live:
        yield live


# What plan compares


@pytest.mark.parametrize(
    ("says", "fields", "keys", "code"),
    [
        ("create a hook", {"namespace": "another"}, {}, 2),
        ("change destination_url", {"destination_url": OLD_URL}, {}, 2),
        ("change status", {"status": "disabled"}, {}, 2),
        ("add trigger RFIs.update", {"triggers": RFIS[:1]}, {}, 2),
        ("surplus ...", {"triggers": RFIS}, {}, 2),
        ("change authorization", {"authorization": None}, {}, 2),
        ("change authorization", {"authorization": "Bearer 000000000"}, {}, 2),
        ("note: ... cannot be compared", {}, {}, 0),
        ("replace the hook", {"payload_version": "v2.0"}, {}, 2),
        ("could not look", {}, {"SCOPES": [PROJECT, {"company": "7"}]}, 1),
    ],
)
def test_plan_says_what_the_table_of_the_page_says(
    live: Live,
    says: str,
    fields: dict[str, object],
    keys: dict[str, object],
    code: int,
) -> None:
    live.fake.add_hook(**hook_of(**fields))
    live.deploy("RFIs.update", **page_keys(**keys))
    assert f"`{says}`" in text_of(PAGE)
    pattern = re.escape(says).replace(r"\.\.\.", ".*")
    assert re.search(pattern, live.run("hooks", "plan", code=code))


def test_plan_names_the_resource_that_the_table_of_the_page_names(live: Live) -> None:
    live.deploy("RFI", **page_keys())
    shown = live.run("hooks", "plan", code=1)
    says = re.search(r"`error: \S+ (Procore has no resource 'RFI'.*?)`", text_of(PAGE))
    assert says and says[1] in shown


# Call the API


def test_calls_of_an_app_share_one_token(live: Live) -> None:
    app = live.deploy("RFIs", **page_keys())
    webhooks: Any = app.blueprints["procore_webhooks"]
    rfi = live.fake.create("RFIs", project="2", subject="Doors")
    with app.app_context():
        for _ in range(5):
            api = webhooks.api(company_id=1)
            assert api.get(f"/rest/v1.0/projects/2/rfis/{rfi}")["subject"] == "Doors"
    logins = [path for _, path, _ in live.fake.requests if path == "/oauth/token"]
    assert len(logins) == 1


def test_two_apps_in_one_process_have_clients_of_their_own(live: Live) -> None:
    found = []
    for _ in range(2):
        app = live.deploy("RFIs", **page_keys())
        webhooks: Any = app.blueprints["procore_webhooks"]
        with app.app_context():
            found.append(webhooks.api(company_id="1"))
    assert found[0] is not found[1]
