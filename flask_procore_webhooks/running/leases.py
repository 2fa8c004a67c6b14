"""Leases: one thread for each database renews the leases of running events.

It also writes what has ended while a call goes on, and releases what waits. Where the
inbox shares a connection with the host's session, it writes nothing: a commit would be
that of a subscriber's unfinished writes. Another thread watches calls, and has a call
that exceeds its time limit taken over.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress
from math import inf
from operator import attrgetter
from typing import Any

from sqlalchemy import StaticPool
from sqlalchemy.pool import SingletonThreadPool

from ..errors import InboxUnavailable
from ..inbox.held import Claim
from ..log import log
from ..runtime import Alarms
from ..runtime import start_thread
from ..storage.engines import HostEngine
from ..storage.store import Store
from .calls import Call
from .held import HeldClaims
from .held import RENEWALS

#: Seconds after which a thread without leases to renew ends.
IDLE = 60.0
#: Failed writes in a row, about one a second, that are logged.
WARNED_FAILURES = 5


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
            if self._wakes_at > min(held.renew_at, held.release_at):
                self._changed.notify()

    def wake_at(self, when: float) -> None:
        """Look at the held claims at that time of the monotonic clock."""
        if when < self._wakes_at:
            with self._changed:
                # So that later calls leave it alone until it has woken.
                self._wakes_at = when
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
            self._work()

    def _sleep(self) -> bool:
        """Wait until work is due; ``False`` after ``IDLE`` seconds without any."""
        with self._changed:
            while (seconds := self._seconds_to_work()) > 0:
                if not self._changed.wait(min(seconds, IDLE)) and not self._held:
                    self._thread = None
                    return False
            return True

    def _seconds_to_work(self) -> float:
        times = (_work_at(held) for held in self._held)
        self._wakes_at = min(times, default=inf)
        return self._wakes_at - time.monotonic()

    def _work(self) -> None:
        for held in self.held():
            if not _shares_connection(held.store):
                _write(held)
            if held.renew_at <= time.monotonic():
                held.renew_at = time.monotonic() + held.seconds / RENEWALS
                if held.call is not None:
                    self.watch(held, time.monotonic())
                if not _shares_connection(held.store):
                    with _logged("Leases are not renewed"):
                        held.renew()


@contextmanager
def renewing(
    store: Store,
    claimed: Collection[Claim],
    seconds: float,
    on_hang: Callable[[], None] = lambda: None,
    on_release: Callable[[list[int]], None] = lambda rows: None,
) -> Iterator[HeldClaims]:
    """Renew the leases of the claims, of ``seconds`` each, until the block ends.

    What has ended in the block is written at its end at the latest. Claims that wait
    for a long event are released, and ``on_release`` is called with their rows.

    :raises InboxUnavailable: that is not written; see :meth:`HeldClaims.flush`.
    """
    by_row = dict(zip(map(attrgetter("row_id"), claimed), claimed, strict=True))
    renew_at = time.monotonic() + seconds / RENEWALS
    held = HeldClaims(store, seconds, by_row, renew_at, on_hang, on_release)
    renewer = _renewer_of(store)
    renewer.add(held)
    try:
        yield held
        held.flush()
    except BaseException:
        with suppress(InboxUnavailable):
            held.write(until=0.0)
        raise
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
    # Earlier ends do not wait for the end of this call.
    if held.write_at < inf:
        _renewer_of(held.store).wake_at(held.write_at)


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


def _work_at(held: HeldClaims) -> float:
    """When the thread of the leases has work, by the monotonic clock."""
    if _shares_connection(held.store):
        return held.renew_at  # its calls are watched
    return min(held.renew_at, held.write_at, held.release_at)


def _shares_connection(store: Store) -> bool:
    """Whether a subscriber's session may have the connection of the inbox.

    It has in the transaction of a test, and on pools with one connection for all.
    """
    if store.database.joined is not None:
        return True
    engine = store.database.opened
    pools = StaticPool, SingletonThreadPool
    return isinstance(engine, HostEngine) and isinstance(engine.pool, pools)


def _write(held: HeldClaims) -> None:
    """Write once: while the database is locked, other leases are to be renewed."""
    now = time.monotonic()
    if held.release_at <= now:
        with _logged("Queued claims are not released", lambda: False):
            held.release(until=0.0)
    if held.write_at <= now:
        # A subscriber that has written may lock a SQLite file until its end.
        with _logged(
            "The ends of runs are not written yet",
            lambda: held.failures == WARNED_FAILURES,
        ):
            held.write(until=0.0)


@contextmanager
def _logged(text: str, warns: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Log an error in the block.

    :param warns: whether an unavailable database is logged.
    """
    try:
        yield
    except InboxUnavailable as unavailable:
        if warns():
            log.warning("%s: %s", text, unavailable)
    except Exception:
        log.exception(text)
