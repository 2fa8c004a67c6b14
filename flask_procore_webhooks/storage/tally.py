"""Tally: how often each outcome occurs, by endpoint and minute.

Counts are added up in the memory of the process. A thread adds them to the table every
ten seconds, in a transaction of its own, never in that of a delivery or a run. They are
a statistic: a process that is killed loses those of its last ten seconds.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from datetime import timezone
from math import inf

from sqlalchemy import Connection
from sqlalchemy import func
from sqlalchemy import select
from sqlalchemy import Table
from sqlalchemy.exc import IntegrityError

from ..log import log
from ..runtime import has_threads
from ..runtime import start_thread
from ..serving import flask_command
from .servers import Fault
from .servers import fault_of
from .store import Store
from .store import to_db_time
from .store import TransientError
from .upserts import add_counts

#: Seconds between two flushes of a process.
FLUSH_SECONDS = 10.0
#: Waits without a count after which the thread ends.
IDLE_FLUSHES = 6
#: Seconds in which a flush is tried again while a caller, or the process's end, waits.
SHORT = 1.0
#: Seconds between two tries.
PAUSE = 0.1
#: Counts in memory; of more, those of the oldest minutes are dropped.
MOST_KEPT = 10_000

#: An endpoint without a secret counts only this, and touches no database for it.
UNAVAILABLE = "unavailable"
#: Counted by deliveries that are refused without a statement to the database.
REJECTED = "rejected"

#: Endpoint, start of the minute in UTC without a zone, outcome.
Key = tuple[str, datetime, str]
COLUMNS = ("endpoint", "minute", "outcome", "count")


@dataclass(frozen=True)
class Minute:
    """How often an outcome occurred within one minute."""

    #: Its start: aware, UTC.
    at: datetime
    outcome: str
    count: int


class Tally:
    """The counts of one process for one database that are not in the table yet."""

    def __init__(self) -> None:
        self.counts: dict[Key, int] = {}
        #: Held for the change of one entry, never during a statement.
        self.lock = threading.Lock()
        #: When :func:`count` sees to the next flush, by the monotonic clock; infinity
        #: while a thread does it.
        self.look_at = -inf
        self.pid = os.getpid()
        #: Whether the last flush has failed.
        self.has_failed = False
        self._store: weakref.ref[Store] | None = None
        self._is_stopped = threading.Event()

    @property
    def store(self) -> Store | None:
        """A store that may be used for a flush, as long as its app exists."""
        return self._store() if self._store else None

    def see_to_flush(self, store: Store, outcome: str) -> None:
        """Start the thread that flushes; flush now if no thread may be started.

        A test flushes by a call. A process whose command ends soon flushes at its end.
        """
        with self.lock:
            if time.monotonic() < self.look_at:
                return
            self.look_at = time.monotonic() + FLUSH_SECONDS
        if store.database.runtime.is_testing():
            return
        is_first, self._store = self._store is None, weakref.ref(store)
        if is_first:
            _tallies.append(weakref.ref(self, _tallies.remove))
        if _may_start_thread():
            with suppress(RuntimeError):
                start_thread("webhook tally", self._run)
                self.look_at = inf
                return
        if not is_first and outcome != REJECTED:
            flush_quietly(store)

    def stop(self) -> None:
        """End the thread; only calls flush afterwards."""
        self.look_at = inf
        self._is_stopped.set()

    def take(self) -> dict[Key, int]:
        """Return every count and begin with none."""
        with self.lock:
            counts, self.counts = self.counts, {}
        return counts

    def put_back(self, counts: dict[Key, int]) -> None:
        """Keep counts for the next flush."""
        with self.lock:
            for key, number in counts.items():
                self.counts[key] = self.counts.get(key, 0) + number
            if len(self.counts) > MOST_KEPT:
                self.drop_oldest()

    def drop_oldest(self) -> None:
        """Keep the newer half of too many counts; the caller has the lock."""
        newest = sorted(self.counts, key=lambda key: key[1])[-MOST_KEPT // 2 :]
        self.counts = {key: self.counts[key] for key in newest}

    def _run(self) -> None:
        while self._sleep() and (store := self.store):
            flush_quietly(store, store.retry_seconds)
            # While it sleeps, it references no store: an app can be collected.
            del store

    def _sleep(self) -> bool:
        """Sleep until there is something to add; ``False`` after a minute without."""
        for _ in range(IDLE_FLUSHES):
            if self._is_stopped.wait(FLUSH_SECONDS):
                return False
            if self.counts:
                return True
        with self.lock:
            self.look_at = inf if self.counts else -inf
            return bool(self.counts)


#: The tallies of this process, and of its parents, that are flushed at its end.
_tallies: list[weakref.ref[Tally]] = []


def count(
    store: Store, outcome: str, number: int = 1, *, now: datetime | None = None
) -> None:
    """Add ``number`` to the outcome of the endpoint in the current minute.

    It executes no statement. Threads may race.

    :param outcome: at most 40 ASCII characters.
    :param now: the current time if the caller has it, in UTC.
    """
    parts = store.database.parts
    tally: Tally = parts.get(Tally) or parts.setdefault(Tally, Tally())
    if now is None and store.now == store.corrected_now:
        # The same without a call.
        now = store.clock.host_now() + store.clock.offset
    minute = (now or store.now()).replace(second=0, microsecond=0, tzinfo=None)
    with tally.lock:
        key = store.endpoint, minute, outcome
        tally.counts[key] = tally.counts.get(key, 0) + number
        if len(tally.counts) > MOST_KEPT:
            tally.drop_oldest()
    if time.monotonic() >= tally.look_at and outcome != UNAVAILABLE:
        tally.see_to_flush(store, outcome)


def flush(store: Store, seconds: float | None = None) -> None:
    """Add what this process has counted to the table: all endpoints of the database.

    Counts are kept for the next flush if the transaction has failed. If its outcome is
    unknown, because the connection broke at the COMMIT, they are dropped: a statistic
    that lacks some is better than one that has some twice.

    :param seconds: in which a failed transaction is tried again; by default the
        store's ``retry_seconds``.
    :raises InboxUnavailable: the counts are kept.
    """
    tally: Tally | None = store.database.parts.get(Tally)
    if tally is None or not (counts := tally.take()):
        return
    until = time.monotonic() + (store.retry_seconds if seconds is None else seconds)
    addition = _Addition(store.database.tables.tally, counts)
    while True:
        addition.is_complete = False
        try:
            # One try: a repeated COMMIT could add the counts twice.
            store.run(addition, begin=True, until=0.0)
            return
        except BaseException as error:
            if addition.may_be_committed(error):
                log.warning("Counts of the last seconds may be lost: %r", error)
                if isinstance(error, Exception):
                    return
                raise
            may_succeed = isinstance(error, (TransientError, IntegrityError))
            if not may_succeed or time.monotonic() >= until:
                tally.put_back(counts)
                raise
        time.sleep(PAUSE)


def flush_quietly(store: Store, seconds: float = SHORT) -> None:
    """Flush; a failure is logged once until a flush succeeds, and raises nothing."""
    tally: Tally = store.database.parts.setdefault(Tally, Tally())
    has_failed, tally.has_failed = tally.has_failed, True
    try:
        flush(store, seconds)
        tally.has_failed = False
    except Exception as error:
        if not has_failed:
            log.warning("Counts are kept in memory until they can be added: %s", error)


def flush_all() -> None:
    """Add all counts of this process, at its end; raises nothing, ends the threads."""
    for reference in list(_tallies):
        tally = reference()
        # A fork has copied the counts of its parent, which adds them itself.
        if tally and tally.pid == os.getpid():
            tally.stop()
            if (store := tally.store) and not store.database.runtime.is_testing():
                flush_quietly(store)


# Registered before ``background.stop_all``, and called after it: its last runs count.
atexit.register(flush_all)


def history(store: Store, since: datetime) -> dict[str, int]:
    """How often each outcome of the endpoint occurred since a time, as far as added.

    :param since: aware; its whole minute counts.
    """
    t = store.database.tables.tally.c
    query = select(t.outcome, func.sum(t.count).label("total"))
    query = query.where(t.endpoint == store.endpoint, t.minute >= _minute_of(since))
    found = store.rows(query.group_by(t.outcome).order_by(t.outcome))
    return {row.outcome: int(row.total) for row in found}


def minutes(store: Store, since: datetime) -> list[Minute]:
    """The counts of each minute since a time, in order; minutes without any lack.

    :param since: aware; its whole minute counts.
    """
    t = store.database.tables.tally.c
    query = select(t.minute, t.outcome, t.count)
    query = query.where(t.endpoint == store.endpoint, t.minute >= _minute_of(since))
    return [
        Minute(row.minute.replace(tzinfo=timezone.utc), row.outcome, row[2])
        for row in store.rows(query.order_by(t.minute, t.outcome))
    ]


def _minute_of(when: datetime) -> datetime:
    return to_db_time(when).replace(second=0, microsecond=0)


def _may_start_thread() -> bool:
    """Whether this process goes on for long, and runs threads."""
    command = flask_command()
    return has_threads() and (command is None or command.info_name == "run")


class _Addition:
    """The transaction of a flush."""

    def __init__(self, table: Table, counts: dict[Key, int]) -> None:
        self._table = table
        # In one order everywhere: two processes add to the same minutes.
        ordered = sorted(counts.items())
        self._rows = [dict(zip(COLUMNS, (*key, n), strict=True)) for key, n in ordered]
        #: Whether every statement before the COMMIT has succeeded.
        self.is_complete = False

    def __call__(self, connection: Connection) -> None:
        add_counts(connection, self._table, self._rows)
        self.is_complete = True

    def may_be_committed(self, error: BaseException) -> bool:
        """Whether the COMMIT was sent and, by this error, not refused."""
        cause = error.__context__ or error
        return self.is_complete and fault_of(cause) is not Fault.LOCK
