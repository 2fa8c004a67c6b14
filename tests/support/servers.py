"""Real servers on a loopback port, as a user starts them."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from support.processes import Process
from support.processes import start
from support.services import missing
from support.waiting import wait_until

SERVERS = ("gunicorn", "waitress", "flask")


@dataclass
class Server(Process):
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def serve(
    app: str,
    *,
    server: str = "gunicorn",
    folder: Path | str = ".",
    env: Mapping[str, str] | None = None,
    options: tuple[str, ...] = (),
    port: int | None = None,
) -> Iterator[Server]:
    """Run ``app`` (``module:name``) under ``server`` from ``folder`` until the end."""
    port = port or free_port()
    environ = {**os.environ, **(env or {})}
    started = start(command(server, app, port, options), folder=folder, env=environ)
    running = Server(started.process, started.log, port)
    try:
        wait_for(running)
        yield running
    finally:
        running.end()


def command(server: str, app: str, port: int, options: tuple[str, ...]) -> list[str]:
    python = [sys.executable, "-m"]
    address = f"127.0.0.1:{port}"
    if server == "gunicorn":
        return [*python, "gunicorn", "-b", address, *options, app]
    if server == "hypercorn":
        return [*python, "hypercorn", "-b", address, *options, app]
    if server == "uvicorn":
        return [*python, "uvicorn", "--port", str(port), *options, app]
    if server == "granian":
        interface = ("--interface", "wsgi", "--port", str(port))
        return [*python, "granian", *interface, *options, app]
    if server == "wsgiref":
        return [sys.executable, *options, app, str(port)]
    if server == "uwsgi":
        found = shutil.which("uwsgi", path=str(Path(sys.executable).parent))
        return [str(found), "--http-socket", address, "--module", app, *options]
    if server == "waitress":
        return [*python, "waitress", f"--listen={address}", *options, app]
    if server == "granian":
        listen = ["--host", "127.0.0.1", "--port", str(port)]
        return [*python, "granian", "--interface", "wsgi", *listen, *options, app]
    if server == "hypercorn":
        return [*python, "hypercorn", "-b", address, *options, f"wsgi:{app}"]
    if server == "uvicorn":
        return [*python, "uvicorn", "--port", str(port), *options, app]
    if server == "uwsgi":
        return [*uwsgi(), "--http-socket", address, "--module", app, *options]
    if server == "script":
        return [sys.executable, *options, str(port)]
    return [*python, "flask", "--app", app, "run", "-p", str(port), *options]


def uwsgi() -> list[str]:
    """The start of a command of uWSGI, which is a program, in this environment."""
    found = shutil.which("uwsgi", path=str(Path(sys.executable).parent))
    if found is None:
        missing("uWSGI is not installed: pip install uwsgi")
    fixed = ["--enable-threads", "--need-app", "--die-on-term"]
    return [str(found), "--virtualenv", sys.prefix, *fixed]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(server: Server, seconds: float = 20.0) -> None:
    """Wait until the server accepts connections."""

    def is_up() -> bool:
        assert server.is_running, f"the server has ended:\n{server.output()}"
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", server.port), 1).close()
            return True
        return False

    wait_until(is_up, seconds, server.output)
