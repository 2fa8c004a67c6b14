"""One run of one event: claim, run what has no receipt, settle. No HTTP.

Every way of dispatching calls :func:`process`. A run may end at any line, because its
process was killed: what it had not finished is run again when its lease is over.
"""

from __future__ import annotations

import enum
import inspect
import logging
import random
import traceback
from asyncio import CancelledError
from collections.abc import Awaitable
from dataclasses import dataclass
from dataclasses import replace

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from .database import end_session
from .database import session_scope
from .database import SessionSource
from .endpoint import Endpoint
from .errors import BadPayload
from .errors import Discard
from .errors import InboxUnavailable
from .errors import RetryLater
from .events import Event
from .inbox import Claim
from .inbox import Status
from .settings import Settings
from .signals import event_dead
from .signals import event_failed
from .signals import event_processed
from .subscribers import run_to_end
from .subscribers import Subscriber

log = logging.getLogger("flask_procore_webhooks")

#: Seconds; no wait is longer, so that every database can hold the time it ends.
LONGEST_WAIT = 366 * 24 * 3600.0


class Outcome(enum.Enum):
    """How a call of :func:`process` ended."""

    DONE = "done"
    #: Failed, and due again later.
    RETRY = "retry"
    DEAD = "dead"
    #: Not ours to run: finished, not due, or in another run's hands.
    NOT_CLAIMED = "not claimed"


@dataclass(frozen=True)
class Failure:
    """Why one subscriber has not finished."""

    text: str
    #: Seconds that the subscriber asked for, or ``None`` for the usual backoff.
    wait: float | None = None


def process(endpoint: Endpoint, row_id: int, *, early: bool = False) -> Outcome:
    """Run the subscribers of an event that have no receipt yet.

    Afterwards the event is done, due again, or dead. Safe to call at any time and from
    any number of processes: one of them runs the event, the others change nothing.

    :param early: run a pending event even though its wait is not over.
    :raises InboxUnavailable: the event stays as it is and is claimed again later.
    """
    claim = endpoint.inbox.claim(row_id, endpoint.settings.lease, early=early)
    if claim is None:
        return Outcome.NOT_CLAIMED
    try:
        return _run(endpoint, claim)
    except BaseException:
        # SystemExit, KeyboardInterrupt, a worker timeout: give the event back at once.
        _give_back(endpoint, claim)
        raise


def _give_back(endpoint: Endpoint, claim: Claim) -> None:
    try:
        endpoint.inbox.settle(claim, Status.PENDING, error="the run was interrupted")
    except InboxUnavailable as unavailable:
        log.error("Event %s waits for its lease: %s", claim.event_id, unavailable)


def _run(endpoint: Endpoint, claim: Claim) -> Outcome:
    try:
        event = _read(endpoint, claim)
    except BadPayload as bad:
        event = replace(endpoint.read_any(claim.body, "")[0], id=claim.event_id)
        return _bury(endpoint, claim, event, bad.reason)
    if claim.attempt > endpoint.settings.max_attempts:
        # Attempts are counted when they begin: this event kills its processes.
        return _bury(endpoint, claim, event, "every attempt ended without an outcome")
    return _settle(endpoint, claim, event, _run_subscribers(endpoint, claim, event))


def _read(endpoint: Endpoint, claim: Claim) -> Event:
    event = endpoint.read(claim.body)
    return replace(event, id=claim.event_id, attempt=claim.attempt)


def _run_subscribers(endpoint: Endpoint, claim: Claim, event: Event) -> list[Failure]:
    finished = endpoint.inbox.receipts(claim.row_id)
    # Each has an event of its own: what it does to the payload is nobody else's.
    attempts = (
        _run_subscriber(endpoint, claim, _read(endpoint, claim), subscriber)
        for subscriber in endpoint.subscribers_for(event)
        if subscriber.name not in finished
    )
    return [failure for failure in attempts if failure]


