"""The commands of operators, on every database: replay, prune, pause, list, show."""

from __future__ import annotations

import getpass
import inspect
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from datetime import datetime
from datetime import timedelta
from datetime import timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from flask import Flask
from flask.testing import FlaskCliRunner
from support.commands import down
from support.commands import run
from support.sites import add_finished
from support.sites import open_site
from support.sites import Site

from flask_procore_webhooks import Discard
from flask_procore_webhooks import Event
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.states import Status
from flask_procore_webhooks.upkeep import BATCH
from flask_procore_webhooks.upkeep import IDS_KEPT
from flask_procore_webhooks.upkeep import is_paused
from flask_procore_webhooks.upkeep import journal_of

MakeApp = Callable[..., Flask]
DAY = 24 * 3600
ME = f"{getpass.getuser()}@{socket.gethostname()}"


@pytest.fixture
def site(make_app: MakeApp, database_url: str) -> Iterator[Site]:
    with open_site(make_app(), database_url) as site:
        yield site


@pytest.fixture
def local(make_app: MakeApp, tmp_path: Path) -> Iterator[Site]:
    """The same on a SQLite file only."""
    with open_site(make_app(), f"sqlite:///{tmp_path}/test.db") as site:
        yield site


@pytest.fixture
def two_sites(local: Site) -> Iterator[tuple[Site, Site]]:
    config = local.app.config
    config["BOLT_SECRET"] = "another secret"
    config["BOLT_DATABASE_URI"] = config["PROCORE_WEBHOOK_DATABASE_URI"]
    config["BOLT_DISPATCH"] = "worker"
    config["BOLT_MAX_ATTEMPTS"] = 1
    bolt = ProcoreWebhooks("bolt", url_prefix="/bolt", config_prefix="BOLT_")
    local.app.register_blueprint(bolt)
    other = Site(local.app, bolt, endpoints(local.app)["bolt"], local.clock)
    yield local, other
    other.inbox.database.engine.dispose()


def run_apart(app: Flask, *command: object) -> Any:
    """Run a command whose standard output and standard error are looked at apart."""
    # Click did not keep them apart by itself before 8.2, and has no such option since.
    older = "mix_stderr" in inspect.signature(CliRunner).parameters
    runner = FlaskCliRunner(app, **({"mix_stderr": False} if older else {}))
    return runner.invoke(args=["procore-webhooks", *map(str, command)])


def stdout_of(app: Flask, *command: object) -> str:
    """Without the progress of a command that took long, on a busy machine."""
    result = run_apart(app, *command)
    assert result.exit_code == 0, result.stderr
    return str(result.stdout)


def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def listed(site: Site, *arguments: object) -> list[str]:
    """The event ids that ``list`` shows, oldest first."""
    rows = json.loads(run(site.app, "list", *arguments, "--json").output)
    return [row["event_id"] for row in reversed(rows)]


# A story


def test_an_operator_finds_a_failed_event_reads_why_and_has_it_run_again(
    site: Site,
) -> None:
    site.subscribe_good_and_bad()
    site.send(id="good-one", type="Submittals.update")
    site.send(id="bad-one", resource_id=42)
    site.work()

    (row,) = (
        run(site.app, "list", "--status", "dead", "--type", "RFIs.update")
        .output[:-1]
        .split("\n")[1:]
    )
    event_id = row.split()[-1]
    assert event_id == "bad-one"

    shown = run(site.app, "show", event_id).output
    assert re.search(r"^error +bad: ValueError: broken$", shown, re.MULTILINE)
    assert re.search(r"^receipt +good done \d{4}-", shown, re.MULTILINE)
    assert '"resource_id":42' in shown

    site.broken = False
    assert lines(stdout_of(site.app, "replay", event_id)) == [
        "procore_webhooks: replayed 1",
        "workers run them as soon as they look",
    ]
    assert "Ended after 1 events" in run(site.app, "worker", "--once").output
    shown = run(site.app, "show", event_id).output
    assert re.search(r"^status +done$", shown, re.MULTILINE)
    assert re.search(rf"^replay +\d{{4}}-.* by {ME}$", shown, re.MULTILINE)
    assert listed(site, "--status", "dead") == ["good-one"]
    assert site.calls.count(("good", "bad-one")) == 1


