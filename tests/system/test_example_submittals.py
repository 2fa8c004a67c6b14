"""The example of submittals: its app and its Procore, on one clock that stands."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from datetime import timedelta
from datetime import timezone
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import Result
from flask import Flask
from sqlalchemy import select
from support.examples import copy_of
from support.examples import Example
from support.examples import http
from support.servers import free_port
from support.servers import serve
from support.waiting import wait_until
from werkzeug.exceptions import ServiceUnavailable

from flask_procore_webhooks.api import ProcoreAPI
from flask_procore_webhooks.api import RateLimited
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.testing import drain
from flask_procore_webhooks.testing import FakeProcore

URL = "http://127.0.0.1:8000/webhooks/procore"
PATH = "/rest/v1.1/projects/3001/submittals"
#: Seconds: of the README.
SETTLE, REREAD, STALE, PAUSE = 3, 60, 2, 5


class Office:
    """The app and its Procore. The app's inbox has the clock of Procore."""

    def __init__(self, app: Flask, procore: FakeProcore, url: str) -> None:
        self.app = app
        self.procore = procore
        self.url = url
        (self.endpoint,) = endpoints(app).values()
        self.endpoint.store.now = procore.clock.now
        self._client = procore.test_client()

    def run(self, *arguments: str) -> Result:
        return self.app.test_cli_runner().invoke(args=arguments)

    def change(
        self, method: str, submittal: str = "", lost: bool = False, **fields: str
    ) -> str:
        """Change a submittal at Procore, which sends its events; return its id."""
        path = f"/submittals{submittal and '/'}{submittal}{'?lost=1' * lost}"
        answer = self._client.open(path, method=method, json=fields)
        assert answer.status_code == 200, answer.text
        self.procore.deliver()
        return str(answer.get_json()["id"])

    def create(self, title: str, **options: Any) -> str:
        return self.change("POST", title=title, **options)

    def wait(self, seconds: float) -> None:
        """Let time pass, and run what is due then."""
        self.procore.advance(seconds=seconds)
        drain(self.app)

    def settle(self) -> None:
        """Let both jobs of the last events run; the table is equal afterwards."""
        for seconds in (SETTLE, PAUSE, REREAD):
            self.wait(seconds)
        assert self.table() == self.at_procore()

    def reads(self, submittal: str) -> list[int]:
        """The statuses of all reads of the submittal so far, whose token was valid."""
        wanted = "GET", f"{PATH}/{submittal}"
        found = [each[2] for each in self.requests() if each[:2] == wanted]
        return [status for status in found if status != 401]

    def requests(self) -> list[tuple[str, str, int]]:
        return self.procore.requests

    def table(self) -> list[dict[str, Any]]:
        return rows_of(self.app)

    def at_procore(self) -> list[dict[str, Any]]:
        return rows_of(self.procore)

    def titles(self) -> dict[str, str]:
        return {row["id"]: row["title"] for row in self.table()}

    def states(self, event_id: str) -> dict[str, str]:
        """The states of the event's jobs, by subscriber."""
        event = self.endpoint.store.database.tables.event.c
        query = select(event.id).where(event.event_id == event_id)
        ((row_id,),) = self.endpoint.store.rows(query)
        return {job.subscriber: job.state for job in self.jobs() if job.event == row_id}

    def jobs(self) -> list[Any]:
        store = self.endpoint.store
        return store.rows(store.database.tables.job.select())


def rows_of(app: Flask) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = app.test_client().get("/submittals").get_json()
    return sorted(rows, key=lambda row: str(row["id"]))


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ModuleType]]:
    """The modules of a copy of the example."""
    folder = copy_of("submittals", tmp_path_factory.mktemp("example")).folder
    names = ("procore_api", "submittal_log")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield [import_module(name) for name in names]
    for name in [each for each in sys.modules if each.startswith(names)]:
        del sys.modules[name]


