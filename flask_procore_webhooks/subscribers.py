"""Subscribers: stable names, patterns, order. No HTTP and no SQL.

A subscriber's name is what its receipts are kept under, so it has to be the same in
every process and after every deployment: ``module:qualname``, or ``name=``.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import re
from collections.abc import Awaitable
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from typing import TypeVar
from weakref import WeakValueDictionary

from flask import Flask

from .errors import ConfigError
from .events import Event

F = TypeVar("F", bound=Callable[..., Any])

ANY = "*"
NAME = re.compile(r"[!-~]{1,190}")
NAME_RULE = "it takes 1 to 190 visible ASCII characters without spaces"

_order = itertools.count()
_alive: WeakValueDictionary[str, Subscriber] = WeakValueDictionary()


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

    def __call__(self, app: Flask, event: Event) -> None:
        """Run the function to its end, whether it is sync or async."""
        arguments = (app, event) if self.takes_app else (event,)
        result = self.function(*arguments)
        if inspect.isawaitable(result):
            app.ensure_sync(_wait)(result)

    def matches(self, event: Event) -> bool:
        return _fits(self.resource_type, event.resource_type) and _fits(
            self.reason, event.reason
        )

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
) -> Subscriber:
    """Return a subscriber with a name of its own.

    :raises ConfigError: the name cannot be stored, or a different function that is
        still registered has it; the two would share their receipts.
    """
    name = name or _name_of(function)
    if not NAME.fullmatch(name):
        raise ConfigError(
            [f"{name!r} is no subscriber name: {NAME_RULE}; give a name=."]
        )
    other = _alive.get(name)
    if other and _definition(other.function) != _definition(function):
        raise ConfigError([_two_of_a_name(name)])
    subscriber = Subscriber(
        name, function, takes_app, resource_type, reason, next(_order)
    )
    _alive[name] = subscriber
    return subscriber


class Subscribers:
    """What one blueprint's ``on`` registered, in order of registration."""

    def __init__(self) -> None:
        self._subscribers: tuple[Subscriber, ...] = ()

    def __iter__(self) -> Iterator[Subscriber]:
        return iter(self._subscribers)

    def add(self, new: Subscriber) -> None:
        """Register; the same function defined again replaces its older self.

        :raises ConfigError: a different closure of the same definition, as a loop
            makes them, is registered under the same name for another pattern.
        """
        namesakes = [s for s in self._subscribers if s.name == new.name]
        older = [s for s in namesakes if s.function != new.function]
        if older and new.pattern not in {s.pattern for s in older}:
            raise ConfigError([_two_of_a_name(new.name)])
        self._subscribers = (*(s for s in self._subscribers if s not in older), new)

    def matching(self, event: Event) -> list[Subscriber]:
        return [s for s in self._subscribers if s.matches(event)]


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


def _definition(function: Callable[..., object]) -> tuple[str, int] | object:
    """Where the function stands: the same file and line is the same function."""
    inner = _inner(function)
    code = getattr(inner, "__code__", None) or getattr(
        type(inner).__call__, "__code__", None
    )
    return (code.co_filename, code.co_firstlineno) if code else inner
