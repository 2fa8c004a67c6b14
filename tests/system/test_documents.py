"""README, CONTRIBUTING and docs/: every code block, link and table."""

from __future__ import annotations

import json
import os
import re
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from datetime import timedelta
from datetime import timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from flask import Flask
from flask import has_app_context
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import MetaData
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column
from support.documents import Block
from support.documents import blocks
from support.documents import documents
from support.documents import file_block
from support.documents import headings
from support.documents import links
from support.documents import ROOT
from support.documents import text_of
from support.jobs import add_event
from support.jobs import failed
from support.servers import serve
from support.servers import Server
from support.shells import check_shell
from support.shells import LANGUAGES
from support.values import SECRET
from support.waiting import PATIENCE
from support.waiting import wait_until

import flask_procore_webhooks
from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import testing
from flask_procore_webhooks.api import ProcoreAPI
from flask_procore_webhooks.config import KEYS
from flask_procore_webhooks.config import Settings
from flask_procore_webhooks.dispatching.tasks import register_tasks
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.fake.answers import KINDS
from flask_procore_webhooks.inbox.status import JobState
from flask_procore_webhooks.inbox.status import Status
from flask_procore_webhooks.running.failures import longest_backoff
from flask_procore_webhooks.schema.tables import define_tables
from flask_procore_webhooks.testing import FakeProcore

EXAMPLE_ID = "01HYPOTHETICALEVENT"
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
README = "README.md"
PAGES = [each for each in documents() if each.startswith("docs/")]
READMES = sorted(
    str(path.relative_to(ROOT))
    for folder in ("benchmarks", "examples")
    for path in (ROOT / folder).rglob("README.md")
)


# Every document


def test_the_readme_is_short() -> None:
    assert len(text_of(README).splitlines()) <= 150


def test_the_readme_begins_with_two_commands() -> None:
    assert blocks(README, "sh")[0].text == "make demo\nmake test\n"


def test_the_index_lists_every_page() -> None:
    listed = {f"docs/{link}" for link in links("docs/index.md")}
    assert listed == {*PAGES} - {"docs/index.md"}


@pytest.mark.parametrize("document", [*documents(), *READMES])
def test_links_lead_to_a_page_and_a_heading(document: str) -> None:
    for link in links(document):
        path, _, anchor = link.partition("#")
        target = (ROOT / document).parent / path if path else ROOT / document
        assert target.exists(), link
        if anchor:
            found = headings(str(target.resolve().relative_to(ROOT)))
            assert anchor in found, link


def test_every_block_has_a_test() -> None:
    """test_scaling.py runs SQL; tests below name the blocks that are files."""
    run = {"python", "sql", "text"}
    unknown = [str(b) for b in blocks() if b.language not in {*run, *LANGUAGES}]
    # Drawings in architecture.md have no language.
    assert [each for each in unknown if "architecture" not in each] == []
    assert {b.document for b in blocks(language="sql")} <= {"docs/scaling.md"}
    source = Path(__file__).read_text()
    named = set(re.findall(r'file_block\("([\w./]+)", "([\w./]+)"\)', source))
    assert named == {(b.document, b.file) for b in blocks() if b.file}


