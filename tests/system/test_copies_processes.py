"""Copies of one event in several processes, and a process killed in a run."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from flask import Flask
from support.hosts import check_answers
from support.hosts import deliver_at
from support.hosts import Host
from support.hosts import run_host
from support.processes import run_at_once
from support.processes import scripts
from support.values import Clock
from support.waiting import wait_until

from flask_procore_webhooks.operations import queries
from flask_procore_webhooks.testing import payload

MakeApp = Callable[..., Flask]
COPIES = 64
PROCESSES = 3


@pytest.fixture
def host(make_app: MakeApp, database_url: str) -> Iterator[Host]:
    with run_host(make_app(), "flask_sqlalchemy", database_url) as host:
        yield host


@pytest.fixture
def host_clock(host: Host) -> Clock:
    clock = Clock()
    host.endpoint.store.now = clock
    return clock


CHILD = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from flask import Flask
from support.hosts import run_host
from support.hosts import send_until_accepted

order = json.loads(sys.stdin.readline())
app = Flask("child", instance_path=order["folder"])
app.config.update(TESTING=True, PROCORE_WEBHOOK_SECRET=order["secret"])
with run_host(app, "flask_sqlalchemy", order["url"], create=False) as host:

    @host.webhooks.on(name="writer")
    def writer(event):
        with open(order["calls"], "a") as calls:
            calls.write(event.id + "\\n")
        host.note(f"{event.id} {order['number']}")

    print("ready", flush=True)
    sys.stdin.readline()
    with ThreadPoolExecutor(len(order["events"])) as pool:
        work = pool.map(lambda event: send_until_accepted(app, event), order["events"])
    print(json.dumps(list(work)), flush=True)
"""


@pytest.mark.slow
def test_copies_in_several_processes_are_one_event_and_one_run(
    host: Host, database_url: str, tmp_path: Path
) -> None:
    sent = payload("RFIs.update")
    calls = tmp_path / "calls"
    order = {
        "url": database_url,
        "folder": str(tmp_path),
        "secret": host.app.config["PROCORE_WEBHOOK_SECRET"],
        "calls": str(calls),
        "events": [sent] * (COPIES // PROCESSES),
    }
    orders = [{**order, "number": number} for number in range(PROCESSES)]
    answers = run_at_once(CHILD, orders)

    statuses = [each for answer in answers for each in answer]
    assert len(statuses) == COPIES // PROCESSES * PROCESSES
    (row,) = queries.newest(host.endpoint.store)
    check_answers(statuses, host.store, sent["id"])
    assert calls.read_text().split() == [sent["id"]] * host.job(sent["id"])["attempts"]
    assert len(host.notes()) == 1
    assert row["status"] == "done"


KILLED = """
import json, os, signal, sys
from flask import Flask
from support.hosts import run_host

order = json.loads(sys.stdin.readline())
app = Flask("child", instance_path=order["folder"])
app.config.update(TESTING=True, PROCORE_WEBHOOK_SECRET=order["secret"])
with run_host(app, "flask_sqlalchemy", order["url"], create=False) as host:
    host.webhooks.on(name="first")(lambda event: host.note("first"))

    @host.webhooks.on(name="second")
    def second(event):
        host.note("of the killed run")
        host.session.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    host.deliver(order["event"])
"""


@pytest.mark.slow
def test_event_of_a_killed_process_is_resumed_after_its_lease(
    host: Host, host_clock: Clock, database_url: str, tmp_path: Path
) -> None:
    sent = payload("RFIs.update")
    order = {
        "url": database_url,
        "folder": str(tmp_path),
        "secret": host.app.config["PROCORE_WEBHOOK_SECRET"],
        "event": sent,
    }
    with scripts(KILLED, [order]) as (child,):
        child.rest()
    assert child.process.returncode == -9

    host.webhooks.on(name="first")(lambda event: host.note("first again"))
    host.webhooks.on(name="second")(lambda event: host.note("second"))
    _wait_for_rollback(host)
    assert host.deliver(sent).status_code == 503
    assert host.notes() == ["first"]

    host_clock.forward(host.endpoint.settings.lease + 60)
    assert deliver_at(host, sent, host_clock).status_code == 200
    assert host.notes() == ["first", "second"]
    # The attempt that was killed has no outcome.
    assert {job["attempts"] for job in host.jobs().values()} == {1}


def _wait_for_rollback(host: Host) -> None:
    """Wait until the server has noticed the end of its client."""
    if host.engine.dialect.name != "postgresql":
        return
    busy = sa.text(
        "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in%'"
        " AND datname = current_database()"
    )
    # In one transaction, each look at pg_stat_activity shows what the first one saw.
    apart = host.engine.execution_options(isolation_level="AUTOCOMMIT")
    with apart.connect() as connection:
        wait_until(lambda: not connection.scalar(busy))
