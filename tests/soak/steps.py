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

from flask_procore_webhooks.dispatching.worker import Worker
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.schema.tables import EVENT_TABLE
from flask_procore_webhooks.schema.tables import JOB_TABLE
from flask_procore_webhooks.testing import deliver

from .app import create_app
from .app import environment
from .app import SUBSCRIBERS

INSERT = f"INSERT INTO {EVENT_TABLE} "
CLAIM = f"UPDATE {EVENT_TABLE} SET status=.*claims=.*due_at=.*lease="
CLAIMED = f"SELECT .*FROM {JOB_TABLE} "
SETTLE = f"(WITH .*)?UPDATE {EVENT_TABLE} SET status=.*error="
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
    #: The subscribers whose effects and done jobs are committed.
    done: tuple[str, ...]
    #: The share of failing attempts of the subscriber ``fickle``.
    failures: float = 0


NONE: tuple[str, ...] = ()
FIRST, TWO, ALL = SUBSCRIBERS[:1], SUBSCRIBERS[:2], SUBSCRIBERS
#: All but ``fickle``, which fails.
OTHERS = ("first", "last")


def _steps(dispatch: str) -> list[Step]:
    """The steps of a run, after the claim."""
    steps = [
        Step(name, dispatch, moment, statement, number, status, done)
        for name, moment, statement, number, status, done in (
            ("in the first subscriber", AFTER, EFFECT, 1, "running", NONE),
            ("in the second subscriber", AFTER, EFFECT, 2, "running", FIRST),
            ("before the commit", AFTER, JOB, 2, "running", FIRST),
            ("after the commit", BEFORE, EFFECT, 3, "running", TWO),
            ("before settling", BEFORE, SETTLE, 1, "running", ALL),
            # On some databases that is a transaction, which the kill rolls back.
            ("after settling", AFTER, SETTLE, 1, "any", ALL),
        )
    ]
    # The status and the job that is left are one transaction: the kill rolls it back.
    failed = [
        Step(name, dispatch, moment, statement, number, "running", OTHERS, 1.0)
        for name, moment, statement, number in (
            ("before settling a failed run", BEFORE, SETTLE, 1),
            ("in settling a failed run", AFTER, SETTLE, 1),
            ("after writing the job that is left", AFTER, JOB, 3),
        )
    ]
    return steps + failed


STEPS = (
    Step("before the insert", "inline", BEFORE, INSERT, 1, "absent", NONE),
    Step("after the insert", "inline", AFTER, INSERT, 1, "pending", NONE),
    Step("before the claim", "inline", BEFORE, CLAIM, 1, "pending", NONE),
    Step("after the claim", "inline", AFTER, CLAIM, 1, "running", NONE),
    *_steps("inline"),
    Step("before the claim", "worker", BEFORE, CLAIM, 1, "pending", NONE),
    # On some databases the claim is a transaction, which the kill rolls back.
    Step("in the claim", "worker", AFTER, CLAIM, 1, "any", NONE),
    Step("at the end of the claim", "worker", AFTER, CLAIMED, 1, "any", NONE),
    Step("after the claim", "worker", BEFORE, EFFECT, 1, "running", NONE),
    *_steps("worker"),
)


def run_and_die(url: str, step: Step, event: dict[str, Any]) -> None:
    """Deliver ``event``, run it, and end at the step."""
    app = create_app(environment(url, failures=step.failures), step.dispatch)
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
