"""Operations on the inbox, on every database: replay, prune, pause, journal."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_procore_webhooks.inbox.operations import BATCH
from flask_procore_webhooks.inbox.operations import journal_of
from flask_procore_webhooks.inbox.operations import pause
from flask_procore_webhooks.inbox.operations import prune_bodies
from flask_procore_webhooks.inbox.operations import prune_rows
from flask_procore_webhooks.inbox.operations import replay
from flask_procore_webhooks.inbox.operations import resume
from flask_sqlalchemy import SQLAlchemy
from support.locks import wait_for_lock_wait
from support.sites import add_finished
from support.sites import at_once
from support.sites import open_site
from support.sites import Site

from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.errors import InboxUnavailable
from flask_procore_webhooks.inbox import claims
from flask_procore_webhooks.inbox import operations
from flask_procore_webhooks.inbox import queries
from flask_procore_webhooks.inbox.claims import Settlement
from flask_procore_webhooks.inbox.due import is_paused
from flask_procore_webhooks.inbox.record import record as record_event
from flask_procore_webhooks.inbox.status import Status
from flask_procore_webhooks.running.worker import Worker
from flask_procore_webhooks.storage.store import Store
from flask_procore_webhooks.storage.store import to_db_time
from flask_procore_webhooks.testing import payload

MakeApp = Callable[..., Flask]
ME = "me@here"
IGNORED = {"PROCORE_WEBHOOK_IGNORE_USER_IDS": ["7"]}


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengthen the lock timeout: one file on a slow disk has many connections."""
    monkeypatch.setattr(Store, "retry_seconds", 30)


@pytest.fixture
def site(make_app: MakeApp, database_url: str) -> Iterator[Site]:
    with open_site(make_app(), database_url, **IGNORED) as site:
        yield site


# Replay


def test_replay_of_a_dead_event_runs_unfinished_subscribers(site: Site) -> None:
    site.subscribe_good_and_bad()
    row = site.send(id="1")
    site.work()
    assert site.calls == [("good", "1"), ("bad", "1")]
    assert (site.row(row)["status"], site.receipts(row)) == ("dead", {"good": "done"})

    site.clock.forward(60)
    assert replay(site.store, [row], ME) == 1

    now = site.row(row)
    assert (now["status"], now["attempts"]) == ("pending", 0)
    assert (now["due_at"], now["finished_at"]) == (to_db_time(site.clock()), None)
    assert now["error"] == "bad: ValueError: broken", "until it is run"
    assert site.receipts(row) == {"good": "done"}

    site.broken = False
    assert site.work() == 1
    assert site.calls[2:] == [("bad", "1")]
    now = site.row(row)
    assert (now["status"], now["attempts"], now["error"]) == ("done", 1, None)


def test_replay_resets_the_attempts(make_app: MakeApp, database_url: str) -> None:
    config = {"PROCORE_WEBHOOK_MAX_ATTEMPTS": 3, "PROCORE_WEBHOOK_RETRY_BASE": 1}
    with open_site(make_app(), database_url, **config) as site:
        site.subscribe_good_and_bad()
        row = site.send()
        for runs in (3, 6):
            for _ in range(3):
                assert site.work() == 1
                site.clock.forward(10)
            assert site.work() == 0
            assert (site.row(row)["status"], site.row(row)["attempts"]) == ("dead", 3)
            assert [name for name, _ in site.calls].count("bad") == runs
            assert replay(site.store, [row], ME) == 1


def test_replay_of_a_done_event_runs_every_subscriber(site: Site) -> None:
    site.subscribe_good_and_bad()
    site.broken = False
    row, other = site.send(id="1"), site.send(id="2")
    site.work()
    site.calls.clear()

    assert replay(site.store, [row], ME) == 1
    assert site.receipts(row) == {}
    assert len(site.receipts(other)) == 2
    assert site.work() == 1
    assert site.calls == [("good", "1"), ("bad", "1")]
    assert site.statuses() == ["done", "done"]


