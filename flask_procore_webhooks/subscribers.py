"""Subscribers: stable names, patterns, order, options. No HTTP and no SQL.

Jobs are stored under the subscriber's name, so the name must be the same in every
process and after every deployment: ``module:qualname``, or ``name=``.
"""

from __future__ import annotations

import inspect
import itertools
import os
import re
import threading
from collections.abc import Awaitable
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from typing import TypeVar
from weakref import ref
from weakref import WeakKeyDictionary

from flask import Flask

from .config import Settings
from .config.options import is_generator_function
from .config.options import layers
from .config.options import Options
from .config.options import read_options
from .config.options import signature_problem
from .errors import ConfigError
from .event import Event
from .runtime import end_forked_child
from .senders.payload import normalize_reason
from .senders.payload import SHORT_REASONS

F = TypeVar("F", bound=Callable[..., Any])

ANY = "*"
NAME = re.compile(r"[!-~]{1,190}")
NAME_RULE = "it takes 1 to 190 visible ASCII characters without spaces"
GENERATOR = (
    "is a generator function: a call returns a generator, and the body never runs."
    " Write a plain function, and loop over the generator in it."
)

_order = itertools.count()
_lock = threading.RLock()
#: Every subscriber with the id of its blueprint's collection; 0 for those of signals.
_collections: WeakKeyDictionary[Subscriber, int] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Subscriber(Options):
    """A function that does the app's work for an event, with its options."""

    name: str
    function: Callable[..., object]
    #: Whether it is called with ``(app, event)``, as signals do, or with ``(event)``.
    takes_app: bool
    resource_type: str = ANY
    reason: str = ANY
    #: Rank among all subscribers of the process: they run in order of registration.
    order: int = 0
    #: ``resource_type`` and ``reason`` as they are compared: the type whatever the
    #: case, and the reason as it is in :attr:`Event.reason`.
    pattern: tuple[str, str] = (ANY, ANY)

    def __call__(self, app: Flask, event: Event) -> object:
        """Call the function; the result of an async function is still to be awaited.

        :raises TypeError: it returned a generator, so its work has not been done.
        """
        pid = os.getpid()
        try:
            arguments = (app, event) if self.takes_app else (event,)
            return _not_lazy(self.function(*arguments))
        finally:
            # Before any rollback, which would write to a connection of the parent.
            if os.getpid() != pid:
                end_forked_child()

    @cached_property
    def is_plain(self) -> bool:
        """Whether its due jobs are called without a further look."""
        has_key = self.latest_only or self.one_at_a_time
        return not has_key and self.after is None and self.when is None

    def matches(self, event: Event) -> bool:
        """Whether type and reason of the event fit the pattern."""
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
    **options: Any,
) -> Subscriber:
    """Return a subscriber; its caller registers it.

    :param options: by the names of the fields of :class:`Options`.
    :raises ConfigError: the name cannot be stored, the pattern matches no event, an
        option is wrong, or the function does not take the arguments of a call or is a
        generator function.
    """
    name = name or _name_of(function)
    if not NAME.fullmatch(name):
        raise ConfigError(
            [f"{name!r} is not a subscriber name: {NAME_RULE}; give a name=."]
        )
    _check_pattern(resource_type, reason)
    _check_function(function, name, takes_app)
    pattern = (resource_type.casefold(), normalize_reason(reason).casefold())
    return Subscriber(
        name,
        function,
        takes_app,
        resource_type,
        reason,
        next(_order),
        pattern,
        **vars(read_options(name, options)),
    )


def after_problems(
    subscribers: Iterable[Subscriber], settings: Settings
) -> Iterator[str]:
    """The subscribers whose ``after`` lies beyond ``MAX_AGE``, one sentence each."""
    for each in subscribers:
        if each.after is not None and each.after > settings.max_age:
            yield (
                f"{each.name}: after={each.after:g} is beyond MAX_AGE"
                f" ({settings.max_age:g} s), at which a postponed job is dead."
            )


