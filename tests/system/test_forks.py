"""Forked processes and gevent: state shared with a parent or other greenlets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

GIVES_UP = """
from gevent import monkey

monkey.patch_all()

import gevent, threading
from flask_procore_webhooks.storage.writer import Writer

go = threading.Event()

def work(items):
    if 0 in items:
        assert go.wait(30)
    return items

commit = Writer(work)
first = gevent.spawn(commit, 0)
gevent.sleep(0.1)

def impatient():
    with gevent.Timeout(0.2, False):
        commit(1)

gave_up = [gevent.spawn(impatient) for _ in range(3)]
patient = gevent.spawn(commit, 2)
gevent.joinall(gave_up)
go.set()
gevent.joinall([first, patient], timeout=30, raise_error=True)
assert [first.value, patient.value, commit(3)] == [0, 2, 3]
"""


def test_cancelled_call_does_not_block_the_batch() -> None:
    """Under gevent, hosts put timeouts around requests."""
    command = [sys.executable, "-c", GIVES_UP]
    ended = subprocess.run(command, timeout=60, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


#: A child is forked while a thread of its parent commits a delivery and holds locks.
MID_COMMIT = """
import os, sys, threading
from flask import Flask
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.inbox.record import Recorder
from flask_procore_webhooks.testing import deliver, payload

app = Flask("host", instance_path=sys.argv[1])
app.config.update(PROCORE_WEBHOOK_SECRET="a secret", PROCORE_WEBHOOK_DISPATCH="worker")
app.register_blueprint(ProcoreWebhooks())
(endpoint,) = endpoints(app).values()

def send():
    return deliver(app.test_client(), payload("RFIs.create")).status_code

assert send() == 200
commit = endpoint.store.database.parts[Recorder].insert
work, go, started = commit._work, threading.Event(), threading.Event()

def hang(items):
    started.set()
    go.wait(30)
    return work(items)

commit._work = hang
answers = []
thread = threading.Thread(target=lambda: answers.append(send()))
thread.start()
started.wait(30)
child = os.fork()
if child == 0:
    os._exit(7 if send() == 200 else 1)
_, status = os.waitpid(child, 0)
go.set()
thread.join()
assert answers == [200]
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_does_not_wait_for_the_batch_of_its_parent(tmp_path: Path) -> None:
    # Python 3.12 warns of a fork beside threads, which this script needs.
    command = [sys.executable, "-W", "ignore", "-c", MID_COMMIT, str(tmp_path)]
    ended = subprocess.run(command, timeout=60, capture_output=True, text=True)
    assert ended.returncode == 7, ended.stderr


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
def test_each_process_warns_once(tmp_path: Path) -> None:
    script = [sys.executable, "-c", FORKS, str(tmp_path)]
    ended = subprocess.run(script, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    logged = [line for line in ended.stderr.splitlines() if WITHOUT_DB in line]
    assert len(logged) == 2
    assert len({line.split()[0] for line in logged}) == 2


#: A child of a process with connections in the host's pool replaces the pool.
HOST_POOLS = """
import json, os, sys
from flask import Flask
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.testing import deliver, payload
import sqlalchemy as sa
from sqlalchemy.orm import scoped_session, sessionmaker

# By name: a connection of an earlier test may not have ended yet.
url = sa.make_url(sys.argv[1]).update_query_dict({"application_name": "pools"})
engine = sa.create_engine(url)
session = scoped_session(sessionmaker(engine))
metadata = sa.MetaData()

def fails():
    raise RuntimeError("a session that cannot be made")

apps = []
for number in range(3):
    app = Flask(f"host{number}")
    app.config["PROCORE_WEBHOOK_SECRET"] = "a secret"
    app.config["PROCORE_WEBHOOK_DISPATCH"] = "worker"
    broken = ProcoreWebhooks(
        "broken", metadata=sa.MetaData(), session=fails, url_prefix="/broken"
    )
    app.register_blueprint(broken)
    app.register_blueprint(ProcoreWebhooks(metadata=metadata, session=session))
    apps.append(app)
metadata.create_all(engine)
BACKEND = sa.text("SELECT pg_backend_pid()")
COUNT = sa.text(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND application_name = 'pools'"
)
with engine.connect() as connection:
    parent = connection.scalar(BACKEND)
if os.fork() == 0:
    for app in apps:
        sent = payload("RFIs.update")
        answer = deliver(app.test_client(), sent, endpoint="procore_webhooks")
        assert answer.status_code == 200
    with engine.connect() as connection:
        child, count = connection.scalar(BACKEND), connection.scalar(COUNT)
    print(json.dumps([parent, child, count]), flush=True)
    os._exit(0)
os.wait()
with engine.connect() as connection:
    assert connection.scalar(BACKEND) == parent, "its connection still works"
"""


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_pool_of_the_host_is_replaced_once_in_a_child(database_url: str) -> None:
    """Several apps share the engine, and another endpoint's engine cannot be found."""
    command = [sys.executable, "-c", HOST_POOLS, database_url]
    ended = subprocess.run(command, timeout=60, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    parent, child, count = json.loads(ended.stdout)
    assert child != parent
    assert count == 2, "one connection of each process"


IN_MEMORY = """
import os
from flask import Flask
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.testing import deliver, payload

app = Flask("host")
app.config.update(
    PROCORE_WEBHOOK_SECRET="s" * 20,
    PROCORE_WEBHOOK_DISPATCH="worker",
    PROCORE_WEBHOOK_DATABASE_URI="sqlite://",
)
app.register_blueprint(ProcoreWebhooks())
sent = payload("RFIs.update")
assert deliver(app.test_client(), sent).get_json() == {"received": True}
if os.fork() == 0:
    print(deliver(app.test_client(), sent).get_json(), flush=True)
    os._exit(0)
os.wait()
"""


def test_child_keeps_its_copy_of_a_database_in_memory() -> None:
    command = [sys.executable, "-c", IN_MEMORY]
    ended = subprocess.run(command, timeout=60, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "{'received': True, 'duplicate': True}\n"
