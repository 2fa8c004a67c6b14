"""The loop filter, on every database."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from support.sites import open_site

from flask_procore_webhooks.inbox import queries
from flask_procore_webhooks.operations.changes import replay
from flask_procore_webhooks.testing import payload

MakeApp = Callable[..., Flask]


@pytest.mark.parametrize(
    ("config", "body"),
    [
        ({"IGNORE_USER_IDS": [7]}, {"user_id": 7}),
        (
            {"IGNORE_APPLICATION_IDS": ["app"]},
            {"metadata": {"source_application_id": "app"}},
        ),
    ],
    ids=["user", "application"],
)
def test_ignored_events_are_recorded_and_not_run(
    make_app: MakeApp, database_url: str, config: Any, body: dict[str, Any]
) -> None:
    config = {f"PROCORE_WEBHOOK_{key}": value for key, value in config.items()}
    with open_site(make_app(), database_url, **config) as site:
        site.subscribe_good_and_bad()
        site.broken = False
        own = payload("RFIs.update", format="v2") | body
        other = payload("RFIs.update", format="v2")
        for sent in (own, other, own):
            assert site.deliver(sent).status_code == 200
        assert site.work() == 1
        assert site.statuses() == ["ignored", "done"]
        assert len(site.calls) == 2
        row, _ = queries.newest(site.store)[::-1]
        assert (row["attempts"], row["due_at"], row["repeats"]) == (0, None, 1)

        assert replay(site.store, [row["id"]], "me@here") == 1
        # A copy that arrives now does not undo the replay.
        assert site.deliver(own).status_code == 200
        assert site.work() == 1
        assert site.statuses() == ["done", "done"]
        assert len(site.calls) == 4
