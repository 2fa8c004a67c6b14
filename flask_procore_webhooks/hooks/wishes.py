"""Wishes: the triggers that an endpoint's own subscriptions ask for."""

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


@dataclass(frozen=True)
class Wish:
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
        found = (r for r in self.resources if r.name.casefold() == name.casefold())
        return next(found, None)

    def pairs(self, wish: Wish) -> Iterator[Pair]:
        """The triggers that the pattern stands for."""
        for resource in self.resources:
            if wish.resource in (ANY, resource.name) or (
                wish.resource.casefold() == resource.name.casefold()
            ):
                for action in resource.actions:
                    if wish.reason in (ANY, normalize_reason(action)):
                        yield Pair(resource.name, action)


@dataclass(frozen=True)
class Wishes:
    """What an endpoint asks for."""

    wishes: tuple[Wish, ...]
    #: Names of signal receivers, which ask for no trigger.
    receivers: tuple[str, ...]
    #: Names of subscribers to any resource type, which ask for none because of
    #: ``hooks_for``.
    any_type: tuple[str, ...]

    def pairs(self, catalogue: Catalogue) -> list[Pair]:
        """The triggers to have in a scope of that kind, each once and in order."""
        found: dict[tuple[str, str], Pair] = {}
        for wish in self.wishes:
            for pair in catalogue.pairs(wish):
                found.setdefault(pair.key, pair)
        return sorted(found.values(), key=lambda pair: pair.key)

    def problems(self, catalogues: Sequence[Catalogue]) -> list[str]:
        """The patterns that no catalogue has, one sentence each."""
        found = (_problem(wish, catalogues) for wish in self.wishes)
        return list(dict.fromkeys(each for each in found if each))

    def notes(self, catalogues: Sequence[Catalogue]) -> list[str]:
        """What to know of the wishes, one sentence each."""
        notes = [
            f"{pair}: Procore ended this trigger on {ENDED_ON}; it sends nothing."
            for pair in self._ended(catalogues)
        ]
        if self.receivers:
            names = ", ".join(self.receivers)
            notes.append(
                f"Receivers of signals ask for no trigger: {names}. Name what they need"
                ' in the blueprint: hooks_for=["RFIs", "Submittals.update"].'
            )
        if self.any_type:
            names = ", ".join(self.any_type)
            notes.append(
                f"Subscribers to any resource get the triggers of hooks_for: {names}."
            )
        return notes

    def _ended(self, catalogues: Sequence[Catalogue]) -> list[Pair]:
        """The triggers to have that Procore has ended, whether it still lists them."""
        named = [
            Pair(found.name, wish.reason)
            for wish in self.wishes
            if wish.has_ended
            for found in (each.find(wish.resource) for each in catalogues)
            if found
        ]
        listed = [pair for each in catalogues for pair in self.pairs(each)]
        found = {pair.key: pair for pair in [*listed, *named] if pair.key in ENDED}
        return [found[key] for key in sorted(found)]


def wishes_of(endpoint: Endpoint) -> Wishes:
    """What the endpoint's subscriptions ask for, and its ``hooks_for``."""
    blueprint: Any = endpoint.app.blueprints[endpoint.blueprint]
    named = [
        Wish(resource_type, normalize_reason(reason), "hooks_for")
        for resource_type, reason in map(split_pattern, blueprint.hooks_for)
    ]
    wishes, any_type = [*named], []
    for subscriber in endpoint.subscribers:
        _, reason = subscriber.pattern
        if subscriber.resource_type == ANY and named:
            any_type.append(subscriber.name)
        else:
            wishes.append(Wish(subscriber.resource_type, reason, subscriber.name))
    receivers = [
        each.name
        for signal in WORK_SIGNALS
        if signal.receivers
        for each in signal.subscribers_for(endpoint.app)
    ]
    return Wishes(tuple(wishes), tuple(dict.fromkeys(receivers)), tuple(any_type))


def _problem(wish: Wish, catalogues: Sequence[Catalogue]) -> str | None:
    if any(True for each in catalogues for _ in each.pairs(wish)):
        return None
    if wish.resource == ANY:
        return f"{wish.asked_by}: no resource has the action {wish.reason!r}."
    found = [each.find(wish.resource) for each in catalogues]
    for resource in filter(None, found):
        if wish.has_ended:
            return None
        actions = ", ".join(map(normalize_reason, resource.actions))
        return (
            f"{wish.asked_by}: {resource.name} has no action {wish.reason!r}; it has"
            f" {actions}."
        )
    names = {r.name.casefold(): r.name for each in catalogues for r in each.resources}
    near = difflib.get_close_matches(wish.resource.casefold(), names, 1, 0.5)
    hint = f"; did you mean {names[near[0]]!r}?" if near else "."
    return f"{wish.asked_by}: Procore has no resource {wish.resource!r}{hint}"
