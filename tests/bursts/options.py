"""The option sets of ``on(...)`` that the simulator compares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flask_procore_webhooks import Event

from .plans import PILOT

#: Options in seconds, which are scaled with the scenario.
SECONDS = ("settle", "settle_max", "lag", "after")


def in_pilot(event: Event) -> bool:
    """Whether the event belongs to the pilot project."""
    return event.project_id == PILOT


@dataclass(frozen=True)
class OptionSet:
    """The subscribers of one endpoint: the options of each, in Procore's seconds."""

    name: str
    subscribers: tuple[Mapping[str, Any], ...]

    @property
    def options(self) -> Mapping[str, Any]:
        """The options of the first subscriber."""
        return self.subscribers[0]

    @property
    def is_by_project(self) -> bool:
        return self.options.get("key") == "project"

    @property
    def is_serial(self) -> bool:
        return bool(self.options.get("one_at_a_time"))

    @property
    def settle(self) -> float:
        return float(self.options.get("settle", 0))

    @property
    def settle_max(self) -> float:
        return float(self.options.get("settle_max", 10 * self.settle))

    @property
    def lag(self) -> float:
        return float(self.options.get("lag", 0))

    @property
    def after(self) -> float:
        return max(float(each.get("after", 0)) for each in self.subscribers)

    def wants(self, project: str) -> bool:
        """Whether it fetches the resources of a project."""
        return "when" not in self.options or project == PILOT

    def scaled(self, factor: float) -> list[dict[str, Any]]:
        """The options of each subscriber, ``factor`` times as fast."""
        return [
            {
                name: value / factor if name in SECONDS else value
                for name, value in options.items()
            }
            for options in self.subscribers
        ]

    def __str__(self) -> str:
        """As in the source of an app: ``latest_only=True, settle=3``."""
        return " and ".join(_text(options) for options in self.subscribers)


def _text(options: Mapping[str, Any]) -> str:
    parts = []
    for name, value in options.items():
        shown = value.__name__ if callable(value) else repr(value).replace("'", '"')
        parts.append(f"{name}={shown}")
    return f"`{', '.join(parts)}`" if parts else "no options"


_SETTLE: Mapping[str, Any] = {"latest_only": True, "settle": 3}
_SUBSCRIBERS: dict[str, tuple[Mapping[str, Any], ...]] = {
    "plain": ({},),
    "latest_only": ({"latest_only": True},),
    "settle": (_SETTLE,),
    "project": ({"latest_only": True, "settle": 90, "key": "project"},),
    "lag": ({"latest_only": True, "lag": 2},),
    "one_at_a_time": ({"one_at_a_time": True},),
    "reread": (_SETTLE, {"after": 60, "name": "reread"}),
    "when": ({"when": in_pilot},),
}
OPTION_SETS = {name: OptionSet(name, each) for name, each in _SUBSCRIBERS.items()}
