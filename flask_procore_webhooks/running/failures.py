"""Failures: outcomes of runs, texts in log and inbox, and waits."""

from __future__ import annotations

import enum
import random
from asyncio import CancelledError
from collections.abc import Iterable
from datetime import datetime
from datetime import timedelta
from threading import current_thread
from threading import main_thread

from ..config import Settings
from ..endpoint import Endpoint
from ..errors import Discard
from ..errors import RetryLater
from ..event import Event
from ..inbox import claims
from ..inbox.claims import Settlement
from ..inbox.held import Claim
from ..inbox.jobs import DISCARD
from ..inbox.jobs import Failure
from ..inbox.jobs import RETRY_LATER
from ..inbox.status import Status
from ..log import error_text
from ..log import traceback_text

#: Seconds; no wait is longer, so that every database can store when it ends.
LONGEST_WAIT = 366 * 24 * 3600.0
#: Of attempts that ended without an outcome.
INTERRUPTED = Failure("Interrupted", "the run was interrupted")
WITHOUT_OUTCOME = Failure("Interrupted", "every attempt ended without an outcome")


class RunOutcome(enum.Enum):
    """How a call of :func:`process` ended."""

    DONE = "done"
    #: A job has failed and is due again later.
    RETRY = "retry"
    #: No job has failed, and one waits for its time, its key or its process.
    POSTPONED = "postponed"
    DEAD = "dead"
    #: No subscriber wants the event, or it is unreadable.
    PARKED = "parked"
    #: Not claimed: finished, not due yet, or running elsewhere.
    NOT_CLAIMED = "not claimed"


def is_failure(error: BaseException, dispatch: str) -> bool:
    """Whether the exception is a failure of its subscriber, which is retried.

    The alternative is a request to stop the process or thread: in a main thread or a
    request, ``SystemExit`` and gevent's ``Timeout`` may be one.
    """
    if isinstance(error, (Exception, CancelledError)):
        return True
    return current_thread() is not main_thread() and dispatch != "inline"


def too_late(later: RetryLater, settings: Settings) -> Failure:
    """The failure of a job that is postponed once more after ``MAX_AGE``."""
    text = f"postponed for longer than MAX_AGE ({settings.max_age:g} s)"
    return Failure(RETRY_LATER, f"{text}: {retry_text(later)}")


def reason_of(error: Discard | RetryLater) -> Failure | None:
    """What the job's error says of it: its reason; ``None`` without one.

    A subclass may hold anything as its reason.
    """
    if not isinstance(error.reason, str) or not error.reason:
        return None
    name = DISCARD if isinstance(error, Discard) else RETRY_LATER
    return Failure(name, error.reason)


def failure_of(error: BaseException) -> Failure:
    """The failure of an attempt that has raised ``error``."""
    text = traceback_text(error)
    return Failure(_class_name(type(error)), _message(error), text, error)


def last_exception(failures: Iterable[Failure]) -> BaseException | None:
    """What a subscriber raised last, if one has raised."""
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
    kind = repr(event.type) if event.type else "an event without a type"
    return f"{kind} {event.id} of {event.endpoint!r}"


def later_wait(later: RetryLater, waited: float, settings: Settings) -> float:
    """Seconds until a postponed job is due.

    :param waited: seconds since it was first postponed. A subscriber that names no time
        is called again when that has about doubled.
    """
    if later.after is not None:
        # A subclass of RetryLater may hold any number.
        return min(max(0.0, float(later.after)), LONGEST_WAIT)
    doubled = max(settings.retry_base, waited)
    return random.uniform(0.5, 1.0) * min(settings.retry_cap, doubled, LONGEST_WAIT)


def wait_after(attempt: int, settings: Settings) -> float | None:
    """Seconds until the next attempt after this one; ``None`` after the last one."""
    return None if attempt >= settings.max_attempts else backoff(attempt, settings)


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


def interrupt(endpoint: Endpoint, claim: Claim) -> None:
    """End a run without an outcome; the event is due again after the backoff.

    :raises InboxUnavailable: the event is due when its lease ends.
    """
    store, jobs = endpoint.store, claim.jobs.values()
    # No later than the job that has failed least: the others have their own times.
    fewest = min((job.attempt for job in jobs if job.is_pending), default=1)
    wait = timedelta(seconds=backoff(fewest, endpoint.settings))
    end = Settlement(Status.PENDING, INTERRUPTED.text, store.db_now() + wait)
    claims.settle(store, claim, end)


def _class_name(kind: type[BaseException]) -> str:
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def _message(error: BaseException) -> str:
    try:
        return str(error).strip()
    except Exception:  # the text of an exception may fail
        return error_text(error)
