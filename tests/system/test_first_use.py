"""The first use of a new inbox, by threads and processes at once."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes import Child

RACER = """
import sys, threading
from flask import Flask
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.storage.store import Store
from flask_procore_webhooks.testing import deliver, payload

Store.retry_seconds = 30  # as long as a slow disk may take
THREADS = int(sys.argv[1])
for folder in sys.stdin:
    app = Flask("host", instance_path=folder.strip())
    app.config.update(TESTING=True, PROCORE_WEBHOOK_SECRET="a secret")
    app.register_blueprint(ProcoreWebhooks())
    start, statuses = threading.Barrier(THREADS), []

    def race():
        client = app.test_client()
        start.wait()
        statuses.append(deliver(client, payload("RFIs.create")).status_code)

    threads = [threading.Thread(target=race) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(*statuses, flush=True)
"""


@pytest.fixture
def race() -> Iterator[Callable[[int, int, Path], list[str]]]:
    """Run processes whose threads all deliver at once to an inbox in a new folder."""
    started: list[Child] = []

    def run(processes: int, threads: int, folder: Path) -> list[str]:
        while len(started) < processes:
            racer = Child("-c", RACER, str(threads))
            started.append(racer)
            # The first race only imports the modules.
            racer.tell(str(folder / f"alone{len(started)}"))
            assert racer.line()
        for racer in started:
            racer.tell(str(folder / "race"))
        return " ".join(racer.line() for racer in started).split()

    yield run
    for racer in started:
        racer.rest()
        assert racer.process.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "threads", "rounds"), [(1, 12, 5), (4, 1, 30), (2, 4, 10)]
)
def test_new_inbox_may_be_used_first_by_many_processes(
    race: Callable[[int, int, Path], list[str]],
    tmp_path: Path,
    processes: int,
    threads: int,
    rounds: int,
) -> None:
    """All processes create the file, switch it to WAL and create tables at once."""
    for number in range(rounds):
        statuses = race(processes, threads, tmp_path / f"{number}")
        assert statuses == ["200"] * processes * threads
