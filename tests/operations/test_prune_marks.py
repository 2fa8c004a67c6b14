"""The mark of a prune: it removes what a prune without a mark would remove."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta

import pytest
import sqlalchemy as sa
from support.jobs import set_event
from support.sites import add_finished
from support.sites import at_once
from support.sites import Site

from flask_procore_webhooks.inbox.status import Status
from flask_procore_webhooks.operations.changes import replay
from flask_procore_webhooks.operations.filters import Filter
from flask_procore_webhooks.operations.prune import count_bodies
from flask_procore_webhooks.operations.prune import count_rows
from flask_procore_webhooks.operations.prune import Old
from flask_procore_webhooks.operations.prune import prune_bodies
from flask_procore_webhooks.operations.prune import prune_rows
from flask_procore_webhooks.schema.marks import BODIES
from flask_procore_webhooks.schema.marks import Mark
from flask_procore_webhooks.schema.marks import move_mark
from flask_procore_webhooks.schema.marks import PART
from flask_procore_webhooks.schema.marks import read_mark
from flask_procore_webhooks.storage.store import Store

HOUR = 3600.0
STEPS = 100


class History:
    """Random events, ends, replays, late copies, clocks and prunes of one endpoint."""

    def __init__(self, site: Site, dice: random.Random) -> None:
        self.site, self.dice, self.made = site, dice, 0
        self.steps: list[Callable[[], object]] = [
            *[self.receive] * 4,
            *[self.wait] * 4,
            *[self.end] * 2,
            self.jump,
            self.replay,
            self.repeat,
            *[self.prune] * 3,
        ]

    def step(self) -> None:
        self.dice.choice(self.steps)()

    def receive(self) -> None:
        """Events come in, and some of them end at once."""
        for _ in range(self.dice.randrange(6)):
            self.made += 1
            status = self.dice.choice([*Status])
            (row,) = add_finished(self.site, 1, status, name=f"{self.made}-")
            if status in (Status.PENDING, Status.RUNNING):
                self._revise(row, Status.PENDING)

    def end(self) -> None:
        for row in self._rows("pending", 2):
            ends = [Status.DONE, Status.DEAD, Status.UNMATCHED]
            self._revise(row, self.dice.choice(ends))

    def replay(self) -> None:
        replay(self.site.store, self._rows("dead", 3), "me@here")

    def repeat(self) -> None:
        """Late copies of parked events revive them, with their bodies."""
        c = self.site.events.c
        for row in self._rows("dead", 2) + self._rows("unmatched", 2):
            ((event_id,),) = self.site.store.rows(
                sa.select(c.event_id).where(c.id == row)
            )
            sent = {"id": event_id, "type": "RFIs.update"}
            assert self.site.deliver(sent).status_code == 200

    def wait(self) -> None:
        self.site.clock.forward(self.dice.uniform(0, 30 * HOUR))

    def jump(self) -> None:
        """The clock is wrong for a while: events have times of another day."""
        seconds = self.dice.choice([-40, -10, 10, 40]) * HOUR
        self.site.clock.forward(seconds)
        self.receive()
        self.end()
        if self.dice.random() < 0.3:
            self.prune()
        self.site.clock.forward(-seconds)

    def prune(self) -> None:
        retention = timedelta(hours=self.dice.choice([12, 24, 48, 96]))
        dead, now = self.dice.random() < 0.3, self.site.clock()
        wanted = self.dice.choice([Filter(), Filter(), Filter(type="RFIs.update")])
        self._prune_exactly(Old(now - retention, dead, wanted), of_bodies=True)
        if wanted == Filter():
            self._prune_exactly(Old(now - 4 * retention, dead), of_bodies=False)

    def _prune_exactly(self, old: Old, *, of_bodies: bool) -> None:
        store, c = self.site.store, self.site.events.c
        has_body = [c.body.is_not(None)] if of_bodies else []
        query = sa.select(c.id).where(old.where(store), *has_body)
        count, prune = (
            (count_bodies, prune_bodies) if of_bodies else (count_rows, prune_rows)
        )
        all_before = self._all(*has_body)
        expected = {row.id for row in store.rows(query)}
        assert count(store, old) == len(expected)
        assert sum(prune(store, old)) == len(expected)
        assert all_before - self._all(*has_body) == expected

    def _all(self, *where: sa.ColumnElement[bool]) -> set[int]:
        """The events of both endpoints."""
        rows = self.site.store.rows(sa.select(self.site.events.c.id).where(*where))
        return {row.id for row in rows}

    def _rows(self, status: str, most: int) -> list[int]:
        c = self.site.events.c
        mine = c.endpoint == self.site.store.endpoint, c.status == status
        rows = [row.id for row in self.site.store.rows(sa.select(c.id).where(*mine))]
        return self.dice.sample(rows, min(len(rows), most))

    def _revise(self, row: int, status: Status) -> None:
        store, now = self.site.store, self.site.store.db_now()
        is_live, is_parked = status is Status.PENDING, status is not Status.DONE
        set_event(
            store,
            row,
            status=status.value,
            due_at=now if is_live else None,
            finished_at=None if is_live else now,
            parked_at=now if is_parked and not is_live else None,
        )
        job = store.database.tables.job
        dead = status is Status.DEAD
        state = {Status.PENDING: "pending", Status.DEAD: "dead"}.get(status, "done")
        change = sa.update(job).where(job.c.event == row)
        with store.connection() as connection:
            connection.execute(
                change.values(state=state, dead_at=now if dead else None)
            )


@pytest.mark.parametrize("seed", range(2))
def test_prunes_with_marks_remove_what_is_old(
    two_sites: tuple[Site, Site], seed: int
) -> None:
    dice = random.Random(seed)
    histories = [History(site, dice) for site in two_sites]
    for _ in range(STEPS):
        dice.choice(histories).step()
    assert all(mark_of(site.store, BODIES).row for site in two_sites)


def mark_of(store: Store, name: str) -> Mark:
    with store.connection() as connection:
        return read_mark(connection, store.database.tables, store.endpoint, name)


def test_body_that_a_late_copy_brought_back_is_pruned_again(site: Site) -> None:
    sent = {"id": "1", "type": "RFIs.update"}
    row = site.send(id="1")
    site.work()
    site.clock.forward(100)
    assert sum(prune_bodies(site.store, Old(site.clock()))) == 1
    add_finished(site, 1, name="young")
    site.webhooks.on()(site.calls.append)
    site.deliver(sent)
    assert site.work() == 1
    assert site.row(row)["body"] is not None
    site.clock.forward(100)
    assert sum(prune_bodies(site.store, Old(site.clock()))) == 2
    assert site.row(row)["body"] is None


def test_mark_with_many_rows_is_read_as_it_was_written(site: Site) -> None:
    left = tuple(range(1, 10 * PART + 2, 3))
    assert move(site.store, mark_of(site.store, BODIES), 10**6, left)
    mark = mark_of(site.store, BODIES)
    assert (mark.row, mark.left) == (10**6, left)
    site.clock.forward(1)
    assert move(site.store, mark, 10**6 + 1, left[:1])
    assert mark_of(site.store, BODIES).left == left[:1]


def test_mark_that_another_prune_has_moved_is_not_moved(site: Site) -> None:
    first = mark_of(site.store, BODIES)
    assert move(site.store, first, 10, (1, 2))
    site.clock.forward(1)
    read = mark_of(site.store, BODIES)
    assert move(site.store, read, 20, (2,))
    assert not move(site.store, read, 30, ())
    found = mark_of(site.store, BODIES)
    assert (found.row, found.left) == (20, (2,))


def move(store: Store, mark: Mark, row: int, left: tuple[int, ...]) -> bool:
    tables, moved = store.database.tables, Mark(mark.name, row, left)
    return store.run(
        lambda each: move_mark(
            each, tables, store.endpoint, mark, moved, store.db_now()
        ),
        begin=True,
    )


def test_concurrent_prunes_leave_nothing_that_is_old(site: Site) -> None:
    add_finished(site, 700, age=1000)
    dead = add_finished(site, 20, Status.DEAD, age=1000, name="dead")
    add_finished(site, 700, age=1000, name="more")
    old = Old(site.clock() - timedelta(seconds=500))
    counts = at_once(lambda each: sum(prune_bodies(each, old)), [site.store] * 3)
    assert sum(counts) == 1400
    # A prune may take note of bodies that another one removes at the same time.
    assert {*mark_of(site.store, BODIES).left} >= {*dead}
    assert sum(prune_bodies(site.store, old)) == 0
    assert mark_of(site.store, BODIES).left == tuple(dead)
    assert sum(prune_bodies(site.store, Old(old.before, dead=True))) == 20
