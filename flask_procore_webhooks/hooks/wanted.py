"""Wanted: the triggers that an endpoint's own subscriptions ask for."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..config.options import split_pattern
from ..endpoint import Endpoint
from ..senders.payload import normalize_reason
from ..signals import WORK_SIGNALS
from ..subscribers import ANY
from .calls import Pair
from .calls import Resource

#: Triggers that Procore has ended.
#: https://developers.procore.com/documentation/content/webhook-fanout-migration
ENDED = {("project users", "update"), ("project vendors", "update")}
ENDED_ON = "2026-06-30"
#: The name of what asks for the patterns of the blueprint.
HOOKS_FOR = "hooks_for"


@dataclass(frozen=True)
class WantedPattern:
    """A pattern of an endpoint: a resource type and a reason, ``"*"`` for any."""

    resource: str
    reason: str
    #: The subscriber's name, or ``hooks_for``.
    asked_by: str

    def __str__(self) -> str:
        return f"{self.resource}.{self.reason}"

    @property
    def has_ended(self) -> bool:
        """Whether it names a trigger that Procore has ended."""
        return (self.resource.casefold(), self.reason) in ENDED


@dataclass(frozen=True)
class Catalogue:
    """What hooks of one kind of scope can send."""

    #: ``company`` or ``project``.
    kind: str
    resources: Sequence[Resource]

    def find(self, name: str) -> Resource | None:
        """The resource of that name, whatever the case."""
        return next((r for r in self.resources if r.is_named(name)), None)

    def pairs(self, pattern: WantedPattern) -> Iterator[Pair]:
        """The triggers that the pattern stands for."""
        for resource in self.resources:
            if pattern.resource != ANY and not resource.is_named(pattern.resource):
                continue
            for action in resource.actions:
                if pattern.reason in (ANY, normalize_reason(action)):
                    yield Pair(resource.name, action)


@dataclass(frozen=True)
class Wanted:
    """What an endpoint asks for."""

    patterns: tuple[WantedPattern, ...]
    #: Names of signal receivers, which ask for no trigger.
    receivers: tuple[str, ...]
    #: Names of subscribers to any resource type, which ask for none because of
    #: ``hooks_for``.
    any_type: tuple[str, ...]

    def pairs(self, catalogue: Catalogue) -> list[Pair]:
        """The triggers to have in a scope of that kind, each once and in order."""
        found: dict[tuple[str, str], Pair] = {}
        for pattern in self.patterns:
            for pair in catalogue.pairs(pattern):
                found.setdefault(pair.key, pair)
        return sorted(found.values(), key=lambda pair: pair.key)

    @property
    def is_incomplete(self) -> bool:
        """Whether signal receivers need triggers, and no pattern names them."""
        is_named = any(each.asked_by == HOOKS_FOR for each in self.patterns)
        return bool(self.receivers) and not is_named

    def problems(
        self, catalogues: Sequence[Catalogue], unknown: Sequence[str] = ()
    ) -> list[str]:
        """The patterns that no catalogue has, one sentence each.

        :param unknown: why further catalogues could not be read, one sentence each.
        """
        found = (_problem(each, catalogues, unknown) for each in self.patterns)
        return list(dict.fromkeys(each for each in found if each))

    def notes(self, catalogues: Sequence[Catalogue]) -> list[str]:
        """What to know of the patterns, one sentence each."""
        notes = [
            f"{pair}: Procore ended this trigger on {ENDED_ON}; it sends nothing."
            for pair in self._ended(catalogues)
        ]
        if self.receivers:
            notes.append(
                f"Receivers of signals ask for no trigger: {', '.join(self.receivers)}."
            )
        if self.is_incomplete:
            notes[-1] += (
                " Name what they need in the blueprint:"
                ' hooks_for=["RFIs", "Submittals.update"].'
            )
        if self.any_type:
            names = ", ".join(self.any_type)
            notes.append(
                f"Subscribers to any resource get the triggers of hooks_for: {names}."
            )
        return notes

    def _ended(self, catalogues: Sequence[Catalogue]) -> list[Pair]:
        """The triggers to have that Procore has ended.

        Also those that it no longer lists.
        """
        named = [
            Pair(found.name, pattern.reason)
            for pattern in self.patterns
            if pattern.has_ended
            for found in (each.find(pattern.resource) for each in catalogues)
            if found
        ]
        listed = [pair for each in catalogues for pair in self.pairs(each)]
        found = {pair.key: pair for pair in [*listed, *named] if pair.key in ENDED}
        return [found[key] for key in sorted(found)]


def wanted_of(endpoint: Endpoint) -> Wanted:
    """What the endpoint's subscriptions ask for, and its ``hooks_for``."""
    blueprint: Any = endpoint.app.blueprints[endpoint.blueprint]
    named = [
        WantedPattern(resource_type, normalize_reason(reason), HOOKS_FOR)
        for resource_type, reason in map(split_pattern, blueprint.hooks_for)
    ]
    patterns, any_type = [*named], []
    for subscriber in endpoint.subscribers:
        _, reason = subscriber.pattern
        if subscriber.resource_type == ANY and named:
            any_type.append(subscriber.name)
        else:
            patterns.append(
                WantedPattern(subscriber.resource_type, reason, subscriber.name)
            )
    receivers = [
        each.name
        for signal in WORK_SIGNALS
        if signal.receivers
        for each in signal.subscribers_for(endpoint.app)
    ]
    return Wanted(tuple(patterns), tuple(dict.fromkeys(receivers)), tuple(any_type))


def _problem(
    pattern: WantedPattern, catalogues: Sequence[Catalogue], unknown: Sequence[str]
) -> str | None:
    if any(True for each in catalogues for _ in each.pairs(pattern)):
        return None
    found = [each.find(pattern.resource) for each in catalogues]
    for resource in filter(None, found):
        if pattern.has_ended:
            return None
        actions = ", ".join(map(normalize_reason, resource.actions))
        return (
            f"{pattern.asked_by}: {resource.name} has no action {pattern.reason!r}; it"
            f" has {actions}."
        )
    if unknown:
        # The resource may be one of these.
        return f"{pattern.asked_by}: {pattern} is not found. {' '.join(unknown)}"
    if pattern.resource == ANY:
        return f"{pattern.asked_by}: no resource has the action {pattern.reason!r}."
    names = {r.name.casefold(): r.name for each in catalogues for r in each.resources}
    near = difflib.get_close_matches(pattern.resource.casefold(), names, 1, 0.5)
    hint = f"; did you mean {names[near[0]]!r}?" if near else "."
    return f"{pattern.asked_by}: Procore has no resource {pattern.resource!r}{hint}"
