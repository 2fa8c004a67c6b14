"""The signals that an app connects to.

Work signals make subscribers: their receivers do the app's work for an event and are
run until they succeed. Receivers are called with ``(app, event)``::

    @resource_created.connect
    def add_rfi(app, event): ...

Lifecycle signals have watchers, called with ``(app, **fields)``: they are told what
happened, and nothing that they do or raise changes what happens to the event.
"""

from __future__ import annotations

import logging
from asyncio import CancelledError
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import MutableSet
from typing import Any
from typing import TypeVar

from blinker import ANY
from blinker import NamedSignal
from blinker import Namespace
from flask import Flask

from .events import Event
from .subscribers import claim_name
from .subscribers import new_subscriber
from .subscribers import run_to_end
from .subscribers import Subscriber

F = TypeVar("F", bound=Callable[..., Any])

log = logging.getLogger("flask_procore_webhooks")


class OrderedSet(MutableSet[Any]):
    """A set in the order of insertion."""

    def __init__(self, items: Iterable[Any] = ()) -> None:
        self._items = dict.fromkeys(items)

    def __contains__(self, item: object) -> bool:
        return item in self._items

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: Any) -> None:
        self._items[item] = None

    def discard(self, item: Any) -> None:
        self._items.pop(item, None)

    def copy(self) -> OrderedSet:
        return OrderedSet(self._items)


class WorkSignal(NamedSignal):
    """A signal whose receivers are subscribers.

    Receivers are held strongly, run in the order of connection, and each has a stable
    name. Connecting the same function again (same file and line, for the same sender)
    replaces its older self, so an app factory may be called many times.
    """

    set_class = OrderedSet  # type: ignore[assignment]  # a set as far as blinker goes

    def __init__(self, name: str, doc: str | None = None) -> None:
        super().__init__(name, doc)
        self._subscribers: dict[tuple[int, str], Subscriber] = {}

    def connect(
        self,
        receiver: F,
        sender: Any = ANY,
        weak: bool = False,
        *,
        name: str | None = None,
    ) -> F:
        """Make ``receiver`` a subscriber, for the app ``sender`` or for every app.

        :param weak: has no effect: a subscriber that vanished would lose events.
        :param name: what receipts are kept under, instead of ``module:qualname``.
        :raises ConfigError: a different function of that name is registered.
        """
        subscriber = new_subscriber(receiver, name, takes_app=True)
        claim_name(subscriber)
        key = id(sender), subscriber.name
        older = self._subscribers.get(key)
        self._subscribers[key] = subscriber
        if older and not self._subscribed(older.function):
            super().disconnect(older.function)
        return super().connect(receiver, sender, weak=False)

    def connect_via(
        self, sender: Any, weak: bool = False, *, name: str | None = None
    ) -> Callable[[F], F]:
        """Make the decorated function a subscriber of the app ``sender`` only."""

        def decorator(receiver: F) -> F:
            return self.connect(receiver, sender, name=name)

        return decorator

    def disconnect(self, receiver: Callable[..., Any], sender: Any = ANY) -> None:
        """End the subscription for that sender, or for all; the name is free again."""
        super().disconnect(receiver, sender)
        for key, subscriber in list(self._subscribers.items()):
            fits = sender is ANY or key[0] == id(sender)
            if fits and subscriber.function == receiver:
                del self._subscribers[key]

    def subscribers_for(self, app: Flask) -> Iterator[Subscriber]:
        """The subscribers connected for ``app`` now, muted ones left out."""
        if self.is_muted:
            return
        connected = list(self.receivers_for(app))
        for (sender, _), subscriber in list(self._subscribers.items()):
            if sender in (id(ANY), id(app)) and subscriber.function in connected:
                yield subscriber

    def _subscribed(self, function: Callable[..., Any]) -> bool:
        return any(s.function == function for s in self._subscribers.values())

    def _clear_state(self) -> None:
        self._subscribers.clear()
        super()._clear_state()


class LifecycleSignal(NamedSignal):
    """A signal for watching: a watcher's error is logged and changes nothing."""

    def connect(self, receiver: F, sender: Any = ANY, weak: bool = False) -> F:
        """Connect a watcher, held strongly unless ``weak``."""
        return super().connect(receiver, sender, weak)

    def announce(self, app: Flask, **fields: Any) -> None:
        """Call every watcher with ``(app, **fields)``, whatever the others raise."""
        if self.is_muted:
            return
        for watcher in self.receivers_for(app):
            try:
                run_to_end(app, watcher(app, **fields))
            except (Exception, CancelledError):
                log.exception("A watcher of %s failed: %r", self.name, watcher)


_signals = Namespace()


def _work(name: str, doc: str) -> WorkSignal:
    return _signals.setdefault(name, WorkSignal(name, doc))  # type: ignore[return-value]


def _lifecycle(name: str, doc: str) -> LifecycleSignal:
    return _signals.setdefault(name, LifecycleSignal(name, doc))  # type: ignore[return-value]


resource_event = _work("resource-event", "Every event, whatever its reason.")
resource_created = _work("resource-created", "Events of reason ``create``.")
resource_updated = _work("resource-updated", "Events of reason ``update``.")
resource_deleted = _work("resource-deleted", "Events of reason ``delete``.")

event_recorded = _lifecycle(
    "event-recorded", "``event``: committed in the inbox; no subscriber has run yet."
)
event_repeated = _lifecycle(
    "event-repeated",
    "``event``, ``conflict``: it was in the inbox already, maybe with another body.",
)
event_processed = _lifecycle(
    "event-processed", "``event``: every subscriber has finished."
)
event_failed = _lifecycle(
    "event-failed", "``event``, ``error``: a run failed and will be repeated."
)
event_dead = _lifecycle(
    "event-dead", "``event``, ``error``: given up; it stays in the inbox, replayable."
)
delivery_rejected = _lifecycle(
    "delivery-rejected",
    "``endpoint``, ``status``, ``reason``: a delivery was refused with that status.",
)

WORK_SIGNALS = (resource_event, resource_created, resource_updated, resource_deleted)

_BY_REASON = {
    "create": resource_created,
    "update": resource_updated,
    "delete": resource_deleted,
}


def work_signals(event: Event) -> tuple[WorkSignal, ...]:
    """The work signals that ``event`` fires."""
    by_reason = _BY_REASON.get(event.reason or "")
    return (resource_event, by_reason) if by_reason else (resource_event,)