@pytest.mark.parametrize("rerun_all", [False, True])
def test_rerun_all_runs_finished_subscribers_of_a_dead_event(
    site: Site, rerun_all: bool
) -> None:
    site.subscribe_good_and_bad()
    row = site.send(id="1")
    site.work()
    site.calls.clear()
    site.broken = False

    assert replay(site.store, [row], ME, rerun_all=rerun_all) == 1
    site.work()
    assert site.calls == ([("good", "1")] if rerun_all else []) + [("bad", "1")]


def test_ignored_event_is_run_only_after_a_replay(site: Site) -> None:
    site.subscribe_good_and_bad()
    site.broken = False
    row = site.send(id="1", user_id=7)
    site.clock.forward(10**6)
    assert (site.work(), site.calls) == (0, [])
    assert site.row(row)["status"] == "ignored"

    assert replay(site.store, [row], ME) == 1
    assert site.work() == 1
    assert site.calls == [("good", "1"), ("bad", "1")]
    assert site.row(row)["status"] == "done"


def test_replayed_quarantined_event_is_quarantined_again(site: Site) -> None:
    site.subscribe_good_and_bad()
    assert site.deliver(b"not JSON").status_code == 200
    (row,) = [row["id"] for row in queries.newest(site.store)]
    before = site.row(row)
    assert replay(site.store, [row], ME) == 1
    assert site.work() == 1
    after = site.row(row)
    assert site.calls == []
    for name in ("status", "error", "body", "event_id"):
        assert after[name] == before[name]


def test_unfinished_events_are_not_replayed(site: Site) -> None:
    pending, running = site.send(), site.send()
    assert claims.claim(site.store, running, 100)
    before = [site.row(pending), site.row(running)]
    site.clock.forward(1)
    assert replay(site.store, [pending, running], ME, rerun_all=True) == 0
    assert [site.row(pending), site.row(running)] == before
    assert site.count("journal") == 0


def test_second_replay_does_nothing(site: Site) -> None:
    site.subscribe_good_and_bad()
    row = site.send()
    site.work()
    assert [replay(site.store, [row, row], ME) for _ in range(2)] == [1, 0]
    assert len(journal_of(site.store, row)) == 1


def test_replaying_nothing_does_nothing(site: Site) -> None:
    assert replay(site.store, [], ME) == 0
    assert replay(site.store, [12345], ME) == 0
    assert site.count("journal") == 0


@pytest.mark.parametrize("status", [Status.DONE, Status.DEAD])
def test_event_without_its_body_is_not_replayed(site: Site, status: Status) -> None:
    site.subscribe_good_and_bad()
    old, young = add_finished(site, 2, status)
    with site.store.connection() as connection:
        where = site.events.c.id == old
        connection.execute(sa.update(site.events).where(where).values(body=None))
    before = site.row(old)
    assert replay(site.store, [old, young], ME, rerun_all=True) == 1
    assert site.row(old) == before
    assert site.receipts(old) == {"good": "done"}
    assert journal_of(site.store, old) == []


@pytest.fixture
def two_sites(make_app: MakeApp, database_url: str) -> Iterator[tuple[Site, Site]]:
    """Two endpoints of one app that share their tables."""
    with open_site(make_app(BOLT_SECRET="another secret"), database_url) as site:
        bolt = ProcoreWebhooks("bolt", url_prefix="/bolt", config_prefix="BOLT_")
        site.app.config["BOLT_DATABASE_URI"] = database_url
        site.app.config["BOLT_DISPATCH"] = "worker"
        site.app.register_blueprint(bolt)
        other = Site(site.app, bolt, endpoints(site.app)["bolt"], site.clock)
        yield site, other
        other.store.database.engine.dispose()


