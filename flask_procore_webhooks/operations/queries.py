"""Queries for operators: list, find, group errors. They change nothing."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from datetime import datetime
from datetime import timedelta
from typing import Any

from sqlalchemy import asc
from sqlalchemy import ColumnElement
from sqlalchemy import desc
from sqlalchemy import func
from sqlalchemy import or_
from sqlalchemy import Select
from sqlalchemy import select

from ..inbox.jobs import RETRY_LATER
from ..inbox.status import JobState
from ..senders.payload import event_key
from ..senders.payload import PLAIN_ID
from ..storage.masks import mask
from ..storage.masks import READ
from ..storage.store import Store
from ..storage.store import to_db_time
from .filters import EVERY_EVENT
from .filters import Filter

#: Events are counted up to this number.
MOST_COUNTED = 10_000
#: Newest row ids among which events are counted that no index finds.
EXAMINED = 100_000
#: Row ids rise with the time of receipt, if no clock was wrong by half of this.
CLOCK_ERROR = timedelta(days=1)
#: Dead jobs, and live events, whose errors are grouped.
MOST_GROUPED = 100_000


def newest(
    store: Store,
    wanted: Filter = EVERY_EVENT,
    *,
    limit: int = 20,
    oldest_first: bool = False,
) -> list[Mapping[str, Any]]:
    """The newest events first, without their bodies.

    ``attempts`` is the largest number of attempts of one of the event's jobs.
    """
    c, j = store.columns, store.database.tables.job.c
    hidden = ("body", "lease", "attempts")
    columns = [column for column in c if column.name not in hidden]
    order = asc if oldest_first else desc
    query = select(*columns).where(wanted.where(store), *_within(store, wanted))
    query = query.order_by(order(c.id))
    # The jobs of these events only, also where a database sorts all events first.
    page = query.limit(limit).subquery()
    most = select(func.max(j.attempts)).where(j.event == page.c.id).scalar_subquery()
    attempts = func.coalesce(most, 0).label("attempts")
    found = store.rows(select(*page.c, attempts).order_by(order(page.c.id)))
    return [row._mapping for row in found]


def count_events(store: Store, wanted: Filter = EVERY_EVENT) -> tuple[int, bool]:
    """How many events are selected, and whether there may be more.

    Counted to :data:`MOST_COUNTED`; those that no index finds, among the newest
    :data:`EXAMINED` of the time that is selected.
    """
    c, within = store.columns, _within(store, wanted)
    part = select(c.id).where(wanted.where(store), *within)
    first = 0
    if not wanted.has_index:
        last = store.rows(select(func.max(c.id)).where(*within))[0][0] or 0
        first = max(0, last - EXAMINED)
    number = count_rows(store, part.where(c.id > first), MOST_COUNTED)
    if number > MOST_COUNTED:
        return MOST_COUNTED, True
    older = select(c.id).where(c.id <= first, *within).limit(1)
    return number, bool(first and store.rows(older))


def _within(store: Store, wanted: Filter) -> list[ColumnElement[bool]]:
    """The range of row ids that has the events of the filter's time."""
    row_id, found = store.columns.id, list[ColumnElement[bool]]()
    if wanted.since:
        found.append(row_id >= _row_at(store, wanted.since, -CLOCK_ERROR))
    if wanted.until:
        found.append(row_id < _row_at(store, wanted.until, CLOCK_ERROR))
    return found


def _row_at(store: Store, when: datetime, error: timedelta) -> int:
    """The row id from which on events were received at ``when + error`` or later."""
    c, then = store.columns, to_db_time(when)
    with suppress(OverflowError):  # before the first year of the calendar
        then += error

    def received_at(row_id: int) -> datetime:
        query = select(c.received_at).where(c.id >= row_id).order_by(c.id).limit(1)
        found: datetime = store.rows(query)[0][0]
        return found

    newest = store.rows(select(func.max(c.id)))[0][0]
    return bisect_left(range((newest or -1) + 1), then, key=received_at)


def count_rows(store: Store, query: Select[Any], most: int) -> int:
    """How many rows ``query`` selects; above ``most``, one more than that."""
    part = query.limit(most + 1).subquery()
    return int(store.rows(select(func.count()).select_from(part))[0][0])


def last_delivery(store: Store) -> datetime | None:
    """When the newest delivered event was recorded, UTC without a zone."""
    c = store.columns
    mine = c.endpoint == store.endpoint, c.origin == "delivery"
    query = select(c.received_at).where(*mine).order_by(c.id.desc()).limit(1)
    return next((row.received_at for row in store.rows(query)), None)


