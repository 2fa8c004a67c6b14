"""State: values that endpoints and processes keep in a table, the schema number too."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import datetime
from datetime import timezone

from sqlalchemy import Connection
from sqlalchemy import insert
from sqlalchemy import select
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError

from .tables import Tables

#: Endpoint and name of the schema number in the state table.
WHOLE_INBOX = ""
SCHEMA_NAME = "schema"

_INFO_KEY = "flask_procore_webhooks"


def schema_number(connection: Connection, tables: Tables) -> int | None:
    """The schema number in the database; ``None`` if no ``init-db`` has written it."""
    s = tables.state.c
    query = select(s.value).where(s.endpoint == WHOLE_INBOX, s.name == SCHEMA_NAME)
    found = connection.execute(query).scalar()
    with suppress(ValueError, TypeError):
        return int(json.loads(found or ""))
    return None


def put_value(
    connection: Connection,
    tables: Tables,
    endpoint: str,
    name: str,
    value: object,
    at: datetime | None = None,
) -> None:
    """Set a value in the state table; safe to repeat and to race.

    :param connection: each statement on it is a transaction of its own, or nothing else
        sets the value until its transaction ends.
    :param value: is stored as JSON.
    :param at: UTC without a zone; by default the current time of this host.
    """
    state = tables.state
    at = at or datetime.now(timezone.utc).replace(tzinfo=None)
    values = {"value": json.dumps(value), "at": at}
    mine = (state.c.endpoint == endpoint, state.c.name == name)
    change = update(state).where(*mine).values(values)
    if connection.execute(change).rowcount:
        return
    try:
        row = {"endpoint": endpoint, "name": name, **values}
        connection.execute(insert(state), row)
    except IntegrityError:
        # Another process has inserted the row after our update.
        connection.execute(change)