def test_replay_does_not_affect_another_endpoint(
    two_sites: tuple[Site, Site],
) -> None:
    site, other = two_sites
    mine, theirs = site.send(), other.send()
    assert (site.work(), other.work()) == (1, 1)
    before = other.row(theirs)
    assert replay(site.store, [mine, theirs], ME) == 1
    assert other.row(theirs) == before

    other.webhooks.on(name="theirs")(lambda event: None)
    theirs = other.send()
    other.work()
    site.work()
    site.clock.forward(1000)
    for removed in (prune_bodies, prune_rows):
        assert sum(removed(site.store, site.clock(), dead=True)) == 1
    assert other.statuses() == ["done", "done"]
    assert other.row(theirs)["body"]
    assert other.receipts(theirs) == {"theirs": "done"}


def test_concurrent_replays_count_each_event_once(site: Site) -> None:
    site.subscribe_good_and_bad()
    rows = [site.send(id=f"dead{number}") for number in range(15)]
    site.work()
    rows += add_finished(site, 15)
    site.calls.clear()
    site.broken = False

    def work(number: int) -> int:
        mine = rows[:]
        random.Random(number).shuffle(mine)
        return replay(site.store, mine, f"operator {number}")

    assert sum(at_once(work, range(4))) == len(rows)
    assert all(len(journal_of(site.store, row)) == 1 for row in rows)
    assert site.work() == len(rows)
    assert set(site.statuses()) == {"done"}
    calls = Counter(site.calls)
    assert set(calls.values()) == {1}
    assert len(calls) == 15 + 2 * 15, "of the dead ones, good had finished"


def test_each_counted_replay_causes_one_run(
    make_app: MakeApp, database_url: str
) -> None:
    """Replays run beside workers and a sender that repeats the events."""
    # A run that cannot be settled uses up an attempt.
    config = {"PROCORE_WEBHOOK_MAX_ATTEMPTS": 12}
    with open_site(make_app(), database_url, **config) as site:
        _replay_while_it_is_run(site)


def _replay_while_it_is_run(site: Site) -> None:
    ran: Counter[str] = Counter()
    lock = threading.Lock()

    @site.webhooks.on(name="only")
    def only(event: Event) -> None:
        with lock:
            ran[event.id] += 1

    sent = [payload("RFIs.update", id=f"evt{number}") for number in range(5)]
    rows = [site.send(id=each["id"]) for each in sent]
    site.work()
    finished = threading.Event()
    workers: list[Worker] = []

    def operate(number: int) -> int:
        return sum(repeated_replay(number) for _ in range(15))

    def repeated_replay(number: int) -> int:
        try:
            return replay(site.store, rows, f"{number}")
        except InboxUnavailable as unavailable:
            # MariaDB rolls back one of two deadlocked transactions.
            assert "Deadlock" in unavailable.reason
            return repeated_replay(number)

    def run_events(number: int) -> int:
        # The loop of a worker continues after a deadlock, as in production.
        worker = Worker([site.endpoint], poll=0.01)
        workers.append(worker)
        worker.run()
        return 0

    def send_again(number: int) -> int:
        while not finished.is_set():
            assert site.deliver(sent[number % len(sent)]).status_code == 200
            number += 1
        return 0

    replayed = 0

    def start(job: tuple[Callable[[int], int], int]) -> int:
        work, number = job
        try:
            return work(number)
        finally:
            with lock:
                nonlocal replayed
                replayed += work is operate
                if replayed == 2 or work is not operate:
                    finished.set()
                    for worker in workers:
                        worker.stop()

    jobs = [(operate, 1), (operate, 2), (run_events, 1), (run_events, 2)]
    total = sum(at_once(start, [*jobs, (send_again, 0)]))
    # Run the events whose run could not be settled before.
    site.clock.forward(site.endpoint.settings.lease)
    site.work()

    assert total > 0
    assert sum(ran.values()) == len(rows) + total
    assert site.count("journal") == total
    for row, each in zip(rows, sent, strict=True):
        assert len(journal_of(site.store, row)) == ran[each["id"]] - 1
    assert set(site.statuses()) == {"done"}


