"""The inbox: beside record, what runs do: claim, settle, receipts.

Every change is decided by the database: a unique insert, or an update that is guarded
by what was seen before.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Set
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from datetime import datetime
from datetime import timedelta
from typing import Any

from sqlalchemy import and_
from sqlalchemy import ColumnElement
from sqlalchemy import Connection
from sqlalchemy import exists
from sqlalchemy import func
from sqlalchemy import or_
from sqlalchemy import Select
from sqlalchemy import select
from sqlalchemy import Update
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from .database import Database
from .events import Event
from .recorder import LONGEST_ERROR
from .recorder import Recorder
from .statements import Statements
from .states import Ending
from .states import FINISHED
from .states import Status
from .store import clean
from .store import naive
from .store import utc_now
from .store import Values

#: What still will be run.
_WILL_RUN = (Status.PENDING.value, Status.RUNNING.value)


@dataclass(frozen=True)
class Claim:
    """The right to run one event until the lease ends."""

    row_id: int
    lease: str
    event_id: str
    #: The number of the run, from 1.
    attempt: int
    #: When the lease is over, unless it is renewed; as it is stored.
    ends: datetime
    body: bytes = field(repr=False)
    #: The subscribers that had receipts when the event was claimed.
    finished: Set[str] = frozenset()
    #: Whether the sender is answered by how the run ends, and nobody repeats it then.
    inline: bool = False


@dataclass(frozen=True)
class Receipt:
    """What one subscriber did for the event: it is not run for it again."""

    subscriber: str
    ending: Ending = Ending.DONE


class Inbox(Recorder):
    """The events of one endpoint; see :class:`Store` for the errors and the clock."""

    def __init__(
        self,
        endpoint: str,
        database: Database,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        super().__init__(endpoint, database, now)
        self._made: Statements | None = None

    # A run

    def claim(
        self, row_id: int, seconds: float, *, early: bool = False
    ) -> Claim | None:
        """Take the right to run an event for ``seconds``, and count the attempt.

        :param early: also when its wait for the next attempt is not over.
        :return: ``None`` when it is finished, not due, or another run holds it.
        """
        c, free = self.columns, self._claimable(early)
        look = select(c.id, c.event_id, c.attempts, c.body).where(c.id == row_id, free)
        with self.connection() as connection:
            row = connection.execute(look).one_or_none()
            if row is None:
                return None
            finished = self._receipts_of(connection, [row_id])
            claim = _claim(row, _new_lease(), self._end(seconds), finished)
            # Last, so that nothing can fail once it is taken; if it was run since we
            # looked, its attempts differ.
            take = update(c.id.table).where(c.id == row_id, free)
            take = take.where(c.attempts == row.attempts)
            taken = take.values(self._taken(claim.lease, claim.ends))
            if connection.execute(taken).rowcount == 0:
                return None
        return replace(claim, attempt=claim.attempt + 1)

    def claim_due(self, limit: int, seconds: float) -> list[Claim]:
        """Take up to ``limit`` events that are due for ``seconds``, longest due first.

        Their attempts are counted, so that one which kills its process runs out of
        them. It takes a transaction, of which SQLite has one at a time: see before if
        there is something due.
        """
        c, lease, end = self.columns, _new_lease(), self._end(seconds)
        due = self._claimable(False)
        look = select(c.id, c.status).where(c.endpoint == self.endpoint, due)
        if self.skips_locked:
            look = look.with_for_update(skip_locked=True)
        with self.transaction() as connection:
            rows = _batch(connection.execute(look.order_by(c.due_at).limit(limit)))
            if not rows:
                return []
            # Where rows were not locked, two claims may have found the same, and this
            # update decides.
            take = update(c.id.table).where(c.id.in_(rows), due)
            take = take.values(self._taken(lease, end))
            connection.execute(self._statements.unhurried(take))
            # Afterwards, as another may have run one since we looked.
            finished = self._receipts_of(connection, rows)
            found = select(c.id, c.event_id, c.attempts, c.body)
            taken = connection.execute(found.where(c.id.in_(rows), c.lease == lease))
            claims = [_claim(row, lease, end, finished) for row in taken]
        return sorted(claims, key=lambda claim: rows.index(claim.row_id))

    def renew(self, claims: Collection[Claim], seconds: float) -> None:
        """Let those that are still held end ``seconds`` from now."""
        self._change_held(claims, due_at=self._end(seconds))

    def give_back(self, claims: Collection[Claim]) -> None:
        """Make those that are still held due now, for anybody, as if never claimed."""
        self._change_held(
            claims,
            status=Status.PENDING.value,
            due_at=self.naive_now(),
            lease=None,
            attempts=self.columns.attempts - 1,
        )

    def settle(
        self,
        claim: Claim,
        status: Status,
        *,
        error: str | None = None,
        wait: float = 0.0,
        receipt: Receipt | None = None,
    ) -> bool:
        """End a run; for ``PENDING``, the next one is due after ``wait`` seconds.

        :param receipt: committed together with it, whoever has the lease.
        :return: ``False``, with nothing changed, when the lease had passed to another.
        """
        now = self.naive_now()
        finished = status in FINISHED
        outcome = {
            "status": status.value,
            "error": clean(error, LONGEST_ERROR),
            "lease": None,
            "due_at": None if finished else now + timedelta(seconds=wait),
            "finished_at": now if finished else None,
        }

        def change(values: Values) -> bool:
            return self.persistently(lambda: self._settle(claim, values, receipt))

        values = _holder(claim) | outcome
        return self.readably(change, values, {"error": LONGEST_ERROR})

    # Receipts

    def receipts(self, row_id: int) -> dict[str, datetime]:
        """The names of the subscribers that have finished the event, and when."""
        c = self.database.tables.receipt.c
        found = select(c.subscriber, c.finished_at).where(c.event == row_id)
        return {row.subscriber: row.finished_at for row in self.rows(found)}

    def write_receipt(self, claim: Claim, subscriber: str, session: Session) -> None:
        """Add the receipt to the session's transaction; its commit is the caller's.

        :raises sqlalchemy.exc.IntegrityError: another run has finished this subscriber.
        """
        values = self._receipt_values(claim, Receipt(subscriber))
        session.execute(self._statements.receipt, values)

    def commit_receipt(
        self, claim: Claim, subscriber: str, ending: Ending = Ending.DONE
    ) -> None:
        """Commit the receipt by itself; nothing happens if it is there already."""
        values = self._receipt_values(claim, Receipt(subscriber, ending))
        made = self._statements
        statement = made.receipt if claim.inline else made.commit_receipt

        def commit() -> None:
            with self.connection() as connection:
                connection.execute(statement, values)

        try:
            self.persistently(commit)
        except IntegrityError:
            if subscriber not in self.receipts(claim.row_id):
                raise

    # What there is to do

    def status(self, row_id: int) -> Status | None:
        found = self.rows(select(self.columns.status).where(self.columns.id == row_id))
        return Status(found[0].status) if found else None

    def due(
        self, limit: int = 100, *, early: bool = False, since: float = 0.0
    ) -> list[int]:
        """Row ids of the events that may be claimed now, longest due first.

        :param since: only those that could have been for so many seconds.
        """
        c = self.columns
        look = select(c.id).where(c.endpoint == self.endpoint, self._claimable(early))
        if since:
            look = look.where(c.due_at <= self.naive_now() - timedelta(seconds=since))
        return [row.id for row in self.rows(look.order_by(c.due_at).limit(limit))]

    def seconds_to(self, row_id: int) -> float | None:
        """Seconds until that event may be claimed, ``None`` if it is finished."""
        c = self.columns
        found = self.rows(select(c.due_at).where(c.id == row_id))
        return self.seconds_until(found[0].due_at) if found else None

    def first_due(self) -> Select[tuple[datetime]]:
        """The time when the first event may be claimed."""
        c = self.columns
        mine = select(c.due_at).where(
            c.endpoint == self.endpoint, c.due_at.is_not(None)
        )
        return mine.order_by(c.due_at).limit(1)

    def seconds_until(self, due_at: datetime | None) -> float | None:
        """Seconds until a time that is stored."""
        if due_at is None:
            return None
        return max(0.0, (due_at - self.naive_now()).total_seconds())

    def has_newer(
        self, claim: Claim, event: Event, subscriber: str, reason: str | None
    ) -> bool:
        """Whether a newer event of the same resource does the subscriber's work.

        One that is to be run will do it; one that is finished has done it if the
        subscriber has a receipt for it. Events with a time and events without one are
        not compared: in a circle, each would be left to the next.

        :param reason: only events of this one, in lower case.
        """
        c = self.columns
        resource_id = clean(event.resource_id, 80)
        if resource_id != event.resource_id:
            # It is not kept whole, so others may look the same.
            return False
        when = naive(event.timestamp) if event.timestamp else None
        later = and_(c.event_at == when, c.id > claim.row_id)
        if when:
            later = or_(c.event_at > when, later)
        newer = select(c.id).where(
            c.endpoint == self.endpoint,
            c.resource_id == resource_id,
            c.resource_type == clean(event.resource_type, 160),
            c.id != claim.row_id,
            later,
            or_(c.status.in_(_WILL_RUN), self._has_receipt(subscriber)),
        )
        if reason is not None:
            newer = newer.where(func.lower(c.reason) == reason)
        return bool(self.rows(newer.limit(1)))

    # Inside

    @property
    def _statements(self) -> Statements:
        if self._made is None:
            database = self.database
            self._made = Statements(database.tables, database.engine.dialect.name)
        return self._made

    def _settle(
        self, claim: Claim, values: dict[str, Any], receipt: Receipt | None
    ) -> bool:
        if receipt is not None:
            with suppress(IntegrityError):
                return self._finish(claim, values, receipt)
            # It may be there already, and then the outcome is all that is missing.
            self.commit_receipt(claim, receipt.subscriber, receipt.ending)
        with self.connection() as connection:
            return connection.execute(self._settling(claim), values).rowcount > 0

    def _finish(self, claim: Claim, values: dict[str, Any], receipt: Receipt) -> bool:
        written = self._receipt_values(claim, receipt)
        together = self._statements.finish
        if together is not None and not claim.inline:
            with self.connection() as connection:
                return connection.execute(together, values | written).rowcount > 0
        with self.transaction() as connection:
            connection.execute(self._statements.receipt, written)
            return connection.execute(self._settling(claim), values).rowcount > 0

    def _settling(self, claim: Claim) -> Update:
        return self._statements.held if claim.inline else self._statements.settle

    def _receipts_of(
        self, connection: Connection, rows: list[int]
    ) -> dict[int, set[str]]:
        """The subscribers that have receipts, for each of those rows."""
        r = self.database.tables.receipt.c
        finished: dict[int, set[str]] = {row: set() for row in rows}
        look = select(r.event, r.subscriber).where(r.event.in_(rows))
        for receipt in connection.execute(look):
            finished[receipt.event].add(receipt.subscriber)
        return finished

    def _claimable(self, early: bool) -> ColumnElement[bool]:
        c = self.columns
        due = c.due_at <= self.naive_now()
        return or_(due, c.status == Status.PENDING.value) if early else due

    def _end(self, seconds: float) -> datetime:
        return self.naive_now() + timedelta(seconds=seconds)

    def _taken(self, lease: str, end: datetime) -> dict[str, Any]:
        return {
            "status": Status.RUNNING.value,
            "due_at": end,
            "lease": lease,
            "attempts": self.columns.attempts + 1,
        }

    def _held(self, claims: Collection[Claim]) -> ColumnElement[bool]:
        rows = [claim.row_id for claim in claims]
        leases = {claim.lease for claim in claims}
        return and_(self.columns.id.in_(rows), self.columns.lease.in_(leases))

    def _change_held(self, claims: Collection[Claim], **values: Any) -> None:
        """Change the rows that these claims still hold."""
        if not claims:
            return
        held = update(self.columns.id.table).where(self._held(claims)).values(**values)
        unhurried = self._statements.unhurried(held)

        def change() -> None:
            with self.connection() as connection:
                connection.execute(unhurried)

        self.persistently(change)

    def _has_receipt(self, subscriber: str) -> ColumnElement[bool]:
        r = self.database.tables.receipt.c
        mine = and_(r.event == self.columns.id, r.subscriber == subscriber)
        return exists().where(mine)

    def _receipt_values(self, claim: Claim, receipt: Receipt) -> dict[str, Any]:
        return {
            "row": claim.row_id,
            "name": receipt.subscriber,
            "how": receipt.ending.value,
            "at": self.naive_now(),
        }


def _batch(found: Iterable[Any]) -> list[int]:
    """What to take of the events that are due: one whose lease ran out, or the others.

    It may have killed its process, and would do so in a batch: with an attempt of each
    of its neighbours.
    """
    rows = list(found)
    if rows and rows[0].status == Status.RUNNING.value:
        return [rows[0].id]
    return [row.id for row in rows if row.status == Status.PENDING.value]


def _holder(claim: Claim) -> dict[str, Any]:
    return {"row": claim.row_id, "token": claim.lease}


def _claim(
    row: Any, lease: str, end: datetime, finished: Mapping[int, Set[str]]
) -> Claim:
    names = frozenset(finished[row.id])
    body = row.body or b""
    return Claim(row.id, lease, row.event_id, row.attempts, end, body, names)


def _new_lease() -> str:
    return secrets.token_hex(16)
