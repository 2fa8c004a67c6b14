"""Inserted values equal the given values, with every database and both statements.

The direct statement of new pending events means what the plain statement means.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from support.outages import relay_to

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.inbox import direct as module
from flask_procore_webhooks.inbox.direct import DirectInserts
from flask_procore_webhooks.inbox.inserts import ALREADY_RECORDED
from flask_procore_webhooks.inbox.inserts import Inserts
from flask_procore_webhooks.inbox.inserts import LARGEST_STATEMENT
from flask_procore_webhooks.schema.tables import define_tables
from flask_procore_webhooks.storage.store import Store

ROW: dict[str, Any] = {
    "endpoint": "procore_webhooks",
    "event_id": "evt_%s_:x_?",
    "type": "RFIs.update",
    "resource_type": "100 % \N{SNOWMAN}",
    "reason": "update",
    "resource_id": None,
    "company_id": "7",
    "project_id": "8",
    "user_id": "9",
    "application_id": "10",
    "event_at": datetime(2026, 1, 2, 3, 4, 5, 678901),
    "body": bytes(range(256)),
    "origin": "delivery",
    "traceparent": None,
    "status": "pending",
    "claims": 0,
    "due_at": datetime(2026, 1, 2, 3, 4, 5, 1),
    "parked_at": None,
    "lease": None,
    "error": None,
    "received_at": datetime(2026, 1, 2, 3, 4, 5, 1),
    "finished_at": None,
    "repeats": 0,
    "conflicts": 0,
}


#: Inserts rows, returns what ``Inserts`` returns.
Insert = Callable[[list[dict[str, Any]]], list[int]]

BOTH_STATEMENTS = pytest.mark.parametrize(
    ("database_url", "insert"),
    [
        ("sqlite", "plain"),
        ("postgresql", "plain"),
        ("mariadb", "plain"),
        ("sqlite", "direct"),
        ("postgresql", "direct"),
    ],
    indirect=True,
)
DIRECT = pytest.mark.parametrize(
    "database_url", ["sqlite", "postgresql"], indirect=True
)


@pytest.fixture
def store(endpoint: Endpoint) -> Store:
    endpoint.store.database.create_tables()
    endpoint.store.traits()
    return endpoint.store


@pytest.fixture
def insert(request: pytest.FixtureRequest, store: Store) -> Insert:
    if request.param == "direct":
        return inserts_directly(opened(store))
    plain = Inserts(store.database.tables.event)
    return lambda rows: store.run(lambda connection: plain(connection, rows))


def opened(store: Store) -> DirectInserts:
    """Direct inserts whose connection is open, as after two events."""
    direct = DirectInserts(store)
    direct.open()
    assert direct([ROW]) is None, "no connection after the first event"
    direct.open()
    return direct


def inserts_directly(direct: DirectInserts) -> Insert:
    def insert(rows: list[dict[str, Any]]) -> list[int]:
        row_ids = direct(rows)
        assert row_ids is not None
        return row_ids

    return insert


def stored(store: Store, row_id: int) -> dict[str, Any]:
    table = store.database.tables.event
    (found,) = store.rows(sa.select(table).where(table.c.id == row_id))
    return {**found._mapping}


@BOTH_STATEMENTS
def test_every_value_is_stored_as_it_was_given(insert: Insert, store: Store) -> None:
    for event_id in ("evt_1", "evt_2", ROW["event_id"]):
        row = {**ROW, "event_id": event_id}
        (row_id,) = insert([row])
        assert stored(store, row_id) == {"id": row_id, **row}


@BOTH_STATEMENTS
def test_existing_event_is_left_and_the_next_inserted(
    insert: Insert, store: Store
) -> None:
    (first,) = insert([ROW])
    assert insert([{**ROW, "body": b"other"}]) == [ALREADY_RECORDED]
    assert stored(store, first)["body"] == ROW["body"]
    (second,) = insert([{**ROW, "event_id": "evt_2"}])
    assert second > first


@BOTH_STATEMENTS
def test_new_ones_of_several_events_are_inserted(insert: Insert, store: Store) -> None:
    (there,) = insert([{**ROW, "event_id": "evt_0"}])
    ids = ["evt_1", ROW["event_id"], "evt_0", "evt_1"]
    rows = [{**ROW, "event_id": id, "resource_id": id} for id in ids]
    row_ids = insert(rows)
    assert row_ids[2:] == [ALREADY_RECORDED] * 2
    for row_id, row in zip(row_ids[:2], rows[:2], strict=True):
        assert stored(store, row_id) == {"id": row_id, **row}
    assert stored(store, there)["resource_id"] is None
    assert insert(rows) == [ALREADY_RECORDED] * 4


@BOTH_STATEMENTS
def test_events_of_several_endpoints_with_one_id_are_inserted(
    insert: Insert, store: Store
) -> None:
    rows = [{**ROW, "endpoint": name} for name in ("one", "One", "two")]
    for row_id, row in zip(insert(rows), rows, strict=True):
        assert stored(store, row_id)["endpoint"] == row["endpoint"]


@BOTH_STATEMENTS
def test_new_events_between_events_that_were_there_get_their_own_ids(
    insert: Insert, store: Store
) -> None:
    for there in ([0, 1], [2, 5, 6], [9], [3]):
        insert([{**ROW, "event_id": f"evt_{number:02}"} for number in there])
    rows = [{**ROW, "event_id": f"evt_{number:02}"} for number in range(12)]
    new = [4, 7, 8, 10, 11]
    row_ids = insert(rows)
    found = [number for number, id in enumerate(row_ids) if id != ALREADY_RECORDED]
    assert found == new
    for number in new:
        assert stored(store, row_ids[number])["event_id"] == f"evt_{number:02}"


@BOTH_STATEMENTS
def test_largest_batch_is_inserted(insert: Insert, store: Store) -> None:
    rows = [{**ROW, "event_id": f"evt_{number}"} for number in range(64)]
    row_ids = insert(rows)
    assert len({*row_ids}) == 64
    assert stored(store, row_ids[63])["event_id"] == "evt_63"


@BOTH_STATEMENTS
def test_parallel_batches_with_the_same_events_insert_each_once(
    insert: Insert, store: Store
) -> None:
    plain = Inserts(store.database.tables.event)
    rows = [{**ROW, "event_id": f"evt_{number}"} for number in range(40)]

    def insert_reversed(_: int) -> list[int]:
        return store.run(lambda connection: plain(connection, rows[::-1]))

    with ThreadPoolExecutor(4) as pool:
        others = pool.map(insert_reversed, range(3))
        # A locked SQLite file is for the plain statement, which is repeated.
        try:
            insert(rows)
        except AssertionError:
            insert_reversed(0)
        assert len([*others]) == 3
    assert store.rows(sa.select(sa.func.count()).select_from(plain._table))[0][0] == 40


@DIRECT
def test_events_of_other_statuses_are_for_the_plain_statement(store: Store) -> None:
    direct = opened(store)
    assert direct([ROW, {**ROW, "event_id": "evt_2", "status": "ignored"}]) is None
    large = {**ROW, "body": bytes(LARGEST_STATEMENT)}
    assert direct([large, {**ROW, "event_id": "evt_2"}]) is None
    assert direct([ROW]) is not None


def test_mariadb_and_memory_have_no_direct_statement(
    make_app: Callable[..., Flask], mariadb_url: str
) -> None:
    for url in ("sqlite://", mariadb_url):
        app = make_app(PROCORE_WEBHOOK_DATABASE_URI=url)
        app.register_blueprint(ProcoreWebhooks())
        (endpoint,) = endpoints(app).values()
        endpoint.store.database.create_tables()
        assert opened(endpoint.store)([ROW]) is None
        endpoint.store.database.engine.dispose()


@DIRECT
@pytest.mark.parametrize("whose", ["engine", "every engine", "dialect"])
def test_listener_sees_each_insert(store: Store, whose: str) -> None:
    """Tracers of SQL listen to the engine, to every engine, or to the dialect."""
    direct = opened(store)
    assert direct([ROW])
    engine = store.database.engine
    target = sa.Engine if whose == "every engine" else engine
    name = "do_execute" if whose == "dialect" else "before_cursor_execute"

    def note(*args: Any, **more: Any) -> None: ...

    sa.event.listen(target, name, note)
    try:
        assert direct([{**ROW, "event_id": "evt_2"}]) is None
    finally:
        sa.event.remove(target, name, note)
    assert direct([{**ROW, "event_id": "evt_2"}])


@DIRECT
def test_log_of_statements_has_each_insert(store: Store) -> None:
    direct = opened(store)
    logger = logging.getLogger("sqlalchemy.engine")
    logger.setLevel(logging.INFO)
    try:
        assert direct([ROW]) is None
    finally:
        logger.setLevel(logging.NOTSET)
    assert direct([ROW])


@DIRECT
@pytest.mark.parametrize("name", ["checkout", "checkin", "reset", "begin"])
def test_host_that_prepares_each_use_of_a_connection_keeps_none(
    store: Store, name: str
) -> None:
    """For example, a listener sets the ``search_path`` of the request's tenant."""
    engine = store.database.engine

    def prepare(*args: Any) -> None: ...

    sa.event.listen(engine, name, prepare)
    assert opened(store)._kept is None


