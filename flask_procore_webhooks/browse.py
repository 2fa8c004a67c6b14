"""A look inside the inbox, for people: list, find, count. Nothing is changed here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement
from sqlalchemy import func
from sqlalchemy import or_
from sqlalchemy import select

from .events import key
from .events import PLAIN_ID
from .inbox import Inbox


def newest(
    inbox: Inbox, *, status: str | None = None, type: str | None = None, limit: int = 20
) -> list[Mapping[str, Any]]:
    """The newest events first, without their bodies."""
    c = inbox.columns
    columns = [column for column in c if column.name not in ("body", "lease")]
    look = select(*columns).where(c.endpoint == inbox.endpoint)
    if status:
        look = look.where(c.status == status)
    if type:
        look = look.where(c.type == type)
    return [row._mapping for row in inbox.rows(look.order_by(c.id.desc()).limit(limit))]


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


def counts(inbox: Inbox) -> dict[tuple[str, str], int]:
    """How many events there are for each status and type."""
    c = inbox.columns
    look = select(c.status, c.type, func.count().label("events"))
    look = look.where(c.endpoint == inbox.endpoint).group_by(c.status, c.type)
    return {(row.status, row.type): row.events for row in inbox.rows(look)}


def totals(inbox: Inbox) -> Mapping[str, Any]:
    """``repeats``, ``conflicts``, ``attempts``, and ``oldest_due`` as a time."""
    c = inbox.columns
    look = select(
        func.coalesce(func.sum(c.repeats), 0).label("repeats"),
        func.coalesce(func.sum(c.conflicts), 0).label("conflicts"),
        func.coalesce(func.sum(c.attempts), 0).label("attempts"),
        func.min(c.due_at).label("oldest_due"),
    ).where(c.endpoint == inbox.endpoint)
    return dict(inbox.rows(look)[0]._mapping)
