"""Outcomes: settle an event after its run, log and announce what has happened."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import timezone
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
from .failures import last_exception
from .failures import RunOutcome
from .plan import Plan

#: Types of unmatched events that a process logs once each.
MOST_TYPES = 1000
_LOGGED_TYPES = "procore_webhooks_unmatched"


def read_claimed(endpoint: Endpoint, claim: Claim) -> tuple[Event, str | None]:
    """Return the event of a claim, and why its body is unreadable if so."""
    event, unreadable = endpoint.read(claim.body)
    received_at = claim.received_at.replace(tzinfo=timezone.utc)
    event = replace(
        event, id=claim.event_id, origin=claim.origin, received_at=received_at
    )
    return event, unreadable


def settle(endpoint: Endpoint, store: Store, claim: Claim, plan: Plan) -> RunOutcome:
    """Write what the run has changed, and the status of the event."""
    finished = plan.finished
    changed = [*map(plan.jobs.__getitem__, sorted(plan.changed))]
    if finished is None and len(changed) == 1 and not changed[0].is_pending:
        if changed[0].failure is None and changed[0].state is not JobState.DEAD:
            finished = changed.pop()
    status, due_at = _status(plan), None
    if status is Status.PENDING:
        now, jobs = store.db_now(), plan.jobs.values()
        due_at = min(job.due_at or now for job in jobs if job.is_pending)
    error = _error(store, claim, plan, status)
    end = Settlement(status, error, due_at, changed, finished)
    if not claims.settle(store, claim, end):
        return RunOutcome.NOT_CLAIMED
    if finished is not None:
        count(store, finished.state.value)
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
    if status is Status.DONE:
        _send(endpoint, claim, plan, signals.event_processed)
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
        _send(endpoint, claim, plan, signals.event_dead, **fields)
        return RunOutcome.DEAD
    if failures:
        _send(endpoint, claim, plan, signals.event_failed, **fields)
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


def _send(
    endpoint: Endpoint,
    claim: Claim,
    plan: Plan,
    signal: signals.LifecycleSignal,
    **fields: object,
) -> None:
    if signal.receivers:
        # Read again: a subscriber may have changed the payload of its event.
        event = read_claimed(endpoint, claim)[0]
        # Of the job that has most.
        attempts = max(job.attempts for job in plan.jobs.values())
        event = replace(event, attempt=attempts)
        signal.announce(endpoint.app, event=event, **fields)
