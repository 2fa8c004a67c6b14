"""Direct inserts: new events by the driver's cursor, on a connection that is kept.

The statement means what :class:`~.inserts.Inserts` means, which inserts whatever
cannot be inserted here: the first event, and every event that meets an error.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Iterable
from collections.abc import Sequence
from contextlib import suppress
from operator import itemgetter
from typing import Any
from typing import cast

from sqlalchemy import Connection
from sqlalchemy import Dialect
from sqlalchemy import Engine
from sqlalchemy import event
from sqlalchemy import QueuePool
from sqlalchemy import Table

from ..runtime import keep
from ..storage.engines import HostEngine
from ..storage.engines import is_exhausted
from ..storage.engines import is_in_autocommit
from ..storage.engines import is_in_memory
from ..storage.servers import Fault
from ..storage.servers import fault_of
from ..storage.store import Store
from .inserts import ALREADY_RECORDED
from .inserts import as_json
from .inserts import KEY_OF
from .inserts import LARGEST_STATEMENT
from .inserts import PENDING
from .inserts import prepare
from .inserts import Row

#: Drivers whose cursors accept SQLAlchemy's compiled SQL and bound values unchanged.
DRIVERS = ("pysqlite", "psycopg", "psycopg2")
#: Listeners of a host that would miss a statement of the driver's cursor.
WATCHING = (
    "before_execute before_cursor_execute after_cursor_execute after_execute"
).split()
#: Seconds without an event after which a connection is closed and none is kept: it is
#: idle, and a firewall may have dropped it.
LONGEST_IDLE = 60.0
#: Attribute of the engine whose ``dispose()`` closes the kept connections in it.
KEPT = "_procore_webhooks_kept"


class DirectInserts:
    """Inserts new pending events by the driver's cursor, on one connection.

    :param store: gives the connection, which then belongs to no pool.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._kept: _Kept | None = None
        #: When an event was last inserted by another statement.
        self._last = -LONGEST_IDLE
        #: The engine whose connections have a transaction at all times.
        self._refused: Engine | None = None

    def __call__(self, rows: Sequence[Row]) -> list[int] | None:
        """Return what :class:`~.inserts.Inserts` returns, or ``None``: use that one.

        After an error, the rows may have been inserted; to repeat that is safe.
        """
        kept = self._kept
        if kept is None or not _are_pending(rows) or not kept.lock.acquire(False):
            return None
        try:
            if kept.is_valid(self._store.database.opened):
                if not _is_watched(kept.engine) and not self._store.needs_checks():
                    return kept.insert(rows)
        except Exception as error:
            kept.is_broken |= fault_of(error) is not Fault.LOCK
        except BaseException:
            # An interrupted call (gevent.Timeout) may have left half a statement.
            kept.is_broken = True
            raise
        finally:
            kept.lock.release()
            if kept.is_broken:
                kept.close()
        return None

    def open(self) -> None:
        """Keep a connection if the engine allows it, and events come in often."""
        before, self._last = self._last, time.monotonic()
        engine = self._store.database.opened
        if self._kept is not None and not self._kept.is_broken:
            return
        # The next event tells what is wrong.
        with suppress(Exception):
            is_frequent = self._last - before <= LONGEST_IDLE
            if engine is not None and is_frequent and _allows(engine):
                self._keep(engine)

    def _keep(self, engine: Engine) -> None:
        if self._refused is engine:
            return
        connection, kept = self._store.detached(), None
        try:
            if is_in_autocommit(connection):
                table = self._store.database.tables.event
                self._kept = kept = _Kept(engine, connection, table)
            else:
                self._refused = engine
        finally:
            if kept is None:
                connection.close()


class _Kept:
    """A connection with its cursor, and the statements for 1, 2, 3 … rows."""

    def __init__(self, engine: Engine, connection: Connection, table: Table) -> None:
        self.engine = engine
        #: Held by the thread that uses the connection.
        self.lock = threading.Lock()
        self.is_broken = False
        self._table, self._pool = table, cast(Any, engine.pool)
        #: By the number of rows.
        self._statements = {1: _Statement(table, engine.dialect, 1)}
        driver: Any = connection.connection.dbapi_connection
        self._cursor = driver.cursor()
        self._opened = self._used = time.monotonic()
        #: Closes the connection. Safe to repeat; called when the app is collected, too.
        self.close = weakref.finalize(self, _close, driver, os.getpid())
        # A daemon thread may use it until the process has ended.
        self.close.atexit = False
        if isinstance(engine, HostEngine):
            _close_with(engine, self)

    def is_valid(self, engine: Engine | None) -> bool:
        """Whether the host would use this connection, if its pool had it.

        :param engine: the engine in use now.
        """
        now, longest = time.monotonic(), getattr(self._pool, "_recycle", -1)
        is_old = self._used + LONGEST_IDLE < now
        is_old |= longest >= 0 and self._opened + longest < now
        # Engine.dispose() replaces the pool.
        is_current = engine is self.engine and engine.pool is self._pool
        self.is_broken |= is_old or not is_current
        self._used = now
        return not self.is_broken

    def insert(self, rows: Sequence[Row]) -> list[int]:
        """Insert the rows that are new, by one statement, which is one commit."""
        number = len(rows)
        statement = self._statements.get(number)
        if statement is None:
            statement = _Statement(self._table, self.engine.dialect, number)
            self._statements[number] = statement
        return statement(self._cursor, rows)


