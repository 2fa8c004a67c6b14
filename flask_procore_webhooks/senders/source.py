"""Source: a kind of sender, its headers, and the shapes of its payloads."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """Where one kind of payload holds the fields of an event.

    The payload has either one key for the resource type and one for the reason, or a
    dotted ``type`` that holds both.
    """

    #: Keys that identify the shape; the last shape of a source needs none.
    marks: frozenset[str] = frozenset()
    #: Keys of the event's id; the first usable value is taken.
    id: tuple[str, ...] = ("id",)
    #: Keys of resource type and reason; ``None`` where ``type`` holds both.
    resource: tuple[str, str] | None = None
    #: Key of the time when it happened, if one is sent.
    timestamp: str | None = "timestamp"
    #: Key of the part that describes the resource; ``None`` for the whole payload.
    data: str | None = None
    #: Whether that part holds the ids of resource, company, project and user.
    has_ids: bool = True
    #: Keys of the application's id: the object that holds it, and the key in that.
    application: tuple[str, str] | None = None
    #: Key of the payload version, and the version where none is sent.
    version: str | None = None
    default_version: str | None = None
    #: Whether a reason ``created`` is stored as ``create``, and so on.
    shortens_reasons: bool = False


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
    #: The first shape with one of its marks in the payload, else the last one, is the
    #: payload's shape.
    shapes: tuple[Shape, ...]
