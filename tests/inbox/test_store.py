"""Transactions of the inbox, with any driver of the host."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy import orm
from sqlalchemy.exc import IntegrityError
from support.hosts import begin_by_itself
from support.inboxes import event
from support.inboxes import row

from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.dispatching.worker import Worker
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.errors import InboxUnavailable
from flask_procore_webhooks.inbox.record import record as record_event
from flask_procore_webhooks.storage.store import Store
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import payload

MakeApp = Callable[..., Flask]


def _fails_in_a_transaction(store: Store) -> None:
    table = store.columns.id.table
    with pytest.raises(InboxUnavailable, match="on purpose"):
        with store.connection(begin=True) as connection:
            connection.execute(sa.delete(table))
            raise RuntimeError("on purpose")
    with pytest.raises(IntegrityError):
        with store.connection(begin=True) as connection:
            again = connection.execute(sa.select(table)).one()._asdict()
            connection.execute(sa.insert(table).values(again))


def test_failed_transaction_is_rolled_back(store: Store) -> None:
    record_event(store, event())
    for _ in range(2):
        _fails_in_a_transaction(store)
    assert record_event(store, event("evt_2")).is_new
    store.database.engine.dispose()
    assert row(store) and row(store, "evt_2")


def test_psycopg2_leaves_no_failed_transaction(
    postgresql_url: str, make_app: MakeApp
) -> None:
    """psycopg2 rolls back only transactions that it has begun itself."""
    url = sa.make_url(postgresql_url).set(drivername="postgresql+psycopg2")
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI=url.render_as_string(False))
    app.register_blueprint(ProcoreWebhooks())
    (endpoint,) = endpoints(app).values()
    store = endpoint.store
    try:
        record_event(store, event())
        _fails_in_a_transaction(store)
        assert record_event(store, event("evt_2")).is_new
        store.database.engine.dispose()
        assert row(store) and row(store, "evt_2")
    finally:
        store.columns.id.table.metadata.drop_all(store.database.engine)
        store.database.engine.dispose()


# Hosts that begin SQLite transactions by a hook


def _begins_itself(url: str) -> sa.Engine:
    engine = sa.create_engine(url)
    begin_by_itself(engine)
    return engine


def _always_in_a_transaction(url: str) -> sa.Engine:
    if sys.version_info < (3, 12):
        pytest.skip("sqlite3 has this since Python 3.12")
    return sa.create_engine(url, connect_args={"autocommit": False})


@pytest.mark.parametrize("make_engine", [_begins_itself, _always_in_a_transaction])
def test_answer_2xx_follows_the_commit_with_any_host_driver(
    make_app: MakeApp, tmp_path: Path, make_engine: Callable[[str], sa.Engine]
) -> None:
    engine = make_engine(f"sqlite:///{tmp_path / 'host.db'}")
    session = orm.scoped_session(orm.sessionmaker(engine))
    metadata = sa.MetaData()
    note = sa.Table("note", metadata, sa.Column("text", sa.String))
    webhooks = ProcoreWebhooks(metadata=metadata, session=session)
    app = make_app(PROCORE_WEBHOOK_DISPATCH="worker")
    app.register_blueprint(webhooks)
    metadata.create_all(engine)

    @webhooks.on()
    def write(event: Event) -> None:
        session.execute(note.insert().values(text=event.id))

    sent = [payload("RFIs.update") for _ in range(3)]
    for each in sent:
        assert deliver(app.test_client(), each).status_code == 200
    assert _committed(tmp_path, "SELECT status FROM procore_webhook_event") == [
        "pending"
    ] * len(sent)

    (endpoint,) = endpoints(app).values()
    assert Worker([endpoint], poll=1).run_all() == len(sent)
    assert _committed(tmp_path, "SELECT status FROM procore_webhook_event") == [
        "done"
    ] * len(sent)
    written = _committed(tmp_path, "SELECT text FROM note")
    assert sorted(written) == sorted(each["id"] for each in sent)
    engine.dispose()


def _committed(folder: Path, look: str) -> list[Any]:
    """The committed values of a query, as another process reads them."""
    with closing(sqlite3.connect(folder / "host.db")) as connection:
        return [value for (value,) in connection.execute(look)]
