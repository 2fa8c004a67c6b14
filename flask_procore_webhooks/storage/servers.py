"""What database servers say: their errors, their traits, their clock.

Which errors another try can mend, and texts of errors without secrets.
"""

from __future__ import annotations

import enum
import re
import sqlite3
import time
from collections.abc import Callable
from datetime import datetime
from datetime import timedelta
from datetime import timezone
from functools import partial
from typing import Any
from typing import NamedTuple
from urllib.parse import quote

from sqlalchemy import Connection
from sqlalchemy import Dialect
from sqlalchemy import URL
from sqlalchemy.exc import ArgumentError
from sqlalchemy.exc import InterfaceError
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from ..log import log

utc_now: Callable[[], datetime] = partial(datetime.now, timezone.utc)


class Fault(enum.Enum):
    """A passing state of the database: the same statement may succeed at once."""

    #: A deadlock, a serialization failure, a lock that was not granted in time.
    LOCK = "lock"
    #: The connection is lost, or the server accepts none at the moment.
    CONNECTION = "connection"
    #: The connection leads to a read-only server or session: after a failover, a new
    #: connection may lead to the primary.
    READ_ONLY = "read-only"


#: By SQLSTATE, or by its first two characters (PostgreSQL).
SQLSTATES = {
    "08": Fault.CONNECTION,  # connection exceptions
    "25006": Fault.READ_ONLY,  # read_only_sql_transaction
    "25P03": Fault.CONNECTION,  # idle_in_transaction_session_timeout
    "40001": Fault.LOCK,  # serialization_failure
    "40P01": Fault.LOCK,  # deadlock_detected
    "53300": Fault.CONNECTION,  # too_many_connections
    "55P03": Fault.LOCK,  # lock_not_available (lock_timeout)
    "57014": Fault.LOCK,  # query_canceled (statement_timeout)
    "57P01": Fault.CONNECTION,  # admin_shutdown, pg_terminate_backend
    "57P02": Fault.CONNECTION,  # crash_shutdown
    "57P03": Fault.CONNECTION,  # cannot_connect_now: starting, stopping, recovering
    "57P05": Fault.CONNECTION,  # idle_session_timeout
}
#: By error number (MySQL and MariaDB; 0 and those from 2000 on are their drivers').
MYSQL_ERRORS = {
    0: Fault.CONNECTION,  # the driver has closed the connection
    1020: Fault.LOCK,  # record has changed since last read
    1040: Fault.CONNECTION,  # too many connections
    1047: Fault.CONNECTION,  # the node of a Galera cluster is not ready
    1053: Fault.CONNECTION,  # shutdown in progress
    **dict.fromkeys(range(1158, 1162), Fault.CONNECTION),  # network errors
    1203: Fault.CONNECTION,  # too many connections of the user
    1205: Fault.LOCK,  # lock wait timeout
    1213: Fault.LOCK,  # deadlock
    1226: Fault.CONNECTION,  # too many connections of the user
    1290: Fault.READ_ONLY,  # --read-only
    1317: Fault.LOCK,  # query interrupted
    1412: Fault.LOCK,  # table definition has changed
    1792: Fault.READ_ONLY,  # read-only transaction
    1836: Fault.READ_ONLY,  # read-only mode
    1874: Fault.READ_ONLY,  # InnoDB is read-only
    1927: Fault.CONNECTION,  # connection was killed
    1969: Fault.LOCK,  # max_statement_time
    **dict.fromkeys((2002, 2003, 2005), Fault.CONNECTION),  # cannot connect
    **dict.fromkeys((2006, 2013, 2014, 2045, 2055), Fault.CONNECTION),  # lost
    3024: Fault.LOCK,  # max_execution_time
    3572: Fault.LOCK,  # NOWAIT
    4031: Fault.CONNECTION,  # disconnected because of inactivity
}
#: By primary or extended result code (SQLite).
SQLITE_CODES = {
    5: Fault.LOCK,  # SQLITE_BUSY
    6: Fault.LOCK,  # SQLITE_LOCKED
    15: Fault.LOCK,  # SQLITE_PROTOCOL: too many connections race for the WAL
    264: Fault.READ_ONLY,  # SQLITE_READONLY_RECOVERY
    520: Fault.READ_ONLY,  # SQLITE_READONLY_CANTLOCK
    776: Fault.READ_ONLY,  # SQLITE_READONLY_ROLLBACK
    1032: Fault.READ_ONLY,  # SQLITE_READONLY_DBMOVED: the file was replaced
}
#: Before Python 3.11, errors of SQLite have no code.
SQLITE_TEXTS = (" is locked", "locking protocol")
#: PostgreSQL's drivers give no SQLSTATE to an error of a connection attempt. These are
#: not mended by another attempt.
PERMANENT_TEXTS = (
    "authentication",
    "pg_hba.conf",
    "does not exist",
    "permission denied",
    "no password",
    "not permitted",
    "certificate",
    "SSL",
)
#: What follows a password, where no host is expected.
HOST = re.compile(r"@[\w.:\[\]-]+/")

