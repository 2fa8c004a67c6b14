"""Workers that wait on PostgreSQL are told of new events, and find them if not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from flask import Flask
from support.listeners import listeners
from support.listeners import LISTENING
from support.listeners import mounted
from support.listeners import send
from support.values import SECRET
from support.waiting import wait_until
from support.workers import running

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks import wakeup
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.inbox import Inbox
from flask_procore_webhooks.states import Status
from flask_procore_webhooks.testing import sign
from flask_procore_webhooks.wakeup import listening
from flask_procore_webhooks.wakeup import tell
from flask_procore_webhooks.worker import Worker

MakeApp = Callable[..., Flask]
#: As much as a busy machine may need; tests end as soon as what they wait for is there.
#: Far less than any poll here, and far more than a call takes.
SOON = 5.0
HOUR = 3600.0


@pytest.fixture
def database_url(postgresql_url: str) -> Iterator[str]:
    yield postgresql_url
    engine = sa.create_engine(postgresql_url)
    metadata = sa.MetaData()
    metadata.reflect(engine)
    metadata.drop_all(engine)
    engine.dispose()


@pytest.fixture
def site(make_app: MakeApp, database_url: str) -> Iterator[tuple[Endpoint, list[str]]]:
    with mounted(make_app, database_url) as site:
        yield site


@contextmanager
def listening_worker(inbox: Inbox, worker: Worker) -> Iterator[None]:
    """A worker that listens, and that has found nothing to do."""
    with listening([inbox], worker.wake):
        wait_until(lambda: listeners(inbox))
        with running(worker):
            time.sleep(0.5)
            yield


class Ear:
    """A connection of the test's own that hears all that is told."""

    def __init__(self, url: str) -> None:
        psycopg = pytest.importorskip("psycopg", "3.2")
        made = sa.make_url(url).set(drivername="postgresql")
        text = made.render_as_string(hide_password=False)
        self.connection = psycopg.connect(text, autocommit=True)
        self.connection.execute("LISTEN procore_webhooks")

    def heard(self, seconds: float = 0.5) -> list[str]:
        return [each.payload for each in self.connection.notifies(timeout=seconds)]


@pytest.fixture
def ear(database_url: str) -> Iterator[Ear]:
    ear = Ear(database_url)
    yield ear
    ear.connection.close()


# A worker that waits


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_a_worker_that_waits_runs_a_new_event_at_once(
    make_app: MakeApp, database_url: str, driver: str
) -> None:
    pytest.importorskip(driver)
    url = sa.make_url(database_url).set(drivername=f"postgresql+{driver}")
    with mounted(make_app, url.render_as_string(hide_password=False)) as (mine, ran):
        with listening_worker(mine.inbox, Worker([mine], poll=HOUR)):
            for _ in range(5):
                new = send(mine)
                wait_until(lambda new=new: ran[-1:] == [new], SOON)


def test_a_delivery_of_which_nobody_is_told_is_run_as_soon(
    site: tuple[Endpoint, list[str]], ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wakeup, "TELLING_INTERVAL", 5.0)
    endpoint, ran = site
    with listening_worker(endpoint.inbox, Worker([endpoint], poll=HOUR)):
        first = send(endpoint)
        wait_until(lambda: ran == [first])
        others = [send(endpoint) for _ in range(3)]
        wait_until(lambda: set(ran) == {first, *others})
    assert ear.heard() == [endpoint.name]


# What is told


def test_a_delivery_is_told_by_the_name_of_its_endpoint(
    site: tuple[Endpoint, list[str]], ear: Ear
) -> None:
    endpoint, _ = site
    send(endpoint)
    assert ear.heard() == ["procore_webhooks"]
    quarantined = endpoint.app.test_client().post(
        endpoint.path, data=b"?", headers=sign(b"?", SECRET)
    )
    assert quarantined.status_code == 200
    assert ear.heard() == []


def test_nobody_waits_for_somebody_who_is_telling(
    site: tuple[Endpoint, list[str]], ear: Ear
) -> None:
    endpoint, _ = site
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(tell, [endpoint.inbox] * 40))
    assert 1 <= len(ear.heard()) < 40
    time.sleep(wakeup.TELLING_INTERVAL)
    tell(endpoint.inbox)
    assert len(ear.heard()) == 1


@pytest.mark.parametrize("dispatch", ["inline", "background"])
def test_nobody_is_told_of_what_is_run_here(
    make_app: MakeApp, database_url: str, ear: Ear, dispatch: str
) -> None:
    with mounted(make_app, database_url, dispatch) as (endpoint, ran):
        new = send(endpoint)
        wait_until(lambda: ran == [new])
        assert ear.heard() == []