def test_concurrent_replay_and_redelivery_revive_a_dead_event_once(site: Site) -> None:
    site.subscribe_good_and_bad()
    sent = [payload("RFIs.update", id=f"evt{number}") for number in range(20)]
    rows = [site.send(id=each["id"]) for each in sent]
    site.work()
    site.calls.clear()
    site.broken = False

    def revive(again: bool) -> int:
        for each, row in zip(sent, rows, strict=True):
            if again:
                assert site.deliver(each).status_code == 200
            else:
                replay(site.store, [row], ME)
        return 0

    at_once(revive, [True, False])
    assert site.statuses() == ["pending"] * len(rows)
    assert {site.row(row)["attempts"] for row in rows} == {0}
    assert site.work() == len(rows)
    assert sorted(site.calls) == sorted(("bad", each["id"]) for each in sent)


def test_copy_does_not_deadlock_with_a_transaction_on_its_row(
    make_app: MakeApp, mariadb_url: str
) -> None:
    with open_site(make_app(), mariadb_url) as site:
        try:
            _deliver_against_a_lock(site)
        finally:
            site.events.metadata.drop_all(site.store.database.engine)


def _deliver_against_a_lock(site: Site) -> None:
    """The delivery waits for a row lock; its holder then locks the key."""
    sent = payload("RFIs.update", id="1")
    rows = [site.send(id=f"{number}") for number in range(10)]
    id = site.events.c.id
    heavier = sa.update(site.events).where(id.in_(rows), id != rows[1])
    by_row = sa.select(id).where(id == rows[1]).with_for_update()
    by_key = sa.text(
        f"SELECT id FROM {site.events.name} FORCE INDEX (uq_{site.events.name})"
        " WHERE endpoint = :endpoint AND event_id = '1' FOR UPDATE"
    )
    deadlocks = []

    @sa.event.listens_for(site.store.database.engine, "handle_error")
    def note(context: sa.engine.ExceptionContext) -> None:
        if "Deadlock" in str(context.original_exception):
            deadlocks.append(context.statement)

    with ThreadPoolExecutor(1) as pool, site.store.connection(begin=True) as other:
        other.execute(heavier.values(repeats=7))
        other.execute(by_row)
        answer = pool.submit(site.deliver, sent)
        with site.store.connection() as look:
            wait_for_lock_wait(look)
        other.execute(by_key, {"endpoint": site.endpoint.name})
    assert answer.result(60).json == {"received": True, "duplicate": True}
    assert deadlocks == []
    assert site.row(rows[1])["repeats"] == 1


# The journal


def test_journal_has_actor_action_and_time(site: Site) -> None:
    row = site.send()
    times = []
    for number in range(3):
        site.work()
        site.clock.forward(60)
        times.append(to_db_time(site.clock()))
        assert replay(site.store, [row], f"operator {number}") == 1
    assert journal_of(site.store, row) == [
        {"action": "replay", "at": time, "actor": f"operator {number}"}
        for number, time in enumerate(times)
    ]


def test_journal_accepts_any_actor_name(site: Site) -> None:
    (row,) = add_finished(site, 1)
    assert replay(site.store, [row], "\0\ud800ü\N{PILE OF POO}" + "x" * 500) == 1
    (entry,) = journal_of(site.store, row)
    action, actor = entry["action"], entry["actor"]
    assert action == "replay" and actor.endswith("x") and len(actor) == 160


# Prune


PRUNES: dict[str, Callable[..., Iterator[int]]] = {
    "bodies": prune_bodies,
    "rows": prune_rows,
}
every_prune = pytest.mark.parametrize("prune", PRUNES.values(), ids=PRUNES)