#: The server's time in UTC, by dialect. A SQLite file has the host's clock.
SERVER_TIME = {
    "mysql": "SELECT UTC_TIMESTAMP(6)",
    "mariadb": "SELECT UTC_TIMESTAMP(6)",
    "postgresql": "SELECT clock_timestamp() AT TIME ZONE 'UTC'",
}
#: Seconds between two comparisons of the host's clock with the server's.
CLOCK_INTERVAL = 60.0
#: Differences in seconds: smaller ones are not corrected, because a comparison takes a
#: round trip; larger ones are logged.
SMALL_DIFFERENCE, LARGE_DIFFERENCE = 0.5, 5.0

READ_ONLY_ADVICE = (
    "; the database is read-only: after a failover, connect to the primary; else look"
    " at default_transaction_read_only (PostgreSQL) or read_only (MySQL, MariaDB)"
)
AT_SIGN_ADVICE = (
    "the database URL has an unescaped special character in its user name or password:"
    " write @ as %40, : as %3A, / as %2F and ? as %3F"
)


class Traits(NamedTuple):
    """What a database server and a connection to it can do."""

    #: Whether rows that other transactions have locked can be skipped.
    skips_locked: bool
    #: Whether text beyond ASCII has to be escaped: the character set is not UTF-8.
    escapes_text: bool


class ServerClock:
    """The host's clock, corrected to the clock of the database server.

    The endpoints of one database share it, and so do its hosts: their leases agree.
    """

    def __init__(self, host_now: Callable[[], datetime] = utc_now) -> None:
        self.host_now = host_now
        #: What the host's clock lacks; negative when it is ahead.
        self.offset = timedelta()
        #: When it is compared with the server's again, by the monotonic clock.
        self.next_comparison = float("-inf")
        self._was_logged = False
        self._doubted_at = float("-inf")

    def is_doubted(self) -> bool:
        """Let the clocks be compared at the next statement, at most once a minute."""
        now = time.monotonic()
        if now - self._doubted_at < CLOCK_INTERVAL:
            return False
        self._doubted_at, self.next_comparison = now, float("-inf")
        return True

    def compare(self, connection: Connection) -> None:
        """Compare the host's clock with the server's, if the server has one."""
        query = SERVER_TIME.get(connection.dialect.name)
        if query is None:
            self.next_comparison = float("inf")
            return
        before = self.host_now()
        server: datetime = connection.exec_driver_sql(query).scalar_one()
        after = self.host_now()
        offset = server.replace(tzinfo=timezone.utc) - before - (after - before) / 2
        small = max(timedelta(seconds=SMALL_DIFFERENCE), after - before)
        self.offset = offset if abs(offset) > small else timedelta()
        self.next_comparison = time.monotonic() + CLOCK_INTERVAL
        self._log(self.offset.total_seconds())

    def _log(self, seconds: float) -> None:
        is_large = abs(seconds) > LARGE_DIFFERENCE
        if is_large and not self._was_logged:
            log.warning(
                "The clock of this host is %.0f s %s the clock of the database server;"
                " times are corrected by that. Synchronise both clocks (NTP)",
                abs(seconds),
                "behind" if seconds > 0 else "ahead of",
            )
        self._was_logged = is_large


def fault_of(error: BaseException) -> Fault | None:
    """Return why the statement failed if another try can mend it, else ``None``.

    :param error: SQLAlchemy's error, or the driver's.
    """
    if isinstance(error, PoolTimeout):
        return Fault.LOCK
    found = _driver_fault(getattr(error, "orig", None) or error)
    if found is None and getattr(error, "connection_invalidated", False):
        return Fault.CONNECTION
    return found


