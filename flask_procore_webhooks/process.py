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
from dataclasses import field
from dataclasses import replace
from functools import partial
from threading import current_thread
from threading import main_thread

from sqlalchemy.exc import IntegrityError
from sqlalchemy.exc import PendingRollbackError
from sqlalchemy.exc import StatementError
from sqlalchemy.orm import Session

from .endpoint import Endpoint
from .errors import BadPayload
from .errors import Discard
from .errors import InboxUnavailable
from .errors import RetryLater
from .events import Event
from .inbox import Claim
from .inbox import Receipt
from .leases import keeping
from .sessions import end_session
from .sessions import is_unused
from .sessions import session_scope
from .sessions import SessionSource
from .settings import Settings
from .signals import event_dead
from .signals import event_failed
from .signals import event_processed
from .states import Ending
from .states import Status
from .subscribers import ANY
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


@dataclass
class Results:
    """What the subscribers of one run have come to."""

    failures: list[Failure] = field(default_factory=list)
    #: Of the last one, if it is still to be committed.
    receipt: Receipt | None = None


def process(endpoint: Endpoint, row_id: int, *, early: bool = False) -> Outcome:
    """Run the subscribers of an event that have no receipt yet.

    Afterwards the event is done, due again, or dead. Safe to call at any time and from
    any number of processes: one of them runs the event, the others change nothing.

    :param early: run a pending event even though its wait is not over.
    :raises InboxUnavailable: the event stays as it is and is claimed again later.
    """
    seconds = endpoint.settings.lease
    claim = endpoint.inbox.claim(row_id, seconds, early=early)
    if claim is None:
        return Outcome.NOT_CLAIMED
    claim = replace(claim, inline=endpoint.dispatch == "inline")
    with keeping(endpoint.inbox, [claim], seconds) as holding:
        begun = holding.begin(claim)
        return run_claimed(endpoint, claim) if begun else Outcome.NOT_CLAIMED


def run_claimed(endpoint: Endpoint, claim: Claim) -> Outcome:
    """The same for an event that is claimed, and its attempt counted, already."""
    try:
        return _run(endpoint, claim)
    except BaseException:
        # SystemExit, KeyboardInterrupt, a worker timeout: others need not wait for the
        # end of the lease.
        try:
            release(endpoint, claim)
        except InboxUnavailable as unavailable:
            log.error("Event %s waits for its lease: %s", claim.event_id, unavailable)
        raise


def release(endpoint: Endpoint, claim: Claim) -> None:
    """End a run that has no outcome; the event is due again after the usual wait.

    :raises InboxUnavailable: it is due when its lease is over.
    """
    wait = _backoff(claim.attempt, endpoint.settings)
    error = "the run was interrupted"
    endpoint.inbox.settle(claim, Status.PENDING, error=error, wait=wait)


def _run(endpoint: Endpoint, claim: Claim) -> Outcome:
    try:
        event = _read(endpoint, claim)
    except BadPayload as bad:
        event = replace(endpoint.read_any(claim.body, "")[0], id=claim.event_id)
        return _bury(endpoint, claim, event, bad.reason)
    # One more, as another event may have killed its process in what was the last one.
    used_up = claim.attempt > endpoint.settings.max_attempts + 1
    if used_up and _unfinished(endpoint, claim, event):
        # Attempts are counted by claims: this event kills its processes.
        return _bury(endpoint, claim, event, "every attempt ended without an outcome")
    return _settle(endpoint, claim, event, _run_subscribers(endpoint, claim, event))


def _read(endpoint: Endpoint, claim: Claim) -> Event:
    event = endpoint.read(claim.body)
    return replace(event, id=claim.event_id, attempt=claim.attempt)


def _unfinished(endpoint: Endpoint, claim: Claim, event: Event) -> list[Subscriber]:
    """The subscribers that have no receipt yet."""
    found = endpoint.subscribers_for(event)
    return [each for each in found if each.name not in claim.finished]


def _run_subscribers(endpoint: Endpoint, claim: Claim, event: Event) -> Results:
    results = Results()
    unfinished = _unfinished(endpoint, claim, event)
    for number, subscriber in enumerate(unfinished, 1):
        # Each has an event of its own: what it does to the payload is nobody else's.
        own = _read(endpoint, claim)
        result = _run_subscriber(endpoint, claim, own, subscriber)
        if isinstance(result, Failure):
            results.failures.append(result)
        elif result is not None and number < len(unfinished):
            endpoint.inbox.commit_receipt(claim, result.subscriber, result.ending)
        else:
            # With the outcome, in one commit: nothing is between the two.
            results.receipt = result
    return results


def _run_subscriber(
    endpoint: Endpoint, claim: Claim, event: Event, subscriber: Subscriber
) -> Failure | Receipt | None:
    """Run it; the receipt that is still to be committed, if any."""
    session = endpoint.inbox.database.session
    try:
        if _is_superseded(endpoint, claim, event, subscriber):
            log.info("%s leaves %s to a newer one", subscriber.name, _described(event))
            return Receipt(subscriber.name, Ending.SUPERSEDED)
        # A context of its own: nothing on ``g``, no session left by somebody else.
        with endpoint.app.app_context():
            if session is not None:
                return _run_in_session(endpoint, claim, event, subscriber, session)
            run_to_end(endpoint.app, subscriber(endpoint.app, event))
            return Receipt(subscriber.name)
    except Discard as discard:
        log.info("%s discarded %s: %s", subscriber.name, _described(event), discard)
        return Receipt(subscriber.name, Ending.DISCARDED)
    except RetryLater as later:
        log.info("%s postponed %s: %s", subscriber.name, _described(event), later)
        return Failure(f"{subscriber.name}: {_said(later)}", later.after)
    except BaseException as error:
        if not _is_its_own(error, claim):
            raise
        _hide_parameters(error)
        log.exception("%s failed for %s", subscriber.name, _described(event))
        return Failure(f"{subscriber.name}: {_text(error)}")


