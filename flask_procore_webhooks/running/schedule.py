"""Schedule: whether a due job is called, ends without a call, or waits."""

from __future__ import annotations

from contextvars import copy_context
from dataclasses import replace
from datetime import datetime
from datetime import timedelta

from ..event import Event
from ..inbox.held import Claim
from ..inbox.jobs import Job
from ..inbox.keys import free_key
from ..inbox.keys import held_key
from ..inbox.keys import HeldKey
from ..inbox.keys import insert_key
from ..inbox.keys import key_of_job
from ..inbox.keys import key_state
from ..inbox.keys import KeyState
from ..inbox.keys import note_waiting
from ..inbox.keys import take
from ..inbox.others import is_over
from ..inbox.others import other_events
from ..inbox.others import Others
from ..inbox.others import wake
from ..inbox.status import JobState
from ..inbox.status import Wait
from ..log import log
from ..storage.store import Store
from .calls import Call
from .calls import current
from .plan import Plan
from .sessions import in_scope

#: Seconds for which Procore sends further events of one change. With ``lag``, the jobs
#: of the events that follow a run within them wait for their end.
BURST = timedelta(seconds=8)


def decide(store: Store, call: Call, now: datetime) -> Job | None:
    """Return the job if it ends or waits without a call; ``None`` if it is called.

    Afterwards the key of the job is known, and held if the job is called and its
    subscriber has ``one_at_a_time`` or ``lag``.

    :param now: jobs that are due by then are due.
    """
    subscriber, event, job = call.subscriber, call.event, call.job
    is_wanted, key = _ask(call), call.key
    if not is_wanted:
        return job.ended(JobState.SUPPRESSED, now)
    if subscriber.after:
        due_at = call.claim.received_at + timedelta(seconds=subscriber.after)
        if now < due_at:
            return job.put_off(due_at, Wait.AFTER)
    if key is None:
        return None
    if subscriber.latest_only:
        decided = _decide_latest(store, call, key, now)
        if decided is not None:
            log.info("%s: %s for %s", subscriber.name, _what(decided), event.id)
            return decided
    if key.is_exclusive:
        ends = take(store, key)
        if ends is not None:
            return job.put_off(ends, Wait.KEY, since=now, key=key.value)
        if key.has_lag:
            # A run may have ended after the look and before the key was taken.
            decided = _decide_latest(store, call, key, now)
            if decided is not None:
                free_key(store, key)
                return decided
    return None


def _ask(call: Call) -> bool:
    """Find the key, and return whether the event is wanted.

    Functions of options are called as the subscriber is, in an app context and with a
    session of their own, and their time is part of the call's.
    """
    subscriber, claim = call.subscriber, call.claim

    def ask() -> bool:
        call.key = held_key(subscriber, call.event, claim.row_id, claim.lease)
        return subscriber.wants(call.event)

    if subscriber.when is None and isinstance(subscriber.key, str):
        return ask()

    def ask_in_scope() -> bool:
        current.set(call)
        return in_scope(call.endpoint.app, call.store.session, ask)

    return copy_context().run(ask_in_scope)


def awaited_keys(plan: Plan, claim: Claim, event: Event) -> list[tuple[HeldKey, Event]]:
    """The keys for which jobs of the event wait that are not due, with the event."""
    jobs = [(each, plan.jobs[each.name]) for each in plan.waiting]
    row_id, lease = claim.row_id, claim.lease
    return [
        (key_of_job(subscriber, job.key, event, row_id, lease), event)
        for subscriber, job in jobs
        if job.key is not None
    ]


def wake_waiting(
    store: Store, ended: list[HeldKey], awaited: list[tuple[HeldKey, Event]]
) -> list[int]:
    """Make jobs due that have waited for those of an event whose run has ended.

    :param ended: keys of jobs that have ended.
    :param awaited: keys for which jobs of the event wait. The job that they wait for
        may have ended before they were written as waiting, or while the event ran.
    :return: the rows of their events.
    """
    over = [key for key, event in awaited if is_over(store, key, event)]
    return [row_id for key in ended + over for row_id in wake(store, key)]


def _decide_latest(store: Store, call: Call, key: HeldKey, now: datetime) -> Job | None:
    job, event, received_at = call.job, call.event, call.claim.received_at
    # First: if a newer event ends in between, the state of the key shows it.
    others = other_events(store, key, event)
    subscriber, state = key.subscriber, key_state(store, key)
    if state.supersedes(key) or _has_fetched(state, key):
        return job.ended(JobState.SUPERSEDED, now)
    longest = timedelta(seconds=subscriber.settle_max)
    first_at = min(state.first_at or received_at, received_at)
    bound, settled = first_at + longest, _settles_at(call.claim, state, key, others)
    # With ``lag``, the first event of a burst is not put off.
    is_first = key.has_lag and settled is None and job.is_new
    put_off: Job | None = None
    if now < bound:
        if settled is not None and now < settled:
            put_off = job.put_off(min(settled, bound), Wait.SETTLE)
        elif others.has_newer and not is_first:
            put_off = job.put_off(bound, Wait.NEWER)
            # Of many that have settled, the newest runs first.
            call.instead = others.ready if subscriber.settle else None
    elif others.ready and (job.is_new or now < bound + longest):
        # The newest one runs now, and its end supersedes this one.
        put_off = job.put_off(now + longest, Wait.NEWER)
        call.instead = others.ready
    if put_off is not None:
        note_waiting(store, key, state, received_at)
        return replace(put_off, key=key.value, started_at=now)
    if not state.is_stored:
        insert_key(store, key)
    return None


def _has_fetched(state: KeyState, key: HeldKey) -> bool:
    """Whether a finished run began so late that it has read the change (``lag``)."""
    lag, began_at = key.subscriber.lag, state.began_at
    if lag is None or began_at is None or key.event_at is None:
        return False
    return began_at > key.event_at + timedelta(seconds=lag)


def _settles_at(
    claim: Claim, state: KeyState, key: HeldKey, others: Others
) -> datetime | None:
    """When a job of the key is due if no other event comes; ``None`` for now."""
    subscriber, received_at = key.subscriber, claim.received_at
    if subscriber.settle:
        last_at = max(received_at, others.last_at or received_at)
        return last_at + timedelta(seconds=subscriber.settle)
    if subscriber.lag is None or key.event_at is None or state.began_at is None:
        return None
    end = state.began_at + BURST
    if received_at > end:
        return None
    return max(end, key.event_at + timedelta(seconds=subscriber.lag))


def _what(job: Job) -> str:
    if job.state is JobState.SUPERSEDED:
        return "a newer event supersedes the work"
    return f"the work waits until {job.due_at:%H:%M:%S} UTC"
