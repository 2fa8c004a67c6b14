"""Compares the answers to the sender with the database."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Set
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa


@dataclass(frozen=True)
class Verdict:
    #: Events answered 2xx that are missing, not done, or without an effect.
    lost: list[str]
    #: Events with more than one effect.
    doubled: list[str]


class Auditor:
    def __init__(self, url: str) -> None:
        self._engine = sa.create_engine(url, poolclass=sa.NullPool)

    def wait_until_done(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.unfinished():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.3)
        return True

    def unfinished(self) -> int:
        look = "SELECT count(*) FROM procore_webhook_event WHERE due_at IS NOT NULL"
        return int(self._rows(look)[0][0])

    def verdict(self, accepted: Set[str]) -> Verdict:
        look = "SELECT event_id, status FROM procore_webhook_event"
        statuses = {row.event_id: row.status for row in self._rows(look)}
        effects = Counter(row.event_id for row in self._rows("SELECT * FROM change"))
        everything = accepted | statuses.keys() | effects.keys()
        done = {id for id in effects if statuses.get(id) == "done"}
        return Verdict(
            lost=sorted(everything - done),
            doubled=sorted(id for id, times in effects.items() if times > 1),
        )

    def machines(self) -> dict[str, int]:
        """Return the number of effects of each machine."""
        look = "SELECT machine, count(*) FROM change GROUP BY 1 ORDER BY 1"
        return {name: count for name, count in self._rows(look)}

    def _rows(self, look: str) -> list[Any]:
        with self._engine.connect() as connection:
            return list(connection.execute(sa.text(look)))
