"""The processes of the app: a server with its children, and event workers."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
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

from .modes import Mode
from .modes import PROCESSES
from .modes import worker_command

#: Lines of gunicorn and uWSGI about the start of a child.
BOOTED = re.compile("Booting worker with pid|[Ss]pawned uWSGI worker [0-9]")

#: Part of the last log lines of a worker whose threads hang.
EXHAUSTED = "threads hang in subscribers"


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

    @property
    def exit_code(self) -> int | None:
        return self._process.process.returncode if self._process else None

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

    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


class Fleet:
    """All processes of the app.

    :param env: of each process.
    :param folder: for log files.
    """

    def __init__(self, mode: Mode, env: dict[str, str], folder: Path) -> None:
        self.mode = mode
        self.port = free_port()
        self.kills = 0
        self.stalls = 0
        #: Processes that ended without a kill or a crash, and why a worker may do so.
        self.ended: list[str] = []
        self.exhausted = 0
        env |= {"SOAK_DISPATCH": mode.dispatch}
        early = {"SOAK_CONNECT": "1"} if mode.preload else {}
        command = mode.server_command(self.port)
        self.server = Service(command, env | early, folder / "server.log")
        self.workers = [
            Service(worker_command(), env, folder / f"worker{number}.log")
            for number in range(mode.workers)
        ]
        self.services = [self.server, *self.workers]
        #: Process id to the end of its stall, by ``time.monotonic``.
        self._stalled: dict[int, float] = {}

    @contextmanager
    def running(self) -> Iterator[Fleet]:
        try:
            self.start()
            yield self
        finally:
            for service in self.services:
                service.kill()

    def start(self) -> None:
        """Start what does not run, and wait until the server accepts connections."""
        self.revive(stalled=True)
        deadline = time.monotonic() + 60
        assert wait_until(self._is_up, deadline, 0.05), self.server.text()[-3000:]

    @property
    def restarts(self) -> int:
        """The number of processes restarted by the fleet or by the server."""
        booted = len(BOOTED.findall(self.server.text()))
        ours = sum(service.starts - 1 for service in self.services)
        return ours + booted - PROCESSES

    def running_pids(self) -> list[int]:
        """The processes that run events."""
        pids = [worker.pid for worker in self.workers if worker.is_running]
        if self.mode.dispatch == "background":
            pids += self.server.children()
        return sorted(pids)

    def kill_one(self, rng: random.Random) -> None:
        """Kill one process, or sometimes all, and count the kill."""
        kinds: dict[Callable[[random.Random], None], int] = {
            self._kill_child: 4,
            self._kill_server: 2,
            self._kill_all: 1,
        }
        if self.workers:
            kinds[self._kill_worker] = 5
        (kill,) = rng.choices(list(kinds), list(kinds.values()))
        kill(rng)
        self.kills += 1

    def kill_all(self) -> None:
        for service in self.services:
            service.kill()
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
                self._note_end(service)
                # The children of a killed server may live a moment longer.
                wait_until(self._port_is_free, time.monotonic() + 10, 0.02)
                service.start()

    def errors(self) -> list[str]:
        """Log lines of unexpected errors in the loops of workers and threads."""
        lines = [line for each in self.services for line in each.text().splitlines()]
        return [line for line in lines if "after an error" in line]

    def _note_end(self, service: Service) -> None:
        crashed = service.exit_code == -signal.SIGSEGV
        if not service.starts or service.was_killed or crashed:
            return
        # A worker whose threads hang ends, for its supervisor to start it again.
        if service in self.workers and EXHAUSTED in service.text()[-3000:]:
            self.exhausted += 1
            return
        self.ended.append(f"{service.log.stem} with exit code {service.exit_code}")

    def _is_up(self) -> bool:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return True
        return False

    def _port_is_free(self) -> bool:
        if self.server.is_running:
            return True
        with suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", self.port))
            return True
        return False

    def _kill_worker(self, rng: random.Random) -> None:
        rng.choice(self.workers).kill()

    def _kill_child(self, rng: random.Random) -> None:
        children = self.server.children()
        if not children:
            self._kill_server(rng)
            return
        _signal(rng.choice(children), signal.SIGKILL)

    def _kill_server(self, rng: random.Random) -> None:
        self.server.kill()

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
