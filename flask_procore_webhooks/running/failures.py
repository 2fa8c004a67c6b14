"""Failures: outcomes of runs, texts in log and inbox, and when a run is repeated."""

from __future__ import annotations

import enum
import random
from asyncio import CancelledError
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from threading import current_thread
from threading import main_thread

from ..config import Settings
from ..endpoint import Endpoint
from ..errors import RetryLater
from ..event import Event
from ..inbox import claims
from ..inbox.claims import Claim
from ..inbox.claims import Settlement
from ..inbox.status import Status
from ..log import error_text
from ..log import hide_parameters

#: Seconds; no wait is longer, so that every database can store when it ends.
LONGEST_WAIT = 366 * 24 * 3600.0
#: The error of an event whose run ended without an outcome.
INTERRUPTED = "the run was interrupted"


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


def failure_of(subscriber: str, error: BaseException) -> Failure:
    """The failure of a subscriber that has raised ``error``."""
    if isinstance(error, RetryLater):
        return Failure(f"{subscriber}: {retry_text(error)}", error.after)
    hide_parameters(error)
    return Failure(f"{subscriber}: {error_text(error)}", exception=error)


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


def wait_after(attempt: int, asked: float | None, settings: Settings) -> float:
    """Seconds until the next attempt.

    :param attempt: the number of the attempt that failed, from 1.
    :param asked: seconds that ``RetryLater`` asks for; ``None`` for the backoff.
    """
    if asked is not None:
        # A subclass of RetryLater may hold any number.
        return min(max(0.0, float(asked)), LONGEST_WAIT)
    return backoff(attempt, settings)


def backoff(attempt: int, settings: Settings) -> float:
    """A random wait between half and the whole of :func:`longest_backoff`.

    At least half, so that the time until an event is dead has a lower limit.
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    longest = longest_backoff(attempt, settings)
    return random.uniform(longest / 2, longest)


def longest_backoff(attempt: int, settings: Settings) -> float:
    """``RETRY_BASE`` seconds, doubled with each attempt, up to ``RETRY_CAP``."""
    doubled = settings.retry_base * 2.0 ** min(attempt - 1, 64)
    return min(settings.retry_cap, doubled, LONGEST_WAIT)


def interrupt(endpoint: Endpoint, claim: Claim, *, is_counted: bool = False) -> None:
    """End a run without an outcome; the event is due again after the backoff.

    :param is_counted: whether it was an attempt: a subscriber has raised, for example,
        ``SystemExit``.
    :raises InboxUnavailable: the event is due when its lease ends.
    """
    wait = backoff(claim.attempt, endpoint.settings)
    end = Settlement(Status.PENDING, INTERRUPTED, wait, is_counted=is_counted)
    claims.settle(endpoint.store, claim, end)
