"""``show``: all about one event."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from typing import NamedTuple

import click
from flask.cli import with_appcontext

from ..endpoint import Endpoint
from ..inbox.status import Wait
from ..operations.journal import journal_of
from ..operations.queries import find
from ..operations.queries import jobs_of
from ._options import as_json as as_json_option
from ._options import command
from ._options import endpoints_named
from ._options import one_endpoint
from ._output import first_line
from ._output import on_one_line
from ._output import print_field
from ._output import print_json
from ._output import printable
from ._output import text

#: What a pending job waits for, in words.
WAITS = {
    Wait.NOTHING: "to run",
    Wait.RETRY: "for its next attempt",
    Wait.LATER: "for the time of its RetryLater",
    Wait.AFTER: "for the time of its option after",
    Wait.SETTLE: "for its key to settle",
    Wait.NEWER: "for a newer event of its key",
    Wait.KEY: "for another job of its key",
    Wait.ABSENT: "for a process that has its subscriber",
}
#: Of the event, without what belongs to its lease.
HIDDEN = ("lease", "body", "attempts")


@command()
@click.argument("event_id")
@click.option("--body", is_flag=True, help="Write the exact bytes of the body only.")
@click.option("--traceback", is_flag=True, help="Also the tracebacks of the errors.")
@one_endpoint
@as_json_option
@with_appcontext
def show(
    event_id: str, body: bool, traceback: bool, endpoint: str | None, as_json: bool
) -> None:
    """Show one event: its jobs, what happened in order, and its body.

    EVENT_ID is the event's id or the id of its row. Times are in UTC.
    """
    if body and as_json:
        raise click.UsageError("--body writes the body only: remove --json.")
    found = [
        (each, row)
        for each in endpoints_named(endpoint)
        if (row := find(each.store, event_id))
    ]
    if not found:
        raise click.ClickException(f"There is no event {event_id!r} in the inbox.")
    if body:
        click.echo(found[0][1]["body"] or b"", nl=False)
        return
    shown = [_with_jobs(each, row) for each, row in found]
    if as_json:
        print_json([_for_machines(row) for row in shown])
        return
    for row in shown:
        _print_event(row, traceback)


def _with_jobs(endpoint: Endpoint, row: Mapping[str, Any]) -> dict[str, Any]:
    shown = {name: row[name] for name in row if name not in HIDDEN}
    shown["jobs"] = jobs_of(endpoint.store, row["id"])
    shown["journal"] = journal_of(endpoint.store, row["id"])
    return {**shown, "body": row["body"]}


def _for_machines(row: dict[str, Any]) -> dict[str, Any]:
    """The body as text, or in base64 if it is not UTF-8."""
    body, text, coded = row["body"], None, None
    try:
        text = None if body is None else body.decode("utf-8")
    except UnicodeDecodeError:
        coded = base64.b64encode(body).decode("ascii")
    history = [entry._asdict() for entry in history_of(row)]
    return {**row, "history": history, "body": text, "body_base64": coded}


def _print_event(row: dict[str, Any], traceback: bool) -> None:
    body, lists = row["body"] or b"", ("jobs", "journal", "body")
    for name, value in row.items():
        if name not in lists:
            print_field(name, value)
    for job in row["jobs"]:
        _print_job(job, traceback)
    for entry in history_of(row):
        at = text(entry.at) if entry.at else "(time unknown)"
        click.echo(on_one_line(f"{at:<20}  {entry.what}"))
    click.echo(printable(body.decode("utf-8", "backslashreplace")))


def _print_job(job: Mapping[str, Any], traceback: bool) -> None:
    print_field("job", f"{job['subscriber'] or '(every subscriber)'} {_state(job)}")
    if error := _error(job):
        # A job that has succeeded keeps the error of its last failed attempt.
        is_former = job["finished_at"] and not job["dead_at"]
        print_field("  former error" if is_former else "  error", error)
    if traceback and job["traceback"]:
        print_field("  traceback", job["traceback"].rstrip("\n"))


def _state(job: Mapping[str, Any]) -> str:
    """State, attempts, and what a pending job waits for."""
    attempts = f"{job['state']}, attempts: {job['attempts']}"
    if job["due_at"] is None:
        return attempts
    key = f" {job['key']}" if job["key"] else ""
    waits_for = WAITS.get(job["waits_for"], job["waits_for"])
    return f"{attempts}, waits {waits_for}{key} until {text(job['due_at'])}"


def _error(job: Mapping[str, Any]) -> str:
    return ": ".join(filter(None, (job["error_class"], job["error"])))


class Entry(NamedTuple):
    """What happened to an event; ``at`` is ``None`` if the time is not known."""

    at: datetime | None
    what: str


def history_of(row: Mapping[str, Any]) -> list[Entry]:
    """What happened to the event, in order."""
    found = [Entry(row["received_at"], f"received ({row['origin']})")]
    for job in row["jobs"]:
        found += _history_of_job(job)
    for each in row["journal"]:
        found += _history_of_entry(each)
    found.sort(key=lambda entry: entry.at or datetime.min)
    if row["repeats"]:
        what = f"repeats: {row['repeats']}, with another body: {row['conflicts']}"
        found.append(Entry(None, what))
    return found


def _history_of_job(job: Mapping[str, Any]) -> Iterator[Entry]:
    name = job["subscriber"]
    if job["first_at"]:
        yield Entry(job["first_at"], f"{name}: postponed for the first time")
    if job["started_at"]:
        failed = "" if job["finished_at"] else f": {first_line(_error(job))}"
        error = failed if _error(job) else ""
        yield Entry(job["started_at"], f"{name}: {_begun(job)} began{error}")
    if job["finished_at"]:
        error = f": {first_line(_error(job))}" if job["dead_at"] else ""
        yield Entry(job["finished_at"], f"{name}: {job['state']}{error}")


def _begun(job: Mapping[str, Any]) -> str:
    if job["waits_for"] == Wait.KEY:
        return "wait for its key"
    # A RetryLater is not counted.
    return f"attempt {job['attempts']}" if job["attempts"] else "attempt"


def _history_of_entry(entry: Mapping[str, Any]) -> Iterator[Entry]:
    """The operation, and the errors that the jobs had before it."""
    batch = f", batch {entry['batch']}" if entry.get("batch") else ""
    yield Entry(entry["at"], f"{entry['action']} by {entry['actor']}{batch}")
    former = entry.get("former") or {}
    for job in former.get("jobs", ()):
        what = f"{job['subscriber']}, {job['state']}, attempts: {job['attempts']}"
        error = first_line(_error(job))
        yield Entry(entry["at"], f"  before: {what}{f': {error}' if error else ''}")
