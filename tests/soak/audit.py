"""Compares the database at the end of a run with the answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from flask_procore_webhooks.storage.tables import EVENT_TABLE
from flask_procore_webhooks.storage.tables import JOB_TABLE

from .app import create_app
from .app import db
from .app import environment
from .app import subscribers_for

FINISHED = ("done", "dead", "ignored")


@dataclass(frozen=True)
class Verdict:
    #: Events answered 2xx that are not in the inbox, not done, or lack an effect or a
    #: done job of one of their subscribers.
    lost: tuple[str, ...]
    #: Effects that happened twice, or belong to events missing from the inbox; jobs of
    #: other events or subscribers.
    doubled: tuple[str, ...]


class Auditor:
    """Reads the database over its own connection, which outages do not cut."""

    def __init__(self, url: str) -> None:
        self.url = url
        patience = {"timeout": 30} if url.startswith("sqlite") else {}
        self._engine = sa.create_engine(
            url, poolclass=sa.NullPool, connect_args=patience
        )

    def create_tables(self) -> None:
        app = create_app(environment(self.url))
        with app.app_context():
            db.create_all()
            db.engine.dispose()

    def verdict(self, accepted: Iterable[str]) -> Verdict:
        """Compare answers and effects, after the last run has ended."""
        look = f"SELECT event_id, status, resource_type FROM {EVENT_TABLE}"
        events = self._rows(look)
        statuses = {row.event_id: row.status for row in events}
        names = {row.event_id: subscribers_for(row.resource_type) for row in events}
        look = "SELECT event_id, subscriber FROM soak_effect"
        effects = Counter((row.event_id, row.subscriber) for row in self._rows(look))
        states = self._job_states()
        lost = []
        for id in sorted({*accepted, *statuses}):
            wanted = {(id, name) for name in names.get(id, subscribers_for(None))}
            missing = [name for _, name in sorted(wanted - effects.keys())]
            undone = {
                name: states.get((id, name), ["absent"])
                for _, name in sorted(wanted)
                if states.get((id, name)) != ["done"]
            }
            if statuses.get(id) != "done" or missing or undone:
                lost.append(
                    f"{id} is {statuses.get(id)}, without effects of {missing}, with"
                    f" the jobs {undone}"
                )
        doubled = [
            f"{id}: {name} {times} times, {statuses.get(id, 'not in the inbox')}"
            for (id, name), times in effects.items()
            if times > 1 or id not in statuses
        ]
        doubled += [
            f"{id}: a job of {name} that is {', '.join(found)}"
            for (id, name), found in states.items()
            if name not in names.get(id, ())
        ]
        return Verdict(tuple(lost), tuple(doubled))

    def _job_states(self) -> dict[tuple[str, str], list[str]]:
        """The states of the jobs by event id and subscriber: one state each."""
        look = (
            f"SELECT e.event_id, j.event, j.subscriber, j.state FROM {JOB_TABLE} j"
            f" LEFT JOIN {EVENT_TABLE} e ON e.id = j.event"
        )
        states: dict[tuple[str, str], list[str]] = {}
        for row in self._rows(look):
            id = row.event_id or f"row {row.event}"
            states.setdefault((id, row.subscriber), []).append(row.state)
        return states

    def unfinished(self) -> int:
        names = ", ".join(f"'{name}'" for name in FINISHED)
        look = f"SELECT count(*) FROM {EVENT_TABLE} WHERE status NOT IN ({names})"
        return int(self._rows(look)[0][0])

    def slowest(self, calm: datetime) -> float:
        """The longest seconds from the receipt of an event to its end.

        :param calm: when the last disturbance ended, in UTC without a zone: earlier
            events have their time from then on.
        """
        look = f"SELECT received_at, finished_at FROM {EVENT_TABLE}"
        types = {"received_at": sa.DateTime, "finished_at": sa.DateTime}
        query = sa.text(f"{look} WHERE finished_at IS NOT NULL").columns(**types)
        with self._engine.connect() as connection:
            times = [
                (row.finished_at - max(row.received_at, calm)).total_seconds()
                for row in connection.execute(query)
            ]
        return max(times, default=0.0)

    def last_effect(self) -> int:
        return int(self._rows("SELECT coalesce(max(id), 0) FROM soak_effect")[0][0])

    def pids_since(self, effect: int) -> set[int]:
        """The processes that have written effects after ``effect``."""
        look = f"SELECT DISTINCT pid FROM soak_effect WHERE id > {effect}"
        return {row.pid for row in self._rows(look)}

    def _rows(self, look: str) -> list[Any]:
        with self._engine.connect() as connection:
            return list(connection.execute(sa.text(look)))
