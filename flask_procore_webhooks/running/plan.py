"""Plan: the jobs of a claimed event, those that are due, and what a run changes."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from datetime import datetime
from datetime import timedelta
from operator import attrgetter

from ..config import Settings
from ..endpoint import Endpoint
from ..event import Event
from ..inbox.due import paused_seconds
from ..inbox.held import Claim
from ..inbox.jobs import are_complete
from ..inbox.jobs import EVERY_OTHER
from ..inbox.jobs import Failure
from ..inbox.jobs import Job
from ..inbox.jobs import written
from ..inbox.status import JobState
from ..inbox.status import Wait
from ..log import log
from ..storage.store import Store
from ..subscribers import Subscriber

#: Seconds, half of them at least, until a job is tried again whose subscriber is in
#: another process.
ABSENT = 60.0
#: Waits that a job has for others of its key.
FOR_OTHERS = (Wait.NEWER, Wait.KEY)
#: Waits that a repeated delivery ends with ``DISPATCH = "inline"``.
HURRIED = (Wait.RETRY, Wait.NOTHING)

_KNOWN_ABSENT = "procore_webhooks_absent"


@dataclass
class Plan:
    """The jobs of a claimed event in one run."""

    #: By subscriber.
    jobs: dict[str, Job] = field(default_factory=dict)
    #: Whose jobs are due, in the order of calls.
    due: list[Subscriber] = field(default_factory=list)
    #: Whose jobs wait for others of their keys, and are not due.
    waiting: list[Subscriber] = field(default_factory=list)
    #: The names of jobs that differ from their rows.
    changed: set[str] = field(default_factory=set)
    #: Of this run, by subscriber.
    failures: dict[str, Failure] = field(default_factory=dict)
    #: The row of an upgrade that the jobs replace.
    replaced: Job | None = None

    @property
    def error(self) -> str:
        """The texts of the failures, each with its subscriber."""
        failures = self.failures.items()
        return "\n".join(f"{name}: {each.text}" for name, each in failures)

    def change(self, job: Job) -> None:
        """Take the job as it is to be written."""
        self.jobs[job.subscriber] = job
        self.changed.add(job.subscriber)

    def without_rows(self, but: str) -> list[Job]:
        """The jobs that are to get a row, without that of the subscriber ``but``."""
        new = [job for job in self.jobs.values() if not job.version]
        new = [job for job in new if job.is_pending or job.subscriber in self.changed]
        return [job for job in new if job.subscriber != but]

    def note_written(self, jobs: Iterable[Job]) -> None:
        """Take jobs whose rows have been written."""
        for job in jobs:
            self.jobs[job.subscriber] = written(job)
            self.changed.discard(job.subscriber)


def new_plan(
    endpoint: Endpoint, claim: Claim, event: Event, now: datetime, *, hurry: bool
) -> Plan:
    """Plan a run.

    :param now: jobs that are due by then are due.
    :param hurry: also jobs that wait for their next attempt.
    """
    due = endpoint.subscribers_for(event)
    if not claim.jobs:
        return Plan({each.name: Job(each.name) for each in due}, due)
    found = {each.name: each for each in due}
    made = Plan(dict(claim.jobs))
    spread = made.replaced = made.jobs.pop(EVERY_OTHER, None)
    if spread or not are_complete(made.jobs.values()):
        for name in found:
            new = Job(name) if spread is None else _spread(spread, name)
            made.jobs.setdefault(name, new)
    for name, job in list(made.jobs.items()):
        if not _is_due(job, now, hurry):
            if job.waits_for in FOR_OTHERS and name in found:
                made.waiting.append(found[name])
        elif name in found:
            made.jobs[name] = _resumed(job, now)
            made.due.append(found[name])
        else:
            left = _without_subscriber(endpoint, job, now)
            made.change(left)
            if left.failure is not None:
                made.failures[name] = left.failure
    made.due.sort(key=attrgetter("order"))
    if claim.unsettled:
        # The one that kills its process is called last.
        made.due.sort(key=lambda each: made.jobs[each.name].attempts)
    return made


def failed(
    job: Job, failure: Failure, now: datetime, began: datetime, wait: float | None
) -> Job:
    """The job after an attempt that has failed.

    :param wait: seconds until the next attempt; ``None`` after the last one.
    """
    counted = replace(job, attempts=job.attempt, is_begun=True, failure=failure)
    if wait is None:
        return counted.ended(JobState.DEAD, now, began)
    due_at = now + timedelta(seconds=wait)
    return counted.put_off(due_at, Wait.RETRY, since=began)


def postponed(
    job: Job, now: datetime, began: datetime, wait: float, settings: Settings
) -> Job:
    """The job after its subscriber has postponed it; its attempts stay.

    It is called once more when ``MAX_AGE`` is over.
    """
    first_at = job.first_at or now
    last = first_at + timedelta(seconds=settings.max_age)
    due_at = now + timedelta(seconds=wait)
    if now < last:
        due_at = min(due_at, last)
    attempts = job.attempts - job.is_begun
    later = replace(job, attempts=attempts, first_at=first_at)
    return later.put_off(due_at, Wait.LATER, since=began)


def postponed_seconds(
    store: Store, job: Job, now: datetime, settings: Settings
) -> float:
    """Seconds since the job was first postponed.

    Beyond ``MAX_AGE``, pauses of the endpoint are left out.
    """
    if job.first_at is None:
        return 0.0
    waited = (now - job.first_at).total_seconds()
    if waited < settings.max_age:
        return waited
    return waited - paused_seconds(store, job.first_at)


def _is_due(job: Job, now: datetime, hurry: bool) -> bool:
    is_hurried = hurry and job.waits_for in HURRIED
    is_due = job.due_at is None or job.due_at <= now or is_hurried
    return job.is_pending and is_due


def _spread(placeholder: Job, name: str) -> Job:
    """The job of a subscriber that an upgrade could not name."""
    return replace(placeholder, subscriber=name, version=0)


def _without_subscriber(endpoint: Endpoint, job: Job, now: datetime) -> Job:
    """The job when its subscriber no longer matches, or is not in this process."""
    if endpoint.knows(job.subscriber):
        return job.ended(JobState.SUPPRESSED, now)
    waits = job.waits_for is Wait.ABSENT and job.started_at is not None
    since = job.started_at if waits and job.started_at else now
    if (now - since).total_seconds() > endpoint.settings.max_age:
        text = "no process has had this subscriber for MAX_AGE"
        dead = replace(job, failure=Failure("Absent", text))
        return dead.ended(JobState.DEAD, now)
    known: set[str] = endpoint.state.runtime.part(_KNOWN_ABSENT, set)
    if job.subscriber not in known:
        known.add(job.subscriber)
        log.error(
            "%s: this process has no subscriber %r, and its jobs wait for one that has;"
            " if it was renamed or removed, end them with discard --subscriber",
            endpoint.name,
            job.subscriber,
        )
    wait = timedelta(seconds=ABSENT * random.uniform(0.5, 1.0))
    return job.put_off(now + wait, Wait.ABSENT, since=since)


def _resumed(job: Job, now: datetime) -> Job:
    """The job without the time for which it waited for others of its key."""
    if job.waits_for not in FOR_OTHERS or not job.first_at or not job.started_at:
        return job
    waited = max(now - job.started_at, timedelta())
    return replace(job, first_at=job.first_at + waited)
