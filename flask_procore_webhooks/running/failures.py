"""Outcomes of runs; failures of subscribers, and their texts in log and inbox."""

from __future__ import annotations

import enum
from asyncio import CancelledError
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from threading import current_thread
from threading import main_thread

from ..errors import RetryLater
from ..event import Event
from ..log import error_text as error_text
from ..log import hide_parameters as hide_parameters


class RunOutcome(enum.Enum):
    """How a call of :func:`process` ended."""

    DONE = "done"
    #: Failed, and due again later.
    RETRY = "retry"
    DEAD = "dead"
    #: Not claimed: finished, not due yet, or running elsewhere.
    NOT_CLAIMED = "not claimed"


@dataclass(frozen=True)
class Failure:
    """Why one subscriber has not finished."""

    text: str
    #: Seconds that the subscriber asked for, or ``None`` for the backoff.
    wait: float | None = None
    #: What the subscriber raised; ``None`` after a :class:`RetryLater`.
    exception: BaseException | None = None


def is_failure(error: BaseException, dispatch: str) -> bool:
    """Whether the exception is a failure of its subscriber, which is retried.

    The alternative is a request to stop the process or thread: in a main thread or a
    request, ``SystemExit`` and gevent's ``Timeout`` may be one.
    """
    if isinstance(error, (Exception, CancelledError)):
        return True
    return current_thread() is not main_thread() and dispatch != "inline"


def last_exception(failures: Iterable[Failure]) -> BaseException | None:
    """What a subscriber raised last; ``None`` if all of them asked for another run."""
    raised = [each.exception for each in failures if each.exception is not None]
    return raised[-1] if raised else None


def retry_text(later: RetryLater) -> str:
    """The text of a ``RetryLater``, also if its ``__str__`` fails."""
    try:
        return str(later)
    except Exception:  # of a subclass; the run needs an outcome all the same
        return type(later).__name__


def attempt_text(attempt: int, most: int, due_at: datetime) -> str:
    """Which attempt has failed, and when the next one is due; a time in UTC."""
    return f"attempt {attempt} of {most}, again at {due_at:%Y-%m-%d %H:%M:%S} UTC"


def describe(event: Event) -> str:
    """The event in a log line."""
    # Text of the sender is quoted, so that it cannot begin a log line.
    kind = repr(event.type) if event.type else "an unreadable event"
    return f"{kind} {event.id} of {event.endpoint!r}"
