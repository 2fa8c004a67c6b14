"""Deliveries: Procore's record of what a hook has sent, read day by day."""

from __future__ import annotations

import json
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import replace
from datetime import date
from datetime import timedelta
from typing import Any

from ..api.errors import NotFound
from ..api.paging import PER_PAGE
from ..endpoint import Endpoint
from ..event import Event
from ..inbox.record import RECONCILE
from ..senders.payload import event_key
from ..senders.payload import text_id
from .calls import Hook
from .calls import ScopeAPI

#: Number of query widths to try: last day = first day, +1, +2.
WIDTHS = 3
#: Between the times of two events of which a query has the whole day. One that ends
#: where its day begins has the events of that moment.
SPREAD = timedelta(minutes=1)
#: Days between the day of a query and that of its events by UTC, at most.
NEAR = timedelta(days=WIDTHS)
#: Times that the list of a day that is going on is read at most: its rows change.
MOST_PASSES = 3
DELIVERED = "delivered"
#: Statuses of events that Procore no longer sends. ``succeeded`` is a filter's word.
LOST = frozenset({"discarded", "failed"})
ARRIVED = frozenset({DELIVERED, "succeeded"})
#: Statuses of events that are still to come.
COMING = frozenset({"enqueued", "retrying"})


@dataclass(frozen=True)
class Delivery:
    """One event in Procore's list."""

    #: The id of the row and that of the event; unlike those of other rows also without.
    key: tuple[str, str]
    status: str
    #: As the endpoint reads the payload; ``None`` if it has no id or is no payload.
    event: Event | None

    @property
    def identity(self) -> str:
        """What the event has in every query: its id, or that of its row; or ``""``."""
        return self.event.id if self.event else self.key[0]

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
        #: What the query of all days has shown, and what no query of a day has since.
        self._shown: set[str] = set()
        self._unseen: set[str] = set()
        self._has_found = False
        #: Whether the queries of days have the events of the whole day, for certain.
        self.are_whole = False

    @property
    def have_all(self) -> bool:
        """Whether queries of single days had all that the query of all days showed."""
        return self._has_found and not self._unseen

    def read_together(self, first: date, last: date) -> list[Delivery] | None:
        """The deliveries of all days, if they fit into one page; else ``None``.

        Most hooks send few events: one request instead of one for each day.
        """
        found: dict[tuple[str, str], Delivery] = {}
        try:
            for page in self._pages(first, last):
                is_too_long = len(page) >= PER_PAGE or bool(found and page)
                self._read_page(page, found, f"{first} to {last}")
                if is_too_long:
                    self._shown = {e.identity for e in found.values() if e.identity}
                    self._unseen = set(self._shown)
                    return None
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
        for _ in range(MOST_PASSES - 1 if is_open and found else 0):
            again = self._pass(day)
            if again.items() <= found.items():
                break
            found |= again
        self._compare(day, found.values())
        return [*found.values()]

    def widen(self) -> None:
        """End the queries a day later. After the widest ones, begin anew."""
        self._has_found = self.are_whole = False
        self._unseen = set(self._shown)
        self._calendar.extra_days = (self._calendar.extra_days + 1) % WIDTHS

    def _compare(self, day: date, found: Collection[Delivery]) -> None:
        """Note what the answer for a day shows of how Procore reads days."""
        self._has_found |= bool(found)
        self._unseen.difference_update(each.identity for each in found)
        stamps = [each.event.timestamp for each in found if each.event]
        # Without wrong times.
        times = [at for at in stamps if at and abs(at.date() - day) <= NEAR]
        self.are_whole |= bool(times) and max(times) - min(times) >= SPREAD

    def _pass(self, day: date) -> dict[tuple[str, str], Delivery]:
        found: dict[tuple[str, str], Delivery] = {}
        for page in self._pages(day, day + timedelta(days=self._calendar.extra_days)):
            self._read_page(page, found, f"{day}")
        return found

    def _pages(self, first: date, last: date) -> Iterator[list[Any]]:
        for page in self._calls.deliveries(self._hook, f"{first}", f"{last}"):
            if page:
                self._progress(len(page))
            yield page

    def _read_page(
        self, page: list[Any], found: dict[tuple[str, str], Delivery], query: str
    ) -> None:
        """Add the deliveries of a page to those of the same query."""
        for row in page:
            event = self._event(row.get("payload"))
            key = text_id(row.get("id")) or "", event.id if event else ""
            if not any(key):
                key = "", f"{query}, {len(found)}"  # no id has a space
            status = str(row.get("status") or "").strip().lower()
            found[key] = Delivery(key, status, event)

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