@pytest.mark.parametrize(
    "block", [b for b in blocks() if b.language in LANGUAGES], ids=str
)
def test_other_languages_than_python_are_well_formed(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("body.json").touch()
    LANGUAGES[block.language](block.text)


@pytest.mark.parametrize(
    "wrong",
    [
        "flask procore-webhooks lists",
        "flask procore-webhooks list --state dead",
        "flask procore-webhooks hooks",
        "flask procore-webhooks hooks plans",
        "flask procore-webhooks hooks plan --rotate",
        'export FLASK_PROCORE_WEBHOOK_CLIENT_ID="1"',
        "python -m flask_procore_webhooks list",
        "flask --app app procore-webhooks list | make nothing",
        "unknown",
        "pip install 'flask-procore-webhooks[no-such]'",
    ],
)
def test_the_check_of_shell_blocks_finds_mistakes(wrong: str) -> None:
    with pytest.raises((KeyError, AssertionError, click.ClickException)):
        check_shell(wrong)


@pytest.mark.parametrize("page", [d for d in documents() if blocks(d, "python")])
def test_python_blocks_run(page: str, host: Flask) -> None:
    assert run_blocks(page, host)


# Tables


def test_every_setting_is_in_the_table() -> None:
    text = text_of("docs/configuration.md")
    cells = re.findall(r"^\| (`[A-Z_`, ]+) \|", text, re.MULTILINE)
    assert re.findall(r"\w+", " ".join(cells)) == list(KEYS)


def test_every_command_is_in_the_table() -> None:
    text = text_of("docs/operations.md")
    table = text[: text.index("## Status of an event")]
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    (hooks,) = [cell for cell in cells if "hooks" in cell]
    cells.remove(hooks)
    listed = re.findall(r"`([a-z-]+)`", " ".join(cells))
    group = ProcoreWebhooks().cli
    context = click.Context(group)
    names = group.list_commands(context)
    commands = {name: group.get_command(context, name) for name in names}
    assert {*listed, "hooks"} == set(commands)
    below = commands["hooks"]
    assert isinstance(below, click.Group)
    assert set(re.findall(r"([a-z]+)`", hooks)) == set(below.commands)


def test_every_broken_answer_of_the_fake_is_described() -> None:
    text = text_of("docs/testing.md")
    text = text[text.index("### Broken answers") : text.index("### A Procore")]
    assert set(re.findall(r'[(`]"([\w ]+)"[`,]', text)) == set(KINDS)


def test_every_public_signal_is_described() -> None:
    from blinker import NamedSignal

    text = text_of("docs/signals.md")
    public = vars(flask_procore_webhooks)
    signals = {name for name, it in public.items() if isinstance(it, NamedSignal)}
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == signals


def test_every_attribute_of_an_event_is_described() -> None:
    text = text_of("docs/subscribing.md")
    table = text[text.index("## The event") :]
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    listed = re.findall(r"`(\w+)`", " ".join(cells))
    assert set(listed) == set(Event.__dataclass_fields__)


def test_the_times_to_dead_are_those_of_the_defaults() -> None:
    text, settings = text_of("docs/configuration.md"), Settings()

    def longest(attempts: int) -> int:
        waits = [longest_backoff(n, settings) for n in range(1, attempts)]
        return int(sum(waits))

    def clock(seconds: float) -> str:
        return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"

    whole = longest(settings.max_attempts)
    assert f"the {settings.max_attempts - 1} waits together" in text
    assert f"| at least | {whole // 2} | {clock(whole / 2)};" in text
    assert f"| on average | {whole * 3 // 4} | {clock(whole * 3 / 4)} |" in text
    assert f"| at most | {whole} | {clock(whole)} |" in text
    assert whole / 2 >= 24 * 3600
    for attempts in (12, 24, settings.max_attempts):
        least, most = clock(longest(attempts) / 2), clock(longest(attempts))
        assert f"| {attempts} | {least} | {most} |" in text


def test_every_module_is_in_the_tables_of_the_architecture() -> None:
    text = text_of("docs/architecture.md")
    text = text[text.index("## Modules") : text.index("## What belongs")]
    package = Path(flask_procore_webhooks.__file__).parent
    for table in text.split("\n\n"):
        title = re.match(r"\| (?:module|`(\w+)/`) \| contents \|", table)
        if title is None:
            continue
        rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)[bool(title[1]) :]
        listed = re.findall(r"`(\w+)/?`", " ".join(rows))
        folder = package / (title[1] or "")
        modules = {file.stem for file in folder.glob("*.py")}
        folders = {each.parent.name for each in folder.glob("*/__init__.py")}
        assert sorted(listed) == sorted(modules - {"__init__"} | folders), title[0]


def test_every_column_is_in_the_tables_of_the_architecture() -> None:
    text = text_of("docs/architecture.md")
    text = text[text.index("## Tables") : text.index("## Operations beside runs")]
    parts = re.split(r"^`(procore_webhook_\w+)` ", text, flags=re.MULTILINE)[1:]
    described = dict(zip(parts[::2], parts[1::2], strict=True))
    tables = {each.name: each for each in define_tables(MetaData())}
    assert set(described) == set(tables)
    for name, part in described.items():
        (table,) = re.findall(r"\| column \| \|\n\|---\|---\|\n((?:\|.*\n)+)", part)
        rows = re.findall(r"^\| (.*?) \|", table, re.MULTILINE)
        listed = re.findall(r"`(\w+)`", " ".join(rows))
        assert sorted(listed) == sorted(tables[name].columns.keys()), name


def test_tests_that_the_architecture_names_exist() -> None:
    named = set(re.findall(r"`(test_\w+)`", text_of("docs/architecture.md")))
    sources = "".join(each.read_text() for each in (ROOT / "tests").rglob("test_*.py"))
    assert named
    assert named <= set(re.findall(r"^def (test_\w+)", sources, re.MULTILINE))