@pytest.fixture
def office(
    modules: list[ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Office]:
    """The example after ``hooks apply``."""
    procore_api, submittal_log = modules
    procore: FakeProcore = procore_api.make_procore()
    procore.clock.stop()
    procore.switches.spike_limit = None
    with procore.serve() as url:
        settings = {
            "TESTING": "true",
            "SQLALCHEMY_DATABASE_URI": f"sqlite:///{tmp_path / 'submittals.db'}",
            "PROCORE_WEBHOOK_AUTHORIZATION": "Bearer 9f3b1c6e0a7d4f5c8b2e",
            "PROCORE_WEBHOOK_API_CLIENT_SECRET": "a client secret",
            "PROCORE_WEBHOOK_API_URL": url,
            "PROCORE_WEBHOOK_API_LOGIN_URL": url,
        }
        for key, value in settings.items():
            monkeypatch.setenv(f"FLASK_{key}", value)
        app = submittal_log.create_app()
        procore.receive(URL, app)
        office = Office(app, procore, url)
        applied = office.run("procore-webhooks", "hooks", "apply", "--yes")
        assert applied.exit_code == 0, applied.output
        yield office
        with app.app_context():
            app.extensions["sqlalchemy"].engine.dispose()


def test_hooks_apply_asks_for_the_events_of_submittals(office: Office) -> None:
    (hook,) = office.procore.hooks()
    assert (hook["destination_url"], hook["project_id"]) == (URL, "3001")
    triggers = office.procore.triggers(hook["id"])
    names = {(each["resource_name"], each["event_type"].lower()) for each in triggers}
    assert names == {("Submittals", each) for each in ("create", "update", "delete")}
    assert office.run("procore-webhooks", "hooks", "plan").exit_code == 0


def test_create_race_costs_one_read_for_each_404(office: Office) -> None:
    office.procore.switches.stale_seconds = SETTLE + 1
    doors = office.create("Doors")
    office.wait(SETTLE)
    assert office.reads(doors) == [404]
    office.wait(PAUSE)
    assert office.titles() == {doors: "Doors"}
    office.settle()
    assert office.reads(doors) == [404, 200, 200]


def test_burst_costs_two_reads_of_which_the_first_is_stale(office: Office) -> None:
    office.procore.switches.stale_seconds = SETTLE + 1
    wall = office.create("Wall")
    office.settle()
    before = len(office.reads(wall))
    for title in ("Wall, revised", "Curtain wall"):
        office.change("PATCH", wall, title=title)
        office.wait(SETTLE - 1)
    assert len(office.reads(wall)) == before
    office.wait(1)
    assert office.titles() == {wall: "Wall, revised"}
    office.settle()
    assert office.titles() == {wall: "Curtain wall"}
    assert office.reads(wall)[before:] == [200, 200]


def test_one_token_serves_every_read(office: Office) -> None:
    office.procore.requests.clear()
    for title in ("Doors", "Roof hatch", "Railings"):
        office.create(title)
    office.settle()
    logins = [each for each in office.requests() if each[1] == "/oauth/token"]
    assert len(office.requests()) > 6 and len(logins) == 1


def test_spike_limit_costs_one_read_for_each_refusal(office: Office) -> None:
    doors = office.create("Doors")
    office.procore.advance(seconds=STALE)
    # Another client uses up the limit, which ends by the real clock.
    office.procore.switches.spike_limit = office.procore.switches.spike_seconds = 1
    other = ProcoreAPI(
        "id",
        "a client secret",
        company_id="2001",
        base_url=office.url,
        login_url=office.url,
    )
    office.procore.clock.run()
    other.get(PATH)
    drain(office.app, advance=SETTLE)
    assert office.reads(doors) in ([429, 200], [200])
    assert office.titles() == {doors: "Doors"}


def test_hourly_limit_postpones_the_read_and_spends_no_attempt(office: Office) -> None:
    doors = office.create("Doors")
    office.procore.switches.hourly_limit = 1
    office.wait(SETTLE)
    assert office.reads(doors) == [429]
    office.procore.switches.hourly_limit = 3600
    office.wait(PAUSE)
    assert office.reads(doors) == [429]
    assert {each.attempts for each in office.jobs()} == {0}


def test_delete_costs_two_reads(office: Office) -> None:
    office.procore.switches.stale_seconds = SETTLE + 1
    hatch = office.create("Roof hatch")
    office.settle()
    before = len(office.reads(hatch))
    office.change("DELETE", hatch)
    office.settle()
    assert office.titles() == {}
    assert office.reads(hatch)[before:] == [200, 404]


def test_late_update_of_a_deleted_submittal_is_discarded(office: Office) -> None:
    # The app waits for a create by the real clock.
    office.procore.clock.set(datetime.now(timezone.utc) - timedelta(minutes=3))
    event = office.procore.emit(
        "Submittals", "update", project="3001", resource_id="999"
    )
    office.procore.deliver()
    office.procore.redeliver(event)
    office.procore.deliver()
    office.settle()
    assert office.states(event) == {"sync": "discarded", "reread": "discarded"}
    assert office.reads("999") == [404, 404]


def test_submittal_of_another_project_sends_no_event(office: Office) -> None:
    office.procore.add_company("2001", projects=["7"])
    office.procore.create("Submittals", project="7", id="8", title="Elsewhere")
    office.procore.deliver()
    assert office.procore.deliveries() == []


def test_outage_of_an_hour_loses_nothing(office: Office) -> None:
    office.procore.receive(URL, ServiceUnavailable())
    doors = office.create("Doors")
    office.procore.advance(hours=1)
    assert office.table() == []
    office.procore.receive(URL, office.app)
    office.wait(3600)
    office.settle()
    assert office.titles() == {doors: "Doors"}
    assert office.run("procore-webhooks", "reconcile").exit_code == 0


def test_reconcile_brings_back_a_lost_half_day(office: Office) -> None:
    doors, wall = office.create("Doors"), office.create("Wall")
    office.settle()
    office.procore.receive(URL, ServiceUnavailable())
    office.change("PATCH", doors, title="Doors, revised")
    office.change("DELETE", wall)
    office.procore.advance(hours=13)
    office.procore.receive(URL, office.app)
    office.wait(3600)
    assert office.titles() == {doors: "Doors", wall: "Wall"}

    before = {each: len(office.reads(each)) for each in (doors, wall)}
    ran = office.run("procore-webhooks", "reconcile")
    assert ran.exit_code == 2 and "4 missing, 4 inserted" in ran.output
    office.settle()
    assert office.titles() == {doors: "Doors, revised"}
    assert office.reads(doors)[before[doors] :] == [200]
    assert office.reads(wall)[before[wall] :] == [404]
    assert office.run("procore-webhooks", "reconcile").exit_code == 0


def test_sweep_reads_what_sent_no_event_once(office: Office) -> None:
    titles = ("Railings", "Grilles", "Louvers")
    changed, same, again = map(office.create, titles)
    office.settle()
    before = {each: len(office.reads(each)) for each in (changed, same)}
    office.change("PATCH", changed, lost=True, title="Railings, revised")
    office.change("PATCH", again, title="Louvers, revised")
    created = office.create("Gratings", lost=True)
    office.wait(STALE)
    assert office.table() != office.at_procore()

    lists = len(list_calls(office))
    assert office.run("sweep").output == "project 3001: changes without an event: 2\n"
    assert len(list_calls(office)) == lists + 1
    office.settle()
    assert office.reads(changed)[before[changed] :] == [200]
    assert office.reads(created) == [200]
    assert len(office.reads(same)) == before[same]
    assert office.run("sweep").output == "project 3001: changes without an event: 0\n"


def test_sweep_reads_page_after_page(office: Office) -> None:
    office.procore.switches.most_per_page = 2
    for number in range(5):
        office.create(f"Door {number}", lost=True)
    office.wait(STALE)
    assert office.run("sweep").output == "project 3001: changes without an event: 5\n"
    assert len(list_calls(office)) == 3


def test_sweep_enqueues_nothing_if_procore_is_busy(office: Office) -> None:
    office.create("Doors", lost=True)
    office.wait(STALE)
    office.procore.switches.hourly_limit = 0
    ran = office.run("sweep")
    assert ran.exit_code == 1 and isinstance(ran.exception, RateLimited)
    assert office.jobs() == []


def list_calls(office: Office) -> list[tuple[str, str, int]]:
    return [each for each in office.requests() if each[:2] == ("GET", PATH)]


# The README, with real servers


@contextmanager
def procore_of(example: Example) -> Iterator[str]:
    """Run the README's first shell; the environment names its address."""
    port = free_port()
    script = ("procore_api.py",)
    with serve(
        "", server="script", options=script, folder=example.folder, port=port
    ) as server:
        for key in ("API_URL", "API_LOGIN_URL"):
            example.env[f"FLASK_PROCORE_WEBHOOK_{key}"] = server.url
        yield server.url


@pytest.mark.slow
@pytest.mark.serial
def test_readme_leads_to_equal_rows(tmp_path: Path) -> None:
    example = copy_of("submittals", tmp_path)
    example.read_exports()
    example.env |= {"SUBMITTALS_SETTLE": "1", "SUBMITTALS_REREAD": "4"}
    text = (example.folder / "README.md").read_text()
    first, second, create, sweep, lost, back = re.findall(
        r"```sh\n(.*?)```", text, re.S
    )
    assert "python procore_api.py 8001\n" in first
    assert second.endswith("flask run --port 8000\n")
    port = free_port()
    example.env["FLASK_PROCORE_WEBHOOK_URL"] = URL.replace("8000", f"{port}")

    def run(script: str, url: str, status: int = 0) -> str:
        script = re.sub(r"sleep \d+\n", "", script)
        script = script.replace("http://127.0.0.1:8001", url)
        ran = example.shell(script.replace(":8000", f":{port}"))
        assert ran.returncode == status, ran.stdout + ran.stderr
        return ran.stdout

    with procore_of(example) as url:

        def rows(address: str = f"http://127.0.0.1:{port}") -> str:
            return http("GET", f"{address}/submittals")

        apply = second.splitlines()[-2]
        assert "same" in run(apply, url)
        with example.serve("submittal_log", port):
            shown = run(create, url)
            wait_until(lambda: rows() == rows(url), pause=0.2)
            assert "Submittals.create" in shown and "Approved" in rows()
            change, *_ = sweep.splitlines()
            run(change, url)
            found = "changes without an event: 1"
            wait_until(lambda: found in run("flask sweep", url), pause=0.2)
            wait_until(lambda: rows() == rows(url), pause=0.2)
        assert run(lost, url)
        with example.serve("submittal_log", port):
            reconcile, *_ = back.splitlines()
            assert "2 missing, 2 inserted" in run(reconcile, url, status=2)
            wait_until(lambda: rows() == rows(url), pause=0.2)
            assert "Reopened" in rows()
