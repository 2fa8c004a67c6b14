"""Celery: events as messages to the app's own Celery, and the sweep of lost messages.

The inbox stays the queue: a message only names a row. A doubled message changes
nothing, because the row can be claimed once; the sweep replaces a lost message.

So Celery may acknowledge a message before its task begins, which is its default. With
``acks_late`` the broker would repeat the message of a killed worker while the lease of
its run still holds, to no effect. The sweep finds the row when the lease has ended.

Celery is imported where it is used: only the mode ``celery`` needs it.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Iterable
from collections.abc import Iterator
from contextlib import suppress
from contextvars import Context
from functools import partial
from importlib import import_module
from itertools import takewhile
from typing import Any

from flask import current_app
from flask import Flask
from flask import has_app_context

from ..endpoint import Endpoint
from ..endpoint import endpoints
from ..errors import ConfigError
from ..errors import InboxUnavailable
from ..inbox.due import due_events
from ..inbox.due import is_paused
from ..inbox.due import seconds_to
from ..inbox.seen import note_seen
from ..inbox.tally import flush_all
from ..log import log
from ..storage.store import Store
from .failures import RunOutcome
from .run import process

#: The names of the tasks. Messages in queues hold them, so they never change.
RUN = "flask_procore_webhooks.run"
SWEEP = "flask_procore_webhooks.sweep"

#: Seconds that one step towards the broker may take while the sender waits.
PATIENCE = 1.5
#: An idle connection may be dead: a failure within so many seconds is retried once.
QUICK = 0.5
#: Circuit breaker: seconds without publishing after a failure.
BREAKER_SECONDS = 10.0
#: Seconds; the sweep publishes events that are due later. Brokers redeliver a message,
#: or close the connection, when a worker has held it for long: RabbitMQ after 30
#: minutes, Redis after an hour.
LONGEST_COUNTDOWN = 900.0
#: Seconds by which the clocks of two workers may differ: an event is not run early.
CLOCK_TOLERANCE = 0.5
#: Events that a sweep publishes at most, and the seconds for which they have been due:
#: newer events still have their own message in the queue.
LARGEST_SWEEP, OVERDUE = 1000, 30.0

NOT_INSTALLED = (
    "DISPATCH is 'celery', and Celery is not installed: pip install"
    " 'flask-procore-webhooks[celery]'"
)
NOT_SET_UP = (
    "DISPATCH is 'celery', and the app has no app.extensions['celery']: set your Celery"
    " up as https://flask.palletsprojects.com/en/stable/patterns/celery/ shows"
)
NO_SWEEP = (
    f"No entry of Celery's beat_schedule calls {SWEEP!r}: an event whose message is"
    " lost would wait until the sender repeats it."
)
NO_ENDPOINT = (
    "Event %s is not run: this worker's app has no endpoint %r. Start it with the"
    " Celery of the Flask app: celery -A ..."
)
NO_CONTEXT = (
    "The task %s runs outside an app context, so it cannot find the Flask app: set your"
    " Celery up as https://flask.palletsprojects.com/en/stable/patterns/celery/ shows"
)

#: The timeouts of one step, by the names of kombu's transports.
TIMEOUTS = """
    connect_retries_timeout read_timeout write_timeout socket_connect_timeout
    socket_timeout
