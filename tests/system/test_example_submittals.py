"""The example of submittals: the app and its Procore, both real servers."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.examples import copy_of
from support.examples import Example
from support.examples import http
from support.servers import free_port
from support.servers import Server
from support.waiting import wait_until

from flask_procore_webhooks.testing import payload
from flask_procore_webhooks.testing import sign

PATH = "/rest/v1.1/projects/3001/submittals"
RECEIVED = '200 {"received": true}'
DUPLICATE = '200 {"received": true, "duplicate": true}'
TITLES = ("Doors", "Curtain wall", "Roof hatch", "Railings", "Grilles", "Louvers")
#: The README's times, shorter. As there, a re-read comes after the stale reads, and a
#: submittal that is not readable by GONE has been deleted. Here, the first read is
#: always stale.
TIMES = {
    "SUBMITTALS_SETTLE": "1",
    "SUBMITTALS_REREAD": "7",
    "SUBMITTALS_PAUSE": "1",
    "SUBMITTALS_GONE": "5",
    "PROCORE_STALE": "4",
    "PROCORE_GAP": "0.1",
    "PROCORE_LIMIT": "5",
    "PROCORE_WINDOW": "1",
}

#: Serial, because a delivery that takes longer than a settle costs one more read.
pytestmark = [pytest.mark.slow, pytest.mark.serial]


@dataclass
class Office:
    """The app and its Procore, each under a server."""

    example: Example
    app: Server
    procore: Server
    #: Created together, because each takes the time of a re-read: ids by title.
    submittals: dict[str, str] = field(default_factory=dict)

    def create_all(self) -> None:
        with ThreadPoolExecutor(len(TITLES)) as threads:
            ids = threads.map(self.create, TITLES)
            self.submittals = dict(zip(TITLES, ids, strict=True))
        self.settled()

    def change(
        self, method: str, submittal: str = "", lost: bool = False, **fields: str
    ) -> str:
        """Change a submittal at Procore, which sends its events; return its id."""
        url = f"{self.procore.url}{PATH}{submittal and '/'}{submittal}"
        body = json.dumps(fields).encode()
        headers = {"Content-Type": "application/json"}
        answer = http(method, url + "?lost=1" * lost, body, headers)
        assert answer.startswith("200 "), answer
        return str(json.loads(answer[4:]).get("id", submittal))

    def create(self, title: str, **options: Any) -> str:
        return self.change("POST", title=title, **options)

    def deliver(self, event: dict[str, Any]) -> str:
        body = json.dumps(event).encode()
        headers = sign(body, self.example.env["PROCORE_WEBHOOK_SECRET"])
        return http("POST", f"{self.app.url}/webhooks/procore", body, headers)

    def reads(self, submittal: str) -> list[int]:
        """The statuses of all reads of the submittal so far."""
        # The server colours the lines of errors.
        line = rf'GET {PATH}/{submittal} HTTP/1\.1[^"]*" (\d+)'
        return list(map(int, re.findall(line, self.procore.output())))

    def table(self) -> dict[str, str]:
        """The titles in the app's table, by id."""
        return titles(http("GET", f"{self.app.url}/submittals"))

    def at_procore(self) -> dict[str, str]:
        """The titles at Procore, by id."""
        return titles(self.read_all())

    def read_all(self) -> str:
        answer = "429"
        while answer.startswith("429"):
            answer = http("GET", f"{self.procore.url}{PATH}?per_page=100")
        return answer

    def settled(self) -> None:
        """Wait until all jobs have ended; then the table is equal to Procore's."""
        live = "SELECT event_id, status, due_at FROM procore_webhook_event"
        live += " WHERE due_at IS NOT NULL"
        wait_until(lambda: not self.select(live), 60, lambda: self.select(live))
        assert self.table() == self.at_procore()

    def states(self, event_id: str) -> dict[str, str]:
        """The states of the event's jobs, by subscriber."""
        return dict(
            self.select(
                "SELECT subscriber, state FROM procore_webhook_job WHERE event ="
                " (SELECT id FROM procore_webhook_event WHERE event_id = ?)",
                event_id,
            )
        )

    def select(self, query: str, *values: object) -> list[Any]:
        file = self.example.folder / "instance" / "submittals.db"
        with closing(sqlite3.connect(file)) as connection:
            return connection.execute(query, values).fetchall()


@contextmanager
def open_office(folder: Path) -> Iterator[Office]:
    """Run the example as its README does, with the times above."""
    example = copy_of("submittals", folder)
    example.read_exports()
    app, procore = free_port(), free_port()
    example.env |= TIMES
    example.env["PROCORE_HOOK"] = f"http://127.0.0.1:{app}/webhooks/procore"
    example.env["PROCORE_API"] = f"http://127.0.0.1:{procore}"
    with example.serve("procore_api", procore) as api:
        with example.serve("submittal_log", app) as server:
            yield Office(example, server, api)


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    with open_office(tmp_path_factory.mktemp("office")) as office:
        office.create_all()
        yield office


def test_readme_leads_to_a_closed_submittal(tmp_path: Path) -> None:
    with open_office(tmp_path) as office:
        told = office.example.told()
        assert "flask --app procore_api run --port 8001" in told
        steps = "\n".join(told[told.index("flask run --port 8000") + 1 :])
        steps = steps.replace(":8000", f":{office.app.port}")
        steps = steps.replace(":8001", f":{office.procore.port}")
        create, close, sweep, look = re.split(r"^sleep \d+\n", steps, flags=re.M)
        office.example.run(create)
        office.settled()
        shown = office.example.run(close)
        assert '"status":"Approved"' in shown and "Submittals.create" in shown
        wait_until(lambda: "Closed" in office.read_all(), pause=0.5)
        assert office.example.run(sweep) == "3001: 1 differ\n"
        office.settled()
        assert '"status":"Closed"' in office.example.run(look)


