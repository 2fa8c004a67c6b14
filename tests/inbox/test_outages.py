"""Deliveries while the database is unreachable, locked or without tables."""

from __future__ import annotations

import gc
import socket
import sqlite3
from collections.abc import Callable
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from support.hosts import KINDS
from support.hosts import run_host
from support.inboxes import dispose
from support.inboxes import due_rows
from support.inboxes import row
from support.outages import locked
from support.outages import relay_to
from support.waiting import in_threads
from support.waiting import PATIENCE
from support.waiting import wait_until
from werkzeug.test import TestResponse

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.errors import InboxUnavailable
from flask_procore_webhooks.storage.store import Store
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import payload

MakeApp = Callable[..., Flask]


def _refused_for_now(answer: TestResponse) -> bool:
    return (answer.status_code, answer.json, answer.headers["Retry-After"]) == (
        503,
        {"error": "Unavailable"},
        "5",
    )


@pytest.mark.usefixtures("short_retries")
@pytest.mark.parametrize("kind", ["own", *KINDS])
@pytest.mark.parametrize("server", ["postgresql", "mariadb"])
def test_outage_is_answered_503_until_the_database_is_back(
    request: pytest.FixtureRequest,
    make_app: MakeApp,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    server: str,
) -> None:
    url = request.getfixturevalue(f"{server}_url")
    with relay_to(url) as relay, _app_on(relay.url, kind, make_app) as (app, store):
        client = app.test_client()
        assert deliver(client, payload("RFIs.update")).status_code == 200

        relay.cut()
        lost = [payload("RFIs.update") for _ in range(3)]
        assert all(_refused_for_now(deliver(client, sent)) for sent in lost)
        assert "cannot be used" in caplog.text
        with pytest.raises(InboxUnavailable):
            due_rows(store)

        relay.mend()
        for sent in lost:
            assert deliver(client, sent).json == {"received": True}
            assert row(store, sent["id"])["status"] == "done"


@contextmanager
def _app_on(url: str, kind: str, make_app: MakeApp) -> Iterator[tuple[Flask, Store]]:
    """Yield an app with a subscriber for every event."""
    if kind != "own":
        with run_host(make_app(), kind, url) as host:
            host.accept()
            yield host.app, host.endpoint.store
        return
    app, webhooks = make_app(PROCORE_WEBHOOK_DATABASE_URI=url), ProcoreWebhooks()
    webhooks.on(name="accepts")(lambda event: None)
    webhooks.init_app(app)
    (endpoint,) = endpoints(app).values()
    yield app, endpoint.store
    endpoint.store.columns.id.table.metadata.drop_all(endpoint.store.database.engine)
    dispose(app)


@pytest.mark.usefixtures("short_retries")
@pytest.mark.parametrize(
    "url",
    [
        pytest.param(
            "postgresql+psycopg://postgres@127.0.0.1:{port}/nothing",
            marks=pytest.mark.server,
        ),
        pytest.param(
            "mysql+pymysql://root@127.0.0.1:{port}/nothing",
            marks=pytest.mark.server,
        ),
        "sqlite:///{folder}",
        "sqlite:///{folder}/missing/inbox.db",
        "sqlite:////proc/inbox.db",
    ],
)
def test_unreachable_database_is_answered_503(
    make_app: MakeApp,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    url: str,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI=url.format(port=port, folder=tmp_path))
    ProcoreWebhooks().init_app(app)

    for _ in range(2):
        assert _refused_for_now(deliver(app.test_client(), payload("RFIs.update")))
    assert "the inbox cannot be used: " in caplog.text