def is_there(site: Site, row: int, prune: object) -> bool:
    c = site.events.c
    found = site.store.rows(sa.select(c.body).where(c.id == row))
    return bool(found) and (prune is prune_rows or found[0].body is not None)


@every_prune
def test_event_finished_at_the_limit_is_kept(
    site: Site, prune: Callable[..., Iterator[int]]
) -> None:
    ages = {"before": 100.000001, "then": 100.0, "after": 99.999999}
    rows = {
        name: add_finished(site, 1, age=age, name=name)[0] for name, age in ages.items()
    }
    before = site.clock() - timedelta(seconds=100)
    assert sum(prune(site.store, before, dead=False)) == 1
    there = {name: is_there(site, row, prune) for name, row in rows.items()}
    assert there == {"before": False, "then": True, "after": True}
    assert sum(prune(site.store, before, dead=False)) == 0


@every_prune
def test_prune_compares_the_finish_time_not_the_receipt_time(
    site: Site, prune: Callable[..., Iterator[int]]
) -> None:
    """An event received long ago may have finished just now."""
    row = site.send()
    site.clock.forward(10_000)
    late = site.clock()
    site.work()
    assert sum(prune(site.store, late, dead=True)) == 0
    site.clock.forward(1)
    assert sum(prune(site.store, site.clock(), dead=True)) == 1
    assert not is_there(site, row, prune)


@every_prune
@pytest.mark.parametrize("dead", [False, True])
def test_prune_keeps_dead_events_by_default(
    site: Site, prune: Callable[..., Iterator[int]], dead: bool
) -> None:
    for status in (Status.DONE, Status.DEAD, Status.IGNORED):
        add_finished(site, 2, status, age=100, name=status.value)
    assert sum(prune(site.store, site.clock(), dead=dead)) == (6 if dead else 4)
    c = site.events.c
    left = site.store.rows(sa.select(c.status).where(c.body.is_not(None)))
    assert [row.status for row in left] == ([] if dead else ["dead"] * 2)


@every_prune
def test_unfinished_events_are_not_pruned(
    site: Site, prune: Callable[..., Iterator[int]]
) -> None:
    site.subscribe_good_and_bad()
    site.broken = False
    pending, running, revived = site.send(), site.send(), site.send()
    assert claims.claim(site.store, revived, 1)
    assert claims.settle(
        site.store,
        claims.claim(site.store, running, 1) or pytest.fail("free"),
        Settlement(Status.PENDING, wait=50),
    )
    assert claims.claim(site.store, running, 10**6, ignore_backoff=True)
    site.clock.forward(10**6)
    assert sum(prune(site.store, site.clock(), dead=True)) == 0
    assert all(is_there(site, row, prune) for row in (pending, running, revived))
    assert site.work() == 3


def test_receipts_and_journal_are_pruned_with_their_event(site: Site) -> None:
    site.subscribe_good_and_bad()
    site.broken = False
    old = site.send()
    site.work()
    replay(site.store, [old], ME)
    pause(site.store, ME)
    resume(site.store, ME)
    site.work()
    site.clock.forward(1000)
    then = site.clock()
    young = site.send()
    site.work()
    replay(site.store, [young], ME)
    site.work()

    assert sum(prune_rows(site.store, then, dead=False)) == 1
    assert [row["id"] for row in queries.newest(site.store)] == [young]
    assert (site.receipts(old), journal_of(site.store, old)) == ({}, [])
    assert site.receipts(young) == {"good": "done", "bad": "done"}
    assert len(journal_of(site.store, young)) == 1
    assert site.count("receipt") == 2
    assert site.count("journal") == 3, "the pause and the resume are still known"


