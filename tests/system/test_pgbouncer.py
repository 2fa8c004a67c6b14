"""Deliveries and runs through pgbouncer in transaction mode.

The pool has two connections to the server. The next transaction of a client may use the
other connection, and lose the state of its session, such as prepared statements.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from flask import Flask
from support.hosts import Host
from support.hosts import run_host
from support.inboxes import due_rows
from support.processes import Process
from support.processes import running
from support.servers import free_port
from support.sites import at_once
from support.sites import open_site
from support.sites import Site
from support.values import Clock
from support.values import SECRET
from support.waiting import wait_until

from flask_procore_webhooks import Event
from flask_procore_webhooks import testing
from flask_procore_webhooks.errors import InboxUnavailable
from flask_procore_webhooks.inbox import batches
from flask_procore_webhooks.inbox import claims
from flask_procore_webhooks.inbox import queries
from flask_procore_webhooks.inbox.claims import Settlement
from flask_procore_webhooks.inbox.status import Status
from flask_procore_webhooks.operations.changes import replay
from flask_procore_webhooks.operations.pauses import pause
from flask_procore_webhooks.operations.pauses import resume
from flask_procore_webhooks.operations.prune import Old
from flask_procore_webhooks.operations.prune import prune_bodies
from flask_procore_webhooks.operations.prune import prune_rows
from flask_procore_webhooks.running.notify import listening
from flask_procore_webhooks.running.notify import NO_LISTENING
from flask_procore_webhooks.running.worker import Worker
from flask_procore_webhooks.storage.engines import own_engine
from flask_procore_webhooks.testing import payload

PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
#: Options of a host's engine: pgbouncer before 1.21 breaks prepared statements.
UNPREPARED = {"connect_args": {"prepare_threshold": None}}
UNPREPARED_URL = "?prepare_threshold=none"
CONFIG = """
[databases]
* = {target}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 2
"""
APP = """
from flask import Flask
from flask_procore_webhooks import ProcoreWebhooks

app = Flask(__name__)
app.config.from_prefixed_env()
webhooks = ProcoreWebhooks()
webhooks.on(name="nothing")(lambda event: None)
app.register_blueprint(webhooks)
"""


@pytest.fixture(scope="module")
def pooled_url(
    postgresql_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The URL of the tests' database through pgbouncer."""
    if not PGBOUNCER:
        pytest.skip("pgbouncer is not installed")
    url, port = sa.make_url(postgresql_url), free_port()
    with pgbouncer(PGBOUNCER, url, port, tmp_path_factory.mktemp("pgbouncer")):
        pooled = url.set(host="127.0.0.1", port=port, password=None)
        yield pooled.render_as_string()


@contextmanager
def pgbouncer(program: str, url: sa.URL, port: int, folder: Path) -> Iterator[None]:
    file, log = folder / "pgbouncer.ini", folder / "log"
    target = f"host={url.host} port={url.port or 5432} user={url.username}"
    if url.password:
        target += f" password={url.password}"
    file.write_text(CONFIG.format(target=target, listen_port=port))
    # pgbouncer refuses to run as root; it reads the file before changing its user.
    user = ["-u", "nobody"] if os.getuid() == 0 else []
    with running([program, *user, str(file)], log=log) as process:
        wait_until(lambda: is_up(url, port), report=process.output)
        yield


def is_up(url: sa.URL, port: int) -> bool:
    try:
        psycopg.connect(host="127.0.0.1", port=port, dbname=url.database).close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.fixture
def host(pooled_url: str, make_app: Callable[..., Flask]) -> Iterator[Host]:
    """An app with an engine of its own."""
    app = make_app(
        SQLALCHEMY_ENGINE_OPTIONS=UNPREPARED, PROCORE_WEBHOOK_DISPATCH="worker"
    )
    with run_host(app, "flask_sqlalchemy", pooled_url) as host:
        yield host


@pytest.fixture
def site(pooled_url: str, make_app: Callable[..., Flask]) -> Iterator[Site]:
    """An app with the inbox's own engine."""
    with open_site(make_app(), pooled_url + UNPREPARED_URL) as site:
        yield site
        site.store.database.tables.event.metadata.drop_all(site.store.database.engine)


def test_pool_changes_sessions_between_transactions(pooled_url: str) -> None:
    """A check of the other tests: clients really share connections."""
    with ExitStack() as stack:
        clients = [
            stack.enter_context(psycopg.connect(address_of(pooled_url)))
            for _ in range(5)
        ]
        seen = set()
        for client in clients:
            seen.add(client.execute("SELECT pg_backend_pid()").fetchone())
            client.commit()
    assert 1 <= len(seen) <= 2


@pytest.mark.parametrize(
    ("query", "expected"),
    [("", 5), ("?prepare_threshold=None", None), ("?prepare_threshold=7", 7)],
)
def test_prepare_threshold_is_read_from_the_url(
    query: str, expected: int | None, postgresql_url: str
) -> None:
    engine = own_engine(sa.make_url(postgresql_url + query))
    with engine.connect() as connection:
        driver = connection.connection.dbapi_connection
        assert isinstance(driver, psycopg.Connection)
        assert driver.prepare_threshold == expected
        assert connection.scalar(sa.text("SELECT 1")) == 1
    engine.dispose()


