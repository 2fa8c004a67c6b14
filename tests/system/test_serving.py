"""The background thread starts when a server begins to serve, without a request."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from flask import Flask
from support.inboxes import record
from support.inboxes import statuses
from support.processes import environment
from support.processes import start
from support.servers import serve
from support.values import SECRET
from support.waiting import wait_until

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.storage.store import Store

pytestmark = pytest.mark.slow

#: The subscriber is defined some time after the registration, as in a large app.
APP = f"""
import os
import sys
import time
from flask import Flask
from flask_procore_webhooks import ProcoreWebhooks

app = Flask(__name__, instance_path=os.getcwd())
app.config["PROCORE_WEBHOOK_SECRET"] = {SECRET!r}
app.config["PROCORE_WEBHOOK_DISPATCH"] = "background"
webhooks = ProcoreWebhooks()
app.register_blueprint(webhooks)
time.sleep(1)


@webhooks.on()
def late(event):
    with open("calls", "a") as calls:
        calls.write(f"{{event.id}}\\n")


def create_app():
    return app


if __name__ == "__main__" and len(sys.argv) > 1:
    SERVE
"""
#: How each server is started: its name, its options, and the app.
SERVERS = {
    "gunicorn": ("gunicorn", (), "site:app"),
    "gunicorn threads": ("gunicorn", ("--threads", "4", "-w", "2"), "site:app"),
    "gunicorn factory": ("gunicorn", (), "site:create_app()"),
    "gunicorn preload": ("gunicorn", ("--preload", "-w", "2"), "site:app"),
    "gunicorn gevent": ("gunicorn", ("-k", "gevent"), "site:app"),
    "waitress": ("waitress", (), "site:app"),
    "granian": ("granian", (), "site:app"),
    "granian workers": ("granian", ("--workers", "2"), "site:app"),
    "hypercorn": ("hypercorn", (), "site:app"),
    "hypercorn workers": ("hypercorn", ("--workers", "2"), "site:app"),
    "uvicorn": ("uvicorn", ("--interface", "wsgi"), "site:app"),
    "uwsgi": ("uwsgi", (), "site:app"),
    "uwsgi master": ("uwsgi", ("--master", "--processes", "2"), "site:app"),
    "uwsgi lazy": ("uwsgi", ("--master", "--lazy-apps"), "site:app"),
    "flask run": ("flask", (), "site:app"),
    "flask run with reloader": ("flask", ("--debug",), "site:app"),
    "app.run": ("script", ("site.py",), "app.run(port=int(sys.argv[1]))"),
    "waitress.serve": (
        "script",
        ("site.py",),
        "import waitress; waitress.serve(app, port=int(sys.argv[1]))",
    ),
}


@pytest.fixture
def store(make_app: Callable[..., Flask], tmp_path: Path) -> Store:
    """The inbox of the served app, with one event that an earlier process has left."""
    url = f"sqlite:///{tmp_path / 'procore_webhooks.db'}"
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI=url)
    app.register_blueprint(ProcoreWebhooks())
    (endpoint,) = endpoints(app).values()
    record(endpoint.store, "evt_left")
    return endpoint.store


def write_app(folder: Path, serve: str = "pass") -> None:
    # Not "site", which is a module of Python's own.
    (folder / "served.py").write_text(APP.replace("SERVE", serve))


@pytest.mark.parametrize("name", SERVERS)
def test_events_that_were_left_run_without_a_request(
    store: Store, tmp_path: Path, name: str
) -> None:
    server, options, app = SERVERS[name]
    is_script = server == "script"
    write_app(tmp_path, app if is_script else "pass")
    options = tuple(each.replace("site.py", "served.py") for each in options)
    with serve(
        app.replace("site", "served"),
        server=server,
        folder=tmp_path,
        env=environment(path=[tmp_path]),
        options=options,
    ) as running:
        wait_until(lambda: statuses(store) == {"evt_left": "done"}, 30, running.output)
        assert (tmp_path / "calls").read_text() == "evt_left\n", running.output()
        assert "gives no sign" not in running.output()


HOOK = """
def post_worker_init(worker):
    from served import app, webhooks

    webhooks.start(app)
