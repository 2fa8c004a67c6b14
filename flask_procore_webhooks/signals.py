"""The signals that an app connects to.

Receivers of work signals are subscribers: they do the app's work for an event and run
until they succeed. They are called with ``(app, event)``::

    @resource_created.connect
    def add_rfi(app, event): ...

Receivers of lifecycle signals are called with ``(app, **fields)``. They observe: their
errors are logged and change nothing for the event.
"""

from __future__ import annotations

import inspect
import os
from asyncio import CancelledError
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import MutableSet
from contextlib import AbstractContextManager
from contextlib import nullcontext
from typing import Any
from typing import TypeVar

from blinker import ANY
from blinker import NamedSignal
from blinker import Namespace
from flask import current_app
from flask import Flask
from flask import has_app_context

from .log import log
from .runtime import end_forked_child
from .subscribers import claim_name
from .subscribers import new_subscriber
from .subscribers import run_to_end
from .subscribers import Subscriber

F = TypeVar("F", bound=Callable[..., Any])


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

    Receivers are referenced strongly, run in the order of connection, and each has a
    stable name. A function that is connected again (same file and line, same sender)
    replaces the older one, so an app factory may be called many times.
    """

    set_class = OrderedSet  # type: ignore[assignment]  # blinker uses it as a set

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

        :param weak: has no effect: a collected subscriber would lose events.
        :param name: the subscriber's name instead of ``module:qualname``.
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
        """End the subscription for that sender or for all, and free the name."""
        super().disconnect(receiver, sender)
        for key, subscriber in list(self._subscribers.items()):
            fits = sender is ANY or key[0] == id(sender)
            if fits and subscriber.function == receiver:
                del self._subscribers[key]

    def subscribers_for(self, app: Flask) -> Iterator[Subscriber]:
        """The subscribers that are connected for ``app``; none while muted."""
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
    """A signal whose receivers observe: their errors are logged and change nothing."""

    def connect(self, receiver: F, sender: Any = ANY, weak: bool = False) -> F:
        """Connect a lifecycle receiver, referenced strongly unless ``weak``."""
        return super().connect(receiver, sender, weak)

    def announce(self, app: Flask, **fields: Any) -> None:
        """Call every receiver with ``(app, **fields)``, also after one has failed.

        A receiver gets the fields that it names, or all of them with ``**fields``, and
        an app context: the current one of ``app``, else one of its own.
        """
        if self.is_muted:
            return
        pid = os.getpid()
        for receiver in self.receivers_for(app):
            try:
                with _context_of(app):
                    run_to_end(app, receiver(app, **_accepted(receiver, fields)))
            except (Exception, CancelledError):
                log.exception("A receiver of %s failed: %r", self.name, receiver)
            finally:
                if os.getpid() != pid:
                    end_forked_child()


def _context_of(app: Flask) -> AbstractContextManager[object]:
    """The current context of ``app`` or a new one: in a worker, there is none."""
    if has_app_context() and current_app == app:
        return nullcontext()
    return app.app_context()


def _accepted(receiver: Callable[..., Any], fields: dict[str, Any]) -> dict[str, Any]:
    """The fields that the receiver takes, so that signals can have further ones."""
    try:
        parameters = inspect.signature(receiver).parameters.values()
    except (TypeError, ValueError):  # of a builtin without a signature
        return fields
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return fields
    named = {each.name for each in parameters}
    return {name: value for name, value in fields.items() if name in named}


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
    "event-recorded", "``event``: it is committed; its subscribers have yet to run."
)
event_repeated = _lifecycle(
    "event-repeated",
    "``event``, ``conflict``: it was recorded before, with another body if a conflict.",
)
event_processed = _lifecycle(
    "event-processed", "``event``: all its jobs have finished, and none is dead."
)
event_failed = _lifecycle(
    "event-failed",
    "``event``, ``error``, ``exception``: an attempt failed, and a job is pending.",
)
event_dead = _lifecycle(
    "event-dead",
    "``event``, ``error``, ``exception``: a job is dead and none is pending, or the"
    " body is not a JSON object.",
)
delivery_rejected = _lifecycle(
    "delivery-rejected",
    "``endpoint``, ``status``, ``reason``: a delivery was refused with that status.",
)

WORK_SIGNALS = (resource_event, resource_created, resource_updated, resource_deleted)

#: The work signals that an event fires, by its reason; only the first by any other.
FIRED = {
    "create": (resource_event, resource_created),
    "update": (resource_event, resource_updated),
    "delete": (resource_event, resource_deleted),
}