def test_interrupted_prune_is_completed_by_the_next(site: Site) -> None:
    rows = add_finished(site, BATCH + 10, age=100)
    replay(site.store, rows[:3], ME)
    site.work()
    site.clock.forward(100)
    young = add_finished(site, 5, name="young")
    # The rows are gone, as after a prune that was killed between statements.
    for part in (rows[:10], rows[-1:]):
        with site.store.connection() as connection:
            where = site.events.c.id.in_(part)
            connection.execute(sa.delete(site.events).where(where))
    before = site.clock() - timedelta(seconds=50)
    assert sum(prune_rows(site.store, before, dead=False)) == BATCH - 1
    assert (site.count("receipt"), site.count("journal")) == (5, 0)
    assert all(site.receipts(row) for row in young)


def test_partial_prune_can_be_repeated(site: Site) -> None:
    add_finished(site, 2 * BATCH, age=100)
    with closing(prune_rows(site.store, site.clock(), dead=False)) as some:
        assert next(some) == BATCH
    assert site.count("event") == BATCH
    assert sum(prune_rows(site.store, site.clock(), dead=False)) == BATCH
    assert (site.count("event"), site.count("receipt")) == (0, 0)


def test_copy_of_a_pruned_event_is_still_a_duplicate(site: Site) -> None:
    site.subscribe_good_and_bad()
    site.broken = False
    sent = payload("RFIs.update", id="1")
    assert site.deliver(sent).json == {"received": True}
    site.work()
    site.clock.forward(100)
    assert sum(prune_bodies(site.store, site.clock(), dead=True)) == 1

    again = site.deliver({**sent, "more": "another body"})
    assert again.json == {"received": True, "duplicate": True}
    (row,) = queries.newest(site.store)
    assert (row["status"], row["repeats"], row["conflicts"]) == ("done", 1, 0)
    assert site.row(row["id"])["body"] is None
    assert site.work() == 0
    assert len(site.calls) == 2


def test_copy_of_a_pruned_dead_event_restores_its_body(site: Site) -> None:
    site.subscribe_good_and_bad()
    sent = payload("RFIs.update", id="1", resource_id=7)
    site.deliver(sent)
    site.work()
    site.clock.forward(100)
    assert sum(prune_bodies(site.store, site.clock(), dead=True)) == 1

    site.broken = False
    site.calls.clear()
    site.clock.forward(100)
    assert site.deliver(sent).json == {"received": True, "duplicate": True}
    (row,) = queries.newest(site.store)
    assert (row["status"], row["repeats"], row["conflicts"]) == ("pending", 1, 0)
    assert b'"resource_id":7' in site.row(row["id"])["body"]
    assert site.work() == 1
    assert site.calls == [("bad", "1")]
    assert site.statuses() == ["done"]


def test_copy_of_a_removed_event_is_a_new_event(site: Site) -> None:
    site.subscribe_good_and_bad()
    site.broken = False
    sent = payload("RFIs.update", id="1")
    for _ in range(2):
        assert site.deliver(sent).json == {"received": True}
        assert site.work() == 1
        site.clock.forward(100)
        assert sum(prune_rows(site.store, site.clock(), dead=False)) == 1
    assert site.calls == [("good", "1"), ("bad", "1")] * 2


@every_prune
def test_pruning_an_empty_inbox_removes_nothing(
    site: Site, prune: Callable[..., Iterator[int]]
) -> None:
    assert sum(prune(site.store, site.clock(), dead=True)) == 0