# Replay


def dead_ones(site: Site, number: int = 3) -> list[int]:
    site.subscribe_good_and_bad()
    rows = [site.send(id=f"evt_{n}") for n in range(number)]
    site.work()
    site.calls.clear()
    site.broken = False
    return rows


def test_replay_takes_event_ids_and_row_ids(site: Site) -> None:
    rows = dead_ones(site, 4)
    run(site.app, "replay", "evt_1", rows[3])
    assert site.statuses() == ["dead", "pending", "dead", "pending"]
    assert [len(journal_of(site.inbox, row)) for row in rows] == [0, 1, 0, 1]


def test_replay_without_saying_what_is_refused(local: Site) -> None:
    dead_ones(local)
    refused = run(local.app, "replay", ok=False)
    assert "Name events, give a filter, or say --all." in refused.output
    assert run(local.app, "replay", "--anew", ok=False).exit_code == 2
    assert local.statuses() == ["dead"] * 3


@pytest.mark.parametrize(
    "more", [["--status", "dead"], ["--since", "-60"], ["--all"]], ids=" ".join
)
def test_replay_of_named_events_takes_no_filter(local: Site, more: list[str]) -> None:
    dead_ones(local)
    refused = run(local.app, "replay", "evt_1", *more, ok=False)
    assert "Name events or" in refused.output and refused.exit_code == 2
    assert local.statuses() == ["dead"] * 3


def test_replay_names_the_events_there_are_not_and_does_nothing(local: Site) -> None:
    dead_ones(local)
    refused = run(local.app, "replay", "nope", "evt_1", "12345", ok=False)
    assert refused.output.endswith("no such event in the inbox: 12345, nope.\n")
    assert local.statuses() == ["dead"] * 3


def test_replay_all_means_the_dead(site: Site) -> None:
    rows = dead_ones(site)
    add_finished(site, 2)
    assert lines(stdout_of(site.app, "replay", "--all"))[0].endswith("replayed 3")
    assert site.statuses() == ["pending"] * 3 + ["done"] * 2
    again = stdout_of(site.app, "replay", "--all")
    assert lines(again) == ["procore_webhooks: replayed 0"]
    assert all(len(journal_of(site.inbox, row)) == 1 for row in rows)


def test_replay_of_done_events_runs_everybody_again(site: Site) -> None:
    dead_ones(site)
    add_finished(site, 2)
    run(site.app, "replay", "--status", "done")
    assert site.statuses() == ["dead"] * 3 + ["pending"] * 2
    site.work()
    assert sorted(name for name, _ in site.calls) == ["bad"] * 2 + ["good"] * 2


def test_replay_anew_runs_those_that_had_finished_too(site: Site) -> None:
    dead_ones(site, 1)
    run(site.app, "replay", "--all", "--anew")
    site.work()
    assert site.calls == [("good", "evt_0"), ("bad", "evt_0")]


def test_replay_for_machines_counts_by_endpoint(two_sites: tuple[Site, Site]) -> None:
    site, other = two_sites
    dead_ones(site)
    dead_ones(other, 2)
    site.send(id="waits")
    run(site.app, "replay", "evt_0", "--endpoint", "bolt")
    assert other.statuses() == ["pending", "dead"]
    assert site.statuses() == ["dead"] * 3 + ["pending"]
    shown = stdout_of(site.app, "replay", "evt_0", "evt_1", "waits", "--json")
    assert json.loads(shown) == {
        "procore_webhooks": {"replayed": 2, "skipped": 1},
        "bolt": {"replayed": 1, "skipped": 1},
    }
    shown = stdout_of(site.app, "replay", "--all", "--json")
    assert json.loads(shown) == {
        "procore_webhooks": {"replayed": 1, "skipped": 0},
        "bolt": {"replayed": 0, "skipped": 0},
    }


def test_replay_says_what_it_left_out(local: Site) -> None:
    local.send(id="waits")
    shown = lines(stdout_of(local.app, "replay", "waits"))
    assert shown == [
        "procore_webhooks: replayed 0",
        "skipped 1, not finished yet or without their bodies",
    ]


