"""Subscribers with ``latest_only``."""

from __future__ import annotations

import inspect
import itertools
import time
from collections.abc import Callable
from collections.abc import Iterator
from datetime import datetime
from datetime import timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from support.sites import open_site
from support.sites import Site

from flask_procore_webhooks import Discard
from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import RetryLater
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.inbox.record import new_row
from flask_procore_webhooks.inbox.status import Status
from flask_procore_webhooks.operations.changes import replay
from flask_procore_webhooks.running.run import process
from flask_procore_webhooks.senders.samples import to_bytes
from flask_procore_webhooks.storage.store import to_db_time
from flask_procore_webhooks.testing import payload

MakeApp = Callable[..., Flask]
THEN = 1_700_000_000
IGNORED = {"PROCORE_WEBHOOK_IGNORE_USER_IDS": ["7"]}


@pytest.fixture
def site(make_app: MakeApp, tmp_path: Path) -> Iterator[Site]:
    with open_site(make_app(), f"sqlite:///{tmp_path}/test.db", **IGNORED) as site:
        yield site


@pytest.fixture
def retrying_site(make_app: MakeApp, tmp_path: Path) -> Iterator[Site]:
    """A site that retries failed events."""
    config = {"PROCORE_WEBHOOK_MAX_ATTEMPTS": 3}
    with open_site(make_app(), f"sqlite:///{tmp_path}/test.db", **config) as site:
        yield site


@pytest.fixture
def database_site(make_app: MakeApp, database_url: str) -> Iterator[Site]:
    with open_site(make_app(), database_url, **IGNORED) as site:
        yield site


def subscribe(site: Site, *pattern: str, name: str = "latest") -> None:
    @site.webhooks.on(*pattern, name=name, latest_only=True)
    def latest(event: Event) -> None:
        site.calls.append(event.id)


def states(site: Site, *rows: int, name: str = "latest") -> list[str | None]:
    return [site.states(row).get(name) for row in rows]


# Superseded events


def test_five_events_of_one_resource_cause_one_run(database_site: Site) -> None:
    site = database_site
    subscribe(site, "RFIs")
    rows = [site.send(id=f"{n}", created=THEN + n) for n in range(5)]
    # Four wait for the newest, and its end makes them due.
    assert site.work() == 5 + 4
    assert site.calls == ["4"]
    assert states(site, *rows) == ["superseded"] * 4 + ["done"]
    assert site.statuses() == ["done"] * 5


def test_newest_event_by_sender_time_is_run_in_any_order_of_arrival(
    database_site: Site,
) -> None:
    site = database_site
    subscribe(site, "RFIs")
    rows = [site.send(id=f"{n}", created=THEN - n) for n in range(3)]
    site.work()
    assert site.calls == ["0"]
    assert states(site, *rows) == ["done", "superseded", "superseded"]


def test_later_event_is_run_unless_older_than_the_last_run(database_site: Site) -> None:
    site = database_site
    subscribe(site, "RFIs")
    site.send(id="first", created=THEN)
    site.work()
    late = site.send(id="late", created=THEN - 1)
    site.work()
    site.send(id="second", created=THEN + 1)
    site.work()
    assert site.calls == ["first", "second"]
    assert states(site, late) == ["superseded"]


def test_subscribers_without_latest_only_run_for_every_event(site: Site) -> None:
    subscribe(site, "RFIs")
    site.webhooks.on("RFIs", name="every")(lambda e: site.calls.append(("every", e.id)))
    for number in range(3):
        site.send(id=f"{number}", created=THEN + number)
    site.work()
    assert [call for call in site.calls if call == "2"] == ["2"]
    assert [("every", f"{n}") for n in range(3)] == [
        call for call in site.calls if call != "2"
    ]


