"""Databases with outages; each has the methods ``cut`` and ``mend``."""

from __future__ import annotations

import glob
import os
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress
from pathlib import Path
from typing import Any
from typing import Protocol

import sqlalchemy as sa
from support.servers import free_port


class Breakable(Protocol):
    """A database with outages.

    The app uses ``url``, the harness ``direct_url``.
    """

    url: str
    direct_url: str

    def cut(self) -> None: ...
    def mend(self) -> None: ...


class Locked:
    """A SQLite file that another process locks exclusively."""

    def __init__(self, url: str) -> None:
        self.url = self.direct_url = url
        self._path = str(sa.make_url(url).database)
        self._connection: sqlite3.Connection | None = None

    def cut(self) -> None:
        self._connection = sqlite3.connect(
            self._path, timeout=30, isolation_level=None, check_same_thread=False
        )
        self._connection.execute("BEGIN EXCLUSIVE")

    def mend(self) -> None:
        if self._connection:
            self._connection.close()
        self._connection = None


class Server:
    """A private database server in a temporary folder, which outages kill."""

    def __init__(self, command: list[str], url: str, ending: signal.Signals) -> None:
        self.url = url
        self.direct_url = url.replace("soak@", "root@")
        self._command = command
        self._ending = ending
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def cut(self) -> None:
        if self._process:
            self._process.send_signal(self._ending)
            self._process.wait(60)

    def mend(self) -> None:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **_other_user(self._command[0]),
        )
        self._wait()

    def end(self) -> None:
        if self._process is None:
            return
        self._process.send_signal(self._ending)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(30)
        # Kill the process group: the server may have children.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)
        self._log.close()

    def _wait(self) -> None:
        url = sa.make_url(self.direct_url)
        database = "postgres" if url.get_backend_name() == "postgresql" else "mysql"
        engine = sa.create_engine(url.set(database=database), poolclass=sa.NullPool)
        deadline = time.monotonic() + 60
        while True:
            try:
                with engine.connect():
                    return
            except sa.exc.SQLAlchemyError:
                if not self.is_running or time.monotonic() > deadline:
                    self._log.seek(0)
                    text = self._log.read().decode(errors="replace")[-3000:]
                    raise AssertionError(f"it did not start:\n{text}") from None
                time.sleep(0.05)


@contextmanager
def private_server(kind: str, folder: Path | None = None) -> Iterator[Server | None]:
    """A private server of that kind, or ``None`` if it is not installed.

    :param folder: for its files; a temporary one by default.
    """
    make = {"postgresql": _postgresql, "mariadb": _mariadb}[kind]
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix=f"soak_{kind}_"))
    else:
        folder.mkdir()
    server = None
    try:
        server = make(str(folder))
        if server:
            server.mend()
            _create_database(server)
        yield server
    finally:
        if server:
            server.end()
        shutil.rmtree(folder, ignore_errors=True)


def _postgresql(folder: str) -> Server | None:
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
    initdb = found[-1] if found else shutil.which("initdb")
    if not initdb:
        return None
    postgres = str(Path(initdb).with_name("postgres"))
    data, port = f"{folder}/data", free_port()
    _give(folder, postgres)
    make = [initdb, "-D", data, "-A", "trust", "-U", "postgres", "-E", "UTF8"]
    _run(make, cwd=folder, **_other_user(postgres))
    command = [postgres, "-D", data, "-p", str(port), "-k", folder, "-h", "127.0.0.1"]
    command += ["-c", "min_wal_size=32MB", "-c", "max_wal_size=32MB"]
    url = f"postgresql+psycopg://postgres@127.0.0.1:{port}/soak"
    # "Immediate": without a checkpoint, so that the next start recovers.
    return Server(command, url, signal.SIGQUIT)


def _mariadb(folder: str) -> Server | None:
    sbin = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])
    mariadbd = shutil.which("mariadbd", path=sbin)
    install = shutil.which("mariadb-install-db", path=sbin)
    if not (mariadbd and install):
        return None
    data, port = f"{folder}/data", free_port()
    _give(folder, mariadbd)
    other = _other_user(mariadbd)
    where = ["--no-defaults", f"--datadir={data}", "--innodb-log-file-size=8M"]
    normal = ["--auth-root-authentication-method=normal", "--skip-test-db"]
    _run([install, *where, *normal], cwd=folder, **other)
    network = ["--bind-address=127.0.0.1", f"--port={port}"]
    files = [f"--socket={folder}/sock", f"--pid-file={folder}/pid"]
    # Not root, who may write to a read-only server.
    url = f"mysql+pymysql://soak@127.0.0.1:{port}/soak"
    return Server([mariadbd, *where, *network, *files], url, signal.SIGKILL)


def _other_user(program: str) -> dict[str, Any]:
    """The server's own account, if the tests run as root: servers refuse root."""
    if os.geteuid() != 0:
        return {}
    user = "postgres" if program.endswith("postgres") else "mysql"
    return {"user": user, "group": user, "extra_groups": []}


def _give(folder: str, program: str) -> None:
    if other := _other_user(program):
        shutil.chown(folder, other["user"], other["group"])


def _run(command: list[str], **options: Any) -> None:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=120,
        **options,
    )
    assert done.returncode == 0, done.stdout.decode(errors="replace")


def _create_database(server: Server) -> None:
    target = sa.make_url(server.direct_url)
    is_postgresql = target.get_backend_name() == "postgresql"
    statements = ["CREATE DATABASE soak"]
    if not is_postgresql:
        statements += [
            "CREATE USER soak@'127.0.0.1'",
            "GRANT ALL ON soak.* TO soak@'127.0.0.1'",
        ]
    engine = sa.create_engine(
        target.set(database="postgres" if is_postgresql else "mysql"),
        isolation_level="AUTOCOMMIT",
        poolclass=sa.NullPool,
    )
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))
