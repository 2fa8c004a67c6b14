"""Runs of events, through real deliveries, in apps with each kind of session."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from asgiref.sync import sync_to_async
from flask import appcontext_popped
from flask import appcontext_pushed
from flask import Flask
from flask import g
from flask import has_app_context
from flask import Response
from sqlalchemy import orm
from sqlalchemy.exc import IntegrityError
from support import inboxes
from support.hosts import Host
from support.hosts import host_url
from support.hosts import run_host

from flask_procore_webhooks import Discard
from flask_procore_webhooks import Event
from flask_procore_webhooks import event_failed
from flask_procore_webhooks import event_processed
from flask_procore_webhooks import event_recorded
from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import resource_created
from flask_procore_webhooks import RetryLater
from flask_procore_webhooks.dispatching.dispatch import drain
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.inbox import claims
from flask_procore_webhooks.inbox.completion import finish
from flask_procore_webhooks.inbox.held import write_held
from flask_procore_webhooks.inbox.jobs import Job
from flask_procore_webhooks.inbox.record import record as record_event
from flask_procore_webhooks.inbox.status import JobState
from flask_procore_webhooks.inbox.status import Wait
from flask_procore_webhooks.running.failures import RunOutcome
from flask_procore_webhooks.running.run import process
from flask_procore_webhooks.senders.samples import to_bytes
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import Deliveries
from flask_procore_webhooks.testing import payload

On = Callable[..., Callable[[Any], Any]]
MakeApp = Callable[..., Flask]

HOSTS = (
    "flask_sqlalchemy sqlite",
    "flask_sqlalchemy postgresql",
    "flask_sqlalchemy mariadb",
    "scoped_session sqlite",
)


@pytest.fixture(params=HOSTS)
def host(
    request: pytest.FixtureRequest, make_app: MakeApp, tmp_path: Path
) -> Iterator[Host]:
    kind, database = request.param.split()
    url = host_url(request, database, tmp_path)
    with run_host(make_app(), kind, url) as host:
        yield host


@pytest.fixture
def sqlite_host(make_app: MakeApp, tmp_path: Path) -> Iterator[Host]:
    url = f"sqlite:///{tmp_path / 'host.db'}"
    app = make_app(PROCORE_WEBHOOK_MAX_ATTEMPTS=2)
    with run_host(app, "flask_sqlalchemy", url) as host:
        yield host


@pytest.fixture
def on(host: Host) -> On:
    return host.webhooks.on


# Commits


def test_subscribers_writes_and_its_job_are_committed(host: Host, on: On) -> None:
    @on(name="writer")
    def writer(event: Event) -> None:
        host.note(event.id)

    answer = host.deliver()

    assert (answer.status_code, answer.json) == (200, {"received": True})
    assert host.notes() == [host.payload["id"]]
    assert host.finished() == ["writer"]
    row, job = host.row(), host.job()
    assert (row["status"], row["error"]) == ("done", None)
    assert row["lease"] is None
    assert row["due_at"] is None
    assert row["finished_at"]
    assert (job["state"], job["version"], job["attempts"]) == ("done", 1, 1)
    assert row["received_at"] <= job["started_at"] <= job["finished_at"]
    others = ("due_at", "waits_for", "key", "first_at", "dead_at", "batch", "error")
    assert [job[name] for name in others] == [None] * len(others)


def test_finished_event_is_not_run_again(host: Host, on: On) -> None:
    @on()
    def writer(event: Event) -> None:
        host.note(f"attempt {event.attempt}")

    host.deliver()
    answer = host.deliver()

    assert answer.status_code == 200
    assert answer.json == {"received": True, "duplicate": True}
    assert host.notes() == ["attempt 1"]
    assert host.job()["attempts"] == 1


def test_failure_rolls_the_writes_back_and_the_next_delivery_runs_it_again(
    host: Host, on: On
) -> None:
    @on(name="failing")
    def failing(event: Event) -> None:
        host.note(f"attempt {event.attempt}")
        if event.attempt == 1:
            raise ValueError("not yet")

    first = host.deliver()
    row = host.row()

    assert (first.status_code, first.json) == (500, {"error": "Processing failed"})
    assert host.notes() == []
    assert host.finished() == []
    assert (row["status"], row["error"]) == ("pending", "failing: ValueError: not yet")

    second = host.deliver()

    assert second.status_code == 200
    assert host.notes() == ["attempt 2"]
    assert (host.row()["status"], host.row()["error"]) == ("done", None)


def test_only_the_subscriber_that_failed_is_run_again(host: Host, on: On) -> None:
    calls: list[str] = []

    @on(name="first")
    def first(event: Event) -> None:
        calls.append("first")
        host.note("first")

    @on(name="second")
    def second(event: Event) -> None:
        calls.append("second")
        host.note("second")
        if event.attempt == 1:
            raise ValueError("not yet")

    @on(name="third")
    def third(event: Event) -> None:
        calls.append("third")
        host.note("third")

    assert host.deliver().status_code == 500
    assert host.notes() == ["first", "third"]
    assert host.finished() == ["first", "third"]

    assert host.deliver().status_code == 200
    assert calls == ["first", "second", "third", "second"]
    assert host.notes() == ["first", "third", "second"]
    assert host.finished() == ["first", "second", "third"]


def test_event_without_subscribers_is_unmatched(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    """The type is logged once."""
    for _ in range(2):
        assert host.deliver(payload("RFIs.create")).status_code == 200
        row = host.row()
        assert (row["status"], row["due_at"], host.jobs()) == ("unmatched", None, {})
        assert row["parked_at"] == row["finished_at"]
    assert caplog.text.count("no subscriber matches 'RFIs.create'") == 1


def test_inbox_is_not_reached_through_the_session(host: Host, on: On) -> None:
    """Other connections see the status ``running`` during the run."""
    seen = []

    @on()
    def looks(event: Event) -> None:
        host.note("uncommitted")
        row = host.row(event.id)
        seen.append((row["status"], host.jobs(event.id), host.notes()))

    assert host.deliver().status_code == 200
    assert seen == [("running", {}, [])]


# Retries and discards


def test_subscriber_can_ask_for_a_later_run(host: Host, on: On) -> None:
    @on(name="patient")
    def patient(event: Event) -> None:
        host.note("too early")
        raise RetryLater(after=120)

    assert host.deliver().status_code == 200

    row, job = host.row(), host.job()
    assert host.notes() == []
    assert (row["status"], row["error"]) == ("pending", None)
    assert (job["state"], job["waits_for"]) == ("pending", "later")
    assert row["due_at"] == job["due_at"]
    assert 120 <= (row["due_at"] - row["received_at"]).total_seconds() < 180
    assert drain([host.endpoint]) == 0
    assert drain([host.endpoint], ahead=100) == 0
    assert drain([host.endpoint], ahead=200) == 1


@pytest.mark.parametrize(
    "after",
    [float("inf"), 1e300, 10**15, float("nan"), -5, 0, None, Decimal("0.5")],
    ids=str,
)
def test_retry_later_accepts_any_wait(sqlite_host: Host, after: float | None) -> None:
    calls: list[int] = []

    @sqlite_host.webhooks.on(name="strange")
    def strange(event: Event) -> None:
        calls.append(event.attempt)
        if len(calls) == 1:
            raise RetryLater(after)

    assert sqlite_host.deliver().status_code == 200
    row, job = sqlite_host.row(), sqlite_host.job()
    assert (row["status"], job["state"]) == ("pending", "pending")
    assert row["received_at"] <= job["due_at"] == row["due_at"]
    # It is called once more when MAX_AGE is over.
    longest = timedelta(seconds=sqlite_host.endpoint.settings.max_age)
    assert job["due_at"] <= job["first_at"] + longest
    drain([sqlite_host.endpoint], ahead=longest.total_seconds())
    assert (calls, sqlite_host.row()["status"]) == ([1, 1], "done")


def test_retry_later_without_a_description_is_retried(
    sqlite_host: Host,
) -> None:
    class Speechless(RetryLater):
        def __init__(self) -> None:
            self.after = Decimal(60)  # type: ignore[assignment]

        def __str__(self) -> str:
            raise ValueError("no words")

    ran = []
    sqlite_host.webhooks.on(name="after")(lambda event: ran.append(event.id))

    @sqlite_host.webhooks.on(name="speechless")
    def speechless(event: Event) -> None:
        raise Speechless

    assert sqlite_host.deliver().status_code == 200
    assert sqlite_host.row()["status"] == "pending"
    states = {name: job["state"] for name, job in sqlite_host.jobs().items()}
    assert states == {"after": "done", "speechless": "pending"}
    assert ran == [sqlite_host.row()["event_id"]]


def test_discarded_run_rolls_back_only_its_own_writes(host: Host, on: On) -> None:
    @on(name="keeps")
    def keeps(event: Event) -> None:
        host.note("kept")

    @on(name="discards")
    def discards(event: Event) -> None:
        host.note("discarded")
        host.session.flush()
        raise Discard("not for us")

    @on(name="also")
    def also(event: Event) -> None:
        host.note("kept too")

    assert host.deliver().status_code == 200
    assert host.notes() == ["kept", "kept too"]
    assert host.finished() == ["also", "discards", "keeps"]
    assert host.row()["status"] == "done"


def test_event_that_runs_out_of_attempts_is_dead_and_answered_200(
    sqlite_host: Host,
) -> None:
    broken = True

    @sqlite_host.webhooks.on(name="works")
    def works(event: Event) -> None:
        sqlite_host.note("works")

    @sqlite_host.webhooks.on(name="breaks")
    def breaks(event: Event) -> None:
        if broken:
            raise ValueError("broken")
        sqlite_host.note(f"mended in attempt {event.attempt}")

    answers = [sqlite_host.deliver().status_code for _ in range(2)]
    row = sqlite_host.row()

    assert answers == [500, 200]
    assert (row["status"], sqlite_host.jobs()["breaks"]["attempts"]) == ("dead", 2)
    assert row["error"] == "breaks: ValueError: broken"
    assert row["due_at"] is None
    assert row["finished_at"] == row["parked_at"]

    # A redelivery revives the event, with the attempts of a new event.
    assert sqlite_host.deliver().status_code == 500
    assert sqlite_host.jobs()["breaks"]["attempts"] == 1
    broken = False
    assert sqlite_host.deliver().status_code == 200

    row, job = sqlite_host.row(), sqlite_host.jobs()["breaks"]
    assert (row["status"], row["error"], row["parked_at"]) == ("done", None, None)
    assert (job["state"], job["attempts"], job["dead_at"]) == ("done", 2, None)
    assert sqlite_host.notes() == ["works", "mended in attempt 2"]


def test_event_that_always_kills_its_process_becomes_dead(
    sqlite_host: Host,
) -> None:
    """Its attempts were counted while it ran alone."""
    ran = []

    @sqlite_host.webhooks.on(name="unused")
    def unused(event: Event) -> None:
        ran.append(event.attempt)

    endpoint, store = sqlite_host.endpoint, sqlite_host.endpoint.store
    sqlite_host.payload = payload("RFIs.create")
    recorded = record_event(store, endpoint.read(to_bytes(sqlite_host.payload))[0])
    # The first claim is not suspected.
    assert claims.claim(store, recorded.row_id, seconds=-1)
    for _ in range(endpoint.settings.max_attempts):
        claim = claims.claim(store, recorded.row_id, seconds=-1)
        assert claim and claim.unsettled
        job = claim.jobs.get("unused", Job("unused"))
        begun = replace(job, attempts=job.attempts + 1)
        begun = begun.put_off(store.db_now(), Wait.NOTHING, since=store.db_now())
        write_held(store, claim, [begun])

    assert sqlite_host.deliver().status_code == 200
    row = sqlite_host.row()
    assert ran == []
    assert (row["status"], row["claims"]) == ("dead", 0)
    assert sqlite_host.job()["attempts"] == 2
    assert row["error"] == "unused: every attempt ended without an outcome"


def test_event_beside_killed_processes_stays_alive(sqlite_host: Host) -> None:
    ran = []

    @sqlite_host.webhooks.on()
    def innocent(event: Event) -> None:
        ran.append(event.attempt)

    endpoint, store = sqlite_host.endpoint, sqlite_host.endpoint.store
    sqlite_host.payload = payload("RFIs.create")
    recorded = record_event(store, endpoint.read(to_bytes(sqlite_host.payload))[0])
    for _ in range(5 * endpoint.settings.max_attempts):
        assert claims.claim(store, recorded.row_id, seconds=-1)

    assert sqlite_host.deliver().status_code == 200
    row = sqlite_host.row()
    assert ran == [1]
    assert (row["status"], row["claims"]) == ("done", 0)
    assert sqlite_host.job()["attempts"] == 1


def test_event_with_finished_jobs_is_done_after_a_crash(
    sqlite_host: Host,
) -> None:
    """The process was killed between the end of the last job and the settling."""
    ran: list[int] = []

    @sqlite_host.webhooks.on(name="writer")
    def writer(event: Event) -> None:
        ran.append(event.attempt)

    endpoint, store = sqlite_host.endpoint, sqlite_host.endpoint.store
    sqlite_host.payload = payload("RFIs.create")
    recorded = record_event(store, endpoint.read(to_bytes(sqlite_host.payload))[0])
    for _ in range(endpoint.settings.max_attempts + 1):
        claim = claims.claim(store, recorded.row_id, seconds=-1)
    assert claim
    now = store.db_now()
    finish(store, claim.row_id, Job("writer").ended(JobState.DONE, now, now))

    assert process(endpoint, recorded.row_id) is RunOutcome.DONE
    assert ran == []
    assert (sqlite_host.row()["status"], sqlite_host.row()["error"]) == ("done", None)


def test_backoff_does_not_overflow_after_very_many_attempts(
    make_app: MakeApp, tmp_path: Path
) -> None:
    app = make_app(PROCORE_WEBHOOK_MAX_ATTEMPTS=10_000, PROCORE_WEBHOOK_RETRY_CAP=3e10)
    url = f"sqlite:///{tmp_path / 'host.db'}"
    with run_host(app, "flask_sqlalchemy", url) as host:

        @host.webhooks.on()
        def fails(event: Event) -> None:
            raise ValueError(str(event.attempt))

        host.deliver()
        job = host.store.database.tables.job
        with host.engine.begin() as connection:
            connection.execute(sa.update(job).values(attempts=5_000))

        assert host.deliver().status_code == 500
        assert host.row()["error"].endswith("ValueError: 5001")


# Hostile subscribers: the session


def test_subscriber_that_commits_and_fails_is_retried(host: Host, on: On) -> None:
    @on()
    def hasty(event: Event) -> None:
        host.note(f"attempt {event.attempt}")
        host.session.commit()
        if event.attempt == 1:
            raise ValueError("after the commit")

    assert host.deliver().status_code == 500
    assert host.row()["status"] == "pending"
    assert host.deliver().status_code == 200
    assert host.notes() == ["attempt 1", "attempt 2"]


MEDDLING: dict[str, Callable[[Any], Any]] = {
    "commit": lambda session: session.commit(),
    "rollback": lambda session: session.rollback(),
    "close": lambda session: session.close(),
    "remove": lambda session: session.remove(),
    "begin": lambda session: session.begin(),
    "savepoint": lambda session: session.begin_nested(),
    "expunge": lambda session: session.expunge_all(),
    "invalidate": lambda session: session().invalidate(),
}


@pytest.mark.parametrize("meddle", MEDDLING.values(), ids=MEDDLING.keys())
def test_writes_after_session_misuse_are_committed(
    host: Host, on: On, meddle: Callable[[Any], Any]
) -> None:
    """A finished job without its writes would lose them for good."""

    @on(name="meddler")
    def meddler(event: Event) -> None:
        meddle(host.session)
        host.note("written")

    @on(name="after")
    def after(event: Event) -> None:
        host.note("after")

    assert host.deliver().status_code == 200
    assert host.notes() == ["written", "after"]
    assert host.finished() == ["after", "meddler"]


@pytest.mark.parametrize("meddle", MEDDLING.values(), ids=MEDDLING.keys())
def test_failure_after_session_misuse_is_a_failure(
    sqlite_host: Host, meddle: Callable[[Any], Any]
) -> None:
    @sqlite_host.webhooks.on()
    def meddler(event: Event) -> None:
        meddle(sqlite_host.session)
        sqlite_host.note(f"attempt {event.attempt}")
        if event.attempt == 1:
            raise ValueError("not yet")

    assert sqlite_host.deliver().status_code == 500
    assert sqlite_host.notes() == []
    assert sqlite_host.deliver().status_code == 200
    assert sqlite_host.notes() == ["attempt 2"]


def test_session_left_broken_fails_the_run_and_not_the_next_subscriber(
    host: Host, on: On
) -> None:
    @on(name="broken")
    def broken(event: Event) -> None:
        note = _note_class(host)
        host.session.add(note(text="first"))
        host.session.flush()
        if event.attempt == 1:
            host.session.add(note(text="first"))
            try:
                host.session.flush()
            except IntegrityError:
                pass

    @on(name="next")
    def next_(event: Event) -> None:
        host.note("next")

    assert host.deliver().status_code == 500
    assert "PendingRollbackError" in host.row()["error"]
    assert (host.notes(), host.finished()) == (["next"], ["next"])

    assert host.deliver().status_code == 200
    assert host.notes() == ["next", "first"]


def test_writes_that_fail_when_they_are_flushed_fail_the_run(
    host: Host, on: On
) -> None:
    @on()
    def dirty(event: Event) -> None:
        note = _note_class(host)
        host.session.add(note(text="first"))
        if event.attempt == 1:
            host.session.add(note(text=None))

    assert host.deliver().status_code == 500
    assert "IntegrityError" in host.row()["error"]
    assert (host.notes(), host.finished()) == ([], [])

    assert host.deliver().status_code == 200
    assert host.notes() == ["first"]


@pytest.mark.parametrize("ending", ["writes", "returns", "raises", "discards"])
def test_connection_that_dies_under_a_subscriber_commits_nothing(
    host: Host, on: On, ending: str
) -> None:
    @on(name="unlucky")
    def unlucky(event: Event) -> None:
        host.note("unlucky")
        if event.attempt == 1:
            _end_the_connection(host)
            if ending == "writes":
                host.note("more")
            if ending == "raises":
                raise ValueError("seen by the subscriber")
            if ending == "discards":
                raise Discard("seen by the subscriber")

    @on(name="next")
    def next_(event: Event) -> None:
        host.note("next")

    first = host.deliver()

    assert host.notes() == ["next"]
    if ending == "discards":
        assert first.status_code == 200
        assert host.finished() == ["next", "unlucky"]
        return
    assert first.status_code == 500
    assert host.finished() == ["next"]
    assert host.deliver().status_code == 200
    assert host.notes() == ["next", "unlucky"]


def test_commit_that_fails_is_not_answered_2xx(host: Host, on: On) -> None:
    """A deferred constraint fails at the commit, after a run without errors."""

    @on(name="unlucky")
    def unlucky(event: Event) -> None:
        sqlite = host.engine.dialect.name == "sqlite"
        if sqlite:
            host.session.execute(sa.text("PRAGMA foreign_keys = ON"))
        host.note("written")
        if event.attempt == 1 and host.engine.dialect.name == "mysql":
            # MariaDB has no deferred constraints; a hook fails at the commit.
            sa.event.listen(host.session(), "before_commit", _fail)
        elif event.attempt == 1:
            missing = sa.insert(host.remark_table).values(note="missing")
            host.session.execute(missing)

    assert host.deliver().status_code == 500
    assert (host.notes(), host.finished()) == ([], [])
    assert host.row()["status"] == "pending"

    assert host.deliver().status_code == 200
    assert (host.notes(), host.finished()) == (["written"], ["unlucky"])


def test_uncommitted_request_writes_are_not_part_of_a_run(host: Host, on: On) -> None:
    sessions = []

    @host.app.before_request
    def begin() -> None:
        sessions.append(host.session())
        if host.engine.dialect.name != "sqlite":
            # On SQLite, an open write would lock the inbox out.
            host.note("of the request")

    @host.app.after_request
    def end(response: Response) -> Response:
        sessions.append(host.session())
        return response

    @on()
    def writer(event: Event) -> None:
        sessions.append(host.session())
        host.note("of the run")

    assert host.deliver().status_code == 200
    assert host.notes() == ["of the run"]
    of_the_request, of_the_run, of_the_request_again = sessions
    assert of_the_request is of_the_request_again
    assert of_the_request is not of_the_run


def test_lifecycle_receiver_that_breaks_its_session_has_no_effect(
    host: Host, on: On
) -> None:
    @event_recorded.connect
    def watcher(app: Flask, event: Event) -> None:
        host.session.add(_note_class(host)(text=None))
        host.session.flush()

    @on()
    def writer(event: Event) -> None:
        host.note("written")

    assert host.deliver().status_code == 200
    assert host.notes() == ["written"]


def test_subscribers_share_neither_g_nor_a_session(host: Host, on: On) -> None:
    seen: list[Any] = []

    def look(event: Event) -> None:
        seen.append((g.get("mark"), host.session()))
        g.mark = "left behind"

    @host.app.before_request
    def mark() -> None:
        g.mark = "of the request"

    for name in ("looks", "looks-again"):
        resource_created.connect(lambda app, event: look(event), name=name)

    assert host.deliver().status_code == 200
    (first_mark, first_session), (second_mark, second_session) = seen
    assert (first_mark, second_mark) == (None, None)
    assert first_session is not second_session


def test_payload_changes_are_not_seen_by_other_subscribers(host: Host, on: On) -> None:
    seen = []

    @on()
    def changes(event: Event) -> None:
        seen.append(event.data["resource_id"])
        payload: Any = event.payload
        payload["data"]["resource_id"] = "changed"
        del payload["id"]

    @on()
    def reads(event: Event) -> None:
        seen.append(event.data["resource_id"])
        assert event.payload["id"] == event.id

    assert host.deliver().status_code == 200
    assert seen == [4001, 4001]


@pytest.mark.parametrize("way", ["swallowed", "raised from", "raised in"])
def test_errors_contain_no_bound_parameters(
    host: Host, on: On, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    class Note:
        def __init__(self, text: str) -> None:
            self.text = text

    mapper = orm.registry()
    mapper.map_imperatively(Note, host.note_table)

    @on(name="writes_twice")
    def writes_twice(event: Event) -> None:
        host.session.add(Note("CONFIDENTIAL 4711"))
        host.session.flush()
        try:
            host.session.add(Note("CONFIDENTIAL 4711"))
            host.session.flush()
        except IntegrityError as error:
            if way == "raised from":
                raise ValueError("of the host") from error
            if way == "raised in":
                raise ValueError("of the host")  # noqa: B904
        host.note("goes on")

    try:
        assert host.deliver().status_code == 500
    finally:
        mapper.dispose()
    assert "writes_twice failed" in caplog.text
    shown = host.row()["error"] + caplog.text
    # Parameters are hidden; a database's message may quote a key.
    assert "parameters: (" not in shown and "parameters: {" not in shown
    assert "PendingRollbackError" in shown or "ValueError: of the host" in shown


# Hostile subscribers: everything else


@pytest.mark.parametrize("stop", [SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_system_exit_stops_the_process_and_releases_the_event(
    host: Host, on: On, stop: BaseException
) -> None:
    @on(name="before")
    def before(event: Event) -> None:
        host.note("before")

    @on(name="stops")
    def stops(event: Event) -> None:
        host.note(f"attempt {event.attempt}")
        if event.attempt == 1:
            raise stop

    with pytest.raises(type(stop)):
        host.deliver()

    row = host.row()
    assert (row["status"], row["lease"]) == ("pending", None)
    assert row["error"] == "stops: the run was interrupted"
    assert host.notes() == ["before"]

    assert host.deliver().status_code == 200
    assert host.notes() == ["before", "attempt 2"]


def test_system_exit_is_not_replaced_by_a_database_error(sqlite_host: Host) -> None:
    @sqlite_host.webhooks.on()
    def stops(event: Event) -> None:
        sqlite_host.endpoint.store.columns.id.table.drop(sqlite_host.engine)
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        sqlite_host.deliver()


def test_cancelled_subscriber_has_failed_and_others_run(host: Host, on: On) -> None:
    @on(name="cancelled")
    async def cancelled(event: Event) -> None:
        if event.attempt == 1:
            raise asyncio.CancelledError

    @on(name="next")
    def next_(event: Event) -> None:
        host.note("next")

    assert host.deliver().status_code == 500
    assert host.finished() == ["next"]
    assert host.deliver().status_code == 200


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    "error",
    [ValueError("\0 \ud800 \N{PILE OF POO} " * 1000), Unprintable(), ValueError()],
    ids=["strange and long", "unprintable", "empty"],
)
def test_any_error_of_a_subscriber_is_kept_as_text(
    host: Host, on: On, error: Exception
) -> None:
    @on(name="first")
    def first(event: Event) -> None:
        if event.attempt == 1:
            raise error

    @on(name="second")
    def second(event: Event) -> None:
        host.note("second")

    assert host.deliver().status_code == 500
    kept = host.row()["error"]
    assert kept.startswith("first: ")
    assert type(error).__name__ in kept
    assert len(kept) <= 4000
    assert host.finished() == ["second"]
    assert host.deliver().status_code == 200


def test_errors_of_all_subscribers_are_kept(host: Host, on: On) -> None:
    for name in ("first", "second"):

        @on(name=name)
        def fails(event: Event, name: str = name) -> None:
            raise ValueError(f"the error of {name}")

    host.deliver()
    assert host.row()["error"] == (
        "first: ValueError: the error of first\nsecond: ValueError: the error of second"
    )


def test_subscriber_may_deliver_another_event(host: Host, on: On) -> None:
    """The outer run's writes are separate from those of the inner run."""
    inner = payload("RFIs.create")
    answers = []

    @on(name="outer")
    def outer(event: Event) -> None:
        if event.id == inner["id"]:
            host.note("inner")
            return
        if host.engine.dialect.name != "sqlite":
            # On SQLite, an open write would lock the inbox out.
            host.note("before")
        answers.append(deliver(host.app.test_client(), inner).status_code)
        host.note("after")
        if event.attempt == 1:
            raise ValueError("not yet")

    assert host.deliver().status_code == 500
    assert (answers, host.notes()) == ([200], ["inner"])

    assert host.deliver().status_code == 200
    assert answers == [200, 200]
    assert [text for text in host.notes() if text != "before"] == ["inner", "after"]
    assert host.job(inner["id"])["attempts"] == 1


