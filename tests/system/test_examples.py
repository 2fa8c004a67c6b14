"""Every example as a reader runs it: its README, real servers, real deliveries."""

from __future__ import annotations

import ast
import base64
import itertools
import json
import re
import runpy
import socket
import sqlite3
import threading
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import closing
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from http.server import BaseHTTPRequestHandler
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from support.brokers import own_broker
from support.examples import answers_in
from support.examples import copy_of
from support.examples import Example
from support.examples import EXAMPLES
from support.examples import http
from support.servers import serve
from support.servers import Server
from support.waiting import wait_until

from flask_procore_webhooks.testing import payload

PATH = "/webhooks/procore"
RECEIVED = '200 {"received": true}'
DUPLICATE = '200 {"received": true, "duplicate": true}'
QUARANTINED = '200 {"received": true, "quarantined": true}'
NOT_SIGNED = '401 {"error": "Invalid signature"}'
NOT_AUTHORIZED = '401 {"error": "Invalid authorization"}'


@pytest.fixture
def example(tmp_path: Path) -> Callable[[str], Example]:
    return lambda name: copy_of(name, tmp_path)


def test_no_example_is_left_untested_or_unlisted() -> None:
    folders = {each.name for each in EXAMPLES.iterdir() if each.is_dir()}
    tests = [
        file.read_text() for file in Path(__file__).parent.glob("test_example*.py")
    ]
    tested = re.findall(r'(?:example|copy_of)\("(\w+)"', "".join(tests))
    listed = re.findall(r"\]\((\w+)\)", (EXAMPLES / "README.md").read_text())
    assert folders == set(tested) == set(listed)


# quickstart, and its demo


def test_quickstart_does_what_its_readme_says(
    example: Callable[[str], Example],
) -> None:
    quickstart = example("quickstart")
    quickstart.read_exports()
    assert "flask run --port 8000" in quickstart.told()
    folder, env = quickstart.folder, quickstart.env
    with serve("app", server="flask", folder=folder, env=env) as server:
        assert answers_in(quickstart.follow(server)) == [RECEIVED]
        created = quickstart.trigger("resource.created", server.url + PATH)
        wait_until(lambda: "resource 4001 was created" in server.output(), 20)
    assert server.output().count("RFI 4001 was updated by user 1001") == 1
    assert created == [RECEIVED]
    assert server.output().count("resource 4001 was created") == 1
    assert (folder / "instance" / "procore_webhooks.db").is_file()


@pytest.mark.slow
def test_demo_prints_its_steps_and_removes_its_files(
    example: Callable[[str], Example],
) -> None:
    quickstart = example("quickstart")
    before = {*quickstart.folder.iterdir(), quickstart.folder / "__pycache__"}
    # Environment variables must not reach the demo: of a debugging server, for
    # example, it would stop only the reloader.
    quickstart.env |= {"FLASK_DEBUG": "1", "PROCORE_WEBHOOK_TOLERANCE": "no number"}
    account = quickstart.run("python demo.py")
    signed, forged, old, note = RECEIVED, NOT_SIGNED, NOT_SIGNED, QUARANTINED
    itself = [RECEIVED, DUPLICATE]
    assert answers_in(account) == [signed, forged, old, note, *itself]
    assert account.count("INFO:app:resource 4001 was created") == 1
    assert account.count("INFO:app:RFI 4001 was updated by user 1001") == 1
    assert account.splitlines()[-1].startswith("All as announced")
    assert not listens(port_in(account))
    assert {*quickstart.folder.iterdir()} <= before


@pytest.mark.parametrize(
    "bug",
    [
        pytest.param(("@resource_created.connect\n", ""), id="no-subscriber"),
        pytest.param(("    app.logger.info", "    raise Exception"), id="failure"),
    ],
)
def test_demo_fails_on_an_unexpected_result(
    bug: tuple[str, str], example: Callable[[str], Example]
) -> None:
    quickstart = example("quickstart")
    app = quickstart.folder / "app.py"
    assert bug[0] in app.read_text()
    app.write_text(app.read_text().replace(*bug))
    ran = quickstart.shell("python demo.py")
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert ran.stderr.startswith("NOT AS ANNOUNCED: expected"), ran.stderr
    assert "All as announced" not in ran.stdout
    assert not listens(port_in(ran.stdout))


def test_demo_prints_why_the_server_does_not_start(
    example: Callable[[str], Example],
) -> None:
    quickstart = example("quickstart")
    (quickstart.folder / "app.py").write_text("this is no app\n")
    ran = quickstart.shell("python demo.py")
    assert ran.returncode == 1
    assert "SyntaxError" in ran.stderr


