"""Source: a kind of sender, its headers, and the shapes of its payloads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: Keys under which relays, and Procore's list of deliveries, hold a whole event.
WRAPPERS = ("payload", "event")


@dataclass(frozen=True)
class Shape:
    """Where one kind of payload holds the fields of an event.

    The payload has either one key for the resource type and one for the reason, or a
    dotted ``type`` that holds both.
    """

    #: Keys that identify the shape.
    marks: frozenset[str]
    #: Keys of the event's id; the first usable value is taken.
    id: tuple[str, ...] = ("id",)
    #: Keys of resource type and reason; ``None`` where ``type`` holds both.
    resource: tuple[str, str] | None = None
    #: Key of the time when it happened, if one is sent.
    timestamp: str | None = "timestamp"
    #: Key of the part that describes the resource.
    data: str = "data"
    #: Whether the payload itself describes the resource: it holds the ids, and it is
    #: the data if there is no such part.
    is_flat: bool = False
    #: Whether there are ids of resource, company, project and user.
    has_ids: bool = True
    #: Keys of the application's id: the object that holds it, and the key in that.
    application: tuple[str, str] | None = None
    #: Key of the payload version, and the version where none is sent.
    version: str | None = None
    default_version: str | None = None


#: An event that the app has recorded itself, at any source. The last of a source's
#: shapes, so that deliveries are not compared with it.
ENQUEUED = Shape(
    marks=frozenset({"enqueued"}), resource=("enqueued", "reason"), is_flat=True
)


@dataclass(frozen=True)
class Source:
    """A kind of sender."""

    name: str
    signature_header: str
    timestamp_header: str
    #: Written before the hex digest when we sign; with and without it is accepted.
    signature_prefix: str
    #: Seconds that the sender waits for an answer.
    timeout: float
    #: The first shape that fits, with a value for each of its marks, is the payload's
    #: shape; else the first with one of its marks in the payload; else the last one.
    shapes: tuple[Shape, ...]

    def find_event(self, payload: Mapping[str, Any]) -> tuple[Mapping[str, Any], Shape]:
        """Return the object that is the event, and its shape.

        That is the payload, or an event inside of wrappers: objects that fit no shape
        and have an object that does under one of :data:`WRAPPERS`.
        """
        found: list[Mapping[str, Any]] = [payload]
        while found:
            for event in found:
                for shape in self.shapes:
                    values = [*map(event.get, shape.marks)]
                    if None not in values and "" not in values:
                        return event, shape
            outer = found[0]
            found = [outer[key] for key in WRAPPERS if isinstance(outer.get(key), dict)]
        marked = (s for s in self.shapes if not s.marks.isdisjoint(payload))
        return payload, next(marked, self.shapes[-1])
