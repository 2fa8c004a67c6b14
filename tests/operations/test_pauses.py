"""Pauses on every database."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from support.sites import Site

from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.inbox.due import is_paused
from flask_procore_webhooks.inbox.due import pause_of
from flask_procore_webhooks.inbox.due import seconds_to_work
from flask_procore_webhooks.inbox.record import record
from flask_procore_webhooks.inbox.status import Status
from flask_procore_webhooks.operations.changes import replay
from flask_procore_webhooks.operations.journal import entries
from flask_procore_webhooks.operations.journal import journal_of
from flask_procore_webhooks.operations.pauses import pause
from flask_procore_webhooks.operations.pauses import resume
from flask_procore_webhooks.running.worker import Worker
from flask_procore_webhooks.storage.store import to_db_time

ME = "me@here"


def test_paused_endpoint_records_events_and_runs_none(
    two_sites: tuple[Site, Site],
) -> None:
    site, other = two_sites
    for each in two_sites:
        each.webhooks.on(name="counts")(lambda event, each=each: each.calls.append(1))
    worker = Worker([site.endpoint, other.endpoint], poll=1)
    assert not is_paused(site.store)

    pause(site.store, ME)
    assert (is_paused(site.store), is_paused(other.store)) == (True, False)
    site.send()
    other.send()
    waits = seconds_to_work([site.store, other.store])
    assert waits == {"procore_webhooks": None, "bolt": 0.0}
    assert worker.run_all() == 1
    assert (site.calls, other.calls) == ([], [1])
    assert (site.statuses(), other.statuses()) == (["pending"], ["done"])

    resume(site.store, ME)
    assert not is_paused(site.store)
    assert seconds_to_work([site.store])["procore_webhooks"] == 0.0
    assert worker.run_all() == 1
    assert site.statuses() == ["done"]


def test_pause_has_its_user_time_and_reason(site: Site) -> None:
    assert pause_of(site.store) is None
    then = to_db_time(site.clock())
    pause(site.store, ME, "deployment of 4.2")
    site.clock.forward(60)
    found = pause_of(site.store)
    assert found == (ME, then, "deployment of 4.2")
    pause(site.store, "ann")
    assert pause_of(site.store) == ("ann", to_db_time(site.clock()), None)


def test_state_table_has_the_pause_that_is_in_force(site: Site) -> None:
    s = site.store.database.tables.state.c
    query = sa.select(s.value).where(
        s.endpoint == site.endpoint.name, s.name == "pause"
    )
    pause(site.store, ME)
    (row,) = site.store.rows(query)
    assert json.loads(row.value) == {"by": ME}
    resume(site.store, ME)
    (row,) = site.store.rows(query)
    assert row.value == "null"


def test_one_resume_ends_any_number_of_pauses(site: Site) -> None:
    for _ in range(2):
        for _ in range(3):
            pause(site.store, ME)
        assert is_paused(site.store)
        resume(site.store, ME)
        assert not is_paused(site.store)
    resume(site.store, ME)
    assert not is_paused(site.store)
    rows = entries(site.store)[::-1]
    actions = [*["pause"] * 3, "resume"] * 2 + ["resume"]
    assert [row["action"] for row in rows] == actions
    assert {(row["event"], row["actor"]) for row in rows} == {(None, ME)}


def test_replay_does_not_end_a_pause(site: Site) -> None:
    row = site.send()
    site.work()
    pause(site.store, ME)
    replay(site.store, [row], ME, anew=True)
    assert is_paused(site.store)
    assert site.work() == 0


def test_running_event_is_finished_during_a_pause(
    site: Site,
) -> None:
    @site.webhooks.on(name="pauses")
    def pauses(event: Event) -> None:
        pause(site.store, ME)

    site.send()
    site.work()
    assert site.statuses() == ["done"]
    site.send()
    assert site.work() == 0


def test_operation_of_any_operator_name_needs_one_connection(
    make_app: Callable[..., Flask], tmp_path: Path
) -> None:
    """The database's encoding is detected before the operation's own connection."""
    app = make_app(
        SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path / 'host.db'}",
        SQLALCHEMY_ENGINE_OPTIONS={
            "poolclass": sa.QueuePool,
            "pool_size": 1,
            "max_overflow": 0,
            "pool_timeout": 1,
        },
    )
    db = SQLAlchemy(app)
    ProcoreWebhooks(db=db).init_app(app)
    with app.app_context():
        db.create_all()
    (endpoint,) = endpoints(app).values()
    pause(endpoint.store, "Jürgen@host", "für später")
    endpoint.store.database.traits = None
    resume(endpoint.store, "Jürgen@host")
    record(endpoint.store, Event("evt_1", "a.b", body=b"{}"), Status.DEAD, "x")
    endpoint.store.database.traits = None
    assert replay(endpoint.store, [1], "Jürgen@host") == 1
    (entry,) = journal_of(endpoint.store, 1)
    assert entry["actor"] == "Jürgen@host"
    with app.app_context():
        db.engine.dispose()