@pytest.mark.parametrize("kind", ["sqlite", "mariadb"])
def test_other_databases_are_told_nothing(
    make_app: MakeApp,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    url = f"sqlite:///{tmp_path / 'inbox.db'}"
    if kind == "mariadb":
        url = request.getfixturevalue("mariadb_url")
    with mounted(make_app, url) as (endpoint, _):
        told: list[str] = []
        engine = endpoint.inbox.database.engine
        sa.event.listen(
            engine, "before_cursor_execute", lambda *args: told.append(args[2])
        )
        send(endpoint)
        assert [text for text in told if "INSERT INTO" in text]
        assert not [text for text in told if "notify" in text.lower()]
        threads = set(threading.enumerate())
        with listening([endpoint.inbox], lambda: None):
            assert set(threading.enumerate()) <= threads
        metadata = endpoint.inbox.database.tables.event.metadata
        metadata.drop_all(engine)
    assert not caplog.messages


BROKEN = """
CREATE FUNCTION public.pg_notify(text, text) RETURNS void LANGUAGE plpgsql
AS $$ BEGIN RAISE EXCEPTION 'nobody can be told'; END $$
"""


def test_a_delivery_is_accepted_when_nobody_can_be_told(
    make_app: MakeApp, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = {"options": "-csearch_path=public,pg_catalog"}
    url = sa.make_url(database_url).update_query_dict(first)
    with mounted(make_app, url.render_as_string(hide_password=False)) as (endpoint, _):
        with endpoint.inbox.connection() as connection:
            connection.execute(sa.text(BROKEN))
        try:
            send(endpoint)
        finally:
            with endpoint.inbox.connection() as connection:
                connection.execute(sa.text("DROP FUNCTION public.pg_notify"))
        assert endpoint.inbox.status(1) == Status.PENDING
    assert "Workers find new events at their poll" in caplog.text


# What is heard


@contextmanager
def hearing(inbox: Inbox) -> Iterator[list[float]]:
    """The times at which a listener called, after the one when it began to listen."""
    calls: list[float] = []
    with listening([inbox], lambda: calls.append(time.monotonic())):
        wait_until(lambda: calls and listeners(inbox))
        calls.clear()
        yield calls


def test_each_call_is_followed_by_another_for_what_nobody_told(
    site: tuple[Endpoint, list[str]],
) -> None:
    inbox = site[0].inbox
    with hearing(inbox) as calls:
        tell(inbox)
        wait_until(lambda: len(calls) == 2)
        assert calls[1] - calls[0] >= wakeup.TELLING_INTERVAL
        time.sleep(0.3)
        assert len(calls) == 2


def test_what_is_told_of_others_is_not_heard(site: tuple[Endpoint, list[str]]) -> None:
    inbox = site[0].inbox
    with hearing(inbox) as calls:
        tell(Inbox("another", inbox.database))
        time.sleep(0.3)
        assert not calls
        tell(inbox)
        wait_until(lambda: calls)


def terminate(inbox: Inbox) -> set[int]:
    """Cut the listening connections; return which they were."""
    found = listeners(inbox)
    for pid in found:
        inbox.rows(sa.text(f"SELECT pg_terminate_backend({pid})"))
    wait_until(lambda: not found & listeners(inbox))
    return found


def test_a_listener_that_was_cut_off_listens_again(
    site: tuple[Endpoint, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(wakeup, "RETRY", 0.1)
    inbox = site[0].inbox
    with hearing(inbox) as calls:
        assert len(terminate(inbox)) == 1
        # It calls by itself, as somebody may have told meanwhile.
        wait_until(lambda: calls and listeners(inbox))
        calls.clear()
        tell(inbox)
        wait_until(lambda: calls)
    assert caplog.text.count("New events wait for the next poll") == 1


def test_a_worker_that_is_told_nothing_finds_new_events_at_its_poll(
    site: tuple[Endpoint, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wakeup, "RETRY", HOUR)
    endpoint, ran = site
    with listening_worker(endpoint.inbox, Worker([endpoint], poll=0.5)):
        terminate(endpoint.inbox)
        new = send(endpoint)
        wait_until(lambda: ran == [new])
        assert not listeners(endpoint.inbox)


def test_a_connection_that_is_silent_is_looked_after(
    site: tuple[Endpoint, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wakeup, "SILENCE", 0.1)
    inbox = site[0].inbox
    looks = sa.text(LISTENING.replace("LISTEN procore_webhooks", "SELECT 1"))
    with listening([inbox], lambda: None):
        wait_until(lambda: inbox.rows(looks))


@pytest.mark.serial
def test_listening_ends_at_once_and_leaves_no_connection(
    site: tuple[Endpoint, list[str]],
) -> None:
    inbox = site[0].inbox
    with hearing(inbox):
        start = time.monotonic()
    assert time.monotonic() - start < SOON
    wait_until(lambda: not listeners(inbox))
    assert inbox.database.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


@pytest.mark.serial
@pytest.mark.server
def test_listening_ends_while_there_is_no_database(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app(
        PROCORE_WEBHOOK_DATABASE_URI="postgresql+psycopg://nobody:hush@127.0.0.1:1/none"
    )
    app.register_blueprint(ProcoreWebhooks())
    (endpoint,) = endpoints(app).values()
    with listening([endpoint.inbox], lambda: None):
        wait_until(lambda: caplog.messages)
        start = time.monotonic()
    assert time.monotonic() - start < SOON
    assert "New events wait for the next poll" in caplog.text
    assert "hush" not in caplog.text
