"""Real servers on a loopback port, as a user starts them, and a way that is cut."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SERVERS = ("gunicorn", "waitress", "flask")


@dataclass
class Server:
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def output(self) -> str:
        return self.log.read_text(errors="replace")


@contextmanager
def serve(
    app: str,
    *,
    server: str = "gunicorn",
    folder: Path | str = ".",
    env: Mapping[str, str] | None = None,
    options: tuple[str, ...] = (),
) -> Iterator[Server]:
    """Run ``app`` (``module:name``) under ``server`` from ``folder`` until the end."""
    port = free_port()
    log = Path(tempfile.mkstemp(suffix=".log")[1])
    # Tests read it after the server has ended.
    atexit.register(log.unlink, missing_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(server, app, port, options),
            cwd=folder,
            env={**os.environ, **(env or {})},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    running = Server(port, process, log)
    try:
        wait_for(running)
        yield running
    finally:
        stop(process)


def command(server: str, app: str, port: int, options: tuple[str, ...]) -> list[str]:
    python = [sys.executable, "-m"]
    address = f"127.0.0.1:{port}"
    if server == "gunicorn":
        return [*python, "gunicorn", "-b", address, *options, app]
    if server == "waitress":
        return [*python, "waitress", f"--listen={address}", *options, app]
    return [*python, "flask", "--app", app, "run", "-p", str(port), *options]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(server: Server, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", server.port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"the server did not start:\n{server.output()}")


def stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
