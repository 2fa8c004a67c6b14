"""What a replay or a discard does with each event, and what it leaves out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field
from datetime import datetime
from typing import Any

from ..inbox.jobs import are_complete
from ..inbox.jobs import EVERY_OTHER
from ..inbox.status import JobState
from ..inbox.status import Status
from .journal import REPLAY
from .selection import Found
from .selection import Operation

#: Why something is left out: of events, then of jobs.
RUNNING = "running"
PRUNED = "without their bodies, which are pruned"
FINISHED = "finished already"
DUE = "due already"

_ENDED = {Status.DONE.value, Status.IGNORED.value}
_LIVE = {Status.PENDING.value, Status.RUNNING.value}


@dataclass
class Plan:
    """What is done with one event."""

    event: Any
    #: Jobs that become pending with all attempts before them.
    reset: list[Any] = field(default_factory=list)
    #: Pending jobs that become due sooner.
    hurried: list[Any] = field(default_factory=list)
    #: Jobs that are discarded.
    ended: list[Any] = field(default_factory=list)
    #: The subscriber that gets a job.
    added: str | None = None
    #: Whether the event itself is changed, because it has no jobs.
    is_bare: bool = False
    #: The event's other jobs.
    kept: list[Any] = field(default_factory=list)

    @property
    def changed(self) -> list[Any]:
        return [*self.reset, *self.hurried, *self.ended]

    @property
    def is_partial(self) -> bool:
        """Whether its first run was killed, and has left rows of finished jobs only."""
        is_whole = are_complete([*self.changed, *self.kept])
        return self.event.status in _LIVE and not is_whole

    @property
    def inserted(self) -> list[str]:
        """The subscribers of rows that a replay inserts."""
        added = [] if self.added is None else [self.added]
        # With a pending row, the rows would be those of all subscribers.
        return [*added, EVERY_OTHER] if self.reset and self.is_partial else added

    @property
    def jobs(self) -> int:
        """How many jobs are changed."""
        return len(self.changed) + (self.added is not None)

    @property
    def subscribers(self) -> Iterator[str]:
        yield from (job.subscriber for job in self.changed)
        if self.added is not None:
            yield self.added

    def __bool__(self) -> bool:
        return self.is_bare or self.jobs > 0


def is_leased(event: Any, now: datetime) -> bool:
    """Whether a process runs the event."""
    return bool(event.status == Status.RUNNING.value and event.due_at > now)


def plan(
    operation: Operation,
    found: Found,
    is_free: bool,
    now: datetime,
    left_out: Counter[str],
) -> Plan:
    """What the operation does with the event; false if nothing.

    :param is_free: whether no process runs the event.
    :param left_out: gets the reasons why something is left out.
    """
    event = found.event
    if not is_free:
        if _concerns(operation, found):
            left_out[RUNNING] += 1
        return Plan(event)
    planned, skipped = Plan(event), Counter[str]()
    is_replay = operation.action == REPLAY
    (_replay if is_replay else _discard)(operation, found, now, planned, skipped)
    if planned and is_replay and not event.has_body:
        left_out[PRUNED] += 1
        return Plan(event)
    changed = {job.subscriber for job in planned.changed}
    planned.kept = [job for job in found.jobs if job.subscriber not in changed]
    left_out.update(skipped)
    return planned


def _concerns(operation: Operation, found: Found) -> bool:
    """Whether a job of the event is meant."""
    is_open = not operation.wanted.asks_jobs and not found.jobs
    return is_open or bool(found.wanted)


def _replay(
    operation: Operation,
    found: Found,
    now: datetime,
    planned: Plan,
    skipped: Counter[str],
) -> None:
    for job in found.wanted:
        if job.state == JobState.PENDING.value:
            if not _takes_live(operation):
                continue
            if job.due_at is None or job.due_at > now:
                planned.hurried.append(job)
            else:
                skipped[DUE] += 1
        elif job.state == JobState.DEAD.value:
            if operation.takes(Status.DEAD):
                planned.reset.append(job)
        elif operation.anew:
            planned.reset.append(job)
        else:
            skipped[FINISHED] += 1
    name = operation.wanted.subscriber
    if name is not None:
        if _is_new(operation, found):
            planned.added = name
    elif not found.jobs:
        _replay_bare(operation, found.event, now, planned, skipped)


def _replay_bare(
    operation: Operation,
    event: Any,
    now: datetime,
    planned: Plan,
    skipped: Counter[str],
) -> None:
    if operation.wanted.asks_jobs:
        return
    if event.status in _LIVE:
        planned.is_bare = event.due_at > now
        skipped[DUE] += not planned.is_bare
    elif event.status == Status.DONE.value and not operation.anew:
        skipped[FINISHED] += 1
    else:
        planned.is_bare = True


def _is_new(operation: Operation, found: Found) -> bool:
    """Whether the event gets a job of the subscriber, which has none."""
    wanted = operation.wanted
    if wanted.error is not None or wanted.died_since is not None:
        return False
    if not (wanted.statuses or operation.rows is not None):
        return False
    if found.event.status in _LIVE and not are_complete(found.jobs):
        return False  # its first run calls every subscriber that matches
    has_job = any(job.subscriber == wanted.subscriber for job in found.jobs)
    return not has_job and operation.adds(found.event)


def _discard(
    operation: Operation,
    found: Found,
    now: datetime,
    planned: Plan,
    skipped: Counter[str],
) -> None:
    for job in found.wanted:
        if job.state == JobState.PENDING.value:
            is_meant = _takes_live(operation)
        else:
            is_meant = job.state == JobState.DEAD.value and operation.takes(Status.DEAD)
            skipped[FINISHED] += job.state != JobState.DEAD.value
        if is_meant:
            planned.ended.append(job)
    is_live = found.event.status in _LIVE
    is_whole = are_complete(found.jobs) if is_live else bool(found.jobs)
    if is_whole or operation.wanted.error or operation.wanted.died_since:
        return
    event = found.event
    if operation.wanted.subscriber is None:
        planned.is_bare = event.status not in _ENDED
        skipped[FINISHED] += not planned.is_bare
    elif event.status == Status.PENDING.value and operation.adds(event):
        planned.added = operation.wanted.subscriber


def _takes_live(operation: Operation) -> bool:
    return operation.takes(Status.PENDING) or operation.takes(Status.RUNNING)
