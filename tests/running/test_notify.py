"""LISTEN/NOTIFY of PostgreSQL: wakes idle workers; polling finds missed events."""

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
from support.services import drop_tables
from support.values import SECRET
from support.waiting import PATIENCE
from support.waiting import wait_until
from support.workers import CountingWorker
from support.workers import running

from flask_procore_webhooks import ProcoreWebhooks
from flask_procore_webhooks.dispatching import notify
from flask_procore_webhooks.endpoint import Endpoint
from flask_procore_webhooks.endpoint import endpoints
from flask_procore_webhooks.inbox import due
from flask_procore_webhooks.inbox.status import Status
from flask_procore_webhooks.storage.store import Store
from flask_procore_webhooks.testing import sign

MakeApp = Callable[..., Flask]
#: Timeout in seconds: far shorter than any poll here, far longer than a call.
SOON = 5.0
HOUR = 3600.0


@pytest.fixture
def database_url(postgresql_url: str) -> Iterator[str]:
    yield postgresql_url
    drop_tables(postgresql_url)


@pytest.fixture
def site(make_app: MakeApp, database_url: str) -> Iterator[tuple[Endpoint, list[str]]]:
    with mounted(make_app, database_url) as site:
        yield site


@contextmanager
def listening_worker(store: Store, worker: CountingWorker) -> Iterator[None]:
    """An idle worker that listens: only a notification or its poll wakes it."""
    listens = threading.Event()

    def wake() -> None:
        worker.wake()
        listens.set()

    with notify.listening([store], wake):
        assert listens.wait(PATIENCE)
        with running(worker):
            # The call at the start of listening has ended the first sleep.
            wait_until(lambda: worker.sleeps == 2)
            yield


class Channel:
    """A connection of the test that receives every notification."""

    def __init__(self, url: str) -> None:
        psycopg = pytest.importorskip("psycopg", "3.2")
        made = sa.make_url(url).set(drivername="postgresql")
        text = made.render_as_string(hide_password=False)
        self.connection = psycopg.connect(text, autocommit=True)
        self.connection.execute("LISTEN procore_webhooks")

    def received(self, seconds: float = 0.5) -> list[str]:
        return [each.payload for each in self.connection.notifies(timeout=seconds)]


@pytest.fixture
def channel(database_url: str) -> Iterator[Channel]:
    channel = Channel(database_url)
    yield channel
    channel.connection.close()


# An idle worker


def test_idle_worker_runs_a_new_event_at_once(
    site: tuple[Endpoint, list[str]],
) -> None:
    endpoint, ran = site
    with listening_worker(endpoint.store, CountingWorker([endpoint], poll=HOUR)):
        for _ in range(5):
            new = send(endpoint)
            wait_until(lambda new=new: ran[-1:] == [new], SOON)


def test_psycopg2_does_not_listen_and_polls(
    make_app: MakeApp,
    database_url: str,
    channel: Channel,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """psycopg2 still notifies, for workers with another driver."""
    pytest.importorskip("psycopg2")
    made = sa.make_url(database_url).set(drivername="postgresql+psycopg2")
    url = made.render_as_string(hide_password=False)
    calls: list[int] = []
    with mounted(make_app, url) as (endpoint, ran):
        threads = set(threading.enumerate())
        with notify.listening([endpoint.store], lambda: calls.append(1)):
            wait_until(lambda: set(threading.enumerate()) <= threads)
            with running(CountingWorker([endpoint], poll=0.1)):
                new = send(endpoint)
                wait_until(lambda: ran == [new])
        assert channel.received() == [endpoint.name]
        assert endpoint.store.database.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    assert caplog.messages == [
        "New events wait for the next poll: LISTEN needs psycopg 3.2 or newer"
    ]
    assert calls == []


def test_delivery_within_the_rate_limit_is_run_as_soon(
    site: tuple[Endpoint, list[str]], channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "INTERVAL", 5.0)
    endpoint, ran = site
    with listening_worker(endpoint.store, CountingWorker([endpoint], poll=HOUR)):
        first = send(endpoint)
        wait_until(lambda: ran == [first])
        others = [send(endpoint) for _ in range(3)]
        wait_until(lambda: set(ran) == {first, *others})
    assert channel.received() == [endpoint.name]


# Notifications


def test_notification_has_the_endpoint_name(
    site: tuple[Endpoint, list[str]], channel: Channel
) -> None:
    endpoint, _ = site
    send(endpoint)
    assert channel.received() == ["procore_webhooks"]
    quarantined = endpoint.app.test_client().post(
        endpoint.path, data=b"?", headers=sign(b"?", SECRET)
    )
    assert quarantined.status_code == 200
    assert channel.received() == []


def test_concurrent_notifications_do_not_wait_for_each_other(
    site: tuple[Endpoint, list[str]], channel: Channel
) -> None:
    endpoint, _ = site
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(notify.notify, [endpoint.store] * 40))
    assert 1 <= len(channel.received()) < 40
    time.sleep(notify.INTERVAL)
    notify.notify(endpoint.store)
    assert len(channel.received()) == 1


