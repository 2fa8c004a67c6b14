"""``reconcile``: inserts that fail, shared hooks, and events that nothing runs."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flask import request
from reconcile_support import integrated
from reconcile_support import Integration
from reconcile_support import MakeApp
from reconcile_support import SCOPE
from support.commands import run_apart
from support.inboxes import own_rows

from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import RetryLater
from flask_procore_webhooks.dispatching import tasks
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.hooks.insertion import AT_ONCE

PROJECTS = [{"company": "1", "project": each} for each in ("2", "3")]
SHARED = (
    "{} and {} ask for the same hook, of 'tracker' in project 2 of company 1: give each"
    " its own NAMESPACE."
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "test.db"


@pytest.fixture
def mine(make_app: MakeApp, file: Path) -> Iterator[Integration]:
    """An integration with two projects, on a SQLite file."""
    with integrated(make_app, f"sqlite:///{file}", SCOPES=PROJECTS) as mine:
        yield mine


def execute(file: Path, *statements: str) -> None:
    """Change the database as its owner may."""
    with closing(sqlite3.connect(file)) as connection, connection:
        for each in statements:
            connection.execute(each)


def refuse(mine: Integration, file: Path, number: int) -> None:
    """Have the database refuse further events when it has so many."""
    table = mine.store.columns.id.table.name
    execute(
        file,
        f"CREATE TRIGGER refusing BEFORE INSERT ON {table}"
        f" WHEN (SELECT count(*) FROM {table}) >= {number}"
        " BEGIN SELECT RAISE(ABORT, 'a rule of the host'); END",
    )


# A row that the database refuses


@pytest.mark.parametrize("dispatch", ["worker", "inline"])
def test_refused_row_is_an_error_of_its_hook_after_the_parts_before(
    make_app: MakeApp, file: Path, dispatch: str
) -> None:
    url = f"sqlite:///{file}"
    with integrated(make_app, url, SCOPES=PROJECTS, DISPATCH=dispatch) as mine:
        mine.hook()
        mine.hook(project="3")
        mine.is_down = True
        others = mine.emit(3, project="3")
        lost = mine.lose(2 * AT_ONCE + 50)
        mine.rows()
        refuse(mine, file, AT_ONCE + 20)
        first, second = mine.reports(code=1)
        assert first["error"] == (
            "the database refused an event (IntegrityError), after 100 were inserted"
        )
        assert (first["missing"], first["inserted"]) == (len(lost), AT_ONCE)
        assert (second["error"], second["inserted"]) == (None, 3)
        assert len(set(mine.recorded) & set(lost)) == AT_ONCE
        assert set(mine.recorded) - set(lost) == set(others)
        entries = {each["expected"]: each["actual"] for each in mine.journal()}
        assert entries == {len(lost): AT_ONCE, 3: 3}
        mine.work()
        assert mine.called == mine.recorded


def test_run_after_a_refused_row_completes(mine: Integration, file: Path) -> None:
    mine.hook()
    mine.hook(project="3")
    lost = mine.lose(AT_ONCE + 50)
    mine.rows()
    refuse(mine, file, AT_ONCE + 20)
    mine.fake.advance(days=5)
    mine.reports(code=1)
    execute(file, "DROP TRIGGER refusing")
    assert mine.reports(code=2)[0]["inserted"] == 50
    assert mine.recorded == lost


# An inbox that cannot be read


@contextmanager
def away_from_the_second_project(mine: Integration, file: Path) -> Iterator[None]:
    """Take the state table away when the hooks of project 3 are asked for."""
    table = mine.store.database.tables.state.name

    @mine.fake.before_request
    def before() -> None:
        if request.path.endswith("/projects/3/webhooks/hooks"):
            execute(file, f"ALTER TABLE {table} RENAME TO away")

    yield
    execute(file, f"ALTER TABLE away RENAME TO {table}")


def test_inbox_that_is_unreadable_when_a_hook_begins_is_an_error_of_it(
    mine: Integration, file: Path
) -> None:
    mine.hook()
    hook = mine.hook(project="3")
    mine.is_down = True
    mine.emit(3, project="3")
    lost = mine.lose(2)
    mine.rows()
    with away_from_the_second_project(mine, file):
        first, second = mine.reports(code=1)
    assert (first["error"], first["inserted"]) == (None, 2)
    assert (second["hook"], second["project"]) == (hook, "3")
    assert second["error"].startswith("the inbox cannot be used: ")
    assert mine.recorded == lost


# Two endpoints that ask for one hook


def add_endpoint(mine: Integration, **config: Any) -> None:
    """Another endpoint of the app, by default of the same namespace and scopes."""
    for key, value in [*mine.app.config.items()]:
        if key.startswith("PROCORE_WEBHOOK_"):
            mine.app.config[key.replace("PROCORE_WEBHOOK_", "BOLT_")] = value
    for key, value in config.items():
        mine.app.config[f"BOLT_{key}"] = value
    added = ProcoreWebhooks("bolt", url_prefix="/bolt", config_prefix="BOLT_")
    mine.app.register_blueprint(added)
    endpoints(mine.app)["bolt"].store.now = mine.fake.clock.now


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ([], ("procore_webhooks", "bolt")),
        (["--endpoint", "bolt"], ("bolt", "procore_webhooks")),
        (["--dry-run"], ("procore_webhooks", "bolt")),
    ],
)
def test_command_refuses_two_endpoints_with_one_hook(
    mine: Integration, options: list[str], names: tuple[str, str]
) -> None:
    add_endpoint(mine, SCOPES=[SCOPE])
    mine.hook()
    mine.lose(2)
    result = run_apart(mine.app, "reconcile", *options)
    assert result.exit_code == 1
    assert result.stderr == f"Error: {SHARED.format(*names)}\n"
    assert mine.list_requests() == 0
    assert mine.recorded == own_rows(endpoints(mine.app)["bolt"].store) == []


def test_task_refuses_two_endpoints_with_one_hook(
    mine: Integration, caplog: pytest.LogCaptureFixture
) -> None:
    add_endpoint(mine, SCOPES=[SCOPE])
    mine.hook()
    mine.lose(2)
    with mine.app.app_context():
        assert tasks.reconcile() == 0
    found = [each.getMessage() for each in caplog.records]
    names = ["procore_webhooks", "bolt"]
    assert found == [
        f"{one} is not reconciled: {SHARED.format(one, other)}"
        for one, other in (names, names[::-1])
    ]
    assert mine.recorded == []


@pytest.mark.parametrize(
    "config",
    [
        {"NAMESPACE": "bolt"},
        {"SCOPES": [{"company": "1", "project": "9"}]},
        {"API_URL": "http://127.0.0.1:9"},
        {"API_CLIENT_ID": None},
        {"SCOPES": None},
    ],
    ids=str,
)
def test_endpoint_beside_one_of_another_hook_is_reconciled(
    mine: Integration, config: dict[str, Any]
) -> None:
    add_endpoint(mine, **config)
    mine.hook()
    mine.hook(project="3")
    lost = mine.lose(2)
    result = run_apart(mine.app, "reconcile", "--endpoint", "procore_webhooks")
    assert result.exit_code == 2
    assert mine.recorded == lost


# Events that nothing runs


def waiting(number: int) -> list[str]:
    return [
        f"{number} reconciled events are not finished. With DISPATCH 'inline', only"
        " flask procore-webhooks worker runs them."
    ]


@pytest.fixture
def inline(make_app: MakeApp, file: Path) -> Iterator[Integration]:
    """An integration that runs events at once."""
    url = f"sqlite:///{file}"
    with integrated(make_app, url, SCOPES=PROJECTS, DISPATCH="inline") as mine:
        yield mine


def test_later_inline_run_notes_what_a_stopped_one_has_left(
    inline: Integration,
) -> None:
    @inline.webhooks.on("RFIs", "update", name="ends")
    def ends(event: Event) -> None:
        if len(inline.calls) < 2:
            raise KeyboardInterrupt

    inline.hook()
    inline.hook(project="3")
    lost = inline.lose(3)
    assert run_apart(inline.app, "reconcile").exit_code == 1
    first, second = inline.reports(code=0)
    assert (first["notes"], second["notes"]) == (waiting(3), [])
    inline.fake.advance(hours=1)
    inline.work()
    inline.work()
    assert set(inline.called) == set(lost)
    assert inline.reports(code=0)[0]["notes"] == []


def test_inline_run_notes_what_it_leaves_itself(inline: Integration) -> None:
    @inline.webhooks.on("RFIs", "update", name="later")
    def later(event: Event) -> None:
        raise RetryLater(3600)

    inline.hook()
    inline.hook(project="3")
    inline.is_down = True
    inline.emit(2, project="3")
    inline.lose(3)
    first, second = inline.reports(code=2)
    assert (first["notes"], second["notes"]) == (waiting(3), waiting(5))


def test_inline_run_that_leaves_nothing_has_no_note(inline: Integration) -> None:
    inline.hook()
    inline.hook(project="3")
    inline.lose(3)
    assert [each["notes"] for each in inline.reports(code=2)] == [[], []]


def test_events_that_wait_for_a_worker_are_not_noted(mine: Integration) -> None:
    mine.hook()
    mine.hook(project="3")
    mine.lose(3)
    assert [each["notes"] for each in mine.reports(code=2)] == [[], []]


def test_task_logs_the_notes(
    inline: Integration, caplog: pytest.LogCaptureFixture
) -> None:
    inline.rewrite(lambda row: row.update(status="expired"))
    inline.hook()
    inline.hook(project="3")
    inline.lose(2)
    with inline.app.app_context():
        assert tasks.reconcile() == 0
    (record,) = [each for each in caplog.records if "expired" in each.getMessage()]
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(
        "procore_webhooks, project 2 of company 1: 2 events have a status"
    )
