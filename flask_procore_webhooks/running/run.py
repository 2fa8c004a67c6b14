"""Run: one attempt at one event. Call its subscribers, then settle. No HTTP.

Every dispatch mode calls :func:`process` or :func:`run_claimed`. A process may be
killed at any line: what the run had not finished runs again when its lease ends.
"""

from __future__ import annotations

import enum
import inspect
import logging
from asyncio import CancelledError
from collections.abc import Awaitable
from dataclasses import replace
from threading import current_thread
from threading import main_thread

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from ..endpoint import Endpoint
from ..errors import Discard
from ..errors import InboxUnavailable
from ..errors import RetryLater
from ..event import Event
from ..inbox import claims
from ..inbox import jobs
from ..inbox.claims import Claim
from ..inbox.claims import Settlement
from ..inbox.database import SessionSource
from ..inbox.jobs import Receipt
from ..inbox.tables import ReceiptKind
from ..inbox.tables import Status
from ..signals import event_dead
from ..signals import event_failed
from ..signals import event_processed
from ..signals import LifecycleSignal
from ..subscribers import run_to_end
from ..subscribers import Subscriber
from ..subscribers import to_end
from .failures import describe
from .failures import error_text
from .failures import Failure
from .failures import hide_parameters
from .failures import retry_text
from .leases import renewing
from .retry import backoff
from .retry import wait_after
from .sessions import end_session
from .sessions import session_scope
from .sessions import used_session

log = logging.getLogger("flask_procore_webhooks")


class RunOutcome(enum.Enum):
    """How a call of :func:`process` ended."""

    DONE = "done"
    #: Failed, and due again later.
    RETRY = "retry"
    DEAD = "dead"
    #: Not claimed: finished, not due yet, or running elsewhere.
    NOT_CLAIMED = "not claimed"


def process(
    endpoint: Endpoint, row_id: int, *, ignore_backoff: bool = False
) -> RunOutcome:
    """Run the subscribers of an event that have no receipt yet.

    Afterwards the event is done, due again, or dead. Safe to call at any time and from
    any number of processes: one of them runs the event, the others change nothing.

    :param ignore_backoff: run a pending event also before its next attempt is due.
    :raises InboxUnavailable: the event stays as it is and is claimed again later.
    """
    store, seconds = endpoint.store, endpoint.settings.lease
    claim = claims.claim(
        store,
        row_id,
        seconds,
        ignore_backoff=ignore_backoff,
        durable=endpoint.dispatch == "inline",
    )
    if claim is None:
        return RunOutcome.NOT_CLAIMED
    with renewing(store, [claim], seconds) as held:
        if held.start(claim):
            return run_claimed(endpoint, claim)
    return RunOutcome.NOT_CLAIMED


def run_claimed(endpoint: Endpoint, claim: Claim) -> RunOutcome:
    """Run an event that is claimed already; see :func:`process`."""
    try:
        return Run(endpoint, claim).perform()
    except BaseException:
        # SystemExit, KeyboardInterrupt, a worker timeout: other workers need not wait
        # for the end of the lease.
        try:
            interrupt(endpoint, claim)
        except InboxUnavailable as unavailable:
            log.error(
                "Event %s runs again when its lease ends: %s",
                claim.event_id,
                unavailable,
            )
        raise


def interrupt(endpoint: Endpoint, claim: Claim) -> None:
    """End a run without an outcome; the event is due again after the backoff.

    :raises InboxUnavailable: the event is due when its lease ends.
    """
    wait = backoff(claim.attempt, endpoint.settings)
    end = Settlement(Status.PENDING, "the run was interrupted", wait)
    claims.settle(endpoint.store, claim, end)


