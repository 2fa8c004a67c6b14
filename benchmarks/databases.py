"""Where the candidates store: a SQLite file, or a database of its own on a server."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import ExitStack
from pathlib import Path

import sqlalchemy as sa

from flask_procore_webhooks.storage.tally import flush_all

SQLITE = "SQLite"
TMPFS = "SQLite on tmpfs"
POSTGRESQL = "PostgreSQL"

POSTGRESQL_URL = "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"
MOUNTS = Path("/proc/mounts")


class Missing(Exception):
    """What is needed for a candidate is not here."""


class Databases:
    """Makes databases, each for one candidate; all are gone at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()
        self._tmpfs: Path | None = None

    def __enter__(self) -> Databases:
        return self

    def __exit__(self, *_: object) -> None:
        # Now, because the tables are gone at the end of the process.
        flush_all()
        self._stack.close()

    def make(self, kind: str) -> str:
        """The URL of a new database.

        :raises Missing: there is no server, or no tmpfs.
        """
        if kind == POSTGRESQL:
            return self._stack.enter_context(_postgresql())
        folder = self.tmpfs() if kind == TMPFS else self.folder
        return f"sqlite:///{folder / uuid.uuid4().hex}.db"

    def tmpfs(self) -> Path:
        """A folder in memory.

        :raises Missing: there is no tmpfs that one can write to.
        """
        if self._tmpfs is None:
            places = [path for path in _tmpfs_mounts() if os.access(path, os.W_OK)]
            if not places:
                raise Missing("there is no tmpfs to write to, such as /dev/shm")
            place = tempfile.TemporaryDirectory(prefix="benchmarks-", dir=places[0])
            self._tmpfs = Path(self._stack.enter_context(place))
        return self._tmpfs


def disk_folder() -> Path:
    """Where to make files that are to be on a disk: not in a tmpfs."""
    places = [Path(tempfile.gettempdir()), Path("/var/tmp"), Path.cwd()]
    return next((path for path in places if not is_tmpfs(path)), places[0])


def is_tmpfs(path: Path) -> bool:
    """Whether files in ``path`` are in memory."""
    mounts = [mount for mount in _mounts() if path.resolve().is_relative_to(mount[0])]
    return bool(mounts) and max(mounts)[1] == "tmpfs"


def _tmpfs_mounts() -> Iterator[Path]:
    """Those with room for a few benchmarks, ``/dev/shm`` first."""
    found = [path for path, kind in _mounts() if kind == "tmpfs"]
    for path in sorted(found, key=lambda path: path != Path("/dev/shm")):
        room = os.statvfs(path)
        if room.f_bavail * room.f_frsize > 1e9:
            yield path


def _mounts() -> list[tuple[Path, str]]:
    """Where something is mounted, and its kind."""
    if not MOUNTS.exists():
        return []
    lines = [line.split() for line in MOUNTS.read_text().splitlines()]
    return [(Path(line[1]), line[2]) for line in lines]


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
    return int(_scalar(url, f"SELECT count(*) FROM {table}"))


def setting(url: str, name: str) -> str:
    """A setting of a PostgreSQL server."""
    return _scalar(url, f"SHOW {name}")


def _scalar(url: str, statement: str) -> str:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        return str(connection.execute(sa.text(statement)).scalar_one())
