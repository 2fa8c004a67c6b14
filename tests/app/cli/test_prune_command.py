"""The command ``prune``."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from support.commands import listed
from support.commands import run
from support.commands import run_apart
from support.commands import stdout_of
from support.jobs import add_event
from support.locks import wait_for_lock_wait
from support.sites import add_finished
from support.sites import DAY
from support.sites import open_site
from support.sites import Site

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.inbox.status import Status
from flask_procore_webhooks.operations.journal import entries
from flask_procore_webhooks.operations.prune import IDS_KEPT

MakeApp = Callable[..., Flask]


def test_prune_keeps_bodies_for_retention_and_ids_four_times_as_long(
    site: Site,
) -> None:
    assert IDS_KEPT == 4
    ages = {"b": 7 * DAY, "i": 28 * DAY}
    for name, age in ages.items():
        add_finished(site, 1, age=age + 0.001, name=f"{name}-over")
        add_finished(site, 1, age=age, name=f"{name}-at")
    add_finished(site, 1, Status.DEAD, age=99 * DAY, name="dead")
    shown = stdout_of(site.app, "prune", "--yes")
    assert shown == "procore_webhooks: removed 3 bodies and 1 events\n"
    assert sorted(listed(site)) == ["b-at0", "b-over0", "dead0", "i-at0"]
    c = site.events.c
    bodies = sa.select(c.event_id).where(c.body.is_not(None)).order_by(c.id)
    assert [row.event_id for row in site.store.rows(bodies)] == ["b-at0", "dead0"]
    assert pruned(site.app, "--dead", "--yes") == {"procore_webhooks": (1, 1)}
    assert pruned(site.app, "--dead") == {"procore_webhooks": (0, 0)}
    found = [(row["expected"], row["actual"]) for row in entries(site.store)]
    assert found == [(2, 2), (4, 4)], "a prune without work leaves no entry"


def pruned(app: Flask, *arguments: object) -> dict[str, tuple[int, int]]:
    """The numbers of bodies and events by endpoint."""
    shown = json.loads(stdout_of(app, "prune", *arguments, "--json"))
    return {n: (e["bodies"], e["events"]) for n, e in shown["endpoints"].items()}


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_prune_asks_like_replay(sqlite_site: Site, more: list[str]) -> None:
    add_finished(sqlite_site, 3, age=8 * DAY)
    refused = run(sqlite_site.app, "prune", *more, ok=False)
    assert refused.exit_code == 2
    assert "Remove 3 bodies and 0 events? Give --yes, or --dry-run" in refused.output
    shown = stdout_of(sqlite_site.app, "prune", "--dry-run")
    assert shown == "procore_webhooks: would remove 3 bodies and 0 events\n"
    c = sqlite_site.events.c
    assert len(sqlite_site.store.rows(sa.select(c.id).where(c.body.is_not(None)))) == 3
    assert sqlite_site.count("journal") == 0


def test_type_and_subscriber_have_a_shorter_retention_of_their_own(site: Site) -> None:
    noisy = add_event(site.store, "1", {"subscriber": "mail"}, resource_type="Logs")
    other = add_event(site.store, "2", {"subscriber": "sync"})
    site.clock.forward(2 * DAY)
    assert pruned(site.app, "--yes") == {"procore_webhooks": (0, 0)}
    own = ("--type", "Logs.update", "--retention", "1d")
    assert pruned(site.app, *own, "--yes") == {"procore_webhooks": (1, 0)}
    bodies = [site.row(row)["body"] is not None for row in (noisy, other)]
    assert bodies == [False, True]
    own = ("--subscriber", "sync", "--retention", "12h")
    assert pruned(site.app, *own) == {"procore_webhooks": (1, 0)}
    (entry, _) = entries(site.store)
    options = {"subscriber": "sync", "retention": DAY / 2, "dead": False}
    assert entry["filter"] == options
    assert site.statuses() == ["done"] * 2, "copies of them are repeats"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (["--retention", "1d"], "--retention is of a --type"),
        (["--type", "x", "--retention", "8d"], "it is between 43200 s"),
        (["--type", "x", "--retention", "1h"], "it is between 43200 s"),
        (["--type", "x", "--retention", "soon"], "not a time like 43200, 12h or 3d"),
    ],
)
def test_retention_of_its_own_has_limits(
    sqlite_site: Site, given: list[str], problem: str
) -> None:
    refused = run(sqlite_site.app, "prune", *given, ok=False)
    assert refused.exit_code == 2 and problem in refused.output


def test_prune_uses_the_retention_of_each_endpoint(
    make_app: MakeApp, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/test.db"
    bolts = {"SECRET": "x", "DATABASE_URI": url, "DISPATCH": "worker"}
    app = make_app(
        **{f"BOLT_{key}": value for key, value in bolts.items()},
        BOLT_RETENTION=DAY,
        PROCORE_WEBHOOK_RETENTION=2 * DAY,
    )
    with open_site(app, url) as site:
        bolt = ProcoreWebhooks("bolt", url_prefix="/bolt", config_prefix="BOLT_")
        app.register_blueprint(bolt)
        other = Site(app, bolt, endpoints(app)["bolt"], site.clock)
        for each in (site, other):
            add_finished(each, 2, age=1.5 * DAY)
        named = pruned(app, "--endpoint", "procore_webhooks")
        assert named == {"procore_webhooks": (0, 0)}
        assert pruned(app, "--yes") == {"procore_webhooks": (0, 0), "bolt": (2, 0)}
        other.store.database.engine.dispose()


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_long_prune_reports_progress_on_standard_error_unless_json(
    make_app: MakeApp, postgresql_url: str, more: list[str]
) -> None:
    with open_site(make_app(), postgresql_url) as site:
        try:
            add_finished(site, 3, age=8 * DAY)
            result = _prune_against_a_lock(site, *more)
        finally:
            site.events.metadata.drop_all(site.store.database.engine)
    if more:
        assert result.stderr == ""
        assert json.loads(result.stdout)["endpoints"]["procore_webhooks"]["bodies"] == 3
    else:
        assert result.stderr == "procore_webhooks, bodies removed: 3 so far\n"
        assert "procore_webhooks: removed 3 bodies" in result.stdout


def _prune_against_a_lock(site: Site, *more: str) -> Any:
    """Prune while another transaction locks the table for more than a second."""
    held = threading.Event()

    def hold() -> None:
        with site.store.connection(begin=True) as connection:
            table = site.events.name
            connection.execute(sa.text(f"LOCK TABLE {table} IN EXCLUSIVE MODE"))
            held.set()
            wait_for_lock_wait(connection)
            # The command reports its progress once a second.
            time.sleep(1.1)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(30)
        return run_apart(site.app, "prune", "--yes", *more)
    finally:
        thread.join()


def test_short_prune_reports_no_progress(sqlite_site: Site) -> None:
    add_finished(sqlite_site, 3, age=8 * DAY)
    assert run_apart(sqlite_site.app, "prune", "--yes").stderr == ""