def test_replay_takes_more_than_a_batch(site: Site) -> None:
    add_finished(site, BATCH + 5, Status.DEAD)
    shown = stdout_of(site.app, "replay", "--all", "--json")
    assert json.loads(shown)["procore_webhooks"]["replayed"] == BATCH + 5
    assert set(site.statuses()) == {"pending"}


def test_replay_runs_the_events_of_inline_endpoints_itself(
    make_app: MakeApp, database_url: str
) -> None:
    inline = {"PROCORE_WEBHOOK_DISPATCH": "inline"}
    with open_site(make_app(), database_url, **inline) as site:
        dead_ones(site)
        shown = lines(stdout_of(site.app, "replay", "--all"))
        assert shown == [
            "procore_webhooks: replayed 3",
            "they were run here, because DISPATCH is inline; what failed waits for the"
            " sender's next delivery, or for worker --once",
        ]
        assert site.statuses() == ["done"] * 3
        assert site.calls == [("bad", f"evt_{n}") for n in range(3)]


# Filters, of list and of replay


EVENTS: dict[str, dict[str, Any]] = {
    "rfi": {"type": "RFIs.update"},
    "rfi-new": {"type": "RFIs.create", "resource_id": 77},
    "sub": {"type": "Submittals.update", "company_id": 88},
    "sub-new": {"type": "Submittals.create", "project_id": 99},
    "both": {"type": "RFIs.update", "company_id": 88, "project_id": 99},
}
FILTERS: dict[str, set[str]] = {
    "--type RFIs.update": {"rfi", "both"},
    "--resource-type Submittals": {"sub", "sub-new"},
    "--reason create": {"rfi-new", "sub-new"},
    "--resource-id 77": {"rfi-new"},
    "--company-id 88": {"sub", "both"},
    "--project-id 99": {"sub-new", "both"},
    "--company-id 88 --project-id 99": {"both"},
    "--resource-type RFIs --reason update --company-id 88": {"both"},
    "--type nothing": set(),
    "--resource-id 7": set(),
    "--status dead": set(EVENTS),
    "--status done": set(),
    "--status dead --reason create --resource-type RFIs": {"rfi-new"},
}


def send_all(site: Site) -> None:
    @site.webhooks.on(name="bad")
    def bad(event: Event) -> None:
        raise ValueError("broken")

    for id, fields in EVENTS.items():
        site.send(**fields, id=id)
    site.work()


def test_list_and_replay_mean_the_same_events(site: Site) -> None:
    send_all(site)
    for given, wanted in FILTERS.items():
        assert set(listed(site, *given.split())) == wanted, given
    total = 0
    for given, wanted in FILTERS.items():
        shown = stdout_of(site.app, "replay", *given.split(), "--json")
        counted = json.loads(shown)["procore_webhooks"]
        assert counted == {"replayed": len(wanted), "skipped": 0}, given
        assert site.statuses().count("pending") == len(wanted)
        site.work()
        total += len(wanted)
    assert site.count("journal") == total


def test_times_are_relative_or_iso_or_unix(site: Site) -> None:
    real = datetime.now(timezone.utc)
    times = {
        "old": real - timedelta(hours=3),
        "middle": real - timedelta(hours=2),
        "young": real - timedelta(hours=1),
    }
    for id, time_ in times.items():
        site.clock.time = time_
        site.send(id=id)
    unix = times["middle"].timestamp()
    iso = times["middle"].isoformat()
    zulu = iso.replace("+00:00", "Z")
    elsewhere = times["middle"].astimezone(timezone(timedelta(hours=-7))).isoformat()
    for since in (f"{unix:.6f}", iso, zulu, elsewhere, str(-2.5 * 3600)):
        assert listed(site, "--since", since) == ["middle", "young"]
    assert listed(site, f"--since={-2.5 * 3600}") == ["middle", "young"]
    for until in (f"{unix:.6f}", iso, elsewhere, str(-2.5 * 3600)):
        assert listed(site, "--until", until) == ["old"], "then itself is left out"
    both = ["--since", -2.5 * 3600, "--until", -1.5 * 3600]
    assert listed(site, *both) == ["middle"]
    site.work()
    run(site.app, "replay", "--status", "done", *both)
    assert site.statuses() == ["done", "pending", "done"]
    refused = run(site.app, "list", "--since", "yesterday", ok=False)
    assert "not in Unix seconds or ISO 8601" in refused.output
    for far in ("99999999999999", "-1e15", "1e300"):
        refused = run(site.app, "list", f"--since={far}", ok=False)
        assert "is not in the years 1 to 9999" in refused.output