@pytest.mark.slow
@every_prune
def test_deliveries_are_accepted_during_a_large_prune(
    site: Site, prune: Callable[..., Iterator[int]]
) -> None:
    site.subscribe_good_and_bad()
    site.broken = False
    old = add_finished(site, 6 * BATCH, age=1000)
    kept = add_finished(site, BATCH // 2, name="kept")
    before = site.clock() - timedelta(seconds=500)
    pruned = threading.Event()
    answers: Counter[tuple[str, int]] = Counter()
    lock = threading.Lock()

    def send(kind: str) -> int:
        number = 0
        while not pruned.is_set() or number < 10:
            # Events that prune removes, from the first on: some are removed already.
            index = number if kind == "new" else number * 7 % len(old)
            answer = site.deliver({"id": f"{kind}{index}", "type": "RFIs.update"})
            with lock:
                answers[kind, answer.status_code] += 1
            number += 1
        return number

    def run_events(_: str) -> int:
        ran = 0
        while not pruned.is_set():
            ran += site.work()
            pruned.wait(0.02)
        return ran

    def remove(_: str) -> int:
        try:
            return sum(prune(site.store, before, dead=False))
        finally:
            pruned.set()

    jobs: list[tuple[Callable[[str], int], str]] = [
        (remove, ""),
        (send, "new"),
        (send, "old"),
        (send, "kept"),
        (run_events, ""),
    ]
    removed, *_ = at_once(lambda job: job[0](job[1]), jobs)
    assert {status for _, status in answers} == {200}
    assert removed == len(old)
    assert all(is_there(site, row, prune) for row in kept)
    assert not any(is_there(site, row, prune) for row in old)
    site.work()
    assert set(site.statuses()) == {"done"}


def test_copy_concurrent_with_the_removal_of_its_row_is_accepted(site: Site) -> None:
    """The row is removed between the failed insert and the update."""
    site.webhooks.on(name="counts")(lambda event: site.calls.append(event.id))
    sent = payload("RFIs.update", id="1")
    site.send(id="1")
    site.work()
    removed = []

    @sa.event.listens_for(site.store.database.engine, "handle_error")
    def remove(context: sa.engine.ExceptionContext) -> None:
        if isinstance(context.sqlalchemy_exception, sa.exc.IntegrityError):
            removed.append(sum(prune_rows(site.store, later, dead=False)))

    later = site.clock() + timedelta(seconds=1)
    assert site.deliver(sent).json == {"received": True}
    assert removed == [1]
    assert site.work() == 1
    assert site.calls == ["1", "1"]


# Pause


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
    assert worker.run_all() == 1
    assert (site.calls, other.calls) == ([], [1])
    assert (site.statuses(), other.statuses()) == (["pending"], ["done"])

    resume(site.store, ME)
    assert not is_paused(site.store)
    assert worker.run_all() == 1
    assert site.statuses() == ["done"]


def test_one_resume_ends_any_number_of_pauses(site: Site) -> None:
    for _ in range(2):
        for _ in range(3):
            pause(site.store, ME)
        assert is_paused(site.store)
        resume(site.store, ME)
        assert not is_paused(site.store)
    resume(site.store, ME)
    assert not is_paused(site.store)
    journal = site.store.database.tables.journal
    rows = site.store.rows(sa.select(journal).order_by(journal.c.id))
    assert [row.action for row in rows] == [*["pause"] * 3, "resume"] * 2 + ["resume"]
    assert {(row.event, row.actor) for row in rows} == {(None, ME)}


def test_replay_does_not_end_a_pause(site: Site) -> None:
    row = site.send()
    site.work()
    pause(site.store, ME)
    replay(site.store, [row], ME)
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


# The loop filter


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

        assert replay(site.store, [row["id"]], ME) == 1
        # A copy that arrives now does not undo the replay.
        assert site.deliver(own).status_code == 200
        assert site.work() == 1
        assert site.statuses() == ["done", "done"]
        assert len(site.calls) == 4


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
    operations.pause(endpoint.store, "Jürgen@host")
    endpoint.store.database.traits = None
    operations.resume(endpoint.store, "Jürgen@host")
    record_event(endpoint.store, Event("evt_1", "a.b", body=b"{}"), Status.DEAD, "x")
    endpoint.store.database.traits = None
    assert operations.replay(endpoint.store, [1], "Jürgen@host") == 1
    (entry,) = operations.journal_of(endpoint.store, 1)
    assert entry["actor"] == "Jürgen@host"
    with app.app_context():
        db.engine.dispose()
