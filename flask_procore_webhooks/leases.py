"""Leases of events that are being run are renewed, by a thread for each database."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Iterable
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field

from .database import Database
from .errors import InboxUnavailable
from .forks import in_child
from .inbox import Claim
from .inbox import Inbox

log = logging.getLogger("flask_procore_webhooks")

#: A lease is renewed this often in its time, so that one failure does not end it.
RENEWALS = 3
#: Seconds after which a thread with nothing to renew ends.
IDLE = 60.0


@dataclass(eq=False)
class Holding:
    """Claims that somebody is working on."""

    inbox: Inbox
    #: Of each lease.
    seconds: float
    claims: dict[int, Claim]
    #: When it is time to renew them, by the monotonic clock.
    renew_at: float
    _begun: set[int] = field(default_factory=set)
    _is_closed: bool = False
    #: So that no claim is begun and given back at the same time.
    _turn: threading.Lock = field(default_factory=lambda: threading.Lock())

    def drop(self, claim: Claim) -> None:
        """Let go of a claim that is settled."""
        self.claims.pop(claim.row_id, None)

    def begin(self, claim: Claim) -> bool:
        """Whether the claim may be run; it is renewed from now on, not given back.

        Not when it was given back, or its lease is over: this process was stopped, or
        its machine asleep, and others may have it.
        """
        with self._turn:
            is_over = self.inbox.naive_now() >= claim.ends
            if self._is_closed or is_over or claim.row_id not in self.claims:
                return False
            self._begun.add(claim.row_id)
            return True

    def close(self) -> None:
        """Let nothing more begin."""
        with self._turn:
            self._is_closed = True

    def renew(self) -> None:
        """Renew the leases of what has begun, and give back what has not.

        Its turn here may be far off, and somebody else may have nothing to do.
        """
        self.inbox.renew(self.begun(), self.seconds)
        with self._turn:
            waiting = self.not_begun()
            self.inbox.give_back(waiting)
            for claim in waiting:
                self.drop(claim)

    def begun(self) -> list[Claim]:
        return [claim for row, claim in self._held() if row in self._begun]

    def not_begun(self) -> list[Claim]:
        return [claim for row, claim in self._held() if row not in self._begun]

    def _held(self) -> list[tuple[int, Claim]]:
        # At once: another thread may let go of one meanwhile.
        return list(self.claims.items())


class Keeper:
    """Renews what is held in one database until it is let go.

    One for each: a database that does not answer holds up nothing in another.
    """

    def __init__(self) -> None:
        self._holdings: set[Holding] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._wakes_at = float("inf")

    @contextmanager
    def keeping(
        self, inbox: Inbox, claims: Iterable[Claim], seconds: float
    ) -> Iterator[Holding]:
        """See the function of this name."""
        held = {claim.row_id: claim for claim in claims}
        holding = Holding(inbox, seconds, held, _next_renewal(seconds))
        with self._changed:
            self._holdings.add(holding)
            self._start()
            # A thread that wakes in time anyway is left asleep: most runs are short.
            if self._wakes_at > holding.renew_at:
                self._changed.notify()
        try:
            yield holding
        finally:
            with self._changed:
                self._holdings.discard(holding)

    def _start(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            return
        thread = threading.Thread(target=self._run, name="webhook leases", daemon=True)
        try:
            thread.start()
            self._thread = thread
        except RuntimeError as error:
            # No threads here, or the interpreter is ending: runs keep their first
            # lease, and receipts still keep two runs apart.
            log.warning("Leases are not renewed: %s", error)

    def _run(self) -> None:
        # Nothing is held here while it sleeps: not even an app that is gone.
        while self._sleep():
            self._renew_due()

    def _sleep(self) -> bool:
        """Wait until a renewal is due; ``False`` when there was none for long."""
        with self._changed:
            while (seconds := self._seconds_to_renewal()) > 0:
                if not self._changed.wait(min(seconds, IDLE)) and not self._holdings:
                    self._thread = None
                    return False
            return True

    def _seconds_to_renewal(self) -> float:
        times = (holding.renew_at for holding in self._holdings)
        self._wakes_at = min(times, default=float("inf"))
        return self._wakes_at - time.monotonic()

    def _renew_due(self) -> None:
        with self._changed:
            holdings = list(self._holdings)
        for holding in holdings:
            if holding.renew_at <= time.monotonic():
                _renew(holding)


def _renew(holding: Holding) -> None:
    holding.renew_at = _next_renewal(holding.seconds)
    try:
        holding.renew()
    except InboxUnavailable as unavailable:
        log.warning("Leases are not renewed: %s", unavailable)
    except Exception:
        log.exception("Leases are not renewed")


def _next_renewal(seconds: float) -> float:
    return time.monotonic() + seconds / RENEWALS


_keepers: weakref.WeakKeyDictionary[Database, Keeper] = weakref.WeakKeyDictionary()


def _keeper(database: Database) -> Keeper:
    # Not at import: a server may fork, or patch the locks for gevent, after that.
    return _keepers.get(database) or _keepers.setdefault(database, Keeper())


def keeping(
    inbox: Inbox, claims: Iterable[Claim], seconds: float
) -> AbstractContextManager[Holding]:
    """Renew the leases of ``claims``, of ``seconds`` each, until the block ends."""
    return _keeper(inbox.database).keeping(inbox, claims, seconds)


# The thread and what it held are the parent's.
in_child(_keepers.clear)