def _run_subscriber(
    endpoint: Endpoint, claim: Claim, event: Event, subscriber: Subscriber
) -> Failure | None:
    session = endpoint.inbox.database.session
    try:
        # A context of its own: nothing on ``g``, no session left by somebody else.
        with endpoint.app.app_context():
            if session is None:
                run_to_end(endpoint.app, subscriber(endpoint.app, event))
                endpoint.inbox.commit_receipt(claim, subscriber.name)
            else:
                _run_in_session(endpoint, claim, event, subscriber, session)
    except Discard as discard:
        log.info("%s discarded %s: %s", subscriber.name, _described(event), discard)
        endpoint.inbox.commit_receipt(claim, subscriber.name)
    except RetryLater as later:
        log.info("%s postponed %s: %s", subscriber.name, _described(event), later)
        return Failure(f"{subscriber.name}: {later}", later.after)
    except (Exception, CancelledError) as error:
        log.exception("%s failed for %s", subscriber.name, _described(event))
        return Failure(f"{subscriber.name}: {_text(error)}")
    return None


def _run_in_session(
    endpoint: Endpoint,
    claim: Claim,
    event: Event,
    subscriber: Subscriber,
    source: SessionSource,
) -> None:
    with session_scope(source) as session:

        def commit() -> None:
            # The subscriber may have put another session in the place of this one.
            used = session if session.in_transaction() else source()
            _commit(endpoint, claim, event, subscriber, used)

        async def finish(work: Awaitable[object]) -> None:
            # In the thread of a loop, which has its own session if threads have.
            try:
                await work
                commit()
            finally:
                end_session(source)

        result = subscriber(endpoint.app, event)
        if inspect.isawaitable(result):
            endpoint.app.ensure_sync(finish)(result)
        else:
            commit()


def _commit(
    endpoint: Endpoint,
    claim: Claim,
    event: Event,
    subscriber: Subscriber,
    session: Session,
) -> None:
    session.flush()
    try:
        endpoint.inbox.write_receipt(claim, subscriber.name, session)
    except IntegrityError:
        session.rollback()
        if subscriber.name not in endpoint.inbox.receipts(claim.row_id):
            raise
        # Another run finished it since this one's lease was over: its writes stand,
        # and ours are gone.
        log.warning("%s had finished %s", subscriber.name, _described(event))
        return
    session.commit()


def _settle(
    endpoint: Endpoint, claim: Claim, event: Event, failures: list[Failure]
) -> Outcome:
    if not failures:
        if not endpoint.inbox.settle(claim, Status.DONE):
            return Outcome.NOT_CLAIMED
        event_processed.announce(endpoint.app, event=event)
        return Outcome.DONE
    error = "\n".join(failure.text for failure in failures)
    if claim.attempt >= endpoint.settings.max_attempts:
        return _bury(endpoint, claim, event, error)
    wait = max(_wait(failure, claim.attempt, endpoint.settings) for failure in failures)
    if not endpoint.inbox.settle(claim, Status.PENDING, error=error, wait=wait):
        return Outcome.NOT_CLAIMED
    event_failed.announce(endpoint.app, event=event, error=error)
    return Outcome.RETRY


def _bury(endpoint: Endpoint, claim: Claim, event: Event, error: str) -> Outcome:
    if not endpoint.inbox.settle(claim, Status.DEAD, error=error):
        return Outcome.NOT_CLAIMED
    log.error("Gave up on %s: %s", _described(event), error)
    event_dead.announce(endpoint.app, event=event, error=error)
    return Outcome.DEAD


def _wait(failure: Failure, attempt: int, settings: Settings) -> float:
    """Seconds to the next attempt: what was asked for, or full-jitter backoff.

    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    if failure.wait is not None:
        return min(max(0.0, failure.wait), LONGEST_WAIT)
    doubled = settings.retry_base * 2.0 ** min(attempt - 1, 64)
    return random.uniform(0.0, min(settings.retry_cap, doubled, LONGEST_WAIT))


def _text(error: BaseException) -> str:
    # Not str(error), which an exception of somebody else's may fail to give.
    return "".join(traceback.format_exception_only(error)).strip()


def _described(event: Event) -> str:
    # What the sender wrote is quoted, so that it cannot make a line of its own.
    kind = repr(event.type) if event.type else "an unreadable event"
    return f"{kind} {event.id} of {event.endpoint!r}"
