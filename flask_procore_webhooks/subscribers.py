"""Subscribers: stable names, patterns, order. No HTTP and no SQL.

Receipts are stored under the subscriber's name, so the name must be the same in every
process and after every deployment: ``module:qualname``, or ``name=``.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import os
import re
import threading
from collections.abc import Awaitable
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from typing import Any
from typing import TypeVar
from weakref import WeakKeyDictionary

from flask import Flask

from .errors import ConfigError
from .event import Event
from .runtime import end_forked_child
from .senders.payload import SHORT_REASONS

F = TypeVar("F", bound=Callable[..., Any])

ANY = "*"
NAME = re.compile(r"[!-~]{1,190}")
NAME_RULE = "it takes 1 to 190 visible ASCII characters without spaces"

_order = itertools.count()
_lock = threading.RLock()
#: Every subscriber with the id of its blueprint's collection; 0 for those of signals.
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
    #: Whether an event is superseded by a newer event of its resource.
    latest_only: bool = False
    #: ``resource_type`` and ``reason`` for comparison, whatever the case.
    pattern: tuple[str, str] = (ANY, ANY)
    #: Seconds that one call may take; ``None`` for the setting ``TIMEOUT``.
    timeout: float | None = None

    def __call__(self, app: Flask, event: Event) -> object:
        """Call the function; the result of an async function is still to be awaited."""
        pid = os.getpid()
        try:
            return self.function(app, event) if self.takes_app else self.function(event)
        finally:
            # Before any rollback, which would write to a connection of the parent.
            if os.getpid() != pid:
                end_forked_child()

    def matches(self, event: Event) -> bool:
        resource_type, reason = self.pattern
        return (
            resource_type == ANY
            or resource_type == (event.resource_type or "").casefold()
        ) and (reason == ANY or reason == (event.reason or "").casefold())

    def same_as(self, other: Subscriber) -> bool:
        """Whether both are one function, or an older and a newer definition of it."""
        return _definition(self.function) == _definition(other.function)


def new_subscriber(
    function: Callable[..., object],
    name: str | None,
    *,
    takes_app: bool,
    resource_type: str = ANY,
    reason: str = ANY,
    latest_only: bool = False,
    timeout: float | None = None,
) -> Subscriber:
    """Return a subscriber; its caller registers it.

    :raises ConfigError: the name cannot be stored, the pattern matches no event, the
        timeout is not a time, or the function does not take the arguments of a call.
    """
    name = name or _name_of(function)
    if not NAME.fullmatch(name):
        raise ConfigError(
            [f"{name!r} is not a subscriber name: {NAME_RULE}; give a name=."]
        )
    _check_pattern(resource_type, reason)
    _check_parameters(function, name, takes_app)
    _check_timeout(name, timeout)
    return Subscriber(
        name,
        function,
        takes_app,
        resource_type,
        reason,
        next(_order),
        latest_only,
        (resource_type.casefold(), reason.casefold()),
        timeout,
    )


def claim_name(new: Subscriber, collection: int = 0) -> None:
    """Reserve the subscriber's name as long as it is registered.

    :raises ConfigError: a different function has the name and may run for the same
        event; the two would share their receipts.
    """
    with _lock:
        for other, others in _collections.items():
            together = collection == others or 0 in (collection, others)
            if together and other.name == new.name and not other.same_as(new):
                raise ConfigError([_two_of_a_name(new.name)])
        _collections[new] = collection


def run_to_end(app: Flask, result: object) -> None:
    """Await the result of an async function; any other result is complete."""
    if inspect.isawaitable(result):
        app.ensure_sync(to_end)(result)


async def to_end(result: Awaitable[object]) -> object:
    """Await the result of an async function."""
    pid = os.getpid()
    try:
        return await result
    finally:
        if os.getpid() != pid:
            end_forked_child()


class Subscribers:
    """The subscribers that one blueprint's ``on`` registered, in that order."""

    def __init__(self) -> None:
        self._subscribers: tuple[Subscriber, ...] = ()

    def __iter__(self) -> Iterator[Subscriber]:
        return iter(self._subscribers)

    def add(self, new: Subscriber) -> None:
        """Register ``new``; a function that is defined again replaces the older one.

        :raises ConfigError: the name is taken, or another closure of one definition
            (a loop makes such closures) has it for another pattern.
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
    """Refuse ``on("RFIs.update")``: it would match no event."""
    resource, _, last = resource_type.rpartition(".")
    known = SHORT_REASONS.get(last.lower(), last.lower())
    if resource and reason == ANY and known in SHORT_REASONS.values():
        raise ConfigError(
            [f"{resource_type!r} is a type: write on({resource!r}, {known!r})."]
        )


def _check_parameters(
    function: Callable[..., object], name: str, takes_app: bool
) -> None:
    arguments = ("app", "event") if takes_app else ("event",)
    with suppress(ValueError):  # of a builtin without a signature
        try:
            inspect.signature(function).bind(*arguments)
        except TypeError as error:
            raise ConfigError(
                [f"{name} is called with ({', '.join(arguments)}): {error}."]
            ) from None


def _check_timeout(name: str, timeout: object) -> None:
    is_number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if timeout is not None and not (is_number and 0 < float(timeout) < inf):  # type: ignore[arg-type]
        raise ConfigError(
            [f"{name}: timeout= is a number of seconds above 0, not {timeout!r}."]
        )


def _two_of_a_name(name: str) -> str:
    return (
        f"Two different subscribers are named {name!r} and would share their receipts;"
        " give one of them another name=."
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
    """Return the place of the function: one file and line is one function."""
    inner = _inner(function)
    code = getattr(inner, "__code__", None) or getattr(
        type(inner).__call__, "__code__", None
    )
    if code is None:
        return inner
    # All functions that one decorator without functools.wraps wraps have one place.
    return (code.co_filename, code.co_firstlineno, *_places_within(inner))


def _places_within(function: Any) -> Iterator[tuple[str, int]]:
    for cell in getattr(function, "__closure__", None) or ():
        with suppress(ValueError):  # of an empty cell
            code = getattr(cell.cell_contents, "__code__", None)
            if code:
                yield code.co_filename, code.co_firstlineno
