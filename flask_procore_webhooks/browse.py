"""A look inside the inbox, for people: list, find, count. Nothing is changed here."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import fields
from datetime import datetime
from typing import Any

from sqlalchemy import and_
from sqlalchemy import case
from sqlalchemy import ColumnElement
from sqlalchemy import func
from sqlalchemy import or_
from sqlalchemy import select

from .events import key
from .events import PLAIN_ID
from .inbox import Inbox
from .store import naive


@dataclass(frozen=True)
class Filter:
    """Which events are meant: those that have every value that is given."""

    status: str | None = None
    type: str | None = None
    resource_type: str | None = None
    reason: str | None = None
    resource_id: str | None = None
    company_id: str | None = None
    project_id: str | None = None
    #: Received at this time or later; aware.
    since: datetime | None = None
    #: Received before this time; aware.
    until: datetime | None = None

    def where(self, inbox: Inbox) -> ColumnElement[bool]:
        """The condition for rows of ``inbox``."""
        c = inbox.columns
        conditions = [c.endpoint == inbox.endpoint]
        for each in fields(self)[:-2]:
            value = getattr(self, each.name)
            if value is not None:
                conditions.append(c[each.name] == value)
        if self.since:
            conditions.append(c.received_at >= naive(self.since))
        if self.until:
            conditions.append(c.received_at < naive(self.until))
        return and_(*conditions)


EVERY_EVENT = Filter()


def newest(
    inbox: Inbox, wanted: Filter = EVERY_EVENT, *, limit: int = 20
) -> list[Mapping[str, Any]]:
    """The newest events first, without their bodies."""
    c = inbox.columns
    columns = [column for column in c if column.name not in ("body", "lease")]
    look = select(*columns).where(wanted.where(inbox)).order_by(c.id.desc())
    return [row._mapping for row in inbox.rows(look.limit(limit))]


def pages(inbox: Inbox, wanted: Filter, size: int) -> Iterator[list[int]]:
    """Row ids of the events that are meant, oldest first, ``size`` at a time.

    Those that come in meanwhile are left out.
    """
    c = inbox.columns
    ((end,),) = inbox.rows(select(func.max(c.id)))
    last = 0
    while end is not None:
        rest = select(c.id).where(wanted.where(inbox), c.id > last, c.id <= end)
        rows = [row.id for row in inbox.rows(rest.order_by(c.id).limit(size))]
        if not rows:
            return
        yield rows
        last = rows[-1]


def find(inbox: Inbox, event_id: str) -> Mapping[str, Any] | None:
    """The whole row of an event, by its id or by its row id."""
    c = inbox.columns
    # As the sender wrote its id, or as it is stored.
    stored = {key(event_id, "", b"")}
    if PLAIN_ID.fullmatch(event_id):
        stored.add(event_id)
    named: list[ColumnElement[bool]] = [c.event_id.in_(stored)]
    if event_id.isascii() and event_id.isdigit() and len(event_id) < 19:
        named.append(c.id == int(event_id))
    look = select(*c).where(c.endpoint == inbox.endpoint, or_(*named))
    rows = inbox.rows(look.order_by(c.event_id.not_in(stored)))
    return dict(rows[0]._mapping) if rows else None


def receipts_of(inbox: Inbox, row_id: int) -> list[Mapping[str, Any]]:
    """``subscriber``, ``ending`` and ``finished_at``, in the order of finishing."""
    r = inbox.database.tables.receipt.c
    look = select(r.subscriber, r.ending, r.finished_at).where(r.event == row_id)
    return [row._mapping for row in inbox.rows(look.order_by(r.finished_at))]


def counts(inbox: Inbox) -> dict[tuple[str, str], int]:
    """How many events there are for each status and type."""
    c = inbox.columns
    look = select(c.status, c.type, func.count().label("events"))
    look = look.where(c.endpoint == inbox.endpoint).group_by(c.status, c.type)
    return {(row.status, row.type): row.events for row in inbox.rows(look)}


def totals(inbox: Inbox) -> Mapping[str, Any]:
    """``repeats``, ``conflicts``, ``attempts``, and ``oldest_due`` as a time.

    That is the one of the events that wait to be run now, not for their next attempt.
    """
    c = inbox.columns
    due = case((c.due_at <= inbox.naive_now(), c.due_at), else_=None)
    look = select(
        func.coalesce(func.sum(c.repeats), 0).label("repeats"),
        func.coalesce(func.sum(c.conflicts), 0).label("conflicts"),
        func.coalesce(func.sum(c.attempts), 0).label("attempts"),
        func.min(due).label("oldest_due"),
    ).where(c.endpoint == inbox.endpoint)
    return dict(inbox.rows(look)[0]._mapping)
