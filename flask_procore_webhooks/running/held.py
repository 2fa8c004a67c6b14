"""Held: the claims of one worker, and what their runs have left to write."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Iterable
from dataclasses import dataclass
from dataclasses import field
from datetime import datetime
from datetime import timedelta
from math import inf

from ..inbox import batches
from ..inbox.completion import settle_done
from ..inbox.held import Claim
from ..inbox.jobs import Job
from ..log import log
from ..runtime import start_thread
from ..storage.store import Store
from .calls import Call
from .failures import describe

#: A lease is renewed this often in its time, so that one failure does not end it.
RENEWALS = 3
#: Seconds after which the thread of an abandoned call is replaced at the latest.
HANDOVER = 1.0
#: Seconds after the end of a job when it is written at the latest, and after a failure
#: when it is tried again.
LONGEST_DELAY, FAILURE_DELAY = 0.05, 1.0
#: Seconds of an event after which the claims behind it are released.
LONGEST_WAIT = 0.5


@dataclass(eq=False)
class HeldClaims:
    """Claims of one endpoint that one worker runs, one after the other.

    The ends of jobs that have no row, and the events that are done, are written
    together: by :meth:`flush` of the worker, or by :meth:`write` of the thread that
    renews the leases.
    """

    store: Store
    #: Seconds of each lease.
    seconds: float
    claims: dict[int, Claim]
    #: When the leases are to be renewed, by the monotonic clock.
    renew_at: float
    #: Called when a call has gone on for another lease, and when it is abandoned.
    on_hang: Callable[[], None] = lambda: None
    #: Called with the rows of queued claims that were released.
    on_release: Callable[[list[int]], None] = lambda rows: None
    #: The call that runs now.
    call: Call | None = None
    #: Whether a call was abandoned: its thread runs nothing else.
    is_abandoned: bool = False
    #: Until when the leases of running claims were renewed, as it is stored, by row.
    ends: dict[int, datetime] = field(default_factory=dict)
    #: When what has ended is to be written, by the monotonic clock.
    write_at: float = inf
    #: When queued claims are released, by the monotonic clock, if there are any.
    release_at: float = inf
    #: Claims that were lost before their events were settled as done.
    lost: int = 0
    #: Times in a row that ends were not written.
    failures: int = 0
    _started: set[int] = field(default_factory=set)
    _is_closed: bool = False
    #: Ends that are not written, each with the row of its event.
    _jobs: list[tuple[int, Job]] = field(default_factory=list)
    #: Claims of events that are done and not settled, by row, and what announces them.
    _done: dict[int, Claim] = field(default_factory=dict)
    _announced: dict[int, Callable[[], None]] = field(default_factory=dict)
    #: When the events of a failed write were done: its answer may have been lost.
    _settled_at: datetime | None = None
    #: Of settled events, in their order.
    _announcements: deque[Callable[[], None]] = field(default_factory=deque)
    _pid: int = field(default_factory=os.getpid)

    def __post_init__(self) -> None:
        #: So that no claim is started and released at the same time.
        self._lock = threading.Lock()
        #: Held while ends are written.
        self._writing = threading.Lock()
        if len(self.claims) > 1:
            self.release_at = time.monotonic() + LONGEST_WAIT

    def remove(self, claim: Claim) -> None:
        """Remove a claim that is lost or whose run has ended.

        The claim of an event that is done is held until the event is settled.
        """
        if not self.is_done(claim):
            self.claims.pop(claim.row_id, None)

    def start(self, claim: Claim) -> bool:
        """Mark the claim as running and return ``True``; safe to repeat.

        ``False`` if it was released or its lease has ended, for example because the
        process was suspended.
        """
        with self._lock:
            ends = self.ends.get(claim.row_id, claim.ends)
            has_ended = self.store.db_now() >= ends
            if self._is_closed or has_ended or claim.row_id not in self.claims:
                return False
            self._started.add(claim.row_id)
            if self.release_at < inf:
                self.release_at = time.monotonic() + LONGEST_WAIT
            return True

    def end(self, claim: Claim, job: Job) -> None:
        """Write the end of a job that has no row, within ``LONGEST_DELAY`` seconds."""
        self._jobs.append((claim.row_id, job))
        self.write_at = min(self.write_at, time.monotonic() + LONGEST_DELAY)

    def settle(self, claim: Claim, announce: Callable[[], None] | None) -> None:
        """Settle the event as done, within ``LONGEST_DELAY`` seconds.

        :param announce: is called by :meth:`flush` when that is committed.
        """
        if announce is not None:
            self._announced[claim.row_id] = announce
        self._done[claim.row_id] = claim
        self.write_at = min(self.write_at, time.monotonic() + LONGEST_DELAY)

    def flush(self) -> None:
        """Write what has ended, and announce the events that are settled.

        Safe to repeat: what an error has left is written by the next call.

        :raises InboxUnavailable: it is not written.
        """
        if self._jobs or self._done:
            self.write()
        while True:
            try:
                announce = self._announcements.popleft()
            except IndexError:
                return  # the thread that ends the process may have taken the last one
            announce()

    def flush_due(self) -> None:
        """Flush if ``LONGEST_DELAY`` is over, or an event is to be announced.

        The next call may take long.
        """
        if self._announcements or self._announced or time.monotonic() >= self.write_at:
            self.flush()

    def write(self, until: float | None = None) -> None:
        """Write what has ended; the caller may be another thread than that of the runs.

        A forked child writes nothing: the ends belong to its parent.

        :param until: as for :meth:`Store.run`.
        :raises InboxUnavailable: it is not written.
        """
        if os.getpid() != self._pid:
            return
        with self._writing:
            # Before the rest is read: what ends meanwhile has a time of its own. The
            # events first, because their jobs ended before them.
            self.write_at = inf
            done, jobs = self._done.copy(), self._jobs.copy()
            try:
                at = self._settled_at = self._settled_at or self.store.db_now()
                settled = settle_done(self.store, done.values(), jobs, at, until)
            except BaseException:
                self.write_at = time.monotonic() + FAILURE_DELAY
                self.failures += 1
                raise
            self.failures, self._settled_at = 0, None
            del self._jobs[: len(jobs)]
            self._leave(done, settled)

    def hand_over(self, claim: Claim, other: HeldClaims) -> None:
        """Let ``other`` alone hold a claim whose call is abandoned."""
        self.call, self.is_abandoned = None, True
        other.ends.update(self.ends)
        other._started.add(claim.row_id)
        self.remove(claim)

    def close(self) -> None:
        """Let no further claim start."""
        with self._lock:
            self._is_closed = True

    def renew(self) -> None:
        """Renew the leases of running claims, and remove lost ones; release the rest.

        :raises InboxUnavailable: some are renewed or released by the next call.
        """
        ends = self.store.db_now() + timedelta(seconds=self.seconds)
        started = self.started()
        renewed = batches.renew(self.store, started, self.seconds)
        for claim in started:
            if claim.row_id in renewed:
                self.ends[claim.row_id] = ends
            else:
                self.remove(claim)
        self.release()

    def release(self, until: float | None = None) -> None:
        """Release the queued claims, so that idle workers can take them.

        :param until: as for :meth:`Store.run`.
        :raises InboxUnavailable: they are still held.
        """
        with self._lock:
            self.release_at = time.monotonic() + FAILURE_DELAY
            queued = self.queued()
            batches.release(self.store, queued, until)
            self.release_at = inf
            for claim in queued:
                self.remove(claim)
        if queued:
            self.on_release([claim.row_id for claim in queued])

    def is_late(self) -> bool:
        """Whether a renewal of running claims is missing."""
        started = self.started()
        if not started:
            return False
        ends = min(self.ends.get(each.row_id, each.ends) for each in started)
        left = ends - self.store.db_now()
        return left < timedelta(seconds=self.seconds / RENEWALS)

    def started(self) -> list[Claim]:
        # Copies: another thread may remove a claim meanwhile.
        return [
            each for each in [*self.claims.values()] if each.row_id in self._started
        ]

    def is_done(self, claim: Claim) -> bool:
        """Whether its event is done, and not settled yet."""
        return claim.row_id in self._done

    def queued(self) -> list[Claim]:
        claims = [*self.claims.values()]
        return [each for each in claims if each.row_id not in self._started]

    def watch(self) -> float:
        """Log a call that goes on, or have it taken over; return when to look again.

        It uses no database: that may wait for a lock of the call.
        """
        call, now = self.call, time.monotonic()
        if call is None:
            if self.is_abandoned:
                self.on_hang()
            return inf
        if call.deadline <= now:
            self._end_call(call)
            return min(call.deadline, now + HANDOVER)
        elif now - call.warned_at >= self.seconds:
            call.warned_at = now
            log.warning(
                "%s has been running for %.0f s for %s; its lease is renewed",
                call.subscriber.name,
                now - call.started,
                describe(call.event),
            )
            self.on_hang()
        return min(call.deadline, call.warned_at + self.seconds)

    def _end_call(self, call: Call) -> None:
        try:
            state = call.endpoint.state
            start_thread("webhook rest", lambda: call.take_over(call), state)
            call.deadline = inf
        except RuntimeError as error:
            call.deadline = time.monotonic() + self.seconds
            log.warning("%s is not abandoned: %s", call.subscriber.name, error)

    def _leave(self, rows: Iterable[int], settled: set[int]) -> None:
        """Hold the claims of these rows no longer."""
        for row_id in rows:
            del self._done[row_id]
            self.claims.pop(row_id, None)
            announce = self._announced.pop(row_id, None)
            if row_id not in settled:
                self.lost += 1
            elif announce is not None:
                self._announcements.append(announce)
