"""Celery: events as messages to the app's own Celery.

The inbox stays the queue: a message names a row. A doubled message changes nothing,
because the row is claimed once; the sweep replaces a lost message.

Celery is imported where it is used: only the mode ``celery`` needs it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from collections.abc import Iterator
from contextvars import Context
from functools import partial
from importlib import import_module
from itertools import takewhile
from typing import Any

from flask import Flask
from flask import has_app_context

from ..endpoint import Endpoint
from ..errors import ConfigError
from ..log import log

#: The names of the tasks. Messages in queues hold them, so they never change.
RUN = "flask_procore_webhooks.run"
SWEEP = "flask_procore_webhooks.sweep"
RECONCILE = "flask_procore_webhooks.reconcile"

#: Seconds that one step towards the broker may take while the sender waits.
PATIENCE = 1.5
#: An idle connection may be dead: a failure within so many seconds is retried once.
QUICK = 0.5
#: Circuit breaker: seconds without publishing after a failure.
BREAKER_SECONDS = 10.0

NOT_SET_UP = (
    "DISPATCH is 'celery', and the app has no app.extensions['celery']: set your Celery"
    " up as https://flask.palletsprojects.com/en/stable/patterns/celery/ shows"
)
NO_SWEEP = (
    f"No entry of Celery's beat_schedule calls {SWEEP!r}: an event whose message is"
    " lost would wait until the sender repeats it."
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


def publish(
    endpoint: Endpoint,
    rows: Iterable[int],
    *,
    countdown: float = 0.0,
    is_new: bool = False,
) -> int:
    """Send a message for each row until a message fails; return how many were sent.

    Raises nothing, and returns before the timeout of a delivery's sender.

    :param countdown: seconds after which the events are run.
    :param is_new: these are the first messages of the events.
    """
    publisher = endpoint.state.runtime.part(Publisher, Publisher)
    options = {"kwargs": {"is_new": True} if is_new else {}, "countdown": countdown}
    send = partial(publisher.send, endpoint, options=options)
    return sum(1 for _ in takewhile(send, rows))


class Publisher:
    """Sends the messages of one app in one process to its broker."""

    def __init__(self) -> None:
        self._producers: Any = None
        self._open_until = 0.0
        self._lock = threading.Lock()

    def send(self, endpoint: Endpoint, row_id: int, options: dict[str, Any]) -> bool:
        """Send a message to run the event; never raises.

        :param options: for Celery's ``apply_async``.
        :return: whether it was sent.
        """
        if time.monotonic() < self._open_until:
            return False
        try:
            self._send(celery_of(endpoint.app), [endpoint.name, row_id], options)
        except Exception as error:
            self._open_breaker(error)
            return False
        return True

    def _send(self, celery: Any, arguments: list[Any], options: dict[str, Any]) -> None:
        task, start = celery.tasks[RUN], time.monotonic()
        with self._pool(celery).acquire(block=True, timeout=PATIENCE) as producer:
            options = {**options, "producer": producer, "retry": False}
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


def is_eager(app: Flask) -> bool:
    """Whether the app's Celery runs a task in the place of sending its message."""
    celery = app.extensions.get("celery")
    return celery is not None and bool(celery.conf.task_always_eager)


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
