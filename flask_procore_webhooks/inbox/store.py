"""Store: an endpoint's access to its rows: connections, clock, safe errors."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextlib import contextmanager
from contextlib import suppress
from datetime import datetime
from datetime import timezone
from functools import partial
from typing import Any
from typing import TypeVar

from sqlalchemy import ColumnElement
from sqlalchemy import Connection
from sqlalchemy import Dialect
from sqlalchemy import Executable
from sqlalchemy import literal_column
from sqlalchemy.exc import ArgumentError
from sqlalchemy.exc import IntegrityError
from sqlalchemy.exc import InterfaceError
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import StatementError

from ..errors import InboxUnavailable
from .database import Database
from .database import SessionSource
from .database import Traits
from .upgrade import Gaps

T = TypeVar("T")

#: How a transaction begins. MariaDB's default isolation level also locks the gaps
#: between rows, and new events would wait for them. In SQLite, a transaction that
#: begins with a read cannot write after another connection has written.
_MYSQL = ("SET TRANSACTION ISOLATION LEVEL READ COMMITTED", "START TRANSACTION")
BEGIN = {
    "mysql": _MYSQL,
    "mariadb": _MYSQL,
    "postgresql": ("BEGIN ISOLATION LEVEL READ COMMITTED",),
    "sqlite": ("BEGIN IMMEDIATE",),
}
#: On PostgreSQL, the commit of a statement that returns this does not wait for the
#: disk. A crash of the database server may lose the last fraction of a second of such
#: commits, in order: the event runs again when its lease ends, and its receipts decide
#: about repetitions. Measured with subscribers that write nothing: 1.4 to 2.3 times as
#: many runs in five of six rounds. It is set for the transaction, so that the
#: connection comes back to the pool unchanged.
ASYNC_COMMIT: ColumnElement[str] = literal_column(
    "set_config('synchronous_commit', 'off', true)"
)
#: Error number of a deadlock in MySQL and MariaDB.
DEADLOCK = 1213

utc_now: Callable[[], datetime] = partial(datetime.now, timezone.utc)


class TransientError(InboxUnavailable):
    """A statement failed, and the same statement may succeed at once."""


class Store:
    """Access to the rows of one endpoint.

    Every method raises :class:`InboxUnavailable` when the database cannot be used; the
    error says what to do. If the connection breaks during a change, the change may have
    been made; every change of the inbox is safe to repeat.

    :param now: the clock of every time in the tables; aware, UTC.
    """

    def __init__(
        self,
        endpoint: str,
        database: Database,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self.endpoint = endpoint
        self.database = database
        self.now = now
        self.columns = database.tables.event.c

    @contextmanager
    def connection(self, *, begin: bool = False) -> Iterator[Connection]:
        """A connection on which each statement is a transaction of its own.

        :param begin: the statements are one transaction, as in :meth:`transaction`.
        """
        try:
            with self._connect() as connection:
                if begin:
                    with _transaction(connection):
                        yield connection
                else:
                    yield connection
                    if _is_in_transaction(connection):
                        connection.connection.commit()
        except (IntegrityError, InboxUnavailable):
            raise
        except Exception as error:
            raise self.unavailable(error) from None

    def transaction(self) -> AbstractContextManager[Connection]:
        """A connection whose statements are committed together at the end."""
        return self.connection(begin=True)

    @property
    def session(self) -> SessionSource | None:
        """The host's session of the moment: a test may replace ``db.session``."""
        mount = self.database.mount
        return mount.session if mount.db is None else mount.db.session

    @property
    def dialect_name(self) -> str:
        """The name of SQLAlchemy's dialect, known without a connection."""
        engine = self.database.opened
        if engine is None:
            try:
                engine = self.database.find_engine()
            except Exception as error:
                raise self.unavailable(error) from None
        return engine.dialect.name

    def rows(self, query: Executable) -> list[Any]:
        """Every row that ``query`` selects."""
        with self.connection() as connection:
            return list(connection.execute(query))

    def retry_transient(self, change: Callable[[], T]) -> T:
        """Return ``change()``, called again up to twice after a transient error."""
        for _ in range(2):
            with suppress(TransientError):
                return change()
        return change()

    def traits(self) -> Traits:
        """What the database can do; the first call asks the server."""
        found = self.database.traits
        if found is None:
            with self.connection() as connection:
                found = self.database.traits = _find_traits(connection)
        return found

    def text(self, text: str | None, length: int) -> str | None:
        """Return ``text`` as it is stored: cut, and escaped where it has to be."""
        cut = truncate_text(text, length)
        if cut is None or cut.isascii() or not self.traits().escapes_text:
            return cut
        return cut.encode("ascii", "backslashreplace").decode()[:length]

    def async_commit(self, change: Any) -> Any:
        """Return ``change`` with ``ASYNC_COMMIT`` on PostgreSQL, else unchanged."""
        is_postgresql = self.dialect_name == "postgresql"
        return change.returning(ASYNC_COMMIT) if is_postgresql else change

    def db_now(self) -> datetime:
        """The current time as it is stored."""
        return self.now().replace(tzinfo=None)

    def unavailable(self, error: Exception) -> InboxUnavailable:
        """Return the error to raise for ``error``, whose text may hold secrets."""
        cause = safe_message(error)
        if (gaps := self._find_gaps(error)).stop_deliveries:
            cause = gaps.advice
        is_transient = getattr(error, "connection_invalidated", False)
        kind = (
            TransientError if is_transient or _is_deadlock(error) else InboxUnavailable
        )
        return kind(f"the inbox cannot be used: {cause}")

    def _connect(self) -> Connection:
        database = self.database
        engine = database.opened or database.open()
        try:
            return engine.connect()
        except engine.dialect.loaded_dbapi.Error:
            # Setting AUTOCOMMIT is a round trip for some drivers. A dead connection
            # fails here, SQLAlchemy does not detect the disconnect, and the rest of the
            # pool is probably dead too.
            engine.dispose()
            return engine.connect()

    def _find_gaps(self, error: Exception) -> Gaps:
        """What the tables lack, if the error is about one of them.

        No question is asked after other errors: while the database is down or locked,
        it would double the sender's wait.
        """
        text = str(getattr(error, "orig", ""))
        named = any(table.name in text for table in self.database.tables)
        # MariaDB and MySQL name only the column.
        if named or "Unknown column" in text:
            with suppress(Exception):
                return self.database.find_gaps()
        return Gaps()


