"""The SQL of docs/scaling.md, and the package on the resulting tables."""

from __future__ import annotations

import re
from collections.abc import Callable
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from flask import Flask
from support.documents import blocks
from support.sites import at_once
from support.sites import open_site
from support.sites import Site

from flask_procore_webhooks.dispatching.worker import Worker
from flask_procore_webhooks.operations import queries
from flask_procore_webhooks.operations.changes import replay
from flask_procore_webhooks.operations.prune import Old
from flask_procore_webhooks.operations.prune import prune_bodies
from flask_procore_webhooks.operations.prune import prune_rows
from flask_procore_webhooks.testing import payload

EVENTS = "procore_webhook_event"


def scripts() -> dict[str, str]:
    """The blocks of SQL, by the words of their first line."""
    found = (each.text.split("\n", 1) for each in blocks("docs/scaling.md", "sql"))
    return {first.removeprefix("-- "): rest for first, rest in found}


class Operator:
    """Runs a whole block of the document, as psql does."""

    def __init__(self, url: str) -> None:
        address = url.replace("+psycopg", "")
        self.connection = psycopg.connect(address, autocommit=True)

    def run(self, name: str) -> list[list[Any]]:
        """Run a block; return the rows of each statement."""
        cursor = self.connection.execute(scripts()[name].encode())
        found = []
        while True:
            found.append(cursor.fetchall() if cursor.description else [])
            if not cursor.nextset():
                return found

    def rows(self, look: str) -> list[Any]:
        return self.connection.execute(look.encode()).fetchall()


@pytest.fixture
def site(postgresql_url: str, make_app: Callable[..., Flask]) -> Iterator[Site]:
    with open_site(make_app(), postgresql_url) as site:
        site.store.database.create_tables()
        yield site
        database = site.store.database
        database.tables.event.metadata.drop_all(database.engine)


@pytest.fixture
def operator(postgresql_url: str, site: Site) -> Iterator[Operator]:
    operator = Operator(postgresql_url)
    yield operator
    operator.connection.execute("DROP TABLE IF EXISTS procore_webhook_archive")
    operator.connection.execute("DROP PROCEDURE IF EXISTS archive_webhook_events")
    operator.connection.close()


def test_every_block_of_sql_is_run_by_a_test() -> None:
    run = re.findall(r'operator\.run\("(.*?)"\)', Path(__file__).read_text())
    assert set(run) == set(scripts())
    assert len(scripts()) == len(blocks("docs/scaling.md", "sql"))


def test_settings_are_taken(operator: Operator, site: Site) -> None:
    operator.run("settings")
    look = "SELECT relname, reloptions FROM pg_class WHERE reloptions IS NOT NULL"
    options = {name: set(found) for name, found in operator.rows(look)}
    expected = {"autovacuum_vacuum_scale_factor=0.02", "autovacuum_vacuum_cost_delay=0"}
    for table in (EVENTS, "procore_webhook_job"):
        assert expected <= options[table]
    check_the_whole_way(site)


def test_monitoring_queries_work(operator: Operator, site: Site) -> None:
    site.send()
    due, live, tables, transactions = operator.run("watch")
    ((name, seconds),) = due
    assert name == site.endpoint.name
    assert 0 <= seconds < 60
    assert live == [(name, 1)]
    assert EVENTS in {row[0] for row in tables}
    # The test's own transaction may be beyond the limit of the query.
    assert transactions


def test_event_is_handled_once_on_hash_partitions(
    operator: Operator, site: Site
) -> None:
    site.webhooks.on(name="accepts")(lambda event: None)
    before = [site.send() for _ in range(20)]
    operator.run("hash partitions")
    assert site.work() == 20
    assert {site.row(each)["status"] for each in before} == {"done"}
    assert operator.rows(f"SELECT count(DISTINCT tableoid) > 1 FROM {EVENTS}")[0][0]
    check_the_whole_way(site)


def test_hash_partitions_have_what_the_table_had(
    operator: Operator, site: Site
) -> None:
    """Except for the primary key, which must include the partition key."""
    key = f"{EVENTS}_pkey"
    look = (
        "SELECT indexname, regexp_replace(indexdef, ' ON (ONLY )?', ' ON ')"
        f" FROM pg_indexes WHERE tablename = '{EVENTS}'"
    )
    before = dict(operator.rows(look))
    operator.run("hash partitions")
    after = dict(operator.rows(look))
    del before[key]
    assert {name: after[name] for name in before} == before
    ids = [site.send() for _ in range(3)]
    assert ids == sorted(set(ids))


def test_archive_keeps_what_prune_removes(operator: Operator, site: Site) -> None:
    operator.run("archive")
    operator.run("archive, partitions")
    operator.run("archive, partitions")
    site.subscribe_good_and_bad()
    kept = [site.send() for _ in range(3)]
    assert site.work() == 3
    make_older(operator, days=6.5)
    site.send()
    for _ in range(2):
        operator.run("archive, daily")
        assert archived(operator) == kept
    site.clock.forward(1)
    before = site.clock() - timedelta(days=6)
    assert sum(prune_bodies(site.store, Old(before, dead=True))) == 3
    assert sum(prune_rows(site.store, Old(before, dead=True))) == 3
    operator.run("archive, daily")
    assert archived(operator) == kept
    assert site.statuses() == ["pending"]


def make_older(operator: Operator, days: float) -> None:
    change = f"UPDATE {EVENTS} SET received_at = received_at - %s, finished_at = "
    age = timedelta(days=days)
    operator.connection.execute(f"{change} finished_at - %s".encode(), (age, age))


def archived(operator: Operator) -> list[int]:
    look = "SELECT id FROM procore_webhook_archive WHERE body IS NOT NULL ORDER BY id"
    return [row[0] for row in operator.rows(look)]


def check_the_whole_way(site: Site) -> None:
    """Deliver copies concurrently, then run, replay and prune the event."""
    site.calls.clear()
    site.broken = False
    site.subscribe_good_and_bad()
    sent = payload("RFIs.update")
    answers = at_once(site.deliver, [sent] * 6)
    assert [each.status_code for each in answers] == [200] * 6
    assert [each.get_json().get("duplicate") for each in answers].count(None) == 1
    at_once(lambda _: Worker([site.endpoint], poll=1).run_all(), range(3))
    once = [("good", sent["id"]), ("bad", sent["id"])]
    assert site.calls == once
    row = queries.find(site.store, sent["id"])
    assert row
    assert (row["status"], row["repeats"]) == ("done", 5)
    assert replay(site.store, [row["id"]], "tests", anew=True) == 1
    assert site.work() == 1
    assert site.calls == once * 2
    site.clock.forward(10)
    total = site.count("event")
    assert sum(prune_bodies(site.store, Old(site.clock()))) == total
    assert sum(prune_rows(site.store, Old(site.clock()))) == total
    assert site.count("event") == site.count("job") == 0
