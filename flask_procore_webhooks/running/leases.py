"""Leases: one thread for each database renews the leases of running events."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field

from ..errors import InboxUnavailable
from ..inbox import claims
from ..inbox.claims import Claim
from ..inbox.store import Store
from ..log import log

#: A lease is renewed this often in its time, so that one failure does not end it.
RENEWALS = 3
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
    _started: set[int] = field(default_factory=set)
    _is_closed: bool = False
    #: So that no claim is started and released at the same time.
    _lock: threading.Lock = field(default_factory=lambda: threading.Lock())

    def remove(self, claim: Claim) -> None:
        """Remove a claim that is settled."""
        self.claims.pop(claim.row_id, None)

    def start(self, claim: Claim) -> bool:
        """Mark the claim as running and return ``True``.

        ``False`` if it was released or its lease has ended, for example because the
        process was suspended.
        """
        with self._lock:
            has_ended = self.store.db_now() >= claim.ends
            if self._is_closed or has_ended or claim.row_id not in self.claims:
                return False
            self._started.add(claim.row_id)
            return True

    def close(self) -> None:
        """Let no further claim start."""
        with self._lock:
            self._is_closed = True

    def renew(self) -> None:
        """Renew the leases of running claims and release claims that are still queued.

        An idle worker can then take the released ones.
        """
        claims.renew(self.store, self.started(), self.seconds)
        with self._lock:
            queued = self.queued()
            claims.release(self.store, queued)
            for claim in queued:
                self.remove(claim)

    def started(self) -> list[Claim]:
        return [claim for row, claim in self._items() if row in self._started]

    def queued(self) -> list[Claim]:
        return [claim for row, claim in self._items() if row not in self._started]

    def _items(self) -> list[tuple[int, Claim]]:
        # A copy: another thread may remove a claim meanwhile.
        return list(self.claims.items())


class LeaseRenewer:
    """Renews the held claims of one database.

    One for each database: a database that does not answer delays no other.
    """

    def __init__(self) -> None:
        self._held: set[HeldClaims] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._wakes_at = float("inf")

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

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="webhook leases", daemon=True)
        try:
            thread.start()
            self._thread = thread
        except RuntimeError as error:
            # No threads here, or the interpreter ends: runs have their first lease
            # only, and receipts still keep two runs apart.
            log.warning("Leases are not renewed: %s", error)

    def _run(self) -> None:
        # The sleeping thread references no app, so that an app can be collected.
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
        self._wakes_at = min(times, default=float("inf"))
        return self._wakes_at - time.monotonic()

    def _renew_due(self) -> None:
        with self._changed:
            held_now = list(self._held)
        for held in held_now:
            if held.renew_at <= time.monotonic():
                _renew(held)


@contextmanager
def renewing(
    store: Store, claimed: Iterable[Claim], seconds: float
) -> Iterator[HeldClaims]:
    """Renew the leases of the claims, of ``seconds`` each, until the block ends."""
    parts = store.database.parts
    renewer: LeaseRenewer = parts.get(LeaseRenewer) or parts.setdefault(
        LeaseRenewer, LeaseRenewer()
    )
    by_row = {claim.row_id: claim for claim in claimed}
    held = HeldClaims(store, seconds, by_row, _next_renewal(seconds))
    renewer.add(held)
    try:
        yield held
    finally:
        renewer.discard(held)


def _renew(held: HeldClaims) -> None:
    held.renew_at = _next_renewal(held.seconds)
    try:
        held.renew()
    except InboxUnavailable as unavailable:
        log.warning("Leases are not renewed: %s", unavailable)
    except Exception:
        log.exception("Leases are not renewed")


def _next_renewal(seconds: float) -> float:
    return time.monotonic() + seconds / RENEWALS
