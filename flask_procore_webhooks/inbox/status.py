"""Status of an event, and the kinds of receipts."""

from __future__ import annotations

import enum


class Status(str, enum.Enum):
    """The status of a recorded event."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    DEAD = "dead"
    IGNORED = "ignored"

    __str__ = str.__str__


#: An event with one of these runs again only after a replay or redelivery.
FINISHED = (Status.DONE, Status.DEAD, Status.IGNORED)


class ReceiptKind(str, enum.Enum):
    """How a subscriber finished an event, as its receipt says."""

    DONE = "done"
    #: The subscriber raised :class:`~flask_procore_webhooks.Discard`.
    DISCARDED = "discarded"
    #: A newer event of the same resource makes its work unnecessary.
    SUPERSEDED = "superseded"
    #: It has not finished: a call exceeded its time limit, and its completion would be
    #: rejected because the receipt's version has changed.
    ABANDONED = "abandoned"

    __str__ = str.__str__
