"""Servers to put under load: one process each, on a loopback port of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from http.client import HTTPConnection
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path

from .databases import Missing
from .deliveries import PATH
from .deliveries import SECRET

APP = "benchmarks.candidates:serve"
ROOT = Path(__file__).parent.parent
EXPRESS = Path(__file__).parent / "express"
REDIS_URL = "redis://127.0.0.1:6379/0"


def wsgi_command(server: str, port: int, threads: int) -> list[str]:
    """How to start one process of ``server``.

    :raises Missing: it is not installed.
    """
    if not find_spec(server):
        raise Missing("not installed")
    python = [sys.executable, "-m", server]
    if server == "gunicorn":
        address = ["--bind", f"127.0.0.1:{port}", "--log-level", "warning"]
        workers = ["--worker-class", "gthread", "--workers", "1"]
        return [*python, *address, *workers, "--threads", str(threads), f"{APP}()"]
    address = ["--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"]
    workers = ["--interface", "wsgi", "--workers", "1"]
    blocking = ["--blocking-threads", str(threads)]
    return [*python, *address, *workers, *blocking, "--factory", APP]


def install_express(folder: Path) -> Path:
    """Put the Express app and its packages into a folder, and return that.

    :raises Missing: there is no node, no npm, no Redis, or no package.
    """
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        raise Missing("no node and npm on PATH")
    app = folder / "express"
    shutil.copytree(EXPRESS, app)
    command = [npm, "install", "--no-audit", "--no-fund", "--silent"]
    try:
        ran = subprocess.run(command, cwd=app, capture_output=True, timeout=180)
    except subprocess.TimeoutExpired:
        raise Missing("npm install took more than 180 s") from None
    if ran.returncode:
        raise Missing(f"npm install failed: {last_line(ran.stderr)}")
    return app


def express_env(port: int) -> dict[str, str]:
    return {
        "PORT": str(port),
        "SECRET": SECRET,
        "WEBHOOK_PATH": PATH,
        "REDIS_URL": redis_url(),
        "PREFIX": f"benchmarks:{uuid.uuid4().hex}:",
        "NODE_ENV": "production",
    }


@contextmanager
def running(
    command: list[str],
    port: int,
    env: Mapping[str, str],
    log: Path,
    folder: Path = ROOT,
) -> Iterator[int]:
    """Run a server until the end, and give its process id.

    :raises Missing: it did not start.
    """
    with started(command, env, log, folder) as process:
        _wait_for(process, port, log)
        yield process.pid


@contextmanager
def started(
    command: list[str], env: Mapping[str, str], log: Path, folder: Path = ROOT
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process until the end."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **env},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _stop(process)


def redis_url() -> str:
    return os.environ.get("REDIS_URL", REDIS_URL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        connection = HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            # Servers listen before they have loaded the app; any answer will do.
            connection.request("GET", "/")
            connection.getresponse()
            return
        except (OSError, HTTPException):
            time.sleep(0.05)
        finally:
            connection.close()
    raise Missing(f"it did not start: {last_line(log.read_bytes())}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def last_line(output: bytes) -> str:
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no word about why"
