"""Compares the database at the end of a run with the answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from flask_procore_webhooks.inbox.tables import EVENT_TABLE
from flask_procore_webhooks.inbox.tables import RECEIPT_TABLE

from .app import create_app
from .app import db
from .app import environment
from .app import SUBSCRIBERS

FINISHED = ("done", "dead", "ignored")


@dataclass(frozen=True)
class Verdict:
    #: Events answered 2xx that are not in the inbox, not done, or without an effect.
    lost: tuple[str, ...]
    #: Effects that happened twice, or belong to events missing from the inbox.
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
        look = f"SELECT event_id, status FROM {EVENT_TABLE}"
        statuses = {row.event_id: row.status for row in self._rows(look)}
        look = "SELECT event_id, subscriber FROM soak_effect"
        effects = Counter((row.event_id, row.subscriber) for row in self._rows(look))
        look = (
            f"SELECT e.event_id, r.subscriber FROM {RECEIPT_TABLE} r"
            f" JOIN {EVENT_TABLE} e ON e.id = r.event"
        )
        receipts = {(row.event_id, row.subscriber) for row in self._rows(look)}
        lost = []
        for id in sorted({*accepted, *statuses}):
            has = [(id, name) in effects for name in SUBSCRIBERS]
            noted = [(id, name) in receipts for name in SUBSCRIBERS]
            if statuses.get(id) != "done" or not all(has + noted):
                lost.append(f"{id} is {statuses.get(id)}, effects {has}, noted {noted}")
        doubled = [
            f"{id}: {name} {times} times, {statuses.get(id, 'not in the inbox')}"
            for (id, name), times in effects.items()
            if times > 1 or id not in statuses
        ]
        return Verdict(tuple(lost), tuple(doubled))

    def unfinished(self) -> int:
        names = ", ".join(f"'{name}'" for name in FINISHED)
        look = f"SELECT count(*) FROM {EVENT_TABLE} WHERE status NOT IN ({names})"
        return int(self._rows(look)[0][0])

    def last_effect(self) -> int:
        return int(self._rows("SELECT coalesce(max(id), 0) FROM soak_effect")[0][0])

    def pids_since(self, effect: int) -> set[int]:
        """The processes that have written effects after ``effect``."""
        look = f"SELECT DISTINCT pid FROM soak_effect WHERE id > {effect}"
        return {row.pid for row in self._rows(look)}

    def _rows(self, look: str) -> list[Any]:
        with self._engine.connect() as connection:
            return list(connection.execute(sa.text(look)))
