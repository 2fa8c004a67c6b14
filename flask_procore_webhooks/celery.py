"""Events as messages to the app's own Celery, and a task that sweeps up what was lost.

The inbox stays the queue: a message only says which row to look at. A doubled one
changes nothing, as the row can be claimed once; a lost one is made good by the sweep.

So Celery may acknowledge a message before its task begins, which is its default. With
``acks_late`` the broker would repeat the message of a worker that was killed while the
lease of its run stands, to no effect. When the lease is over, the sweep finds the row.

Celery is imported where it is used: it is needed by nobody else.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
import weakref
from collections.abc import Iterable
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from flask import Flask

from .endpoint import Endpoint
from .endpoint import endpoints
from .errors import ConfigError
from .errors import InboxUnavailable
from .forks import remember_forks
from .process import Outcome
from .process import process
from .upkeep import is_paused

log = logging.getLogger("flask_procore_webhooks")

#: Where an app keeps its :class:`Messenger`.
EXTENSION = "procore_webhooks_celery"

#: The names of the tasks. Messages are sent by them: they never change.
RUN = "flask_procore_webhooks.run"
SWEEP = "flask_procore_webhooks.sweep"

#: Seconds that one step towards the broker may take. The sender is waiting.
PATIENCE = 1.5
#: A connection that was idle may be dead; what fails sooner than this is tried again.
QUICK = 0.5
#: Seconds without another attempt after a message could not be sent.
QUIET = 10.0
#: Seconds; what is due later is left to the sweep. Brokers give a message to another
#: worker, or close the connection, when one has held it for long: RabbitMQ after 30
#: minutes, Redis after an hour.
LONGEST_COUNTDOWN = 900.0
#: Seconds that clocks of two workers may differ; what comes too early is not run.
CLOCKS_DIFFER = 0.5
#: Events that a sweep hands over, and the seconds for which they have been due: what
#: came in just now still has its own message in the queue.
LARGEST_SWEEP = 1000
OVERDUE = 30.0

NOT_INSTALLED = (
    "DISPATCH is 'celery', and Celery is not installed: pip install"
    " 'flask-procore-webhooks[celery]'"
)
NOT_SET_UP = (
    "DISPATCH is 'celery', and the app has no app.extensions['celery']: set your Celery"
    " up as https://flask.palletsprojects.com/en/stable/patterns/celery/ shows"
)
NO_SWEEP = (
    f"No entry of Celery's beat_schedule calls {SWEEP!r}: events whose message is lost"
    " would wait until the sender repeats them."
)

#: The bounds on one step, by the names that kombu's transports have for them.
BOUNDED: dict[str, Any] = {
    "connect_timeout": PATIENCE,
    "transport_options": {
        "max_retries": 0,
        "connect_retries_timeout": PATIENCE,
        "read_timeout": PATIENCE,
        "write_timeout": PATIENCE,
        "socket_connect_timeout": PATIENCE,
        "socket_timeout": PATIENCE,
    },
}


# Tasks


def set_up(app: Flask) -> None:
    """Give every Celery of this process our tasks, also one that is made later.

    Called when the blueprint is registered: a Celery worker imports the app, and sees
    no request.

    :raises ConfigError: Celery is not installed.
    """
    try:
        _register_tasks()
    except ImportError:
        raise ConfigError([f"{NOT_INSTALLED}."]) from None
    _apps.add(app)


@functools.cache
def _register_tasks() -> None:
    from celery import shared_task

    shared_task(run, name=RUN, bind=True, ignore_result=True)
    shared_task(sweep, name=SWEEP, bind=True, ignore_result=True)


def run(task: Any, endpoint: str, row_id: int) -> None:
    """Run one event if it is due, and come back to it if it has to be run again."""
    mounted = _mounted(task.app, endpoint)
    if not mounted:
        log.error(
            "Event %s is not run: this worker knows no endpoint %r. Start it with the"
            " Celery of the Flask app: celery -A ...",
            row_id,
            endpoint,
        )
        return
    try:
        _run(mounted[0], row_id)
    except InboxUnavailable as unavailable:
        log.error("Event %s is left to the sweep: %s", row_id, unavailable)


def sweep(task: Any, overdue: float = OVERDUE, limit: int = LARGEST_SWEEP) -> int:
    """Send messages for what has been due for ``overdue`` seconds, longest due first.

    Their messages are lost, or they wait in the queue: then these are the second ones,
    and change nothing.

    :param limit: of messages for each endpoint.
    :return: how many were sent.
    """
    sent = 0
    for endpoint in _mounted(task.app):
        try:
            if endpoint.dispatch == "celery" and not is_paused(endpoint.inbox):
                sent += hand_over(endpoint, endpoint.inbox.due(limit, since=overdue))
        except InboxUnavailable as unavailable:
            log.error("%s is not swept: %s", endpoint.name, unavailable)
    return sent


def _run(endpoint: Endpoint, row_id: int) -> None:
    # After a pause, the sweep hands over what came in meanwhile.
    if is_paused(endpoint.inbox):
        return
    if process(endpoint, row_id) is Outcome.RETRY:
        wait = endpoint.inbox.seconds_to(row_id)
        if wait is not None and wait <= LONGEST_COUNTDOWN:
            _messenger_of(endpoint.app).send(endpoint, row_id, wait + CLOCKS_DIFFER)


def _mounted(celery: Any, name: str | None = None) -> list[Endpoint]:
    """The endpoints of the Flask app whose Celery this is, or the one of that name."""
    return [
        endpoint
        for app in list(_apps)
        if app.extensions.get("celery") is celery
        for endpoint in endpoints(app).values()
        if name in (None, endpoint.name)
    ]


# Messages


def hand_over(endpoint: Endpoint, rows: Iterable[int]) -> int:
    """Send a message for each row until one cannot be sent; return how many were.

    Never raises, and never takes longer than the sender of a delivery can wait.
    """
    messenger, sent = _messenger_of(endpoint.app), 0
    for row_id in rows:
        if not messenger.send(endpoint, row_id):
            break
        sent += 1
    return sent


class Messenger:
    """The way from one app in one process to its broker."""

    def __init__(self) -> None:
        self._producers: Any = None
        self._quiet_until = 0.0
        self._lock = threading.Lock()
        remember_forks(self)

    def send(self, endpoint: Endpoint, row_id: int, countdown: float = 0.0) -> bool:
        """Ask for a run of the event after ``countdown`` seconds; whether that went."""
        if time.monotonic() < self._quiet_until:
            return False
        try:
            self._send(celery_of(endpoint.app), [endpoint.name, row_id], countdown)
        except Exception as error:
            self._be_quiet(error)
            return False
        return True

    def after_fork(self) -> None:
        """Forget the connections: they are the parent's."""
        self._producers = None
        self._lock = threading.Lock()

    def _send(self, celery: Any, arguments: list[Any], countdown: float) -> None:
        task, start = celery.tasks[RUN], time.monotonic()
        with self._pool(celery).acquire(block=True, timeout=PATIENCE) as producer:

            def publish() -> None:
                task.apply_async(
                    arguments, countdown=countdown, producer=producer, retry=False
                )

            connection = producer.connection
            try:
                publish()
            except Exception:
                connection.collect()
                if time.monotonic() - start > QUICK:
                    raise
                producer.revive(connection)
                publish()

    def _pool(self, celery: Any) -> Any:
        with self._lock:
            if self._producers is None:
                self._producers = _new_pool(celery)
            return self._producers

    def _be_quiet(self, error: Exception) -> None:
        with self._lock:
            now = time.monotonic()
            was_told, self._quiet_until = now < self._quiet_until, now + QUIET
        if not was_told:
            text = str(error)
            if not isinstance(error, ConfigError):
                text = f"{type(error).__name__}: {text}"
            log.error(
                "No messages are sent for %g s, the sweep hands over what is recorded"
                " meanwhile: %s",
                QUIET,
                text,
            )