@pytest.mark.server
@pytest.mark.slow
def test_silent_server_is_answered_503_in_time(make_app: MakeApp) -> None:
    """The server accepts connections and never answers, as behind a firewall."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql+psycopg://postgres@127.0.0.1:{silent.getsockname()[1]}/x"
        app = make_app(PROCORE_WEBHOOK_DATABASE_URI=url)
        ProcoreWebhooks().init_app(app)
        answers: list[TestResponse] = []

        def work(number: int) -> None:
            answers.append(deliver(app.test_client(), payload("RFIs.update")))

        # The deliveries are concurrent: they do not wait for one another.
        in_threads(work, range(3), seconds=9)

    assert len(answers) == 3
    assert all(map(_refused_for_now, answers))


@pytest.mark.parametrize("kind", KINDS)
def test_missing_tables_are_answered_503_and_named_in_the_log(
    make_app: MakeApp,
    database_url: str,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    with run_host(make_app(), kind, database_url, create=False) as host:
        sent = payload("RFIs.update")
        assert _refused_for_now(host.deliver(sent))
        assert (
            "missing tables: procore_webhook_event, procore_webhook_job,"
            " procore_webhook_key, procore_webhook_journal, procore_webhook_tally,"
            " procore_webhook_state; create them with your"
            " migrations (flask db migrate, flask db upgrade) or, if you have none,"
            " with the command init-db"
        ) in caplog.text

        host.note_table.metadata.create_all(host.engine)
        assert host.deliver(sent).json == {"received": True}
        host.note_table.metadata.drop_all(host.engine)


def test_missing_job_table_is_named_in_the_log(
    app: Flask,
    endpoint: Endpoint,
    webhooks: ProcoreWebhooks,
    caplog: pytest.LogCaptureFixture,
) -> None:
    webhooks.on()(lambda event: None)
    endpoint.store.database.create_tables()
    endpoint.store.database.tables.job.drop(endpoint.store.database.engine)

    assert _refused_for_now(deliver(app.test_client(), payload("RFIs.update")))
    assert "missing tables: procore_webhook_job;" in caplog.text


@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("kind", ["own", *KINDS])
@pytest.mark.parametrize("server", ["postgresql", "mariadb"])
def test_closed_pooled_connections_lose_no_delivery(
    request: pytest.FixtureRequest,
    make_app: MakeApp,
    server: str,
    kind: str,
    connections: int,
) -> None:
    """Servers close connections at a restart, after idle time, or on command."""
    url = request.getfixturevalue(f"{server}_url")
    with _app_on(url, kind, make_app) as (app, store):
        assert deliver(app.test_client(), payload("RFIs.update")).status_code == 200
        idle = [store.database.engine.connect() for _ in range(connections)]
        for connection in idle:
            connection.close()
        _close_all_others(url)

        for _ in range(connections + 1):
            answer = deliver(app.test_client(), payload("RFIs.update"))
            assert answer.json == {"received": True}


def _close_all_others(url: str) -> None:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            return
        others = connection.exec_driver_sql(
            "SELECT id FROM information_schema.processlist"
            " WHERE db = database() AND id <> connection_id()"
        )
        for (number,) in others.all():
            connection.exec_driver_sql(f"KILL {number}")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["own", "flask_sqlalchemy"])
def test_locked_sqlite_file_is_answered_503_within_the_sender_timeout(
    make_app: MakeApp, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "inbox.db"
    with _app_on(f"sqlite:///{path}", kind, make_app) as (app, store):
        client = app.test_client()
        assert deliver(client, payload("RFIs.update")).status_code == 200
        sent = [payload("RFIs.update") for _ in range(3)]
        answers: list[TestResponse] = []

        def work(each: dict[str, Any]) -> None:
            answers.append(deliver(app.test_client(), each))

        with locked(path):
            in_threads(work, sent, seconds=8)
        assert len(answers) == 3
        assert all(map(_refused_for_now, answers))

        assert [deliver(client, each).json for each in sent] == [{"received": True}] * 3


def test_failed_try_on_a_locked_file_leaves_no_open_cursor(
    make_app: MakeApp, tmp_path: Path
) -> None:
    """Its collection in another thread would wait for the connection's next user."""
    path = tmp_path / "host.db"
    insert = "INSERT INTO note (text) VALUES ('waits')"
    with run_host(make_app(), "flask_sqlalchemy", f"sqlite:///{path}") as host:
        store, engine = host.store, host.engine
        store.rows(sa.select(store.columns.id))
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            gc.disable()
            try:
                with pytest.raises(InboxUnavailable):
                    store.run(lambda each: None, begin=True, until=0)
                with engine.connect() as waiting, ThreadPoolExecutor() as pool:
                    insertion = pool.submit(waiting.exec_driver_sql, insert)
                    wait_until(lambda: waiting.connection.in_transaction)
                    gc.collect()
                    assert not insertion.done()
                    other.execute("ROLLBACK")
                    insertion.result(PATIENCE)
            finally:
                gc.enable()


def test_readers_of_the_embedded_file_do_not_block_deliveries(
    make_app: MakeApp, tmp_path: Path
) -> None:
    path = tmp_path / "inbox.db"
    with _app_on(f"sqlite:///{path}", "own", make_app) as (app, store):
        assert deliver(app.test_client(), payload("RFIs.update")).status_code == 200
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            look = "SELECT count(*) FROM procore_webhook_event"
            assert reader.execute(look).fetchone() == (1,)
            assert deliver(app.test_client(), payload("RFIs.update")).status_code == 200
            assert reader.execute(look).fetchone() == (1,)


@pytest.mark.slow
def test_initially_locked_sqlite_file_is_opened_later(
    make_app: MakeApp, tmp_path: Path
) -> None:
    path = tmp_path / "inbox.db"
    with _app_on(f"sqlite:///{path}", "own", make_app) as (app, store):
        sent = payload("RFIs.update")
        answers: list[TestResponse] = []

        def work(each: dict[str, Any]) -> None:
            answers.append(deliver(app.test_client(), each))

        with locked(path):
            in_threads(work, [sent], seconds=7)
        assert list(map(_refused_for_now, answers)) == [True]
        assert deliver(app.test_client(), sent).json == {"received": True}