class _Statement:
    """The insert of the new ones of so many pending events."""

    def __init__(self, table: Table, dialect: Dialect, number: int) -> None:
        prepared = prepare(table, dialect, number)
        self._number = number
        self._text, self._newest, names, self._processors = prepared
        self._in_order = itemgetter(*names) if names else None

    def __call__(self, cursor: Any, rows: Sequence[Row]) -> list[int]:
        # In one order everywhere, see Inserts.
        ordered = sorted(rows, key=KEY_OF) if self._number > 1 else rows
        cursor.execute(self._text, self._values(ordered))
        # Most deliveries come alone, and SQLite's cursor has the id of the one row.
        if self._number == 1 and self._newest is not None:
            return [cursor.lastrowid if cursor.rowcount else ALREADY_RECORDED]
        new = self._find_new(cursor, ordered)
        return [new.pop(KEY_OF(row), ALREADY_RECORDED) for row in rows]

    def _find_new(
        self, cursor: Any, ordered: Sequence[Row]
    ) -> dict[tuple[str, str], int]:
        """The ids of the inserted rows by their keys."""
        if self._newest is None:
            return _by_key(cursor.fetchall())
        # On SQLite, RETURNING gives the GIL away at each row. One statement writes at a
        # time: the ids of its rows were the highest, and consecutive if all were new.
        number, last = cursor.rowcount, cursor.lastrowid
        if number == self._number:
            ids = range(last - number + 1, last + 1)
            return dict(zip(map(KEY_OF, ordered), ids, strict=True))
        cursor.execute(self._newest, (last - self._number, last))
        return _by_key(cursor.fetchall()[:number])

    def _values(self, rows: Sequence[Row]) -> list[Any]:
        """The values of the rows in the order of the statement."""
        if self._in_order is None:
            return [as_json(rows)]
        every: list[Any] = []
        for row in rows:
            values = [*self._in_order(row)]
            for position, process in self._processors:
                if (value := values[position]) is not None:
                    values[position] = process(value)
            every += values
        return every


def _by_key(rows: Iterable[tuple[int, str, str]]) -> dict[tuple[str, str], int]:
    return {(endpoint, event_id): row_id for row_id, endpoint, event_id in rows}


def _are_pending(rows: Sequence[Row]) -> bool:
    size = 0
    for row in rows:
        if row["status"] != PENDING:
            return False
        size += len(row["body"])
    return size <= LARGEST_STATEMENT


def _allows(engine: Engine) -> bool:
    """Whether the engine may have one more connection, with statements of a driver."""
    pool: Any = engine.pool
    return (
        engine.dialect.driver in DRIVERS
        and isinstance(pool, QueuePool)
        and not is_in_memory(engine.url)
        and not is_exhausted(pool)
        and engine.dialect.insert_executemany_returning
        # A host may rename its schemas at execution, or prepare a connection for each
        # of its uses or transactions.
        and not engine.get_execution_options().get("schema_translate_map")
        and not (pool.dispatch.checkout or pool.dispatch.checkin or pool.dispatch.reset)
        and not engine.dispatch.begin
        and not _is_watched(engine)
    )


def _is_watched(engine: Engine) -> bool:
    """Whether a log or a tracer of the host sees each statement of the engine."""
    # SQLAlchemy sets the attribute, which is its own, with the first listener.
    may_have_listeners = getattr(engine, "_has_events", True)
    return bool(
        may_have_listeners
        and any([getattr(engine.dispatch, name) for name in WATCHING])
        or engine.dialect.dispatch.do_execute
        or engine.logger.isEnabledFor(logging.INFO)
    )


def _close_with(engine: HostEngine, kept: _Kept) -> None:
    """Close the connection when the host disposes of its engine."""
    host = engine.host
    references = vars(host).setdefault(KEPT, [])
    references[:] = [each for each in references if each() is not None]
    references.append(weakref.ref(kept))
    if not event.contains(host, "engine_disposed", _close_all):
        event.listen(host, "engine_disposed", _close_all)


def _close_all(host: Engine) -> None:
    """A listener: close connections with those of the pool."""
    for reference in [*vars(host).get(KEPT, ())]:
        if (kept := reference()) is None:
            continue
        kept.is_broken = True
        # In use now, it is closed after that.
        if kept.lock.acquire(blocking=False):
            kept.lock.release()
            kept.close()


def _close(driver: Any, pid: int) -> None:
    if os.getpid() != pid:
        keep(driver)
        return
    with suppress(Exception):
        driver.close()
