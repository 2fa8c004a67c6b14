"""Outcomes of deliveries in the tally."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from flask import Flask
from support.counts import in_memory
from support.counts import in_table
from support.values import SECRET
from support.web import post

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.inbox import tally
from flask_procore_webhooks.storage.store import Store
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import payload

MakeApp = Callable[..., Flask]


def test_each_outcome_of_a_delivery_is_counted(app: Flask, store: Store) -> None:
    client, sent = app.test_client(), payload("RFIs.update")
    forged = {"X-Procore-Signature": "0" * 64}
    deliver(client, sent)
    deliver(client, sent)
    deliver(client, sent)
    deliver(client, {**sent, "other": 1})
    deliver(client, b"no JSON")
    deliver(client, payload("RFIs.update"), headers=forged)
    deliver(client, b"1" * (2**20 + 1))
    deliver(client, payload("RFIs.update"))
    counted = in_memory(store)
    expected = {"recorded": 2, "duplicate": 2, "conflict": 1}
    expected |= {"quarantined": 1, "rejected": 2}
    assert {name: counted.get(name) for name in expected} == expected
    tally.flush(store)
    assert in_memory(store) == {}
    found = in_table(store)
    assert {name: found.get(name) for name in expected} == expected


def test_event_that_the_loop_filter_ignores_is_counted(make_app: MakeApp) -> None:
    app = make_app(PROCORE_WEBHOOK_IGNORE_USER_IDS=["7"])
    app.register_blueprint(ProcoreWebhooks())
    (endpoint,) = endpoints(app).values()
    sent = payload("RFIs.update", user_id=7)
    deliver(app.test_client(), sent)
    deliver(app.test_client(), sent)
    expected = {"recorded": 1, "ignored": 1, "duplicate": 1}
    assert in_memory(endpoint.store) == expected


def test_unavailable_inbox_is_counted(
    make_app: MakeApp, tmp_path: Path, short_retries: None
) -> None:
    app = make_app(PROCORE_WEBHOOK_DATABASE_URI=f"sqlite:///{tmp_path}/no/inbox.db")
    app.register_blueprint(ProcoreWebhooks())
    (endpoint,) = endpoints(app).values()
    assert deliver(app.test_client(), payload("RFIs.update")).status_code == 503
    assert in_memory(endpoint.store) == {"unavailable": 1}


def test_failed_attempt_of_inline_is_counted_once(
    app: Flask, webhooks: ProcoreWebhooks, store: Store
) -> None:
    """The delivery is recorded, and its answer is 500."""

    @webhooks.on()
    def fails(event: object) -> None:
        raise ValueError

    assert deliver(app.test_client(), payload("RFIs.update")).status_code == 500
    counted = in_memory(store)
    assert counted["recorded"] == 1
    assert not {"rejected", "unavailable"} & set(counted)


def test_a_refused_delivery_executes_no_statement(app: Flask, store: Store) -> None:
    app.testing = False
    executed: list[Any] = []
    sa.event.listen(
        store.database.engine, "before_cursor_execute", lambda *all: executed.append(1)
    )
    assert post(app, b"{}").status_code == 401
    assert in_memory(store) == {"rejected": 1}
    assert executed == []


def test_endpoint_without_a_secret_never_touches_its_database(
    make_app: MakeApp,
) -> None:
    app = make_app(TESTING=False)
    del app.config["PROCORE_WEBHOOK_SECRET"]
    app.config["PROCORE_WEBHOOK_DISPATCH"] = "worker"
    app.register_blueprint(ProcoreWebhooks())
    (endpoint,) = endpoints(app).values()
    for _ in range(3):
        assert post(app, json.dumps(payload("RFIs.update")).encode()).status_code == 503
    assert in_memory(endpoint.store) == {"unavailable": 3}
    tally.flush_all()
    assert endpoint.store.database.opened is None
    assert not Path(app.instance_path).exists()


def test_an_endpoint_with_a_secret_adds_the_counts_of_one_without(
    make_app: MakeApp,
) -> None:
    """They share a database, which the one with a secret uses anyway."""
    app = make_app(TESTING=False, SECOND_SECRET=SECRET)
    del app.config["PROCORE_WEBHOOK_SECRET"]
    app.config["PROCORE_WEBHOOK_DISPATCH"] = app.config["SECOND_DISPATCH"] = "worker"
    app.register_blueprint(ProcoreWebhooks())
    second = ProcoreWebhooks("second", url_prefix="/2", config_prefix="SECOND_")
    app.register_blueprint(second)
    first, other = (endpoint.store for endpoint in endpoints(app).values())
    assert post(app).status_code == 503
    sent = payload("RFIs.update")
    assert deliver(app.test_client(), sent, endpoint="second").status_code == 200
    tally.flush_all()
    assert in_table(first) == {"unavailable": 1}
    assert in_table(other) == {"recorded": 1}