""".split()
BOUNDED: dict[str, Any] = {
    "connect_timeout": PATIENCE,
    "transport_options": {"max_retries": 0, **dict.fromkeys(TIMEOUTS, PATIENCE)},
}


# Tasks


def register_tasks() -> None:
    """Register the tasks with every Celery of this process, also with later ones.

    Called when the blueprint is registered: a Celery worker imports the app and
    receives no request.

    :raises ConfigError: Celery is not installed.
    """
    try:
        _register_tasks()
    except ImportError:
        raise ConfigError([f"{NOT_INSTALLED}."]) from None


@functools.cache
def _register_tasks() -> None:
    from celery import shared_task
    from celery.signals import worker_process_shutdown

    # The processes of a worker's pool end without calling exit handlers.
    worker_process_shutdown.connect(lambda **_: flush_all(), weak=False)
    shared_task(run, name=RUN, ignore_result=True)
    shared_task(sweep, name=SWEEP, ignore_result=True)


def run(endpoint: str, row_id: int) -> None:
    """Run one event if it is due, and publish when its next job is due."""
    found = [each for each in _endpoints(RUN) if each.name == endpoint]
    if not found and has_app_context():
        log.error(NO_ENDPOINT, row_id, endpoint)
    try:
        for each in found:
            _run(each, row_id)
    except InboxUnavailable as unavailable:
        log.error("Event %s is left to the sweep: %s", row_id, unavailable)


def sweep(overdue: float = OVERDUE, limit: int = LARGEST_SWEEP) -> int:
    """Publish the events that have been due for ``overdue`` seconds, oldest first.

    Their messages are lost or still queued; then these are second messages and change
    nothing.

    :param limit: events of each endpoint at most.
    :return: how many messages were sent.
    """
    sent = 0
    for endpoint in _endpoints(SWEEP):
        try:
            _note_seen(store := endpoint.store)
            if endpoint.dispatch == "celery" and not is_paused(store):
                found = due_events([store], limit, since=overdue)
                sent += publish(endpoint, [row_id for _, row_id in found])
        except InboxUnavailable as unavailable:
            log.error("%s is not swept: %s", endpoint.name, unavailable)
    return sent


def _run(endpoint: Endpoint, row_id: int) -> None:
    # After a pause, the sweep publishes the events that were recorded meanwhile.
    if is_paused(endpoint.store):
        return
    _note_seen(endpoint.store)
    woken: list[int] = []
    outcome = process(endpoint, row_id, woken=woken)
    publish(endpoint, woken)
    if outcome in (RunOutcome.RETRY, RunOutcome.POSTPONED):
        wait = seconds_to(endpoint.store, row_id)
        if wait is not None and wait <= LONGEST_COUNTDOWN:
            _publisher_of(endpoint).send(endpoint, row_id, wait + CLOCK_TOLERANCE)


def _note_seen(store: Store) -> None:
    # Once a minute; a note that fails is no failure of the task.
    with suppress(Exception):
        note_seen(store, "celery")


def _endpoints(task: str) -> list[Endpoint]:
    """The endpoints of the app whose context the task runs in."""
    if not has_app_context():
        log.error(NO_CONTEXT, task)
        return []
    return list(endpoints(current_app).values())


# Messages


def publish(endpoint: Endpoint, rows: Iterable[int]) -> int:
    """Send a message for each row until a message fails; return how many were sent.

    Raises nothing, and returns before the timeout of a delivery's sender.
    """
    send = partial(_publisher_of(endpoint).send, endpoint)
    return sum(1 for _ in takewhile(send, rows))


class Publisher:
    """Sends the messages of one app in one process to its broker."""

    def __init__(self) -> None:
        self._producers: Any = None
        self._open_until = 0.0
        self._lock = threading.Lock()

    def send(self, endpoint: Endpoint, row_id: int, countdown: float = 0.0) -> bool:
        """Send a message to run the event after ``countdown`` seconds; never raises.

        :return: whether it was sent.
        """
        if time.monotonic() < self._open_until:
            return False
        try:
            self._send(celery_of(endpoint.app), [endpoint.name, row_id], countdown)
        except Exception as error:
            self._open_breaker(error)
            return False
        return True

    def _send(self, celery: Any, arguments: list[Any], countdown: float) -> None:
        task, start = celery.tasks[RUN], time.monotonic()
        with self._pool(celery).acquire(block=True, timeout=PATIENCE) as producer:
            options = {"countdown": countdown, "producer": producer, "retry": False}
            connection = producer.connection
            try:
                task.apply_async(arguments, **options)
            except Exception:
                connection.collect()
                if time.monotonic() - start > QUICK:
                    raise
                producer.revive(connection)
                task.apply_async(arguments, **options)

    def _pool(self, celery: Any) -> Any:
        with self._lock:
            if self._producers is None:
                self._producers = _new_pool(celery)
            return self._producers

    def _open_breaker(self, error: Exception) -> None:
        with self._lock:
            now = time.monotonic()
            was_open, self._open_until = now < self._open_until, now + BREAKER_SECONDS
        if not was_open:
            is_known = isinstance(error, ConfigError)
            text = str(error) if is_known else f"{type(error).__name__}: {error}"
            log.error(
                "No messages are sent for %g s; the sweep publishes the events that are"
                " recorded meanwhile: %s",
                BREAKER_SECONDS,
                text,
            )


def celery_of(app: Flask) -> Any:
    """The app's Celery, which may be set up after the blueprint is registered.

    :raises ConfigError: the app has no Celery.
    """
    celery = app.extensions.get("celery")
    if celery is None:
        raise ConfigError([f"{NOT_SET_UP}."])
    return celery


def problems(app: Flask) -> Iterator[tuple[str, bool]]:
    """The problems of the app's Celery; each with whether it stops all events."""
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
    if not _enters_app_context(celery):
        yield f"{NO_CONTEXT % RUN}.", True
    entries = (celery.conf.beat_schedule or {}).values()
    if SWEEP not in {entry.get("task") for entry in entries}:
        yield NO_SWEEP, False


def _enters_app_context(celery: Any) -> bool:
    """Whether tasks of ``celery`` run in an app context; tries it with a task."""
    name = "flask_procore_webhooks.has_app_context"
    probe = celery.task(has_app_context, name=name, shared=False, ignore_result=True)
    # Apart from the app context of the command that asks.
    return bool(Context().run(lambda: probe.apply().get()))


def _new_pool(celery: Any) -> Any:
    """Connections with timeouts; Celery's own retry for ever."""
    pools: Any = import_module("kombu.pools")
    limit = celery.conf.broker_pool_limit
    connections = celery.connection_for_write(**BOUNDED).Pool(limit)
    return pools.ProducerPool(connections, limit, Producer=celery.amqp.Producer)


def _publisher_of(endpoint: Endpoint) -> Publisher:
    return endpoint.state.runtime.part(Publisher, Publisher)
