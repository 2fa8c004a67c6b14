"""Forked processes and gevent: what a child or a greenlet takes over."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

GIVES_UP = """
from gevent import monkey

monkey.patch_all()

import gevent, threading
from flask_procore_webhooks.inbox.group_commit import GroupCommit

go = threading.Event()

def work(items):
    if 0 in items:
        assert go.wait(30)
    return items

grouped = Grouped(work)
first = gevent.spawn(grouped, 0)
gevent.sleep(0.1)

def impatient():
    with gevent.Timeout(0.2, False):
        grouped(1)

gave_up = [gevent.spawn(impatient) for _ in range(3)]
patient = gevent.spawn(grouped, 2)
gevent.joinall(gave_up)
go.set()
gevent.joinall([first, patient], timeout=30, raise_error=True)
assert [first.value, patient.value, grouped(3)] == [0, 2, 3]
"""


def test_nobody_counts_on_a_call_that_gave_up_waiting() -> None:
    """Under gevent, hosts put timeouts around requests."""
    command = [sys.executable, "-c", GIVES_UP]
    ended = subprocess.run(command, timeout=60, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_does_not_wait_for_the_threads_of_its_parent() -> None:
    code = """
import os, threading, sys
from flask_procore_webhooks.inbox.group_commit import GroupCommit

go, started = threading.Event(), threading.Event()
def work(items):
    if 0 in items:
        started.set()
        go.wait(30)
    return items
grouped = Grouped(work)
thread = threading.Thread(target=grouped, args=(0,))
thread.start()
started.wait(30)
child = os.fork()
if child == 0:
    os._exit(grouped(7))
_, status = os.waitpid(child, 0)
go.set()
thread.join()
sys.exit(os.waitstatus_to_exitcode(status))
"""
    # Python 3.12 warns of a fork beside threads, which is what this is about.
    command = [sys.executable, "-W", "ignore", "-c", code]
    assert subprocess.run(command, timeout=60).returncode == 7


WITHOUT_DB = "the blueprint was made without db="
FORKS = """
import logging, os, sys
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_procore_webhooks import ProcoreWebhooks

logging.basicConfig(level="WARNING", format="%(process)d %(message)s")
app = Flask("host", instance_path=sys.argv[1])
app.config.update(
    TESTING=True,
    PROCORE_WEBHOOK_SECRET="a secret of the test suite",
    SQLALCHEMY_DATABASE_URI="sqlite:///host.db",
)
SQLAlchemy(app)
app.register_blueprint(ProcoreWebhooks())
app.test_client().get("/")
child = os.fork()
app.test_client().get("/")
app.test_client().get("/")
if child:
    os.waitpid(child, 0)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_each_process_says_it_once(tmp_path: Path) -> None:
    script = [sys.executable, "-c", FORKS, str(tmp_path)]
    ended = subprocess.run(script, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    said = [line for line in ended.stderr.splitlines() if WITHOUT_DB in line]
    assert len(said) == 2
    assert len({line.split()[0] for line in said}) == 2
