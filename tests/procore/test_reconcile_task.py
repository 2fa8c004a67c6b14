"""The Celery task ``flask_procore_webhooks.reconcile``."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import datetime
from datetime import timedelta
from datetime import timezone
from pathlib import Path

import pytest
from reconcile_support import api_config
from reconcile_support import CLIENT_SECRET
from reconcile_support import integrated
from reconcile_support import Integration
from reconcile_support import MakeApp
from support.brokers import as_env
from support.brokers import Broker
from support.brokers import celery_worker
from support.brokers import disconnect
from support.brokers import own_broker
from support.documents import blocks
from support.inboxes import all_done
from support.inboxes import statuses
from support.waiting import wait_until

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.dispatching import tasks
from flask_procore_webhooks.dispatching.celery import RECONCILE
from flask_procore_webhooks.endpoint import endpoints

PROJECTS = [{"company": "1", "project": each} for each in ("2", "3")]
#: Seconds in which a worker starts and works, on a busy machine.
DEADLINE = 90.0


@pytest.fixture
def mine(make_app: MakeApp, database_url: str) -> Iterator[Integration]:
    """An integration with two projects, on each kind of database."""
    with integrated(make_app, database_url, SCOPES=PROJECTS) as mine:
        yield mine


@pytest.fixture
def redis() -> Iterator[Broker]:
    with own_broker("redis") as broker:
        yield broker


def reconcile(mine: Integration) -> int:
    """Run the task in the app's context, as a worker does."""
    with mine.app.app_context():
        return tasks.reconcile()


def test_task_inserts_lost_events_once(mine: Integration) -> None:
    mine.hook()
    mine.hook(project="3")
    there = mine.deliver(2)
    mine.is_down = True
    others = mine.emit(3, project="3")
    lost = mine.lose(2)
    assert reconcile(mine) == 5
    assert reconcile(mine) == 0
    mine.work()
    assert mine.called == sorted(there + others + lost)
    assert {entry["actor"] for entry in mine.journal()} == {"celery"}


def test_task_logs_the_scope_that_is_refused(
    mine: Integration, caplog: pytest.LogCaptureFixture
) -> None:
    mine.hook()
    mine.lose(2)
    mine.fake.forbid("1", "3")
    assert reconcile(mine) == 2
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert record.getMessage() == (
        "procore_webhooks, project 3 of company 1 is not reconciled: GET"
        " /rest/v2.0/companies/1/projects/3/webhooks/hooks: 403, Forbidden"
    )


def test_task_logs_what_the_control_has_stopped(
    mine: Integration, caplog: pytest.LogCaptureFixture
) -> None:
    mine.hook()
    mine.fake.switches.same_id = False
    mine.deliver(3)
    mine.lose()
    mine.fake.switches.delivery_payload = "v2"
    assert reconcile(mine) == 0
    assert "is not reconciled: of 3 delivered events, the inbox has" in caplog.text


def test_task_logs_the_scope_without_a_hook(
    mine: Integration, caplog: pytest.LogCaptureFixture
) -> None:
    mine.hook()
    mine.lose(2)
    assert reconcile(mine) == 2
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert record.getMessage() == (
        "procore_webhooks, project 3 of company 1 is not reconciled: Procore has no"
        " hook of namespace 'tracker' here: run hooks apply."
    )


def add_endpoint(mine: Integration, **config: object) -> None:
    """Another endpoint of the app, in an inbox of its own."""
    for key, value in {**api_config("http://127.0.0.1:9"), **config}.items():
        mine.app.config[f"BOLT_{key}"] = value
    made = ProcoreWebhooks("bolt", url_prefix="/bolt", config_prefix="BOLT_")
    mine.app.register_blueprint(made)


def test_wrong_setting_of_one_endpoint_leaves_the_others(
    make_app: MakeApp, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with integrated(make_app, f"sqlite:///{tmp_path / 'test.db'}") as mine:
        add_endpoint(mine, NAMESPACE=None)
        names = [*endpoints(mine.app)]
        assert names == ["procore_webhooks", "bolt"]
        mine.hook()
        mine.lose(2)
        assert reconcile(mine) == 2
        assert "bolt is not reconciled: " in caplog.text
        assert "BOLT_NAMESPACE is not set" in caplog.text


def test_endpoint_without_an_api_is_left_out(
    make_app: MakeApp, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with integrated(make_app, f"sqlite:///{tmp_path / 'test.db'}") as mine:
        add_endpoint(mine, API_CLIENT_ID=None)
        mine.hook()
        mine.lose(2)
        assert reconcile(mine) == 2
        assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


def test_task_without_an_app_says_so(caplog: pytest.LogCaptureFixture) -> None:
    assert tasks.reconcile() == 0
    assert RECONCILE in caplog.text


def test_inserted_events_are_published_in_the_mode_celery(
    make_app: MakeApp, tmp_path: Path, redis: Broker
) -> None:
    url = f"sqlite:///{tmp_path / 'test.db'}"
    with integrated(make_app, url, DISPATCH="celery") as mine:
        redis.celery(mine.app)
        mine.hook()
        mine.lose(3)
        assert reconcile(mine) == 3
        assert sorted(redis.taken_rows()) == [row["id"] for row in mine.rows()]
        assert mine.reconcile().exit_code == 0
        assert redis.take() == []
        disconnect(mine.app)


def test_documented_schedule_names_the_task(mine: Integration) -> None:
    (text,) = [
        e.text for e in blocks("docs/hooks.md", "python") if "beat_sch" in e.text
    ]
    assert f'"task": "{RECONCILE}"' in text


WORKER = """
from celery import Celery
from celery import Task
from flask import Flask

from flask_procore_webhooks import ProcoreWebhooks

app = Flask("tracker")
app.config.from_prefixed_env()
webhooks = ProcoreWebhooks()


@webhooks.on("RFIs", "update", name="noted")
def noted(event):
    pass


app.register_blueprint(webhooks)


class FlaskTask(Task):
    def __call__(self, *arguments, **options):
        with app.app_context():
            return self.run(*arguments, **options)


celery_app = Celery("tracker", task_cls=FlaskTask)
celery_app.config_from_object(app.config["CELERY"])
app.extensions["celery"] = celery_app
"""


@pytest.mark.slow
def test_beat_of_a_real_worker_reconciles_and_runs_what_was_lost(
    make_app: MakeApp, tmp_path: Path, redis: Broker
) -> None:
    (tmp_path / "reconciling_worker.py").write_text(WORKER)
    url = f"sqlite:///{tmp_path / 'test.db'}"
    start = datetime.now(timezone.utc) - timedelta(hours=14)
    with integrated(make_app, url, now=start, DISPATCH="celery") as mine:
        redis.celery(mine.app)
        mine.hook()
        mine.lose(3)
        mine.rows()
        schedule = {"reconcile": {"task": RECONCILE, "schedule": 1.0}}
        env = {
            f"FLASK_{key}": as_env(value)
            for key, value in mine.app.config.items()
            if key.startswith("PROCORE_WEBHOOK_")
        }
        env["FLASK_CELERY"] = as_env(redis.config(beat_schedule=schedule))
        assert CLIENT_SECRET in env["FLASK_PROCORE_WEBHOOK_API_CLIENT_SECRET"]
        beat = ("-B", "-s", f"{tmp_path / 'beat'}", "-c", "1")
        name = "reconciling_worker:celery_app"
        with celery_worker(name, tmp_path, env, *beat) as worker:
            wait_until(
                all_done(mine.store, 3),
                DEADLINE,
                lambda: f"{statuses(mine.store)} {worker.output()}",
            )
        disconnect(mine.app)
