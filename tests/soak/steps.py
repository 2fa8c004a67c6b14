"""Children that kill themselves with SIGKILL at a chosen step of a delivery or run.

``python -m soak.steps URL`` reads one order per line, forks a child for it, and prints
the signal that ended the child. The package is unchanged: its SQL marks the steps.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.running.worker import Worker
from flask_procore_webhooks.storage.tables import EVENT_TABLE
from flask_procore_webhooks.storage.tables import JOB_TABLE
from flask_procore_webhooks.testing import deliver

from .app import create_app
from .app import environment

INSERT = f"INSERT INTO {EVENT_TABLE} "
CLAIM = f"UPDATE {EVENT_TABLE} SET status=.*claims=.*due_at=.*lease="
CLAIMED = "SELECT .*lease = "
SETTLE = f"UPDATE {EVENT_TABLE} SET status=.*error="
EFFECT = "INSERT INTO soak_effect "
JOB = f"INSERT INTO {JOB_TABLE} "
BEFORE, AFTER = "before_cursor_execute", "after_cursor_execute"


@dataclass(frozen=True)
class Step:
    """The step at which a child ends, and the expected state after it."""

    name: str
    #: ``"inline"``: run in the request; ``"worker"``: run after it.
    dispatch: str
    moment: str
    statement: str
    #: The number of the matching statement, from 1.
    number: int
    status: str
    #: Effects and finished jobs.
    effects: int


def _steps(dispatch: str) -> list[Step]:
    """The steps of a run, after the claim."""
    return [
        Step(*each)
        for each in (
            ("in the first subscriber", dispatch, AFTER, EFFECT, 1, "running", 0),
            ("in the second subscriber", dispatch, AFTER, EFFECT, 2, "running", 1),
            ("before the commit", dispatch, AFTER, JOB, 2, "running", 1),
            ("after the commit", dispatch, BEFORE, EFFECT, 3, "running", 2),
            ("before settling", dispatch, BEFORE, SETTLE, 1, "running", 3),
            ("after settling", dispatch, AFTER, SETTLE, 1, "done", 3),
        )
    ]


STEPS = (
    Step("before the insert", "inline", BEFORE, INSERT, 1, "absent", 0),
    Step("after the insert", "inline", AFTER, INSERT, 1, "pending", 0),
    Step("before the claim", "inline", BEFORE, CLAIM, 1, "pending", 0),
    Step("after the claim", "inline", AFTER, CLAIM, 1, "running", 0),
    *_steps("inline"),
    Step("before the claim", "worker", BEFORE, CLAIM, 1, "pending", 0),
    # On some databases the claim is a transaction, which the kill rolls back.
    Step("in the claim", "worker", AFTER, CLAIM, 1, "any", 0),
    Step("at the end of the claim", "worker", AFTER, CLAIMED, 1, "any", 0),
    Step("after the claim", "worker", BEFORE, EFFECT, 1, "running", 0),
    *_steps("worker"),
)


def run_and_die(url: str, step: Step, event: dict[str, Any]) -> None:
    """Deliver ``event``, run it, and end at the step."""
    app = create_app(environment(url, failures=0), step.dispatch)
    sa.event.listen(sa.Engine, step.moment, _killer(step))
    deliver(app.test_client(), event)
    if step.dispatch == "worker":
        Worker(list(endpoints(app).values()), poll=1).run_all()


def _killer(step: Step) -> Callable[..., None]:
    seen = 0

    def look(connection: Any, cursor: Any, statement: str, *context: object) -> None:
        nonlocal seen
        if re.match(step.statement, statement, re.DOTALL):
            seen += 1
            if seen == step.number:
                os.kill(os.getpid(), signal.SIGKILL)

    return look


def main(url: str) -> None:
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            # A hanging child is killed by the alarm; a surviving child reads no orders.
            signal.alarm(60)
            try:
                run_and_die(url, STEPS[order["step"]], order["event"])
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