def _is_its_own(error: BaseException, claim: Claim) -> bool:
    """Whether it ends the work of the subscriber, and nothing else.

    ``SystemExit`` of a command that it calls, and gevent's ``Timeout``, do so in a
    thread of ours. In a main thread or a request, they may be for all that is there.
    """
    if isinstance(error, (Exception, CancelledError)):
        return True
    return not claim.inline and current_thread() is not main_thread()


def _hide_parameters(error: BaseException | None) -> None:
    """Have no error of SQLAlchemy quote what may be from the payload."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, StatementError):
            error.hide_parameters = True
        elif isinstance(error, PendingRollbackError):
            # It quotes the error before it as that was.
            error.args = ("the transaction was rolled back by an error before",)
        error = error.__cause__ or error.__context__


def _is_superseded(
    endpoint: Endpoint, claim: Claim, event: Event, subscriber: Subscriber
) -> bool:
    if not subscriber.latest_only or event.resource_id is None:
        return False
    # Another reason that the subscriber is not run for would not do its work.
    reason = None if subscriber.reason == ANY else event.reason
    return endpoint.inbox.has_newer(claim, event, subscriber.name, reason)


def _run_in_session(
    endpoint: Endpoint,
    claim: Claim,
    event: Event,
    subscriber: Subscriber,
    source: SessionSource,
) -> Receipt | None:
    with session_scope(source) as session:

        def commit() -> Receipt | None:
            # The subscriber may have put another session in the place of this one.
            used = session if session.in_transaction() else source()
            if is_unused(used):
                return Receipt(subscriber.name)
            _commit(endpoint, claim, event, subscriber, used)
            return None

        async def finish(work: Awaitable[object]) -> Receipt | None:
            # In the thread of a loop, which has its own session if threads have.
            try:
                await work
                return commit()
            finally:
                end_session(source)

        result = subscriber(endpoint.app, event)
        if not inspect.isawaitable(result):
            return commit()
        receipt: Receipt | None = endpoint.app.ensure_sync(finish)(result)
        return receipt


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
    endpoint: Endpoint, claim: Claim, event: Event, results: Results
) -> Outcome:
    settle = partial(endpoint.inbox.settle, claim, receipt=results.receipt)
    if not results.failures:
        if not settle(Status.DONE):
            return Outcome.NOT_CLAIMED
        event_processed.announce(endpoint.app, event=event)
        return Outcome.DONE
    error = "\n".join(failure.text for failure in results.failures)
    if claim.attempt >= endpoint.settings.max_attempts:
        return _bury(endpoint, claim, event, error, results.receipt)
    if not settle(Status.PENDING, error=error, wait=_wait(endpoint, claim, results)):
        return Outcome.NOT_CLAIMED
    event_failed.announce(endpoint.app, event=event, error=error)
    return Outcome.RETRY


def _bury(
    endpoint: Endpoint,
    claim: Claim,
    event: Event,
    error: str,
    receipt: Receipt | None = None,
) -> Outcome:
    if not endpoint.inbox.settle(claim, Status.DEAD, error=error, receipt=receipt):
        return Outcome.NOT_CLAIMED
    log.error("Gave up on %s: %s", _described(event), error)
    event_dead.announce(endpoint.app, event=event, error=error)
    return Outcome.DEAD


def _wait(endpoint: Endpoint, claim: Claim, results: Results) -> float:
    """Seconds to the next attempt: the longest of what each failure asks for."""
    return max(
        _wait_after(failure, claim.attempt, endpoint.settings)
        for failure in results.failures
    )


def _wait_after(failure: Failure, attempt: int, settings: Settings) -> float:
    """Seconds to the next attempt: what was asked for, or the usual backoff."""
    if failure.wait is not None:
        # Of a subclass, it may be any number.
        return min(max(0.0, float(failure.wait)), LONGEST_WAIT)
    return _backoff(attempt, settings)


def _backoff(attempt: int, settings: Settings) -> float:
    """Full jitter: anything up to a limit that doubles with each attempt.

    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    doubled = settings.retry_base * 2.0 ** min(attempt - 1, 64)
    return random.uniform(0.0, min(settings.retry_cap, doubled, LONGEST_WAIT))


def _said(later: RetryLater) -> str:
    try:
        return str(later)
    except Exception:  # of a subclass, whose run must have an outcome all the same
        return type(later).__name__


def _text(error: BaseException) -> str:
    # Not str(error), which an exception of somebody else's may fail to give.
    return "".join(traceback.format_exception_only(error)).strip()


def _described(event: Event) -> str:
    # What the sender wrote is quoted, so that it cannot make a line of its own.
    kind = repr(event.type) if event.type else "an unreadable event"
    return f"{kind} {event.id} of {event.endpoint!r}"
