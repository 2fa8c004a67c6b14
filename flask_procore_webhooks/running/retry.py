"""Retry: when a run that failed or was interrupted is repeated."""

from __future__ import annotations

import random

from ..config import Settings
from ..endpoint import Endpoint
from ..inbox import claims
from ..inbox.claims import Claim
from ..inbox.claims import Settlement
from ..inbox.status import Status

#: Seconds; no wait is longer, so that every database can store when it ends.
LONGEST_WAIT = 366 * 24 * 3600.0
#: The error of an event whose run ended without an outcome.
INTERRUPTED = "the run was interrupted"


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
    """Full jitter: a random part of a limit that doubles with each attempt.

    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    doubled = settings.retry_base * 2.0 ** min(attempt - 1, 64)
    return random.uniform(0.0, min(settings.retry_cap, doubled, LONGEST_WAIT))


def interrupt(endpoint: Endpoint, claim: Claim, *, is_counted: bool = False) -> None:
    """End a run without an outcome; the event is due again after the backoff.

    :param is_counted: whether it was an attempt: a subscriber has raised, for example,
        ``SystemExit``.
    :raises InboxUnavailable: the event is due when its lease ends.
    """
    wait = backoff(claim.attempt, endpoint.settings)
    end = Settlement(Status.PENDING, INTERRUPTED, wait, is_counted=is_counted)
    claims.settle(endpoint.store, claim, end)
