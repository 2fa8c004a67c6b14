"""The background thread under real servers: forks, signals, reloads and kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from support.hosts import Host
from support.hosts import run_host
from support.inboxes import numbered
from support.inboxes import record
from support.inboxes import statuses
from support.processes import environment
from support.servers import serve
from support.servers import Server
from support.values import SECRET
from support.waiting import wait_until
from support.waiting import WHOLE_BATCHES

from flask_procore_webhooks.dispatching.background import GRACE
from flask_procore_webhooks.inbox import batches
from flask_procore_webhooks.senders.samples import to_bytes
from flask_procore_webhooks.testing import payload
from flask_procore_webhooks.testing import sign

MakeApp = Callable[..., Flask]
PATIENCE = 90.0

pytestmark = pytest.mark.slow

HOST = """
import os
import time
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_procore_webhooks import ProcoreWebhooks

db = SQLAlchemy()
webhooks = ProcoreWebhooks(db=db)


class Note(db.Model):
    id = db.Column(db.Integer, primary_key=True)
    text = db.Column(db.String(190))


@webhooks.on(name="writer")
def writer(event):
    with open("calls", "a") as calls:
        calls.write(f"{event.id}\\n")
    time.sleep(event.data.get("seconds", 0))
    # Differs in each run, so that two runs leave two notes.
    text = f"{event.id} {os.getpid()} {time.monotonic_ns()}"
    db.session.add(Note(text=text))


app = Flask(__name__)
app.config.from_prefixed_env()
db.init_app(app)
app.register_blueprint(webhooks)


@app.get("/")
def page():
    return str(os.getpid())
"""


class Site:
    """A host app in a folder, to be served, and its database."""

    def __init__(self, folder: Path, host: Host, url: str) -> None:
        self.folder = folder
        self.host = host
        self.store = host.endpoint.store
        self.env = {
            "FLASK_SQLALCHEMY_DATABASE_URI": url,
            "FLASK_PROCORE_WEBHOOK_SECRET": SECRET,
            "FLASK_PROCORE_WEBHOOK_RETRY_BASE": "0.2",
        }
        self.module = folder / "site_of_tests.py"
        self.module.write_text(HOST + WHOLE_BATCHES)

    def serve(self, server: str = "gunicorn", *options: str, **env: str) -> Any:
        return serve(
            "site_of_tests:app",
            server=server,
            folder=self.folder,
            env={**self.env, **env},
            options=options,
        )

    def record(self, id: str, **fields: Any) -> None:
        """Put an event into the inbox, as an earlier process would have."""
        record(self.store, id, **fields)

    def statuses(self) -> dict[str, str]:
        return statuses(self.store)

    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().split() if path.exists() else []

    def wait_for(self, condition: Callable[[], object], server: Server) -> None:
        wait_until(condition, PATIENCE, lambda: f"{self.statuses()}\n{server.output()}")

    def wait_until_done(self, ids: list[str], server: Server) -> None:
        def are_done() -> bool:
            found = self.statuses()
            return {found.get(id) for id in ids} == {"done"}

        self.wait_for(are_done, server)

    def check_effects(self, ids: list[str]) -> None:
        """Assert that each event has had its effect exactly once."""
        assert Counter(note.split()[0] for note in self.host.notes()) == Counter(ids)


@pytest.fixture(params=["sqlite"])
def site(
    request: pytest.FixtureRequest, make_app: MakeApp, tmp_path: Path
) -> Iterator[Site]:
    url = f"sqlite:///{tmp_path / 'host.db'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql_url")
    with run_host(make_app(), "flask_sqlalchemy", url) as host:
        yield Site(tmp_path, host, url)


on_both = pytest.mark.parametrize("site", ["sqlite", "postgresql"], indirect=True)


def get(server: Server) -> str:
    with urllib.request.urlopen(server.url, timeout=30) as answer:
        return str(answer.read().decode())


def send(server: Server, id: str, **fields: Any) -> float:
    """Deliver until accepted, as the sender does; return the last attempt's seconds."""
    body = to_bytes(payload("RFIs.update", id=id, **fields))
    url = f"{server.url}/webhooks/procore"
    deadline = time.monotonic() + PATIENCE
    while True:
        start = time.monotonic()
        request = urllib.request.Request(url, body, sign(body, SECRET))
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                assert json.load(answer)["received"]
                return time.monotonic() - start
        except (urllib.error.URLError, ConnectionError):
            assert time.monotonic() < deadline, server.output()
            time.sleep(0.1)


SERVERS = {
    "sync": ("gunicorn", "--workers=2"),
    "sync preload": ("gunicorn", "--workers=2", "--preload"),
    "gthread": ("gunicorn", "--workers=2", "--threads=4"),
    "gthread preload": ("gunicorn", "--workers=2", "--threads=4", "--preload"),
    "gevent": ("gunicorn", "--workers=2", "--worker-class=gevent"),
    "waitress": ("waitress",),
    "flask": ("flask",),
}


