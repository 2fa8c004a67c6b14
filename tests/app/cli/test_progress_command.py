"""The commands ``progress`` and ``journal``."""

from __future__ import annotations

import json
import threading
import time

import sqlalchemy as sa
from support.commands import lines_of
from support.commands import ME
from support.commands import run
from support.commands import stdout_of
from support.jobs import add_event
from support.jobs import failed
from support.jobs import set_event
from support.sites import Site

DEAD = failed("sync", "TimeoutError: after 30 s", attempts=12)


def replayed(site: Site, number: int = 3) -> tuple[str, list[int]]:
    """A batch, and the rows of its events."""
    rows = [add_event(site.store, f"evt_{n}", DEAD) for n in range(number)]
    shown = stdout_of(site.app, "replay", "--all", "--yes", "--json")
    return json.loads(shown)["batch"], rows


def end(site: Site, row: int, state: str = "done") -> None:
    job = site.store.database.tables.job
    ended = {"state": state, "due_at": None, "attempts": 1}
    with site.store.connection() as connection:
        connection.execute(sa.update(job).where(job.c.event == row).values(ended))
    set_event(site.store, row, status="dead" if state == "dead" else "done")


def test_progress_counts_and_its_exit_code_tells_the_end(site: Site) -> None:
    batch, rows = replayed(site)
    shown = run(site.app, "progress", batch, ok=False)
    assert (shown.exit_code, shown.output) == (1, "3 of 3 to come: 3 waiting\n")
    end(site, rows[0])
    end(site, rows[1], "dead")
    shown = run(site.app, "progress", batch, ok=False)
    assert shown.exit_code == 1
    assert shown.output == "1 of 3 to come: 1 waiting, 1 done, 1 dead again\n"
    end(site, rows[2], "superseded")
    shown = run(site.app, "progress", batch, ok=False)
    assert shown.exit_code == 2
    text = "all 3 accounted for: 1 done, 1 superseded, 1 dead again\n"
    assert shown.output == text
    end(site, rows[1])
    shown = run(site.app, "progress", batch)
    assert shown.output == "all 3 accounted for: 2 done, 1 superseded\n"


def test_progress_prints_json(site: Site) -> None:
    batch, rows = replayed(site, 1)
    end(site, rows[0])
    shown = json.loads(run(site.app, "progress", batch, "--json").output)
    found = shown["endpoints"]["procore_webhooks"]
    assert (found["action"], found["actor"]) == ("replay", ME)
    assert (found["expected"], found["actual"], found["to_come"]) == (1, 1, 0)
    assert found["counts"] == {"done": 1}


def test_watch_waits_for_the_end(sqlite_site: Site) -> None:
    batch, rows = replayed(sqlite_site, 2)
    start = time.monotonic()
    waited = run(
        sqlite_site.app, "progress", batch, "--watch", "--timeout", 0.2, ok=False
    )
    assert waited.exit_code == 1 and time.monotonic() - start >= 0.2
    for row in rows:
        threading.Timer(0.3, end, [sqlite_site, row]).start()
    shown = run(sqlite_site.app, "progress", batch, "--watch", "--timeout", 60)
    assert shown.output.endswith("all 2 accounted for: 2 done\n")


def test_unknown_batch_is_named(sqlite_site: Site) -> None:
    sqlite_site.store.database.create_tables()
    refused = run(sqlite_site.app, "progress", "nope", ok=False)
    assert "There is no batch 'nope' in the journal." in refused.output


def test_journal_shows_who_did_what_when_and_with_which_filter(site: Site) -> None:
    batch, _ = replayed(site, 2)
    site.clock.forward(60)
    then = site.clock().isoformat()
    run(site.app, "pause", "--reason", "the ERP is down")
    run(site.app, "discard", "--subscriber", "sync", "--status", "pending", "--yes")

    found = json.loads(run(site.app, "journal", "--json").output)
    actions = [(each["action"], each["actor"], each["actual"]) for each in found]
    assert actions == [("discard", ME, 2), ("pause", ME, None), ("replay", ME, 2)]
    filters = [each["filter"] for each in found]
    assert filters[:2] == [
        {"statuses": ["pending"], "subscriber": "sync"},
        {"reason": "the ERP is down"},
    ]
    shown = lines_of(run(site.app, "journal", "--since", then).output)
    assert len(shown) == 3
    assert shown[1].endswith("2 2 --status pending --subscriber sync")
    assert shown[2].endswith("pause - - - --reason 'the ERP is down'")
    assert len(lines_of(run(site.app, "journal", "--limit", 1).output)) == 2

    shown = lines_of(run(site.app, "journal", "--batch", batch).output)
    assert [len(shown), shown[1].split()[-3:]] == [5, [batch, "2", "2"]]
    former = "sync dead, attempts 12, TimeoutError: after 30 s"
    assert all(line.endswith(former) for line in shown[3:])


def test_empty_journal_says_so(sqlite_site: Site) -> None:
    sqlite_site.store.database.create_tables()
    assert run(sqlite_site.app, "journal").output == "No entries.\n"


def test_progress_tells_that_the_endpoint_is_paused(sqlite_site: Site) -> None:
    batch, rows = replayed(sqlite_site, 1)
    run(sqlite_site.app, "pause")
    shown = run(sqlite_site.app, "progress", batch, ok=False)
    assert lines_of(shown.output) == [
        "1 of 1 to come: 1 waiting",
        "procore_webhooks is paused: no event runs until resume",
    ]
    end(sqlite_site, rows[0])
    assert "paused" not in run(sqlite_site.app, "progress", batch).output


def test_journal_shows_options_as_they_are_typed(sqlite_site: Site) -> None:
    given = ("--status", "dead", "--status", "pending", "--project", "3001")
    given += ("--error", "after 30 s", "--anew", "--rate", "10/s")
    add_event(sqlite_site.store, "1", DEAD, project_id="3001")
    run(sqlite_site.app, "replay", *given, "--yes")
    shown = run(sqlite_site.app, "journal").output
    options = "--status dead --status pending --error 'after 30 s' --project 3001"
    assert f"{options} --anew --rate 10/s" in shown