def test_subscriber_may_not_run_its_own_event_again(host: Host, on: On) -> None:
    answers = []

    @on()
    def recursive(event: Event) -> None:
        answers.append(deliver(host.app.test_client(), event.body))
        host.note("once")

    assert host.deliver().status_code == 200
    (inner,) = answers
    assert (inner.status_code, inner.headers["Retry-After"]) == (503, "1")
    assert host.notes() == ["once"]


def test_subscriber_may_use_threads(host: Host, on: On) -> None:
    def work() -> None:
        with host.app.app_context():
            host.note("of the thread")
            host.session.commit()
            host.session.remove()

    @on()
    def threaded(event: Event) -> None:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        host.note("of the subscriber")

    assert host.deliver().status_code == 200
    assert host.notes() == ["of the thread", "of the subscriber"]


def test_subscriber_that_deletes_its_event_row_loses_no_other_event(
    host: Host, on: On
) -> None:
    """The next event must not inherit the jobs of the deleted row."""
    table = host.endpoint.store.columns.id.table

    @on(name="deletes")
    def deletes(event: Event) -> None:
        host.note(event.id)
        host.session.execute(sa.delete(table).where(table.c.event_id == event.id))

    events = [payload("RFIs.create") for _ in range(3)]

    assert [host.deliver(event).status_code for event in events] == [200] * 3
    assert host.notes() == [event["id"] for event in events]