def test_every_status_and_state_is_described() -> None:
    text = text_of("docs/operations.md")
    table = r"^\| (?:status|state) \| meaning \|\n((?:\|.*\n)+)"
    statuses, states = re.findall(table, text, re.MULTILINE)
    row = re.compile(r"^\| `(\w+)` \|", re.MULTILINE)
    assert sorted(row.findall(statuses)) == sorted(map(str, Status))
    assert sorted(row.findall(states)) == sorted(map(str, JobState))


# Blocks that are files


def test_ten_lines_receive_a_delivery(tmp_path: Path) -> None:
    """The README's app.py runs under the README's server and commands."""
    (tmp_path / "app.py").write_text(file_block("README.md", "app.py"))
    _, start, then = blocks(README, "sh")
    export, run = start.text.splitlines()
    assert run == "flask run --port 8000"
    env = dict([shlex.split(export)[1].split("=", 1)])
    with serve("app", server="flask", folder=tmp_path, env=env) as server:
        shown = shell(then.text, tmp_path, server, **env)
        wait_until(lambda: "RFI 4001 of project 3001 changed" in server.output())
    assert "200" in shown and '{"received": true}' in shown
    assert "RFIs.update" in shown


def test_the_app_factory_of_the_readme_runs_its_subscribers(tmp_path: Path) -> None:
    write_tracker(tmp_path)
    write(tmp_path, "tests/conftest.py", file_block("README.md", "tests/conftest.py"))
    write(
        tmp_path,
        "tests/test_rfis.py",
        "def test_rfi(procore_webhooks, capsys):\n"
        "    sent = procore_webhooks.payload('RFIs.update', resource_id=7)\n"
        "    assert procore_webhooks.deliver(sent).status_code == 200\n"
        "    assert 'synced 7' in capsys.readouterr().out\n",
    )
    assert "1 passed" in run_pytest(tmp_path, "tests")


def test_the_tests_of_the_testing_page_pass(tmp_path: Path) -> None:
    write(tmp_path, "app.py", file_block("README.md", "app.py"))
    write(tmp_path, "test_app.py", file_block("docs/testing.md", "test_app.py"))
    assert "3 passed" in run_pytest(tmp_path, "test_app.py")


def test_nothing_is_missing_after_the_outage_of_the_testing_page(
    tmp_path: Path,
) -> None:
    write_tracker(tmp_path)
    test = file_block("docs/testing.md", "tests/test_outage.py")
    write(tmp_path, "tests/test_outage.py", test)
    assert "1 passed" in run_pytest(tmp_path, "tests")


def test_the_tests_of_the_readme_write_nothing_in_development(tmp_path: Path) -> None:
    write_tracker(tmp_path)
    test = "def test_events(procore_webhooks): assert procore_webhooks.events() == []\n"
    write(tmp_path, "tests/conftest.py", file_block("README.md", "tests/conftest.py"))
    write(tmp_path, "tests/test_rfis.py", test)
    run_pytest(tmp_path, "tests")
    assert not [*tmp_path.rglob("*.db")]