ON_POSTGRESQL = ("sync", "sync preload", "gevent")
#: The combinations tested each time; the soak run tests the remaining ones.
EVERYDAY = (("sqlite", "sync preload"), ("sqlite", "flask"), ("postgresql", "gevent"))
RUNS = [("sqlite", name) for name in SERVERS]
RUNS += [("postgresql", name) for name in ON_POSTGRESQL]
RUNS = [
    pytest.param(*run, marks=() if run in EVERYDAY else pytest.mark.soak)
    for run in RUNS
]


@pytest.mark.parametrize(("site", "name"), RUNS, indirect=["site"])
def test_every_event_is_done_and_has_its_effect_once(site: Site, name: str) -> None:
    left, delivered = ["evt_left", "evt_claimed"], numbered(20)
    for id in reversed(left):
        site.record(id)
    # An earlier process was killed while it held one claim.
    (claim,) = batches.claim_due(site.store, 1, 1)
    assert claim.event_id == "evt_claimed"

    with site.serve(*SERVERS[name]) as running:
        get(running)
        site.wait_until_done(left, running)

        send(running, "evt_slow", seconds=1.5)
        assert site.statuses()["evt_slow"] in ("pending", "running")

        with ThreadPoolExecutor(4) as pool:
            for each in [pool.submit(send, running, id) for id in delivered * 2]:
                each.result()
        site.wait_until_done([*delivered, "evt_slow"], running)
    site.check_effects([*left, *delivered, "evt_slow"])


# Shutdown


def end(server: Server, signal_: int = signal.SIGTERM) -> float:
    """Terminate the server; return the seconds until its exit."""
    start = time.monotonic()
    server.send(signal_)
    server.exit_code(PATIENCE)
    return time.monotonic() - start


def stalled_batch(site: Site, server: Server, seconds: float) -> None:
    """Wait until the thread runs a slow event and holds claims of others.

    Each batch is twice as large as the batch before: 1, 2, 4, 8.
    """
    for id in numbered(30):
        fast = int(id[-3:]) < 7
        site.record(id, seconds=0 if fast else seconds)
    get(server)
    fast = set(numbered(7))
    site.wait_for(lambda: set(site.calls()) - fast, server)
    assert list(site.statuses().values()).count("running") > 1


ENDS = {
    "sync": (signal.SIGTERM, "gunicorn"),
    "sync, at once": (signal.SIGQUIT, "gunicorn"),
    "gthread": (signal.SIGTERM, "gunicorn", "--threads=2"),
    "gevent": (signal.SIGTERM, "gunicorn", "--worker-class=gevent"),
    "waitress": (signal.SIGINT, "waitress"),
    "flask": (signal.SIGINT, "flask"),
}


@pytest.mark.serial
@pytest.mark.parametrize(
    "signal_and_server",
    [
        pytest.param(end, id=id, marks=() if id == "sync" else pytest.mark.soak)
        for id, end in ENDS.items()
    ],
)
def test_ending_process_releases_queued_events(
    site: Site, signal_and_server: tuple[Any, ...]
) -> None:
    signal_, *server = signal_and_server
    with site.serve(*server) as running:
        stalled_batch(site, running, seconds=1.5)
        end(running, signal_)
    found = site.statuses()
    assert set(found.values()) == {"done", "pending"}, running.output()
    # The started run was finished, with its effect.
    done = [id for id, status in found.items() if status == "done"]
    assert sorted(set(site.calls())) == sorted(done)
    site.check_effects(done)


@pytest.mark.soak
@pytest.mark.parametrize("name", ["sync", "gevent"])
def test_run_that_exceeds_the_grace_is_released(site: Site, name: str) -> None:
    signal_, *server = ENDS[name]
    # Other threads would run the events behind the slow one, whose claims it releases.
    one_thread = {"FLASK_PROCORE_WEBHOOK_THREADS": "1"}
    with site.serve(*server, **one_thread) as running:
        stalled_batch(site, running, seconds=600)
        took = end(running, signal_)
    found = site.statuses()
    assert set(found.values()) == {"done", "pending"}, running.output()
    assert took > GRACE
    interrupted = [id for id in site.calls() if found[id] == "pending"]
    assert len(interrupted) == 1
    site.check_effects([id for id in site.calls() if id not in interrupted])