# two_tenants


@pytest.mark.slow
def test_two_tenants_are_kept_apart(example: Callable[[str], Example]) -> None:
    tenants = example("two_tenants")
    tenants.read_exports()
    options = ("--workers=2",)
    with serve(
        "app:app", folder=tenants.folder, env=tenants.env, options=options
    ) as server:
        acme, birch = (f"{server.url}/webhooks/{name}" for name in ("acme", "birch"))
        shown = tenants.follow(server)
        # One tenant's signature is refused at the other tenant.
        crossed = tenants.trigger("RFIs.create --endpoint acme", birch)
        forged = tenants.trigger("RFIs.create --secret guessed", acme)
        same = """RFIs.create --data '{"id": "evt_1"}'"""
        answers = tenants.trigger(f"{same} --repeat 2", acme)
        answers += tenants.trigger(same, birch)
        for wish in ("Acme wants a mail about", "Birch wants a task for"):
            wait_until(lambda wish=wish: server.output().count(wish) == 2)
    assert answers_in(shown) == [RECEIVED, RECEIVED]
    table = shown[shown.index("received_at") :]
    assert table.count("RFIs.create") == 1 and "acme" not in table
    assert crossed == [NOT_AUTHORIZED]
    assert forged == [NOT_SIGNED]
    # The same id at another tenant is another event.
    assert answers == [RECEIVED, DUPLICATE, RECEIVED]
    log = server.output()
    for name, wish in {"Acme": "a mail about", "Birch": "a task for"}.items():
        assert log.count(f"{name} wants {wish} RFI 4001") == 2
        assert log.count(f"INFO:app:{name.lower()}: RFIs.create 4001") == 2


# prudra


@pytest.mark.slow
def test_prudra_and_procore_share_an_app(example: Callable[[str], Example]) -> None:
    both = example("prudra")
    both.read_exports()
    with serve(
        "app:app", server="waitress", folder=both.folder, env=both.env
    ) as server:
        prudra = f"{server.url}/webhooks/prudra"
        shown = both.follow(server)
        twice = both.trigger("payment.received --repeat 2", prudra)
        procore = both.trigger("'Payments Issued.create'", server.url + PATH)
        forged = both.trigger("payment.received --secret guessed", prudra)
        wait_until(lambda: "Procore knows" in server.output())
        wait_until(lambda: server.output().count("Booked a payment: ") == 2)
    assert answers_in(shown) == [RECEIVED]
    assert twice == [RECEIVED, DUPLICATE]
    assert procore == [RECEIVED]
    assert forged == [NOT_SIGNED]
    log = server.output()
    assert log.count("Booked a payment: ") == 2
    assert log.count("'amount': '12.50', 'token': 'USDC'") == 1
    assert log.count("Procore knows of payment 4001") == 1
    assert "answered 401: no secret matches" in log
    assert re.search(
        r"^\d+ +done +1 .* payment.received .* prudra_webhooks", shown, re.M
    )


# existing_app