def test_the_procore_of_the_testing_page_gives_a_token(tmp_path: Path) -> None:
    script = file_block("docs/testing.md", "fake_procore.py")
    # A free port.
    write(tmp_path, "fake_procore.py", script.replace("serve(8001)", "serve()"))
    with subprocess.Popen(
        [sys.executable, "fake_procore.py"],
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as procore:
        assert procore.stdin and procore.stdout
        said = re.match(r"Procore is at (http://\S+)\. ", procore.stdout.readline())
        assert said
        api = ProcoreAPI(
            "id",
            "a client secret",
            company_id="1",
            base_url=said[1],
            login_url=said[1],
        )
        path = "/rest/v2.0/companies/1/projects/3/webhooks/hooks"
        assert api.get(path) == {"data": []}
        procore.communicate("\n", timeout=PATIENCE)
    assert procore.returncode == 0


@pytest.mark.slow
def test_the_quickstart_with_a_database_of_its_own(tmp_path: Path) -> None:
    write(tmp_path, "app.py", file_block("docs/quickstart.md", "app.py"))
    write(
        tmp_path,
        "create_all.py",
        "from app import create_app, db\n"
        "with create_app().app_context(): db.create_all()\n",
    )
    env = {"PROCORE_WEBHOOK_SECRET": SECRET}
    _, init_db, look = (block.text for block in blocks("docs/quickstart.md", "sh"))
    assert "procore_webhook_event" in shell(init_db, tmp_path, **env)
    shell("python create_all.py", tmp_path, **env)
    with serve("app", server="flask", folder=tmp_path, env=env) as server:
        shell(
            "flask procore-webhooks trigger RFIs.create"
            " --url http://127.0.0.1:8000/webhooks/procore",
            tmp_path,
            server,
            **env,
        )
        store = tmp_path / "instance" / "tasks.db"
        wait_until(lambda: select(store, "SELECT text FROM task"))
        assert "Deliveries can come in." in shell(look, tmp_path, **env)
    assert select(store, "SELECT text FROM task") == [("Answer RFI 4001",)]


ALERT = re.search(
    r"/(flask procore-webhooks stats .*)",
    (ROOT / "docs" / "production.md").read_text(),
)


def test_the_alert_exits_with_the_condition_that_holds(app: Flask) -> None:
    assert ALERT
    command = shlex.split(ALERT[1])[1:]
    (endpoint,) = endpoints(app).values()
    runner = app.test_cli_runner()
    ran = runner.invoke(args=command)
    # cron mails any output.
    assert (ran.exit_code, ran.output) == (0, "")
    add_event(endpoint.store, "evt_1", failed("sync", "OSError: no"))
    ran = runner.invoke(args=command)
    assert ran.exit_code == 2 and "FAILS: dead_jobs>0" in ran.output


# Commands


FAILING_APP = """
import logging
import os

from flask import Flask
from flask_procore_webhooks import ProcoreWebhooks

logging.basicConfig()  # else check --strict fails
webhooks = ProcoreWebhooks()
app = Flask(__name__)
app.config["PROCORE_WEBHOOK_SECRET"] = "a secret of the documents"
app.config["PROCORE_WEBHOOK_MAX_ATTEMPTS"] = 1
app.register_blueprint(webhooks)


@webhooks.on("RFIs", "update")
def fail(event):
    if not os.path.exists("mended"):
        raise ConnectionError("Procore does not answer")
"""


def test_a_failed_event_is_found_understood_and_run_again(tmp_path: Path) -> None:
    """The documented commands suffice."""
    write(tmp_path, "app.py", FAILING_APP)
    find, show, replay = blocks("docs/operations.md", "sh")[0].text.splitlines()
    (worker,) = blocks("docs/dispatch.md", "sh")[0].text.splitlines()
    with serve("app", server="flask", folder=tmp_path) as server:
        url = f"{server.url}/webhooks/procore"
        shell(f"flask procore-webhooks trigger RFIs.update --url {url}", tmp_path)
        # Let the app's thread finish its run.
        wait_until(lambda: "fail failed for" in server.output())
        wait_until(lambda: "dead" in shell(find, tmp_path))
    shell(f"{worker} --once", tmp_path)
    (event_id,) = re.findall(r"evt_\w+", shell(find, tmp_path))
    show, replay = (line.replace(EXAMPLE_ID, event_id) for line in (show, replay))
    assert "fail: ConnectionError: Procore does not" in shell(show, tmp_path)
    (tmp_path / "mended").touch()
    assert "replayed 1" in shell(replay, tmp_path)
    shell(f"{worker} --once", tmp_path)
    shown = shell(show, tmp_path)
    assert re.search(r"^status +done$", shown, re.MULTILINE)
    assert re.search(r"^\d{4}\S+ \S+  replay by ", shown, re.MULTILINE)


@pytest.mark.slow
def test_the_other_commands_of_operations_run(tmp_path: Path) -> None:
    write(tmp_path, "app.py", FAILING_APP)
    write(tmp_path, "mended", "")
    write(tmp_path, "body.json", "{}")
    _, *others = blocks("docs/operations.md", "sh")
    with serve("app", server="flask", folder=tmp_path) as server:
        url = f"{server.url}/webhooks/procore"
        data = f"""--data '{{"id": "{EXAMPLE_ID}"}}'"""
        shell(
            f"flask procore-webhooks trigger RFIs.update {data} --url {url}", tmp_path
        )
        for block in others:
            # A forgery is refused, with a reason.
            status = 1 if " verify " in block.text else 0
            env = {"PROCORE_WEBHOOK_SECRET": "a secret of the documents"}
            shell(block.text, tmp_path, server, status=status, **env)


# Blocks that belong to an app


def test_every_signal_reaches_its_receiver(
    host: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    run_blocks("docs/signals.md", host)
    host.config["PROCORE_WEBHOOK_MAX_ATTEMPTS"] = 2
    caplog.set_level("INFO")
    webhooks = ProcoreWebhooks("watched", url_prefix="/watched")
    host.register_blueprint(webhooks)

    @webhooks.on("Broken")
    def fail(event: Event) -> None:
        raise ValueError("broken")

    client = host.test_client()

    def send(type: str, **more: Any) -> int:
        sent = testing.payload(type, format="v4", id="evt_1", resource_id="7")
        sent |= more
        return testing.deliver(client, sent, endpoint="watched").status_code

    for id, reason in enumerate(("create", "update", "delete")):
        assert send(f"RFIs.{reason}", id=str(id)) == 200
    assert send("RFIs.delete", id="2", user_id="9") == 200
    assert (send("Broken.update"), send("Broken.update")) == (500, 200)
    # fmt: off
    expected = [
        "audit RFIs.create", "created 7", "updated 7", "deleted 7",
        "recorded 0", "processed 0", "repeated 2, conflict True",
        "failed evt_1: ", "dead evt_1: ", "watched rejected with 500: ",
    ]
    # fmt: on
    lines = [record.getMessage() for record in caplog.records]
    for each in expected:
        assert [line for line in lines if line.startswith(each)], each
    assert lines.index("recorded 0") < lines.index("created 7")
    assert lines.index("created 7") < lines.index("processed 0")


def test_a_receiver_in_a_worker_has_an_app_context(host: Flask) -> None:
    seen = []
    watched = ProcoreWebhooks("watched", url_prefix="/watched")

    @watched.on()
    def work(event: Event) -> None: ...

    @flask_procore_webhooks.event_processed.connect
    def look(app: Flask, event: Event) -> None:
        seen.append(has_app_context())

    host.config["PROCORE_WEBHOOK_DISPATCH"] = "worker"
    host.register_blueprint(watched)
    sent = testing.payload("RFIs.update")
    testing.deliver(host.test_client(), sent, endpoint="watched")
    testing.drain(host)
    assert seen == [True]


def test_the_wrapped_event_of_the_page_is_unwrapped(host: Flask) -> None:
    (block,) = blocks("docs/procore.md", "json")
    wrapped = json.loads(block.text)
    host.register_blueprint(ProcoreWebhooks())
    fixture = testing.Deliveries(host)
    assert fixture.deliver(block.text.encode()).status_code == 200
    assert fixture.deliver(wrapped["payload"]).get_json()["duplicate"]
    (row,) = fixture.events()
    inner = wrapped["payload"]
    assert (row["event_id"], row["reason"]) == (inner["id"], inner["reason"])


def test_the_relay_of_the_security_page_signs(host: Flask) -> None:
    relay = run_blocks("docs/security.md", host)
    # The last block has set the two secrets of a rotation.
    secrets = (
        host.config["PROCORE_WEBHOOK_SECRET"],
        *host.config["PROCORE_WEBHOOK_SECRET_FALLBACKS"],
    )
    host.register_blueprint(ProcoreWebhooks("rotated", url_prefix="/rotated"))
    for secret in (*secrets, SECRET):
        body = json.dumps(testing.payload("RFIs.update")).encode()
        headers = relay["signed_headers"](body, secret)
        answer = host.test_client().post("/rotated", data=body, headers=headers)
        assert answer.status_code == (200 if secret in secrets else 401)


def test_the_logging_of_the_page_prints_a_refusal(tmp_path: Path) -> None:
    (block,) = blocks("docs/logging.md", "python")
    forge = (
        "\nfrom app import create_app\n"
        "create_app().test_client().post('/webhooks/procore', data=b'{}')\n"
    )
    write(tmp_path, "app.py", file_block("README.md", "app.py"))
    write(tmp_path, "main.py", block.text + forge)
    ran = subprocess.run(
        [sys.executable, "main.py"],
        cwd=tmp_path,
        env={**environment(), "PROCORE_WEBHOOK_SECRET": SECRET},
        capture_output=True,
        text=True,
    )
    line = r"^[\d:, -]+ WARNING flask_procore_webhooks: procore_webhooks answered 401: "
    assert re.search(line, ran.stderr, re.MULTILINE), ran.stderr


def test_a_login_check_lets_deliveries_pass(host: Flask) -> None:
    run_blocks("docs/mounting.md", host)
    sent = testing.payload("RFIs.update")
    assert testing.deliver(host.test_client(), sent).status_code == 200


def test_limiter_exempts_the_blueprint(host: Flask) -> None:
    names = run_blocks("docs/production.md", host)
    assert names["limiter"].exempted == [names["webhooks"]]


def test_a_failed_attempt_leaves_no_second_task(host: Flask) -> None:
    """The recipe for apps without SQLAlchemy."""
    names = run_blocks("docs/recipes.md", host)
    event = Event("evt_1", "RFIs.create", resource_id="7")
    for _ in range(2):
        names["add_task"](event)
    rows = select(Path(host.config["TASKS"]), "SELECT text FROM task")
    assert rows == [("Answer RFI 7",)]


def test_an_older_fetch_does_not_overwrite_a_newer_one(host: Flask) -> None:
    names = run_blocks("docs/recipes.md", host)
    db, event = names["db"], Event("evt_1", "RFIs.update", resource_id="7")
    fetched = [
        {"subject": "new", "updated_at": "2026-11-26T12:00:00Z"},
        {"subject": "old", "updated_at": "2026-11-26T11:00:00Z"},
    ]
    names["fetch_rfi"] = lambda *ids: fetched.pop(0)
    with host.app_context():
        db.create_all()
        for _ in range(2):
            names["store_rfi"](event)
            db.session.commit()
        assert db.session.get(names["Rfi"], "7").subject == "new"
        db.engine.dispose()


def test_the_echo_of_an_own_write_ends(host: Any) -> None:
    names = run_blocks("docs/recipes.md", host)
    pushed: list[Any] = []
    theirs = {"number": 12, "subject": "theirs"}
    host.tracker = {"7": {"subject": "ours"}}
    names["fetch_rfi"] = lambda *ids: theirs

    def push(rfi: dict[str, Any]) -> None:
        pushed.append(rfi)
        theirs["subject"] = rfi["subject"]

    host.push = push
    for _ in range(3):
        names["mirror"](Event("evt_1", "RFIs.update", resource_id="7"))
    assert pushed == [{"number": 12, "subject": "ours"}]


def test_the_recipes_for_projects_and_mail_use_the_right_ids(host: Any) -> None:
    names = run_blocks("docs/recipes.md", host)
    calls: list[dict[str, Any]] = []
    host.http = SimpleNamespace(post=lambda *a, **k: calls.append(k))
    host.sync = lambda **k: calls.append(k)
    client = host.test_client()
    for type, fields in (
        ("Projects.create", {"resource_id": "7", "project_id": ""}),
        ("Daily Logs.create", {"project_id": "3001"}),
        ("Daily Logs.create", {"project_id": "9"}),
    ):
        sent = testing.payload(type, format="v4", **fields)
        assert testing.deliver(client, sent).status_code == 200
    names["notify"](Event("evt_1", "RFIs.create"))
    assert calls == [
        {"project_id": "7"},
        {"project_id": "3001"},
        {"idempotency_key": "evt_1"},
    ]


def test_a_subscriber_discards_and_postpones(host: Flask) -> None:
    names = run_blocks("docs/subscribing.md", host)
    subscriber = names["sync_submittal"]
    subscriber(Event("evt_1", "Submittals.update", reason="update"))
    with pytest.raises(flask_procore_webhooks.Discard, match="are kept"):
        subscriber(Event("evt_1", "Submittals.delete", reason="delete"))
    host.config["MAINTENANCE"] = True
    with pytest.raises(flask_procore_webhooks.RetryLater, match="600 s"):
        subscriber(Event("evt_1", "Submittals.update", reason="update"))


def test_the_loop_filter_of_the_page_ignores_a_user(host: Flask) -> None:
    run_blocks("docs/configuration.md", host)
    sent = testing.payload("RFIs.update", format="v4", user_id="598000000000123")
    fixture = testing.Deliveries(host)
    assert fixture.deliver(sent).status_code == 200
    assert [row["status"] for row in fixture.events()] == ["ignored"]


def test_a_busy_api_is_asked_again_when_it_says(host: Any) -> None:
    names = run_blocks("docs/recipes.md", host)
    answer = SimpleNamespace(status_code=429, headers={"Retry-After": "40"})
    host.http = SimpleNamespace(get=lambda *a, **k: answer)
    with pytest.raises(flask_procore_webhooks.RetryLater, match="40 s"):
        names["fetch_rfi"]("3001", "7")


def test_a_submittal_is_stored_awaited_or_removed(host: Flask) -> None:
    names = run_blocks("docs/recipes.md", host)
    db, Submittal = names["db"], names["Submittal"]
    found: dict[str, Any] = {"title": "Door", "updated_at": "2026-11-26T12:00:00Z"}
    older = {"title": "old", "updated_at": "2026-11-26T11:00:00Z"}

    def sync(
        current: dict[str, Any] | None, reason: str = "update", age: int = 0
    ) -> Any:
        names["fetch_submittal"] = lambda *ids: current
        received = datetime.now(timezone.utc) - timedelta(seconds=age)
        event = Event(
            "evt_1",
            f"Submittals.{reason}",
            resource_id="7",
            reason=reason,
            received_at=received,
        )
        with host.app_context():
            names["sync_submittal"](event)
            db.session.commit()
            return db.session.get(Submittal, "7")

    with host.app_context():
        db.create_all()
    with pytest.raises(flask_procore_webhooks.RetryLater, match="5 s"):
        sync(None)
    assert sync(found).title == sync(older).title == "Door"
    assert sync(None) is None
    assert sync(None, "delete") is None
    with pytest.raises(flask_procore_webhooks.Discard, match="deleted"):
        sync(None, age=31)


def test_a_sweep_enqueues_what_differs(host: Flask) -> None:
    names = run_blocks("docs/recipes.md", host)
    db, Submittal = names["db"], names["Submittal"]
    rows = [("1", "same"), ("2", "old"), ("3", "gone")]
    theirs = [("1", "same"), ("2", "new"), ("4", "created")]
    names["list_submittals"] = lambda project: [
        {"id": id, "updated_at": at} for id, at in theirs
    ]
    with host.app_context():
        db.create_all()
        for id, at in rows:
            db.session.add(Submittal(id=id, title="", updated_at=at))
        db.session.commit()
    assert host.test_cli_runner().invoke(args=["sweep"]).exception is None
    enqueued = testing.Deliveries(host).events()
    assert {row["resource_id"] for row in enqueued} == {"2", "3", "4"}


def test_the_calls_of_the_hooks_page_reach_procore(
    at_procore: FakeProcore, host: Flask, capsys: pytest.CaptureFixture[str]
) -> None:
    names = run_blocks("docs/hooks.md", host)
    rfi = at_procore.create("RFIs", project="2", subject="Door hardware")

    def sync(resource_id: str) -> None:
        event = Event(
            "evt_1",
            "RFIs.update",
            company_id="1",
            project_id="2",
            resource_id=resource_id,
        )
        with host.app_context():
            names["sync_rfi"](event)

    sync(rfi)
    assert capsys.readouterr().out == "Door hardware\n"
    with pytest.raises(flask_procore_webhooks.Discard, match="404"):
        sync("999")
    at_procore.switches.busy = 600
    with pytest.raises(flask_procore_webhooks.RetryLater, match="600 s"):
        sync(rfi)


def test_the_sweep_of_the_hooks_page_enqueues_a_change_once(
    at_procore: FakeProcore, host: Flask
) -> None:
    run_blocks("docs/hooks.md", host)
    changed = at_procore.create("Submittals", project="3", title="Doors")
    for _ in range(2):
        swept = host.test_cli_runner().invoke(args=["sweep"])
        assert swept.exit_code == 0, swept.output
    (row,) = testing.Deliveries(host).events()
    assert (row["resource_id"], row["project_id"]) == (changed, "3")


def test_the_task_of_the_hooks_page_exists(host: Flask) -> None:
    from celery import Celery

    names = run_blocks("docs/hooks.md", host)
    with Celery("tracker", set_as_current=False) as celery_app:
        register_tasks()
        (entry,) = names["celery_app"].conf.beat_schedule.values()
        assert entry["task"] in celery_app.tasks


def test_the_scopes_of_the_hooks_page_come_from_the_database(
    at_procore: FakeProcore, host: Flask
) -> None:
    db = run_blocks("docs/hooks.md", host)["db"]
    with host.app_context():
        db.session.execute(db.text("CREATE TABLE project (company_id, id)"))
        db.session.execute(db.text("INSERT INTO project VALUES (1, 2), (1, 3)"))
        db.session.commit()
    args = ["procore-webhooks", "hooks", "apply", "--yes"]
    applied = host.test_cli_runner().invoke(args=args)
    assert applied.exit_code == 0, applied.output
    assert [hook["project_id"] for hook in at_procore.hooks()] == ["2", "3"]


# Shared


@pytest.fixture
def at_procore(host: Flask) -> Iterator[FakeProcore]:
    """A fake with the scopes of the hooks page, at which ``host`` asks."""
    fake = FakeProcore("id", "a client secret")
    fake.add_company("1", projects=["2", "3"])
    with fake.serve() as url:
        keys = {
            "API_URL": url,
            "API_LOGIN_URL": url,
            "API_CLIENT_ID": "id",
            "API_CLIENT_SECRET": "a client secret",
            "URL": "https://app.example.com/webhooks/procore",
            "NAMESPACE": "tracker",
        }
        host.config |= {f"PROCORE_WEBHOOK_{key}": keys[key] for key in keys}
        yield fake


def test_the_sweep_of_the_inbox_page_enqueues_once_an_hour(host: Flask) -> None:
    names = run_blocks("docs/inbox.md", host)
    db, Rfi, webhooks = names["db"], names["Rfi"], names["webhooks"]
    ran: list[str] = []
    webhooks.on("RFIs", "update")(lambda event: ran.append(event.resource_id))
    with host.app_context():
        db.create_all()
        db.session.add(Rfi(id="1", updated_at="2026-01-01"))
        db.session.add(Rfi(id="2", updated_at="2999-01-01"))
        db.session.commit()
    for _ in range(2):
        swept = host.test_cli_runner().invoke(args=["sweep"])
        assert swept.exit_code == 0, swept.output
        testing.drain(host)
    # At the turn of an hour, the second sweep has another id.
    assert set(ran) == {"1"} and len(ran) <= 2
    state = host.test_client().get("/webhooks/state").get_json()
    assert state == {"dead": [], "last_received": None}


@pytest.fixture
def host(make_app: Callable[..., Flask], tmp_path: Path) -> Flask:
    """The app in which the blocks of a page run."""
    return make_app(
        SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path / 'host.db'}",
        TASKS=str(tmp_path / "tasks.db"),
    )


class Limiter:
    """The part of Flask-Limiter's interface that the pages use."""

    def __init__(self) -> None:
        self.exempted: list[object] = []

    def exempt(self, what: object) -> None:
        self.exempted.append(what)


def run_blocks(page: str, app: Flask) -> dict[str, Any]:
    """Run the Python blocks of a page except files; return the defined names.

    The blocks can use the names of a reader's app, its database and its blueprint.
    """
    db = SQLAlchemy(model_class=type("Base", (DeclarativeBase,), {}))

    class Rfi(db.Model):  # type: ignore[name-defined,misc]
        id: Mapped[str] = mapped_column(primary_key=True)
        subject: Mapped[str | None]
        updated_at: Mapped[str]

    class Submittal(db.Model):  # type: ignore[name-defined,misc]
        id: Mapped[str] = mapped_column(primary_key=True)
        title: Mapped[str]
        updated_at: Mapped[str]

    db.init_app(app)
    names = {
        "app": app,
        "db": db,
        "Event": Event,
        "celery_app": SimpleNamespace(conf=SimpleNamespace(beat_schedule={})),
        "limiter": Limiter(),
        "ProcoreWebhooks": ProcoreWebhooks,
        "Rfi": Rfi,
        "Submittal": Submittal,
        "webhooks": ProcoreWebhooks(),
    }
    for block in blocks(page, "python"):
        if not block.file:
            names["__name__"] = f"{Path(page).stem}_{block.line}"
            exec(compile(block.text, str(block), "exec"), names)
    app.register_blueprint(names["webhooks"])
    return names


def write(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_tracker(folder: Path) -> None:
    """The README's app factory, with a subscriber."""
    factory = file_block("README.md", "tracker/__init__.py")
    write(folder, "tracker/__init__.py", factory)
    db, webhooks = re.findall(r"`((?:db|webhooks) = \w+\(.*?\))`", text_of("README.md"))
    write(
        folder,
        "tracker/extensions.py",
        "from flask_procore_webhooks import ProcoreWebhooks\n"
        "from flask_sqlalchemy import SQLAlchemy\n"
        f"{db}\n"
        f"{webhooks}\n",
    )
    write(
        folder,
        "tracker/subscribers.py",
        "from .extensions import webhooks\n"
        "@webhooks.on('Projects')\n"
        "@webhooks.on('RFIs')\n"
        "def sync(event): print('synced', event.resource_id)\n",
    )


def run_pytest(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", *arguments]
    folders = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**environment(), "PYTHONPATH": os.pathsep.join(folders)}
    ran = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def shell(
    script: str,
    folder: Path,
    server: Server | None = None,
    *,
    status: int = 0,
    **env: str,
) -> str:
    """Run ``script`` as its reader does, against ``server``; return its output."""
    if server:
        script = script.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
    ran = subprocess.run(
        ["bash", "-ec", script],
        cwd=folder,
        env={**environment(), **env, "PATH": PATH},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == status, ran.stdout + ran.stderr
    return ran.stdout


def select(file: Path, look: str) -> list[Any]:
    with closing(sqlite3.connect(file)) as connection:
        return connection.execute(look).fetchall()


def environment() -> dict[str, str]:
    """This process's environment without the variables of Flask."""
    return {k: v for k, v in os.environ.items() if not k.startswith("FLASK_")}
