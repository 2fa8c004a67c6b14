"""Deliveries: Procore's record of what a hook has sent, read day by day."""

from __future__ import annotations

import json
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import replace
from datetime import date
from datetime import timedelta
from typing import Any

from ..api.errors import NotFound
from ..api.paging import PER_PAGE
from ..config.api import LISTED_DAYS
from ..endpoint import Endpoint
from ..event import Event
from ..inbox.record import RECONCILE
from ..senders.payload import event_key
from ..senders.payload import text_id
from .calls import Hook
from .calls import ScopeAPI

#: Days before today that are read: with today, Procore's 28.
LISTED = timedelta(days=LISTED_DAYS - 1)
#: Times that the list of a day that is going on is read at most: its rows change.
MOST_PASSES = 3
#: Number of query widths to try: last day = first day, +1, +2.
WIDTHS = 3
DELIVERED = "delivered"
#: Statuses of events that Procore no longer sends. ``succeeded`` is a filter's word.
LOST = frozenset({"discarded", "failed"})
ARRIVED = frozenset({DELIVERED, "succeeded"})
#: Statuses of events that are still to come.
COMING = frozenset({"enqueued", "retrying"})


@dataclass(frozen=True)
class Delivery:
    """One event in Procore's list."""

    id: str
    status: str
    #: As the endpoint reads the payload; ``None`` if it has no id or is no payload.
    event: Event | None

    @property
    def is_lost(self) -> bool:
        return self.status in LOST

    @property
    def is_coming(self) -> bool:
        return self.status in COMING

    @property
    def has_arrived(self) -> bool:
        return self.status in ARRIVED


@dataclass
class Calendar:
    """How Procore reads the days of a query, as far as its answers have shown it.

    Nothing documents whether the first and the last day are part of the answer.
    """

    #: Days from the first to the last one of a query that has a single day's answer.
    extra_days: int = 0


class Days:
    """Reads the deliveries of a hook, a day at a time.

    :param calendar: of all hooks.
    :param progress: is called with the number of deliveries of each page.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        calls: ScopeAPI,
        hook: Hook,
        calendar: Calendar,
        progress: Callable[[int], None],
    ) -> None:
        self._endpoint = endpoint
        self._calls = calls
        self._hook = hook
        self._calendar = calendar
        self._progress = progress
        #: Whether Procore answers 404, as it may for a hook that has sent nothing.
        self.is_unknown = False
        #: Whether a query of one day has had an answer with deliveries in it.
        self.has_found = False

    def read_together(self, first: date, last: date) -> list[Delivery] | None:
        """The deliveries of all days, if they fit into one page; else ``None``.

        Most hooks send few events: one request instead of one for each day.
        """
        found: dict[str, Delivery] = {}
        try:
            for page in self._pages(first, last):
                if len(page) >= PER_PAGE or (found and page):
                    return None
                found |= self._deliveries(page)
        except NotFound:
            if found:
                raise
            self.is_unknown = True
        return [*found.values()]

    def read(self, day: date, *, is_open: bool) -> list[Delivery]:
        """The deliveries of a day, each once, with the status that was read last.

        :param is_open: whether the day is going on: it is read until nothing is new.
        """
        found = self._pass(day)
        self.has_found |= bool(found)
        for _ in range(MOST_PASSES - 1 if is_open and found else 0):
            again = self._pass(day)
            if again.items() <= found.items():
                break
            found |= again
        return [*found.values()]

    def widen(self) -> None:
        """End the queries a day later. After the widest ones, begin anew."""
        self._calendar.extra_days = (self._calendar.extra_days + 1) % WIDTHS

    def _pass(self, day: date) -> dict[str, Delivery]:
        found: dict[str, Delivery] = {}
        for page in self._pages(day, day + timedelta(days=self._calendar.extra_days)):
            found |= self._deliveries(page)
        return found

    def _pages(self, first: date, last: date) -> Iterator[list[Any]]:
        for page in self._calls.deliveries(self._hook, f"{first}", f"{last}"):
            if page:
                self._progress(len(page))
            yield page

    def _deliveries(self, page: list[Any]) -> dict[str, Delivery]:
        """The deliveries of a page by their ids."""
        found: dict[str, Delivery] = {}
        for row in page:
            event = self._event(row.get("payload"))
            id = text_id(row.get("id")) or (event.id if event else "")
            if id:
                status = str(row.get("status") or "").lower()
                found[id] = Delivery(id, status, event)
        return found

    def _event(self, payload: object) -> Event | None:
        """The event as the endpoint reads a delivery of it."""
        body = _body(payload)
        if body is None:
            return None
        event, unreadable = self._endpoint.read(body)
        # Without an id, the key is that of the bytes, which are not those that came.
        has_id = not unreadable and event.id != event_key(None, "", body)
        return replace(event, origin=RECONCILE) if has_id else None


def _body(payload: object) -> bytes | None:
    """The payload as a delivery has it; ``None`` if it is no JSON object."""
    try:
        value = json.loads(payload) if isinstance(payload, str) else payload
        if isinstance(value, dict):
            # In ASCII, in which also half a character can be written.
            return json.dumps(value, separators=(",", ":")).encode()
    except (ValueError, RecursionError):
        pass
    return None
