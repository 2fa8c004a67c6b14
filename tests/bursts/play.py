"""Play a scenario: deliveries to real worker processes, which fetch over HTTP."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextlib import ExitStack
from datetime import datetime
from datetime import timezone
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from flask import Flask
from support.processes import environment as process_environment
from support.processes import running
from support.waiting import wait_until

from flask_procore_webhooks.storage.tables import EVENT_TABLE
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import payload

from .app import create_app
from .app import environment
from .options import OptionSet
from .outcomes import Burst
from .outcomes import Call
from .outcomes import CONCURRENCY
from .outcomes import Outcome
from .outcomes import overlaps
from .outcomes import WORKERS
from .plans import Change
from .plans import Delivery
from .plans import Plan
from .procore import Procore
from .procore import serving
from .scenarios import Scenario

#: Threads that deliver at the same time.
SENDERS = 8
#: Seconds for the inbox to finish after the last delivery, unless waits are longer.
PATIENCE = 120.0
WORKER = [sys.executable, "-m", "flask", "--app", "bursts.app", "procore-webhooks"]


class Play:
    """A scenario with one option set.

    :param url: of an empty database.
    """

    def __init__(
        self,
        scenario: Scenario,
        options: OptionSet,
        factor: float,
        seed: int,
        url: str,
        folder: Path,
    ) -> None:
        self.scenario = scenario
        self.options = options
        self.factor = factor
        self.url = url
        self.folder = folder
        self.calls = folder / "calls"
        self.plan: Plan = scenario.plan(random.Random(seed))
        self.procore = Procore(scenario, factor, seed)
        self.bursts = _bursts(options, self.plan)

    def run(self) -> Outcome:
        """Play it to the end; return what happened."""
        with ExitStack() as stack:
            api = stack.enter_context(serving(self.procore))
            calls, name = str(self.calls), self.options.name
            env = environment(self.url, api, calls, name, self.factor)
            app = stack.enter_context(_app(env))
            if not self.scenario.waits:
                stack.enter_context(self._workers(env))
            self._deliver(app)
            if self.scenario.waits:
                time.sleep(self.scenario.waits / self.factor)
                stack.enter_context(self._workers(env))
            self._wait_until_finished()
            return self._outcome()

    @contextmanager
    def _workers(self, env: dict[str, str]) -> Iterator[None]:
        with ExitStack() as stack:
            for number in range(WORKERS):
                command = [*WORKER, "worker", "--concurrency", str(CONCURRENCY)]
                worker = stack.enter_context(
                    running(
                        [*command, "--poll", "0.1"],
                        env=process_environment(env),
                        log=self.folder / f"worker{number}.log",
                    )
                )
                worker.wait_for_output("Running the events of")
            yield

    def _deliver(self, app: Flask) -> None:
        """Make the changes and send the deliveries at their times."""
        self.procore.start = time.time()
        steps: list[Change | Delivery] = [*self.plan.changes, *self.plan.deliveries]
        steps.sort(key=lambda step: step.at)
        sent: list[Future[None]] = []
        with ThreadPoolExecutor(SENDERS) as senders:
            for step in steps:
                time.sleep(max(0.0, step.at - self.procore.now()) / self.factor)
                if isinstance(step, Change):
                    self.procore.change(step)
                    continue
                sent.append(senders.submit(self._send, app, step))
        for each in sent:
            each.result()

    def _send(self, app: Flask, delivery: Delivery) -> None:
        changed_at = self.procore.start + delivery.changed_at / self.factor
        timestamp = datetime.fromtimestamp(changed_at, timezone.utc)
        body = payload(
            f"Submittals.{delivery.reason}",
            format="v4",
            id=delivery.id,
            resource_id=delivery.resource,
            project_id=delivery.project,
            timestamp=timestamp.isoformat().replace("+00:00", "Z"),
        )
        burst = self._burst(delivery)
        before = time.time()
        answer = deliver(app.test_client(), body)
        assert answer.status_code == 200, answer.data
        if "duplicate" not in (answer.json or {}):
            burst.deliveries.append((before, time.time()))

    def _wait_until_finished(self) -> None:
        waits = self.options.after + self.options.settle
        trouble = self.scenario.trouble.seconds if self.scenario.trouble else 0.0
        seconds = PATIENCE + (waits + 3 * trouble) / self.factor

        def is_finished() -> bool:
            return self._statuses().keys().isdisjoint({"pending", "running"})

        wait_until(is_finished, seconds, self._statuses, pause=0.2)

    def _statuses(self) -> dict[str, int]:
        """How many events have each status."""
        look = f"SELECT status, count(*) AS n FROM {EVENT_TABLE} GROUP BY status"
        return {row.status: row.n for row in self._rows(look)}

    def _outcome(self) -> Outcome:
        self._note_fetches()
        self._note_calls()
        self._compare()
        undone = {name: n for name, n in self._statuses().items() if name != "done"}
        bursts = [*self.bursts.values()]
        return Outcome(self.scenario, self.options, self.factor, bursts, undone)

    def _note_fetches(self) -> None:
        for fetch in self.procore.fetches:
            burst = self.bursts[fetch.resource or fetch.project]
            if fetch.is_good:
                burst.fetches.append(fetch.at)
            else:
                burst.refused += 1
        for burst in self.bursts.values():
            burst.deliveries.sort()
            burst.fetches.sort()

    def _note_calls(self) -> None:
        calls: dict[str, list[Call]] = {}
        for line in self.calls.read_text().splitlines():
            call = Call(**json.loads(line))
            key = call.project if self.options.is_by_project else call.resource
            calls.setdefault(key, []).append(call)
        for key, mine in calls.items():
            self.bursts[key].overlaps = overlaps(mine)
            self.bursts[key].races = overlaps(call for call in mine if call.is_good)

    def _compare(self) -> None:
        """Note the resources whose copy differs from Procore's final state."""
        rows = self._rows("SELECT resource, fields FROM copy")
        copies = {row.resource: json.loads(row.fields) for row in rows}
        for delivery in self.plan.deliveries:
            burst, resource = self._burst(delivery), delivery.resource
            final = self.procore.final(delivery.project, resource)
            wanted = final if burst.is_wanted else None
            if copies.get(resource) != wanted and resource not in burst.wrong:
                burst.wrong.append(resource)

    def _burst(self, delivery: Delivery) -> Burst:
        return self.bursts[_key(self.options, delivery)]

    def _rows(self, look: str) -> list[Any]:
        engine = sa.create_engine(self.url, poolclass=sa.NullPool)
        with engine.connect() as connection:
            return list(connection.execute(sa.text(look)))


@contextmanager
def _app(env: dict[str, str]) -> Iterator[Flask]:
    """The app that receives the deliveries, with its tables."""
    app = create_app(env)
    db = app.extensions["sqlalchemy"]
    with app.app_context():
        db.create_all()
    try:
        yield app
    finally:
        with app.app_context():
            db.engine.dispose()


def _bursts(options: OptionSet, plan: Plan) -> dict[str, Burst]:
    bursts: dict[str, Burst] = {}
    for each in plan.deliveries:
        key = _key(options, each)
        is_wanted = options.wants(each.project)
        burst = bursts.setdefault(key, Burst(key, each.project, is_wanted))
        burst.events.add(each.id)
    return bursts


def _key(options: OptionSet, delivery: Delivery) -> str:
    return delivery.project if options.is_by_project else delivery.resource
