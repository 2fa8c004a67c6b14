"""What may become of an event, and of one subscriber's work for it."""

from __future__ import annotations

import enum


class Status(str, enum.Enum):
    """What may become of a recorded event."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    DEAD = "dead"
    IGNORED = "ignored"

    __str__ = str.__str__


#: Nothing more will be done for these unless somebody asks.
FINISHED = (Status.DONE, Status.DEAD, Status.IGNORED)


class Ending(str, enum.Enum):
    """How a subscriber finished an event: what its receipt says."""

    DONE = "done"
    #: It raised :class:`~flask_procore_webhooks.Discard`.
    DISCARDED = "discarded"
    #: A newer event of the same resource does its work.
    SUPERSEDED = "superseded"

    __str__ = str.__str__