class StandIn(ThreadingHTTPServer):
    """The part of Procore's REST API that returns an RFI."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), StandInHandler)
        self.rfis: dict[str, dict[str, Any]] = {}
        self.busy: dict[str, str] | None = None
        self.asked: list[tuple[str, Mapping[str, str]]] = []
        #: Events that delay the next answer after its content is decided.
        self.held: tuple[threading.Event, threading.Event] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @contextmanager
    def being_busy(self, retry_after: str) -> Iterator[None]:
        self.busy = {"Retry-After": retry_after}
        try:
            yield
        finally:
            self.busy = None


class StandInHandler(BaseHTTPRequestHandler):
    server: StandIn

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))
        rfi = self.server.rfis.get(self.path.rpartition("/")[2])
        body = json.dumps(rfi).encode()
        held, self.server.held = self.server.held, None
        if held:
            held[0].set()
            held[1].wait(10)
        if self.server.busy is not None:
            return self.answer(503, b"busy", self.server.busy)
        self.answer(200 if rfi else 404, body, {})

    def answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def stand_in() -> Iterator[StandIn]:
    with StandIn() as api:
        with in_background(lambda: api.serve_forever(0.05)):
            try:
                yield api
            finally:
                api.shutdown()


@dataclass
class Tracker:
    """The example under gunicorn, with a stand-in for Procore's API."""

    example: Example
    server: Server
    api: StandIn
    engine: sa.Engine

    def deliver(self, body: Mapping[str, Any]) -> str:
        """Deliver as Procore does, and wait for the event's run."""
        value = self.example.env["PROCORE_WEBHOOK_AUTHORIZATION"]
        answer = http(
            "POST",
            self.server.url + PATH,
            json.dumps(body).encode(),
            {"Authorization": value},
        )
        wait_until(lambda: self.has_been_run(body["id"]), 20)
        return answer

    def has_been_run(self, event_id: str) -> bool:
        look = sa.text(
            "SELECT lease IS NULL AND (status = 'done' OR EXISTS"
            " (SELECT 1 FROM procore_webhook_job WHERE event = e.id))"
            " FROM procore_webhook_event e WHERE event_id = :id"
        )
        with self.engine.connect() as connection:
            return bool(connection.scalar(look, {"id": event_id}))

    def make_due(self) -> None:
        """Make pending jobs and their events due."""
        with self.engine.begin() as connection:
            for table in ("procore_webhook_job", "procore_webhook_event"):
                change = f"UPDATE {table} SET due_at = '2020-01-01 00:00:00'"
                connection.execute(sa.text(f"{change} WHERE due_at IS NOT NULL"))

    def tell(self, type: str, rfi: str, **fields: Any) -> str:
        return self.deliver(payload(type, format="v4", resource_id=rfi, **fields))

    def page(self) -> dict[str, str]:
        """The subjects of the RFIs on the page, read with the password."""
        password = self.example.env["OFFICE_PASSWORD"]
        basic = base64.b64encode(f":{password}".encode()).decode()
        shown = http(
            "GET",
            f"{self.server.url}/rfis",
            headers={"Authorization": f"Basic {basic}"},
        )
        assert shown.startswith("200 ")
        return {rfi["id"]: rfi["subject"] for rfi in json.loads(shown[4:])}


@contextmanager
def tracking(folder: Path, url: str | None = None) -> Iterator[Tracker]:
    """Run the example with a migrated database, as in its README."""
    existing = copy_of("existing_app", folder)
    existing.read_exports()
    if url:
        existing.env["DATABASE_URL"] = url
    with stand_in() as api:
        existing.env["PROCORE_API"] = api.url
        assert "flask db upgrade" in existing.told()
        existing.run("flask db upgrade")
        with serve(
            "tracker:create_app()",
            folder=existing.folder,
            env=existing.env,
            options=("--threads=4",),
        ) as server:
            file = existing.folder / "instance" / "tracker.db"
            engine = sa.create_engine(url or f"sqlite:///{file}", poolclass=sa.NullPool)
            yield Tracker(existing, server, api, engine)


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracker]:
    with tracking(tmp_path_factory.mktemp("tracker")) as tracker:
        yield tracker


@pytest.mark.slow
def test_migration_fits_every_database(tmp_path: Path, database_url: str) -> None:
    """The migration matches the models, is reversible, and its tables work."""
    with tracking(tmp_path, database_url) as tracker:
        tracker.example.run("flask db check")
        tracker.api.rfis["4001"] = rfi("Größe?")
        answers = tracker.example.trigger(
            "RFIs.create --format v4 --repeat 2", tracker.server.url + PATH
        )
        assert answers == [RECEIVED, DUPLICATE]
        wait_until(lambda: tracker.page() == {"4001": "Größe?"})
        assert len(tracker.api.asked) == 1
        if not database_url.startswith("sqlite"):
            check_taking_turns(tracker)
    tracker.example.run("flask db downgrade base")


def test_migration_is_what_flask_db_migrate_writes(tmp_path: Path) -> None:
    """After a change of the tables, remove the file and write it as this test does:
    ``flask db migrate -m "RFIs and inbox" --rev-id 53f3ea1c7be5``, then ruff.
    """
    existing = copy_of("existing_app", tmp_path)
    existing.read_exports()
    versions = existing.folder / "migrations" / "versions"
    (committed,) = versions.glob("*.py")
    expected = operations(committed)
    committed.unlink()
    existing.run("flask db migrate")
    (written,) = versions.glob("*.py")
    assert operations(written) == expected


def operations(migration: Path) -> list[str]:
    """The functions of a migration, independent of formatting."""
    module = ast.parse(migration.read_text())
    functions = [node for node in module.body if isinstance(node, ast.FunctionDef)]
    return [ast.unparse(function) for function in functions]


