"""Subscribers: stable names, patterns, order. No HTTP and no SQL.

A subscriber's name is what its receipts are kept under, so it has to be the same in
every process and after every deployment: ``module:qualname``, or ``name=``.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import re
import threading
from collections.abc import Awaitable
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from typing import TypeVar
from weakref import WeakKeyDictionary

from flask import Flask

from .errors import ConfigError
from .events import ENVELOPE_REASONS
from .events import Event

F = TypeVar("F", bound=Callable[..., Any])

ANY = "*"
NAME = re.compile(r"[!-~]{1,190}")
NAME_RULE = "it takes 1 to 190 visible ASCII characters without spaces"

_order = itertools.count()
_lock = threading.RLock()
#: Every subscriber, and the blueprint's collection it is in; 0 for those of signals.
_collections: WeakKeyDictionary[Subscriber, int] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Subscriber:
    """A function that does the app's work for an event."""

    name: str
    function: Callable[..., object]
    #: Whether it is called with ``(app, event)``, as signals do, or with ``(event)``.
    takes_app: bool
    resource_type: str = ANY
    reason: str = ANY
    #: Rank among all subscribers of the process: they run in order of registration.
    order: int = 0
    #: Whether an event is left out when a newer one of its resource does its work.
    latest_only: bool = False

    def __call__(self, app: Flask, event: Event) -> object:
        """Call the function; what an async one returns is still to be awaited."""
        return self.function(app, event) if self.takes_app else self.function(event)

    def matches(self, event: Event) -> bool:
        return _fits(self.resource_type, event.resource_type) and _fits(
            self.reason, event.reason
        )

    def same_as(self, other: Subscriber) -> bool:
        """Whether both are the same function, defined once or again."""
        return _definition(self.function) == _definition(other.function)

    @property
    def pattern(self) -> tuple[str, str]:
        return self.resource_type.casefold(), self.reason.casefold()


def new_subscriber(
    function: Callable[..., object],
    name: str | None,
    *,
    takes_app: bool,
    resource_type: str = ANY,
    reason: str = ANY,
    latest_only: bool = False,
) -> Subscriber:
    """Return a subscriber, not registered yet.

    :raises ConfigError: receipts cannot be kept under the name, or the function would
        never be run, or not with these arguments.
    """
    name = name or _name_of(function)
    if not NAME.fullmatch(name):
        raise ConfigError(
            [f"{name!r} is no subscriber name: {NAME_RULE}; give a name=."]
        )
    _check_pattern(resource_type, reason)
    _check_parameters(function, name, takes_app)
    return Subscriber(
        name, function, takes_app, resource_type, reason, next(_order), latest_only
    )


def claim_name(new: Subscriber, collection: int = 0) -> None:
    """Take the subscriber's name; as long as it is registered, the name is its own.

    :raises ConfigError: a different function that the same event may be run by has the
        name; the two would share their receipts.
    """
    with _lock:
        for other, others in _collections.items():
            together = collection == others or 0 in (collection, others)
            if together and other.name == new.name and not other.same_as(new):
                raise ConfigError([_two_of_a_name(new.name)])
        _collections[new] = collection


def run_to_end(app: Flask, result: object) -> None:
    """Await what an async function returned; what any other did is there."""
    if inspect.isawaitable(result):
        app.ensure_sync(_wait)(result)


class Subscribers:
    """What one blueprint's ``on`` registered, in order of registration."""

    def __init__(self) -> None:
        self._subscribers: tuple[Subscriber, ...] = ()

    def __iter__(self) -> Iterator[Subscriber]:
        return iter(self._subscribers)

    def add(self, new: Subscriber) -> None:
        """Register; the same function defined again replaces its older self.

        :raises ConfigError: the name is taken, or a different closure of the same
            definition, as a loop makes them, has it for another pattern.
        """
        with _lock:
            claim_name(new, id(self))
            namesakes = [s for s in self._subscribers if s.name == new.name]
            older = [s for s in namesakes if s.function != new.function]
            if older and new.pattern not in {s.pattern for s in older}:
                raise ConfigError([_two_of_a_name(new.name)])
            older += [s for s in namesakes if s.pattern == new.pattern]
            others = (s for s in self._subscribers if s not in older)
            self._subscribers = (*others, new)

    def matching(self, event: Event) -> list[Subscriber]:
        return [s for s in self._subscribers if s.matches(event)]


def _check_pattern(resource_type: str, reason: str) -> None:
    """Refuse a type where its two halves are asked for: it would match no event."""
    resource, _, last = resource_type.rpartition(".")
    known = ENVELOPE_REASONS.get(last.lower(), last.lower())
    if resource and reason == ANY and known in ENVELOPE_REASONS.values():
        raise ConfigError(
            [f"{resource_type!r} is a type: write on({resource!r}, {known!r})."]
        )


def _check_parameters(
    function: Callable[..., object], name: str, takes_app: bool
) -> None:
    arguments = ("app", "event") if takes_app else ("event",)
    with suppress(ValueError):  # of a builtin, which has no signature
        try:
            inspect.signature(function).bind(*arguments)
        except TypeError as error:
            raise ConfigError(
                [f"{name} is called with ({', '.join(arguments)}): {error}."]
            ) from None


async def _wait(result: Awaitable[object]) -> object:
    return await result


def _fits(pattern: str, value: str | None) -> bool:
    return pattern == ANY or pattern.casefold() == (value or "").casefold()


def _two_of_a_name(name: str) -> str:
    return (
        f"Two different subscribers are named {name!r}, so their receipts could not"
        " be told apart; give one of them a name=."
    )


def _inner(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.unwrap(getattr(function, "__func__", function))


def _name_of(function: Callable[..., object]) -> str:
    inner = _inner(function)
    if not hasattr(inner, "__qualname__"):
        inner = type(inner)
    return f"{inner.__module__}:{inner.__qualname__}"


def _definition(function: Callable[..., object]) -> object:
    """Where the function stands: the same file and line is the same function."""
    inner = _inner(function)
    code = getattr(inner, "__code__", None) or getattr(
        type(inner).__call__, "__code__", None
    )
    if code is None:
        return inner
    # A decorator without functools.wraps gives all that it wraps one place.
    return (code.co_filename, code.co_firstlineno, *_places_within(inner))


def _places_within(function: Any) -> Iterator[tuple[str, int]]:
    for cell in getattr(function, "__closure__", None) or ():
        with suppress(ValueError):  # of a cell that is empty yet
            code = getattr(cell.cell_contents, "__code__", None)
            if code:
                yield code.co_filename, code.co_firstlineno
