"""Where the candidates store: a SQLite file, or a database of its own on a server."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import ExitStack
from pathlib import Path

import sqlalchemy as sa

SQLITE = "SQLite"
POSTGRESQL = "PostgreSQL"

POSTGRESQL_URL = "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"


class Missing(Exception):
    """What is needed for a candidate is not here."""


class Databases:
    """Makes databases, each for one candidate; all are gone at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()

    def __enter__(self) -> Databases:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def make(self, kind: str) -> str:
        """The URL of a new database.

        :raises Missing: there is no server.
        """
        if kind == SQLITE:
            return f"sqlite:///{self.folder / uuid.uuid4().hex}.db"
        return self._stack.enter_context(_postgresql())


@contextmanager
def _postgresql() -> Iterator[str]:
    url = sa.make_url(os.environ.get("POSTGRESQL_URL", POSTGRESQL_URL))
    name = f"procore_benchmarks_{uuid.uuid4().hex[:12]}"
    try:
        admin = sa.create_engine(
            url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool
        )
        with admin.connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE {name}"))
    except (ImportError, sa.exc.OperationalError) as error:
        cause = str(getattr(error, "orig", error)).splitlines()[0]
        raise Missing(f"no server (POSTGRESQL_URL names one): {cause}") from None
    try:
        yield url.set(database=name).render_as_string(hide_password=False)
    finally:
        with admin.connect() as connection:
            connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))


def rows(url: str, table: str) -> int:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        count = connection.execute(sa.text(f"SELECT count(*) FROM {table}"))
        return int(count.scalar_one())


def server_version(url: str) -> str:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        version = connection.dialect.server_version_info or ()
    return ".".join(str(part) for part in version)