def test_create_race_costs_one_read_for_each_404(office: Office) -> None:
    reads = office.reads(office.submittals["Doors"])
    assert reads[-1] == 200 and reads.count(200) == 2, reads
    assert 404 in reads and {*reads} <= {200, 404, 429}


def test_burst_costs_two_reads_of_which_the_first_is_stale(office: Office) -> None:
    submittal = office.submittals["Curtain wall"]
    before = len(office.reads(submittal))
    office.change("PATCH", submittal, title="Curtain wall, revised")
    wait_until(lambda: len(office.reads(submittal)) > before)
    assert office.table()[submittal] == "Curtain wall"
    office.settled()
    assert office.table()[submittal] == "Curtain wall, revised"
    assert office.reads(submittal)[before:] == [200, 200]


def test_rate_limit_costs_one_read_for_each_refusal(office: Office) -> None:
    submittals = list(office.table())
    before = {each: len(office.reads(each)) for each in submittals}

    def reads() -> dict[str, list[int]]:
        return {each: office.reads(each)[before[each] :] for each in submittals}

    with ThreadPoolExecutor(len(submittals)) as threads:
        approve = partial(office.change, "PATCH", status="Approved")
        list(threads.map(approve, submittals))
    # Another client uses up the limit.
    wait_until(lambda: office.read_all() and 429 in sum(reads().values(), []))
    office.settled()
    assert {each.count(200) for each in reads().values()} == {2}, reads()
    assert {*sum(reads().values(), [])} == {200, 429}
    failed = "SELECT * FROM procore_webhook_job WHERE error_class IS NOT NULL"
    assert office.select(failed) == []


def test_delete_costs_two_reads(office: Office) -> None:
    submittal = office.submittals["Roof hatch"]
    before = len(office.reads(submittal))
    office.change("DELETE", submittal)
    office.settled()
    assert submittal not in office.table()
    assert office.reads(submittal)[before:] == [200, 404]


def test_late_update_of_a_deleted_submittal_is_discarded(office: Office) -> None:
    event = payload("Submittals.update", format="v4", resource_id="999")
    assert office.deliver(event) == RECEIVED
    assert office.deliver(event) == DUPLICATE
    office.settled()
    assert office.states(event["id"]) == {"sync": "discarded", "reread": "discarded"}
    assert {*office.reads("999")} == {404}


def test_submittal_of_another_project_is_not_read(office: Office) -> None:
    event = payload("Submittals.update", format="v4", project_id="7", resource_id="8")
    assert office.deliver(event) == RECEIVED
    office.settled()
    assert office.states(event["id"]) == {"sync": "suppressed", "reread": "suppressed"}
    assert "/projects/7/" not in office.procore.output()


def test_sweep_reads_what_differs_once(office: Office) -> None:
    titles = ("Railings", "Grilles", "Louvers")
    changed, deleted, same = (office.submittals[title] for title in titles)
    before = {each: len(office.reads(each)) for each in (changed, deleted, same)}
    office.change("PATCH", changed, lost=True, title="Railings, revised")
    office.change("DELETE", deleted, lost=True)
    created = office.create("Gratings", lost=True)
    # At a rate that leaves reads to the sweep.
    wait_until(lambda: created in office.at_procore(), pause=0.5)
    assert office.table() != office.at_procore()

    lists = office.procore.output().count("?page=1&per_page=100 ")
    assert office.example.run("flask sweep") == "3001: 3 differ\n"
    assert office.procore.output().count("?page=1&per_page=100 ") == lists + 1
    # A delivery wakes the app's threads before their next poll.
    office.deliver(payload("Submittals.update", format="v4", project_id="7"))
    office.settled()
    reads = {each: office.reads(each) for each in (*before, created)}
    assert reads[changed][before[changed] :] == [200]
    assert reads[deleted][before[deleted] :] == [404]
    assert reads[created] == [200]
    assert len(reads[same]) == before[same]
    assert office.example.run("flask sweep") == "3001: 0 differ\n"


def test_sweep_reads_page_after_page(office: Office) -> None:
    time.sleep(float(TIMES["PROCORE_WINDOW"]))  # The limit is for all reads.
    script = (
        "from submittal_log import create_app, procore; procore.PAGE = 2;"
        "create_app().app_context().push();"
        "print(*(each['id'] for each in procore.list_submittals('3001')))"
    )
    found = office.example.run(f'python -c "{script}"').split()
    assert len(found) > 2 and found == sorted(office.at_procore())


def test_sweep_ends_while_procore_is_busy(office: Office) -> None:
    example, port = office.example, free_port()
    limits = {"PROCORE_LIMIT": "1", "PROCORE_WINDOW": "60"}
    busy = replace(example, env=example.env | limits)
    with busy.serve("procore_api", port) as procore:
        assert http("GET", f"{procore.url}{PATH}") == "200 []\n"
        ran = example.shell(f"PROCORE_API={procore.url} flask sweep")
    assert ran.returncode == 1
    assert re.fullmatch(r"Error: Procore is busy: retry after \d\d s\.\n", ran.stderr)


def titles(answer: str) -> dict[str, str]:
    assert answer.startswith("200 "), answer
    return {each["id"]: each["title"] for each in json.loads(answer[4:])}
