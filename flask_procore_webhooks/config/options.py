"""Options of a subscription: their values, checked at registration. No Flask."""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import re
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from ..event import Event
from ..runtime import end_forked_child
from .values import MOST
from .values import shown

#: What counts as the same for a subscriber.
Key = str | Callable[[Event], str | None]
#: A resource type, ``"RFIs"``, or also a reason, ``"RFIs.update"`` or a pair.
Pattern = str | tuple[str, str]
#: Keys that are named by what the event is about.
NAMED_KEYS = ("resource", "project", "company")
#: A key that every database stores and compares exactly as it is.
PLAIN_KEY = re.compile(r"[!-~](?:[ -~]{0,188}[!-~])?")
#: Least seconds of ``lag``: the clocks of two hosts may differ by so much.
LEAST_LAG = 0.5
#: The default of ``settle_max``: a multiple of ``settle``, and seconds without it.
SETTLES, USUAL_SETTLE_MAX = 10, 60.0
SECONDS = ("settle", "settle_max", "lag", "after", "timeout")
SWITCHES = ("latest_only", "one_at_a_time", "durable")
#: Options that do nothing without ``latest_only``.
OF_LATEST_ONLY = ("settle", "settle_max", "lag")


@dataclass(frozen=True, eq=False, kw_only=True)
class Options:
    """The options of a subscriber. Times are seconds, ``None`` if not given."""

    #: Whether a job is superseded once a newer event of its key is done.
    latest_only: bool = False
    #: With ``latest_only``: due that long after the last event of the key came in.
    settle: float | None = None
    #: The longest wait for a newer event. If not given, 10 times ``settle``, and 60
    #: without it.
    settle_max: float = USUAL_SETTLE_MAX
    #: With ``latest_only``: superseded by a finished run that began later than the
    #: event's timestamp and this.
    lag: float | None = None
    #: First due that long after the event was recorded.
    after: float | None = None
    #: ``"resource"``, ``"project"``, ``"company"``, or a function of the event.
    key: Key = "resource"
    #: Whether two jobs of one key never run at the same time.
    one_at_a_time: bool = False
    #: A function of the event; if it returns false, the job is suppressed.
    when: Callable[[Event], object] | None = None
    #: Limit for one call, instead of the setting ``TIMEOUT``.
    timeout: float | None = None
    #: Whether the job is settled by itself instead of with others of its batch.
    durable: bool = False

    def key_of(self, event: Event) -> str | None:
        """Return the key of the event as it is stored, or ``None`` without one.

        Of a resource, it is the type in one letter case, a slash and the id. A key of
        more than 190 characters, or of others than visible ASCII with spaces inside,
        is replaced by its digest.

        :raises TypeError: the function ``key`` did not return text or ``None``.
        """
        if callable(self.key):
            found = _called("key", self.key, event)
            if found is not None and not isinstance(found, str):
                kind = type(found).__name__
                raise TypeError(f"key= returned {kind}; return text, or None")
        elif self.key == "resource":
            # Ids without a type may be of different resources.
            has_key = event.resource_type and event.resource_id
            type_ = (event.resource_type or "").casefold()
            found = f"{type_}/{event.resource_id}" if has_key else None
        else:
            found = event.project_id if self.key == "project" else event.company_id
        return None if found is None else _stored(found)

    def wants(self, event: Event) -> bool:
        """Whether the condition ``when`` holds for the event; true without one."""
        return self.when is None or bool(_called("when", self.when, event))


def read_options(name: str, given: dict[str, Any]) -> Options:
    """Return the options with their defaults.

    :param name: of the subscriber, for the texts of the problems.
    :param given: options by name; ``None`` is the same as not given.
    :raises ConfigError: with every problem found.
    """
    given = {option: value for option, value in given.items() if value is not None}
    problems = [*_wrong_types(given), *_wrong_functions(given)]
    # Without these the values cannot be compared.
    problems = problems or [*_wrong_combinations(given)]
    if problems:
        raise ConfigError([f"{name}: {problem}" for problem in problems])
    for option in SECONDS:
        if option in given:
            given[option] = float(given[option])
    if "settle_max" not in given and "settle" in given:
        given["settle_max"] = SETTLES * given["settle"]
    return Options(**given)


def is_generator_function(function: Any) -> bool:
    """Whether a call returns a generator, so that the body would never run.

    Looks behind partials, bound methods, ``functools.wraps`` and callable objects.
    """
    *outer, inner = layers(function)
    # Of a callable object, the method that is called.
    called = layers(inspect.getattr_static(type(inner), "__call__", None))
    return any(
        inspect.isgeneratorfunction(each) or inspect.isasyncgenfunction(each)
        for each in (*outer, inner, *called)
    )


