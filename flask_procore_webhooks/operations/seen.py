"""Values of the state table, and the notes of the processes that run events."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import select

from ..schema.state import put_value
from ..schema.state import WHOLE_INBOX
from ..storage.store import Store

#: Prefix of the names of rows in which processes say that they run events.
SEEN = "seen:"
#: Seconds between two such notes of a process.
SEEN_EVERY = 60.0
SEEN_KEPT = timedelta(days=1)
_STARTED_AT = int(time.time())


def put_state(
    store: Store,
    name: str,
    value: object,
    *,
    endpoint: str | None = None,
    until: float | None = None,
) -> None:
    """Set a value in the state table; safe to repeat and to race.

    :param name: at most 190 ASCII characters.
    :param value: is stored as JSON.
    :param endpoint: ``""`` for the whole inbox; by default the store's endpoint.
    :param until: as for :meth:`Store.run`.
    """
    owner = store.endpoint if endpoint is None else endpoint
    fixed = store.database.tables, owner, name, value, store.db_now()
    store.run(lambda connection: put_value(connection, *fixed), until=until)


def states(store: Store, prefix: str) -> list[Mapping[str, Any]]:
    """``name``, ``value`` and ``at`` of the names with that prefix, newest first.

    Of the endpoint and of the whole inbox.
    """
    s = store.database.tables.state.c
    query = select(s.name, s.value, s.at).where(
        s.endpoint.in_((store.endpoint, WHOLE_INBOX)),
        s.name.startswith(prefix, autoescape=True),
    )
    found = store.rows(query.order_by(s.at.desc()))
    return [{**row._mapping, "value": json.loads(row.value)} for row in found]


def is_note_due(store: Store) -> bool:
    """Whether :func:`note_seen` would make a note now."""
    noted_at: float = store.database.parts.get(SEEN, float("-inf"))
    return time.monotonic() - noted_at >= SEEN_EVERY


def note_seen(
    store: Store,
    mode: str,
    endpoints: Iterable[str] | None = None,
    runs: Sequence[int] = (),
    longest: Mapping[str, Any] | None = None,
) -> None:
    """Note that this process runs events of the inbox, at most once a minute.

    ``check`` and ``stats`` read the notes.

    :param mode: ``worker``, ``background`` or ``celery``.
    :param endpoints: names of the endpoints whose events it runs; ``None`` for all.
    :param runs: of each thread, since the process started.
    :param longest: ``subscriber``, ``event`` and ``seconds`` of the call that has been
        going on for longest.
    """
    if not is_note_due(store):
        return
    store.database.parts[SEEN] = time.monotonic()
    names = None if endpoints is None else list(endpoints)
    value: dict[str, Any] = {"mode": mode, "endpoints": names, "longest": longest}
    value |= {"threads": len(runs) or None, "runs": sum(runs) if runs else None}
    host = socket.gethostname().encode("ascii", "backslashreplace").decode()[:100]
    name = f"{SEEN}{host}:{os.getpid()}:{_STARTED_AT}"
    put_state(store, name, value, endpoint=WHOLE_INBOX)
