"""Connections that the server ends, and a server that becomes read-only."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress

import sqlalchemy as sa

#: The database to connect to, the connections of another database, and how to end one.
QUERIES = {
    "postgresql": (
        "postgres",
        "SELECT pid FROM pg_stat_activity WHERE datname = :name ORDER BY pid",
        "SELECT pg_terminate_backend({})",
    ),
    "mysql": (
        "mysql",
        "SELECT id FROM information_schema.processlist WHERE db = :name ORDER BY id",
        "KILL CONNECTION {}",
    ),
}


class Connections:
    """The connections of a database, seen by an administrator of its server.

    :param url: of the administrator.
    """

    def __init__(self, url: str) -> None:
        target = sa.make_url(url)
        self.is_postgresql = target.get_backend_name() == "postgresql"
        self._name = target.database
        database, self._list, self._end = QUERIES[target.get_backend_name()]
        self._engine = sa.create_engine(
            target.set(database=database),
            isolation_level="AUTOCOMMIT",
            poolclass=sa.NullPool,
        )

    def end_some(self, rng: random.Random) -> int:
        """End one to three connections; return how many."""
        with self._engine.connect() as administrator:
            found = self._ids(administrator)
            return sum(
                self._end_one(administrator, id)
                for id in rng.sample(found, min(rng.randint(1, 3), len(found)))
            )

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Make the server read-only, as after a failover to a standby.

        On PostgreSQL, the connections made in the block stay read-only after it.
        """
        self._switch("on")
        try:
            yield
        finally:
            self._switch("off")

    def _switch(self, value: str) -> None:
        with self._engine.connect() as administrator:
            if not self.is_postgresql:
                administrator.execute(sa.text(f"SET GLOBAL read_only = {value}"))
                return
            setting = f"SET default_transaction_read_only = {value}"
            administrator.execute(sa.text(f"ALTER DATABASE {self._name} {setting}"))
            if value == "on":
                for id in self._ids(administrator):
                    self._end_one(administrator, id)

    def _ids(self, administrator: sa.Connection) -> list[int]:
        found = administrator.execute(sa.text(self._list), {"name": self._name})
        return [int(id) for (id,) in found]

    def _end_one(self, administrator: sa.Connection, id: int) -> bool:
        # It may have ended by itself.
        with suppress(sa.exc.OperationalError):
            administrator.execute(sa.text(self._end.format(id)))
            return True
        return False