"""


def test_a_hook_of_the_server_starts_the_thread(store: Store, tmp_path: Path) -> None:
    write_app(tmp_path)
    (tmp_path / "gunicorn.conf.py").write_text(HOOK)
    env, options = environment(path=[tmp_path]), ("--preload", "-k", "gevent")
    with serve("served:app", folder=tmp_path, env=env, options=options) as running:
        wait_until(lambda: statuses(store) == {"evt_left": "done"}, 30, running.output)


def test_first_request_starts_the_thread_and_names_a_server_without_a_sign(
    store: Store, tmp_path: Path
) -> None:
    write_app(tmp_path)
    env, options = environment(path=[tmp_path]), ("--preload", "-k", "gevent")
    with serve("served:app", folder=tmp_path, env=env, options=options) as running:
        with pytest.raises(HTTPError):
            urlopen(f"{running.url}/nowhere", timeout=10)
        wait_until(lambda: statuses(store) == {"evt_left": "done"}, 30, running.output)
        assert "gunicorn" in running.output()
        assert "gives no sign when it begins to serve" in running.output()


PREFORK = """
import os, time, served
child = os.fork()
time.sleep(1)
if child == 0:
    os._exit(0)
os.waitpid(child, 0)
"""
COMMANDS = {
    "import": [sys.executable, "-c", "import served, time; time.sleep(1)"],
    "script": [sys.executable, "script.py"],
    "routes": [sys.executable, "-m", "flask", "--app", "served", "routes"],
    "stats": [
        *(sys.executable, "-m", "flask", "--app", "served"),
        *("procore-webhooks", "stats"),
    ],
    "shell": [sys.executable, "-m", "flask", "--app", "served", "shell"],
    "test": [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "t.py"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_runs_where_no_request_is_served(
    store: Store, tmp_path: Path, name: str
) -> None:
    write_app(tmp_path)
    (tmp_path / "script.py").write_text(PREFORK)
    test = "import served, time\ndef test_it():\n    time.sleep(1)\n"
    (tmp_path / "t.py").write_text(test)
    started = start(COMMANDS[name], folder=tmp_path, env=environment(path=[tmp_path]))
    try:
        assert started.exit_code() == 0, started.output()
    finally:
        started.end()
    assert statuses(store) == {"evt_left": "pending"}
    assert not (tmp_path / "calls").exists()


FORKING = """
import multiprocessing
import time

from served import app


@app.get("/fork")
def fork():
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(2,))
    child.start()
    child.join()
    return "joined"
"""


def test_process_that_a_request_forks_runs_no_event(
    store: Store, tmp_path: Path
) -> None:
    write_app(tmp_path)
    late = "        calls.write(f"
    text = (tmp_path / "served.py").read_text()
    assert late in text
    # Each line of the calls has the process that wrote it.
    text = text.replace("{event.id}", "{event.id} {os.getpid()}")
    text = text.replace("def late(event):", "def late(event):\n    time.sleep(1)")
    (tmp_path / "served.py").write_text(text)
    (tmp_path / "forking.py").write_text(FORKING)
    env, options = environment(path=[tmp_path]), ("--preload", "-k", "sync")
    with serve("forking:app", folder=tmp_path, env=env, options=options) as running:
        wait_until(lambda: statuses(store) == {"evt_left": "done"}, 30, running.output)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(urlopen, f"{running.url}/fork", timeout=30)
            ids = [f"evt_{number}" for number in range(8)]
            record(store, *ids)
            answer.result().close()
            record(store, "evt_last")
            # Wakes the worker's thread.
            urlopen(f"{running.url}/fork", timeout=30).close()
        wait_until(
            lambda: set(statuses(store).values()) == {"done"}, 60, running.output
        )
        calls = (tmp_path / "calls").read_text().splitlines()
    assert len({line.split()[1] for line in calls}) == 1, calls


MANY_APPS = """
import threading
import unittest

from flask import Flask
from flask_procore_webhooks import ProcoreWebhooks

webhooks = ProcoreWebhooks()


class TestApps(unittest.TestCase):
    def test_many_apps(self):
        for _ in range(50):
            app = Flask(__name__)
            app.config["PROCORE_WEBHOOK_AUTHORIZATION"] = "Bearer gBJ5Zk0fTq"
            app.register_blueprint(webhooks)
        self.assertEqual(threading.active_count(), THREADS)


if __name__ == "__main__":
    unittest.main()
"""


@pytest.mark.parametrize("arguments", [["-m", "unittest", "many"], ["many.py"]])
def test_many_apps_have_one_thread_at_most(
    tmp_path: Path, arguments: list[str]
) -> None:
    """None under unittest; a script may serve later, and one thread waits for that."""
    threads = 2 if arguments == ["many.py"] else 1
    (tmp_path / "many.py").write_text(MANY_APPS.replace("THREADS", str(threads)))
    started = start(
        [sys.executable, *arguments], folder=tmp_path, env=environment(path=[tmp_path])
    )
    try:
        assert started.exit_code() == 0, started.output()
    finally:
        started.end()
