"""Every command when the inbox's database or tables are missing."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from support.commands import down
from support.commands import mounted
from support.commands import run
from support.jobs import add_event
from support.jobs import failed
from support.sites import open_site
from support.sites import Site

MakeApp = Callable[..., Flask]


@pytest.mark.parametrize("kind", ["postgresql", "mariadb", "sqlite", "no driver"])
@pytest.mark.parametrize("command", ["check", "init-db", "list", "stats", "show 1"])
def test_unreachable_database_is_reported_in_one_sentence(
    make_app: MakeApp, tmp_path: Path, kind: str, command: str
) -> None:
    (tmp_path / "file").write_text("not a folder")
    uri = down(kind, tmp_path)
    app = mounted(make_app(PROCORE_WEBHOOK_DATABASE_URI=uri))
    shown = run(app, *command.split(), ok=False).output
    assert re.search("refused|Can't connect|unable to open|Can't load plugin", shown)
    assert "hunter2" not in shown and "Background on this error" not in shown
    if command == "check" and kind != "no driver":
        assert f"  database {uri.replace('hunter2', '***')}" in shown


@pytest.mark.parametrize("command", ["list", "stats", "show 1"])
def test_missing_tables_error_names_init_db(host: Flask, command: str) -> None:
    shown = run(host, *command.split(), ok=False).output
    assert "missing tables: procore_webhook_event" in shown and "init-db" in shown


COMMANDS = [
    "replay --all",
    "replay evt_1",
    "discard --all",
    "progress 1a2b3c4d",
    "journal",
    "prune",
    "pause",
    "resume",
    "list --reason update",
    "show evt_1",
    "stats",
    "worker --once",
]


@pytest.mark.seldom("mariadb")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", ["postgresql", "mariadb", "sqlite"])
def test_every_command_reports_an_unreachable_database_in_one_sentence(
    make_app: MakeApp, tmp_path: Path, kind: str, command: str
) -> None:
    (tmp_path / "file").write_text("not a folder")
    with open_site(make_app(), down(kind, tmp_path)) as site:
        result = run(site.app, *command.split(), ok=False)
    _check_sentence(result)
    assert "hunter2" not in result.output


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_reports_missing_tables_with_init_db(
    site: Site, command: str
) -> None:
    site.send(id="evt_1")
    tables = site.store.database.tables
    tables.event.metadata.drop_all(site.store.database.engine)
    result = run(site.app, *command.split(), ok=False)
    _check_sentence(result)
    assert "missing tables: procore_webhook_event" in result.output
    assert "init-db" in result.output


@pytest.mark.parametrize(
    ("table", "commands"),
    [
        ("journal", ("replay --all", "discard --all", "pause", "show evt_1")),
        ("state", ("pause", "stats", "worker --once")),
        ("job", ("replay --all", "discard --all")),
    ],
)
def test_commands_name_a_missing_table(
    site: Site, table: str, commands: tuple[str, ...]
) -> None:
    """A table is missing after an upgrade without a migration."""
    row = add_event(site.store, "evt_1", failed("bad", "ValueError: broken"))
    tables = site.store.database.tables
    getattr(tables, table).drop(site.store.database.engine)
    for command in commands:
        result = run(site.app, *command.split(), ok=False)
        _check_sentence(result)
        assert f"missing tables: procore_webhook_{table};" in result.output, command
    assert site.row(row)["status"] == "dead", "nothing is half replayed"


def _check_sentence(result: Any) -> None:
    errors = [line for line in result.output.splitlines() if line.startswith("Error")]
    assert result.exit_code == 1
    (error,) = errors
    assert error.startswith("Error: the inbox cannot be used")
    assert "Traceback" not in result.output
    assert "Background on this error" not in result.output