def test_latest_only_is_keyword_only_and_off_by_default(
    webhooks: ProcoreWebhooks,
) -> None:
    parameter = inspect.signature(webhooks.on).parameters["latest_only"]
    assert (parameter.kind, parameter.default) == (parameter.KEYWORD_ONLY, False)
    assert ":param latest_only:" in (inspect.getdoc(ProcoreWebhooks.on) or "")


@pytest.mark.soak
@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
def test_two_thousand_changes_cost_one_fetch(database_site: Site) -> None:
    site = database_site
    subscribe(site, "RFIs")
    events = [
        payload("RFIs.update", id=f"{n}", created=THEN + n % 60) for n in range(2000)
    ]
    rows = [
        new_row(
            site.store, site.endpoint.read(to_bytes(event))[0], Status.PENDING, None
        )
        for event in events
    ]
    with site.store.connection(begin=True) as connection:
        connection.execute(sa.insert(site.events), rows)
    start = time.monotonic()
    site.work()
    # Comparing each event with all others would take many minutes.
    assert time.monotonic() - start < 240
    # The last recorded event of the last second.
    assert site.calls == [f"{2000 // 60 * 60 - 1}"]
    job = site.store.database.tables.job.c
    counted = sa.select(job.state, sa.func.count()).group_by(job.state)
    found = {row.state: row[1] for row in site.store.rows(counted)}
    assert found == {"superseded": 1999, "done": 1}


# Orders of arrival


class Copy:
    """An app's copy of a resource, which is fetched or deleted."""

    def __init__(self, site: Site) -> None:
        self.there = True
        self.fetches = 0
        site.webhooks.on("RFIs", name="latest", latest_only=True)(self)

    def __call__(self, event: Event) -> None:
        self.fetches += 1
        self.there = event.reason != "delete"


ORDERS = list(itertools.permutations(["create", "update", "delete"]))


@pytest.mark.slow
@pytest.mark.parametrize("run_each", [False, True], ids=["together", "one by one"])
@pytest.mark.parametrize("last", ["delete", "create"])
def test_every_order_of_arrival_and_of_runs_ends_the_same(
    site: Site, run_each: bool, last: str
) -> None:
    copy = Copy(site)
    times = {"create": THEN, "update": THEN + 1, "delete": THEN + 2}
    if last == "create":  # the resource was deleted, and created again
        times = {"delete": THEN, "create": THEN + 2, "update": THEN + 1}
    for number, arrival in enumerate(ORDERS):
        for run in [(0, 1, 2)] if run_each else itertools.permutations(range(3)):
            resource = f"{number} {run}"
            rows = []
            for reason in arrival:
                fields = {"resource_id": resource, "created": times[reason]}
                rows.append(site.send(f"RFIs.{reason}", **fields))
                if run_each:
                    site.work()
            if not run_each:
                for index in run:
                    process(site.endpoint, rows[index])
                site.work()
            assert copy.there is (last != "delete"), (arrival, run)
            names = dict(zip(arrival, states(site, *rows), strict=True))
            assert names[last] == "done"
            if not run_each:
                assert list(names.values()).count("superseded") == 2


@pytest.mark.parametrize("created", [[THEN] * 3, [None] * 3], ids=["ties", "no times"])
def test_last_recorded_event_of_equal_times_is_run(
    database_site: Site, created: list[Any]
) -> None:
    site = database_site
    subscribe(site, "RFIs")
    rows = [site.send(id=f"{n}", created=when) for n, when in enumerate(created)]
    assert site.row(rows[0])["event_at"] == (
        created[0] and to_db_time(datetime.fromtimestamp(THEN, timezone.utc))
    )
    site.work()
    assert site.calls == ["2"]
    site.send(id="3", created=created[0])
    site.work()
    assert site.calls == ["2", "3"]


@pytest.mark.parametrize("order", list(itertools.permutations([None, 0, 10, 20])))
def test_events_with_and_without_time_are_not_compared(
    site: Site, order: tuple[int | None, ...]
) -> None:
    """Their order is unknown, and comparing them would not be transitive."""
    subscribe(site, "RFIs")
    for offset in order:
        when = None if offset is None else THEN + offset
        site.send(id=f"{offset}", created=when)
    site.work()
    assert sorted(site.calls) == ["20", "None"]


