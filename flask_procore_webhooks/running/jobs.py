"""Jobs: performs the due jobs of one claimed event, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from datetime import timedelta

from sqlalchemy.exc import IntegrityError

from ..endpoint import Endpoint
from ..errors import Discard
from ..errors import InboxUnavailable
from ..errors import RetryLater
from ..event import Event
from ..inbox.completion import finish
from ..inbox.cut import abandon
from ..inbox.held import Claim
from ..inbox.held import NotHeld
from ..inbox.held import write_held
from ..inbox.jobs import Failure
from ..inbox.jobs import Job
from ..inbox.keys import HeldKey
from ..inbox.keys import let_go
from ..inbox.others import wake_event
from ..inbox.status import JobState
from ..inbox.status import Wait
from ..log import log
from ..storage.tally import count
from ..subscribers import Subscriber
from . import failures
from .calls import Call
from .failures import RunOutcome
from .gate import Turn
from .held import HeldClaims
from .outcomes import count_changed
from .outcomes import settle
from .plan import failed
from .plan import new_plan
from .plan import Plan
from .plan import postponed
from .plan import postponed_seconds
from .schedule import awaited_keys
from .schedule import decide
from .schedule import wake_waiting


class Jobs:
    """The jobs of one claimed event in one run.

    :param held: holds the claim; replaced after a call was abandoned.
    """

    def __init__(self, endpoint: Endpoint, held: HeldClaims, claim: Claim) -> None:
        self.endpoint, self.claim = endpoint, claim
        self.held, self.store = held, held.store
        self.plan = Plan()
        #: Whether jobs run that wait for their next attempt, and within which time.
        self.hurry = False
        self.ahead = timedelta()
        #: Rows of events that the end of a job has made due.
        self.woken: list[int] = []
        #: Keys for whose end other jobs may wait.
        self._ended: list[HeldKey] = []
        #: Keys that jobs wait for, each with this event.
        self._awaited: list[tuple[HeldKey, Event]] = []
        #: The call that runs now, or has raised a request to stop.
        self._call: Call | None = None

    def make_plan(self, event: Event) -> bool:
        """Read which jobs are due; ``False`` if the claim was lost."""
        # The jobs of a first run have no due times.
        now = self.store.db_now() + self.ahead if self.claim.jobs else datetime.min
        self.plan = new_plan(self.endpoint, self.claim, event, now, hurry=self.hurry)
        if self.plan.waiting:
            self._awaited += awaited_keys(self.plan, self.claim, event)
        replaced = self.plan.replaced
        if replaced is None:
            return True
        new = self.plan.without_rows(replaced.subscriber)
        is_held = self._write([replaced, *new])
        self.plan.jobs.pop(replaced.subscriber, None)
        return is_held

    def new_call(
        self, subscriber: Subscriber, event: Event, take_over: Callable[[Call], None]
    ) -> Call | None:
        """Return a call of the subscriber; ``None`` if its job is out of attempts."""
        claim, job = self.claim, self.plan.jobs[subscriber.name]
        if job.attempts >= self.endpoint.settings.max_attempts:
            if claim.unsettled or self.endpoint.dispatch == "inline":
                begun = replace(job, is_begun=True)
                self._fail(begun, failures.WITHOUT_OUTCOME, job.started_at, None)
                return None
        # Nobody else has this event yet.
        vars(event)["attempt"] = job.attempts + 1
        own = claim, subscriber, event, job
        self._call = Call(self.endpoint, self.store, *own, take_over)
        return self._call

    def is_called(self, call: Call) -> bool:
        """Whether the options of the subscriber want the call now.

        If not, its job ends or waits. An error of ``when`` or ``key`` ends an attempt.

        :raises CallAbandoned: such a function exceeded the time limit.
        """
        self._call = None
        try:
            decided = decide(self.store, call, self.store.db_now() + self.ahead)
        except BaseException as error:
            call.end()
            if isinstance(error, InboxUnavailable):
                raise
            self._call, call.error = call, error
            self.conclude(call)
            return False
        if decided is None:
            self._call = call
            return True
        call.end()
        # A suspect's attempt was counted before, and was none.
        decided = replace(decided, attempts=decided.attempts - call.job.is_begun)
        self.plan.change(decided)
        if call.key is not None:
            if call.instead is not None:
                self.woken += wake_event(self.store, call.key, call.instead)
            if decided.waits_for in (Wait.NEWER, Wait.KEY):
                self._awaited.append((call.key, call.event))
            elif not decided.is_pending:
                self._ended.append(call.key)
        return False

    def begin(self, call: Call, turn: Turn) -> bool:
        """Count the attempt of a suspect before its functions may kill this process.

        :return: ``False`` if the claim was lost.
        """
        job, now = call.job, self.store.db_now()
        counted = replace(job, attempts=job.attempt)
        begun = counted.put_off(now, Wait.NOTHING, since=now)
        if not self._write([begun, *self.plan.without_rows(job.subscriber)]):
            return False
        turn.begun = call.job = replace(self.plan.jobs[job.subscriber], is_begun=True)
        return True

    def conclude(self, call: Call) -> None:
        """Take the outcome of a call into the plan.

        The end of a job is written with others, unless it has a row, a key or an error.

        :raises BaseException: a request to stop.
        """
        late, ended = call.late_error, call.ended
        if call.error is not None:
            error, call.error = call.error, None
            ended = self._take_error(call, error)
        if ended is not None:
            claim, key, durable = self.claim, call.key, call.subscriber.durable
            is_apart = durable or key or ended.version or ended.failure
            if is_apart and not call.is_committed:
                durable |= claim.durable
                finish(self.store, claim.row_id, ended, key, durable=durable)
            elif not call.is_committed:
                self.held.end(claim, ended)
            self._note_end(call, ended)
        self._call = None
        if late is not None and not failures.is_failure(late, self.endpoint.dispatch):
            raise late

    def abandon(self, call: Call, failure: Failure) -> bool:
        """Reject what a call that exceeded its time limit still writes.

        :return: ``False`` if the claim was lost.
        """
        name = call.subscriber.name
        if call.ended is not None:
            if not call.is_committed:
                # The subscriber has finished; the host hangs when its context ends.
                finish(self.store, self.claim.row_id, call.ended, call.key)
            self._note_end(call, call.ended)
            self.held.renew()
            return True
        wait = self._wait(call.job)
        job = failed(call.job, failure, self.store.db_now(), call.began, wait)
        others = self.plan.without_rows(name)
        state = abandon(self.store, self.claim, job, others, self.held.seconds)
        if state is job.state:
            self.plan.failures[name] = failure
            self.plan.changed.add(name)
            self._note_written([job, *others])
            self._free(call.key, job)
        elif state is not None:
            self._note_end(call, call.finished(state))
            self.held.renew()
        return state is not None

    def interrupt(self) -> None:
        """End the run after a request to stop; the job that was called has failed."""
        call = self._call
        if call is not None and call.ended is None:
            wait = self._wait(call.job)
            if wait is None and self.endpoint.dispatch == "inline":
                # The sender was not answered, and its next delivery gives it up.
                wait = 0.0
            self._fail(call.job, failures.INTERRUPTED, call.began, wait, call.key)
        for job in self.plan.without_rows(""):
            if job.subscriber not in self.plan.changed:
                self.plan.change(job)
        self.settle()

    def settle(self) -> RunOutcome:
        """End the run, and make jobs due that have waited for those of this event."""
        outcome = settle(self.endpoint, self.held, self.claim, self.plan)
        if self.claim.unsettled or self._ended or self._awaited:
            self.held.flush()
        if self._ended or self._awaited:
            self.woken += wake_waiting(self.store, self._ended, self._awaited)
        return outcome

    def _take_error(self, call: Call, error: BaseException) -> Job | None:
        """Take what the subscriber raised; return the job if it is discarded."""
        name, event = call.subscriber.name, failures.describe(call.event)
        if isinstance(error, Discard):
            log.info("%s discarded %s: %s", name, event, error)
            reason = failures.reason_of(error)
            return replace(call.finished(JobState.DISCARDED), failure=reason)
        if isinstance(error, RetryLater):
            log.info("%s postponed %s: %s", name, event, failures.retry_text(error))
            self._postpone(call, error)
            return None
        if not failures.is_failure(error, self.endpoint.dispatch):
            raise error
        log.error("%s failed for %s", name, event, exc_info=error)
        failure = failures.failure_of(error)
        wait = self._wait(call.job)
        self._fail(call.job, failure, call.began, wait, call.key)
        return None

    def _note_end(self, call: Call, ended: Job) -> None:
        count(self.store, ended.state.value)
        self.plan.jobs[ended.subscriber] = ended
        self.plan.changed.discard(ended.subscriber)
        if call.key is not None:
            self._ended.append(call.key)

    def _note_written(self, jobs: Sequence[Job]) -> None:
        count_changed(self.store, self.plan, jobs)
        self.plan.note_written(jobs)

    def _fail(
        self,
        job: Job,
        failure: Failure,
        began: datetime | None,
        wait: float | None,
        key: HeldKey | None = None,
    ) -> None:
        """Take a failed attempt into the plan.

        :param wait: seconds until the next attempt; ``None`` after the last one.
        """
        now = self.store.db_now()
        after = failed(job, failure, now, began or now, wait)
        self.plan.failures[job.subscriber] = failure
        self.plan.change(after)
        self._free(key, after)

    def _postpone(self, call: Call, later: RetryLater) -> None:
        """Postpone the job; it is dead if it has been postponed for ``MAX_AGE``."""
        job, settings, now = call.job, self.endpoint.settings, self.store.db_now()
        waited = postponed_seconds(self.store, job, now, settings)
        if waited >= settings.max_age:
            self._fail(
                job, failures.too_late(later, settings), call.began, None, call.key
            )
            return
        wait = failures.later_wait(later, waited, settings)
        after = postponed(job, now, call.began, wait, settings)
        self.plan.change(replace(after, failure=failures.reason_of(later)))
        self._free(call.key, after)

    def _free(self, key: HeldKey | None, job: Job) -> None:
        """Free the key of a job that has failed or waits."""
        if key is not None and let_go(self.store, key, job):
            self._ended.append(key)

    def _wait(self, job: Job) -> float | None:
        return failures.wait_after(job.attempt, self.endpoint.settings)

    def _write(self, jobs: Sequence[Job]) -> bool:
        """Write jobs now; ``False`` if the claim was lost."""
        try:
            write_held(self.store, self.claim, jobs)
        except (IntegrityError, NotHeld):
            return False
        self._note_written(jobs)
        return True
