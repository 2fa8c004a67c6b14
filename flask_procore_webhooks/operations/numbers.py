"""Numbers of an inbox, in the same time whatever its size: no query reads the table.

What is going on comes from the indexes, which hold live and parked events only, and is
counted to :data:`MOST_COUNTED`. What has been comes from the tally.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from datetime import timedelta
from typing import Any
from typing import NamedTuple

from sqlalchemy import case
from sqlalchemy import func
from sqlalchemy import Select
from sqlalchemy import select

from ..inbox.status import JobState
from ..inbox.status import PARKED
from ..inbox.status import Status
from ..storage.store import Store
from .queries import count_rows
from .queries import MOST_COUNTED

#: Windows of the tally, with their seconds.
WINDOWS = {"minute": 60, "hour": 3600, "day": 86400}
#: Newest unmatched events whose types are counted.
NEWEST_UNMATCHED = 1000
#: Weeks whose same hours are compared: a night or a weekend is quiet every week.
WEEKS = 4
#: Weeks with a delivery that make silence an alarm.
USUAL = 2
#: Outcomes of deliveries that were authentic.
ARRIVED = ("recorded", "duplicate", "conflict", "quarantined")


@dataclass(frozen=True)
class Live:
    """How many events are live or parked, by their status, and how many jobs dead."""

    events: dict[str, int]
    #: Those of pending events included.
    dead_jobs: int
    #: The names of numbers beyond those that were counted.
    capped: frozenset[str]


def live_numbers(store: Store) -> Live:
    """Count the events that are live or parked, and dead jobs, to MOST_COUNTED each."""
    numbers = {Status.PENDING.value: 0, Status.RUNNING.value: 0}
    c = store.columns
    # Running ones first: their leases end in the future.
    query = select(c.status).where(c.endpoint == store.endpoint, c.due_at.is_not(None))
    part = query.order_by(c.due_at.desc()).limit(MOST_COUNTED + 1).subquery()
    counted = select(part.c.status, func.count().label("events"))
    numbers |= {r.status: r.events for r in store.rows(counted.group_by(part.c.status))}
    capped = set(numbers) if sum(numbers.values()) > MOST_COUNTED else set()
    j = store.database.tables.job.c
    dead = select(j.event).where(j.endpoint == store.endpoint, j.dead_at.is_not(None))
    queries = {status.value: _parked(store, status) for status in PARKED}
    for name, query in {**queries, "dead_jobs": dead}.items():
        numbers[name] = count_rows(store, query, MOST_COUNTED)
        capped |= {name} if numbers[name] > MOST_COUNTED else set()
    numbers = {name: min(number, MOST_COUNTED) for name, number in numbers.items()}
    dead_jobs = numbers.pop("dead_jobs")
    return Live(numbers, dead_jobs, frozenset(capped))


def _parked(store: Store, status: Status) -> Select[Any]:
    c = store.columns
    return select(c.id).where(
        c.endpoint == store.endpoint,
        c.status == status.value,
        c.parked_at.is_not(None),
    )


#: Type, resource type and reason, with the number of such events.
Types = Counter[tuple[str, str, str]]


def unmatched_types(store: Store) -> Types:
    """The types of the newest unmatched events."""
    c = store.columns
    columns = (c.type, c.resource_type, c.reason)
    query = _parked(store, Status.UNMATCHED).with_only_columns(*columns)
    part = query.order_by(c.parked_at.desc()).limit(NEWEST_UNMATCHED).subquery().c
    return _count_types(store, select(part.type, part.resource_type, part.reason))


def recorded_types(store: Store, rows: int) -> Types:
    """The types of the newest events.

    :param rows: of all endpoints of the inbox that are read at most.
    """
    c = store.columns
    columns = (c.endpoint, c.type, c.resource_type, c.reason)
    part = select(*columns).order_by(c.id.desc()).limit(rows).subquery().c
    query = select(part.type, part.resource_type, part.reason)
    mine = part.endpoint == store.endpoint
    return _count_types(store, query.where(mine, part.type != ""))


def _count_types(store: Store, query: Select[Any]) -> Types:
    names = list(query.selected_columns)
    counted = query.add_columns(func.count().label("events")).group_by(*names)
    return Counter(
        {
            (row.type, row.resource_type or "", row.reason or ""): row.events
            for row in store.rows(counted)
        }
    )


def history(store: Store) -> dict[str, dict[str, int]]:
    """The sums of the tally, by outcome and window.

    A window has whole minutes, and the minute that is going on. The tally is written
    every ten seconds.
    """
    t, now = store.database.tables.tally.c, store.db_now()
    minute = now.replace(second=0, microsecond=0)
    starts = {n: minute - timedelta(seconds=size) for n, size in WINDOWS.items()}
    sums = [
        func.sum(case((t.minute >= start, t.count), else_=0)).label(name)
        for name, start in starts.items()
    ]
    query = select(t.outcome, *sums).where(
        t.endpoint == store.endpoint, t.minute >= min(starts.values())
    )
    found = store.rows(query.group_by(t.outcome).order_by(t.outcome))
    return {r.outcome: {name: int(r._mapping[name]) for name in WINDOWS} for r in found}


def seconds_due(store: Store) -> float | None:
    """For how many seconds the oldest due event has been due; ``None`` without one."""
    c, now = store.columns, store.db_now()
    query = select(c.due_at).where(c.endpoint == store.endpoint, c.due_at <= now)
    found = store.rows(query.order_by(c.due_at).limit(1))
    return (now - found[0].due_at).total_seconds() if found else None


def next_retry(store: Store) -> datetime | None:
    """When the next event is due that is not due yet; ``None`` without one."""
    c, now = store.columns, store.db_now()
    query = select(c.due_at).where(
        c.endpoint == store.endpoint,
        c.due_at > now,
        c.status == Status.PENDING.value,
    )
    for row in store.rows(query.order_by(c.due_at).limit(1)):
        found: datetime = row.due_at
        return found
    return None


def abandoned(store: Store, seconds: float) -> int:
    """How many running events have a lease that ended so many seconds ago."""
    c = store.columns
    query = select(c.id).where(
        c.endpoint == store.endpoint,
        c.status == Status.RUNNING.value,
        c.due_at <= store.db_now() - timedelta(seconds=seconds),
    )
    return count_rows(store, query, MOST_COUNTED)


def pending_jobs(store: Store) -> Counter[tuple[str, str]]:
    """The numbers of pending jobs by subscriber and by what they wait for.

    Of the events that are due first, at most :data:`MOST_COUNTED`.
    """
    c, j = store.columns, store.database.tables.job.c
    query = select(c.id).where(c.endpoint == store.endpoint, c.due_at.is_not(None))
    part = query.order_by(c.due_at).limit(MOST_COUNTED).subquery()
    jobs = select(j.subscriber, j.waits_for, func.count().label("jobs"))
    jobs = jobs.join_from(part, j.event.table, j.event == part.c.id)
    jobs = jobs.where(j.state == JobState.PENDING.value)
    found = store.rows(jobs.group_by(j.subscriber, j.waits_for))
    return Counter({(row.subscriber, row.waits_for or ""): row.jobs for row in found})


class Silence(NamedTuple):
    """The deliveries of the last hours, and of the same hours of earlier weeks."""

    seconds: float
    deliveries: int
    #: The week before first.
    weeks_before: list[int]
    is_alarm: bool


def silence_of(store: Store, seconds: float) -> Silence:
    """Compare the last hours with the same hours of the four weeks before.

    Alarm: no delivery now, and at least one in the same hours of two of the last four
    weeks. The tally is written every ten seconds.
    """
    now = store.db_now()
    counts = [
        _deliveries(store, seconds, now - timedelta(weeks=week))
        for week in range(WEEKS + 1)
    ]
    first = _first_minute(store)
    known = [
        count
        for week, count in enumerate(counts)
        if week and first and first <= now - timedelta(weeks=week, seconds=seconds)
    ]
    is_alarm = not counts[0] and sum(count > 0 for count in known) >= USUAL
    return Silence(seconds, counts[0], known, is_alarm)


def _deliveries(store: Store, seconds: float, until: datetime) -> int:
    """How many arrived in the seconds before a time, as it is stored."""
    t = store.database.tables.tally.c
    query = select(func.sum(t.count)).where(
        t.endpoint == store.endpoint,
        t.outcome.in_(ARRIVED),
        t.minute > until - timedelta(seconds=seconds),
        t.minute <= until,
    )
    return int(store.rows(query)[0][0] or 0)


def _first_minute(store: Store) -> datetime | None:
    """The first minute that the tally has of the endpoint."""
    t = store.database.tables.tally.c
    query = select(func.min(t.minute)).where(t.endpoint == store.endpoint)
    found: datetime | None = store.rows(query)[0][0]
    return found
