"""Run: perform the due jobs of one event, then settle it. No HTTP.

Every dispatch mode calls :func:`process` or :func:`run_claimed`. A process may be
killed at any line: what the run had not finished runs again when its lease ends.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

from ..endpoint import Endpoint
from ..errors import InboxUnavailable
from ..event import Event
from ..inbox import claims
from ..inbox.held import Claim
from ..inbox.jobs import Failure
from ..log import log
from . import failures
from .calls import Call
from .calls import CallAbandoned
from .failures import RunOutcome
from .gate import Gate
from .gate import Turn
from .held import HeldClaims
from .jobs import Jobs
from .leases import renewing
from .leases import watch
from .outcomes import quarantine
from .outcomes import read_claimed


def process(
    endpoint: Endpoint,
    row_id: int,
    *,
    hurry: bool = False,
    ahead: float = 0,
    woken: list[int] | None = None,
) -> RunOutcome:
    """Run the due jobs of an event.

    Afterwards the event is done, due again, or parked. Safe to call at any time and in
    any number of processes: one of them runs the event.

    :param hurry: also jobs that wait for their next attempt.
    :param ahead: also jobs that are due within so many seconds.
    :param woken: gets the rows of events that the end of a job has made due.
    :raises InboxUnavailable: the event stays as it is and is claimed again later.
    """
    store, seconds = endpoint.store, endpoint.settings.lease
    durable = endpoint.dispatch == "inline"
    claim = claims.claim(
        store, row_id, seconds, hurry=hurry, ahead=ahead, durable=durable
    )
    if claim is None:
        return RunOutcome.NOT_CLAIMED
    outcome = RunOutcome.NOT_CLAIMED
    with renewing(store, [claim], seconds) as held, suppress(CallAbandoned):
        run = new_run(endpoint, claim, held)
        run.jobs.hurry, run.jobs.ahead = hurry, timedelta(seconds=ahead)
        run.jobs.woken = [] if woken is None else woken
        outcome = run.conduct(run.perform)
    return RunOutcome.NOT_CLAIMED if held.lost else outcome


def run_claimed(
    endpoint: Endpoint,
    claim: Claim,
    held: HeldClaims,
    woken: list[int] | None = None,
) -> RunOutcome:
    """Run an event that is claimed already; see :func:`process`.

    :param held: renews the lease of the claim.
    :param woken: as for :func:`process`.
    :raises CallAbandoned: a call exceeded its time limit; another thread runs the rest.
    """
    run = new_run(endpoint, claim, held)
    run.jobs.woken = [] if woken is None else woken
    return run.conduct(run.perform)


def new_run(endpoint: Endpoint, claim: Claim, held: HeldClaims) -> Run:
    """A run that has its turn among those of the process."""
    runtime = endpoint.state.runtime
    gate: Gate = runtime.parts.get(Gate) or runtime.part(Gate, Gate)
    turn = Turn(held.store, claim)
    gate.turns.add(turn)
    return Run(endpoint, claim, held, gate, turn)


class Run:
    """One run of one claimed event.

    If a call is abandoned, only the thread that has taken over goes on with the run.
    """

    def __init__(
        self, endpoint: Endpoint, claim: Claim, held: HeldClaims, gate: Gate, turn: Turn
    ) -> None:
        self.endpoint = endpoint
        self.claim = claim
        self.gate = gate
        self.turn = turn
        self.store = turn.store
        self.jobs = Jobs(endpoint, held, claim)
        #: For its turn: what ends then was no attempt.
        self._is_waiting = False

    def perform(self) -> RunOutcome:
        """Perform the jobs that are due, and settle the event."""
        if self.claim.unsettled or self.gate.suspect is not None:
            if self.claim.unsettled:
                self.jobs.held.start(self.claim)  # renewed while it waits, not released
            self.jobs.held.flush()
            self._is_waiting = True
            self.gate.wait(self.turn, is_in_request=self.endpoint.dispatch == "inline")
            self._is_waiting = False
        if not self.jobs.held.start(self.claim):
            return RunOutcome.NOT_CLAIMED
        event, unreadable = read_claimed(self.endpoint, self.claim)
        if unreadable:
            return quarantine(self.endpoint, self.claim, unreadable)
        if not self.jobs.make_plan(event):
            return RunOutcome.NOT_CLAIMED
        return self._perform_rest(event)

    def take_over(self, call: Call) -> None:
        """Abandon a call that exceeded its time limit, and go on without it."""
        held, new = self.jobs.held, None
        try:
            with renewing(self.store, [self.claim], held.seconds, held.on_hang) as new:
                if call.abandon(lambda: self._hand_over(call, new)):
                    self._conduct_rest(call, held)
        except BaseException:
            log.exception("The rest of %s failed", failures.describe(call.event))
        finally:
            # Unless another thread has taken over from this one.
            if self.jobs.held is new:
                self.gate.end_rest(self)
            held.on_hang()

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

    def _hand_over(self, call: Call, held: HeldClaims) -> None:
        self.gate.rests.add(self)
        self.gate.hanging.add(call)
        self.jobs.held.hand_over(self.claim, held)
        self.jobs.held = held

    def _conduct_rest(self, call: Call, former: HeldClaims) -> None:
        text = f"no answer within {call.limit:g} s (timeout)"
        event = failures.describe(call.event)
        log.error("%s: %s is abandoned for %s", call.subscriber.name, text, event)
        call.cut()
        with suppress(CallAbandoned):
            self.conduct(lambda: self._go_on(call, text, former))

    def _go_on(self, call: Call, text: str, former: HeldClaims) -> RunOutcome:
        goes_on = self.jobs.abandon(call, Failure("Timeout", text))
        # Now another thread may claim events: if the call had locked the database, its
        # lease was not renewed, and this one would have been claimed again.
        former.on_hang()
        # Its thread announces nothing any more.
        former.flush()
        return self._perform_rest() if goes_on else RunOutcome.NOT_CLAIMED

    def _perform_rest(self, event: Event | None = None) -> RunOutcome:
        due = self.jobs.plan.due
        while due:
            if event is None:
                held, claim = self.jobs.held, self.claim
                if self.store.db_now() >= held.ends.get(claim.row_id, claim.ends):
                    held.renew()
                if claim.row_id not in held.claims:
                    return RunOutcome.NOT_CLAIMED  # the lease has passed on
            subscriber = due.pop(0)
            # Each subscriber has its own event: a changed payload affects no other.
            own, event = event or read_claimed(self.endpoint, self.claim)[0], None
            call = self.jobs.new_call(subscriber, own, self.take_over)
            if call is None:
                continue
            if self.turn.is_alone and not self.jobs.begin(call, self.turn):
                return RunOutcome.NOT_CLAIMED
            watch(self.jobs.held, call)
            try:
                if not subscriber.is_plain and not self.jobs.is_called(call):
                    self.jobs.held.call = None
                    continue
                if call.is_abandoned:
                    raise CallAbandoned
                call.perform()
            except CallAbandoned:
                self.gate.hanging.discard(call)
                raise
            self.jobs.held.call = None
            self.jobs.conclude(call)
        return self.jobs.settle()

    def _interrupt(self, error: BaseException) -> None:
        """End the run at once: other workers need not wait for the end of the lease.

        An event that is done is left to be settled.
        """
        if self.jobs.held.is_done(self.claim):
            return
        # SystemExit, KeyboardInterrupt, a worker timeout: the subscriber has ended.
        try:
            if isinstance(error, InboxUnavailable) or self._is_waiting:
                failures.interrupt(self.endpoint, self.claim)
            else:
                self.jobs.interrupt()
        except InboxUnavailable as unavailable:
            text = "Event %s runs again when its lease ends: %s"
            log.error(text, self.claim.event_id, unavailable)

    def _leave(self) -> None:
        # The tracebacks of failures hold the frames of subscribers, and this run.
        self.jobs.plan.failures.clear()
        self.jobs.plan.jobs.clear()
        self.gate.turns.discard(self.turn)
        if self.gate.suspect is not None:
            self.gate.leave(self.turn)
