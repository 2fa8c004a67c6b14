"""Store: an endpoint's access to its rows: connections, retries, clock, safe errors."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import closing
from contextlib import contextmanager
from datetime import datetime
from datetime import timezone
from typing import Any
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy import Executable
from sqlalchemy.exc import IntegrityError

from ..errors import InboxUnavailable
from ..schema.gaps import refuse_leftovers
from ..schema.tables import truncate_text
from .connections import BEGIN
from .connections import roll_back
from .database import Database
from .database import SessionSource
from .engines import connect_beside
from .engines import HostEngine
from .engines import is_in_memory
from .engines import SQLITE_WAIT
from .servers import fault_of
from .servers import find_traits
from .servers import SERVER_TIME
from .servers import ServerClock
from .servers import Traits

T = TypeVar("T")

#: In ``Connection.info``: the host's wait for a lock on a file.
BUSY_TIMEOUT = "procore_webhooks_busy_timeout"
#: Seconds between two tries: doubled from the first on, with jitter.
FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.25


class TransientError(InboxUnavailable):
    """A statement failed, and the same statement may succeed at once."""


class Store:
    """Access to the rows of one endpoint.

    Every method raises :class:`InboxUnavailable` when the database cannot be used; the
    error says what to do. If the connection breaks during a change, the change may have
    been made; every change of the inbox is safe to repeat.

    :param now: the clock of every time in the tables, aware, UTC; by default the
        database's :class:`ServerClock`.
    """

    #: Seconds from its start in which a failed statement is tried again. A delivery
    #: counts them from its arrival, and Procore waits 5 s.
    retry_seconds = 4.0

    def __init__(
        self,
        endpoint: str,
        database: Database,
        now: Callable[[], datetime] | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.database = database
        self.columns = database.tables.event.c
        #: The endpoints of one database share it.
        self.clock: ServerClock = database.parts.setdefault(ServerClock, ServerClock())
        self.now = now or self.corrected_now

    def run(
        self,
        work: Callable[[Connection], T],
        *,
        begin: bool = False,
        until: float | None = None,
    ) -> T:
        """Return ``work(connection)``, called again after a transient error.

        Every statement of the inbox goes through here, except direct inserts, which
        end here after an error. ``work`` is safe to repeat.

        :param begin: as in :meth:`connection`.
        :param until: the time of the last try, by the monotonic clock; by default
            ``retry_seconds`` from now.
        :raises InboxUnavailable: the last try failed, or another try cannot succeed.
        """
        if until is None:
            until = time.monotonic() + self.retry_seconds
        pause = FIRST_PAUSE
        while True:
            try:
                with self.connection(begin=begin) as connection:
                    return work(connection)
            except TransientError:
                left = until - time.monotonic()
                if left <= 0:
                    raise
                time.sleep(min(left, pause * random.uniform(0.5, 1.0)))
                pause = min(2 * pause, LONGEST_PAUSE)

    @contextmanager
    def connection(self, *, begin: bool = False) -> Iterator[Connection]:
        """A connection on which each statement is a transaction of its own.

        Without retries: the package itself uses :meth:`run`.

        :param begin: the statements are one transaction.
        """
        try:
            if self.database.joined is not None:
                with self.database.joined() as connection:
                    yield connection
                return
            with self._connect() as connection:
                limits_waits = self.database.limits_waits
                if not self.database.is_carried_over:
                    refuse_leftovers(connection, self.database.tables)
                    self.database.is_carried_over = True
                if limits_waits:
                    _set_wait(connection, int(SQLITE_WAIT * 1000))
                if time.monotonic() > self.clock.next_comparison:
                    self.clock.compare(connection)
                try:
                    if begin:
                        with _transaction(connection):
                            yield connection
                    else:
                        yield connection
                        if _is_in_transaction(connection):
                            connection.connection.commit()
                        elif connection.engine.dispatch.begin:
                            # The listener of a host may have begun one.
                            connection.exec_driver_sql("COMMIT")
                finally:
                    if limits_waits and not connection.invalidated:
                        _set_wait(connection)
        except (IntegrityError, InboxUnavailable):
            raise
        except Exception as error:
            raise self.unavailable(error) from None

    def detached(self) -> Connection:
        """A connection of no pool: each statement on it is a transaction of its own.

        The caller closes it. Without retries, and without the checks of
        :meth:`connection`: see :meth:`needs_checks`.
        """
        connection = self._connect()
        connection.detach()
        if self.database.limits_waits:
            _set_wait(connection, int(SQLITE_WAIT * 1000))
        return connection

    def needs_checks(self) -> bool:
        """Whether the next statement must be on a connection of :meth:`run`.

        It is part of a test's transaction, or the tables or clocks are compared first.
        """
        return (
            self.database.joined is not None
            or not self.database.is_carried_over
            or time.monotonic() > self.clock.next_comparison
        )

    @property
    def session(self) -> SessionSource | None:
        """The host's session of the moment: a test may replace ``db.session``."""
        mount = self.database.mount
        return mount.session if mount.db is None else mount.db.session

    @property
    def dialect_name(self) -> str:
        """The name of SQLAlchemy's dialect, known without a connection."""
        try:
            engine = self.database.opened or self.database.find_engine()
        except Exception as error:
            raise self.unavailable(error) from None
        return engine.dialect.name

    def rows(self, query: Executable) -> list[Any]:
        """Every row that ``query`` selects."""
        return self.run(lambda connection: list(connection.execute(query)))

    def traits(self, until: float | None = None) -> Traits:
        """What the database can do; the first call asks the server.

        :param until: as for :meth:`run`.
        """
        found = self.database.traits
        if found is None:
            found = self.database.traits = self.run(find_traits, until=until)
        return found

    def text(self, text: str | None, length: int) -> str | None:
        """Return ``text`` as it is stored: cut, and escaped where it has to be."""
        cut = truncate_text(text, length)
        if cut is None or cut.isascii() or not self.traits().escapes_text:
            return cut
        return cut.encode("ascii", "backslashreplace").decode()[:length]

    def corrected_now(self) -> datetime:
        """The host's clock, corrected to the database server's."""
        return self.clock.host_now() + self.clock.offset

    def doubts_clock(self) -> bool:
        """Whether to compare the clocks again; a SQLite file has the host's."""
        try:
            return self.dialect_name in SERVER_TIME and self.clock.is_doubted()
        except InboxUnavailable:
            return False

    def db_now(self) -> datetime:
        """The current time as it is stored.

        :raises InboxUnavailable: the clocks were never compared: the server is away.
        """
        if self.now != self.corrected_now:
            return self.now().replace(tzinfo=None)
        if self.database.traits is None:
            self.traits()
        return (self.clock.host_now() + self.clock.offset).replace(tzinfo=None)

    def unavailable(self, error: Exception) -> InboxUnavailable:
        """Return the error to raise for ``error``, whose text may hold secrets."""
        text = f"the inbox cannot be used: {self.database.explain(error)}"
        if fault_of(error) is None:
            return InboxUnavailable(text)
        # After an outage, the connection may lead to another server.
        self.clock.next_comparison = min(self.clock.next_comparison, 0.0)
        return TransientError(text)

    def _connect(self) -> Connection:
        database = self.database
        engine = database.opened or database.open()
        if isinstance(engine, HostEngine):
            pool: Any = engine.pool
            most = getattr(pool, "_max_overflow", -1)
            if 0 <= most <= pool.overflow() and not is_in_memory(engine.url):
                return connect_beside(engine)
        try:
            return engine.connect()
        except engine.dialect.loaded_dbapi.Error:
            # Setting AUTOCOMMIT is a round trip for some drivers. A dead connection
            # fails here, SQLAlchemy does not detect the disconnect, and the rest of the
            # pool is probably dead too.
            engine.dispose()
            return engine.connect()