def address_of(url: str) -> str:
    return url.replace("+psycopg", "")


def test_each_event_is_run_once(host: Host) -> None:
    host.webhooks.on(name="note")(lambda event: host.note(event.id))
    events = [payload("RFIs.update") for _ in range(40)]
    batches = [events[n::4] + events[:5] for n in range(4)]
    assert at_once(lambda batch: send_all(host.app, batch), batches) == [15] * 4
    ran = at_once(lambda _: Worker([host.endpoint], poll=1).run_all(), range(4))
    assert sum(ran) == 40
    assert sorted(host.notes()) == sorted(event["id"] for event in events)
    counts = queries.newest(host.endpoint.store, limit=100)
    assert {row["status"] for row in counts} == {"done"}
    assert sum(row["repeats"] for row in counts) == 20


def send_all(app: Flask, events: list[dict[str, object]]) -> int:
    client = app.test_client()
    answers = [testing.deliver(client, event) for event in events]
    return [answer.status_code for answer in answers].count(200)


def test_failure_is_rolled_back_and_run_again(host: Host) -> None:
    broken = True

    @host.webhooks.on(name="note")
    def note(event: Event) -> None:
        host.note(event.id)
        if broken:
            raise ValueError("broken")

    host.deliver()
    clock = host.endpoint.store.now = Clock()
    assert Worker([host.endpoint], poll=1).run_all() == 1
    assert (host.notes(), host.row()["status"]) == ([], "pending")
    broken = False
    clock.forward(60)
    assert Worker([host.endpoint], poll=1).run_all() == 1
    assert host.notes() == [host.payload["id"]]


def test_settings_of_a_transaction_stay_in_it(site: Site) -> None:
    look = sa.text("SELECT pg_backend_pid()")
    with (
        site.store.connection(begin=True) as one,
        site.store.connection(begin=True) as two,
    ):
        seen = {(one.scalar(look), two.scalar(look)) for _ in range(5)}
    ((first, second),) = seen
    assert first != second


def test_transaction_that_fails_is_rolled_back(site: Site) -> None:
    rows = [site.send() for _ in range(3)]
    for _ in range(3):
        with pytest.raises(InboxUnavailable, match="on purpose"):
            with site.store.connection(begin=True) as connection:
                connection.execute(sa.delete(site.events))
                raise RuntimeError("on purpose")
    assert site.statuses() == ["pending"] * 3
    assert due_rows(site.store) == rows


def test_listening_through_a_pooler_is_refused(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """Notifications would go to the connection's next client."""
    with listening([site.store], lambda: None):
        wait_until(lambda: "pooler" in caplog.text)
    assert [record.message for record in caplog.records] == [NO_LISTENING]


def test_operators_replay_pause_and_prune(site: Site) -> None:
    site.subscribe_good_and_bad()
    rows = [site.send() for _ in range(8)]
    pause(site.store, "tests")
    assert site.work() == 0
    resume(site.store, "tests")
    assert site.work() == 8
    site.broken = False
    assert replay(site.store, rows, "tests", anew=True) == 8
    assert site.work() == 8
    assert site.statuses() == ["done"] * 8
    site.clock.forward(10)
    bodies = prune_bodies(site.store, Old(site.clock()))
    assert sum(bodies) == 8
    assert sum(prune_rows(site.store, Old(site.clock()))) == 8
    assert site.count("event") == site.count("job") == 0


def test_lease_is_renewed_and_ends(site: Site) -> None:
    site.send()
    (held,) = batches.claim_due(site.store, 1, seconds=10)
    site.clock.forward(9)
    batches.renew(site.store, [held], 10)
    site.clock.forward(9)
    assert batches.claim_due(site.store, 1, seconds=10) == []
    site.clock.forward(2)
    (taken,) = batches.claim_due(site.store, 1, seconds=10)
    assert not claims.settle(site.store, held, Settlement(Status.DONE))
    assert claims.settle(site.store, taken, Settlement(Status.DONE))


@pytest.mark.slow
def test_workers_find_new_events_by_polling(
    site: Site, pooled_url: str, tmp_path: Path
) -> None:
    """Workers cannot listen through the pool, so they poll."""
    (tmp_path / "app.py").write_text(APP)
    with worker_in(tmp_path, pooled_url + UNPREPARED_URL) as worker:
        worker.wait_for_output("Running the events")
        for _ in range(3):
            site.send()
            wait_until(lambda: set(site.statuses()) == {"done"}, report=worker.output)
    assert site.statuses() == ["done"] * 3


@contextmanager
def worker_in(folder: Path, url: str) -> Iterator[Process]:
    log = folder / "worker.log"
    env = {
        "FLASK_PROCORE_WEBHOOK_SECRET": SECRET,
        "FLASK_PROCORE_WEBHOOK_DISPATCH": "worker",
        "FLASK_PROCORE_WEBHOOK_DATABASE_URI": url,
    }
    command = "flask --app app procore-webhooks worker --concurrency 4".split()
    command = [sys.executable, "-m", *command]
    with running(command, folder=folder, env={**os.environ, **env}, log=log) as worker:
        yield worker
    assert worker.exit_code() == 0, worker.output()
