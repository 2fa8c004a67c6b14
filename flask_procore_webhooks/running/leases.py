"""Leases: one thread for each database renews the leases of running events.

Another one watches calls, and has a call that exceeds its time limit taken over.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field
from datetime import datetime
from datetime import timedelta
from math import inf
from typing import Any

from ..errors import InboxUnavailable
from ..inbox import batches
from ..inbox.held import Claim
from ..log import log
from ..runtime import Alarms
from ..runtime import start_thread
from ..storage.store import Store
from .calls import Call
from .failures import describe

#: A lease is renewed this often in its time, so that one failure does not end it.
RENEWALS = 3
#: Seconds after which the thread of an abandoned call is replaced at the latest.
HANDOVER = 1.0
#: Seconds after which a thread without leases to renew ends.
IDLE = 60.0


@dataclass(eq=False)
class HeldClaims:
    """Claims of one endpoint that one worker runs, one after the other."""

    store: Store
    #: Seconds of each lease.
    seconds: float
    claims: dict[int, Claim]
    #: When the leases are to be renewed, by the monotonic clock.
    renew_at: float
    #: Called when a call has gone on for another lease, and when it is abandoned.
    on_hang: Callable[[], None] = lambda: None
    #: The call that runs now.
    call: Call | None = None
    #: Whether a call was abandoned: its thread runs nothing else.
    is_abandoned: bool = False
    #: Until when the leases of running claims were renewed, as it is stored, by row.
    ends: dict[int, datetime] = field(default_factory=dict)
    _started: set[int] = field(default_factory=set)
    _is_closed: bool = False
    #: So that no claim is started and released at the same time.
    _lock: threading.Lock = field(default_factory=lambda: threading.Lock())

    def remove(self, claim: Claim) -> None:
        """Remove a claim that is settled or lost."""
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
            return True

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

        The rest is still queued; an idle worker can take it then.
        """
        ends = self.store.db_now() + timedelta(seconds=self.seconds)
        started = self.started()
        renewed = batches.renew(self.store, started, self.seconds)
        for claim in started:
            if claim.row_id in renewed:
                self.ends[claim.row_id] = ends
            else:
                self.remove(claim)
        with self._lock:
            queued = self.queued()
            batches.release(self.store, queued)
            for claim in queued:
                self.remove(claim)

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


class LeaseRenewer:
    """Renews the held claims of one database, and watches their calls."""

    def __init__(self) -> None:
        #: Watches the calls that go on.
        self.alarms = Alarms()
        self._held: set[HeldClaims] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._wakes_at = inf

    def add(self, held: HeldClaims) -> None:
        with self._changed:
            self._held.add(held)
            if self._thread is None or not self._thread.is_alive():
                self._start()
            # A thread that wakes in time sleeps on: most runs are short.
            if self._wakes_at > held.renew_at:
                self._changed.notify()

    def discard(self, held: HeldClaims) -> None:
        with self._changed:
            self._held.discard(held)
        if held in self.alarms.alarms:
            self.alarms.discard(held)

    def watch(self, held: HeldClaims, when: float) -> None:
        try:
            self.alarms.set(held, when, held.watch)
        except RuntimeError as error:
            log.warning("Calls are not watched until the next renewal: %s", error)

    def held(self) -> list[HeldClaims]:
        with self._changed:
            return list(self._held)

    def _start(self) -> None:
        try:
            self._thread = start_thread("webhook leases", self._run)
        except RuntimeError as error:
            # No threads here, or the interpreter ends: runs have their first lease
            # only, and the versions of jobs still keep two runs apart.
            log.warning("Leases are not renewed: %s", error)

    def _run(self) -> None:
        # While it sleeps, it references no app, so that an app can be collected.
        while self._sleep():
            self._renew_due()

    def _sleep(self) -> bool:
        """Wait until a renewal is due; ``False`` after ``IDLE`` seconds without one."""
        with self._changed:
            while (seconds := self._seconds_to_renewal()) > 0:
                if not self._changed.wait(min(seconds, IDLE)) and not self._held:
                    self._thread = None
                    return False
            return True

    def _seconds_to_renewal(self) -> float:
        times = (held.renew_at for held in self._held)
        self._wakes_at = min(times, default=inf)
        return self._wakes_at - time.monotonic()

    def _renew_due(self) -> None:
        for held in self.held():
            if held.renew_at <= time.monotonic():
                if held.call is not None:
                    self.watch(held, time.monotonic())
                _renew(held)


@contextmanager
def renewing(
    store: Store,
    claimed: Iterable[Claim],
    seconds: float,
    on_hang: Callable[[], None] = lambda: None,
) -> Iterator[HeldClaims]:
    """Renew the leases of the claims, of ``seconds`` each, until the block ends."""
    by_row = {claim.row_id: claim for claim in claimed}
    renew_at = time.monotonic() + seconds / RENEWALS
    held = HeldClaims(store, seconds, by_row, renew_at, on_hang)
    renewer = _renewer_of(store)
    renewer.add(held)
    try:
        yield held
    finally:
        renewer.discard(held)


def renew_late(store: Store) -> None:
    """Renew the leases whose renewal is missing; to be called before a claim.

    A call that has locked a SQLite file lets its own lease end. Another thread of its
    process would then claim the same event as soon as the file is free.

    :raises InboxUnavailable: the file is still locked, for example.
    """
    for held in _renewer_of(store).held():
        if held.is_late():
            held.renew()


def watch(held: HeldClaims, call: Call) -> None:
    """Watch the call, which runs for one of the held claims, until the next one."""
    held.call = call
    # Most calls are short: they end before the first renewal, which watches them.
    if call.deadline < held.renew_at:
        _renewer_of(held.store).watch(held, call.deadline)


def longest_call(stores: Iterable[Store]) -> dict[str, Any] | None:
    """The longest call of this process: ``subscriber``, ``event``, ``seconds``."""
    renewers = {_renewer_of(store) for store in stores}
    calls = [held.call for renewer in renewers for held in renewer.held()]
    longest = min(filter(None, calls), key=lambda call: call.started, default=None)
    if longest is None:
        return None
    seconds = round(time.monotonic() - longest.started, 1)
    name, event_id = longest.subscriber.name, longest.claim.event_id
    return {"subscriber": name, "event": event_id, "seconds": seconds}


def _renewer_of(store: Store) -> LeaseRenewer:
    parts = store.database.parts
    found: LeaseRenewer | None = parts.get(LeaseRenewer)
    return found or parts.setdefault(LeaseRenewer, LeaseRenewer())


def _renew(held: HeldClaims) -> None:
    held.renew_at = time.monotonic() + held.seconds / RENEWALS
    try:
        held.renew()
    except InboxUnavailable as unavailable:
        log.warning("Leases are not renewed: %s", unavailable)
    except Exception:
        log.exception("Leases are not renewed")
