"""A night on which other systems were down, and the morning of the operator.

The operator has only the commands. Each runs as a process of its own, beside a worker.
"""

from __future__ import annotations

import json
import re
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextlib import closing
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.commands import ME
from support.processes import environment
from support.processes import Process
from support.processes import running
from support.values import SECRET
from support.waiting import wait_until

APP = """
import time
from pathlib import Path

from flask import Flask
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.operations import seen

seen.SEEN_EVERY = 0.5  # of the notes that stats reads
webhooks = ProcoreWebhooks()
app = Flask(__name__)
app.config.from_prefixed_env()
app.register_blueprint(webhooks)


def is_down(system):
    return Path(app.root_path, f"{system} is down").exists()


@webhooks.on(name="erp")
def book(event):
    number = int(event.resource_id)
    if is_down("erp"):
        raise [
            ConnectionError(f"erp-{number}.example.com refused port 8443"),
            TimeoutError(f"no answer within 30.{number} s"),
            RuntimeError(f"503 for 'orders/{number}'"),
        ][number % 3]


@webhooks.on("Submittals", name="search")
def index(event):
    number = int(event.resource_id)
    if is_down("erp") and number % 4 == 1:
        raise LookupError(f"document {number} is not in the ERP")
    while Path(app.root_path, "search is slow").exists():
        time.sleep(0.02)


@webhooks.on("RFIs", name="mail")
def notify(event):
    number = int(event.resource_id)
    if is_down("mail") and number % 10 == 0:
        raise PermissionError(f"mail {number} refused: certificate has expired")
"""
#: Delivers events whose resource ids are the numbers from FIRST to LAST.
SENDER = """
import sys
from app import app
from flask_procore_webhooks.testing import deliver, payload

for number in range(*map(int, sys.argv[1:])):
    type = "Submittals.update" if number % 2 else "RFIs.update"
    event = payload(type, format="v4", id=f"night-{number}", resource_id=str(number))
    assert deliver(app.test_client(), event).status_code == 200
"""
CONFIG = {
    "FLASK_APP": "app",
    "FLASK_PROCORE_WEBHOOK_SECRET": SECRET,
    "FLASK_PROCORE_WEBHOOK_DISPATCH": "worker",
    "FLASK_PROCORE_WEBHOOK_MAX_ATTEMPTS": "1",
}
GOOD, BAD = 40, 500
#: Dead jobs of the night, by subscriber and class of the error.
DEAD = {
    ("erp", "ConnectionError"): 167,
    ("erp", "TimeoutError"): 167,
    ("erp", "RuntimeError"): 166,
    ("search", "LookupError"): 125,
    ("mail", "PermissionError"): 50,
}


@dataclass
class Operator:
    """Runs commands in the folder of the app, as in a shell on the host."""

    folder: Path
    env: dict[str, str]

    def flask(self, line: str, exit_code: int = 0) -> str:
        """Run ``flask procore-webhooks`` with these arguments; return its output."""
        ran = self.python("-m", "flask", "procore-webhooks", *shlex.split(line))
        assert ran.returncode == exit_code, f"{line}\n{ran.stdout}{ran.stderr}"
        return ran.stdout

    def watch(self, batch: str, exit_code: int = 0) -> str:
        """Wait for the end of the batch; return the report."""
        return self.flask(f"progress {batch} --watch --timeout 60", exit_code)

    def json(self, line: str, exit_code: int = 0) -> Any:
        return json.loads(self.flask(f"{line} --json", exit_code))

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
        )

    def deliver(self, first: int, last: int) -> None:
        ran = self.python("sender.py", str(first), str(last))
        assert ran.returncode == 0, ran.stderr

    def is_down(self, system: str) -> Path:
        return self.folder / f"{system} is down"

    def counts(self) -> dict[str, int]:
        """How many events have each status."""
        file = self.folder / "instance" / "procore_webhooks.db"
        look = "SELECT status, count(*) FROM procore_webhook_event GROUP BY status"
        with closing(sqlite3.connect(file)) as connection:
            return dict(connection.execute(look).fetchall())

    def worker(self) -> AbstractContextManager[Process]:
        command = ["-m", "flask", "procore-webhooks", "worker"]
        command += ["--concurrency", "2", "--poll", "0.1"]
        return running([sys.executable, *command], folder=self.folder, env=self.env)


@contextmanager
def night(folder: Path) -> Iterator[tuple[Operator, Process]]:
    """40 events that succeed in the evening, and 500 that die at night."""
    (folder / "app.py").write_text(APP)
    (folder / "sender.py").write_text(SENDER)
    operator = Operator(folder, environment(CONFIG))
    with operator.worker() as worker:
        operator.deliver(BAD, BAD + GOOD)
        wait_until(lambda: operator.counts() == {"done": GOOD}, 60, worker.output)
        operator.is_down("erp").touch()
        operator.is_down("mail").touch()
        operator.deliver(0, BAD)
        dead = {"done": GOOD, "dead": BAD}
        wait_until(lambda: operator.counts() == dead, 60, worker.output)
        yield operator, worker


