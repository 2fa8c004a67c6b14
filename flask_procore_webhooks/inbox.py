"""The inbox: record, claim, settle. With ``browse`` beside it, all SQL there is.

Every change is one statement that the database decides: a unique insert or a guarded
update, never a select followed by a write.
"""

from __future__ import annotations

import enum
import logging
import secrets
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import field
from datetime import datetime
from datetime import timedelta
from datetime import timezone
from typing import Any

from sqlalchemy import and_
from sqlalchemy import case
from sqlalchemy import ColumnElement
from sqlalchemy import Connection
from sqlalchemy import Executable
from sqlalchemy import insert
from sqlalchemy import or_
from sqlalchemy import select
from sqlalchemy import update
from sqlalchemy.exc import ArgumentError
from sqlalchemy.exc import IntegrityError
from sqlalchemy.exc import InterfaceError
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import StatementError
from sqlalchemy.orm import Session

from .database import advice
from .database import Database
from .errors import InboxUnavailable
from .events import Event

log = logging.getLogger("flask_procore_webhooks")


class Status(str, enum.Enum):
    """What may become of a recorded event."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    DEAD = "dead"
    IGNORED = "ignored"

    __str__ = str.__str__


#: Nothing more will be done for these unless somebody asks.
FINISHED = (Status.DONE, Status.DEAD, Status.IGNORED)


@dataclass(frozen=True)
class Recorded:
    """The answer of the inbox to one delivery."""

    row_id: int
    status: Status
    #: False when the event was in the inbox already.
    fresh: bool
    #: Whether it was there with another body, which is not kept.
    conflict: bool = False


@dataclass(frozen=True)
class Claim:
    """The right to run one event until the lease ends."""

    row_id: int
    lease: str
    event_id: str
    attempt: int
    body: bytes = field(repr=False)


def utc_now() -> datetime:
    return datetime.now(timezone.utc)


class Inbox:
    """The events of one endpoint.

    Every method raises :class:`InboxUnavailable`, and has changed nothing, when the
    database cannot be used; the log then says what to do.

    :param now: the clock that every time in the inbox comes from; aware, UTC.
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
        self._insert = insert(database.tables.event)
        self._insert_receipt = insert(database.tables.receipt)

    # A delivery comes in

    def record(
        self, event: Event, status: Status = Status.PENDING, error: str | None = None
    ) -> Recorded:
        """Commit ``event``, or count it as a repeat if it is there.

        A repeat that is ``PENDING`` itself makes a dead event pending again. Safe to
        repeat: the first body stays.
        """
        row = self._row(event, status, error)
        try:
            return self._record(row)
        except InboxUnavailable as unavailable:
            if not unavailable.stale:
                raise
        # The pool had kept connections that the database has closed; now it has not.
        return self._record(row)

    def _record(self, row: Mapping[str, Any]) -> Recorded:
        status = Status(row["status"])
        try:
            with self._connection() as connection:
                result = connection.execute(self._insert, row)
        except IntegrityError:
            return self._repeat(row, revive=status is Status.PENDING)
        return Recorded(_only(result.inserted_primary_key), status, fresh=True)

    def _repeat(self, row: Mapping[str, Any], revive: bool) -> Recorded:
        c = self.columns
        mine = and_(c.endpoint == row["endpoint"], c.event_id == row["event_id"])
        differs = and_(c.body.is_not(None), c.body != row["body"])
        changes = [
            (c.repeats, c.repeats + 1),
            (c.conflicts, c.conflicts + case((differs, 1), else_=0)),
        ]
        if revive:
            changes += self._revival(row["received_at"])
        with self._connection() as connection:
            # MariaDB assigns from left to right: what is tested is changed last.
            connection.execute(update(c.id.table).where(mine).ordered_values(*changes))
            look = select(c.id, c.status, differs.label("conflict")).where(mine)
            found = connection.execute(look).one_or_none()
        if found is None:
            # The insert failed for another reason, or the row was pruned in between.
            raise self._unavailable(LookupError("neither inserted nor found"))
        return Recorded(
            found.id, Status(found.status), fresh=False, conflict=bool(found.conflict)
        )

    def _revival(self, now: datetime) -> list[tuple[Any, Any]]:
        c = self.columns
        dead = c.status == Status.DEAD.value
        return [
            (c.attempts, case((dead, 0), else_=c.attempts)),
            (c.due_at, case((dead, now), else_=c.due_at)),
            (c.finished_at, case((dead, None), else_=c.finished_at)),
            (c.status, case((dead, Status.PENDING.value), else_=c.status)),
        ]

    # A run

    def claim(
        self, row_id: int, seconds: float, *, early: bool = False
    ) -> Claim | None:
        """Take the right to run an event for ``seconds``, and count the attempt.

        :param early: also when its wait for the next attempt is not over.
        :return: ``None`` when it is finished, not due, or another run holds it.
        """
        c, now, lease = self.columns, self._now(), secrets.token_hex(16)
        take = (
            update(c.id.table)
            .where(c.id == row_id, self._claimable(early))
            .values(
                status=Status.RUNNING.value,
                attempts=c.attempts + 1,
                due_at=now + timedelta(seconds=seconds),
                lease=lease,
            )
        )
        with self._connection() as connection:
            if connection.execute(take).rowcount == 0:
                return None
            look = select(c.event_id, c.attempts, c.body).where(c.id == row_id)
            held = connection.execute(look).one()
        return Claim(row_id, lease, held.event_id, held.attempts, held.body or b"")

    def _claimable(self, early: bool) -> ColumnElement[bool]:
        c = self.columns
        due = c.due_at <= self._now()
        return or_(due, c.status == Status.PENDING.value) if early else due

    def settle(
        self,
        claim: Claim,
        status: Status,
        *,
        error: str | None = None,
        wait: float = 0.0,
    ) -> bool:
        """End a run; for ``PENDING``, the next one is due after ``wait`` seconds.

        :return: ``False``, with nothing changed, when the lease had passed to another.
        """
        now = self._now()
        finished = status in FINISHED
        done = (
            update(self.columns.id.table)
            .where(self.columns.id == claim.row_id, self.columns.lease == claim.lease)
            .values(
                status=status.value,
                error=_clean(error, 4000),
                lease=None,
                due_at=None if finished else now + timedelta(seconds=wait),
                finished_at=now if finished else None,
            )
        )
        with self._connection() as connection:
            return connection.execute(done).rowcount > 0

    def receipts(self, row_id: int) -> dict[str, datetime]:
        """The names of the subscribers that have finished the event, and when."""
        c = self.database.tables.receipt.c
        found = select(c.subscriber, c.finished_at).where(c.event == row_id)
        with self._connection() as connection:
            return {
                row.subscriber: row.finished_at for row in connection.execute(found)
            }

    def write_receipt(self, claim: Claim, subscriber: str, session: Session) -> None:
        """Add the receipt to the session's transaction; its commit is the caller's.

        :raises sqlalchemy.exc.IntegrityError: another run has finished this subscriber.
        """
        session.execute(self._insert_receipt, self._receipt(claim, subscriber))

    def commit_receipt(self, claim: Claim, subscriber: str) -> None:
        """Commit the receipt by itself; nothing happens if it is there already."""
        try:
            with self._connection() as connection:
                receipt = self._receipt(claim, subscriber)
                connection.execute(self._insert_receipt, receipt)
        except IntegrityError:
            if subscriber not in self.receipts(claim.row_id):
                raise

    def status(self, row_id: int) -> Status | None:
        found = self.rows(select(self.columns.status).where(self.columns.id == row_id))
        return Status(found[0].status) if found else None

    def due(self, limit: int = 100, *, early: bool = False) -> list[int]:
        """Row ids of the events that may be claimed now, longest due first."""
        c = self.columns
        look = (
            select(c.id)
            .where(c.endpoint == self.endpoint, self._claimable(early))
            .order_by(c.due_at)
            .limit(limit)
        )
        return [row.id for row in self.rows(look)]

    # Inside

    def rows(self, look: Executable) -> list[Any]:
        """Every row that ``look`` selects."""
        with self._connection() as connection:
            return list(connection.execute(look))

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        try:
            with self.database.connect() as connection:
                yield connection
        except (IntegrityError, InboxUnavailable):
            raise
        except Exception as error:
            raise self._unavailable(error) from None

    def _unavailable(self, error: Exception) -> InboxUnavailable:
        cause = explain(error)
        if missing := self._missing_tables(error):
            cause = advice(missing)
        reason = f"the inbox of {self.endpoint!r} cannot be used: {cause}"
        stale = getattr(error, "connection_invalidated", False)
        return InboxUnavailable(reason, stale=stale)

    def _missing_tables(self, error: Exception) -> list[str]:
        # Only when the error names one: where the database is down or locked, asking
        # it again would keep the sender waiting twice as long.
        text = str(getattr(error, "orig", ""))
        if not any(table.name in text for table in self.database.tables):
            return []
        with suppress(Exception):
            return self.database.missing_tables()
        return []

    def _now(self) -> datetime:
        return _naive(self.now())

    def _receipt(self, claim: Claim, subscriber: str) -> dict[str, Any]:
        return {
            "event": claim.row_id,
            "subscriber": subscriber,
            "finished_at": self._now(),
        }

    def _row(self, event: Event, status: Status, error: str | None) -> dict[str, Any]:
        now = self._now()
        finished = status in FINISHED
        return {
            "endpoint": self.endpoint,
            "event_id": event.id,
            "type": _clean(event.type, 255),
            "resource_type": _clean(event.resource_type, 160),
            "reason": _clean(event.reason, 80),
            "resource_id": _clean(event.resource_id, 80),
            "company_id": _clean(event.company_id, 80),
            "project_id": _clean(event.project_id, 80),
            "user_id": _clean(event.user_id, 80),
            "event_at": _naive(event.timestamp) if event.timestamp else None,
            "body": event.body,
            "status": status.value,
            "attempts": 0,
            "due_at": None if finished else now,
            "lease": None,
            "error": _clean(error, 4000),
            "received_at": now,
            "finished_at": now if finished else None,
            "repeats": 0,
            "conflicts": 0,
        }


def _only(key: Any) -> int:
    (row_id,) = key
    return int(row_id)


def _naive(when: datetime) -> datetime:
    return when.astimezone(timezone.utc).replace(tzinfo=None)


def _clean(text: str | None, length: int) -> str | None:
    """Cut ``text`` to what every database stores: no NUL, no lone surrogates."""
    if text is None:
        return None
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return whole.replace("\0", "\N{REPLACEMENT CHARACTER}")[:length]


def explain(error: Exception) -> str:
    """Say what failed, with a text only where it holds no body and no password."""
    origin = getattr(error, "orig", None) or error
    if isinstance(error, (OperationalError, InterfaceError)):
        return f"{type(origin).__name__}: {origin}"
    if isinstance(error, StatementError) or type(error) is ArgumentError:
        return type(origin).__name__
    return f"{type(error).__name__}: {error}"