def layers(function: Any) -> Iterator[Any]:
    """Yield the callable, and what partials, methods and wrappers have inside."""
    seen: list[Any] = []
    while function is not None and not any(function is each for each in seen):
        seen.append(function)
        yield function
        if isinstance(function, functools.partial):
            function = function.func
        else:
            inside = getattr(function, "__wrapped__", None)
            function = getattr(function, "__func__", inside)


def pattern_problems(patterns: Any) -> list[str]:
    """The problems of ``hooks_for``, one sentence each."""
    rule = 'as in hooks_for=["RFIs", "Submittals.update"]'
    if not isinstance(patterns, (list, tuple, set, frozenset)):
        return [f"hooks_for= is a list of patterns, {rule}, not {shown(patterns)}."]
    return [
        f"hooks_for= holds patterns, {rule}, not {shown(each)}."
        for each in patterns
        if not all(split_pattern(each))
    ]


def split_pattern(pattern: Any) -> tuple[str, str]:
    """Resource type and reason, ``"*"`` for any; two empty texts if it is invalid."""
    if isinstance(pattern, str):
        resource_type, dot, reason = pattern.rpartition(".")
        return (resource_type, reason) if dot else (pattern, "*")
    is_pair = isinstance(pattern, (list, tuple)) and len(pattern) == 2
    if is_pair and all(isinstance(each, str) for each in pattern):
        return pattern[0], pattern[1]
    return "", ""


def signature_problem(function: Any, *arguments: str) -> str | None:
    """Why the function cannot be called with these positional arguments, if so."""
    try:
        inspect.signature(function).bind(*arguments)
    except ValueError:  # of a builtin without a signature
        return None
    except TypeError as error:
        return f"is called with ({', '.join(arguments)}): {error}."
    return None


def _wrong_types(given: dict[str, Any]) -> Iterator[str]:
    for option in SWITCHES:
        if not isinstance(given.get(option, False), bool):
            yield f"{option}= is True or False, not {shown(given[option])}."
    for option in SECONDS:
        value = given.get(option, 1)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (is_number and 0 < value <= MOST):
            yield f"{option}= is a number of seconds above 0, not {shown(value)}."


def _wrong_functions(given: dict[str, Any]) -> Iterator[str]:
    key = given.get("key", "resource")
    if not callable(key) and key not in NAMED_KEYS:
        yield (
            'key= is "resource", "project", "company" or a function of the event, not'
            f" {shown(key)}."
        )
    if not callable(given.get("when", callable)):
        yield f"when= is a function of the event, not {shown(given['when'])}."
    for option in ("key", "when"):
        function = given.get(option)
        if not callable(function):
            continue
        if problem := signature_problem(function, "event"):
            yield f"{option}= {problem}"
        is_async = any(inspect.iscoroutinefunction(each) for each in layers(function))
        if is_async or is_generator_function(function):
            yield f"{option}= is a plain function: neither async nor a generator."


def _wrong_combinations(given: dict[str, Any]) -> Iterator[str]:
    for option in OF_LATEST_ONLY:
        if option in given and not given.get("latest_only"):
            yield f"{option}= needs latest_only=True."
    least = given.get("settle", 0)
    if given.get("settle_max", least) < least:
        yield f"settle_max= is at least settle= ({least:g} s)."
    if given.get("lag", LEAST_LAG) < LEAST_LAG:
        yield (
            f"lag= is at least {LEAST_LAG:g} s, and more than the difference between"
            " this host's clock and Procore's."
        )
    is_resource = given.get("key", "resource") == "resource"
    if not is_resource and not ("settle" in given or given.get("one_at_a_time")):
        yield 'a key= other than "resource" needs settle= or one_at_a_time=True.'


def _called(option: str, function: Callable[[Event], object], event: Event) -> object:
    """Call the function of an option.

    :raises TypeError: the result is still to be awaited or iterated over.
    """
    pid = os.getpid()
    try:
        found = function(event)
    finally:
        if os.getpid() != pid:
            end_forked_child()
    is_lazy = inspect.isgenerator(found) or inspect.isasyncgen(found)
    if inspect.iscoroutine(found):
        found.close()
    if is_lazy or inspect.isawaitable(found):
        raise TypeError(
            f"{option}= returned {type(found).__name__}; it is a plain function,"
            " neither async nor a generator"
        )
    return found


def _stored(key: str) -> str:
    if PLAIN_KEY.fullmatch(key) and not key.startswith("sha256:"):
        return key
    content = key.encode("utf-8", "surrogatepass")
    return "sha256:" + hashlib.sha256(content).hexdigest()
