"""Events written directly to an inbox, and reads of its rows."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterable
from datetime import datetime
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from flask import Flask

from flask_procore_webhooks import Event
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.errors import InboxUnavailable
from flask_procore_webhooks.inbox import batches
from flask_procore_webhooks.inbox import claims
from flask_procore_webhooks.inbox.due import due_events
from flask_procore_webhooks.inbox.held import Claim
from flask_procore_webhooks.inbox.jobs import Job
from flask_procore_webhooks.inbox.record import record as record_event
from flask_procore_webhooks.inbox.status import JobState
from flask_procore_webhooks.operations import queries
from flask_procore_webhooks.senders.samples import payload
from flask_procore_webhooks.senders.samples import to_bytes
from flask_procore_webhooks.storage.store import Store
from support.waiting import PATIENCE


def numbered(count: int, prefix: str = "evt") -> list[str]:
    """``count`` event ids."""
    return [f"{prefix}_{number:03}" for number in range(count)]


def event(id: str = "evt_1", body: bytes = b"{}", **fields: Any) -> Event:
    return Event(id, fields.pop("type", "RFIs.update"), body=body, **fields)


def record(store: Store, *ids: str, **fields: Any) -> list[int]:
    """Put events into the inbox as another process does; return their row ids."""
    bodies = [to_bytes(payload("RFIs.update", id=id, **fields)) for id in ids]
    events = [
        Event(id, "RFIs.update", body=body)
        for id, body in zip(ids, bodies, strict=True)
    ]
    return [record_event(store, event).row_id for event in events]


def row(store: Store, id: str = "evt_1") -> dict[str, Any]:
    """The row of one event, by its id or by its row id."""
    found = queries.find(store, id)
    assert found is not None
    return dict(found)


def rows(store: Store) -> list[sa.Row[Any]]:
    """All events of the inbox's table, oldest first, with all columns."""
    c = store.columns
    return list(store.rows(sa.select(*c).order_by(c.id)))


def own_rows(store: Store) -> list[dict[str, Any]]:
    """The events of the inbox's endpoint, oldest first."""
    found = [dict(row._mapping) for row in rows(store)]
    return [row for row in found if row["endpoint"] == store.endpoint]


def by_id(store: Store) -> dict[str, dict[str, Any]]:
    """The events of the inbox's endpoint, by event id."""
    return {row["event_id"]: row for row in own_rows(store)}


def statuses(store: Store) -> dict[str, str]:
    """The status of each event, by event id."""
    return {id: str(row["status"]) for id, row in by_id(store).items()}


def jobs(store: Store, id: str = "evt_1") -> dict[str, dict[str, Any]]:
    """The jobs of one event, by subscriber."""
    found = queries.jobs_of(store, row(store, id)["id"])
    return {str(each["subscriber"]): dict(each) for each in found}


def states(store: Store, id: str = "evt_1") -> dict[str, str]:
    """The state of each job of one event, by subscriber."""
    return {name: str(job["state"]) for name, job in jobs(store, id).items()}


def attempts(store: Store) -> dict[str, int]:
    """The attempts of each event, of the job that has most, by event id."""
    found = {id: jobs(store, id).values() for id in by_id(store)}
    return {
        id: max((job["attempts"] for job in each), default=0)
        for id, each in found.items()
    }


def due_in(store: Store, seconds: float) -> datetime:
    """The time in so many seconds, as it is stored."""
    return store.db_now() + timedelta(seconds=seconds)


def done(store: Store, name: str, version: int = 0) -> Job:
    """A job that has been done now, at its first attempt.

    :param version: of its row; 0 without one.
    """
    now = store.db_now()
    return Job(name, version=version).ended(JobState.DONE, now, now)


def counted(store: Store) -> Counter[str]:
    """The number of events by status."""
    return Counter(statuses(store).values())


def are_done(store: Store, *ids: str) -> bool:
    found = statuses(store)
    return {found.get(id) for id in ids} == {"done"}


def all_done(store: Store, count: int) -> Callable[[], bool]:
    """A condition: the inbox has ``count`` events, all done."""
    return lambda: counted(store) == {"done": count}


def ids_of(claims: Iterable[Claim]) -> list[str]:
    return [claim.event_id for claim in claims]


def claim_one(store: Store, row_id: int, seconds: float = 60, **options: Any) -> Claim:
    """Claim one event; assert that it is claimable."""
    claim = claims.claim(store, row_id, seconds, **options)
    assert claim is not None
    return claim


def claim_all(store: Store, limit: int) -> list[str]:
    """Claim batches until no event is due, with retries while the inbox is busy."""
    mine: list[str] = []
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            found = batches.claim_due(store, limit, 600)
            if not found and not due_rows(store):
                return mine
        except InboxUnavailable:
            continue
        mine += ids_of(found)
    raise AssertionError("there was no end to it")


def due_rows(store: Store, limit: int = 100, **options: Any) -> list[int]:
    """Row ids of the due events of one endpoint, longest due first."""
    return [row_id for _, row_id in due_events([store], limit, **options)]


def dispose(app: Flask) -> None:
    """Close the connections of every endpoint of an app."""
    for endpoint in endpoints(app).values():
        endpoint.store.database.engine.dispose()