def test_times_alone_are_a_filter_of_replay(local: Site) -> None:
    dead_ones(local)
    shown = stdout_of(local.app, "replay", "--since", -60, "--json")
    assert json.loads(shown)["procore_webhooks"]["replayed"] == 3


# Show and stats


def test_show_tells_how_each_subscriber_ended(site: Site) -> None:
    site.webhooks.on(name="keeps")(lambda event: None)
    site.webhooks.on(name="latest", latest_only=True)(lambda event: None)

    @site.webhooks.on(name="declines")
    def declines(event: Event) -> None:
        raise Discard("not ours")

    site.send(id="older", created=1_700_000_000)
    site.send(id="newer", created=1_700_000_001)
    site.work()
    run(site.app, "replay", "newer")
    shown = run(site.app, "show", "older").output
    for line in ("keeps done", "latest superseded", "declines discarded"):
        assert re.search(rf"^receipt +{line} \d{{4}}-", shown, re.MULTILINE)
    assert json.loads(shown.splitlines()[-1])["id"] == "older"
    (row,) = json.loads(run(site.app, "show", "newer", "--json").output)
    assert row["receipts"] == []
    ((action, actor),) = [(e["action"], e["actor"]) for e in row["journal"]]
    assert (action, actor) == ("replay", ME)
    assert row["journal"][0]["at"].endswith("Z")


def test_show_of_a_pruned_event_has_no_body(local: Site) -> None:
    add_finished(local, 1, age=8 * DAY)
    run(local.app, "prune")
    shown = run(local.app, "show", "old0").output
    assert re.search(r"^status +done$", shown, re.MULTILINE)
    assert run(local.app, "show", "old0", "--body").stdout_bytes == b""
    (row,) = json.loads(run(local.app, "show", "old0", "--json").output)
    assert (row["body"], row["body_base64"]) == (None, None)


def test_stats_tell_of_a_pause_and_of_the_oldest_due(site: Site) -> None:
    site.subscribe_good_and_bad()
    site.send()
    site.work()
    site.send()
    site.clock.forward(30)
    site.send()
    run(site.app, "pause")
    shown = lines(run(site.app, "stats").output)
    assert shown[1:] == [
        "dead RFIs.update 1",
        "pending RFIs.update 2",
        "attempts: 1",
        "repeats: 0",
        "conflicts: 0",
        "oldest due: 30.0 s ago",
        "paused: nothing is run until resume",
    ]
    (numbers,) = json.loads(run(site.app, "stats", "--json").output).values()
    assert numbers["paused"] is True
    run(site.app, "resume")
    assert "paused" not in run(site.app, "stats").output


# Prune


def test_prune_keeps_bodies_for_retention_and_ids_four_times_as_long(
    site: Site,
) -> None:
    assert IDS_KEPT == 4
    ages = {"b": 7 * DAY, "i": 28 * DAY}
    for name, age in ages.items():
        add_finished(site, 1, age=age + 0.001, name=f"{name}-over")
        add_finished(site, 1, age=age, name=f"{name}-at")
    add_finished(site, 1, Status.DEAD, age=99 * DAY, name="dead")
    shown = stdout_of(site.app, "prune")
    assert shown == "procore_webhooks: removed 3 bodies and 1 events\n"
    assert sorted(listed(site)) == ["b-at0", "b-over0", "dead0", "i-at0"]
    c = site.events.c
    bodies = sa.select(c.event_id).where(c.body.is_not(None)).order_by(c.id)
    assert [row.event_id for row in site.inbox.rows(bodies)] == ["b-at0", "dead0"]
    assert site.count("receipt") == 4
    shown = stdout_of(site.app, "prune", "--dead", "--json")
    assert json.loads(shown) == {"procore_webhooks": {"bodies": 1, "events": 1}}
    assert json.loads(stdout_of(site.app, "prune", "--dead", "--json")) == {
        "procore_webhooks": {"bodies": 0, "events": 0}
    }


