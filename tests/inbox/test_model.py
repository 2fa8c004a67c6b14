"""Random orders of deliveries, runs, crashes and operations, against what must hold.

Each subscriber checks at every call what its options promise. After every step, the
tables and the committed effects are compared with each other; in the end, every event
is finished. ``SOAK=1`` makes the run long, with new examples each time.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress
from datetime import datetime
from datetime import timedelta
from datetime import timezone
from functools import partial
from pathlib import Path
from typing import Any
from typing import NamedTuple

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from hypothesis import HealthCheck
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize
from hypothesis.stateful import invariant
from hypothesis.stateful import precondition
from hypothesis.stateful import rule
from hypothesis.stateful import RuleBasedStateMachine
from hypothesis.stateful import run_state_machine_as_test
from support.hosts import do_not_sync
from support.values import AUTHORIZATION
from support.values import Clock

from flask_procore_webhooks import Discard
from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import RetryLater
from flask_procore_webhooks.dispatching.worker import Worker
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.errors import InboxUnavailable
from flask_procore_webhooks.inbox import batches
from flask_procore_webhooks.inbox import claims
from flask_procore_webhooks.inbox.held import Claim
from flask_procore_webhooks.operations import changes
from flask_procore_webhooks.operations import pauses
from flask_procore_webhooks.operations import prune
from flask_procore_webhooks.running.leases import renewing
from flask_procore_webhooks.running.run import process
from flask_procore_webhooks.running.run import run_claimed
from flask_procore_webhooks.senders.samples import to_bytes
from flask_procore_webhooks.storage.store import Store
from flask_procore_webhooks.testing import deliver

SOAK = bool(os.environ.get("SOAK"))

MAX_ATTEMPTS, BASE, CAP, LEASE = 3, 10.0, 25.0, 300.0
SETTLE, SETTLE_MAX, LATER = 30.0, 120.0, 4000.0
DAY = 24 * 3600.0
IGNORED_USER = "77"

NAMES = ("first", "second")
IDS = ("evt_a", "evt_b", "evt_c", "evt_d")
SUBSCRIBERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "latest": {"latest_only": True},
    "settled": {"latest_only": True, "settle": SETTLE, "settle_max": SETTLE_MAX},
    "alone": {"one_at_a_time": True},
    "chosen": {"when": lambda event: event.payload["chosen"]},
}
KEYED = ("latest", "settled")
MOODS = ("fine", "fine", "fine", "fails", "later", "discards", "exits", "nests")
#: States of jobs and statuses of events that have ended.
ENDED = ("done", "discarded", "superseded", "suppressed", "dead")
FINISHED = ("done", "dead", "ignored", "unmatched", "quarantined")
PARKED = ("dead", "unmatched", "quarantined")


class Work(NamedTuple):
    """One subscriber's work for one event."""

    endpoint: str
    event: str
    subscriber: str


class Parts:
    """The app that all examples of a test share."""

    def __init__(self, make_app: Callable[..., Flask], url: str) -> None:
        shared = {
            "AUTHORIZATION": AUTHORIZATION,
            "SECRET": None,
            "DISPATCH": "worker",
            "MAX_ATTEMPTS": MAX_ATTEMPTS,
            "RETRY_BASE": BASE,
            "RETRY_CAP": CAP,
            "LEASE": LEASE,
            "RETENTION": DAY,
            "IGNORE_USER_IDS": [IGNORED_USER],
        }
        config = {f"{name.upper()}_{k}": v for name in NAMES for k, v in shared.items()}
        self.app = make_app(SQLALCHEMY_DATABASE_URI=url, **config)
        self.db = SQLAlchemy()
        self.db.init_app(self.app)
        self.note = sa.Table(
            "note",
            self.db.metadata,
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("text", sa.String(190), nullable=False),
        )
        #: The machine of the current example.
        self.machine: Any = None
        for name in NAMES:
            webhooks = ProcoreWebhooks(
                name,
                db=self.db,
                url_prefix=f"/{name}",
                config_prefix=f"{name.upper()}_",
            )
            for subscriber, options in SUBSCRIBERS.items():
                work = partial(self.work, subscriber)
                webhooks.on("RFIs", name=subscriber, **options)(work)
            self.app.register_blueprint(webhooks)
        self.endpoints: dict[str, Endpoint] = {
            each.name: each for each in endpoints(self.app).values()
        }
        self.engine = next(iter(self.endpoints.values())).store.database.engine
        with self.app.app_context():
            do_not_sync(self.db.engine)
        self.db.metadata.create_all(self.engine)

    def work(self, subscriber: str, event: Event) -> None:
        self.machine.perform(subscriber, event)

    def write(self, work: Work) -> None:
        note = sa.insert(self.note).values(text=" ".join(work))
        self.db.session.execute(note)

    def effects(self) -> Counter[Work]:
        with self.engine.connect() as connection:
            notes = connection.scalars(sa.select(self.note.c.text))
            return Counter(Work(*note.split()) for note in notes)

    def clear(self) -> None:
        with self.engine.begin() as connection:
            for table in self.db.metadata.tables.values():
                connection.execute(sa.delete(table))

    def close(self) -> None:
        with self.app.app_context():
            self.db.session.remove()
            self.db.engine.dispose()
        self.db.metadata.drop_all(self.engine)
        self.engine.dispose()


