"""The servers and workers of each mode."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from flask_procore_webhooks.dispatching.background import POLL

from .app import FICKLE_ATTEMPTS
from .app import LEASE
from .app import RETRY_CAP
from .app import TIMEOUT

#: Processes of a server that answer deliveries.
PROCESSES = 2
APP = "soak.app:create_app()"
#: Seconds between two polls of an event worker.
WORKER_POLL = 0.2
#: Seconds for the start of a process, on a busy machine.
START = 15.0
#: Runs of an event that may end without its end once nothing is disturbed any more:
#: failures of ``fickle``, two crashes, a hanging call, and the kill before.
UNFINISHED_RUNS = FICKLE_ATTEMPTS + 4


@dataclass(frozen=True)
class Mode:
    #: The value of ``DISPATCH``.
    dispatch: str
    server: str = "gunicorn"
    #: Whether the server loads the app before it forks.
    preload: bool = False
    #: Event workers beside the server.
    workers: int = 0

    def server_command(self, port: int) -> list[str]:
        address = f"127.0.0.1:{port}"
        if self.server == "uwsgi":
            return [*_uwsgi(), "--http-socket", address]
        options = ["--preload"] if self.preload else []
        options += ["-w", str(PROCESSES), "--threads", "4", "--graceful-timeout", "10"]
        return [sys.executable, "-m", "gunicorn", "-b", address, *options, APP]

    @property
    def promise(self) -> float:
        """Seconds in which an undisturbed event ends.

        Each unfinished run costs a lease, if its process has ended, or a wait between
        two attempts. Then a process must be up, and see the event at its next poll.
        """
        poll = WORKER_POLL if self.workers else POLL
        runs = UNFINISHED_RUNS * (LEASE + RETRY_CAP)
        return START + poll + runs + TIMEOUT


#: ``both``: background threads and workers share the events.
MODES = {
    "background": Mode("background"),
    "preload": Mode("background", preload=True),
    "uwsgi": Mode("background", server="uwsgi", preload=True),
    "worker": Mode("worker", workers=2),
    "both": Mode("background", workers=2),
}


def worker_command() -> list[str]:
    options = ["--poll", str(WORKER_POLL), "--grace", "10", "--concurrency", "2"]
    flask = [sys.executable, "-m", "flask", "--app", "soak.app"]
    return [*flask, "procore-webhooks", "worker", *options]


def is_installed(mode: Mode) -> bool:
    return mode.server != "uwsgi" or _uwsgi_path() is not None


def _uwsgi() -> list[str]:
    command = [str(_uwsgi_path()), "--module", APP, "--virtualenv", sys.prefix]
    command += ["--master", "--die-on-term", "--need-app"]
    command += ["--processes", str(PROCESSES), "--threads", "4", "--enable-threads"]
    # It closes each connection, and would not say so.
    return [*command, "--add-header", "Connection: close"]


def _uwsgi_path() -> str | None:
    return shutil.which("uwsgi", path=str(Path(sys.executable).parent))