@pytest.mark.serial
@on_both
def test_run_of_a_killed_worker_is_repeated_by_the_next(site: Site) -> None:
    lease = {"FLASK_PROCORE_WEBHOOK_LEASE": "2"}
    ids = ["evt_slow", *numbered(5)]
    with site.serve("gunicorn", **lease) as running:
        worker = int(get(running))
        # The run takes longer than its lease, which is renewed.
        send(running, "evt_slow", seconds=4)
        for id in ids[1:]:
            send(running, id)
        site.wait_for(site.calls, running)
        os.kill(worker, signal.SIGKILL)
        # gunicorn starts another worker, which gets only requests of a page.
        site.wait_for(lambda: _answers(running) not in (None, str(worker)), running)
        site.wait_until_done(ids, running)
    assert site.calls().count("evt_slow") == 2
    site.check_effects(ids)


def _answers(server: Server) -> str | None:
    try:
        return get(server)
    except (OSError, urllib.error.URLError):
        return None


def test_reloaded_server_continues_pending_events(site: Site) -> None:
    ids = numbered(30)
    with site.serve("flask", "--reload") as running:
        stalled_batch(site, running, seconds=1)
        before = get(running)
        slow = 'event.data.get("seconds", 0)'
        site.module.write_text(HOST.replace(slow, "0") + WHOLE_BATCHES)
        site.wait_for(lambda: _answers(running) not in (None, before), running)
        site.wait_until_done(ids, running)
    site.check_effects(ids)


# Forks


@pytest.mark.parametrize("site", ["postgresql"], indirect=True)
def test_connections_made_before_a_fork_are_not_shared(site: Site) -> None:
    """Such as the connection of db.create_all() in an app factory."""
    made = "with app.app_context():\n    db.create_all()\n"
    site.module.write_text(HOST + made)
    ids = numbered(200)
    no_thread = {"FLASK_PROCORE_WEBHOOK_DISPATCH": "worker"}
    with site.serve("gunicorn", "--workers=4", "--preload", **no_thread) as it:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(partial(send, it), ids))
        assert "answered 503" not in it.output()
    assert sorted(site.statuses()) == ids


# Forks of a process with a background thread


FORKS = """
import faulthandler, os, signal, sys, threading, time
import sqlalchemy as sa
from flask import Flask
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.testing import deliver, payload
from support.inboxes import are_done
from support.waiting import wait_until

folder, url = sys.argv[1:]
app = Flask("host", instance_path=folder)
app.config.update(
    PROCORE_WEBHOOK_SECRET="a secret of the test suite",
    PROCORE_WEBHOOK_DATABASE_URI=url,
    PROCORE_WEBHOOK_RETRY_BASE=0.1,
    PROCORE_WEBHOOK_THREADS=1,
)
webhooks = ProcoreWebhooks()
app.register_blueprint(webhooks)
(endpoint,) = endpoints(app).values()

@webhooks.on(name="writer")
def writer(event):
    with open(os.path.join(folder, "calls"), "a") as calls:
        print(event.id, os.getpid(), file=calls)
    time.sleep(0.005)

def threads():
    return [t for t in threading.enumerate() if t.name == "procore webhooks"]

def send(id):
    sent = payload("RFIs.update", id=id)
    while deliver(app.test_client(), sent).status_code != 200:
        time.sleep(0.05)

def wait_until_idle():
    before = -1
    pool = endpoint.store.database.engine.pool
    while before != len(statements) or pool.checkedout():
        before = len(statements)
        time.sleep(0.4)

ids = set()
statements = []
sa.event.listen(
    endpoint.store.database.engine,
    "before_cursor_execute",
    lambda *_: statements.append(1),
)
for fork in range(FORKS):
    for number in range(5):
        ids.add(f"evt_{fork}_{number}")
        send(f"evt_{fork}_{number}")
    assert len(threads()) == 1
    if url.startswith("sqlite"):
        # A lock on the file that is held now would be held in the child for ever:
        # SQLite takes it for one of its own process.
        wait_until_idle()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        faulthandler.dump_traceback_later(50)
        try:
            assert not threads()
            app.test_client().get("/")
            assert len(threads()) == 1
            send(f"evt_{fork}_child")
            wait_until(lambda: are_done(endpoint.store, f"evt_{fork}_child"))
            # As the end of a process does, which a child by fork has to do itself.
            from flask_procore_webhooks.dispatching.background import stop_all
            stop_all()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child of fork {fork} ended with {status}"
    ids.add(f"evt_{fork}_child")
wait_until(lambda: are_done(endpoint.store, *ids))
assert len(threads()) == 1
"""


@on_both
def test_forked_child_starts_its_own_thread(site: Site, tmp_path: Path) -> None:
    url = site.env["FLASK_SQLALCHEMY_DATABASE_URI"]
    # With its own engine: a host's engine is disposed of by the host.
    forks = 4
    script = FORKS.replace("FORKS", str(forks))
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(tmp_path), url],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    assert set(site.statuses().values()) == {"done"}
    calls = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
    assert {id for id, _ in calls} == set(site.statuses())
    of_children = [pid for id, pid in calls if id.endswith("child")]
    assert len(site.statuses()) == forks * 6
    assert of_children
