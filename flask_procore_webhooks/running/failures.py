"""Failures of subscribers, and their texts in the log and the inbox."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from ..errors import RetryLater
from ..event import Event
from ..log import error_text as error_text
from ..log import hide_parameters as hide_parameters


@dataclass(frozen=True)
class Failure:
    """Why one subscriber has not finished."""

    text: str
    #: Seconds that the subscriber asked for, or ``None`` for the backoff.
    wait: float | None = None
    #: What the subscriber raised; ``None`` after a :class:`RetryLater`.
    exception: BaseException | None = None


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
