"""Run: one attempt at one event. Call its subscribers, then settle. No HTTP.

Every dispatch mode calls :func:`process` or :func:`run_claimed`. A process may be
killed at any line: what the run had not finished runs again when its lease ends.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

from .. import signals
from ..endpoint import Endpoint
from ..errors import InboxUnavailable
from ..event import Event
from ..inbox import claims
from ..inbox import jobs
from ..inbox.claims import Claim
from ..inbox.claims import Settlement
from ..inbox.cut import abandon
from ..inbox.jobs import Receipt
from ..inbox.status import ReceiptKind
from ..inbox.status import Status
from ..log import log
from ..subscribers import Subscriber
from . import failures
from .calls import Call
from .calls import CallAbandoned
from .failures import RunOutcome
from .gate import Gate
from .gate import Turn
from .leases import HeldClaims
from .leases import renewing
from .leases import watch


def process(
    endpoint: Endpoint, row_id: int, *, ignore_backoff: bool = False, ahead: float = 0
) -> RunOutcome:
    """Run the subscribers of an event that have no receipt yet.

    Afterwards the event is done, due again, or dead. Safe to call at any time and in
    any number of processes: one of them runs the event.

    :param ignore_backoff: run a pending event also before its next attempt is due.
    :param ahead: run a pending event also if it is due within so many seconds.
    :raises InboxUnavailable: the event stays as it is and is claimed again later.
    """
    store, seconds = endpoint.store, endpoint.settings.lease
    claim = claims.claim(
        store,
        row_id,
        seconds,
        ignore_backoff=ignore_backoff,
        ahead=ahead,
        durable=endpoint.dispatch == "inline",
    )
    if claim is None:
        return RunOutcome.NOT_CLAIMED
    with renewing(store, [claim], seconds) as held, suppress(CallAbandoned):
        return run_claimed(endpoint, claim, held)
    return RunOutcome.NOT_CLAIMED


def run_claimed(endpoint: Endpoint, claim: Claim, held: HeldClaims) -> RunOutcome:
    """Run an event that is claimed already; see :func:`process`.

    :param held: renews the lease of the claim.
    :raises CallAbandoned: a call exceeded its time limit; another thread runs the rest.
    """
    runtime = endpoint.state.runtime
    gate: Gate = runtime.parts.get(Gate) or runtime.part(Gate, Gate)
    turn = Turn(endpoint.store, claim)
    gate.turns.add(turn)
    run = Run(endpoint, claim, held, gate, turn)
    return run.conduct(run.perform)


class Run:
    """One attempt at one claimed event.

    If a call is abandoned, only the thread that has taken over goes on with the run.
    """

    def __init__(
        self, endpoint: Endpoint, claim: Claim, held: HeldClaims, gate: Gate, turn: Turn
    ) -> None:
        self.endpoint = endpoint
        self.claim = claim
        self.held = held
        self.gate = gate
        self.turn = turn
        self.store = endpoint.store
        self.failures: list[failures.Failure] = []
        #: Of the last subscriber, to be committed together with the outcome.
        self.receipt: Receipt | None = None
        #: The subscribers that have not been called yet.
        self._rest: list[Subscriber] = []
        #: For its turn: what ends then was no attempt.
        self._is_waiting = False

    def perform(self) -> RunOutcome:
        """Call the subscribers without a receipt, and settle the event."""
        if self.claim.unsettled or self.gate.suspect is not None:
            if self.claim.unsettled:
                self.held.start(self.claim)  # renewed while it waits, not released
            self._is_waiting = True
            self.gate.wait(self.turn, is_in_request=self.endpoint.dispatch == "inline")
            self._is_waiting = False
        if not self.held.start(self.claim):
            return RunOutcome.NOT_CLAIMED
        event, unreadable = self._read()
        if unreadable:
            return self._mark_dead(unreadable)
        found = self.endpoint.subscribers_for(event)
        self._rest = [each for each in found if each.name not in self.claim.finished]
        claim = self.claim
        if self._rest and claim.attempt > self.endpoint.settings.max_attempts:
            if claim.unsettled or self.endpoint.dispatch == "inline":
                text = "every attempt ended without an outcome"
                return self._mark_dead(text, is_counted=False)
        # Before the subscribers are called: one of them may kill this process.
        if self._rest and self.turn.is_alone:
            if not claims.count_attempt(self.store, claim):
                return RunOutcome.NOT_CLAIMED
        return self._perform_rest(event)

    def take_over(self, call: Call) -> None:
        """Abandon a call that exceeded its time limit, and go on without it."""
        held, new = self.held, None
        try:
            with renewing(self.store, [self.claim], held.seconds, held.on_hang) as new:
                if call.abandon(lambda: self._hand_over(call, new)):
                    self._conduct_rest(call)
        except BaseException:
            log.exception("The rest of %s failed", failures.describe(call.event))
        finally:
            # Unless another thread has taken over from this one.
            if self.held is new:
                self.gate.end_rest(self)
            held.on_hang()

    def _hand_over(self, call: Call, held: HeldClaims) -> None:
        self.gate.rests.add(self)
        self.gate.hanging.add(call)
        self.held.hand_over(self.claim, held)
        self.held = held

    def _conduct_rest(self, call: Call) -> None:
        text = f"{call.subscriber.name}: no answer within {call.limit:g} s (timeout)"
        log.error("%s is abandoned for %s", text, failures.describe(call.event))
        call.cut()
        with suppress(CallAbandoned):
            self.conduct(lambda: self._go_on(call, text))

    def conduct(self, work: Callable[[], RunOutcome]) -> RunOutcome:
        """Return the outcome of ``work``, and end the run, whatever it raises."""
        try:
            outcome = work()
        except CallAbandoned:
            raise
        except BaseException as error:
            self._interrupt(error)
            self._leave()
            raise
        self._leave()
        return outcome

    def _interrupt(self, error: BaseException) -> None:
        """End the run at once: other workers need not wait for the end of the lease."""
        # SystemExit, KeyboardInterrupt, a worker timeout: the subscriber has ended. A
        # request was not answered then, and the sender's next one gives the event up.
        can_end = self.endpoint.dispatch != "inline" and not self._is_waiting
        is_last = self.claim.attempt >= self.endpoint.settings.max_attempts
        try:
            if is_last and can_end and not isinstance(error, InboxUnavailable):
                self._mark_dead(failures.INTERRUPTED)
            else:
                is_counted = not self._is_waiting
                failures.interrupt(self.endpoint, self.claim, is_counted=is_counted)
        except InboxUnavailable as unavailable:
            text = "Event %s runs again when its lease ends: %s"
            log.error(text, self.claim.event_id, unavailable)

    def _go_on(self, call: Call, text: str) -> RunOutcome:
        kind: ReceiptKind | None = ReceiptKind.DONE
        if call.receipt is None:
            name, seconds = call.subscriber.name, self.held.seconds
            kind = abandon(self.store, self.claim, name, text, seconds)
        elif not call.is_committed:
            # The subscriber has finished; the host hangs when its context ends.
            jobs.finish(self.store, self.claim.row_id, call.receipt)
        if kind not in (None, ReceiptKind.ABANDONED):
            self.held.renew()
        # Now another thread may claim events: if the call had locked the database, its
        # lease was not renewed, and this one would have been claimed again.
        self.held.on_hang()
        if kind is None:
            return RunOutcome.NOT_CLAIMED
        if kind is ReceiptKind.ABANDONED:
            self.failures.append(failures.Failure(text))
        return self._perform_rest()

    def _perform_rest(self, event: Event | None = None) -> RunOutcome:
        while self._rest:
            if event is None:
                held, claim = self.held, self.claim
                if self.store.db_now() >= held.ends.get(claim.row_id, claim.ends):
                    held.renew()
                if claim.row_id not in held.claims:
                    return RunOutcome.NOT_CLAIMED  # the lease has passed on
            subscriber = self._rest.pop(0)
            # Each subscriber has its own event: a changed payload affects no other.
            own, event = event or self._read()[0], None
            self._run_subscriber(subscriber, own, is_last=not self._rest)
        return self._settle()

    def _leave(self) -> None:
        # Their tracebacks hold the frames of subscribers, and this run.
        self.failures.clear()
        self.gate.turns.discard(self.turn)
        if self.gate.suspect is not None:
            self.gate.leave(self.turn)

    def _read(self) -> tuple[Event, str | None]:
        """Return the event, and why its body is unreadable if so."""
        event, unreadable = self.endpoint.read(self.claim.body)
        claim = self.claim
        return replace(event, id=claim.event_id, attempt=claim.attempt), unreadable

    def _run_subscriber(
        self, subscriber: Subscriber, event: Event, *, is_last: bool
    ) -> None:
        call = Call(self.endpoint, self.claim, subscriber, event, self.take_over)
        if subscriber.latest_only and call.is_superseded():
            log.info("%s: a newer event supersedes %s", subscriber.name, event.id)
            self._finish(call.new_receipt(ReceiptKind.SUPERSEDED), is_last)
            return
        watch(self.held, call)
        try:
            call.perform()
        except CallAbandoned:
            self.gate.hanging.discard(call)
            raise
        self.held.call = None
        if call.receipt is None and (failure := call.failure()):
            self.failures.append(failure)
        elif call.receipt is not None and not call.is_committed:
            self._finish(call.receipt, is_last and call.late_error is None)
        late = call.late_error
        if late is not None and not failures.is_failure(late, self.endpoint.dispatch):
            raise late

    def _finish(self, receipt: Receipt, is_last: bool) -> None:
        if is_last:
            self.receipt = receipt  # in one commit with the outcome
        else:
            claim = self.claim
            jobs.finish(self.store, claim.row_id, receipt, durable=claim.durable)

    def _settle(self) -> RunOutcome:
        if not self.failures:
            if not self._end(Settlement(Status.DONE, receipt=self.receipt)):
                return RunOutcome.NOT_CLAIMED
            self._announce(signals.event_processed)
            return RunOutcome.DONE
        error = "\n".join(failure.text for failure in self.failures)
        settings, attempt = self.endpoint.settings, self.claim.attempt
        if attempt >= settings.max_attempts:
            return self._mark_dead(error)
        waits = [each.wait for each in self.failures]
        wait = max(failures.wait_after(attempt, each, settings) for each in waits)
        if not self._end(Settlement(Status.PENDING, error, wait, self.receipt)):
            return RunOutcome.NOT_CLAIMED
        exception = failures.last_exception(self.failures)
        if exception is not None:
            due_at = self.store.db_now() + timedelta(seconds=wait)
            text = failures.attempt_text(attempt, settings.max_attempts, due_at)
            log.warning("%s: %s", failures.describe(self._read()[0]), text)
        self._announce(signals.event_failed, error=error, exception=exception)
        return RunOutcome.RETRY

    def _mark_dead(self, error: str, *, is_counted: bool = True) -> RunOutcome:
        end = Settlement(Status.DEAD, error, 0.0, self.receipt, is_counted)
        if not self._end(end):
            return RunOutcome.NOT_CLAIMED
        log.error("Gave up on %s: %s", failures.describe(self._read()[0]), error)
        exception = failures.last_exception(self.failures)
        self._announce(signals.event_dead, error=error, exception=exception)
        return RunOutcome.DEAD

    def _end(self, end: Settlement) -> bool:
        return claims.settle(self.store, self.claim, end)

    def _announce(self, signal: signals.LifecycleSignal, **fields: object) -> None:
        if signal.receivers:
            # Read again: a subscriber may have changed the payload of its event.
            signal.announce(self.endpoint.app, event=self._read()[0], **fields)