# Other resources


def test_events_without_a_resource_are_all_run(site: Site) -> None:
    subscribe(site)
    for number in range(3):
        site.send(id=f"{number}", created=THEN + number, resource_id=None)
    site.work()
    assert site.calls == ["0", "1", "2"]


def test_other_resources_and_types_are_all_run(database_site: Site) -> None:
    site = database_site
    subscribe(site)
    site.send("RFIs.update", id="a", created=THEN, resource_id=1)
    site.send("RFIs.update", id="b", created=THEN + 1, resource_id=2)
    site.send("Submittals.update", id="c", created=THEN + 2, resource_id=1)
    site.work()
    assert site.calls == ["a", "b", "c"]


def test_resource_ids_are_case_sensitive(database_site: Site) -> None:
    site = database_site
    subscribe(site)
    for number, resource in enumerate(["aB", "Ab", "AB", "ab", "äb"]):
        site.send(id=f"{number}", created=THEN + number, resource_id=resource)
    site.work()
    assert site.calls == ["0", "1", "2", "3", "4"]


def test_truncated_resource_ids_are_not_compared(database_site: Site) -> None:
    site = database_site
    subscribe(site)
    for number in range(3):
        resource = "x" * 80 + f"{number}"
        site.send(id=f"{number}", created=THEN + number, resource_id=resource)
    site.work()
    assert site.calls == ["0", "1", "2"]


def test_same_id_in_another_project_is_the_same_resource(site: Site) -> None:
    """Ids are unique within a type, and resources may move between projects."""
    subscribe(site)
    site.send(id="a", created=THEN, project_id=1)
    site.send(id="b", created=THEN + 1, project_id=2)
    site.work()
    assert site.calls == ["b"]


