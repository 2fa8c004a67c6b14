"""A small file system that fills up, with a database in it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .outages import Breakable
from .outages import private_server
from .outages import Server

#: Megabytes for a new server and the events of a run.
SIZES = {"sqlite": 8, "postgresql": 128, "mariadb": 192}
BALLAST = "ballast"


class Filled:
    """A database whose file system is full while it is cut."""

    def __init__(self, url: str, folder: Path, server: Server | None = None) -> None:
        self.url = server.url if server else url
        self.direct_url = server.direct_url if server else url
        self._ballast = folder / BALLAST
        self._server = server

    def cut(self) -> None:
        """Fill the file system to the last byte."""
        with self._ballast.open("ab", buffering=0) as ballast:
            size = 1 << 20
            while size:
                try:
                    ballast.write(bytes(size))
                except OSError:
                    size //= 2

    def mend(self) -> None:
        """Make room; restart the server if it has ended."""
        self._ballast.unlink()
        if self._server and not self._server.is_running:
            self._server.mend()


@contextmanager
def filled(kind: str, folder: Path) -> Iterator[Breakable | None]:
    """A database that can be filled up, or ``None`` if that is not possible here."""
    with _small_file_system(folder / "small", SIZES[kind]) as place:
        if place is None:
            yield None
        elif kind == "sqlite":
            yield Filled(f"sqlite:///{place / 'soak.db'}", place)
        else:
            with private_server(kind, place / "server") as server:
                yield Filled("", place, server) if server else None


@contextmanager
def _small_file_system(folder: Path, megabytes: int) -> Iterator[Path | None]:
    folder.mkdir(parents=True)
    options = f"size={megabytes}m,mode=755"
    mount = ["mount", "-t", "tmpfs", "-o", options, "soak", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
