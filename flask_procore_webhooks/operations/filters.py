"""Filter: which events and jobs a command selects. The commands share its options."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import and_
from sqlalchemy import ColumnElement
from sqlalchemy import exists
from sqlalchemy import false
from sqlalchemy import func
from sqlalchemy import or_
from sqlalchemy import select

from ..inbox.record import LONGEST_ERROR
from ..inbox.record import TEXTS
from ..inbox.status import PARKED
from ..inbox.status import Status
from ..senders.payload import SHORT_REASONS
from ..storage.masks import is_masked
from ..storage.masks import pattern_of
from ..storage.store import Store
from ..storage.store import to_db_time
from ..storage.texts import contains
from ..storage.texts import is_one_of
from ..storage.texts import is_same

#: Events with one of these have a due time.
LIVE = (Status.PENDING, Status.RUNNING)

#: These have indexes of their own.
_INDEXED = frozenset(status.value for status in LIVE + PARKED)
_ASCII = re.compile(r"[!-~]*")
_EXACT = ("resource_id", "company_id", "project_id", "user_id")


@dataclass(frozen=True)
class Filter:
    """Selects the events that have every given value.

    With ``subscriber``, ``error`` or ``died_since``, an event is selected if one of its
    jobs has all given ones of the three.
    """

    #: Any of these; all without one.
    statuses: tuple[str, ...] = ()
    #: Whatever the case, as ``resource_type`` and ``reason``.
    type: str | None = None
    resource_type: str | None = None
    #: ``created`` selects what ``create`` does.
    reason: str | None = None
    subscriber: str | None = None
    #: Part of ``error_class: error``, whatever the case, or a masked message.
    error: str | None = None
    project_id: str | None = None
    company_id: str | None = None
    user_id: str | None = None
    resource_id: str | None = None
    #: Received at this time or later; aware.
    since: datetime | None = None
    #: Received before this time; aware.
    until: datetime | None = None
    #: With a job that died at this time or later; aware.
    died_since: datetime | None = None

    @property
    def asks_jobs(self) -> bool:
        """Whether jobs decide which events are selected."""
        return any((self.subscriber, self.error, self.died_since))

    @property
    def has_index(self) -> bool:
        """Whether the selected events are found without reading others."""
        is_indexed = bool(self.statuses) and _INDEXED.issuperset(self.statuses)
        return is_indexed or any((self.resource_id, self.died_since))

    def where(self, store: Store) -> ColumnElement[bool]:
        """The condition for rows of events."""
        return and_(self._is_mine(store), *self._event(store))

    def job_where(self, store: Store) -> ColumnElement[bool]:
        """The condition for rows of jobs, of all events."""
        j = store.database.tables.job.c
        return and_(j.endpoint == store.endpoint, *self._job(store))

    def _is_mine(self, store: Store) -> ColumnElement[bool]:
        mine = store.columns.endpoint == store.endpoint
        is_indexed = self.statuses and _INDEXED.issuperset(self.statuses)
        if is_indexed or store.dialect_name != "sqlite":
            return mine
        # Otherwise SQLite reads and sorts all events of the endpoint.
        likely: ColumnElement[bool] = func.likely(mine)
        return likely

    def _event(self, store: Store) -> Iterator[ColumnElement[bool]]:
        c = store.columns
        if self.statuses:
            yield _has_status(store, self.statuses)
        if (value := _stored(store, "type", self.type)) is not None:
            yield or_(*(is_same(store, c.type, each) for each in _types(value)))
        if (value := _stored(store, "resource_type", self.resource_type)) is not None:
            yield is_same(store, c.resource_type, value)
        if (reason := _stored(store, "reason", self.reason)) is not None:
            yield is_one_of(store, c.reason, *_spellings(reason))
        for name in _EXACT:
            if (value := _stored(store, name, getattr(self, name))) is not None:
                yield is_one_of(store, c[name], value)
        if self.since:
            yield c.received_at >= to_db_time(self.since)
        if self.until:
            yield c.received_at < to_db_time(self.until)
        if self.asks_jobs:
            yield self._has_job(store)

    def _has_job(self, store: Store) -> ColumnElement[bool]:
        j, row_id = store.database.tables.job.c, store.columns.id
        if self.died_since or self.error:
            # The index of dead jobs, or one look at those with errors: they are few.
            return row_id.in_(select(j.event).where(self.job_where(store)))
        # The primary key of jobs has all of it. First whether there is any such job at
        # all: a name without one would be looked up for each event.
        of_any = j.event.table.alias().c
        has_name = _is_subscriber(of_any.subscriber, self.subscriber)
        is_known = select(of_any.event).where(has_name).exists()
        mine = exists().where(j.event == row_id, *self._job(store))
        return and_(is_known, mine)

    def _job(self, store: Store) -> Iterator[ColumnElement[bool]]:
        j = store.database.tables.job.c
        if self.subscriber:
            yield _is_subscriber(j.subscriber, self.subscriber)
        if self.error:
            yield or_(j.error.is_not(None), j.error_class.is_not(None))
            yield _has_error(store, self.error)
        if self.died_since:
            yield j.dead_at >= to_db_time(self.died_since)


EVERY_EVENT = Filter()


def _stored(store: Store, name: str, value: str | None) -> str | None:
    return store.text(value, TEXTS[name])


def _is_subscriber(column: ColumnElement[str], name: str | None) -> ColumnElement[bool]:
    # The column is ASCII on MariaDB and MySQL.
    return column == name if _ASCII.fullmatch(name or "") else false()


def _spellings(reason: str) -> set[str]:
    """The reason in lower case, as it is stored, and as a sender may write it."""
    short = SHORT_REASONS.get(reason.lower(), reason.lower())
    return {short, *(long for long, each in SHORT_REASONS.items() if each == short)}


def _types(type: str) -> list[str]:
    """The type as it is given, and with each spelling of its reason."""
    resource_type, dot, reason = type.rpartition(".")
    spelled = (
        {f"{resource_type}.{each}" for each in _spellings(reason)} if dot else {type}
    )
    return sorted(spelled)


def _has_status(store: Store, statuses: tuple[str, ...]) -> ColumnElement[bool]:
    """The condition in a form in which the indexes of live and parked rows serve."""
    c, conditions = store.columns, []
    live, parked = ({each.value for each in group} for group in (LIVE, PARKED))
    for group, column in ((live, c.due_at), (parked, c.parked_at)):
        if mine := sorted(group.intersection(statuses)):
            conditions.append(and_(column.is_not(None), c.status.in_(mine)))
    if others := sorted({*statuses} - live - parked):
        conditions.append(c.status.in_(others))
    return or_(*conditions)


def _has_error(store: Store, error: str) -> ColumnElement[bool]:
    j = store.database.tables.job.c
    wanted = store.text(error, LONGEST_ERROR) or ""
    with_class = func.coalesce(j.error_class, "") + ": " + func.coalesce(j.error, "")
    condition = contains(store, with_class, wanted)
    if not is_masked(wanted):
        return condition
    # The masked message as ``errors`` shows it, with or without the class.
    pattern = pattern_of(wanted)
    found = (each.regexp_match(pattern) for each in (j.error, with_class))
    return or_(condition, *found)
