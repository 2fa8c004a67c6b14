"""The processes of the app: gunicorn with its workers, and two event workers."""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress
from pathlib import Path

from support.processes import environment
from support.processes import Process
from support.processes import start
from support.servers import free_port

GUNICORN_WORKERS = 2
WORKERS = 2


class Service:
    """A process of the app that can be restarted after its end."""

    def __init__(self, command: list[str], env: dict[str, str], log: Path) -> None:
        self.command = command
        self.env = environment(env)
        self.log = log
        self.starts = 0
        self.was_killed = False
        self._process: Process | None = None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.is_running

    def start(self) -> None:
        self._process = start(self.command, env=self.env, log=self.log)
        self.starts += 1
        self.was_killed = False

    def kill(self) -> None:
        """Kill the process and its children."""
        self.was_killed = True
        if self._process:
            self._process.kill()

    def children(self) -> list[int]:
        path = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        try:
            return [int(pid) for pid in path.read_text().split()]
        except OSError:
            return []


class Fleet:
    """All processes of the app.

    :param env: of each process.
    :param folder: for log files.
    """

    def __init__(self, env: dict[str, str], folder: Path) -> None:
        self.port = free_port()
        self.kills = 0
        self.stalls = 0
        #: Processes that ended without a kill.
        self.ended: list[str] = []
        python = [sys.executable, "-m"]
        gunicorn = (
            f"gunicorn -b 127.0.0.1:{self.port} -w {GUNICORN_WORKERS} --threads 4"
            " --graceful-timeout 10 soak.app:create_app()"
        )
        worker = "flask --app soak.app procore-webhooks worker --poll 0.2 --grace 10"
        self.gunicorn = Service(python + gunicorn.split(), env, folder / "gunicorn.log")
        self.workers = [
            Service(python + worker.split(), env, folder / f"worker{number}.log")
            for number in range(WORKERS)
        ]
        self.services = [self.gunicorn, *self.workers]
        #: Process id to the end of its stall, by ``time.monotonic``.
        self._stalled: dict[int, float] = {}

    @contextmanager
    def running(self) -> Iterator[Fleet]:
        try:
            self.revive()
            assert wait_until(self._is_up, time.monotonic() + 60, 0.05), "no server"
            yield self
        finally:
            for service in self.services:
                service.kill()

    @property
    def restarts(self) -> int:
        """The number of processes restarted by the fleet or by gunicorn."""
        text = self.gunicorn.log.read_text(errors="replace")
        booted = text.count("Booting worker with pid")
        ours = sum(service.starts - 1 for service in self.services)
        return ours + booted - GUNICORN_WORKERS

    def running_pids(self) -> list[int]:
        """The processes that run events: gunicorn's workers and event workers."""
        ours = [worker.pid for worker in self.workers if worker.is_running]
        return sorted(self.gunicorn.children() + ours)

    def kill_one(self, rng: random.Random) -> None:
        """Kill one process, or sometimes all, and count the kill."""
        kinds: dict[Callable[[random.Random], None], int] = {
            self._kill_worker: 5,
            self._kill_gunicorn_worker: 4,
            self._kill_gunicorn: 2,
            self._kill_all: 1,
        }
        (kill,) = rng.choices(list(kinds), list(kinds.values()))
        kill(rng)
        self.kills += 1

    def stall_one(self, rng: random.Random, seconds: float) -> None:
        """Stop one process, as on a suspended machine, and count the stall."""
        pids = self.running_pids()
        if pids:
            pid = rng.choice(pids)
            self._stalled[pid] = time.monotonic() + seconds
            _signal(pid, signal.SIGSTOP)
            self.stalls += 1

    def revive(self, *, stalled: bool = False) -> None:
        """Restart ended processes; continue processes at the end of their stall.

        :param stalled: continue all stalled processes.
        """
        for pid, end in list(self._stalled.items()):
            if stalled or end <= time.monotonic():
                _signal(pid, signal.SIGCONT)
                del self._stalled[pid]
        for service in self.services:
            if not service.is_running:
                if service.starts and not service.was_killed:
                    self.ended.append(service.log.stem)
                service.start()

    def errors(self) -> list[str]:
        """Log lines of unexpected errors in the loops of workers and threads."""
        texts = [each.log.read_text(errors="replace") for each in self.services]
        lines = [line for text in texts for line in text.splitlines()]
        return [line for line in lines if "after an error" in line]

    def _is_up(self) -> bool:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return True
        return False

    def _kill_worker(self, rng: random.Random) -> None:
        rng.choice(self.workers).kill()

    def _kill_gunicorn_worker(self, rng: random.Random) -> None:
        children = self.gunicorn.children()
        if not children:
            self._kill_gunicorn(rng)
            return
        _signal(rng.choice(children), signal.SIGKILL)

    def _kill_gunicorn(self, rng: random.Random) -> None:
        self.gunicorn.kill()

    def _kill_all(self, rng: random.Random) -> None:
        for service in self.services:
            service.kill()


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def wait_until(condition: Callable[[], object], deadline: float, pause: float) -> bool:
    """Whether the condition became true before ``deadline``, by ``time.monotonic``."""
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True