def test_prune_goes_by_the_retention_of_each_endpoint(
    make_app: MakeApp, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/test.db"
    bolts = {"SECRET": "x", "DATABASE_URI": url, "DISPATCH": "worker"}
    app = make_app(
        **{f"BOLT_{key}": value for key, value in bolts.items()},
        BOLT_RETENTION=DAY,
        PROCORE_WEBHOOK_RETENTION=2 * DAY,
    )
    with open_site(app, url) as site:
        bolt = ProcoreWebhooks("bolt", url_prefix="/bolt", config_prefix="BOLT_")
        app.register_blueprint(bolt)
        other = Site(app, bolt, endpoints(app)["bolt"], site.clock)
        for each in (site, other):
            add_finished(each, 2, age=1.5 * DAY)
        shown = stdout_of(app, "prune", "--endpoint", "procore_webhooks", "--json")
        assert json.loads(shown) == {"procore_webhooks": {"bodies": 0, "events": 0}}
        assert json.loads(stdout_of(app, "prune", "--json")) == {
            "procore_webhooks": {"bodies": 0, "events": 0},
            "bolt": {"bodies": 2, "events": 0},
        }
        other.inbox.database.engine.dispose()


def test_a_long_prune_says_on_standard_error_how_far_it_is(
    make_app: MakeApp, postgresql_url: str
) -> None:
    with open_site(make_app(), postgresql_url) as site:
        try:
            add_finished(site, 3, age=8 * DAY)
            result = _prune_against_a_lock(site)
        finally:
            site.events.metadata.drop_all(site.inbox.database.engine)
    assert result.stderr == "procore_webhooks, bodies removed: 3 so far\n"
    assert json.loads(result.stdout)["procore_webhooks"]["bodies"] == 3


def _prune_against_a_lock(site: Site) -> Any:
    """Somebody holds the table until the command has waited for a while."""
    held = threading.Event()
    waiting = sa.text(
        "SELECT count(*) FROM pg_locks WHERE NOT granted AND database ="
        " (SELECT oid FROM pg_database WHERE datname = current_database())"
    )

    def hold() -> None:
        with site.inbox.transaction() as connection:
            table = site.events.name
            connection.execute(sa.text(f"LOCK TABLE {table} IN EXCLUSIVE MODE"))
            held.set()
            deadline = time.monotonic() + 60
            while not connection.scalar(waiting) and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(1.1)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(30)
        return run_apart(site.app, "prune", "--json")
    finally:
        thread.join()


def test_a_short_prune_says_nothing_on_standard_error(local: Site) -> None:
    add_finished(local, 3, age=8 * DAY)
    assert run_apart(local.app, "prune").stderr == ""


# Pause and resume


def test_pause_holds_the_workers_until_resume(site: Site) -> None:
    site.subscribe_good_and_bad()
    assert "paused; events come in" in run(site.app, "pause").output
    site.send()
    assert "Ended after 0 events" in run(site.app, "worker", "--once").output
    assert "resumed" in run(site.app, "resume").output
    assert "Ended after 1 events" in run(site.app, "worker", "--once").output
    j = site.inbox.database.tables.journal.c
    look = sa.select(j.action, j.actor, j.event).order_by(j.id)
    assert [tuple(row) for row in site.inbox.rows(look)] == [
        ("pause", ME, None),
        ("resume", ME, None),
    ]


@pytest.mark.parametrize("command", ["pause", "resume"])
def test_of_several_endpoints_one_is_named_or_all_are_meant(
    two_sites: tuple[Site, Site], command: str
) -> None:
    site, other = two_sites
    refused = run(site.app, command, ok=False)
    assert refused.exit_code == 2
    assert "Name an --endpoint (procore_webhooks, bolt) or say --all" in refused.output
    assert site.count("journal") == 0
    run(site.app, command, "--endpoint", "bolt")
    assert is_paused(other.inbox) is (command == "pause")
    assert not is_paused(site.inbox)
    assert len(lines(run(site.app, command, "--all").output)) == 2
    assert is_paused(site.inbox) is (command == "pause")


@pytest.mark.parametrize("command", ["pause", "resume"])
def test_who_runs_in_requests_cannot_be_paused(
    make_app: MakeApp, tmp_path: Path, command: str
) -> None:
    url = f"sqlite:///{tmp_path}/test.db"
    inline = {"PROCORE_WEBHOOK_DISPATCH": "inline"}
    with open_site(make_app(), url, **inline) as site:
        refused = run(site.app, command, ok=False)
        assert "there is nobody to pause" in refused.output
        assert refused.exit_code == 1
        assert site.count("journal") == 0


# When the inbox is not there


COMMANDS = [
    "replay --all",
    "replay evt_1",
    "prune",
    "pause",
    "resume",
    "list --reason update",
    "show evt_1",
    "stats",
    "worker --once",
]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", ["postgresql", "mariadb", "sqlite"])
def test_without_a_database_a_command_ends_with_one_sentence(
    make_app: MakeApp, tmp_path: Path, kind: str, command: str
) -> None:
    (tmp_path / "file").write_text("not a folder")
    with open_site(make_app(), down(kind, tmp_path)) as site:
        result = run(site.app, *command.split(), ok=False)
    _check_sentence(result)
    assert "hunter2" not in result.output


@pytest.mark.parametrize("command", COMMANDS)
def test_without_its_tables_a_command_says_how_to_make_them(
    site: Site, command: str
) -> None:
    site.send(id="evt_1")
    tables = site.inbox.database.tables
    tables.event.metadata.drop_all(site.inbox.database.engine)
    result = run(site.app, *command.split(), ok=False)
    _check_sentence(result)
    assert "missing tables: procore_webhook_event" in result.output
    assert "init-db" in result.output


def test_without_the_journal_a_command_names_it(site: Site) -> None:
    """As after an upgrade that was not followed by its migration."""
    site.subscribe_good_and_bad()
    row = site.send(id="evt_1")
    site.work()
    site.inbox.database.tables.journal.drop(site.inbox.database.engine)
    for command in ("replay --all", "pause", "stats", "show evt_1", "worker --once"):
        result = run(site.app, *command.split(), ok=False)
        _check_sentence(result)
        assert "missing tables: procore_webhook_journal;" in result.output, command
    assert site.row(row)["status"] == "dead", "nothing is half replayed"


def _check_sentence(result: Any) -> None:
    errors = [line for line in result.output.splitlines() if line.startswith("Error")]
    assert result.exit_code == 1
    (error,) = errors
    assert error.startswith("Error: the inbox of 'procore_webhooks' cannot be used")
    assert "Traceback" not in result.output
    assert "Background on this error" not in result.output


def test_a_number_is_an_event_id_first_and_a_row_only_where_there_is_none(
    two_sites: tuple[Site, Site],
) -> None:
    one, other = two_sites
    rows = [one.send(id="2"), one.send(id="evt_b"), other.send(id="evt_c")]
    for each in two_sites:
        assert each.work()
    assert "replayed 1" in stdout_of(one.app, "replay", "2")
    assert [one.row(row)["status"] for row in rows] == ["pending", "done", "done"]
    one.work()
    assert "replayed 1" in stdout_of(one.app, "replay", str(rows[2]))
    assert [one.row(row)["status"] for row in rows] == ["done", "done", "pending"]


def test_a_paused_endpoint_is_told_of_where_somebody_waits_for_its_runs(
    local: Site,
) -> None:
    local.send(id="evt_1")
    local.work()
    run(local.app, "pause")
    assert "paused: nothing is run until resume" in stdout_of(
        local.app, "replay", "evt_1"
    )
    shown = run(local.app, "worker", "--once").output
    assert "is paused: nothing is run until resume" in shown
    assert "Ended after 0 events" in shown
