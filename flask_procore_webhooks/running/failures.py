"""Outcomes of runs; failures of subscribers, and their texts in log and inbox."""

from __future__ import annotations

import enum
import traceback
from asyncio import CancelledError
from dataclasses import dataclass
from threading import current_thread
from threading import main_thread

from sqlalchemy.exc import PendingRollbackError
from sqlalchemy.exc import StatementError

from ..errors import RetryLater
from ..event import Event


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


def is_failure(error: BaseException, dispatch: str) -> bool:
    """Whether the exception is a failure of its subscriber, which is retried.

    The alternative is a request to stop the process or thread: in a main thread or a
    request, ``SystemExit`` and gevent's ``Timeout`` may be one.
    """
    if isinstance(error, (Exception, CancelledError)):
        return True
    return current_thread() is not main_thread() and dispatch != "inline"


def hide_parameters(error: BaseException | None) -> None:
    """Remove bound parameters, which may hold payload, from errors of SQLAlchemy."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, StatementError):
            error.hide_parameters = True
        elif isinstance(error, PendingRollbackError):
            # Its text quotes the text of the earlier error.
            error.args = ("an earlier error rolled the transaction back",)
        error = error.__cause__ or error.__context__


def retry_text(later: RetryLater) -> str:
    """The text of a ``RetryLater``, also if its ``__str__`` fails."""
    try:
        return str(later)
    except Exception:  # of a subclass; the run needs an outcome all the same
        return type(later).__name__


def error_text(error: BaseException) -> str:
    """The class and text of an exception, as in the last line of a traceback."""
    # str(error) may fail for exceptions of other packages.
    return "".join(traceback.format_exception_only(error)).strip()


def describe(event: Event) -> str:
    """The event in a log line."""
    # Text of the sender is quoted, so that it cannot begin a log line.
    kind = repr(event.type) if event.type else "an unreadable event"
    return f"{kind} {event.id} of {event.endpoint!r}"
