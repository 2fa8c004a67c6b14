"""Random orders of deliveries, runs, crashes and operations, against a simple model.

The model predicts a few fields of each event in plain Python; after every step they are
compared with the tables, and the subscribers' effects with the predicted effects.
``SOAK=1`` makes the run long, with new examples each time.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from datetime import datetime
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
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
from support.hosts import Host
from support.hosts import run_host
from support.inboxes import due_rows
from support.values import AUTHORIZATION
from support.values import Clock

from flask_procore_webhooks import Discard
from flask_procore_webhooks import Event
from flask_procore_webhooks import RetryLater
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.errors import InboxUnavailable
from flask_procore_webhooks.inbox import batches
from flask_procore_webhooks.inbox import claims
from flask_procore_webhooks.inbox.due import is_paused
from flask_procore_webhooks.inbox.held import Claim
from flask_procore_webhooks.operations.changes import replay
from flask_procore_webhooks.operations.journal import journal_of
from flask_procore_webhooks.operations.pauses import pause as pause_endpoint
from flask_procore_webhooks.operations.pauses import resume as resume_endpoint
from flask_procore_webhooks.operations.prune import IDS_KEPT
from flask_procore_webhooks.operations.prune import Old
from flask_procore_webhooks.operations.prune import prune_bodies
from flask_procore_webhooks.operations.prune import prune_rows
from flask_procore_webhooks.running.failures import RunOutcome
from flask_procore_webhooks.running.leases import renewing
from flask_procore_webhooks.running.run import process
from flask_procore_webhooks.running.run import run_claimed
from flask_procore_webhooks.running.worker import Worker
from flask_procore_webhooks.senders.samples import to_bytes
from flask_procore_webhooks.storage.store import Store
from flask_procore_webhooks.testing import deliver

SOAK = bool(os.environ.get("SOAK"))

MAX_ATTEMPTS, BASE, CAP, LEASE = 3, 10.0, 25.0, 300.0
DAY = 24 * 3600.0
RETENTION = DAY
IGNORED_USER = "77"

SUBSCRIBERS = ("first", "second")
#: The end of a subscriber's run, after its write.
MOODS = ("fine", "fails", "later", "much later", "discards", "exits")
MUCH_LATER = 4000.0
FINISHED = ("done", "dead", "ignored")

IDS = ("evt_a", "evt_b", "evt_c")
BODIES = {
    (id, kind): to_bytes(
        {
            "id": id,
            "reason": "update",
            "resource_type": "RFIs",
            "resource_id": "1",
            "user_id": IGNORED_USER if kind == "ignored" else "1",
            "note": kind,
        }
    )
    for id in IDS
    for kind in ("plain", "other", "ignored")
}
POISON = (b"no JSON", b"\xff\0")


# The model


@dataclass
class Hold:
    """A claim, with the state of the event when it was made."""

    row: Row
    attempt: int
    #: Earlier claims in a row that ended without an outcome.
    unsettled: int
    ends: datetime
    finished: frozenset[str]
    poison: bool
    #: Whether a worker had started its run.
    is_started: bool = False


@dataclass(eq=False)
class Row:
    """The expected row of one event."""

    key: str
    body: bytes | None
    status: str
    received: datetime
    attempts: int = 0
    #: Claims since the last one that was settled or released.
    claims: int = 0
    due: datetime | None = None
    ended: datetime | None = None
    #: The claim that may settle the event.
    holder: Hold | None = None
    receipts: dict[str, str] = field(default_factory=dict)
    repeats: int = 0
    conflicts: int = 0
    replays: int = 0
    #: The range of the due time after a failed run; the inbox draws the time.
    due_between: tuple[datetime, datetime] | None = None

    @property
    def is_poison(self) -> bool:
        return self.body in POISON

    def can_be_claimed(self, now: datetime, ignore_backoff: bool = False) -> bool:
        if ignore_backoff and self.status == "pending":
            return True
        return self.due is not None and self.due <= now

    def claim(self, now: datetime) -> Hold:
        self.status, self.due = "running", now + timedelta(seconds=LEASE)
        finished = frozenset(self.receipts)
        self.holder = Hold(
            self, self.attempts + 1, self.claims, self.due, finished, self.is_poison
        )
        self.claims += 1
        return self.holder

    def release(self, hold: Hold, now: datetime) -> None:
        if self.holder is hold:
            self.status, self.due, self.holder = "pending", now, None
            self.claims -= 1

    def settle(
        self,
        hold: Hold,
        status: str,
        now: datetime,
        wait: tuple[float, float] = (0, 0),
        is_counted: bool = True,
    ) -> bool:
        if self.holder is not hold:
            return False
        self.status, self.holder, self.due = status, None, None
        self.attempts, self.claims = hold.attempt - (not is_counted), 0
        if status in FINISHED:
            self.ended = now
        else:
            first, last = (now + timedelta(seconds=each) for each in wait)
            self.due_between = first, last
        return True

    def revive(self, now: datetime) -> None:
        self.status, self.attempts, self.due = "pending", 0, now
        self.ended = self.holder = None


class Interrupted(Exception):
    """In the model: a subscriber has ended the run with SystemExit."""


class Unsettled(Exception):
    """In the model: the run has ended, but could not be settled."""


class Model:
    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        #: Effects by event and subscriber, over all generations.
        self.effects: Counter[tuple[str, str]] = Counter()
        #: Generations by event: one when it is recorded, one for each loss of receipts.
        self.generations: Counter[str] = Counter()
        self.moods = dict.fromkeys(SUBSCRIBERS, "fine")
        self.is_paused = False
        #: The claims that the worker still holds after a failure.
        self.worker_holds: list[Hold] = []
        self.settling_fails = False

    def record(self, key: str, body: bytes, status: str, now: datetime) -> bool:
        row = self.rows.get(key)
        if row is None:
            row = self.rows[key] = Row(key, body, status, now)
            self.generations[key] += 1
            if status in FINISHED:
                row.ended = now
            else:
                row.due = now
            return True
        row.repeats += 1
        if row.body is not None and row.body != body:
            row.conflicts += 1
        if status == "pending" and row.status == "dead":
            row.body = row.body or body
            row.revive(now)
        return False

    def due(self, now: datetime) -> list[Row]:
        rows = [row for row in self.rows.values() if row.can_be_claimed(now)]
        return sorted(rows, key=lambda row: row.due or now)

    def run(self, hold: Hold, now: datetime) -> str:
        """Run a claim; return the outcome."""
        if now >= hold.ends:
            return "not claimed"
        if hold.poison:
            return self._settle(hold, "dead", now)
        if hold.unsettled and not hold.finished >= {*SUBSCRIBERS}:
            if hold.attempt > MAX_ATTEMPTS:
                return self._settle(hold, "dead", now, is_counted=False)
            # It runs alone in its process, and may kill it.
            if hold.row.holder is not hold:
                return "not claimed"
            hold.row.attempts = hold.attempt
        waits = []
        unfinished = [name for name in SUBSCRIBERS if name not in hold.finished]
        for name in unfinished:
            try:
                waits += self._run_subscriber(hold, name, name == unfinished[-1])
            except Interrupted:
                is_last = hold.attempt >= MAX_ATTEMPTS
                status = "dead" if is_last else "pending"
                with suppress(Unsettled):
                    self._settle(hold, status, now, _backoff(hold.attempt))
                raise
        if not waits:
            return self._settle(hold, "done", now)
        if hold.attempt >= MAX_ATTEMPTS:
            return self._settle(hold, "dead", now)
        longest = max(low for low, _ in waits), max(high for _, high in waits)
        return self._settle(hold, "pending", now, longest)

    def _run_subscriber(
        self, hold: Hold, name: str, is_last: bool
    ) -> list[tuple[float, float]]:
        mood, row = self.moods[name], hold.row
        if mood == "exits":
            raise Interrupted
        if mood in ("fails", "later"):
            return [_backoff(hold.attempt)]
        if mood == "much later":
            return [(MUCH_LATER, MUCH_LATER)]
        # A last receipt without writes is committed together with the outcome.
        is_lost = mood == "discards" and is_last and self.settling_fails
        if name not in row.receipts and not is_lost:
            row.receipts[name] = "discarded" if mood == "discards" else "done"
            self.effects[row.key, name] += mood == "fine"
        return []

    def _settle(
        self,
        hold: Hold,
        status: str,
        now: datetime,
        wait: tuple[float, float] = (0, 0),
        is_counted: bool = True,
    ) -> str:
        if self.settling_fails:
            raise Unsettled
        if not hold.row.settle(hold, status, now, wait, is_counted):
            return "not claimed"
        return {"pending": "retry"}.get(status, status)

    def prune(self, now: datetime, dead: bool) -> tuple[int, int]:
        bodies = self._finished_before(now - timedelta(seconds=RETENTION), dead)
        bodies = [row for row in bodies if row.body is not None]
        for row in bodies:
            row.body = None
        age = timedelta(seconds=IDS_KEPT * RETENTION)
        gone = self._finished_before(now - age, dead)
        for row in gone:
            del self.rows[row.key]
        return len(bodies), len(gone)

    def _finished_before(self, when: datetime, dead: bool) -> list[Row]:
        statuses = [each for each in FINISHED if dead or each != "dead"]
        return [
            row
            for row in self.rows.values()
            if row.status in statuses and row.ended and row.ended < when
        ]


def _backoff(attempt: int) -> tuple[float, float]:
    return 0.0, min(CAP, BASE * 2 ** (attempt - 1))


# The machine: takes the same steps in the inbox and in the model


class Switch:
    """A hook on the host's engine that makes settling fail while it is on."""

    def __init__(self, engine: sa.Engine) -> None:
        self.is_on = False
        sa.event.listen(engine, "before_cursor_execute", self)

    def __call__(self, connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        changed = statement.partition("WHERE")[0]
        settles = changed.startswith(("UPDATE", "WITH")) and "finished_at" in changed
        if self.is_on and settles:
            # Not a lost connection, for which settling would be tried again.
            raise RuntimeError("cut off")


class Parts:
    """The host that all examples of a test share, and its current parts."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.switch = Switch(host.endpoint.store.database.engine)
        self.moods: dict[str, str] = {}
        self.serial = 0
        for name in SUBSCRIBERS:
            host.webhooks.on(name=name)(self.subscriber(name))
        do_not_sync(host.engine)

    def subscriber(self, name: str) -> Callable[[Event], None]:
        def work(event: Event) -> None:
            self.serial += 1
            self.host.note(f"{event.id} {name} {self.serial}")
            match self.moods[name]:
                case "fails":
                    raise ValueError("told to fail")
                case "later":
                    raise RetryLater()
                case "much later":
                    raise RetryLater(MUCH_LATER)
                case "discards":
                    raise Discard("told to discard")
                case "exits":
                    raise SystemExit("told to exit")

        return work

    def clear(self) -> None:
        tables = self.host.endpoint.store.database.tables
        with self.host.engine.begin() as connection:
            for table in (*tables, self.host.note_table):
                connection.execute(sa.delete(table))


row_number = st.integers(0, 6)
moods = st.tuples(*(st.sampled_from(MOODS) for _ in SUBSCRIBERS))
#: Seconds that pass before a step.
passing = st.sampled_from((1.0, 1.0, CAP, LEASE, MUCH_LATER))
seldom = st.sampled_from((False, False, False, True))


class Machine(RuleBasedStateMachine):
    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts = parts
        parts.clear()
        self.host = parts.host
        self.endpoint = parts.host.endpoint
        self.clock = Clock()
        self.store.now = self.clock
        self.worker = Worker([self.endpoint], poll=1)
        self.model = Model()
        parts.moods = self.model.moods
        #: Claims whose process was killed or suspended.
        self.left: list[tuple[Claim, Hold]] = []
        self.row_ids: dict[Row, int] = {}

    @property
    def store(self) -> Store:
        return self.endpoint.store

    @property
    def now(self) -> datetime:
        return self.store.db_now()

    def row(self, number: int) -> Row:
        rows = list(self.model.rows.values())
        return rows[number % len(rows)]

    def likely_row(self, number: int, *, finished: bool = False) -> Row:
        """Low numbers select a claimable or finished row, if such a row exists."""
        rows = list(self.model.rows.values())
        ended = [row for row in rows if row.ended and row.body and not row.is_poison]
        ended.sort(key=lambda row: row.status != "done")
        first = ended if finished else self.model.due(self.now)
        return [*first, *rows][number % (len(first) + len(rows))]

    def stored(self) -> dict[int, Any]:
        """The rows of the event table."""
        look = sa.select(self.store.columns.id.table)
        return {row.id: row for row in self.store.rows(look)}

    @initialize(moods=moods, replays=st.booleans())
    def start(self, moods: tuple[str, ...], replays: bool) -> None:
        """Take the first steps, which later steps need and which are seldom drawn."""
        self.deliver(IDS[0], "plain")
        self.work(1, after=1, cut=False, moods=moods)
        if replays:
            self.replay([0], rerun_all=False)
        self.deliver(IDS[1], "plain")

    # Deliveries

    @rule(key=st.sampled_from(IDS), kind=st.sampled_from(("plain", "other", "ignored")))
    def deliver(self, key: str, kind: str) -> None:
        """Deliver a new event, a copy, or another body with a known id."""
        self.clock.forward(1)
        body = BODIES[key, kind]
        status = "ignored" if kind == "ignored" else "pending"
        fresh = self.model.record(key, body, status, self.now)
        answer = deliver(self.host.app.test_client(), body)
        expected = {"received": True} | ({} if fresh else {"duplicate": True})
        assert (answer.status_code, answer.json) == (200, expected)
        if fresh:
            self.learn_row_id(key, body)

    @rule(body=st.sampled_from(POISON))
    def deliver_poison(self, body: bytes) -> None:
        self.clock.forward(1)
        key = f"poison {body!r}"
        fresh = self.model.record(key, body, "dead", self.now)
        answer = deliver(self.host.app.test_client(), body)
        assert answer.status_code == 200
        assert answer.json == {"received": True, "quarantined": True}
        if fresh:
            self.learn_row_id(key, body)

    def learn_row_id(self, key: str, body: bytes) -> None:
        newest = max(self.stored())
        assert newest > max(self.row_ids.values(), default=0)
        self.row_ids[self.model.rows[key]] = newest
        assert self.stored()[newest].body == body

    # Runs

    def set_moods(self, moods: tuple[str, ...]) -> None:
        self.model.moods.update(zip(SUBSCRIBERS, moods, strict=True))

    @precondition(lambda self: self.model.rows)
    @rule(
        number=row_number, after=passing, ignore_backoff=seldom, cut=seldom, moods=moods
    )
    def process(
        self,
        number: int,
        after: float,
        ignore_backoff: bool,
        cut: bool,
        moods: tuple[str, ...],
    ) -> None:
        """Run one event; if ``cut``, the outcome cannot be written."""
        self.clock.forward(after)
        self.set_moods(moods)
        row = self.likely_row(number)
        with self.cutting(cut):
            expected = "not claimed"
            if row.can_be_claimed(self.now, ignore_backoff):
                hold = row.claim(self.now)
                expected = self.run_in_model(hold)
            assert (
                self.run(process, self.row_ids[row], ignore_backoff=ignore_backoff)
                == expected
            )

    def run_in_model(self, hold: Hold) -> str:
        try:
            return self.model.run(hold, self.now)
        except Interrupted:
            return "interrupted"
        except Unsettled:
            return "unsettled"

    def run(self, function: Callable[..., Any], *args: Any, **options: Any) -> str:
        try:
            return str(function(self.endpoint, *args, **options).value)
        except SystemExit:
            return "interrupted"
        except InboxUnavailable:
            return "unsettled"

    @rule(size=st.sampled_from((1, 2, 32)), after=passing, cut=seldom, moods=moods)
    def work(self, size: int, after: float, cut: bool, moods: tuple[str, ...]) -> None:
        """A worker claims and runs a batch; if ``cut``, it cannot settle a run."""
        self.clock.forward(after)
        self.set_moods(moods)
        # Quick or slow batches before would have led to this size.
        self.worker._batch_size = size
        model, now = self.model, self.now
        if cut and any(hold.is_started for hold in model.worker_holds):
            with self.cutting(cut), pytest.raises(InboxUnavailable):
                self.worker.run_due()
            return
        for hold in model.worker_holds:
            if hold.is_started:
                # The run may have had effects: its event waits as after a failure.
                hold.row.settle(hold, "pending", now, _backoff(hold.attempt))
            else:
                hold.row.release(hold, now)
        model.worker_holds = []
        due = [] if model.is_paused else model.due(now)
        with self.cutting(cut):
            try:
                ran = self.worker.run_due()
            except InboxUnavailable:
                ran = None
        taken = self.taken(due, size)
        ran_in_model = self.work_in_model(taken, cut)
        assert ran == ran_in_model

    def taken(self, due: list[Row], size: int) -> list[Row]:
        """The claimed rows among the due rows: the longest due, in any order of equals.

        A row whose last claim has no outcome is claimed alone, when it is the first.
        """
        stored = self.stored()
        taken = [row for row in due if self.has_changed(row, stored)]
        assert len(taken) == min(len(taken), size) and bool(taken) == bool(due)
        if any(row.claims for row in taken):
            assert [row.due for row in taken] == [due[0].due]
        elif due:
            window = [row.due for row in due[:size]]
            assert {*map(str, (row.due for row in taken))} <= {*map(str, window)}
            before_last = [row for row in due if str(row.due) < str(window[-1])]
            assert {*taken} >= {row for row in before_last if not row.claims}
        held = self.worker._held.get(self.endpoint.name)
        waiting = {claim.row_id for claim in held.queued()} if held else set()
        # Of equals, started runs come first, and the failed run last of them.
        return sorted(
            taken,
            key=lambda row: (
                str(row.due),
                self.row_ids[row] in waiting,
                not self.will_exit(row),
            ),
        )

    def has_changed(self, row: Row, stored: dict[int, Any]) -> bool:
        real = stored[self.row_ids[row]]
        found = (real.status, real.attempts, real.claims, real.due_at)
        return found != (row.status, row.attempts, row.claims, row.due)

    def will_exit(self, row: Row) -> bool:
        left = [name for name in SUBSCRIBERS if name not in row.receipts]
        exits = any(self.model.moods[name] == "exits" for name in left)
        return exits and not row.is_poison

    def work_in_model(self, taken: list[Row], cut: bool) -> int | None:
        self.model.settling_fails = cut
        holds = [row.claim(self.now) for row in taken]
        for number, hold in enumerate(holds):
            hold.is_started = True
            if self.run_in_model(hold) == "unsettled":
                self.model.worker_holds = holds[number:]
                break
        else:
            self.model.settling_fails = False
            return len(holds)
        self.model.settling_fails = False
        return None

    @contextmanager
    def cutting(self, cut: bool) -> Iterator[None]:
        self.parts.switch.is_on = self.model.settling_fails = cut
        try:
            yield
        finally:
            self.parts.switch.is_on = self.model.settling_fails = False

    # Crashes

    @precondition(lambda self: self.model.rows)
    @rule(number=row_number, after=passing)
    def crash_after_claim(self, number: int, after: float) -> None:
        self.clock.forward(after)
        row = self.likely_row(number)
        claim = claims.claim(self.store, self.row_ids[row], LEASE)
        assert (claim is not None) == row.can_be_claimed(self.now)
        if claim:
            hold = row.claim(self.now)
            self.check_claim(claim, hold)
            self.left.append((claim, hold))

    @rule(size=st.integers(1, 3), after=passing)
    def crash_of_a_worker(self, size: int, after: float) -> None:
        """A worker crashes after claiming a batch."""
        self.clock.forward(after)
        due = self.model.due(self.now)
        found = batches.claim_due(self.store, size, LEASE)
        taken = {self.row_ids[row]: row for row in self.taken(due, size)}
        assert {claim.row_id for claim in found} == {*taken}
        for claim in found:
            hold = taken[claim.row_id].claim(self.now)
            self.check_claim(claim, hold)
            self.left.append((claim, hold))

    def check_claim(self, claim: Claim, hold: Hold) -> None:
        assert (claim.attempt, claim.unsettled) == (hold.attempt, hold.unsettled)
        assert claim.finished == hold.finished
        assert claim.body == hold.row.body

    @precondition(lambda self: self.left)
    @rule(number=row_number)
    def renew(self, number: int) -> None:
        """A suspended process renews the lease of its claim."""
        self.clock.forward(1)
        index = number % len(self.left)
        claim, hold = self.left[index]
        batches.renew(self.store, [claim], LEASE)
        if hold.row.holder is hold:
            hold.row.due = hold.ends = self.now + timedelta(seconds=LEASE)
            self.left[index] = replace(claim, ends=hold.ends), hold

    @precondition(lambda self: self.left)
    @rule(number=row_number, after=passing, cut=seldom, moods=moods)
    def come_back(
        self, number: int, after: float, cut: bool, moods: tuple[str, ...]
    ) -> None:
        """A suspended process continues its run, within the lease or long after it."""
        self.clock.forward(after)
        self.set_moods(moods)
        claim, hold = self.left.pop(number % len(self.left))
        if self.model.rows.get(hold.row.key) is not hold.row:
            return
        with self.cutting(cut):
            expected = self.run_in_model(hold)
            assert self.run(run_left, claim) == expected

    @precondition(lambda self: self.left)
    @rule()
    def release(self) -> None:
        """A stopping worker releases its claims, and may still run them."""
        self.clock.forward(1)
        batches.release(self.store, [claim for claim, _ in self.left])
        for _, hold in self.left:
            hold.row.release(hold, self.now)

    # Operators

    @precondition(lambda self: self.model.rows)
    @rule(numbers=st.lists(row_number, min_size=1, max_size=3), rerun_all=st.booleans())
    def replay(self, numbers: list[int], rerun_all: bool) -> None:
        self.clock.forward(1)
        rows = {self.likely_row(number, finished=True) for number in numbers}
        count = replay(
            self.store,
            [self.row_ids[row] for row in rows],
            "a test",
            anew=rerun_all,
        )
        again = [r for r in rows if r.status in FINISHED and r.body is not None]
        assert count == len(again)
        for row in again:
            row.replays += 1
            if rerun_all or row.status != "dead":
                row.receipts = {}
                self.model.generations[row.key] += 1
            row.revive(self.now)

    @rule(dead=st.booleans(), days=st.sampled_from((1, 1, 2, 5)))
    def prune(self, dead: bool, days: int) -> None:
        self.clock.forward(days * DAY)
        retention = timedelta(seconds=RETENTION)
        now = self.store.now()
        bodies = sum(prune_bodies(self.store, Old(now - retention, dead=dead)))
        before = now - IDS_KEPT * retention
        rows = sum(prune_rows(self.store, Old(before, dead=dead)))
        assert (bodies, rows) == self.model.prune(self.now, dead)

    @rule(pause=st.booleans())
    def pause_or_resume(self, pause: bool) -> None:
        (pause_endpoint if pause else resume_endpoint)(self.store, "a test")
        self.model.is_paused = pause
        assert is_paused(self.store) == pause

    # Invariants

    @invariant()
    def the_tables_are_as_the_model_says(self) -> None:
        stored = self.stored()
        rows = self.model.rows.values()
        assert {*stored} == {self.row_ids[row] for row in rows}
        for row in rows:
            real = stored[self.row_ids[row]]
            self.adopt_drawn_wait(row, real.due_at)
            seen = (real.status, real.attempts, real.due_at, real.finished_at)
            assert seen == (row.status, row.attempts, row.due, row.ended)
            assert real.claims == row.claims
            seen = (real.body, real.received_at, real.repeats, real.conflicts)
            assert seen == (row.body, row.received, row.repeats, row.conflicts)
            assert (row.holder is not None) == (real.status == "running")
            self.check_what_always_holds(real)

    def adopt_drawn_wait(self, row: Row, due: datetime | None) -> None:
        if row.due_between is None:
            return
        first, last = row.due_between
        assert due is not None and first <= due <= last
        row.due, row.due_between = due, None

    @invariant()
    def receipts_and_effects_are_as_the_model_says(self) -> None:
        r = self.store.database.tables.receipt.c
        found = self.store.rows(sa.select(r.event, r.subscriber, r.ending))
        assert Counter((row.event, row.subscriber, row.ending) for row in found) == {
            (self.row_ids[row], name, ending): 1
            for row in self.model.rows.values()
            for name, ending in row.receipts.items()
        }
        notes = (note.rpartition(" ")[0] for note in self.host.notes())
        effects = Counter(notes)
        assert effects == {
            f"{key} {name}": count
            for (key, name), count in self.model.effects.items()
            if count
        }
        for (key, _), count in self.model.effects.items():
            assert count <= self.model.generations[key]

    def check_what_always_holds(self, real: Any) -> None:
        """Invariants that do not depend on the model."""
        finished = real.status in FINISHED
        assert (real.due_at is None) == finished
        assert (real.finished_at is not None) == finished
        assert (real.lease is not None) or real.status != "running"
        assert finished or real.body is not None
        if real.status == "dead":
            assert real.error
            assert real.type == "" or real.attempts >= MAX_ATTEMPTS
        if real.status == "done":
            assert real.error is None

    @invariant()
    def what_is_past_its_time_can_be_claimed(self) -> None:
        due = due_rows(self.store, 1000)
        assert {*due} == {self.row_ids[row] for row in self.model.due(self.now)}

    def teardown(self) -> None:
        """Without further failures, every event is finished in the end."""
        self.pause_or_resume(False)
        # Events of crashed processes are claimed one at a time.
        for _ in range(2 + len(self.model.rows)):
            self.clock.forward(max(LEASE, MUCH_LATER) + CAP)
            self.work(32, after=1, cut=False, moods=("fine", "fine"))
            self.the_tables_are_as_the_model_says()
        self.receipts_and_effects_are_as_the_model_says()
        assert all(row.status in FINISHED for row in self.model.rows.values())
        for row in self.model.rows.values():
            if row.status == "done":
                assert {*row.receipts} == {*SUBSCRIBERS}
            actions = journal_of(self.store, self.row_ids[row])
            assert [each["action"] for each in actions] == ["replay"] * row.replays


def run_left(endpoint: Endpoint, claim: Claim) -> RunOutcome:
    with renewing(endpoint.store, [claim], LEASE) as held:
        return run_claimed(endpoint, claim, held)


@contextmanager
def _parts(make_app: Callable[..., Flask], url: str) -> Iterator[Parts]:
    app = make_app(
        PROCORE_WEBHOOK_SECRET=None,
        PROCORE_WEBHOOK_AUTHORIZATION=AUTHORIZATION,
        PROCORE_WEBHOOK_DISPATCH="worker",
        PROCORE_WEBHOOK_MAX_ATTEMPTS=MAX_ATTEMPTS,
        PROCORE_WEBHOOK_RETRY_BASE=BASE,
        PROCORE_WEBHOOK_RETRY_CAP=CAP,
        PROCORE_WEBHOOK_LEASE=LEASE,
        PROCORE_WEBHOOK_RETENTION=RETENTION,
        PROCORE_WEBHOOK_IGNORE_USER_IDS=[IGNORED_USER],
    )
    with run_host(app, "flask_sqlalchemy", url) as host:
        yield Parts(host)


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
def test_inbox_agrees_with_the_model_in_any_order_of_steps(
    make_app: Callable[..., Flask], tmp_path: Path
) -> None:
    with _parts(make_app, f"sqlite:///{tmp_path / 'host.db'}") as parts:
        _explore(parts, examples=35, steps=50)


@pytest.mark.soak
@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
def test_inbox_agrees_with_the_model_on_database_servers(
    make_app: Callable[..., Flask], request: pytest.FixtureRequest, database: str
) -> None:
    url = request.getfixturevalue(f"{database}_url")
    with _parts(make_app, url) as parts:
        _explore(parts, examples=8, steps=40)