def to_db_time(when: datetime) -> datetime:
    """Return ``when`` as it is stored: UTC, without a zone."""
    if when.tzinfo is not timezone.utc:
        when = when.astimezone(timezone.utc)
    return when.replace(tzinfo=None)


@contextmanager
def _transaction(connection: Connection) -> Iterator[None]:
    """One transaction, on a connection on which each statement is one by itself."""
    if _is_in_transaction(connection):
        yield
        connection.connection.commit()
        return
    # As statements, because a connection whose isolation level was changed may come
    # back to the pool without autocommit (SQLAlchemy 2.0.16).
    for statement in BEGIN.get(connection.dialect.name, ("BEGIN",)):
        connection.exec_driver_sql(statement)
    try:
        yield
        connection.exec_driver_sql("COMMIT")
    except BaseException:
        roll_back(connection)
        raise


def _is_in_transaction(connection: Connection) -> bool:
    """Whether ``sqlite3`` has one; always with ``autocommit=False`` (Python 3.12)."""
    driver: Any = connection.connection.dbapi_connection
    return bool(getattr(driver, "in_transaction", False))


def _set_wait(connection: Connection, milliseconds: int | None = None) -> None:
    """Let SQLite wait so long for a lock; by default as long as the host wants."""
    info = connection.info
    if BUSY_TIMEOUT not in info:
        info[BUSY_TIMEOUT] = connection.exec_driver_sql("PRAGMA busy_timeout").scalar()
    if milliseconds is None:
        milliseconds = int(info[BUSY_TIMEOUT])
    # An open cursor may be collected in another thread later, with the traceback of an
    # error, and that thread would wait for the next user of the connection.
    with closing(connection.connection.cursor()) as cursor:
        cursor.execute(f"PRAGMA busy_timeout={milliseconds}")