def test_events_of_another_endpoint_do_not_supersede(
    make_app: MakeApp, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/test.db"
    app = make_app(BOLT_SECRET="another", BOLT_DATABASE_URI=url, BOLT_DISPATCH="worker")
    with open_site(app, url) as site:
        bolt = ProcoreWebhooks("bolt", url_prefix="/bolt", config_prefix="BOLT_")
        app.register_blueprint(bolt)
        other = Site(app, bolt, endpoints(app)["bolt"], site.clock)
        subscribe(site)
        site.send(id="mine", created=THEN)
        other.send(id="theirs", created=THEN + 1)
        site.work()
        assert site.calls == ["mine"]
        other.store.database.engine.dispose()


# Events that supersede


def test_newer_ignored_event_does_not_supersede(site: Site) -> None:
    subscribe(site)
    site.send(id="older", created=THEN)
    own = site.send(id="own", created=THEN + 1, user_id=7)
    site.work()
    assert site.calls == ["older"]
    # After a replay the ignored event supersedes.
    replay(site.store, [own], "me")
    site.work()
    site.send(id="late", created=THEN)
    site.work()
    assert site.calls == ["older", "own"]


def test_newer_dead_event_does_not_supersede(site: Site) -> None:
    site.webhooks.on(name="before")(lambda event: 1 / (event.id == "older"))
    failing = ["newer"]

    @site.webhooks.on(name="latest", latest_only=True)
    def latest(event: Event) -> None:
        if event.id in failing:
            raise ValueError("broken")
        site.calls.append(event.id)

    site.send(id="newer", created=THEN + 1)
    site.work()
    assert site.statuses() == ["dead"]
    older = site.send(id="older", created=THEN)
    site.work()
    assert site.calls == ["older"]
    assert states(site, older) == ["done"]


def test_done_job_of_a_dead_event_supersedes(site: Site) -> None:
    subscribe(site)
    site.webhooks.on(name="bad")(lambda event: 1 / (event.id == "older"))
    site.send(id="newer", created=THEN + 1)
    site.work()
    older = site.send(id="older", created=THEN)
    site.work()
    assert site.statuses() == ["dead", "done"]
    assert site.calls == ["newer"]
    assert states(site, older) == ["superseded"]


class Newer:
    """A subscriber whose job of the event ``newer`` ends or waits as a test sets it."""

    def __init__(self, site: Site, *errors: Exception) -> None:
        self.site, self.errors = site, [*errors]
        options: Any = {"when": lambda event: event.id not in self.unwanted}
        site.webhooks.on("RFIs", name="latest", latest_only=True, **options)(self)
        self.unwanted: list[str] = []

    def __call__(self, event: Event) -> None:
        self.site.calls.append(event.id)
        if event.id == "newer" and self.errors:
            raise self.errors.pop(0)


def test_older_event_waits_for_a_newer_one_that_is_postponed(
    retrying_site: Site,
) -> None:
    site = retrying_site
    Newer(site, RetryLater(30))
    site.send(id="newer", created=THEN + 1)
    site.work()
    older = site.send(id="older", created=THEN)
    site.work()
    job = site.jobs(older)["latest"]
    assert (job["state"], job["waits_for"], job["attempts"]) == ("pending", "newer", 0)
    assert site.row(older)["due_at"] == job["due_at"]
    site.clock.forward(31)
    site.work()
    assert site.calls == ["newer", "newer"]
    assert states(site, older) == ["superseded"]


@pytest.mark.parametrize(
    ("error", "state"), [(Discard("no"), "discarded"), (ValueError(), "dead")]
)
def test_older_event_runs_when_the_newer_one_ends_otherwise_than_done(
    site: Site, error: Exception, state: str
) -> None:
    """The end of the newer one makes the older one due at once."""
    Newer(site, error)
    older = site.send(id="older", created=THEN)
    newer = site.send(id="newer", created=THEN + 1)
    site.work()
    assert site.calls == ["newer", "older"]
    assert states(site, newer, older) == [state, "done"]


def test_older_event_runs_when_the_newer_one_is_suppressed(site: Site) -> None:
    Newer(site).unwanted.append("newer")
    older = site.send(id="older", created=THEN)
    newer = site.send(id="newer", created=THEN + 1)
    site.work()
    assert site.calls == ["older"]
    assert states(site, newer, older) == ["suppressed", "done"]


def test_older_event_waits_for_a_minute_at_most(retrying_site: Site) -> None:
    site = retrying_site
    Newer(site, RetryLater(3600))
    site.send(id="newer", created=THEN + 1)
    site.work()
    older = site.send(id="older", created=THEN)
    site.clock.forward(59)
    site.work()
    assert site.calls == ["newer"]
    site.clock.forward(2)
    site.work()
    assert site.calls == ["newer", "older"]
    assert states(site, older) == ["done"]


def test_retried_event_is_superseded_by_a_newer_event(
    retrying_site: Site,
) -> None:
    @retrying_site.webhooks.on("RFIs", name="latest", latest_only=True)
    def latest(event: Event) -> None:
        retrying_site.calls.append(event.id)
        if event.id == "older":
            raise RetryLater(60)

    older = retrying_site.send(id="older", created=THEN)
    retrying_site.work()
    retrying_site.send(id="newer", created=THEN + 1)
    retrying_site.work()
    retrying_site.clock.forward(61)
    retrying_site.work()
    assert retrying_site.calls == ["older", "newer"]
    assert states(retrying_site, older) == ["superseded"]


def test_event_finished_before_subscriber_existed_does_not_supersede(
    database_site: Site,
) -> None:
    """The subscriber is deployed between the runs of the two events."""
    site = database_site
    newer = site.send(id="newer", created=THEN + 1)
    site.work()
    assert site.row(newer)["status"] == "unmatched"
    subscribe(site)
    site.send(id="older", created=THEN)
    site.work()
    assert site.calls == ["older"]


def test_newer_quarantined_event_does_not_supersede(site: Site) -> None:
    subscribe(site)
    site.send(id="older", created=THEN)
    assert site.deliver(b'{"id": "newer", "type": "RFIs.update"').status_code == 200
    site.work()
    assert site.calls == ["older"]
    assert site.statuses() == ["done", "quarantined"]


def test_subscriber_with_a_reason_is_superseded_only_by_that_reason(
    database_site: Site,
) -> None:
    site = database_site
    subscribe(site, "RFIs", "Update", name="updates")
    subscribe(site, "RFIs", "delete", name="deletes")
    rows = [
        site.send(f"RFIs.{reason}", id=f"{number}", created=THEN + number)
        for number, reason in enumerate(["update", "update", "delete", "create"])
    ]
    site.work()
    assert site.calls == ["1", "2"]
    assert states(site, *rows, name="updates") == ["superseded", "done", None, None]
    assert states(site, *rows, name="deletes") == [None, None, "done", None]


def test_subscriber_without_a_reason_is_superseded_by_any_reason(site: Site) -> None:
    subscribe(site, "RFIs", "*")
    site.send("RFIs.update", id="0", created=THEN)
    site.send("RFIs.delete", id="1", created=THEN + 1)
    site.work()
    assert site.calls == ["1"]


def test_replay_of_the_newest_runs_it_again(site: Site) -> None:
    subscribe(site)
    rows = [site.send(id=f"{n}", created=THEN + n) for n in range(3)]
    site.work()
    replay(site.store, rows, "me", anew=True)
    site.work()
    assert site.calls == ["2", "2"]
    assert states(site, *rows) == ["superseded", "superseded", "done"]


# Settle and lag


def test_settle_runs_once_after_the_last_event_of_a_burst(database_site: Site) -> None:
    site = database_site

    @site.webhooks.on("RFIs", name="latest", latest_only=True, settle=3)
    def latest(event: Event) -> None:
        site.calls.append(event.id)

    rows = []
    for number in range(3):
        rows.append(site.send(id=f"{number}", created=THEN))
        site.work()
        assert site.jobs(rows[-1])["latest"]["waits_for"] == "settle"
        site.clock.forward(2)
    site.work()
    assert site.calls == []
    site.clock.forward(1.1)
    site.work()
    assert site.calls == ["2"]
    assert states(site, *rows) == ["superseded", "superseded", "done"]


def test_settle_max_limits_the_wait_of_a_stream_of_events(site: Site) -> None:
    """Counted from the first event that was not served."""

    @site.webhooks.on("RFIs", name="latest", latest_only=True, settle=3, settle_max=10)
    def latest(event: Event) -> None:
        site.calls.append(event.id)

    for number in range(21):
        site.send(id=f"{number}", created=THEN + number)
        site.work()
        site.clock.forward(1)
    # Served at 10 s and, because the next event came then, again 10 s later.
    assert len(site.calls) == 2
    site.clock.forward(20)
    site.work()
    assert site.calls[-1] == "20"


def test_lag_runs_the_first_event_of_a_burst_at_once(site: Site) -> None:
    """A run that begins later than ``lag`` after an event has read its change."""

    @site.webhooks.on("RFIs", name="latest", latest_only=True, lag=2)
    def latest(event: Event) -> None:
        site.calls.append(event.id)

    rows = []
    for number in range(4):
        now = int(site.clock.time.timestamp())
        rows.append(site.send(id=f"{number}", created=now))
        site.work()
        site.clock.forward(1)
    assert site.calls == ["0"]
    site.clock.forward(10)
    site.work()
    assert len(site.calls) == 2
    assert sorted(map(str, states(site, *rows))) == ["done"] * 2 + ["superseded"] * 2
    late = site.send(id="late", created=int(site.clock.time.timestamp()) - 12)
    site.work()
    assert (len(site.calls), states(site, late)) == (2, ["superseded"])
