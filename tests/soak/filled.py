"""Databases that fill up: in a small file system, or with a limit for their files."""

from __future__ import annotations

import os
import resource
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress
from pathlib import Path

from .outages import Breakable
from .outages import private_server
from .outages import Server

#: Megabytes for a new server and the events of a run.
SIZES = {"sqlite": 8, "postgresql": 128, "mariadb": 192}


class Filled:
    """A database whose file system is full while it is cut."""

    def __init__(self, url: str, folder: Path, server: Server | None = None) -> None:
        self.url = server.url if server else url
        self.direct_url = server.direct_url if server else url
        self._ballast = folder / "ballast"
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


class Limited:
    """A SQLite file to which the app's processes cannot write while it is cut.

    Their log is such a file too.
    """

    def __init__(self, url: str) -> None:
        self.url = self.direct_url = url

    def cut(self) -> None:
        self._limit(0)

    def mend(self) -> None:
        self._limit(resource.RLIM_INFINITY)

    def _limit(self, size: int) -> None:
        for pid in self._pids():
            with suppress(ProcessLookupError):
                hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))

    def _pids(self) -> list[int]:
        """The processes with the URL in their environment: all of the app."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if f"SOAK_URL={self.url}".encode() in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
        return found


@contextmanager
def filled(kind: str, folder: Path) -> Iterator[Breakable | None]:
    """A database that can be filled up, or ``None`` if that is not possible here."""
    with _small_file_system(SIZES[kind]) as place:
        if kind == "sqlite":
            url = f"sqlite:///{(place or folder) / 'soak.db'}"
            yield Filled(url, place) if place else Limited(url)
        elif place is None:
            yield None
        else:
            with private_server(kind, place / "server") as server:
                yield Filled("", place, server) if server else None


@contextmanager
def _small_file_system(megabytes: int) -> Iterator[Path | None]:
    # Not in the folder of the run, which the account of a server may not enter.
    folder = tempfile.mkdtemp(prefix="soak_small_")
    options = f"size={megabytes}m,mode=755"
    mount = ["mount", "-t", "tmpfs", "-o", options, "soak", folder]
    try:
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
            yield None
            return
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)
    finally:
        os.rmdir(folder)