@DIRECT
def test_watched_engine_keeps_no_connection(store: Store) -> None:
    def note(*args: Any) -> None: ...

    sa.event.listen(store.database.engine, "before_cursor_execute", note)
    assert opened(store)._kept is None


@DIRECT
def test_connection_of_a_disposed_engine_is_replaced(store: Store) -> None:
    direct = opened(store)
    (row_id,) = inserts_directly(direct)([ROW])
    kept = direct._kept
    store.database.engine.dispose()
    assert direct([ROW]) is None
    assert kept is not None and not kept.close.alive
    direct.open()
    assert direct([ROW]) == [ALREADY_RECORDED]
    assert stored(store, row_id)


@DIRECT
def test_old_and_idle_connections_are_replaced(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct = opened(store)
    assert direct([ROW])
    pool: Any = store.database.engine.pool
    for age in ("_opened", "_used"):
        kept = direct._kept
        monkeypatch.setattr(pool, "_recycle", 3600)
        setattr(kept, age, getattr(kept, age) - 3601)
        assert direct([{**ROW, "event_id": age}]) is None
        assert kept is not None and not kept.close.alive
        direct.open()
        assert direct([{**ROW, "event_id": age}])


@DIRECT
def test_rare_events_keep_no_connection(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct = DirectInserts(store)
    monkeypatch.setattr(module, "LONGEST_IDLE", 0.0)
    for _ in range(3):
        direct.open()
        assert direct._kept is None


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_lost_connection_leaves_the_rows_to_the_plain_statement(
    make_app: Callable[..., Flask], webhooks: ProcoreWebhooks, database_url: str
) -> None:
    with relay_to(database_url) as relay:
        app = make_app(PROCORE_WEBHOOK_DATABASE_URI=relay.url)
        app.register_blueprint(webhooks)
        (endpoint,) = endpoints(app).values()
        endpoint.store.database.create_tables()
        endpoint.store.traits()
        direct = opened(endpoint.store)
        assert direct([ROW])
        relay.cut()
        assert direct([{**ROW, "event_id": "evt_2"}]) is None
        assert direct._kept is not None and not direct._kept.close.alive
        endpoint.store.database.engine.dispose()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_interrupted_insert_closes_the_connection(store: Store) -> None:
    """``gevent.Timeout`` is an interruption: half a statement may be left."""
    direct = opened(store)
    assert direct([ROW])
    kept = direct._kept
    assert kept is not None

    class Interrupting(str):
        def __lt__(self, other: str) -> bool:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        direct([{**ROW, "event_id": Interrupting(number)} for number in range(2)])
    assert not kept.close.alive and not kept.lock.locked()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_child_leaves_the_connection_of_its_parent_open(store: Store) -> None:
    direct = opened(store)
    assert direct([ROW])
    child = os.fork()
    if child == 0:
        assert direct._kept is not None
        direct._kept.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert direct([{**ROW, "event_id": "evt_2"}])


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_thread_does_not_wait_for_the_connection_of_another(store: Store) -> None:
    direct = opened(store)
    assert direct._kept is not None
    with direct._kept.lock:
        thread_saw: list[Any] = []
        thread = threading.Thread(target=lambda: thread_saw.append(direct([ROW])))
        thread.start()
        thread.join(30)
        assert thread_saw == [None]


@contextmanager
def host(tmp_path: Path, **connect_args: Any) -> Iterator[tuple[Store, SQLAlchemy]]:
    app, db = Flask("host"), SQLAlchemy()
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path / 'host.db'}"
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"connect_args": connect_args}
    app.config["PROCORE_WEBHOOK_SECRET"] = "a secret"
    db.init_app(app)
    app.register_blueprint(ProcoreWebhooks(db=db))
    (endpoint,) = endpoints(app).values()
    with app.app_context():
        db.create_all()
        endpoint.store.traits()
        yield endpoint.store, db
        db.engine.dispose()


