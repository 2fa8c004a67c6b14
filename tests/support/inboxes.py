"""Events put straight into an inbox, and what the inbox has of them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from flask_procore_webhooks import Event
from flask_procore_webhooks.errors import InboxUnavailable
from flask_procore_webhooks.inbox import Claim
from flask_procore_webhooks.inbox import Inbox
from flask_procore_webhooks.samples import payload
from flask_procore_webhooks.samples import to_bytes
from support.waiting import PATIENCE


def numbered(count: int, prefix: str = "evt") -> list[str]:
    """So many event ids."""
    return [f"{prefix}_{number:03}" for number in range(count)]


def record(inbox: Inbox, *ids: str, **fields: Any) -> list[int]:
    """Put events into the inbox as another process does; return their row ids."""
    bodies = [to_bytes(payload("RFIs.update", id=id, **fields)) for id in ids]
    events = [
        Event(id, "RFIs.update", body=body)
        for id, body in zip(ids, bodies, strict=True)
    ]
    return [inbox.record(event).row_id for event in events]


def rows(inbox: Inbox) -> list[sa.Row[Any]]:
    """All events of the inbox's table, oldest first, with all columns."""
    c = inbox.columns
    return list(inbox.rows(sa.select(*c).order_by(c.id)))


def own_rows(inbox: Inbox) -> list[dict[str, Any]]:
    """The events of the inbox's endpoint, oldest first."""
    found = [dict(row._mapping) for row in rows(inbox)]
    return [row for row in found if row["endpoint"] == inbox.endpoint]


def by_id(inbox: Inbox) -> dict[str, dict[str, Any]]:
    """The same by event id."""
    return {row["event_id"]: row for row in own_rows(inbox)}


def statuses(inbox: Inbox) -> dict[str, str]:
    """The status of each event, by event id."""
    return {id: str(row["status"]) for id, row in by_id(inbox).items()}


def attempts(inbox: Inbox) -> dict[str, int]:
    """The attempts of each event, by event id."""
    return {id: row["attempts"] for id, row in by_id(inbox).items()}


def counted(inbox: Inbox) -> Counter[str]:
    """How many events have each status."""
    return Counter(statuses(inbox).values())


def are_done(inbox: Inbox, *ids: str) -> bool:
    found = statuses(inbox)
    return {found.get(id) for id in ids} == {"done"}


def all_done(inbox: Inbox, count: int) -> Callable[[], bool]:
    """A condition: the inbox has so many events, and they are done."""
    return lambda: counted(inbox) == {"done": count}


def ids_of(claims: Iterable[Claim]) -> list[str]:
    return [claim.event_id for claim in claims]


def claim_all(inbox: Inbox, limit: int) -> list[str]:
    """Claim batches until nothing is due; an inbox in use is asked again."""
    mine: list[str] = []
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            claims = inbox.claim_due(limit, 600)
            if not claims and not inbox.due():
                return mine
        except InboxUnavailable:
            continue
        mine += ids_of(claims)
    raise AssertionError("there was no end to it")
