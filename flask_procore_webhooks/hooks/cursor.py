"""Cursor: the days of a hook that are read, and the note of the last whole one."""

from __future__ import annotations

from datetime import date
from datetime import timedelta

from ..event import Event
from ..operations.seen import put_state
from ..operations.seen import states
from ..storage.store import Store
from .deliveries import LISTED

#: Days before the last one that was reconciled, which are read again: nothing
#: documents the zone of Procore's days, or whether they are those of the event.
OVERLAP = timedelta(days=2)
#: Prefix of the names of rows in the state table with the last day of a hook.
CURSOR = "reconcile:"


class Cursor:
    """The days of a hook.

    :param hook: its id.
    :param since: the first day, if the operator has named one.
    :param today: Procore's day.
    """

    def __init__(
        self, store: Store, hook: str, since: date | None, today: date
    ) -> None:
        self._store = store
        self._name = f"{CURSOR}{hook}"
        self._since = since
        self._day, self._begins = self._find(today)
        self.today = today
        self.first = self._first_day()
        # Procore's day may have begun where this one has not.
        self.last = today + timedelta(days=1)

    @property
    def earliest(self) -> date:
        """First day of the queries: two days before ``--since``.

        Procore's zone is unknown.
        """
        if self._since is None:
            return self.first
        return min(self.first, max(self.today - LISTED, self.first - OVERLAP))

    def is_before(self, event: Event | None) -> bool:
        """Whether the event happened before the day that the operator has named."""
        begins = self._begins if self._since is None else self.first
        when = event.timestamp if event is not None else None
        return when is not None and when.date() < begins

    def note(self, day: date) -> None:
        """Note the last day before which no later run needs to look again."""
        former, first = self._day, self.first
        if self._since is not None and former is not None and former < first:
            return  # the days between were not read
        is_new = former is None or first < self._begins
        begins = first if self._since is not None and is_new else self._begins
        whole = min(day, self.today - timedelta(days=1))
        put_state(self._store, self._name, {"day": f"{whole}", "begins": f"{begins}"})

    def _first_day(self) -> date:
        if self._since is not None:
            return self._since
        listed = self.today - LISTED
        return listed if self._day is None else max(listed, self._day - OVERLAP)

    def _find(self, today: date) -> tuple[date | None, date]:
        """The last whole day, and the day before which another receiver had events."""
        for row in states(self._store, self._name):
            if row["name"] == self._name:
                value, read = row["value"], date.fromisoformat
                day, begins = (
                    read(value["day"]),
                    read(value.get("begins", f"{date.min}")),
                )
                # A day in the future is that of a clock that was wrong.
                return (day if day <= today else None), begins
        return None, date.min
