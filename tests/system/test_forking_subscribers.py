"""A subscriber that forks: the child exits when it returns into the package."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import sqlalchemy as sa
from support.processes import environment

#: Ways for the child to leave the subscriber, each with its exit code.
ENDS = {"return": 0, "sys.exit(3)": 3, "raise ValueError('child')": 1}

SCRIPT = """
import json, os, sys
from flask import Flask
from flask_procore_webhooks import event_processed, ProcoreWebhooks
from flask_procore_webhooks.testing import deliver, drain, payload
from flask_sqlalchemy import SQLAlchemy

url, dispatch, kind = json.loads(sys.argv[1])
app = Flask("host")
app.config.update(
    SQLALCHEMY_DATABASE_URI=url,
    PROCORE_WEBHOOK_SECRET="a secret",
    PROCORE_WEBHOOK_DISPATCH=dispatch,
)
db = SQLAlchemy(app)
webhooks = ProcoreWebhooks(db=db)
app.register_blueprint(webhooks)
codes = []


class Effect(db.Model):
    id = db.Column(db.Integer, primary_key=True)


def fork():
    child = os.fork()
    if child == 0:
        LEAVE
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


if kind == "async":
    @webhooks.on(name="forks")
    async def forks(event):
        db.session.add(Effect())
        db.session.flush()
        fork()
elif kind == "receiver":
    @webhooks.on(name="writes")
    def writes(event):
        db.session.add(Effect())

    @event_processed.connect
    def forks(app, event):
        fork()
else:
    @webhooks.on(name="forks")
    def forks(event):
        db.session.add(Effect())
        db.session.flush()
        fork()

with app.app_context():
    db.create_all()
for _ in range(3):
    answer = deliver(app.test_client(), payload("RFIs.update"))
    assert answer.status_code == 200, answer.status
drain(app)
with app.app_context():
    print(json.dumps([os.getpid(), codes, db.session.query(Effect).count()]))
"""


@pytest.mark.seldom("sys.exit")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("database_url", "dispatch", "kind", "leave"),
    [
        *product(["postgresql"], ["worker"], ["sync", "async", "receiver"], ENDS),
        *product(["sqlite"], ["worker", "inline"], ["sync", "async"], ["return"]),
    ],
    indirect=["database_url"],
)
def test_a_child_of_a_subscriber_ends_before_it_touches_the_database(
    tmp_path: Path, database_url: str, dispatch: str, kind: str, leave: str
) -> None:
    """The parent's run continues: each event is done, with one effect."""
    script = SCRIPT.replace("LEAVE", leave)
    order = json.dumps([database_url, dispatch, kind])
    ended = subprocess.run(
        [sys.executable, "-c", script, order],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    (line,) = ended.stdout.splitlines()
    _, codes, effects = json.loads(line)
    code = ENDS[leave]
    if kind == "receiver" and leave.startswith("raise"):
        code = 0  # the child's error is logged like any error of a receiver
    assert codes == [code] * 3
    assert effects == 3
    engine = sa.create_engine(database_url)
    with engine.connect() as connection:
        look = sa.text("SELECT state, attempts FROM procore_webhook_job")
        assert [tuple(row) for row in connection.execute(look)] == [("done", 1)] * 3
    engine.dispose()
