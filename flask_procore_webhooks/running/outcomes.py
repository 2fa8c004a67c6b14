"""Outcomes: settle an event after its run, log and announce what has happened."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timezone
from functools import partial
from operator import attrgetter

from .. import signals
from ..endpoint import Endpoint
from ..event import Event
from ..inbox import claims
from ..inbox.claims import Settlement
from ..inbox.held import Claim
from ..inbox.jobs import dead_errors
from ..inbox.jobs import Job
from ..inbox.status import JobState
from ..inbox.status import Status
from ..inbox.status import Wait
from ..log import log
from ..storage.store import Store
from ..storage.tally import count
from .failures import attempt_text
from .failures import describe
from .failures import is_failure
from .failures import last_exception
from .failures import RunOutcome
from .held import HeldClaims
from .plan import Plan

#: Types of unmatched events that a process logs once each.
MOST_TYPES = 1000
_LOGGED_TYPES = "procore_webhooks_unmatched"


def read_claimed(
    endpoint: Endpoint, claim: Claim, attempt: int = 0
) -> tuple[Event, str | None]:
    """Return a new event of a claim, and why its body is unreadable if so."""
    event, unreadable = endpoint.read(claim.body or b"")
    # Nobody else has it yet, and a copy would take ten times as long.
    vars(event).update(
        id=claim.event_id,
        origin=claim.origin,
        attempt=attempt,
        received_at=claim.received_at.replace(tzinfo=timezone.utc),
    )
    return event, unreadable


def settle(
    endpoint: Endpoint, held: HeldClaims, claim: Claim, plan: Plan
) -> RunOutcome:
    """Write what the run has changed, and the status of the event.

    An event that is done is settled together with others of its worker.
    """
    store, status, due_at = held.store, _status(plan), None
    changed = [*map(plan.jobs.__getitem__, sorted(plan.changed))]
    has_rows = changed and any(job.version or job.failure for job in changed)
    if status is Status.DONE and not has_rows:
        for job in changed:
            held.end(claim, job)
            count(store, job.state.value)
        announce = None
        if signals.event_processed.receivers:
            announce = partial(_announce_done, endpoint, claim, _attempts(plan))
        held.settle(claim, announce)
        return RunOutcome.DONE
    # The jobs that have ended are written before their event.
    held.flush()
    if status is Status.PENDING:
        now, jobs = store.db_now(), plan.jobs.values()
        due_at = min(job.due_at or now for job in jobs if job.is_pending)
    has_failed = plan.failures or status is Status.DEAD
    error = _error(store, claim, plan, status) if has_failed else None
    if not claims.settle(store, claim, Settlement(status, error, due_at, changed)):
        return RunOutcome.NOT_CLAIMED
    if status is Status.UNMATCHED:
        count(store, status.value)
    if changed:
        count_changed(store, plan, changed)
    return _announce(endpoint, claim, plan, status, error or "")


def _error(store: Store, claim: Claim, plan: Plan, status: Status) -> str | None:
    """The failures of the run, and of a dead event those of its other dead jobs."""
    found = [plan.error] if plan.failures else []
    if status is Status.DEAD:
        states = {name: job.state for name, job in plan.jobs.items()}
        if any(states[n] is JobState.DEAD for n in states.keys() - plan.failures):
            found += dead_errors(store, claim.row_id, plan.failures)
    return "\n".join(found) or None


def quarantine(endpoint: Endpoint, claim: Claim, error: str) -> RunOutcome:
    """End the run of an event whose body is unreadable."""
    end = Settlement(Status.QUARANTINED, error)
    is_settled = claims.settle(endpoint.store, claim, end)
    return RunOutcome.PARKED if is_settled else RunOutcome.NOT_CLAIMED


def count_changed(store: Store, plan: Plan, jobs: Iterable[Job]) -> None:
    """Count what has become of those ``jobs`` that the run has changed."""
    for job in jobs:
        if job.subscriber in plan.changed:
            waits = "failed" if job.subscriber in plan.failures else "postponed"
            count(store, waits if job.is_pending else job.state.value)


def _status(plan: Plan) -> Status:
    states = set(map(attrgetter("state"), plan.jobs.values()))
    if not states:
        return Status.UNMATCHED
    if JobState.PENDING in states:
        return Status.PENDING
    return Status.DEAD if JobState.DEAD in states else Status.DONE


def _announce(
    endpoint: Endpoint, claim: Claim, plan: Plan, status: Status, error: str
) -> RunOutcome:
    attempts = _attempts(plan)
    if status is Status.DONE:
        _send(endpoint, claim, attempts, signals.event_processed)
        return RunOutcome.DONE
    if status is Status.UNMATCHED:
        _log_unmatched(endpoint, claim)
        return RunOutcome.PARKED
    failures = plan.failures
    exception = last_exception(failures.values())
    for name in failures:
        _log_failure(endpoint, claim, plan.jobs[name], failures[name].text)
    fields = {"error": error, "exception": exception}
    if status is Status.DEAD:
        _send(endpoint, claim, attempts, signals.event_dead, **fields)
        return RunOutcome.DEAD
    if failures:
        _send(endpoint, claim, attempts, signals.event_failed, **fields)
    waits = {job.waits_for for job in plan.jobs.values()}
    return RunOutcome.RETRY if Wait.RETRY in waits else RunOutcome.POSTPONED


def _log_failure(endpoint: Endpoint, claim: Claim, job: Job, text: str) -> None:
    event = describe(read_claimed(endpoint, claim)[0])
    if job.due_at is None:
        log.error("Gave up on %s: %s: %s", event, job.subscriber, text)
        return
    most = endpoint.settings.max_attempts
    when = attempt_text(job.attempts, most, job.due_at)
    log.warning("%s: %s: %s", event, job.subscriber, when)


def _log_unmatched(endpoint: Endpoint, claim: Claim) -> None:
    """Log the type once, of an event that no subscriber wants."""
    event = read_claimed(endpoint, claim)[0]
    logged: set[tuple[str, str]] = endpoint.state.runtime.part(_LOGGED_TYPES, set)
    if (endpoint.name, event.type) in logged or len(logged) >= MOST_TYPES:
        return
    logged.add((endpoint.name, event.type))
    log.warning(
        "%s: no subscriber matches %r; such events are recorded as unmatched, and can"
        " be replayed: replay --status unmatched --type %r",
        endpoint.name,
        event.type,
        event.type,
    )


def _attempts(plan: Plan) -> int:
    """The attempts of the job that has most."""
    return max(map(attrgetter("attempts"), plan.jobs.values()), default=0)


def _announce_done(endpoint: Endpoint, claim: Claim, attempts: int) -> None:
    try:
        _send(endpoint, claim, attempts, signals.event_processed)
    except BaseException as error:
        # A receiver's SystemExit in a thread of ours ends no other run.
        if not is_failure(error, endpoint.dispatch):
            raise
        log.error("A receiver of event-processed was interrupted: %r", error)


def _send(
    endpoint: Endpoint,
    claim: Claim,
    attempts: int,
    signal: signals.LifecycleSignal,
    **fields: object,
) -> None:
    if signal.receivers:
        # Read again: a subscriber may have changed the payload of its event.
        event = read_claimed(endpoint, claim, attempts)[0]
        signal.announce(endpoint.app, event=event, **fields)
