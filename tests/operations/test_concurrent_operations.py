"""Operations beside runs, deliveries and other operations, on every database."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import sqlalchemy as sa
from flask import Flask
from support.jobs import add_event
from support.jobs import failed
from support.jobs import jobs_of
from support.locks import wait_for_lock_wait
from support.sites import at_once
from support.sites import open_site
from support.sites import Site

from flask_procore_webhooks import Event
from flask_procore_webhooks.errors import InboxUnavailable
from flask_procore_webhooks.operations.changes import discard
from flask_procore_webhooks.operations.changes import replay
from flask_procore_webhooks.operations.journal import journal_of
from flask_procore_webhooks.running.worker import Worker
from flask_procore_webhooks.testing import payload

MakeApp = Callable[..., Flask]
ME = "me@here"
DEAD = failed("sync", "TimeoutError: after 30 s", attempts=12)


def test_concurrent_replays_count_each_event_once(site: Site) -> None:
    rows = [add_event(site.store, f"dead{number}", DEAD) for number in range(30)]

    def work(number: int) -> int:
        mine = rows[:]
        random.Random(number).shuffle(mine)
        return replay(site.store, mine, f"operator {number}")

    assert sum(at_once(work, range(4))) == len(rows)
    assert all(len(journal_of(site.store, row)) == 1 for row in rows)
    jobs = [jobs_of(site.store, row)["sync"] for row in rows]
    assert {(job["state"], job["version"]) for job in jobs} == {("pending", 2)}


def test_operations_never_change_the_jobs_of_a_running_event(site: Site) -> None:
    """Runs take the lease, read the jobs, and find them unchanged before their end."""
    waits = {"subscriber": "mail", "state": "pending", "wait": 600}
    rows = [add_event(site.store, f"{number}", DEAD, waits) for number in range(4)]
    finished = threading.Event()
    lost: list[int] = []

    def operate(number: int) -> int:
        changed = 0
        for turn in range(25):
            act = discard if (turn + number) % 3 == 0 else replay
            changed += act(site.store, rows, ME, **({} if act is discard else ANEW))
        return changed

    def run_events(number: int) -> int:
        ran, turn = 0, number
        while not finished.is_set():
            turn += 1
            ran += _run(site, rows[turn % len(rows)], f"{number}-{turn}", lost)
        return ran

    def start(job: tuple[Callable[[int], int], int]) -> int:
        work, number = job
        try:
            return work(number)
        finally:
            if work is operate:
                finished.set()

    jobs = [(operate, 1), (run_events, 1), (run_events, 2)]
    changed, *ran = at_once(start, jobs)
    assert lost == []
    assert changed > 0 and sum(ran) > 0


ANEW = {"anew": True}


def _run(site: Site, row: int, lease: str, lost: list[int]) -> int:
    """Run a free event; note if its jobs were changed in between.

    :return: 1 if it was free.
    """
    store, event = site.store, site.events
    job = store.database.tables.job
    ends = store.db_now().replace(year=9999)
    free = event.c.id == row, event.c.status != "running"
    taken = event.update().where(*free)
    values = {"status": "running", "lease": lease, "due_at": ends}
    if not store.run(lambda each: each.execute(taken.values(values)).rowcount):
        return 0
    before = jobs_of(store, row)
    site_wait.wait(0.002)
    if jobs_of(store, row) != before:
        lost.append(row)
    ended = {"state": "dead", "due_at": None, "version": job.c.version + 1}
    mine = job.update().where(job.c.event == row).values(ended)
    parked = {"status": "dead", "lease": None, "due_at": None}
    settled = event.update().where(event.c.id == row, event.c.lease == lease)

    def settle(connection: sa.Connection) -> None:
        if connection.execute(settled.values(parked)).rowcount != 1:
            lost.append(row)
        connection.execute(mine)

    store.run(settle, begin=True)
    return 1


#: Is never set: a wait that other threads use.
site_wait = threading.Event()


def test_each_counted_replay_causes_one_run(site: Site) -> None:
    """Replays run beside workers and a sender that repeats the events."""
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
            return replay(site.store, rows, f"{number}", anew=True)
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
