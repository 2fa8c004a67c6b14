"""The changes that every run makes, built once, and which need not reach the disk."""

from __future__ import annotations

from typing import Any

from sqlalchemy import bindparam
from sqlalchemy import ColumnElement
from sqlalchemy import insert
from sqlalchemy import literal_column
from sqlalchemy import Table
from sqlalchemy import Update
from sqlalchemy import update
from sqlalchemy.dialects import postgresql

from .tables import Tables

#: Of this transaction alone, so that the connection comes back to the pool as it was;
#: and in the statement itself, so that it costs no round trip.
NO_WAIT: ColumnElement[str] = literal_column(
    "set_config('synchronous_commit', 'off', true)"
)


class Statements:
    """The changes that a run makes, for a claim ``row`` and its lease ``token``.

    PostgreSQL is told not to wait for the disk with those that a run outlives. When
    the *database* crashes, the last fraction of a second of them is lost, in order: a
    claim, a lease, an outcome. The event is then run again when its lease is over, as
    after any crash, and the receipts decide what is repeated. Never so with a delivery,
    which was answered, or with the commit of the host's session, which is not ours.
    """

    def __init__(self, tables: Tables, dialect: str) -> None:
        self._is_postgresql = dialect == "postgresql"
        c = tables.event.c
        self.held = update(tables.event).where(
            c.id == bindparam("row"), c.lease == bindparam("token")
        )
        #: Given the values to change.
        self.settle: Update = self.unhurried(self.held)
        self.receipt = insert(tables.receipt).values(**_receipt_values())
        self.commit_receipt = self.unhurried(self.receipt)
        #: Both of them, where one statement can be.
        self.finish = self._finish(tables.receipt) if self._is_postgresql else None

    def unhurried(self, change: Any) -> Any:
        """``change``, whose commit does not wait for the disk where that can be had."""
        return change.returning(NO_WAIT) if self._is_postgresql else change

    def _finish(self, receipt: Table) -> Update:
        write = postgresql.insert(receipt).values(**_receipt_values())
        written = write.on_conflict_do_nothing().cte("written")
        finish: Update = self.settle.add_cte(written)
        return finish


def _receipt_values() -> dict[str, Any]:
    names = {"event": "row", "subscriber": "name", "ending": "how", "finished_at": "at"}
    return {column: bindparam(name) for column, name in names.items()}