names = st.sampled_from(NAMES)
ids = st.sampled_from(IDS)
moods = st.tuples(*(st.sampled_from(MOODS) for _ in SUBSCRIBERS))
#: Seconds that pass before a step.
passing = st.sampled_from((1.0, 1.0, 5.0, CAP, SETTLE, LEASE, LATER))
seldom = st.sampled_from((False, False, False, True))
#: Minutes; several events have one time.
times = st.sampled_from((None, 0, 0, 1, 2))


class Machine(RuleBasedStateMachine):
    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts = parts
        parts.clear()
        parts.machine = self
        self.clock = Clock()
        self.stores: dict[str, Store] = {}
        for name, endpoint in parts.endpoints.items():
            self.stores[name] = endpoint.store
            endpoint.store.now = self.clock
        self.worker = Worker([*parts.endpoints.values()], poll=1)
        self.moods = dict.fromkeys(SUBSCRIBERS, "fine")
        #: Calls that go on, by endpoint, subscriber and resource.
        self.active: Counter[tuple[str, str, str]] = Counter()
        #: How often each work may have its effect.
        self.allowed: Counter[Work] = Counter()
        #: Claims whose process was killed or suspended.
        self.left: list[tuple[str, Claim]] = []
        self.depth = 0
        #: Promises that a call did not find kept.
        self.broken: list[str] = []

    # What subscribers do

    def perform(self, subscriber: str, event: Event) -> None:
        """A subscriber: check its promises, then act as its mood says."""
        try:
            self.check_call(subscriber, event)
        except AssertionError as error:
            # A failed attempt for the package, and a failed test here.
            self.broken.append(f"{subscriber} for {event.id}: {error}")
        mood = self.moods[subscriber]
        key = event.endpoint, subscriber, str(event.resource_id)
        self.active[key] += 1
        try:
            if mood == "nests" and self.depth < 2:
                # As another process, before anything is written.
                self.depth += 1
                with suppress(InboxUnavailable, SystemExit):
                    Worker([*self.parts.endpoints.values()], poll=1).run_due()
                self.depth -= 1
            self.parts.write(Work(event.endpoint, event.id, subscriber))
            match mood:
                case "fails":
                    raise ValueError("told to fail")
                case "later":
                    raise RetryLater(LATER)
                case "discards":
                    raise Discard("told to discard")
                case "exits":
                    raise SystemExit("told to exit")
        finally:
            self.active[key] -= 1

    def check_call(self, subscriber: str, event: Event) -> None:
        assert event.endpoint in NAMES and event.received_at is not None
        assert 1 <= event.attempt <= MAX_ATTEMPTS
        assert event.origin == "delivery"
        if subscriber == "alone":
            key = event.endpoint, subscriber, str(event.resource_id)
            assert not self.active[key]
        if subscriber == "chosen":
            assert event.payload["chosen"]
        if subscriber in KEYED:
            assert not self.newer_done(subscriber, event)
        if subscriber == "settled":
            waited = (self.clock.time - event.received_at).total_seconds()
            oldest = min(
                row.received_at
                for row in self.events(event.endpoint)
                if row.resource_id == event.resource_id
            )
            longest = (self.now - oldest).total_seconds()
            assert waited >= SETTLE or longest >= SETTLE_MAX

    def newer_done(self, subscriber: str, event: Event) -> list[str]:
        """The newer events of the resource whose work is done."""
        mine = next(r for r in self.events(event.endpoint) if r.event_id == event.id)
        return [
            row.event_id
            for row in self.events(event.endpoint)
            if self.is_newer(row, mine) and self.jobs(row).get(subscriber) == "done"
        ]

    @staticmethod
    def is_newer(row: Any, mine: Any) -> bool:
        if row.resource_id != mine.resource_id:
            return False
        if row.event_at is None or mine.event_at is None:
            return bool(row.event_at is mine.event_at and row.id > mine.id)
        return bool((row.event_at, row.id) > (mine.event_at, mine.id))

    # What is stored

    @property
    def store(self) -> Store:
        return next(iter(self.stores.values()))

    @property
    def now(self) -> datetime:
        return self.store.db_now()

    def events(self, endpoint: str | None = None) -> list[Any]:
        c = self.store.columns
        found = self.store.rows(sa.select(*c).order_by(c.id))
        return [row for row in found if endpoint in (None, row.endpoint)]

    def rows_of_jobs(self, event: Any) -> list[Any]:
        j = self.store.database.tables.job.c
        return self.store.rows(sa.select(*j).where(j.event == event.id))

    def jobs(self, event: Any) -> dict[str, str]:
        return {job.subscriber: job.state for job in self.rows_of_jobs(event)}

    def find(self, endpoint: str, id: str) -> Any:
        found = [row for row in self.events(endpoint) if row.event_id == id]
        return found[0] if found else None

    # Deliveries

    @initialize()
    def start(self) -> None:
        for number, id in enumerate(IDS[:3]):
            self.deliver("first", id, "plain", True, number, "worker", 1.0)
        # While one event runs, another worker takes the next one of its resource.
        self.work(1, 1.0, ("fine", "fine", "fine", "nests", "fine"))

    @rule(
        name=names,
        id=ids,
        kind=st.sampled_from(("plain", "plain", "other", "ignored", "unmatched")),
        chosen=st.booleans(),
        minute=times,
        dispatch=st.sampled_from(("worker", "worker", "inline")),
        after=passing,
    )
    def deliver(
        self,
        name: str,
        id: str,
        kind: str,
        chosen: bool,
        minute: int | None,
        dispatch: str,
        after: float,
    ) -> None:
        """Deliver a new event, a copy, or another body with a known id."""
        self.clock.forward(after)
        at = datetime(2026, 5, 4, 10, minute or 0, tzinfo=timezone.utc)
        sent = {
            "id": id,
            "reason": "update",
            "resource_type": "RFI" if kind == "unmatched" else "RFIs",
            "resource_id": "1" if id < "evt_c" else "2",
            "user_id": IGNORED_USER if kind == "ignored" else "1",
            "timestamp": at.isoformat() if minute is not None else None,
            "chosen": chosen,
            "note": kind,
        }
        is_new = self.find(name, id) is None
        if is_new:
            self.allow(name, id)
        key = f"{name.upper()}_DISPATCH"
        self.parts.app.config[key] = dispatch
        client = self.parts.app.test_client()
        try:
            answer = deliver(client, to_bytes(sent), endpoint=name)
        except SystemExit:
            return  # of a subscriber, as in a request of a server that stops
        finally:
            self.parts.app.config[key] = "worker"
        assert answer.status_code in (
            (200, 500, 503) if dispatch == "inline" else (200,)
        )
        if answer.status_code == 200:
            assert answer.json["received"] is True
            assert bool(answer.json.get("duplicate")) is not is_new

    @rule(name=names, body=st.sampled_from((b"no JSON", b"\xff\0")))
    def deliver_poison(self, name: str, body: bytes) -> None:
        answer = deliver(self.parts.app.test_client(), body, endpoint=name)
        assert answer.json == {"received": True, "quarantined": True}

    def allow(self, endpoint: str, id: str) -> None:
        for subscriber in SUBSCRIBERS:
            self.allowed[Work(endpoint, id, subscriber)] += 1

    # Runs

    def set_moods(self, given: tuple[str, ...]) -> None:
        self.moods.update(zip(SUBSCRIBERS, given, strict=True))

    @rule(name=names, id=ids, after=passing, hurry=seldom, moods=moods)
    def process(
        self, name: str, id: str, after: float, hurry: bool, moods: tuple[str, ...]
    ) -> None:
        self.clock.forward(after)
        self.set_moods(moods)
        if row := self.find(name, id):
            with suppress(SystemExit):
                process(self.parts.endpoints[name], row.id, hurry=hurry)

    @rule(size=st.sampled_from((1, 2, 32)), after=passing, moods=moods)
    def work(self, size: int, after: float, moods: tuple[str, ...]) -> None:
        self.clock.forward(after)
        self.set_moods(moods)
        # Quick or slow batches before would have led to this size.
        self.worker._batch_size = size
        self.worker.run_due()

    # Crashes

    @rule(name=names, size=st.integers(1, 3), after=passing)
    def crash_of_a_worker(self, name: str, size: int, after: float) -> None:
        """A worker crashes after claiming a batch."""
        self.clock.forward(after)
        found = batches.claim_due(self.stores[name], size, LEASE)
        self.left += [(name, claim) for claim in found]

    @rule(name=names, id=ids, after=passing)
    def crash_after_claim(self, name: str, id: str, after: float) -> None:
        self.clock.forward(after)
        if row := self.find(name, id):
            claim = claims.claim(self.stores[name], row.id, LEASE)
            self.left += [(name, claim)] if claim else []

    @precondition(lambda self: self.left)
    @rule(number=st.integers(0, 6), after=passing, moods=moods)
    def come_back(self, number: int, after: float, moods: tuple[str, ...]) -> None:
        """A suspended process continues its run, within the lease or long after it."""
        self.clock.forward(after)
        self.set_moods(moods)
        name, claim = self.left.pop(number % len(self.left))
        endpoint = self.parts.endpoints[name]
        with suppress(SystemExit):
            with renewing(endpoint.store, [claim], LEASE) as held:
                run_claimed(endpoint, claim, held)

    @precondition(lambda self: self.left)
    @rule()
    def release(self) -> None:
        """A stopping worker releases its claims, and may still run them."""
        for name, claim in self.left:
            batches.release(self.stores[name], [claim])

    # Operators

    @rule(name=names, id=ids, anew=st.booleans())
    def replay(self, name: str, id: str, anew: bool) -> None:
        self.clock.forward(1)
        if row := self.find(name, id):
            before = {each.subscriber: each for each in self.rows_of_jobs(row)}
            changes.replay(self.stores[name], [row.id], "a test", anew=anew)
            for job in self.rows_of_jobs(row):
                old = before.get(job.subscriber)
                if old is not None and job.state == "pending" and old.state in ENDED:
                    assert job.version > old.version and job.attempts == 0
                    assert anew or old.state == "dead"
                    self.allowed[Work(name, id, job.subscriber)] += 1

    @rule(name=names, id=ids)
    def discard(self, name: str, id: str) -> None:
        self.clock.forward(1)
        if row := self.find(name, id):
            is_running = row.status == "running" and row.due_at > self.now
            before = self.jobs(row)
            changes.discard(self.stores[name], [row.id], "a test")
            if is_running:
                assert self.jobs(row) == before
            else:
                assert not {"pending", "dead"} & {*self.jobs(row).values()}

    @rule(name=names, dead=st.booleans(), days=st.sampled_from((1, 1, 2, 5)))
    def prune(self, name: str, dead: bool, days: int) -> None:
        self.clock.forward(days * DAY)
        store, now = self.stores[name], self.clock.time
        sum(prune.prune_bodies(store, prune.Old(now - timedelta(days=1), dead)))
        sum(prune.prune_rows(store, prune.Old(now - timedelta(days=4), dead)))
        j = store.database.tables.job.c
        known = {row.id for row in self.events()}
        assert {row.event for row in store.rows(sa.select(j.event))} <= known

    @rule(name=names, pause=st.booleans())
    def pause_or_resume(self, name: str, pause: bool) -> None:
        (pauses.pause if pause else pauses.resume)(self.stores[name], "a test")

    # Invariants

    @invariant()
    def calls_found_their_promises_kept(self) -> None:
        assert self.broken == []

    @invariant()
    def rows_of_events_are_consistent(self) -> None:
        for row in self.events():
            finished = row.status in FINISHED
            assert (row.due_at is None) == finished
            assert (row.finished_at is not None) == finished
            assert (row.parked_at is not None) == (row.status in PARKED)
            assert (row.lease is not None) == (row.status == "running")
            assert finished or row.body is not None

    @invariant()
    def rows_of_jobs_are_consistent(self) -> None:
        for row in self.events():
            jobs = self.rows_of_jobs(row)
            states = {job.state for job in jobs}
            for job in jobs:
                is_pending = job.state == "pending"
                assert (job.due_at is not None) == is_pending
                assert (job.waits_for is not None) == is_pending
                assert is_pending or job.key is None
                assert (job.dead_at is not None) == (job.state == "dead")
                assert job.version >= 1 and 0 <= job.attempts <= MAX_ATTEMPTS
                assert job.endpoint == row.endpoint
                assert job.state != "dead" or job.error
                assert job.subscriber in SUBSCRIBERS
            if "pending" in states:
                # One pending row comes with those of all other subscribers.
                assert len(jobs) == len(SUBSCRIBERS)
                assert row.status in ("pending", "running")
            elif row.status == "done":
                assert "dead" not in states
            elif row.status == "dead":
                assert "dead" in states
            if row.status in ("unmatched", "quarantined"):
                assert not jobs

    @invariant()
    def effects_are_those_of_the_jobs(self) -> None:
        effects = self.parts.effects()
        for work, count in effects.items():
            assert count <= self.allowed[work], work
        for row in self.events():
            for name, state in self.jobs(row).items():
                work = Work(row.endpoint, row.event_id, name)
                if state == "done":
                    assert effects[work], work
                if state == "superseded":
                    newer = [
                        each.event_id
                        for each in self.events(row.endpoint)
                        if self.is_newer(each, row)
                        and effects[Work(row.endpoint, each.event_id, name)]
                    ]
                    was_pruned = len(self.events(row.endpoint)) < len(IDS)
                    assert newer or was_pruned, work

    def teardown(self) -> None:
        """Without further failures, every event is finished in the end."""
        if not self.events():
            return
        for store in self.stores.values():
            pauses.resume(store, "a test")
        fine = ("fine",) * len(SUBSCRIBERS)
        for _ in range(60):
            if all(row.status in FINISHED for row in self.events()):
                break
            self.work(32, LEASE + CAP, fine)
        self.rows_of_events_are_consistent()
        self.rows_of_jobs_are_consistent()
        self.effects_are_those_of_the_jobs()
        for row in self.events():
            assert row.status in FINISHED, row
            if row.status == "done" and self.jobs(row):
                assert {*self.jobs(row)} == {*SUBSCRIBERS}


@contextmanager
def _parts(make_app: Callable[..., Flask], url: str) -> Iterator[Parts]:
    parts = Parts(make_app, url)
    try:
        yield parts
    finally:
        parts.close()


def _explore(parts: Parts, examples: int, steps: int) -> None:
    options = settings(
        max_examples=examples * (50 if SOAK else 1),
        stateful_step_count=steps,
        derandomize=not SOAK,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    machine: Any = partial(Machine, parts)
    run_state_machine_as_test(machine, settings=options)


@pytest.mark.slow
def test_inbox_holds_its_promises_in_any_order_of_steps(
    make_app: Callable[..., Flask], tmp_path: Path
) -> None:
    with _parts(make_app, f"sqlite:///{tmp_path / 'host.db'}") as parts:
        _explore(parts, examples=30, steps=40)


@pytest.mark.slow
@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
def test_inbox_holds_its_promises_on_database_servers(
    make_app: Callable[..., Flask], request: pytest.FixtureRequest, database: str
) -> None:
    url = request.getfixturevalue(f"{database}_url")
    with _parts(make_app, url) as parts:
        _explore(parts, examples=8, steps=30)