@pytest.mark.parametrize("dispatch", ["inline", "background"])
def test_events_run_in_this_process_send_no_notification(
    make_app: MakeApp, database_url: str, channel: Channel, dispatch: str
) -> None:
    with mounted(make_app, database_url, dispatch) as (endpoint, ran):
        new = send(endpoint)
        wait_until(lambda: ran == [new])
        assert channel.received() == []


@pytest.mark.parametrize("kind", ["sqlite", "mariadb"])
def test_other_databases_send_no_notification(
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
        given: list[str] = []
        engine = endpoint.store.database.engine
        sa.event.listen(
            engine, "before_cursor_execute", lambda *args: given.append(args[2])
        )
        send(endpoint)
        assert [text for text in given if "INSERT INTO" in text]
        assert not [text for text in given if "notify" in text.lower()]
        threads = set(threading.enumerate())
        with notify.listening([endpoint.store], lambda: None):
            assert set(threading.enumerate()) <= threads
        metadata = endpoint.store.database.tables.event.metadata
        metadata.drop_all(engine)
    assert not caplog.messages


BROKEN = """
CREATE FUNCTION public.pg_notify(text, text) RETURNS void LANGUAGE plpgsql
AS $$ BEGIN RAISE EXCEPTION 'no notification'; END $$
"""


def test_delivery_is_accepted_if_the_notification_fails(
    make_app: MakeApp, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = {"options": "-csearch_path=public,pg_catalog"}
    url = sa.make_url(database_url).update_query_dict(first)
    with mounted(make_app, url.render_as_string(hide_password=False)) as (endpoint, _):
        with endpoint.store.connection() as connection:
            connection.execute(sa.text(BROKEN))
        try:
            send(endpoint)
        finally:
            with endpoint.store.connection() as connection:
                connection.execute(sa.text("DROP FUNCTION public.pg_notify"))
        assert due.status_of(endpoint.store, 1) == Status.PENDING
    assert caplog.messages == [
        "New events wait for the next poll: InboxUnavailable: the inbox cannot be used:"
        " RaiseException"
    ]


# Listening


@contextmanager
def calls_of_a_listener(store: Store) -> Iterator[list[float]]:
    """The times of a listener's calls, without the call at the start of listening."""
    calls: list[float] = []
    with notify.listening([store], lambda: calls.append(time.monotonic())):
        wait_until(lambda: calls and listeners(store))
        calls.clear()
        yield calls


def test_each_wake_up_is_followed_by_a_second(
    site: tuple[Endpoint, list[str]],
) -> None:
    store = site[0].store
    with calls_of_a_listener(store) as calls:
        notify.notify(store)
        wait_until(lambda: len(calls) == 2)
        assert calls[1] - calls[0] >= notify.INTERVAL
        time.sleep(0.3)
        assert len(calls) == 2


def test_notifications_for_other_endpoints_are_ignored(
    site: tuple[Endpoint, list[str]],
) -> None:
    store = site[0].store
    with calls_of_a_listener(store) as calls:
        notify.notify(Store("another", store.database))
        time.sleep(0.3)
        assert not calls
        notify.notify(store)
        wait_until(lambda: calls)


def terminate(store: Store) -> set[int]:
    """Terminate the listening connections; return their process ids."""
    found = listeners(store)
    for pid in found:
        store.rows(sa.text(f"SELECT pg_terminate_backend({pid})"))
    wait_until(lambda: not found & listeners(store))
    return found


def test_disconnected_listener_reconnects(
    site: tuple[Endpoint, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(notify, "RETRY", 0.1)
    store = site[0].store
    with calls_of_a_listener(store) as calls:
        assert len(terminate(store)) == 1
        # The listener calls at once: notifications may have been missed.
        wait_until(lambda: calls and listeners(store))
        calls.clear()
        notify.notify(store)
        wait_until(lambda: calls)
    assert caplog.text.count("New events wait for the next poll") == 1


def test_worker_without_notifications_finds_events_by_polling(
    site: tuple[Endpoint, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "RETRY", HOUR)
    endpoint, ran = site
    with listening_worker(endpoint.store, CountingWorker([endpoint], poll=0.5)):
        terminate(endpoint.store)
        new = send(endpoint)
        wait_until(lambda: ran == [new])
        assert not listeners(endpoint.store)


def test_silent_connection_is_checked(
    site: tuple[Endpoint, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "SILENCE", 0.1)
    store = site[0].store
    looks = sa.text(LISTENING.replace("LISTEN procore_webhooks", "SELECT 1"))
    with notify.listening([store], lambda: None):
        wait_until(lambda: store.rows(looks))


@pytest.mark.serial
def test_listening_ends_at_once_and_leaves_no_connection(
    site: tuple[Endpoint, list[str]],
) -> None:
    store = site[0].store
    with calls_of_a_listener(store):
        start = time.monotonic()
    assert time.monotonic() - start < SOON
    wait_until(lambda: not listeners(store))
    assert store.database.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


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
    with notify.listening([endpoint.store], lambda: None):
        wait_until(lambda: caplog.messages)
        start = time.monotonic()
    assert time.monotonic() - start < SOON
    assert "New events wait for the next poll" in caplog.text
    assert "hush" not in caplog.text
