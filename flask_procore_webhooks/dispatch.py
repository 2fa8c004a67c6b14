"""Who runs the subscribers of a recorded event, and when."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection

from .background import background_of
from .background import runs_here
from .celery import hand_over
from .endpoint import Endpoint
from .errors import EventBusy
from .errors import SubscribersFailed
from .process import Outcome
from .process import process
from .recorder import Recorded
from .states import FINISHED
from .wakeup import tell

log = logging.getLogger("flask_procore_webhooks")


def dispatch(endpoint: Endpoint, recorded: Recorded) -> None:
    """See to it that somebody runs the event, if there is something left to run.

    :raises DeliveryError: ``inline`` only; see :func:`run_inline`.
    """
    if recorded.status in FINISHED:
        return
    if endpoint.dispatch == "inline":
        run_inline(endpoint, recorded)
    elif runs_here(endpoint):
        background_of(endpoint.app).wake()
    else:
        tell_others(endpoint, [recorded.row_id])


def tell_others(endpoint: Endpoint, rows: Collection[int]) -> None:
    """Have other processes run events that are due, where those can be told."""
    if endpoint.dispatch == "celery":
        hand_over(endpoint, rows)
    elif endpoint.dispatch == "worker":
        tell(endpoint.inbox)


def run_inline(endpoint: Endpoint, recorded: Recorded) -> None:
    """Run the event in this request; return when nothing is left to do for it.

    In this mode nobody but the sender repeats a failed run, so a 2xx is only allowed
    once the event is finished.

    :raises SubscribersFailed: it is due again; the sender's next delivery resumes it.
    :raises EventBusy: another request is running it.
    """
    start = time.monotonic()
    outcome = process(endpoint, recorded.row_id, early=True)
    _warn_if_slow(endpoint, recorded, time.monotonic() - start)
    if outcome is Outcome.RETRY:
        raise SubscribersFailed("a subscriber failed")
    if outcome is Outcome.NOT_CLAIMED and not _finished(endpoint, recorded):
        raise EventBusy(
            f"another request is running event {recorded.row_id}; if it was killed, the"
            f" event is free when its lease is over ({endpoint.settings.lease:g} s)"
        )


def drain(endpoint: Endpoint, *, early: bool = False) -> int:
    """Run every event that is due now, each once.

    :param early: also those that wait for their next attempt.
    :return: how many events were run.
    """
    seen: set[int] = set()
    ran = 0
    while rows := _unseen(endpoint, seen, early):
        seen.update(rows)
        outcomes = [process(endpoint, row, early=early) for row in rows]
        ran += sum(outcome is not Outcome.NOT_CLAIMED for outcome in outcomes)
    return ran


def _warn_if_slow(endpoint: Endpoint, recorded: Recorded, seconds: float) -> None:
    if seconds > endpoint.source.timeout:
        log.warning(
            "The subscribers of event %s took %.1f s in the request, and the sender"
            " waits %g s: give their work to a queue",
            recorded.row_id,
            seconds,
            endpoint.source.timeout,
        )


def _unseen(endpoint: Endpoint, seen: set[int], early: bool) -> list[int]:
    # Events that failed may be due again, and before those not seen yet.
    due = endpoint.inbox.due(len(seen) + 100, early=early)
    return [row for row in due if row not in seen]


def _finished(endpoint: Endpoint, recorded: Recorded) -> bool:
    status = endpoint.inbox.status(recorded.row_id)
    # A row that somebody deleted asks for nothing more.
    return status is None or status in FINISHED