def find(store: Store, event_id: str) -> Mapping[str, Any] | None:
    """The whole row of an event, by its id or by its row id."""
    c = store.columns
    # The id as the sender wrote it, or as it is stored.
    stored = {event_key(event_id, "", b"")}
    if PLAIN_ID.fullmatch(event_id):
        stored.add(event_id)
    named: list[ColumnElement[bool]] = [c.event_id.in_(stored)]
    if event_id.isascii() and event_id.isdigit() and len(event_id) < 19:
        named.append(c.id == int(event_id))
    query = select(*c).where(c.endpoint == store.endpoint, or_(*named))
    rows = store.rows(query.order_by(c.event_id.not_in(stored)))
    return dict(rows[0]._mapping) if rows else None


def jobs_of(store: Store, row_id: int) -> list[dict[str, Any]]:
    """The rows of an event's jobs, in the order of their subscribers' names."""
    j = store.database.tables.job.c
    columns = [each for each in j if each.name not in ("event", "endpoint")]
    query = select(*columns).where(j.event == row_id).order_by(j.subscriber)
    return [dict(row._mapping) for row in store.rows(query)]


@dataclass
class Incident:
    """The failed jobs of one subscriber with one class of error and masked message."""

    endpoint: str
    subscriber: str
    error_class: str
    message: str
    count: int = 0
    first_seen: datetime = datetime.max
    last_seen: datetime = datetime.min
    types: set[str] = field(default_factory=set)
    #: The id of the event that failed last.
    event_id: str = ""

    def add(self, job: Any) -> None:
        self.count += 1
        self.types.add(job.type)
        self.first_seen = min(self.first_seen, job.seen_at)
        if job.seen_at >= self.last_seen:
            self.last_seen, self.event_id = job.seen_at, job.event_id


def incidents(
    store: Store, wanted: Filter = EVERY_EVENT, most: int = MOST_GROUPED
) -> tuple[list[Incident], bool]:
    """Group the dead jobs, and the pending ones with an error; the most frequent first.

    :param most: dead jobs that are read at most, the newest, and live events, the
        first that are due.
    :return: also whether there are more.
    """
    groups: dict[tuple[str, str, str], Incident] = {}
    dead, live = _dead_jobs(store, wanted), _live_events(store, wanted)
    jobs = store.rows(_with_events(store, wanted, dead, most))
    for job in jobs + store.rows(_failed(store, wanted, live, most)):
        key = (job.subscriber, job.error_class or "", mask(job.error))
        group = groups.setdefault(key, Incident(store.endpoint, *key))
        group.add(job)
    found = sorted(groups.values(), key=lambda each: each.last_seen, reverse=True)
    found.sort(key=lambda each: each.count, reverse=True)
    return found, any(count_rows(store, each, most) > most for each in (dead, live))


def _dead_jobs(store: Store, wanted: Filter) -> Select[Any]:
    j = store.database.tables.job.c
    query = select(*_columns(store), j.event, j.dead_at.label("seen_at"))
    query = query.where(wanted.job_where(store), j.dead_at.is_not(None))
    return query.order_by(j.dead_at.desc())


def _live_events(store: Store, wanted: Filter) -> Select[Any]:
    c = store.columns
    query = select(c.id, c.type, c.event_id, c.received_at)
    query = query.where(_of_events(wanted).where(store), c.due_at.is_not(None))
    return query.order_by(c.due_at)


def _with_events(
    store: Store, wanted: Filter, dead: Select[Any], most: int
) -> Select[Any]:
    """The jobs with type and id of their events."""
    # Limited within, so that no database begins with the events.
    job, c = dead.limit(most).subquery(), store.columns
    query = select(*job.c, c.type, c.event_id).join_from(
        job, c.id.table, c.id == job.c.event
    )
    return query.where(_of_events(wanted).where(store))


def _failed(store: Store, wanted: Filter, live: Select[Any], most: int) -> Select[Any]:
    """The pending jobs of the events whose last attempt has failed.

    The error of a job that was postponed says why, and is no failure.
    """
    event, j = live.limit(most).subquery(), store.database.tables.job.c
    seen_at = func.coalesce(j.started_at, event.c.received_at).label("seen_at")
    query = select(*_columns(store), seen_at, event.c.type, event.c.event_id)
    query = query.join_from(event, j.event.table, j.event == event.c.id)
    return query.where(
        wanted.job_where(store),
        j.state == JobState.PENDING.value,
        or_(j.error.is_not(None), j.error_class.is_not(None)),
        func.coalesce(j.error_class, "") != RETRY_LATER,
    )


def _columns(store: Store) -> list[ColumnElement[Any]]:
    j = store.database.tables.job.c
    return [
        j.subscriber,
        j.error_class,
        func.substr(j.error, 1, READ + 1).label("error"),
    ]


def _of_events(wanted: Filter) -> Filter:
    """The part of the filter that is about events and not about their jobs."""
    return replace(wanted, subscriber=None, error=None, died_since=None)
