"""A kill at any step of a delivery or a run loses and doubles nothing.

``test_soak.py`` kills at random moments.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from soak.app import create_app
from soak.app import db
from soak.app import effect
from soak.app import environment
from soak.app import LEASE
from soak.app import SUBSCRIBERS
from soak.audit import Auditor
from soak.batch import EVENTS
from soak.fleet import wait_until
from soak.steps import Step
from soak.steps import STEPS
from support.processes import child
from support.processes import environment as env_of_tests
from support.processes import running
from support.values import Clock

from flask_procore_webhooks.dispatching.worker import Worker
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.operations import queries
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import payload

# Kills at each step


@pytest.fixture
def app(database_url: str) -> Iterator[Flask]:
    """The app that continues after the kill of a child."""
    app = create_app(environment(database_url, failures=0), "worker")
    with app.app_context():
        db.create_all()
    yield app
    with app.app_context():
        db.engine.dispose()


@pytest.mark.slow
def test_kill_at_any_step_is_recovered_by_the_next_worker(
    app: Flask, endpoint: Endpoint, database_url: str
) -> None:
    with child("-m", "soak.steps", database_url) as forker:
        for number, step in enumerate(STEPS):
            event = payload("RFIs.update", id=f"evt_{number}")
            forker.tell(json.dumps({"step": number, "event": event}))
            assert forker.line() == "-9", step
            _check_left(endpoint, step, event)
            _finish(app, endpoint, step, event)


def _check_left(endpoint: Endpoint, step: Step, event: dict[str, Any]) -> None:
    """Assert that the child was killed at the step."""
    row = queries.find(endpoint.store, event["id"])
    if step.status != "any":
        assert (row["status"] if row else "absent") == step.status, step
    assert _effects(endpoint, event) == sorted(step.done), step
    # A job that is left has a row when its run has ended, which none of these has.
    assert _jobs(endpoint, event) == dict.fromkeys(step.done, ("done", 1)), step


def _finish(app: Flask, endpoint: Endpoint, step: Step, event: dict[str, Any]) -> None:
    """The sender repeats the delivery, and another worker runs the event."""
    answer = deliver(app.test_client(), event)
    assert answer.status_code == 200, step
    assert ("duplicate" in (answer.json or {})) == (step.status != "absent"), step

    clock = Clock()
    clock.forward(LEASE + 1)
    now, endpoint.store.now = endpoint.store.now, clock
    try:
        # The server may need a moment to notice the child's end.
        done = wait_until(lambda: _run(endpoint, event), time.monotonic() + 30, 0.1)
    finally:
        endpoint.store.now = now
    assert done, step
    assert _effects(endpoint, event) == sorted(SUBSCRIBERS), step
    assert _jobs(endpoint, event) == dict.fromkeys(SUBSCRIBERS, ("done", 1)), step


def _run(endpoint: Endpoint, event: dict[str, Any]) -> bool:
    Worker([endpoint], poll=1).run_all()
    row = queries.find(endpoint.store, event["id"])
    return row is not None and row["status"] == "done"


def _effects(endpoint: Endpoint, event: dict[str, Any]) -> list[str]:
    look = sa.select(effect.c.subscriber).where(effect.c.event_id == event["id"])
    return sorted(row.subscriber for row in endpoint.store.rows(look))


def _jobs(endpoint: Endpoint, event: dict[str, Any]) -> dict[str, tuple[str, int]]:
    """The state and the attempts of each job of the event."""
    tables = endpoint.store.database.tables
    j, c = tables.job.c, tables.event.c
    look = sa.select(j.subscriber, j.state, j.attempts).where(j.event == c.id)
    rows = endpoint.store.rows(look.where(c.event_id == event["id"]))
    return {row.subscriber: (row.state, row.attempts) for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize("durable", [False, True])
def test_kill_repeats_the_calls_of_one_batch_at_most(
    database_url: str, tmp_path: Path, durable: bool
) -> None:
    """With ``durable``, only the call that ran when the process was killed."""
    killed_at, file = 20, tmp_path / "calls"
    command = [sys.executable, "-m", "soak.batch", database_url, str(file)]
    for number, exit_code in ((killed_at, -signal.SIGKILL), (0, 0)):
        arguments = [*command, str(int(durable)), str(number)]
        with running(arguments, env=env_of_tests()) as process:
            assert process.exit_code() == exit_code, process.output()
        if number:
            assert len(file.read_text().split()) == killed_at
    calls = Counter(file.read_text().split())
    repeated = [id for id, times in calls.items() if times > 1]
    assert len(calls) == EVENTS and set(calls.values()) == {1, 2}
    assert len(repeated) == 1 if durable else 1 <= len(repeated) <= killed_at


# The harness


def test_audit_finds_lost_and_doubled_effects(
    app: Flask, endpoint: Endpoint, database_url: str
) -> None:
    ids = [f"evt_{number}" for number in range(5)]
    for id in ids[:4]:
        deliver(app.test_client(), payload("RFIs.update", id=id))
    Worker([endpoint], poll=1).run_all()
    auditor = Auditor(database_url)
    verdict = auditor.verdict(ids[:4])
    assert (verdict.lost, verdict.doubled) == ((), ())

    c, tables = effect.c, endpoint.store.database.tables
    again = {"event_id": ids[0], "subscriber": "last", "pid": 0}
    stray = {"event_id": "evt_stray", "subscriber": "first", "pid": 0}
    gone = sa.delete(effect).where(c.event_id == ids[1], c.subscriber == "first")
    row_ids = {id: _row_id(endpoint, id) for id in ids[:4]}
    undone = sa.update(tables.event).where(tables.event.c.event_id == ids[2])
    j = tables.job.c
    unfinished = sa.update(tables.job).where(j.event == row_ids[ids[3]])
    renamed = sa.update(tables.job).where(j.event == row_ids[ids[0]])
    with endpoint.store.connection() as connection:
        connection.execute(sa.insert(effect), [again, stray])
        connection.execute(gone)
        connection.execute(undone.values(status="dead"))
        discarded = unfinished.where(j.subscriber == "first")
        connection.execute(discarded.values(state="discarded"))
        connection.execute(renamed.where(j.subscriber == "first").values(event=10**6))

    verdict = auditor.verdict(ids)
    assert [text.split()[0] for text in verdict.lost] == ids
    assert "the jobs {'first': ['absent']}" in verdict.lost[0]
    assert "the jobs {'first': ['discarded']}" in verdict.lost[3]
    assert [text.split(":")[0] for text in verdict.doubled] == [
        ids[0],
        "evt_stray",
        "row 1000000",
    ]


def _row_id(endpoint: Endpoint, id: str) -> int:
    row = queries.find(endpoint.store, id)
    assert row
    return int(row["id"])
