"""Claims and leases in several processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from collections.abc import Iterator

import pytest
from flask import Flask
from support.inboxes import numbered
from support.inboxes import record
from support.processes import run_at_once
from support.processes import scripts

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.storage.store import Store

MakeApp = Callable[..., Flask]


@pytest.fixture
def app(
    make_app: MakeApp, webhooks: ProcoreWebhooks, database_url: str
) -> Iterator[Flask]:
    """An app with an inbox of its own, on each database in turn."""
    app = make_app(
        PROCORE_WEBHOOK_DATABASE_URI=database_url, PROCORE_WEBHOOK_DISPATCH="worker"
    )
    app.register_blueprint(webhooks)
    yield app
    for endpoint in endpoints(app).values():
        endpoint.store.database.engine.dispose()


CLAIMER = """
import json, sys
from flask import Flask
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.endpoint import endpoints
from support.inboxes import claim_all, due_rows

order = json.loads(sys.stdin.readline())
app = Flask("child")
app.config.update(order["config"])
ProcoreWebhooks().init_app(app)
(endpoint,) = endpoints(app).values()
due_rows(endpoint.store)
print("ready", flush=True)
sys.stdin.readline()
print(json.dumps(claim_all(endpoint.store, order["limit"])), flush=True)
"""


@pytest.mark.slow
def test_processes_that_claim_at_once_never_get_the_same_event(
    app: Flask, store: Store
) -> None:
    record(store, *numbered(200))
    keys = ("PROCORE_WEBHOOK_SECRET", "PROCORE_WEBHOOK_DATABASE_URI")
    config = {key: app.config[key] for key in keys}
    orders = [{"config": config, "limit": limit} for limit in (1, 5, 32)]
    found = run_at_once(CLAIMER, orders)

    assert sorted(id for each in found for id in each) == sorted(numbered(200))


FORKS = """
import json, os, sys, time
from flask import Flask
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.inbox.batches import claim_due
from flask_procore_webhooks.running.leases import renewing
from support.inboxes import by_id, record
from support.waiting import wait_until

config = json.loads(sys.stdin.readline())
app = Flask("child")
app.config.update(config)
ProcoreWebhooks().init_app(app)
(endpoint,) = endpoints(app).values()
record(endpoint.store, "evt_1", "evt_2")
first, second = claim_due(endpoint.store, 2, 600)

def wait_for_renewal(id):
    before = by_id(endpoint.store)[id]["due_at"]
    wait_until(lambda: by_id(endpoint.store)[id]["due_at"] != before, 30)

with renewing(endpoint.store, [first], 1) as held:
    assert held.start(first)
    wait_for_renewal("evt_1")
    if os.fork() == 0:
        with renewing(endpoint.store, [second], 1) as held:
            assert held.start(second)
            wait_for_renewal("evt_2")
            os._exit(7)
    _, status = os.wait()
    wait_for_renewal("evt_1")
print(os.waitstatus_to_exitcode(status), flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_leases_are_renewed_in_a_forked_process_too(app: Flask, store: Store) -> None:
    keys = ("PROCORE_WEBHOOK_SECRET", "PROCORE_WEBHOOK_DATABASE_URI")
    config = {key: app.config[key] for key in keys}
    with scripts(FORKS, [config]) as (child,):
        assert child.rest() == "7\n"
