"""Marks: how far the prunes of an endpoint have come, and what they left before that.

A mark is a row in the state table. Its value is the row id up to which every event has
been examined. The row ids of the events up to there that were left are in further rows,
so that the next prune examines those and the events after the mark.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection
from sqlalchemy import delete
from sqlalchemy import insert
from sqlalchemy import or_
from sqlalchemy import select
from sqlalchemy import update

from .state import put_value
from .tables import Tables

#: The names of the marks: of the prune of bodies, and of that of whole events.
BODIES, EVENTS = "prune", "prune-events"
#: Row ids in one row: the text of MariaDB and MySQL ends at 64 KiB.
PART = 2000


@dataclass(frozen=True)
class Mark:
    """A mark as it was read."""

    name: str
    #: Every event of the endpoint up to this row id was examined.
    row: int = 0
    #: The row ids up to there of the events that may have to be pruned later, in order.
    left: tuple[int, ...] = ()
    #: The names of its rows, with their times.
    stored: tuple[tuple[str, datetime], ...] = ()


def read_mark(connection: Connection, tables: Tables, endpoint: str, name: str) -> Mark:
    s = tables.state.c
    named = or_(s.name == name, s.name.startswith(f"{name}:", autoescape=True))
    query = select(s.name, s.value, s.at).where(s.endpoint == endpoint, named)
    row, left, stored = 0, set[int](), []
    for found in connection.execute(query):
        stored.append((found.name, found.at))
        if found.name == name:
            row = int(json.loads(found.value))
        else:
            left.update(json.loads(found.value))
    return Mark(name, row, tuple(sorted(left)), tuple(stored))


def move_mark(
    connection: Connection,
    tables: Tables,
    endpoint: str,
    mark: Mark,
    moved: Mark,
    at: datetime,
) -> bool:
    """Replace ``mark`` by ``moved``; ``False`` if another prune has moved it meanwhile.

    :param connection: its statements are one transaction.
    :param at: UTC without a zone.
    :raises sqlalchemy.exc.IntegrityError: another prune has made the first mark.
    """
    state, stored = tables.state, dict(mark.stored)
    s, mine = state.c, state.c.endpoint == endpoint
    values = {"value": json.dumps(moved.row), "at": at}
    if before := stored.pop(mark.name, None):
        same = mine, s.name == mark.name, s.at == before, s.value == str(mark.row)
        if not connection.execute(update(state).where(*same).values(values)).rowcount:
            return False
    else:
        row = {"endpoint": endpoint, "name": mark.name}
        connection.execute(insert(state), row | values)
    for name, each in stored.items():
        # A note that was made since then stays.
        connection.execute(delete(state).where(mine, s.name == name, s.at == each))
    for start in range(0, len(moved.left), PART):
        value = json.dumps(moved.left[start : start + PART])
        row = {"endpoint": endpoint, "name": f"{mark.name}:left:{start}"}
        connection.execute(insert(state), row | {"value": value, "at": at})
    return True


def note_body(
    connection: Connection, tables: Tables, endpoint: str, row_id: int, at: datetime
) -> None:
    """Let the next prune of bodies examine an event that has got its body back."""
    name = f"{BODIES}:back:{row_id}"
    put_value(connection, tables, endpoint, name, [row_id], at)