def claim_name(new: Subscriber, collection: int = 0) -> None:
    """Reserve the subscriber's name as long as it is registered.

    :raises ConfigError: a different function has the name and may run for the same
        event; the two would share their jobs.
    """
    with _lock:
        for other, others in _collections.items():
            together = collection == others or 0 in (collection, others)
            if together and other.name == new.name and not other.same_as(new):
                raise ConfigError([_two_of_a_name(new.name)])
        _collections[new] = collection


def run_to_end(app: Flask, result: object) -> None:
    """Await the result of an async function; any other result is complete."""
    if inspect.isawaitable(_not_lazy(result)):
        app.ensure_sync(to_end)(result)


async def to_end(result: Awaitable[object]) -> object:
    """Await the result of an async function.

    :raises TypeError: that is a generator, so the work has not been done.
    """
    pid = os.getpid()
    try:
        return _not_lazy(await result)
    finally:
        if os.getpid() != pid:
            end_forked_child()


class Subscribers:
    """The subscribers that one blueprint's ``on`` registered, in that order."""

    def __init__(self) -> None:
        self._subscribers: tuple[Subscriber, ...] = ()
        #: The settings of each registration of the blueprint, as long as its app lives.
        self._settings: list[ref[Settings]] = []

    def __iter__(self) -> Iterator[Subscriber]:
        return iter(self._subscribers)

    def add(self, new: Subscriber) -> None:
        """Register ``new``; a function that is defined again replaces the older one.

        :raises ConfigError: the name is taken, or another closure of one definition
            (a loop makes such closures) has it for another pattern; or ``after`` is
            beyond the ``MAX_AGE`` of an app that has the blueprint.
        """
        with _lock:
            for settings in filter(None, [each() for each in self._settings]):
                if problems := [*after_problems([new], settings)]:
                    raise ConfigError(problems)
            claim_name(new, id(self))
            namesakes = [s for s in self._subscribers if s.name == new.name]
            older = [s for s in namesakes if s.function != new.function]
            if older and new.pattern not in {s.pattern for s in older}:
                raise ConfigError([_two_of_a_name(new.name)])
            older += [s for s in namesakes if s.pattern == new.pattern]
            others = (s for s in self._subscribers if s not in older)
            self._subscribers = (*others, new)

    def mount(self, settings: Settings) -> None:
        """Check subscribers that are added later against these settings, too."""
        with _lock:
            alive = [each for each in self._settings if each() is not None]
            self._settings = [*alive, ref(settings)]

    def matching(self, event: Event) -> list[Subscriber]:
        """The subscribers whose pattern fits the event."""
        return [s for s in self._subscribers if s.matches(event)]


def _check_pattern(resource_type: str, reason: str) -> None:
    """Refuse ``on("RFIs.update")``: it would match no event."""
    resource, _, last = resource_type.rpartition(".")
    known = normalize_reason(last)
    if resource and reason == ANY and known in SHORT_REASONS.values():
        raise ConfigError(
            [f"{resource_type!r} is a type: write on({resource!r}, {known!r})."]
        )


def _check_function(
    function: Callable[..., object], name: str, takes_app: bool
) -> None:
    arguments = ("app", "event") if takes_app else ("event",)
    if problem := signature_problem(function, *arguments):
        raise ConfigError([f"{name} {problem}"])
    if is_generator_function(function):
        raise ConfigError([f"{name} {GENERATOR}"])


def _not_lazy(result: object) -> object:
    """Return what a subscriber returned.

    :raises TypeError: it is a generator, which nobody iterates over.
    """
    if inspect.isgenerator(result) or inspect.isasyncgen(result):
        if not inspect.isawaitable(result):
            raise TypeError(
                "the subscriber returned a generator, whose body has not run: loop over"
                " it in the subscriber"
            )
    return result


def _two_of_a_name(name: str) -> str:
    return (
        f"Two different subscribers are named {name!r} and would share their jobs;"
        " give one of them another name=."
    )


def _inner(function: Any) -> Any:
    """The function or callable object inside of partials and wrappers."""
    *_, inner = layers(function)
    return inner


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
