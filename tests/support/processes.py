"""Processes of tests: with output in a file, and ended with the test."""

from __future__ import annotations

import atexit
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import contextmanager
from contextlib import ExitStack
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.waiting import PATIENCE
from support.waiting import wait_until

TESTS = Path(__file__).parents[1]
#: Seconds between SIGTERM and SIGKILL.
GRACE = 20.0


def environment(
    env: Mapping[str, str] | None = None, *, path: Sequence[Path | str] = ()
) -> dict[str, str]:
    """This process's environment with ``env``, and tests/ in PYTHONPATH.

    :param path: more folders for PYTHONPATH, before tests/.
    """
    folders = [*map(str, path), str(TESTS), *filter(None, sys.path)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folders), **(env or {})}


@dataclass
class Process:
    """A running process, the leader of its process group."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def output(self) -> str:
        """The output so far, of both standard streams."""
        return self.log.read_text(errors="replace")

    def wait_for_output(self, text: str, seconds: float = PATIENCE) -> None:
        wait_until(lambda: text in self.output(), seconds, self.output)

    def send(self, number: int) -> None:
        """Send a signal to the process, not to its group."""
        self.process.send_signal(number)

    def catches(self, number: int) -> bool:
        """Whether the process has a handler for the signal, by /proc."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        (caught,) = re.findall(r"^SigCgt:\s*(\w+)", status, re.MULTILINE)
        return bool(int(caught, 16) & 1 << number - 1)

    def exit_code(self, seconds: float = PATIENCE) -> int:
        """Wait for the end."""
        return self.process.wait(seconds)

    def end(self) -> None:
        """Terminate the process; kill its group after a timeout."""
        if self.is_running:
            self.process.terminate()
            try:
                self.process.wait(GRACE)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """Kill the process and its children at once, as a power failure does."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(GRACE)


def start(
    command: Sequence[str],
    *,
    folder: Path | str = ".",
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
) -> Process:
    """Start ``command`` in ``folder``; the caller ends it.

    :param env: the whole environment; see :func:`environment`.
    :param log: file to append to; by default a file that outlives the test.
    """
    if log is None:
        log = Path(tempfile.mkstemp(suffix=".log")[1])
        atexit.register(log.unlink, missing_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Process(process, log)


@contextmanager
def running(
    command: Sequence[str],
    *,
    folder: Path | str = ".",
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
) -> Iterator[Process]:
    """Run ``command`` until the end of the block; the parameters are those of start."""
    process = start(command, folder=folder, env=env, log=log)
    try:
        yield process
    finally:
        process.end()


class Child:
    """A process with which a test exchanges lines of input and output."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
            text=True,
            start_new_session=True,
        )

    def tell(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def line(self) -> str:
        """The next line of the output."""
        assert self.process.stdout
        return self.process.stdout.readline().rstrip("\n")

    def rest(self, seconds: float = 2 * PATIENCE) -> str:
        """The rest of the output, after the end of the process."""
        return self.process.communicate(timeout=seconds)[0]

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def child(*arguments: str) -> Iterator[Child]:
    """Run Python with these arguments until the end of the block."""
    child = Child(*arguments)
    try:
        yield child
    finally:
        child.kill()


@contextmanager
def scripts(script: str, orders: Sequence[Any]) -> Iterator[list[Child]]:
    """Run ``script`` once for each order: the first line of its input, in JSON."""
    with ExitStack() as stack:
        children = []
        for order in orders:
            children.append(stack.enter_context(child("-c", script)))
            children[-1].tell(json.dumps(order))
        yield children


def run_at_once(script: str, orders: Sequence[Any]) -> list[Any]:
    """Run ``script`` for each order, all at the same moment; return the printed values.

    A script prints "ready", waits for a line of input, and prints one value in JSON.
    """
    with scripts(script, orders) as children:
        for each in children:
            assert each.line() == "ready"
        for each in children:
            each.tell("go")
        return [json.loads(each.rest()) for each in children]