def _driver_fault(origin: Any) -> Fault | None:
    if isinstance(origin, sqlite3.Error):
        return _sqlite_fault(origin)
    # PyMySQL and mysqlclient; mysql-connector and mariadb. Before the SQLSTATE, which
    # some of them have too: it is less exact.
    number = next(iter(getattr(origin, "args", ())), None)
    if not isinstance(number, int):
        number = getattr(origin, "errno", None)
    if isinstance(number, int) and not isinstance(origin, OSError):
        return MYSQL_ERRORS.get(number)
    # psycopg, psycopg2.
    sqlstate = getattr(origin, "sqlstate", None) or getattr(origin, "pgcode", None)
    if isinstance(sqlstate, str):
        return SQLSTATES.get(sqlstate) or SQLSTATES.get(sqlstate[:2])
    return Fault.CONNECTION if _is_failed_connection(origin) else None


def _sqlite_fault(origin: sqlite3.Error) -> Fault | None:
    code: int | None = getattr(origin, "sqlite_errorcode", None)
    if code is not None:
        return SQLITE_CODES.get(code) or SQLITE_CODES.get(code & 0xFF)
    is_locked = any(text in str(origin) for text in SQLITE_TEXTS)
    return Fault.LOCK if is_locked else None


def _is_failed_connection(origin: Any) -> bool:
    """Whether the driver could not connect, or has noticed a lost connection itself."""
    if isinstance(origin, (ConnectionError, TimeoutError)):
        return True
    kinds = {each.__name__ for each in type(origin).__mro__}
    if not kinds & {"OperationalError", "InterfaceError"}:
        return False
    return not any(text in str(origin) for text in PERMANENT_TEXTS)


def safe_message(error: Exception, url: URL | None = None) -> str:
    """Say what failed, with the error's text only if it holds no body or password.

    :param url: of the database; no part of its password is in the message.
    """
    if url is not None and is_ambiguous(url):
        return f"{type(_origin(error)).__name__}: {AT_SIGN_ADVICE}"
    text = _message(error)
    if fault_of(error) is Fault.READ_ONLY:
        text += READ_ONLY_ADVICE
    if url is not None and url.password:
        password = str(url.password)
        text = text.replace(password, "***").replace(quote(password, safe=""), "***")
    return text


def is_ambiguous(url: URL) -> bool:
    """Whether a part of the password may have become the host, database or query."""
    if url.get_backend_name() == "sqlite":
        return False
    texts = [url.host or "", url.database or "", *url.query]
    values = map(str, url.query.values())
    return any("@" in text for text in texts) or any(map(HOST.search, values))


def _origin(error: Exception) -> BaseException:
    return getattr(error, "orig", None) or error


def _message(error: Exception) -> str:
    origin = _origin(error)
    if isinstance(error, (OperationalError, InterfaceError)):
        return f"{type(origin).__name__}: {origin}"
    if isinstance(error, StatementError) or type(error) is ArgumentError:
        return type(origin).__name__
    return f"{type(error).__name__}: {error}"


def find_traits(connection: Connection) -> Traits:
    """Ask the server what it can do."""
    dialect = connection.dialect
    if dialect.name == "postgresql":
        settings = ("server_encoding", "client_encoding")
        shown = [connection.exec_driver_sql(f"SHOW {name}") for name in settings]
        encodings = {result.scalar_one().replace("-", "").upper() for result in shown}
        return Traits(skips_locked=True, escapes_text=encodings != {"UTF8"})
    if dialect.name in ("mysql", "mariadb"):
        charset = connection.exec_driver_sql("SELECT @@character_set_connection")
        is_utf8 = charset.scalar_one() == "utf8mb4"
        return Traits(_mysql_skips_locked(dialect), escapes_text=not is_utf8)
    return Traits(skips_locked=False, escapes_text=False)


def _mysql_skips_locked(dialect: Dialect) -> bool:
    is_mariadb = getattr(dialect, "is_mariadb", False)
    version: tuple[Any, ...] = dialect.server_version_info or ()
    return version >= ((10, 6) if is_mariadb else (8,))
