"""uWSGI, which forks in C without calling Python's fork hooks."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request
from urllib.request import urlopen

import pytest
import sqlalchemy as sa
from support.processes import environment
from support.processes import start
from support.servers import command
from support.servers import free_port
from support.servers import Server
from support.servers import wait_for
from support.values import SECRET
from support.waiting import wait_until

from flask_procore_webhooks.testing import payload
from flask_procore_webhooks.testing import sign

SENDERS = 8
DELIVERIES = 240

#: Connections are made before the fork: by create_all(), and by a query.
APP = f"""
import os
from flask import Flask
from flask_procore_webhooks import ProcoreWebhooks
from flask_sqlalchemy import SQLAlchemy

db = SQLAlchemy()
webhooks = ProcoreWebhooks(db=db)


class Effect(db.Model):
    id = db.Column(db.Integer, primary_key=True)
    event = db.Column(db.String(80), nullable=False)
    pid = db.Column(db.Integer, nullable=False)


@webhooks.on("RFIs")
def sync(event):
    db.session.add(Effect(event=event.id, pid=os.getpid()))


app = Flask(__name__)
app.config.update(
    SQLALCHEMY_DATABASE_URI=os.environ["DATABASE"], PROCORE_WEBHOOK_SECRET={SECRET!r}
)
db.init_app(app)
app.register_blueprint(webhooks)
with app.app_context():
    db.create_all()
    assert db.session.query(Effect).count() == 0
"""


@contextmanager
def uwsgi(folder: Path, url: str, *options: str) -> Iterator[Server]:
    (folder / "app.py").write_text(APP)
    port = free_port()
    workers = ("--master", "--processes", "4", *options)
    env = environment({"DATABASE": url})
    started = start(command("uwsgi", "app:app", port, workers), folder=folder, env=env)
    server = Server(started.process, started.log, port)
    try:
        wait_for(server)
        yield server
    finally:
        server.end()


def post(server: Server, body: bytes) -> int:
    headers = {**sign(body, SECRET), "Content-Type": "application/json"}
    request = Request(f"{server.url}/webhooks/procore", body, headers)
    try:
        with urlopen(request, timeout=30) as response:
            return int(response.status)
    except HTTPError as error:
        with error:
            return error.code


@pytest.mark.seldom("mariadb")
@pytest.mark.serial  # A SQLite file has one writer at a time, on a busy machine too.
@pytest.mark.slow
def test_no_connection_of_the_parent_is_used_by_a_child(
    tmp_path: Path, database_url: str
) -> None:
    """Each delivery answered 200 has its row and one effect."""
    ids = [f"evt_{number:04}" for number in range(DELIVERIES)]
    bodies = [json.dumps(payload("RFIs.update", id=id)).encode() for id in ids]
    engine = sa.create_engine(database_url)
    try:
        with uwsgi(tmp_path, database_url) as server:
            with ThreadPoolExecutor(SENDERS) as pool:
                answers = list(pool.map(lambda body: post(server, body), bodies))
            assert Counter(answers) == {200: DELIVERIES}, server.output()

            def effects() -> dict[str, int]:
                with engine.connect() as connection:
                    look = sa.text("SELECT event, count(*) FROM effect GROUP BY event")
                    return {key: count for key, count in connection.execute(look)}

            wait_until(lambda: set(effects()) == set(ids), report=server.output)
            wait_until(lambda: statuses(engine) == {"done": DELIVERIES})
            assert effects() == dict.fromkeys(ids, 1)
            with engine.connect() as connection:
                pids = connection.scalar(
                    sa.text("SELECT count(DISTINCT pid) FROM effect")
                )
            assert pids > 1, "more than one process has run events"
            assert "Traceback" not in server.output()
    finally:
        engine.dispose()


def statuses(engine: sa.Engine) -> dict[str, int]:
    look = sa.text("SELECT status, count(*) FROM procore_webhook_event GROUP BY status")
    with engine.connect() as connection:
        return {key: count for key, count in connection.execute(look)}