def celery_of(app: Flask) -> Any:
    """The app's Celery, which may be set up later than the blueprint is registered.

    :raises ConfigError: there is none.
    """
    celery = app.extensions.get("celery")
    if celery is None:
        raise ConfigError([f"{NOT_SET_UP}."])
    return celery


def problems(app: Flask) -> Iterator[tuple[str, bool]]:
    """What is wrong with the app's Celery, and whether nothing works until mended."""
    try:
        celery = celery_of(app)
    except ConfigError as error:
        yield str(error), True
        return
    try:
        with celery.connection_for_write(**BOUNDED) as connection:
            connection.default_channel.close()
    except Exception as error:
        yield f"The broker cannot be used: {type(error).__name__}: {error}", True
    entries = (celery.conf.beat_schedule or {}).values()
    if SWEEP not in {entry.get("task") for entry in entries}:
        yield NO_SWEEP, False


def _new_pool(celery: Any) -> Any:
    """Connections that give up soon; those of Celery itself try for ever."""
    pools: Any = import_module("kombu.pools")
    limit = celery.conf.broker_pool_limit
    connections = celery.connection_for_write(**BOUNDED).Pool(limit)
    return pools.ProducerPool(connections, limit, Producer=celery.amqp.Producer)


def _messenger_of(app: Flask) -> Messenger:
    found: Messenger | None = app.extensions.get(EXTENSION)
    # Of two threads that come here first, one is given what the other has set.
    return found or app.extensions.setdefault(EXTENSION, Messenger())


#: With endpoints that send messages.
_apps: weakref.WeakSet[Flask] = weakref.WeakSet()
