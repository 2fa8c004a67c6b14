"""Queries of lists: which rows they read, on every database."""

from __future__ import annotations

from datetime import datetime
from datetime import timedelta
from datetime import timezone

import pytest
import sqlalchemy as sa
from support.sites import add_finished
from support.sites import Site

from flask_procore_webhooks.operations.filters import Filter
from flask_procore_webhooks.operations.queries import count_events
from flask_procore_webhooks.operations.queries import EXAMINED
from flask_procore_webhooks.operations.queries import newest

HOUR = timedelta(hours=1)


def add_one_an_hour(site: Site, number: int) -> dict[int, datetime]:
    """Receive events, some while the clock is wrong; return their times by row id."""
    times = {}
    for each in range(number):
        wrong = 0 if each % 7 else (0, -11, 11)[each % 3]
        site.clock.forward(wrong * 3600)
        (row,) = add_finished(site, 1, name=f"{each}-")
        times[row] = site.clock()
        site.clock.forward((1 - wrong) * 3600)
    return times


def test_time_selects_events_also_while_clocks_are_wrong(site: Site) -> None:
    times = add_one_an_hour(site, 200)
    for hours in (0, 1, 30, 150, 199, 300):
        then = site.clock() - hours * HOUR
        before = then - 40 * HOUR
        for wanted, expected in (
            (Filter(since=then), {r for r, at in times.items() if at >= then}),
            (Filter(until=then), {r for r, at in times.items() if at < then}),
            (
                Filter(since=before, until=then),
                {r for r, at in times.items() if before <= at < then},
            ),
        ):
            rows = newest(site.store, wanted, limit=1000)
            assert {row["id"] for row in rows} == expected
            assert count_events(site.store, wanted) == (len(expected), False)


@pytest.mark.parametrize("events", [0, 3])
def test_time_is_any_time_of_the_calendar(site: Site, events: int) -> None:
    if events:
        add_finished(site, events)
    first, last = (datetime(y, 1, 1, tzinfo=timezone.utc) for y in (1, 9999))
    last += timedelta(days=364)
    whole = Filter(since=first, until=last)
    assert count_events(site.store, whole) == (events, False)
    assert count_events(site.store, Filter(since=last)) == (0, False)
    assert count_events(site.store, Filter(until=first)) == (0, False)


def test_events_that_no_index_finds_are_counted_among_the_newest(site: Site) -> None:
    rows = add_finished(site, 4)
    c, wanted = site.events.c, Filter(type="RFIs.update")
    assert count_events(site.store, wanted) == (4, False)
    with site.store.connection() as connection:
        for row in rows[1:]:
            move = sa.update(site.events).where(c.id == row)
            connection.execute(move.values(id=row + EXAMINED))
    assert count_events(site.store, wanted) == (3, True)
    assert len(newest(site.store, wanted)) == 4
    assert count_events(site.store, Filter(resource_id="1")) == (0, False)
    assert count_events(site.store, Filter(statuses=("dead",))) == (0, False)