def check_taking_turns(tracker: Tracker) -> None:
    """Of two concurrent updates, the state with the latest change is kept."""
    fetched, go_on = threading.Event(), threading.Event()
    tracker.api.held = fetched, go_on
    tracker.api.rfis["4001"] = rfi("older")
    with in_background(lambda: tracker.tell("RFIs.update", "4001")):
        assert fetched.wait(10)
        tracker.api.rfis["4001"] = rfi("newer")
        tracker.tell("RFIs.update", "4001")
        assert tracker.page() == {"4001": "newer"}
        go_on.set()
    assert tracker.page() == {"4001": "newer"}


def test_existing_app_does_what_its_readme_says(tracker: Tracker) -> None:
    existing = tracker.example
    told = {"flask run --port 8000", "flask --app stand_in run --port 8001"}
    assert told <= set(existing.told())
    tracker.api.rfis["4001"] = rfi("Where does the duct go?")
    shown = existing.follow(tracker.server)
    assert answers_in(shown) == [RECEIVED]
    assert '"subject":"Where does the duct go?"' in shown


def test_stand_in_of_existing_app_answers_as_procore_does(tmp_path: Path) -> None:
    existing = copy_of("existing_app", tmp_path)
    with serve("stand_in", server="flask", folder=existing.folder) as server:
        shown = http("GET", f"{server.url}/rest/v1.0/projects/3001/rfis/4001")
    assert shown.startswith("200 ")
    assert {"subject", "status", "updated_at"} <= json.loads(shown[4:]).keys()


def test_check_finds_the_way_through_the_login_of_existing_app(
    tracker: Tracker,
) -> None:
    assert "Deliveries can come in." in tracker.example.run(
        "flask procore-webhooks check"
    )


def test_login_of_existing_app_exempts_only_the_webhook(tracker: Tracker) -> None:
    asks = "401 Log in, please."
    assert http("GET", f"{tracker.server.url}/rfis") == asks
    assert http("GET", f"{tracker.server.url}/webhooks") == asks
    wrong = {"Authorization": tracker.example.env["PROCORE_WEBHOOK_AUTHORIZATION"]}
    assert http("GET", f"{tracker.server.url}/rfis", headers=wrong) == asks


@pytest.mark.parametrize("value", [None, "Bearer guessed", "Basic Om9mZmljZQ=="])
def test_forgery_changes_no_rfi(value: str | None, tracker: Tracker) -> None:
    tracker.api.rfis["66"] = rfi("forged")
    body = json.dumps(payload("RFIs.create", format="v4", resource_id="66")).encode()
    headers = {"Authorization": value} if value else {}
    assert http("POST", tracker.server.url + PATH, body, headers) == NOT_AUTHORIZED
    assert "66" not in tracker.page()


def test_rfis_are_kept_in_step(tracker: Tracker) -> None:
    tracker.api.rfis["7"] = rfi("first")
    assert tracker.tell("RFIs.create", "7") == RECEIVED
    assert tracker.page()["7"] == "first"
    path, headers = tracker.api.asked[-1]
    assert path == "/rest/v1.0/projects/3001/rfis/7"
    assert headers["Authorization"] == "Bearer none"
    assert headers["Procore-Company-Id"] == "2001"
    tracker.api.rfis["7"] = rfi("second")
    assert tracker.tell("RFIs.update", "7") == RECEIVED
    assert tracker.page()["7"] == "second"
    assert tracker.tell("RFIs.delete", "7") == RECEIVED
    assert "7" not in tracker.page()


def test_late_update_of_a_deleted_rfi_does_not_bring_it_back(
    tracker: Tracker,
) -> None:
    assert tracker.tell("RFIs.delete", "8") == RECEIVED
    assert tracker.tell("RFIs.update", "8") == RECEIVED
    assert tracker.tell("RFIs.create", "8") == RECEIVED
    assert "8" not in tracker.page()


def test_rfi_that_is_gone_at_procore_goes_before_its_own_event(
    tracker: Tracker,
) -> None:
    tracker.api.rfis["9"] = rfi("soon gone")
    tracker.tell("RFIs.create", "9")
    del tracker.api.rfis["9"]
    assert tracker.tell("RFIs.update", "9") == RECEIVED
    assert "9" not in tracker.page()