def open_files() -> set[str]:
    return {os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()}


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is of Linux")
def test_host_that_disposes_of_its_engine_has_no_open_file_left(tmp_path: Path) -> None:
    """Test suites dispose of the engine and drop the database."""
    with host(tmp_path) as (store, db):
        direct = opened(store)
        assert direct([ROW])
        db.engine.dispose()
        assert str(tmp_path / "host.db") not in open_files()
        assert direct([ROW]) is None


def test_connection_in_use_is_closed_after_its_use(tmp_path: Path) -> None:
    with host(tmp_path) as (store, db):
        direct = opened(store)
        kept = direct._kept
        assert kept is not None
        with kept.lock:
            db.engine.dispose()
            assert kept.close.alive
            assert direct([ROW]) is None, "another thread uses it"
        assert direct([ROW]) is None
        assert not kept.close.alive


@pytest.mark.skipif(sys.version_info < (3, 12), reason="autocommit= is of Python 3.12")
def test_connection_that_is_always_in_a_transaction_is_not_kept(
    tmp_path: Path,
) -> None:
    with host(tmp_path, autocommit=False) as (store, _):
        assert opened(store)([ROW]) is None


def test_schema_that_is_renamed_at_execution_is_respected(tmp_path: Path) -> None:
    engine = sa.create_engine(
        f"sqlite:///{tmp_path / 'renamed.db'}", isolation_level="AUTOCOMMIT"
    )
    table = define_tables(sa.MetaData(schema="elsewhere")).event
    renamed = engine.execution_options(schema_translate_map={"elsewhere": "main"})
    table.metadata.create_all(renamed)
    with renamed.connect() as connection:
        (row_id,) = Inserts(table)(connection, [ROW])
        found = connection.execute(sa.select(table)).one()
        assert {**found._mapping} == {"id": row_id, **ROW}
    assert not module._allows(renamed)
    engine.dispose()


def test_psycopg2_inserts_like_psycopg(
    make_app: Callable[..., Flask], postgresql_url: str
) -> None:
    url = sa.make_url(postgresql_url).set(drivername="postgresql+psycopg2")
    text = url.render_as_string(hide_password=False)
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI=text)
    app.register_blueprint(ProcoreWebhooks())
    (endpoint,) = endpoints(app).values()
    store = endpoint.store
    store.database.create_tables()
    store.traits()
    try:
        (row_id,) = inserts_directly(opened(store))([ROW])
        found = stored(store, row_id)
        assert {**found, "body": bytes(found["body"])} == {"id": row_id, **ROW}
        others = [{**ROW, "event_id": f"evt_{number}"} for number in range(3)]
        assert len({*inserts_directly(opened(store))(others)}) == 3
    finally:
        store.database.tables.event.metadata.drop_all(store.database.engine)
        store.database.engine.dispose()
