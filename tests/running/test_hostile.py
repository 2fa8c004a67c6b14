"""Hostile subscribers, run by a worker: no event is lost, and every run is recorded.

A subscriber's own commits may happen twice. Writes that it leaves to the package happen
once, or the event is dead and its error gives the reason.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy import orm
from support.hosts import Host
from support.hosts import host_url
from support.hosts import KINDS
from support.hosts import run_host

from flask_procore_webhooks import Event
from flask_procore_webhooks.dispatching.worker import Worker
from flask_procore_webhooks.inbox.due import seconds_to_work
from flask_procore_webhooks.testing import deliver
from flask_procore_webhooks.testing import payload

MakeApp = Callable[..., Flask]
Hostility = Callable[[Host], object]
DATABASES = ("sqlite", "postgresql", "mariadb")


@pytest.fixture(params=[f"{kind} {name}" for kind in KINDS for name in DATABASES])
def host(
    request: pytest.FixtureRequest, make_app: MakeApp, tmp_path: Path
) -> Iterator[Host]:
    kind, database = request.param.split()
    url = host_url(request, database, tmp_path)
    app = make_app(
        PROCORE_WEBHOOK_DISPATCH="worker",
        PROCORE_WEBHOOK_MAX_ATTEMPTS=3,
        PROCORE_WEBHOOK_RETRY_BASE=0.01,
        PROCORE_WEBHOOK_LEASE=1,
    )
    with run_host(app, kind, url) as host:
        yield host


def work(host: Host) -> None:
    """Run events until all are finished, for a minute at most."""
    worker = Worker([host.endpoint], poll=0.05)
    for _ in range(600):
        worker.run_due()
        (wait,) = seconds_to_work([host.store]).values()
        if wait is None:
            return
        threading.Event().wait(min(wait, 0.1))
    pytest.fail("events are not finished")


def end_of(host: Host) -> tuple[Any, ...]:
    """The status, and the attempts of the job that has most."""
    row = host.row()
    assert (row["lease"], row["due_at"]) == (None, None)
    return row["status"], max(job["attempts"] for job in host.jobs().values())


def note_class(host: Host) -> Any:
    note = type("Note", (), {})
    orm.registry(metadata=host.note_table.metadata).map_imperatively(
        note, host.note_table
    )
    return note


def write_nothing(host: Host) -> None:
    """Add an ORM object that the database refuses at the flush."""
    host.session.add(note_class(host)(text=None))


def break_the_session(host: Host) -> None:
    note = note_class(host)
    host.session.add(note(text=None))
    with suppress(sa.exc.IntegrityError):
        host.session.flush()


def break_a_statement(host: Host) -> None:
    with suppress(sa.exc.DBAPIError):
        host.session.execute(sa.text("SELECT nothing FROM nowhere"))


def nest(host: Host) -> None:
    for _ in range(3):
        host.session.begin_nested()


def roll_a_part_back(host: Host) -> None:
    part = host.session.begin_nested()
    host.session.execute(sa.insert(host.note_table).values(text="of the part"))
    part.rollback()


MEDDLING: dict[str, Hostility] = {
    "commit": lambda host: host.session.commit(),
    "rollback": lambda host: host.session.rollback(),
    "close": lambda host: host.session.close(),
    "remove": lambda host: host.session.remove(),
    "expunge": lambda host: host.session.expunge_all(),
    "leave open": lambda host: host.session.execute(sa.text("SELECT 1")).close(),
    "nest": nest,
    "roll a part back": roll_a_part_back,
    "no autoflush": lambda host: setattr(host.session(), "autoflush", False),
}


@pytest.mark.seldom("scoped_session postgresql", "scoped_session mariadb")
@pytest.mark.parametrize("meddle", MEDDLING.values(), ids=MEDDLING)
def test_effect_is_committed_once_despite_session_misuse(
    host: Host, meddle: Hostility
) -> None:
    """A run that fails later leaves no effect."""

    @host.webhooks.on(name="meddler")
    def meddler(event: Event) -> None:
        meddle(host)
        host.note("written")
        if event.attempt == 1:
            raise ValueError("not yet")

    @host.webhooks.on(name="next")
    def next_(event: Event) -> None:
        host.note("next")

    assert host.deliver().status_code == 200
    work(host)
    assert end_of(host) == ("done", 2)
    assert host.notes() == ["next", "written"]
    assert host.finished() == ["meddler", "next"]


@pytest.mark.seldom("scoped_session postgresql", "scoped_session mariadb")
@pytest.mark.parametrize("meddle", MEDDLING.values(), ids=MEDDLING)
def test_effect_after_session_misuse_is_as_the_subscriber_left_it(
    host: Host, meddle: Hostility
) -> None:
    """The subscriber may have rolled back its own write; its run counts as finished."""

    @host.webhooks.on(name="meddler")
    def meddler(event: Event) -> None:
        host.note("written")
        meddle(host)

    @host.webhooks.on(name="next")
    def next_(event: Event) -> None:
        host.note("next")

    assert host.deliver().status_code == 200
    work(host)
    assert end_of(host) == ("done", 1)
    assert host.finished() == ["meddler", "next"]
    thrown_away = meddle in [MEDDLING[name] for name in ("rollback", "close", "remove")]
    assert host.notes() == ([] if thrown_away else ["written"]) + ["next"]


def _raise_in_hook(name: str) -> Hostility:
    def listen(host: Host) -> None:
        def fail(*_: object) -> None:
            raise RuntimeError(f"in {name}")

        sa.event.listen(host.session(), name, fail)

    return listen


BREAKING: dict[str, Hostility] = {
    "flush": write_nothing,
    "session": break_the_session,
    "before_flush": lambda host: (
        host.session.add(note_class(host)(text="of the hook")),
        _raise_in_hook("before_flush")(host),
    ),
    # Only a session with changes is committed.
    "before_commit": lambda host: (
        host.note("before the hook"),
        _raise_in_hook("before_commit")(host),
    ),
    "raise": lambda host: 1 / 0,
}


@pytest.mark.seldom("scoped_session postgresql", "scoped_session mariadb")
@pytest.mark.parametrize("always", [False, True], ids=["once", "always"])
@pytest.mark.parametrize("damage", BREAKING.values(), ids=BREAKING)
def test_broken_runs_are_retried_or_dead(
    host: Host, damage: Hostility, always: bool
) -> None:
    @host.webhooks.on(name="breaks")
    def breaks(event: Event) -> None:
        host.note("written")
        if always or event.attempt == 1:
            damage(host)

    @host.webhooks.on(name="next")
    def next_(event: Event) -> None:
        host.note("next")

    assert host.deliver().status_code == 200
    work(host)
    if always:
        assert end_of(host) == ("dead", 3)
        assert host.row()["error"].startswith("breaks: ")
        assert (host.notes(), host.finished()) == (["next"], ["next"])
    else:
        assert end_of(host) == ("done", 2)
        assert host.notes() == ["next", "written"]
        assert host.finished() == ["breaks", "next"]


def test_failing_after_commit_hook_causes_no_repeat(host: Host) -> None:
    """Writes and job are committed: the subscriber has finished."""

    @host.webhooks.on(name="hooked")
    def hooked(event: Event) -> None:
        host.note(f"attempt {event.attempt}")
        _raise_in_hook("after_commit")(host)

    host.deliver()
    work(host)
    assert end_of(host) == ("done", 1)
    assert (host.notes(), host.finished()) == (["attempt 1"], ["hooked"])


def test_suppressed_statement_error_loses_no_event(host: Host) -> None:
    """PostgreSQL then refuses later statements of the transaction."""

    @host.webhooks.on(name="hides")
    def hides(event: Event) -> None:
        host.note("written")
        if event.attempt == 1:
            break_a_statement(host)

    host.deliver()
    work(host)
    attempts = 2 if host.engine.dialect.name == "postgresql" else 1
    assert end_of(host) == ("done", attempts)
    assert (host.notes(), host.finished()) == (["written"], ["hides"])


def test_thread_that_keeps_using_the_session_loses_no_event(
    host: Host,
) -> None:
    """Writes after the return are outside the guarantee."""
    go_on, threads = threading.Event(), []

    @host.webhooks.on(name="leaks")
    def leaks(event: Event) -> None:
        session = host.session()
        host.note(f"run {event.id}")
        if event.id == "after":
            return

        def write() -> None:
            assert go_on.wait(60)
            with suppress(Exception):  # the thread may have no app context
                late = sa.insert(host.note_table).values(text=f"late {event.id}")
                session.execute(late)
            session.close()

        threads.append(threading.Thread(target=write))
        threads[-1].start()

    sent = [payload("RFIs.create", id=f"evt{number}") for number in range(3)]
    for each in sent:
        assert host.deliver(each).status_code == 200
    try:
        work(host)
    finally:
        go_on.set()
        for thread in threads:
            thread.join()
    assert host.notes() == [f"run evt{number}" for number in range(3)]
    assert {host.row(each["id"])["status"] for each in sent} == {"done"}
    host.deliver(payload("RFIs.create", id="after"))
    work(host)
    assert host.notes()[3:] == ["run after"]


def test_subscriber_may_deliver_its_own_event_and_another(host: Host) -> None:
    answers: list[Any] = []

    @host.webhooks.on(name="calls")
    def calls(event: Event) -> None:
        if event.id == "first":
            client = host.app.test_client()
            answers.append(deliver(client, event.body).json)
            answers.append(deliver(client, payload("RFIs.create", id="other")).json)
        host.note(event.id)

    host.deliver(payload("RFIs.create", id="first"))
    work(host)
    assert answers == [{"received": True, "duplicate": True}, {"received": True}]
    assert host.notes() == ["first", "other"]
    assert end_of(host) == ("done", 1)
    assert (host.row()["repeats"], host.job("other")["attempts"]) == (1, 1)


def test_run_longer_than_its_lease_is_not_claimed_by_others(
    host: Host,
) -> None:
    started, finish, calls = threading.Event(), threading.Event(), []

    @host.webhooks.on(name="slow")
    def slow(event: Event) -> None:
        calls.append(event.attempt)
        started.set()
        assert finish.wait(60)
        host.note("written")

    host.deliver()
    worker = Worker([host.endpoint], poll=0.05)
    thread = threading.Thread(target=worker.run_all)
    thread.start()
    assert started.wait(60)
    first = host.row()["due_at"]
    deadline = host.endpoint.settings.lease * 60
    for _ in range(int(deadline / 0.05)):
        if (host.row()["due_at"] - first).total_seconds() > 1.5:
            break
        threading.Event().wait(0.05)
    renewed = host.row()["due_at"] - first
    others = Worker([host.endpoint], poll=1).run_due()
    finish.set()
    thread.join()
    assert renewed.total_seconds() > 1.5
    work(host)
    assert (host.notes(), host.finished()) == (["written"], ["slow"])
    assert host.row()["status"] == "done"
    # If the machine stalls for a whole lease, another worker may run the event.
    assert len(calls) == 1 + others


@pytest.mark.parametrize("stop", [SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_system_exit_in_a_subscriber_is_a_failed_attempt(
    host: Host, stop: BaseException
) -> None:
    @host.webhooks.on(name="before")
    def before(event: Event) -> None:
        host.note("before")

    @host.webhooks.on(name="stops")
    def stops(event: Event) -> None:
        host.note(f"attempt {event.attempt}")
        if event.attempt == 1:
            raise stop

    host.deliver()
    work(host)
    assert end_of(host) == ("done", 2)
    assert host.notes() == ["before", "attempt 2"]


def test_event_of_an_always_exiting_subscriber_becomes_dead(host: Host) -> None:
    @host.webhooks.on(name="stops")
    def stops(event: Event) -> None:
        raise SystemExit(3)

    host.deliver()
    work(host)
    assert host.row()["status"] == "dead"
    assert host.row()["error"]
    assert host.notes() == []


def test_every_event_finishes_with_many_hostile_subscribers(host: Host) -> None:
    """Hostile subscribers run together; the well-behaved one has each effect once."""
    hostile = [*MEDDLING.values(), *BREAKING.values()]

    @host.webhooks.on(name="behaves")
    def behaves(event: Event) -> None:
        host.note(event.id)

    @host.webhooks.on(name="hostile")
    def is_hostile(event: Event) -> None:
        hostile[int(event.resource_id or 0)](host)

    @host.webhooks.on(name="behaves-too")
    def behaves_too(event: Event) -> None:
        host.note(f"{event.id} too")

    sent = [
        payload("RFIs.create", id=f"evt{number}", resource_id=number)
        for number in range(len(hostile))
    ]
    for each in sent:
        assert host.deliver(each).status_code == 200
    work(host)
    rows = [host.row(each["id"]) for each in sent]
    ends = [row["status"] for row in rows]
    assert ends == ["done"] * len(MEDDLING) + ["dead"] * len(BREAKING)
    assert all(row["error"] for row in rows[len(MEDDLING) :])
    wanted = {each["id"] for each in sent} | {f"{each['id']} too" for each in sent}
    notes = host.notes()
    assert set(notes) - {"of the hook"} == wanted
    assert len(notes) == len(set(notes))
