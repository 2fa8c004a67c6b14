"""An endpoint's way to its tables: connections, the clock, errors without secrets."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import AbstractContextManager
from contextlib import contextmanager
from contextlib import suppress
from datetime import datetime
from datetime import timezone
from typing import Any
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy import Executable
from sqlalchemy.exc import ArgumentError
from sqlalchemy.exc import DataError
from sqlalchemy.exc import IntegrityError
from sqlalchemy.exc import InterfaceError
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import StatementError

from .database import advice
from .database import Database
from .errors import InboxUnavailable

T = TypeVar("T")
Values = dict[str, Any]

#: The error number of MySQL and MariaDB.
DEADLOCK = 1213


def utc_now() -> datetime:
    return datetime.now(timezone.utc)


class Store:
    """Access to the rows of one endpoint.

    Every method raises :class:`InboxUnavailable` when the database cannot be used; the
    error then says what to do. Whether a change was made is unknown only if the answer
    to it was lost; every method is safe to repeat.

    :param now: the clock that every time in the tables comes from; aware, UTC.
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
        self._skips_locked: bool | None = None

    def rows(self, look: Executable) -> list[Any]:
        """Every row that ``look`` selects."""
        with self.connection() as connection:
            return list(connection.execute(look))

    def connection(self) -> AbstractContextManager[Connection]:
        """A connection on which each statement is a transaction of its own."""
        return self._used(self.database.connect)

    def transaction(self) -> AbstractContextManager[Connection]:
        """A connection whose statements are committed together at the end."""
        return self._used(self.database.begin)

    @property
    def skips_locked(self) -> bool:
        """Whether rows that others have locked can be passed over."""
        # Not cached_property: before Python 3.12 all inboxes would wait for one that
        # connects, and for ever in a process that was forked meanwhile.
        if self._skips_locked is None:
            self._skips_locked = self._find_skips_locked()
        return self._skips_locked

    def _find_skips_locked(self) -> bool:
        with self.connection() as connection:
            dialect = connection.dialect
        version: tuple[Any, ...] = dialect.server_version_info or ()
        if dialect.name in ("mysql", "mariadb"):
            is_mariadb = getattr(dialect, "is_mariadb", False)
            return version >= ((10, 6) if is_mariadb else (8,))
        return dialect.name == "postgresql"

    def persistently(self, change: Callable[[], T]) -> T:
        """``change()``, up to twice more if all that was wrong was the moment."""
        for _ in range(2):
            try:
                return change()
            except InboxUnavailable as unavailable:
                if not unavailable.momentary:
                    raise
        return change()

    def readably(
        self, change: Callable[[Values], T], values: Values, texts: Mapping[str, int]
    ) -> T:
        """``change(values)``, with texts in ASCII if the database does not take them.

        :param texts: the keys of those that may be, and the characters of each.
        """
        try:
            return change(values)
        except InboxUnavailable as unavailable:
            if not unavailable.unwritable:
                raise
        return change(values | {key: plain(values[key], texts[key]) for key in texts})

    @contextmanager
    def _used(self, open: Callable[[], Any]) -> Iterator[Connection]:
        try:
            with open() as connection:
                yield connection
        except (IntegrityError, InboxUnavailable):
            raise
        except Exception as error:
            raise self.unavailable(error) from None

    def unavailable(self, error: Exception) -> InboxUnavailable:
        """The error to raise for ``error``, which may hold what nobody should see."""
        cause = explain(error)
        if missing := self._missing_tables(error):
            cause = advice(missing)
        reason = f"the inbox of {self.endpoint!r} cannot be used: {cause}"
        momentary = getattr(error, "connection_invalidated", False)
        return InboxUnavailable(
            reason,
            momentary=momentary or _was_deadlock(error),
            unwritable=isinstance(error, (DataError, UnicodeError)),
        )

    def _missing_tables(self, error: Exception) -> list[str]:
        # Only when the error names one: where the database is down or locked, asking
        # it again would keep the sender waiting twice as long.
        text = str(getattr(error, "orig", ""))
        if not any(table.name in text for table in self.database.tables):
            return []
        with suppress(Exception):
            return self.database.missing_tables()
        return []

    def naive_now(self) -> datetime:
        """Now, as it is stored."""
        return naive(self.now())


def naive(when: datetime) -> datetime:
    """``when`` as it is stored: UTC, without a zone."""
    return when.astimezone(timezone.utc).replace(tzinfo=None)


def clean(text: str | None, length: int) -> str | None:
    """Cut ``text`` to what every database stores: no NUL, no lone surrogates."""
    if text is None:
        return None
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode("utf-8")
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")[:length]


def plain(text: str | None, length: int) -> str | None:
    """``text`` in ASCII, for databases with another character set than UTF-8."""
    if text is None:
        return None
    return text.encode("ascii", "backslashreplace").decode()[:length]


def _was_deadlock(error: Exception) -> bool:
    # Of MySQL and MariaDB alone: they lock indexes and rows one after the other, so
    # that even a single statement may meet another halfway.
    origin = getattr(error, "orig", None)
    return getattr(origin, "args", ())[:1] == (DEADLOCK,)


def explain(error: Exception) -> str:
    """Say what failed, with a text only where it holds no body and no password."""
    origin = getattr(error, "orig", None) or error
    if isinstance(error, (OperationalError, InterfaceError)):
        return f"{type(origin).__name__}: {origin}"
    if isinstance(error, StatementError) or type(error) is ArgumentError:
        return type(origin).__name__
    return f"{type(error).__name__}: {error}"
