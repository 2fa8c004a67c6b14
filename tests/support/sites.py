"""Endpoints whose events wait for a worker, with helpers of tests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from flask import Flask
from sqlalchemy import Table
from werkzeug.test import TestResponse

from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.dispatching.worker import Worker
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.inbox.record import new_row
from flask_procore_webhooks.inbox.status import Status
from flask_procore_webhooks.operations import queries
from flask_procore_webhooks.storage.store import Store
from flask_procore_webhooks.storage.store import to_db_time
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import payload
from support.values import Clock

DAY = 24 * 3600


@dataclass
class Site:
    """An app with one endpoint and a clock; subscribers append to ``calls``."""

    app: Flask
    webhooks: ProcoreWebhooks
    endpoint: Endpoint
    clock: Clock = field(default_factory=Clock)
    calls: list[Any] = field(default_factory=list)
    #: Makes the subscriber ``bad`` fail while it is true.
    broken: bool = True

    def __post_init__(self) -> None:
        self.store.now = self.clock

    @property
    def store(self) -> Store:
        return self.endpoint.store

    @property
    def events(self) -> Table:
        return self.store.database.tables.event

    def subscribe_good_and_bad(self) -> None:
        @self.webhooks.on(name="good")
        def good(event: Event) -> None:
            self.calls.append(("good", event.id))

        @self.webhooks.on(name="bad")
        def bad(event: Event) -> None:
            self.calls.append(("bad", event.id))
            if self.broken:
                raise ValueError("broken")

    def deliver(self, sent: bytes | dict[str, Any]) -> TestResponse:
        timestamp = int(self.clock.time.timestamp())
        return deliver(
            self.app.test_client(),
            sent,
            endpoint=self.endpoint.name,
            timestamp=timestamp,
        )

    def send(self, type: str = "RFIs.update", **fields: Any) -> int:
        """Deliver an event, assert that it is accepted, and return its row id."""
        sent = payload(type, **fields)
        assert self.deliver(sent).status_code == 200
        row = queries.find(self.store, sent["id"])
        assert row
        return int(row["id"])

    def work(self) -> int:
        """Run the due events."""
        return Worker([self.endpoint], poll=1).run_all()

    def row(self, row_id: int) -> dict[str, Any]:
        (row,) = self.store.rows(sa.select(self.events).filter_by(id=row_id))
        return dict(row._mapping)

    def statuses(self) -> list[str]:
        """The statuses of the endpoint's events, oldest first."""
        rows = queries.newest(self.store, limit=10_000)
        return [row["status"] for row in reversed(rows)]

    def jobs(self, row_id: int) -> dict[str, dict[str, Any]]:
        """The jobs of an event, by subscriber."""
        found = queries.jobs_of(self.store, row_id)
        return {str(each["subscriber"]): dict(each) for each in found}

    def states(self, row_id: int) -> dict[str, str]:
        """The state of each job of an event, by subscriber."""
        found = self.jobs(row_id).items()
        return {name: str(job["state"]) for name, job in found}

    def count(self, table: str) -> int:
        """The number of rows of ``event``, ``job`` or ``journal``."""
        of = getattr(self.store.database.tables, table)
        return int(self.store.rows(sa.select(sa.func.count()).select_from(of))[0][0])


@contextmanager
def open_site(app: Flask, url: str, **config: Any) -> Iterator[Site]:
    """Set up ``app`` with an inbox at ``url`` and an endpoint; MAX_ATTEMPTS is 1."""
    app.config["PROCORE_WEBHOOK_DATABASE_URI"] = url
    app.config["PROCORE_WEBHOOK_DISPATCH"] = "worker"
    app.config["PROCORE_WEBHOOK_MAX_ATTEMPTS"] = 1
    app.config.update(config)
    webhooks = ProcoreWebhooks()
    app.register_blueprint(webhooks)
    (endpoint,) = endpoints(app).values()
    try:
        yield Site(app, webhooks, endpoint)
    finally:
        # find_engine() does not create the tables.
        endpoint.store.database.find_engine().dispose()


def add_finished(
    site: Site,
    number: int,
    status: Status = Status.DONE,
    *,
    age: float = 0,
    name: str = "old",
) -> list[int]:
    """Put ``number`` finished events with jobs into the inbox; return row ids.

    :param age: seconds since they were finished.
    """
    when = to_db_time(site.clock() - timedelta(seconds=age))
    rows = []
    for index in range(number):
        body = f'{{"id": "{name}{index}"}}'.encode()
        event = Event(f"{name}{index}", "RFIs.update", body=body)
        row = new_row(site.store, event, status, None)
        times = {"received_at": when, "finished_at": when}
        parked = {"parked_at": row["parked_at"] and when}
        rows.append(row | times | parked)
    names = [row["event_id"] for row in rows]
    c = site.events.c
    with site.store.connection(begin=True) as connection:
        connection.execute(sa.insert(site.events), rows)
        mine = sa.and_(c.endpoint == site.endpoint.name, c.event_id.in_(names))
        look = sa.select(c.id).where(mine).order_by(c.id)
        ids = list(connection.scalars(look))
        job = {
            "endpoint": site.endpoint.name,
            "subscriber": "good",
            "version": 1,
            "attempts": 1,
            "started_at": when,
            "finished_at": when,
        }
        if status is Status.DEAD:
            job |= {"state": "dead", "dead_at": when}
        else:
            job |= {"state": "done"}
        table = site.store.database.tables.job
        connection.execute(sa.insert(table), [job | {"event": id} for id in ids])
    return ids


def at_once(work: Callable[[Any], Any], arguments: Iterable[Any]) -> list[Any]:
    """Call ``work`` with each argument, in threads that all start together."""
    arguments = list(arguments)
    barrier = threading.Barrier(len(arguments))

    def start(argument: Any) -> Any:
        barrier.wait(30)
        return work(argument)

    with ThreadPoolExecutor(len(arguments)) as pool:
        return list(pool.map(start, arguments))