def to_db_time(when: datetime) -> datetime:
    """Return ``when`` as it is stored: UTC, without a zone."""
    return when.astimezone(timezone.utc).replace(tzinfo=None)


def truncate_text(text: str | None, length: int) -> str | None:
    """Return ``text`` as every UTF-8 database stores it.

    It is cut to ``length`` characters and holds neither NUL nor lone surrogates.
    """
    if text is None:
        return None
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode("utf-8")
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")[:length]


def safe_message(error: Exception) -> str:
    """Say what failed, with the error's text only if it holds no body or password."""
    origin = getattr(error, "orig", None) or error
    if isinstance(error, (OperationalError, InterfaceError)):
        return f"{type(origin).__name__}: {origin}"
    if isinstance(error, StatementError) or type(error) is ArgumentError:
        return type(origin).__name__
    return f"{type(error).__name__}: {error}"


@contextmanager
def _transaction(connection: Connection) -> Iterator[None]:
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
        _roll_back(connection)
        raise


def _is_in_transaction(connection: Connection, *, unknown: bool = False) -> bool:
    """Whether the driver has a transaction that SQLAlchemy does not know of.

    With ``autocommit=False`` (Python 3.12), ``sqlite3`` always has one.

    :param unknown: the answer for drivers without this information.
    """
    driver: Any = connection.connection.dbapi_connection
    return bool(getattr(driver, "in_transaction", unknown))


def _roll_back(connection: Connection) -> None:
    """End a transaction that was begun as a statement.

    The pool does not do it: psycopg2 rolls back only what it has begun itself, and the
    next user of the connection would be in the same transaction.
    """
    # SQLite ends the transaction itself after some errors.
    if connection.invalidated or not _is_in_transaction(connection, unknown=True):
        return
    try:
        connection.exec_driver_sql("ROLLBACK")
    except Exception:
        connection.invalidate()


def _find_traits(connection: Connection) -> Traits:
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


def _is_deadlock(error: Exception) -> bool:
    # MySQL and MariaDB lock indexes and rows one after the other, so that even single
    # statements deadlock.
    origin = getattr(error, "orig", None)
    return getattr(origin, "args", ())[:1] == (DEADLOCK,)