@pytest.mark.soak
@pytest.mark.slow
def test_the_morning_after_a_night_of_500_dead_events(tmp_path: Path) -> None:
    with night(tmp_path) as (operator, worker):
        # The monitor has called.
        operator.flask("stats --fail-if 'dead>0'", exit_code=2)
        what_happened(operator)
        try_one(operator)
        replay_one_incident(operator)
        replay_the_rest(operator)
        is_somebody_working(operator, worker)
        operator.flask("stats --fail-if 'dead>0'")


def what_happened(operator: Operator) -> None:
    """The incidents, when each began, and one failure in full."""
    incidents = operator.json("errors")
    counts = {(i["subscriber"], i["error_class"]): i["count"] for i in incidents}
    assert counts == DEAD
    (refused,) = [i for i in incidents if i["error_class"] == "ConnectionError"]
    assert refused["message"] == "erp-#.example.com refused port #"
    assert refused["types"] == ["RFIs.update", "Submittals.update"]
    assert refused["first_seen"] < refused["last_seen"]
    shown = operator.flask("errors")
    assert all(each["message"] in shown for each in incidents)
    assert "5 of 5 groups, 675 jobs" in shown

    shown = operator.flask("list --status dead --died-since -8h")
    assert "20 of 500, newest first" in shown
    assert "erp: TimeoutError: no answer within 30.499 s" in shown
    shown = operator.flask("show night-3 --traceback")
    assert re.search(r"^job +erp dead, attempts: 1$", shown, re.MULTILINE)
    assert re.search(r"^job +search done, attempts: 1$", shown, re.MULTILINE)
    assert "Traceback (most recent call last)" in shown
    assert "ConnectionError: erp-3.example.com refused port 8443" in shown


def try_one(operator: Operator) -> None:
    """The ERP answers again: one event shows whether that is enough."""
    operator.is_down("erp").unlink()
    shown = operator.flask("replay night-3")
    assert "1 job of 1 subscriber; 1 finished already: left out" in shown
    assert "all 1 accounted for: 1 done" in operator.watch(batch_in(shown))
    shown = operator.flask("show night-3")
    assert re.search(r"^status +done$", shown, re.MULTILINE)
    former = "before: erp, dead, attempts: 1: ConnectionError: erp-3.example.com"
    assert f"replay by {ME}" in shown and former in shown


def replay_one_incident(operator: Operator) -> None:
    """A preview, a rate, a batch, and a report that accounts for each job."""
    chosen = "replay --subscriber erp --error ConnectionError --died-since -8h"
    preview = "166 events, 166 jobs of 1 subscriber"
    assert preview in operator.flask(f"{chosen} --dry-run")
    assert operator.counts()["dead"] == BAD - 1
    shown = operator.flask(f"{chosen} --yes --rate 200/s")
    assert f"replayed {preview}" in shown
    assert "all 166 accounted for: 166 done" in operator.watch(batch_in(shown))
    left = {each["error_class"] for each in operator.json("errors")}
    assert left == {name for _, name in DEAD} - {"ConnectionError"}


def replay_the_rest(operator: Operator) -> None:
    """The mail server is still down: its jobs fail again, and the report says so."""
    shown = operator.flask("replay --died-since -8h --yes")
    assert "391 events, 508 jobs of 3 subscribers" in shown
    report = operator.watch(batch_in(shown), exit_code=2)
    assert "all 508 accounted for: 458 done, 50 dead again" in report
    assert [each["subscriber"] for each in operator.json("errors")] == ["mail"]

    operator.is_down("mail").unlink()
    shown = operator.flask("replay --subscriber mail --yes")
    assert "all 50 accounted for: 50 done" in operator.watch(batch_in(shown))
    assert operator.json("errors") == []
    assert operator.counts() == {"done": GOOD + BAD}
    entries = operator.json("journal")
    assert {(each["action"], each["actor"]) for each in entries} == {("replay", ME)}
    counts = [(each["expected"], each["actual"]) for each in entries]
    assert counts == [(50, 50), (508, 508), (166, 166), (1, 1)]


def is_somebody_working(operator: Operator, worker: Process) -> None:
    """The processes seen, the longest run, the pause, and what waits for its end."""
    slow = operator.folder / "search is slow"
    slow.touch()
    operator.deliver(1001, 1002)
    wait_until(lambda: operator.counts().get("running"))
    wait_until(lambda: "longest run: search" in operator.flask("stats"))
    operator.flask("stats --fail-if 'longest>0'", exit_code=2)
    slow.unlink()

    operator.flask("pause")
    operator.deliver(1002, 1003)
    shown = operator.flask("stats")
    assert f":{worker.pid}, 2 threads" in shown
    assert f"no event runs until resume (by {ME} since" in shown
    assert "night-1002" in operator.flask("list --status pending")
    operator.flask("stats --fail-if 'oldest>0'", exit_code=2)
    operator.flask("resume")
    wait_until(lambda: operator.counts() == {"done": GOOD + BAD + 2})


def batch_in(output: str) -> str:
    (batch,) = re.findall(r"^Batch (\w+)", output, re.MULTILINE)
    return str(batch)
