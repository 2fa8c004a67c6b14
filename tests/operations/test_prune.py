"""Prunes on every database."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta

import pytest
import sqlalchemy as sa
from support.jobs import add_event
from support.jobs import jobs_of
from support.jobs import set_event
from support.sites import add_finished
from support.sites import at_once
from support.sites import Site

from flask_procore_webhooks.errors import InboxUnavailable
from flask_procore_webhooks.inbox import claims
from flask_procore_webhooks.inbox.claims import Settlement
from flask_procore_webhooks.inbox.status import Status
from flask_procore_webhooks.operations import queries
from flask_procore_webhooks.operations.changes import replay
from flask_procore_webhooks.operations.filters import Filter
from flask_procore_webhooks.operations.journal import entries
from flask_procore_webhooks.operations.journal import journal_of
from flask_procore_webhooks.operations.pauses import pause
from flask_procore_webhooks.operations.prune import count_bodies
from flask_procore_webhooks.operations.prune import count_rows
from flask_procore_webhooks.operations.prune import Old
from flask_procore_webhooks.operations.prune import prune_bodies
from flask_procore_webhooks.operations.prune import prune_history
from flask_procore_webhooks.operations.prune import prune_rows
from flask_procore_webhooks.operations.prune import prune_seen
from flask_procore_webhooks.operations.seen import put_state
from flask_procore_webhooks.operations.seen import states
from flask_procore_webhooks.operations.selection import PART
from flask_procore_webhooks.schema.marks import BODIES
from flask_procore_webhooks.schema.marks import read_mark
from flask_procore_webhooks.schema.state import WHOLE_INBOX
from flask_procore_webhooks.storage.store import Store
from flask_procore_webhooks.testing import payload

ME = "me@here"
MINUTE = timedelta(minutes=1)
Prune = Callable[[Store, Old], Iterator[int]]

# Prune


PRUNES: dict[str, Prune] = {
    "bodies": prune_bodies,
    "rows": prune_rows,
}
every_prune = pytest.mark.parametrize("prune", PRUNES.values(), ids=PRUNES)


def is_there(site: Site, row: int, prune: object) -> bool:
    c = site.events.c
    found = site.store.rows(sa.select(c.body).where(c.id == row))
    return bool(found) and (prune is prune_rows or found[0].body is not None)


@every_prune
def test_event_finished_at_the_limit_is_kept(site: Site, prune: Prune) -> None:
    ages = {"before": 100.000001, "then": 100.0, "after": 99.999999}
    rows = {
        name: add_finished(site, 1, age=age, name=name)[0] for name, age in ages.items()
    }
    before = site.clock() - timedelta(seconds=100)
    assert sum(prune(site.store, Old(before))) == 1
    there = {name: is_there(site, row, prune) for name, row in rows.items()}
    assert there == {"before": False, "then": True, "after": True}
    assert sum(prune(site.store, Old(before))) == 0


@every_prune
def test_prune_compares_the_finish_time_not_the_receipt_time(
    site: Site, prune: Prune
) -> None:
    """An event received long ago may have finished just now."""
    row = site.send()
    site.clock.forward(10_000)
    late = site.clock()
    site.work()
    assert sum(prune(site.store, Old(late, True))) == 0
    site.clock.forward(1)
    assert sum(prune(site.store, Old(site.clock(), True))) == 1
    assert not is_there(site, row, prune)


@every_prune
@pytest.mark.parametrize("dead", [False, True])
def test_prune_keeps_dead_events_by_default(
    site: Site, prune: Prune, dead: bool
) -> None:
    for status in (Status.DONE, Status.DEAD, Status.IGNORED):
        add_finished(site, 2, status, age=100, name=status.value)
    assert sum(prune(site.store, Old(site.clock(), dead))) == (6 if dead else 4)
    c = site.events.c
    left = site.store.rows(sa.select(c.status).where(c.body.is_not(None)))
    assert [row.status for row in left] == ([] if dead else ["dead"] * 2)


@every_prune
def test_unfinished_events_are_not_pruned(site: Site, prune: Prune) -> None:
    site.subscribe_good_and_bad()
    site.broken = False
    pending, running, revived = site.send(), site.send(), site.send()
    assert claims.claim(site.store, revived, 1)
    assert claims.settle(
        site.store,
        claims.claim(site.store, running, 1) or pytest.fail("free"),
        Settlement(Status.PENDING, due_at=site.store.db_now() + MINUTE),
    )
    assert claims.claim(site.store, running, 10**6, hurry=True)
    site.clock.forward(10**6)
    assert sum(prune(site.store, Old(site.clock(), True))) == 0
    assert all(is_there(site, row, prune) for row in (pending, running, revived))
    assert site.work() == 3


def test_jobs_and_journal_are_pruned_with_their_event(site: Site) -> None:
    old = add_event(site.store, "old", {"subscriber": "good"}, {"subscriber": "bad"})
    replay(site.store, [old], ME, anew=True)
    end(site, old)
    pause(site.store, ME)
    site.clock.forward(1000)
    then = site.clock()
    young = add_event(site.store, "young", {"subscriber": "good"})
    replay(site.store, [young], ME, anew=True)

    assert sum(prune_rows(site.store, Old(then))) == 1
    assert [row["id"] for row in queries.newest(site.store)] == [young]
    assert (jobs_of(site.store, old), journal_of(site.store, old)) == ({}, [])
    assert list(jobs_of(site.store, young)) == ["good"]
    assert len(journal_of(site.store, young)) == 1
    actions = [row["action"] for row in entries(site.store)]
    assert actions == ["replay", "pause", "replay"]


def end(site: Site, row: int) -> None:
    """End an event and its jobs, as runs do."""
    job = site.store.database.tables.job
    with site.store.connection() as connection:
        mine = sa.update(job).where(job.c.event == row)
        connection.execute(mine.values(state="done", due_at=None))
    now = site.store.db_now()
    set_event(site.store, row, status="done", due_at=None, finished_at=now)


@pytest.mark.parametrize("table", ["job", "journal", "event"])
def test_event_is_removed_with_its_jobs_or_not_at_all(site: Site, table: str) -> None:
    row = add_event(site.store, "old", {"subscriber": "good"})
    replay(site.store, [row], ME, anew=True)
    end(site, row)
    site.clock.forward(100)
    engine = site.store.database.engine

    def fail(connection: object, cursor: object, statement: str, *_: object) -> None:
        if statement.startswith(f"DELETE FROM procore_webhook_{table} "):
            raise RuntimeError("the process ends here")

    sa.event.listen(engine, "after_cursor_execute", fail)
    with pytest.raises(InboxUnavailable, match="the process ends here"):
        list(prune_rows(site.store, Old(site.clock())))
    sa.event.remove(engine, "after_cursor_execute", fail)
    assert [site.count(name) for name in ("event", "job", "journal")] == [1, 1, 2]
    assert sum(prune_rows(site.store, Old(site.clock()))) == 1
    assert [site.count(name) for name in ("event", "job", "journal")] == [0, 0, 1]


def test_partial_prune_can_be_repeated(site: Site) -> None:
    add_finished(site, 2 * PART, age=100)
    with closing(prune_rows(site.store, Old(site.clock()))) as some:
        assert next(some) == PART
    assert site.count("event") == PART
    assert sum(prune_rows(site.store, Old(site.clock()))) == PART
    assert site.count("event") == 0


def test_copy_of_a_pruned_event_is_still_a_duplicate(site: Site) -> None:
    site.subscribe_good_and_bad()
    site.broken = False
    sent = payload("RFIs.update", id="1")
    assert site.deliver(sent).json == {"received": True}
    site.work()
    site.clock.forward(100)
    assert sum(prune_bodies(site.store, Old(site.clock(), True))) == 1

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
    assert sum(prune_bodies(site.store, Old(site.clock(), True))) == 1

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
        assert sum(prune_rows(site.store, Old(site.clock()))) == 1
    assert site.calls == [("good", "1"), ("bad", "1")] * 2


@every_prune
def test_pruning_an_empty_inbox_removes_nothing(site: Site, prune: Prune) -> None:
    assert sum(prune(site.store, Old(site.clock(), True))) == 0


@pytest.mark.seldom("postgresql-bodies", "mariadb-rows")
@pytest.mark.slow
@every_prune
def test_deliveries_are_accepted_during_a_large_prune(site: Site, prune: Prune) -> None:
    site.subscribe_good_and_bad()
    site.broken = False
    old = add_finished(site, 6 * PART, age=1000)
    kept = add_finished(site, PART // 2, name="kept")
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
            return sum(prune(site.store, Old(before)))
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
            removed.append(sum(prune_rows(site.store, Old(later))))

    later = site.clock() + timedelta(seconds=1)
    assert site.deliver(sent).json == {"received": True}
    assert removed == [1]
    assert site.work() == 1
    assert site.calls == ["1", "1"]


# What else is pruned


def test_counts_tell_what_a_prune_removes(site: Site) -> None:
    add_finished(site, 3, age=100)
    add_finished(site, 2, Status.DEAD, age=100, name="dead")
    add_finished(site, 1, name="young")
    for old in (Old(site.clock()), Old(site.clock(), dead=True)):
        number = 5 if old.dead else 3
        assert (count_bodies(site.store, old), count_rows(site.store, old)) == (
            number,
            number,
        )
    assert sum(prune_bodies(site.store, Old(site.clock()))) == 3
    assert count_bodies(site.store, Old(site.clock())) == 0
    assert count_rows(site.store, Old(site.clock())) == 3


def test_bodies_of_a_type_or_of_a_subscriber_alone_are_pruned(site: Site) -> None:
    mail, sync = {"subscriber": "mail"}, {"subscriber": "sync"}
    rows = [
        add_event(site.store, "1", mail),
        add_event(site.store, "2", mail, sync),
        add_event(site.store, "3", mail, resource_type="Submittals"),
    ]
    site.clock.forward(10)

    def left(wanted: Filter) -> list[bool]:
        old = Old(site.clock(), wanted=wanted)
        expected = count_bodies(site.store, old)
        assert sum(prune_bodies(site.store, old)) == expected
        return [site.row(row)["body"] is not None for row in rows]

    assert left(Filter(type="rfis.UPDATE", subscriber="mail")) == [False, True, True]
    assert left(Filter(subscriber="mail")) == [False, True, False]
    assert left(Filter(resource_type="RFIs")) == [False, False, False]


def test_prune_examines_what_it_left_and_what_came_since(site: Site) -> None:
    add_finished(site, PART + 10, age=100)
    (dead,) = add_finished(site, 1, Status.DEAD, age=100, name="dead")
    last = add_finished(site, PART, age=100, name="more")[-1]
    add_finished(site, 1, name="young")
    old = Old(site.clock() - timedelta(seconds=50))
    assert list(prune_bodies(site.store, old)) == [PART, PART, 10]
    with site.store.connection() as connection:
        tables = site.store.database.tables
        mark = read_mark(connection, tables, site.store.endpoint, BODIES)
    assert (mark.row, mark.left) == (last, (dead,))
    assert list(prune_bodies(site.store, old)) == []
    with_dead = Old(old.before, dead=True)
    assert count_bodies(site.store, with_dead) == 1
    assert list(prune_bodies(site.store, with_dead)) == [1]
    assert count_bodies(site.store, with_dead) == 0


def test_history_is_pruned_with_its_age(two_sites: tuple[Site, Site]) -> None:
    one, other = two_sites
    for site in two_sites:
        row = add_event(site.store, "1", {"subscriber": "sync"})
        replay(site.store, [row], ME, anew=True)
        add_history(site, "old")
    one.clock.forward(1000)
    for site in two_sites:
        pause(site.store, ME)
        add_history(site, "young")
    before = one.clock() - timedelta(seconds=10)
    # The replay, a count, and three keys.
    assert prune_history(one.store, before) == 5
    assert prune_history(one.store, before) == 0
    found = [[row["action"] for row in entries(site.store)] for site in two_sites]
    assert found == [["pause"], ["pause", "replay"]]
    assert len(journal_of(one.store, 1)) == 1, "its event is there"
    used = ["held old", "held young", "plain young", "undone young", "waits young"]
    assert keys(one) == used
    assert keys(other) == sorted([*used, "plain old", "undone old", "waits old"])
    tally = one.store.database.tables.tally.c
    minutes = one.store.rows(sa.select(tally.endpoint))
    assert sorted(row.endpoint for row in minutes) == [
        "bolt",
        "bolt",
        "procore_webhooks",
    ]


def keys(site: Site) -> list[str]:
    key = site.store.database.tables.key.c
    query = sa.select(key.key).where(key.endpoint == site.endpoint.name)
    return sorted(row.key for row in site.store.rows(query))


def add_history(site: Site, age: str) -> None:
    """Add a count, and keys: without a use, held, with a wait, never done."""
    tables, now = site.store.database.tables, site.store.db_now()
    row = add_event(site.store, f"held {age}", status="running")
    set_event(site.store, row, lease="x", due_at=now + timedelta(days=9))
    tally = {"endpoint": site.endpoint.name, "minute": now, "outcome": "done"}
    key = {"endpoint": site.endpoint.name, "subscriber": "sync", "began_at": now}
    key |= {"holder": None, "lease": None, "first_at": None}
    with site.store.connection() as connection:
        connection.execute(sa.insert(tables.tally), {**tally, "count": 1})
        connection.execute(
            sa.insert(tables.key),
            [
                {**key, "key": f"plain {age}"},
                {**key, "key": f"held {age}", "holder": row, "lease": "x"},
                {**key, "key": f"waits {age}", "first_at": now},
                {**key, "key": f"undone {age}", "first_at": now, "began_at": None},
            ],
        )


def test_notes_of_processes_are_pruned_after_a_day(site: Site) -> None:
    put_state(site.store, "seen:a:1:1", {}, endpoint=WHOLE_INBOX)
    site.clock.forward(24 * 3600 + 1)
    put_state(site.store, "seen:a:2:1", {}, endpoint=WHOLE_INBOX)
    assert prune_seen(site.store) == 1
    assert [each["name"] for each in states(site.store, "seen:")] == ["seen:a:2:1"]