class Run:
    """One attempt at one claimed event."""

    def __init__(self, endpoint: Endpoint, claim: Claim) -> None:
        self.endpoint = endpoint
        self.claim = claim
        self.store = endpoint.store
        self.failures: list[Failure] = []
        #: Of the last subscriber, to be committed together with the outcome.
        self.receipt: Receipt | None = None

    def perform(self) -> RunOutcome:
        """Call the subscribers without a receipt, and settle the event."""
        event, unreadable = self._read()
        if unreadable:
            return self._mark_dead(unreadable)
        found = self.endpoint.subscribers_for(event)
        unfinished = [each for each in found if each.name not in self.claim.finished]
        # Allow one extra attempt: another event in the batch may have crashed the
        # process during the last one.
        if unfinished and self.claim.attempt > self.endpoint.settings.max_attempts + 1:
            # Attempts are counted by claims: this event crashes its processes.
            return self._mark_dead("every attempt ended without an outcome")
        for number, subscriber in enumerate(unfinished, 1):
            # Each subscriber has its own event: a changed payload affects no other.
            own = event if number == 1 else self._read()[0]
            self._run_subscriber(subscriber, own, is_last=number == len(unfinished))
        return self._settle()

    def _read(self) -> tuple[Event, str | None]:
        """Return the event, and why its body is unreadable if so."""
        event, unreadable = self.endpoint.read(self.claim.body)
        claim = self.claim
        return replace(event, id=claim.event_id, attempt=claim.attempt), unreadable

    def _run_subscriber(
        self, subscriber: Subscriber, event: Event, *, is_last: bool
    ) -> None:
        try:
            receipt = self._call(subscriber, event)
        except Discard as discard:
            log.info("%s discarded %s: %s", subscriber.name, describe(event), discard)
            receipt = Receipt(subscriber.name, ReceiptKind.DISCARDED)
        except RetryLater as later:
            log.info("%s postponed %s: %s", subscriber.name, describe(event), later)
            text = f"{subscriber.name}: {retry_text(later)}"
            self.failures.append(Failure(text, later.after))
            return
        except BaseException as error:
            if not self._is_failure(error):
                raise
            hide_parameters(error)
            log.exception("%s failed for %s", subscriber.name, describe(event))
            self.failures.append(Failure(f"{subscriber.name}: {error_text(error)}"))
            return
        if receipt is None:
            return
        if is_last:
            # In one commit with the outcome.
            self.receipt = receipt
        else:
            claim = self.claim
            jobs.finish(self.store, claim.row_id, receipt, durable=claim.durable)

    def _call(self, subscriber: Subscriber, event: Event) -> Receipt | None:
        """Call the subscriber; return its receipt unless that is committed already."""
        if (
            subscriber.latest_only
            and event.resource_id is not None
            and jobs.has_newer(self.store, self.claim.row_id, event, subscriber)
        ):
            log.info("%s: a newer event supersedes %s", subscriber.name, event.id)
            return Receipt(subscriber.name, ReceiptKind.SUPERSEDED)
        # A context of its own: an empty ``g`` and no session of a caller.
        with self.endpoint.app.app_context():
            source = self.store.session
            if source is not None:
                return self._call_in_session(subscriber, event, source)
            run_to_end(self.endpoint.app, subscriber(self.endpoint.app, event))
            return Receipt(subscriber.name)

    def _call_in_session(
        self, subscriber: Subscriber, event: Event, source: SessionSource
    ) -> Receipt | None:
        with session_scope(source) as session:

            async def finish(work: Awaitable[object]) -> Receipt | None:
                # In the thread of an event loop, which may have its own session.
                try:
                    await to_end(work)
                    used = used_session(session, source)
                    return self._commit(subscriber, event, used)
                finally:
                    end_session(source)

            result = subscriber(self.endpoint.app, event)
            if inspect.isawaitable(result):
                receipt: Receipt | None = self.endpoint.app.ensure_sync(finish)(result)
                return receipt
            return self._commit(subscriber, event, used_session(session, source))

    def _commit(
        self, subscriber: Subscriber, event: Event, session: Session | None
    ) -> Receipt | None:
        """Commit the subscriber's writes with its receipt."""
        receipt = Receipt(subscriber.name)
        if session is None:
            return receipt
        session.flush()
        try:
            jobs.finish_in_session(self.store, self.claim.row_id, receipt, session)
        except IntegrityError:
            session.rollback()
            if subscriber.name not in jobs.receipts(self.store, self.claim.row_id):
                raise
            # Another run has finished it since the lease of this one ended. The writes
            # of that run stand, and these are rolled back.
            log.warning("%s had finished %s", subscriber.name, describe(event))
            return None
        session.commit()
        return None

    def _is_failure(self, error: BaseException) -> bool:
        """Whether the exception is a subscriber failure, which is retried.

        The alternative is a request to stop the process or thread: in a main thread or
        a request, ``SystemExit`` and gevent's ``Timeout`` may be one.
        """
        if isinstance(error, (Exception, CancelledError)):
            return True
        is_ours = current_thread() is not main_thread()
        return is_ours and self.endpoint.dispatch != "inline"

    def _settle(self) -> RunOutcome:
        if not self.failures:
            if not self._end(Settlement(Status.DONE, receipt=self.receipt)):
                return RunOutcome.NOT_CLAIMED
            self._announce(event_processed)
            return RunOutcome.DONE
        error = "\n".join(failure.text for failure in self.failures)
        settings, attempt = self.endpoint.settings, self.claim.attempt
        if attempt >= settings.max_attempts:
            return self._mark_dead(error)
        wait = max(wait_after(attempt, each.wait, settings) for each in self.failures)
        if not self._end(Settlement(Status.PENDING, error, wait, self.receipt)):
            return RunOutcome.NOT_CLAIMED
        self._announce(event_failed, error=error)
        return RunOutcome.RETRY

    def _mark_dead(self, error: str) -> RunOutcome:
        if not self._end(Settlement(Status.DEAD, error, receipt=self.receipt)):
            return RunOutcome.NOT_CLAIMED
        log.error("Gave up on %s: %s", describe(self._read()[0]), error)
        self._announce(event_dead, error=error)
        return RunOutcome.DEAD

    def _end(self, end: Settlement) -> bool:
        return claims.settle(self.store, self.claim, end)

    def _announce(self, signal: LifecycleSignal, **fields: str) -> None:
        if signal.receivers:
            # Read again: a subscriber may have changed the payload of its event.
            event = self._read()[0]
            signal.announce(self.endpoint.app, event=event, **fields)
