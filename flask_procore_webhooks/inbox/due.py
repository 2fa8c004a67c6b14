"""Due: which events may be claimed, and when; pauses included."""

from __future__ import annotations

import json
from collections.abc import Collection
from collections.abc import Sequence
from datetime import datetime
from datetime import timedelta
from typing import Any
from typing import NamedTuple

from sqlalchemy import ColumnElement
from sqlalchemy import literal
from sqlalchemy import literal_column
from sqlalchemy import Select
from sqlalchemy import select
from sqlalchemy import text

from ..storage.store import Store
from .claims import claimable
from .status import Status

#: A table of the names in a JSON array, by dialect: one parameter for any number.
_JSON_TABLE = (
    "JSON_TABLE(:names, '$[*]' COLUMNS (value VARCHAR(80) CHARACTER SET ascii COLLATE"
    " ascii_bin PATH '$')) AS named"
)
NAMED = {
    "sqlite": "json_each(:names) AS named",
    "postgresql": "json_array_elements_text(CAST(:names AS json)) AS named(value)",
    "mysql": _JSON_TABLE,
    "mariadb": _JSON_TABLE,
}

#: The name of an endpoint's pause in the state table. Its value is an object with the
#: operator in ``by``, or null after a resume.
PAUSE = "pause"
#: The action in the journal that ends a pause.
RESUME = "resume"
_NULL = "null"
#: Begins the key of a statement among the parts of a database.
_WORK = "procore_webhooks_work"


class Pause(NamedTuple):
    """The pause that is in force."""

    actor: str
    since: datetime
    #: As the operator has given it.
    reason: str | None = None


def status_of(store: Store, row_id: int) -> Status | None:
    found = store.rows(select(store.columns.status).where(store.columns.id == row_id))
    return Status(found[0].status) if found else None


def due_events(
    stores: Collection[Store],
    limit: int = 100,
    *,
    hurry: bool = False,
    ahead: float = 0.0,
    since: float = 0.0,
) -> list[tuple[str, int]]:
    """Endpoints and row ids of the events that may be claimed now, longest due first.

    :param stores: of endpoints that share a database.
    :param hurry: also events that wait.
    :param ahead: also events that wait for at most so many seconds.
    :param since: only events that have been due for so many seconds.
    """
    store = next(iter(stores))
    c, now = store.columns, store.db_now()
    names = [each.endpoint for each in stores]
    query = select(c.endpoint, c.id).where(
        c.endpoint.in_(names), claimable(store, now, hurry, ahead)
    )
    if since:
        query = query.where(c.due_at <= now - timedelta(seconds=since))
    found = store.rows(query.order_by(c.due_at).limit(limit))
    return [(row.endpoint, row.id) for row in found]


def seconds_to(store: Store, row_id: int) -> float | None:
    """Seconds until the event may be claimed, ``None`` if it is finished."""
    c = store.columns
    found = store.rows(select(c.due_at).where(c.id == row_id))
    return seconds_until(store, found[0].due_at) if found else None


def seconds_until(store: Store, due_at: datetime | None) -> float | None:
    """Seconds until a stored time, at least 0.0."""
    if due_at is None:
        return None
    return max(0.0, (due_at - store.db_now()).total_seconds())


def is_paused(store: Store) -> bool:
    """Whether the endpoint is paused."""
    return pause_of(store) is not None


def pause_of(store: Store) -> Pause | None:
    """The endpoint's pause, with its time and the name of the user."""
    s = store.database.tables.state.c
    query = select(s.value, s.at).where(s.endpoint == store.endpoint, s.name == PAUSE)
    for row in store.rows(query):
        if _is_pause(row.value):
            value = json.loads(row.value)
            return Pause(value["by"], row.at, value.get("reason"))
    return None


def _is_pause(value: str | None) -> bool:
    """Whether the value of the state table is a pause and not a resume."""
    return value not in (None, _NULL)


def paused_seconds(store: Store, since: datetime) -> float:
    """For how many seconds the endpoint has been paused since then, as it is stored."""
    j = store.database.tables.journal.c
    query = select(j.action, j.at).where(
        j.endpoint == store.endpoint, j.action.in_((PAUSE, RESUME))
    )
    total, began = timedelta(), None
    for row in store.rows(query.order_by(j.id)):
        if row.action == RESUME and began is not None:
            total += max(row.at - max(began, since), timedelta())
            began = None
        elif row.action == PAUSE and began is None:
            began = row.at
    if began is not None:
        total += store.db_now() - max(began, since)
    return total.total_seconds()


def seconds_to_work(stores: Sequence[Store]) -> dict[str, float | None]:
    """Return the seconds until an event may run, 0.0 for now, for each endpoint.

    ``None``: the endpoint has no unfinished event, or is paused. One statement for all
    endpoints where the database can, because an idle worker asks it at every poll.

    :param stores: of endpoints that share a database.
    """
    groups = [stores] if _can_share_a_look(stores[0]) else [[each] for each in stores]
    found = [row for group in groups for row in group[0].rows(_cached_query(group))]
    by_name = {row.endpoint: row for row in found}
    waits: dict[str, float | None] = {}
    for store in stores:
        row = by_name[store.endpoint]
        is_idle = _is_pause(row.pause)
        waits[store.endpoint] = None if is_idle else seconds_until(store, row.due_at)
    return waits


def _can_share_a_look(store: Store) -> bool:
    """Whether the database has a table function for names.

    MariaDB and MySQL have it since the version that skips locked rows.
    """
    is_mysql = store.dialect_name in ("mysql", "mariadb")
    return store.traits().skips_locked if is_mysql else store.dialect_name in NAMED


def _cached_query(stores: Sequence[Store]) -> Select[Any]:
    """The query of these endpoints, built once for each database."""
    parts, key = stores[0].database.parts, (_WORK, *(each.endpoint for each in stores))
    found: Select[Any] | None = parts.get(key)
    return parts.setdefault(key, _work_query(stores)) if found is None else found


def _work_query(stores: Sequence[Store]) -> Select[Any]:
    """Select endpoint, first due time and pause for each store."""
    store = stores[0]
    # Some databases have no table function, and a single name needs none.
    name: ColumnElement[str] = literal(store.endpoint)
    if len(stores) > 1:
        name = literal_column("named.value")
    c, s = store.columns, store.database.tables.state.c
    due = select(c.due_at).where(c.endpoint == name, c.due_at.is_not(None))
    pause = select(s.value).where(s.endpoint == name, s.name == PAUSE)
    query = select(
        name.label("endpoint"),
        due.order_by(c.due_at).limit(1).scalar_subquery().label("due_at"),
        pause.scalar_subquery().label("pause"),
    )
    if len(stores) == 1:
        return query
    names = json.dumps([each.endpoint for each in stores])
    table = text(NAMED[store.dialect_name]).bindparams(names=names)
    return query.select_from(table)
