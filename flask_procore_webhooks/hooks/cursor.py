"""Cursor: the days of a hook that are read, and the note of the last whole one."""

from __future__ import annotations

from datetime import date
from datetime import timedelta
from typing import Any

from ..config.api import LISTED_DAYS
from ..event import Event
from ..operations.seen import put_state
from ..operations.seen import states
from ..storage.store import Store

#: Days before today that are read: with today, Procore's 28.
LISTED = timedelta(days=LISTED_DAYS - 1)
#: Days before the last one that was reconciled, which are read again: nothing
#: documents the zone of Procore's days, or whether they are those of the event.
OVERLAP = timedelta(days=2)
#: Prefix of the names of rows in the state table with the last day of a hook.
CURSOR = "reconcile:"
#: No run has noted an earlier day.
OLDEST = date(2000, 1, 1)

DAMAGED = "The row {!r} of the state table is damaged, and is not believed."


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
        self.today = today
        self._has_noted = False
        #: What to know of the note, if it is damaged.
        self.note_of_damage: str | None = None
        self._day, self._begins = self._find()
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
        when = self.day_of(event)
        return when is not None and when < self.begins

    def day_of(self, event: Event | None) -> date | None:
        """The day on which it happened; ``None`` without one that Procore can list."""
        if event is None or event.timestamp is None:
            return None
        day = event.timestamp.date()
        listed = self.today - timedelta(days=LISTED_DAYS)
        return day if listed <= day <= self.last else None

    @property
    def is_told(self) -> bool:
        """Whether the operator has named the first day of this run."""
        return self._since is not None

    @property
    def begins(self) -> date:
        """The first day: that of ``--since``, also of a former run."""
        return self._begins if self._since is None else self.first

    def note(self, day: date) -> None:
        """Note the last day before which no later run needs to look again."""
        former, first = self._day, self.first
        if self._since is not None and former is not None and former < first:
            return  # the days between were not read
        is_new = former is None or first < self._begins
        begins = first if self._since is not None and is_new else self._begins
        whole = min(day, self.today - timedelta(days=1))
        self._has_noted = True
        put_state(self._store, self._name, {"day": f"{whole}", "begins": f"{begins}"})

    def take_back(self) -> None:
        """Note the first day of this run in the place of later ones."""
        if self._has_noted:
            self.note(self.earliest)

    def _first_day(self) -> date:
        if self._since is not None:
            return self._since
        listed = self.today - LISTED
        return listed if self._day is None else max(listed, self._day - OVERLAP)

    def _find(self) -> tuple[date | None, date]:
        """The last whole day, and the day before which another receiver had events."""
        try:
            values = [
                row["value"]
                for row in states(self._store, self._name)
                if row["name"] == self._name
            ]
            return self._read(values[0]) if values else (None, date.min)
        except (ValueError, TypeError, KeyError, RecursionError):
            self.note_of_damage = DAMAGED.format(self._name)
            return None, date.min

    def _read(self, value: Any) -> tuple[date | None, date]:
        """The two days of a note.

        :raises ValueError: they are no days, as :class:`TypeError`, or never noted.
        """
        day = date.fromisoformat(value["day"])
        begins = date.fromisoformat(value.get("begins", f"{date.min}"))
        if day < OLDEST:
            raise ValueError("no run has noted so early a day")
        if begins > self.today:
            self.note_of_damage, begins = DAMAGED.format(self._name), date.min
        # A day in the future is that of a clock that was wrong.
        return (day if day <= self.today else None), begins