@pytest.mark.parametrize(
    ("retry_after", "least", "most"),
    [("40", 40, 41), ("Sat, 21 Nov 2026 12:00:00 GMT", 5, 11)],
    ids=["seconds", "date"],
)
def test_fetch_refused_by_a_busy_procore_is_retried(
    retry_after: str, least: float, most: float, tracker: Tracker
) -> None:
    body = payload("RFIs.create", format="v4", resource_id="10")
    tracker.api.rfis["10"] = rfi("at last")
    with tracker.api.being_busy(retry_after):
        assert tracker.deliver(body) == RECEIVED
        assert "10" not in tracker.page()
        told = tracker.example.run(f"flask procore-webhooks show {body['id']} --json")
    (job,) = json.loads(told)[0]["jobs"]
    # A wait that Procore asks for is no failure.
    assert (job["state"], job["attempts"], job["error"]) == ("pending", 0, None)
    # From the last attempt on: a slow machine may have made two before the command.
    began, due = (
        datetime.fromisoformat(job[name][:26]) for name in ("started_at", "due_at")
    )
    assert least <= (due - began).total_seconds() < most
    tracker.make_due()
    assert tracker.deliver(body) == DUPLICATE
    wait_until(lambda: tracker.page().get("10") == "at last", 20)
    tracker.tell("RFIs.delete", "10")


@pytest.mark.parametrize("ids", [{"resource_id": ""}, {"project_id": None}])
def test_event_that_names_no_rfi_is_dropped(
    ids: dict[str, Any], tracker: Tracker
) -> None:
    asked = len(tracker.api.asked)
    assert tracker.deliver(payload("RFIs.update", format="v4", **ids)) == RECEIVED
    assert len(tracker.api.asked) == asked


def test_id_cannot_lead_to_another_page_of_the_api(tracker: Tracker) -> None:
    assert tracker.tell("RFIs.update", "../../me?x=1") == RECEIVED
    path, _ = tracker.api.asked[-1]
    assert path == "/rest/v1.0/projects/3001/rfis/..%2F..%2Fme%3Fx%3D1"


def rfi(subject: str) -> dict[str, Any]:
    """An RFI with a later change than every RFI before."""
    changed = f"2026-11-26T12:00:00.{next(_changes):06}Z"
    return {"id": 1, "subject": subject, "status": "open", "updated_at": changed}


_changes = itertools.count()


@contextmanager
def in_background(work: Callable[[], object]) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield thread
    finally:
        thread.join()


# testing


@pytest.mark.slow
def test_tests_of_the_testing_example_pass_and_can_fail(
    example: Callable[[str], Example],
) -> None:
    testing = example("testing")
    assert "pytest" in testing.told()
    assert "5 passed" in testing.run("pytest -W error -p no:cacheprovider")
    assert not (testing.folder / "instance").exists()
    app = testing.folder / "app.py"
    app.write_text(app.read_text().replace("    db.session.add(", "    str("))
    broken = testing.shell("pytest -p no:cacheprovider")
    assert broken.returncode == 1
    assert "3 failed, 2 passed" in broken.stdout


# many_machines


@pytest.mark.slow
def test_killed_machines_lose_and_double_nothing(
    postgresql_url: str, example: Callable[[str], Example]
) -> None:
    many = example("many_machines")
    assert "python run.py" in many.told()
    with own_broker("redis"):
        shown = many.run("python run.py --seconds 8 --events 240 --seed 7")
    counts = dict(re.findall(r"^(\w[\w ]*?)  +(\d+)", shown, re.MULTILINE))
    assert counts["events accepted"] == "240"
    assert (counts["lost"], counts["doubled"]) == ("0", "0")
    assert int(counts["kills"]) > 0
    assert int(counts["duplicates"]) > 0


def test_audit_of_many_machines_finds_lost_and_doubled_effects(
    tmp_path: Path,
) -> None:
    audit = runpy.run_path(str(EXAMPLES / "many_machines" / "audit.py"))
    url = f"sqlite:///{tmp_path / 'audited.db'}"
    with closing(sqlite3.connect(tmp_path / "audited.db")) as connection:
        connection.executescript(
            """
            CREATE TABLE procore_webhook_event (event_id, status, due_at);
            CREATE TABLE change (event_id, machine);
            INSERT INTO procore_webhook_event VALUES ('once', 'done', NULL),
                ('twice', 'done', NULL), ('never', 'done', NULL),
                ('dead', 'dead', NULL);
            INSERT INTO change VALUES ('once', 'A'), ('twice', 'A'), ('twice', 'B'),
                ('dead', 'A'), ('nowhere', 'A');
            """
        )
    verdict = audit["Auditor"](url).verdict({"once", "twice", "never", "absent"})
    assert verdict.lost == ["absent", "dead", "never", "nowhere"]
    assert verdict.doubled == ["twice"]


# Shared


def port_in(account: str) -> int:
    found = re.search(r"http://127\.0\.0\.1:(\d+)/", account)
    assert found, account
    return int(found[1])


def listens(port: int) -> bool:
    with socket.socket() as call:
        return call.connect_ex(("127.0.0.1", port)) == 0
