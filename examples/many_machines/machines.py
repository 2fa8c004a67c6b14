"""Simulated machines: groups of server and worker processes that can be killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random

HERE = Path(__file__).parent
PYTHON = [sys.executable, "-m"]
CELERY = [*PYTHON, "celery", "-A", "make_celery"]
#: Options that shorten the start of a worker.
BRIEFLY = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
#: Share of the kills that hit all processes of a machine, as a power cut does.
MACHINES_KILLED = 0.25
#: Seconds until a killed process is started again, at most.
LONGEST_AWAY = 1.5


class Process:
    """A process group: the process and its children are started and killed together."""

    def __init__(
        self, name: str, command: list[str], env: dict[str, str], log: Path
    ) -> None:
        self.name = name
        self.command = command
        self.env = {**os.environ, **env}
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None
        #: Time of the next start, of ``time.monotonic``.
        self._back_at = 0.0

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                cwd=HERE,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self, away: float = 0.0) -> None:
        """Send SIGKILL; the process stays down for ``away`` seconds."""
        self._back_at = time.monotonic() + away
        if self._process:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def revive(self) -> None:
        if not self.is_running() and time.monotonic() >= self._back_at:
            self.start()


class Machine:
    """A server and a worker; the first machine also runs Celery's beat."""

    def __init__(
        self, name: str, folder: Path, env: dict[str, str], *, has_beat: bool
    ) -> None:
        self.port = free_port()
        gunicorn = f"gunicorn --threads 4 -b 127.0.0.1:{self.port} app:create_app()"
        worker = ["worker", "-c", "2", "-n", f"{name}@%h", "-l", "info", *BRIEFLY]
        commands = {"server": PYTHON + gunicorn.split(), "worker": CELERY + worker}
        if has_beat:
            commands["beat"] = [*CELERY, "beat", "-s", str(folder / "schedule")]
        env = env | {"MACHINE": name}
        self.processes = [
            Process(f"{kind} {name}", command, env, folder / f"{kind}-{name}.log")
            for kind, command in commands.items()
        ]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/webhooks/procore"


class Machines:
    """All machines; ``revive`` restarts killed processes when their time is over."""

    def __init__(self, names: str, folder: Path, env: dict[str, str]) -> None:
        self.each = [
            Machine(name, folder, env, has_beat=name == names[0]) for name in names
        ]
        self.processes = [one for machine in self.each for one in machine.processes]
        #: Number of kills of each kind of process.
        self.kills: Counter[str] = Counter()

    def __enter__(self) -> Machines:
        self.revive()
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            process.kill()

    def wait_until_up(self, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not all(is_open(machine.port) for machine in self.each):
            if time.monotonic() > deadline:
                logs = [process.log.read_text() for process in self.processes]
                sys.exit("\n".join(["A server has not come up:", *logs]))
            time.sleep(0.1)

    def kill_some(self, rng: Random) -> str:
        """Kill a process, or sometimes a machine; return the names."""
        machine = rng.choice(self.each)
        whole = rng.random() < MACHINES_KILLED
        victims = machine.processes if whole else [rng.choice(machine.processes)]
        away = rng.uniform(0, LONGEST_AWAY)
        for process in victims:
            process.kill(away)
            self.kills[process.name.split()[0]] += 1
        return ", ".join(process.name for process in victims)

    def revive(self) -> None:
        for process in self.processes:
            process.revive()


def is_open(port: int) -> bool:
    with socket.socket() as call:
        return call.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])