def test_failing_teardown_is_logged_and_changes_nothing(
    host: Host, on: On, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    @host.app.teardown_appcontext
    def teardown(error: BaseException | None) -> None:
        if len(calls) == 1:
            calls.append("teardown")
            raise ValueError("in the teardown")

    @on(name="writer")
    def writer(event: Event) -> None:
        calls.append("writer")
        host.note("written")

    @on(name="next")
    def next_(event: Event) -> None:
        calls.append("next")

    assert host.deliver().status_code == 200
    assert calls == ["writer", "teardown", "next"]
    assert host.notes() == ["written"]
    assert host.row()["status"] == "done"
    assert {job["attempts"] for job in host.jobs().values()} == {1}
    assert "writer had ended for" in caplog.text
    assert "ValueError: in the teardown" in caplog.text


# Errors of the host around a subscriber


def _in_teardown(host: Host, fail: Callable[[], None]) -> None:
    host.app.teardown_appcontext(lambda error: fail())


def _in_signal(host: Host, fail: Callable[[], None]) -> None:
    appcontext_popped.connect(lambda app: fail(), host.app, weak=False)


def _in_hook(name: str) -> Callable[[Host, Callable[[], None]], None]:
    def listen(host: Host, fail: Callable[[], None]) -> None:
        factory: Any = host.session.session_factory
        sa.event.listen(factory, name, lambda *_: fail())

    return listen


def _in_remove(host: Host, fail: Callable[[], None]) -> None:
    remove = host.session.remove

    def failing() -> None:
        remove()
        fail()

    host.session.remove = failing  # type: ignore[method-assign]


AROUND: dict[str, Callable[[Host, Callable[[], None]], None]] = {
    "teardown": _in_teardown,
    "appcontext_popped": _in_signal,
    "after_commit": _in_hook("after_commit"),
    "after_transaction_end": _in_hook("after_transaction_end"),
    "remove": _in_remove,
}


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
@pytest.mark.parametrize("place", AROUND)
def test_error_of_the_host_after_success_takes_nothing_back(
    host: Host,
    on: On,
    caplog: pytest.LogCaptureFixture,
    place: str,
    error: type[BaseException],
) -> None:
    calls: list[str] = []

    def fail() -> None:
        # Only around the first subscriber, and after its commit.
        if calls == ["writer"] and host.notes() == ["written"]:
            calls.append("failed")
            raise error("around it")

    @on(name="writer")
    def writer(event: Event) -> None:
        calls.append("writer")
        host.note("written")

    @on(name="next")
    def next_(event: Event) -> None:
        calls.append("next")

    AROUND[place](host, fail)
    assert host.deliver().status_code == 200
    assert calls == ["writer", "failed", "next"]
    assert host.row()["status"] == "done"
    assert {job["attempts"] for job in host.jobs().values()} == {1}
    assert host.finished() == ["next", "writer"]
    assert f"{error.__name__}: around it" in caplog.text


@pytest.mark.parametrize("place", ["teardown", "appcontext_popped"])
def test_error_of_the_host_keeps_what_a_subscriber_without_a_session_has_done(
    app: Flask,
    endpoint: Endpoint,
    webhooks: ProcoreWebhooks,
    caplog: pytest.LogCaptureFixture,
    place: str,
) -> None:
    calls: list[str] = []

    @webhooks.on(name="mails")
    def mails(event: Event) -> None:
        calls.append(f"mails {event.attempt}")

    def fail(*_: object) -> None:
        if calls == ["mails 1"]:
            calls.append("failed")
            raise ValueError("around it")

    if place == "teardown":
        app.teardown_appcontext(fail)
    else:
        appcontext_popped.connect(fail, app)
    assert deliver(app.test_client(), payload("RFIs.update")).status_code == 200
    assert calls == ["mails 1", "failed"]
    assert "ValueError: around it" in caplog.text


def test_teardown_error_replaces_neither_discard_nor_retry_later(
    host: Host, on: On
) -> None:
    ran: list[str] = []

    @host.app.teardown_appcontext
    def teardown(error: BaseException | None) -> None:
        if ran and ran[-1] in ("discards", "postpones"):
            ran.append("failed")
            raise ValueError("around it")

    @on(name="discards")
    def discards(event: Event) -> None:
        ran.append("discards")
        raise Discard("not for us")

    @on(name="postpones")
    def postpones(event: Event) -> None:
        ran.append("postpones")
        raise RetryLater(after=600)

    assert host.deliver().status_code == 200
    assert ran == ["discards", "failed", "postpones", "failed"]
    jobs = host.jobs()
    assert host.row()["error"] is None
    assert jobs["discards"]["state"] == "discarded"
    assert (jobs["postpones"]["waits_for"], jobs["postpones"]["error"]) == (
        "later",
        None,
    )
    assert (host.row()["due_at"] - host.row()["received_at"]).total_seconds() >= 600


def test_error_before_the_subscriber_is_a_failed_attempt(host: Host, on: On) -> None:
    """And the context that could not be entered is left."""
    calls: list[int] = []
    contexts: list[bool] = []

    @on(name="writer")
    def writer(event: Event) -> None:
        calls.append(event.attempt)
        host.note("written")

    def fail(app: Flask) -> None:
        if not contexts:
            contexts.append(True)
            raise ValueError("no context")

    sent = Event("evt_1", "RFIs.update", body=b'{"id": "evt_1"}')
    recorded = record_event(host.store, sent)
    with appcontext_pushed.connected_to(fail, host.app):
        assert process(host.endpoint, recorded.row_id) is RunOutcome.RETRY
    assert not has_app_context()
    assert calls == []
    assert host.row("evt_1")["error"] == "writer: ValueError: no context"
    outcome = process(host.endpoint, recorded.row_id, hurry=True)
    assert outcome is RunOutcome.DONE
    assert (calls, host.notes()) == ([2], ["written"])


# Async subscribers and other callables


class Service:
    def __init__(self, host: Host) -> None:
        self.host = host

    def method(self, event: Event) -> None:
        self.host.note("written")

    async def coroutine(self, event: Event) -> None:
        await asyncio.sleep(0)
        self.host.note("written")

    def with_more(self, more: str, event: Event) -> None:
        self.host.note(more)


class CallableService(Service):
    def __call__(self, event: Event) -> None:
        self.host.note("written")


class AsyncService(Service):
    async def __call__(self, event: Event) -> None:
        await self.coroutine(event)


CALLABLES: dict[str, Callable[[Host], Callable[[Event], Any]]] = {
    "bound method": lambda host: Service(host).method,
    "async bound method": lambda host: Service(host).coroutine,
    "callable object": CallableService,
    "async callable object": AsyncService,
    "partial": lambda host: functools.partial(Service(host).with_more, "written"),
    "async partial": lambda host: functools.partial(Service(host).coroutine),
    "awaitable from a lambda": lambda host: lambda event: AsyncService(host)(event),
}


@pytest.mark.parametrize("make", CALLABLES.values(), ids=CALLABLES.keys())
def test_any_callable_can_be_a_subscriber(
    host: Host, on: On, make: Callable[[Host], Callable[[Event], Any]]
) -> None:
    on()(make(host))

    assert host.deliver().status_code == 200
    assert host.notes() == ["written"]
    assert len(host.finished()) == 1


def test_async_subscriber_fails_and_resumes_like_any_other(host: Host, on: On) -> None:
    postponed: list[str] = []

    @on(name="coroutine")
    async def coroutine(event: Event) -> None:
        host.note(f"attempt {event.attempt}")
        await asyncio.sleep(0)
        if event.attempt == 1:
            raise ValueError("not yet")
        if not postponed:
            postponed.append(event.id)
            raise RetryLater(60)

    assert [host.deliver().status_code for _ in range(2)] == [500, 200]
    assert drain([host.endpoint], ahead=60) == 1
    assert host.notes() == ["attempt 2"]
    assert host.job()["attempts"] == 2


def test_async_subscriber_may_write_in_its_callers_thread(host: Host, on: On) -> None:
    @on()
    async def coroutine(event: Event) -> None:
        await sync_to_async(host.note)("written")

    assert host.deliver().status_code == 200
    assert host.notes() == ["written"]


# Without a session: the embedded default


@pytest.fixture
def app(make_app: MakeApp, webhooks: ProcoreWebhooks, database_url: str) -> Any:
    app = make_app(
        PROCORE_WEBHOOK_DATABASE_URI=database_url, PROCORE_WEBHOOK_MAX_ATTEMPTS=3
    )
    app.register_blueprint(webhooks)
    yield app
    (endpoint,) = endpoints(app).values()
    endpoint.store.database.engine.dispose()


def test_without_a_session_each_subscriber_still_finishes_once(
    app: Flask, endpoint: Endpoint, webhooks: ProcoreWebhooks
) -> None:
    calls = []

    @webhooks.on(name="works")
    def works(event: Event) -> None:
        calls.append("works")

    @webhooks.on(name="discards")
    async def discards(event: Event) -> None:
        calls.append("discards")
        raise Discard("not for us")

    @webhooks.on(name="fails")
    def fails(event: Event) -> None:
        calls.append("fails")
        if event.attempt == 1:
            raise ValueError("not yet")

    event = payload("RFIs.create")
    client = app.test_client()

    assert deliver(client, event).status_code == 500
    assert deliver(client, event).status_code == 200
    assert deliver(client, event).status_code == 200
    assert calls == ["works", "discards", "fails", "fails"]
    assert inboxes.row(endpoint.store, event["id"])["status"] == "done"
    assert inboxes.states(endpoint.store, event["id"]) == {
        "discards": "discarded",
        "fails": "done",
        "works": "done",
    }


def test_system_exit_without_a_session_releases_the_event(
    app: Flask, endpoint: Endpoint, webhooks: ProcoreWebhooks
) -> None:
    @webhooks.on()
    def stops(event: Event) -> None:
        if event.attempt == 1:
            raise SystemExit(3)

    event = payload("RFIs.create")
    with pytest.raises(SystemExit):
        deliver(app.test_client(), event)
    assert deliver(app.test_client(), event).status_code == 200


# Results of drain and process


def test_drain_runs_every_event_once_however_many_fail(
    make_app: MakeApp, tmp_path: Path
) -> None:
    """More events than one batch; the failed events are due first."""
    ran: list[str] = []
    ids = [f"evt_{number}" for number in range(130)]
    url = f"sqlite:///{tmp_path / 'host.db'}"
    with run_host(make_app(), "flask_sqlalchemy", url) as host:

        @host.webhooks.on()
        def fails(event: Event) -> None:
            ran.append(event.id)
            raise RetryLater(3600 if len(ran) <= 130 else 0)

        for id in ids:
            body = to_bytes(payload("RFIs.create", id=id))
            record_event(host.endpoint.store, host.endpoint.read(body)[0])

        assert drain([host.endpoint]) == 130
        assert drain([host.endpoint]) == 0
        assert drain([host.endpoint], ahead=3600) == 130
    assert sorted(ran) == sorted(2 * ids)


def test_process_returns_the_outcome(
    app: Flask, endpoint: Endpoint, webhooks: ProcoreWebhooks
) -> None:
    @webhooks.on()
    def fails_twice(event: Event) -> None:
        if event.attempt < 3:
            raise ValueError("not yet")

    recorded = record_event(
        endpoint.store, endpoint.read(to_bytes(payload("RFIs.create")))[0]
    )
    row_id = recorded.row_id

    assert process(endpoint, row_id) is RunOutcome.RETRY
    assert process(endpoint, row_id) is RunOutcome.NOT_CLAIMED
    assert process(endpoint, row_id, hurry=True) is RunOutcome.RETRY
    assert process(endpoint, row_id, hurry=True) is RunOutcome.DONE
    assert process(endpoint, row_id, hurry=True) is RunOutcome.NOT_CLAIMED
    assert process(endpoint, 999_999) is RunOutcome.NOT_CLAIMED


def _note_class(host: Host) -> Any:
    """An ORM class for the notes, as most apps have."""
    registry = orm.registry(metadata=host.note_table.metadata)
    note = type("Note", (), {})
    registry.map_imperatively(note, host.note_table)
    return note


def _fail(session: Any) -> None:
    raise ValueError("in a hook of the host")


def _end_the_connection(host: Host) -> None:
    """End the session's connection from another connection."""
    connection = host.session.connection()
    if connection.dialect.name == "sqlite":
        dbapi = connection.connection.dbapi_connection
        dbapi.rollback()
        dbapi.close()
        return
    own_id = {
        "postgresql": "SELECT pg_backend_pid()",
        "mysql": "SELECT connection_id()",
    }
    end = {
        "postgresql": "SELECT pg_terminate_backend({})",
        "mysql": "KILL {}",
    }
    name = connection.dialect.name
    number = connection.scalar(sa.text(own_id[name]))
    with host.engine.connect() as other:
        other.execute(sa.text(end[name].format(number)))


def test_retry_later_subclass_with_its_own_constructor_is_retried(
    app: Flask, webhooks: ProcoreWebhooks, procore_webhooks: Deliveries
) -> None:
    class Busy(RetryLater):
        def __init__(self) -> None: ...

    @webhooks.on()
    def busy(event: Event) -> None:
        raise Busy

    answer = procore_webhooks.deliver(procore_webhooks.payload("RFIs.create"))
    assert answer.status_code == 200
    (row,) = procore_webhooks.events()
    assert (row["status"], row["error"]) == ("pending", None)


def test_lifecycle_receivers_get_the_event_without_changes_of_subscribers(
    app: Flask, webhooks: ProcoreWebhooks
) -> None:
    seen: list[tuple[str, object]] = []

    @webhooks.on(name="changes")
    def changes(event: Event) -> None:
        event.payload.clear()  # type: ignore[attr-defined]
        if event.type == "RFIs.update":
            raise ValueError("failed")

    signals = (event_processed, event_failed)
    for signal in signals:
        signal.connect(
            lambda app, event, signal=signal, **_: seen.append(
                (signal.name, event.payload["id"])
            )
        )
    deliver(app.test_client(), payload("RFIs.create", id="evt_1"))
    deliver(app.test_client(), payload("RFIs.update", id="evt_2"))
    assert seen == [("event-processed", "evt_1"), ("event-failed", "evt_2")]
