"""Status of an event, state of a job, and what a pending job waits for."""

from __future__ import annotations

import enum


class Status(str, enum.Enum):
    """The status of a recorded event."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    DEAD = "dead"
    #: The loop filter ignores it.
    IGNORED = "ignored"
    #: No subscriber wanted it.
    UNMATCHED = "unmatched"
    #: It is authentic and not a JSON object.
    QUARANTINED = "quarantined"

    __str__ = str.__str__


#: An event with one of these runs again only after a replay or redelivery.
FINISHED = (
    Status.DONE,
    Status.DEAD,
    Status.IGNORED,
    Status.UNMATCHED,
    Status.QUARANTINED,
)
#: With one of these an event has a time in ``parked_at``.
PARKED = (Status.DEAD, Status.UNMATCHED, Status.QUARANTINED)


class JobState(str, enum.Enum):
    """The state of one subscriber's work for one event."""

    PENDING = "pending"
    DONE = "done"
    #: The subscriber raised :class:`~flask_procore_webhooks.Discard`, or an operator
    #: has discarded it.
    DISCARDED = "discarded"
    #: A newer event of the same key is done.
    SUPERSEDED = "superseded"
    #: The condition ``when`` was false, or the subscriber no longer matches.
    SUPPRESSED = "suppressed"
    #: It ran out of attempts.
    DEAD = "dead"

    __str__ = str.__str__


class Wait(str, enum.Enum):
    """What a pending job waits for."""

    #: Nothing: it is due since its event, or a replay, made it due.
    NOTHING = "nothing"
    #: The backoff after a failed attempt.
    RETRY = "retry"
    #: The time that a :class:`~flask_procore_webhooks.RetryLater` asked for.
    LATER = "later"
    #: The time of the option ``after``.
    AFTER = "after"
    #: The time of the option ``settle``.
    SETTLE = "settle"
    #: The end of a newer event of its key.
    NEWER = "newer"
    #: The end of another job of its key.
    KEY = "key"
    #: A process that has its subscriber.
    ABSENT = "absent"

    __str__ = str.__str__
