"""Celery's brokers, with a queue for each test, and workers for tests."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import uuid
import warnings
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flask import Flask

from flask_procore_webhooks.dispatching.celery import Publisher
from flask_procore_webhooks.endpoint import endpoints
from support.processes import Process
from support.processes import running
from support.services import missing
from support.services import RABBITMQ
from support.services import REDIS

BROKERS = {"redis": REDIS, "rabbitmq": RABBITMQ}


@dataclass
class Broker:
    url: str
    queue: str = field(default_factory=lambda: f"webhooks-{uuid.uuid4().hex[:12]}")

    def config(self, url: str | None = None, **more: Any) -> dict[str, Any]:
        """Celery settings for the broker's own queue."""
        options: dict[str, Any] = {}
        if self.url.startswith("redis"):
            options = {"global_keyprefix": f"{self.queue}:"}
        return {
            "broker_url": url or self.url,
            "broker_transport_options": options,
            "broker_connection_retry_on_startup": True,
            "task_default_queue": self.queue,
            "task_ignore_result": True,
            "worker_enable_remote_control": False,
            "worker_hijack_root_logger": False,
            **more,
        }

    def celery(self, app: Flask, url: str | None = None, **more: Any) -> Any:
        """Give ``app`` a Celery, as Flask's documentation shows, and return it."""
        from celery import Task

        class FlaskTask(Task):  # type: ignore[misc]
            def __call__(self, *arguments: object, **options: object) -> object:
                with app.app_context():
                    return self.run(*arguments, **options)

        celery = app.extensions["celery"] = self.contextless_celery(
            url, FlaskTask, **more
        )
        return celery

    def connection(self, **options: Any) -> Any:
        """A connection to the broker, without an app."""
        return self.contextless_celery().connection_for_write(**options)

    def take(self, at_least: int = 0) -> list[dict[str, Any]]:
        """Remove the waiting messages; return task, arguments and time of each.

        :param at_least: minimum to wait for, as RabbitMQ accepts messages later.
        """
        deadline = time.monotonic() + 30
        taken = []
        celery = self.contextless_celery()
        with celery.connection_for_read() as connection:
            queue = celery.amqp.default_queue.bind(connection.default_channel)
            queue.declare()
            while time.monotonic() < deadline:
                message = queue.get(no_ack=True)
                if message is None:
                    if len(taken) >= at_least:
                        break
                    time.sleep(0.05)
                    continue
                args, kwargs, _ = message.payload
                taken.append(
                    {
                        "task": message.headers["task"],
                        "args": args,
                        "kwargs": kwargs,
                        "eta": message.headers["eta"],
                    }
                )
        return taken

    def taken_rows(self, at_least: int = 0) -> list[int]:
        """Remove the waiting messages; return the row ids in their arguments."""
        return [message["args"][1] for message in self.take(at_least)]

    def drop(self) -> None:
        with self.connection() as connection:
            channel = connection.default_channel
            channel.queue_delete(self.queue)
            if self.url.startswith("redis"):
                import redis

                with redis.Redis.from_url(self.url) as client:
                    for key in client.scan_iter(f"{self.queue}:*"):
                        client.delete(key)

    def contextless_celery(
        self, url: str | None = None, task_cls: Any = None, **more: Any
    ) -> Any:
        """A Celery without an app: its tasks run without an app context."""
        from celery import Celery

        celery = Celery("tests", set_as_current=False, task_cls=task_cls)
        celery.config_from_object(self.config(url, **more))
        return celery


def forget_sockets() -> None:
    """Collect the sockets that py-amqp leaves open after failed connections."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def disconnect(app: Flask) -> None:
    """Close the connections with which the app publishes messages."""
    for endpoint in endpoints(app).values():
        publisher = endpoint.state.runtime.parts.get(Publisher)
        if publisher and publisher._producers:
            publisher._producers.connections.force_close_all()
            publisher._producers = None


@contextmanager
def own_broker(name: str) -> Iterator[Broker]:
    if not find_spec("celery"):
        missing("Celery is not installed")
    variable, default = BROKERS[name]
    broker = Broker(os.environ.get(variable, default))
    options = {"max_retries": 0, "socket_connect_timeout": 5}
    try:
        with broker.connection(
            connect_timeout=5, transport_options=options
        ) as connection:
            connection.default_channel.close()
    except Exception as error:
        missing(f"no {name} where {variable} or the default leads: {error!r}")
    try:
        yield broker
    finally:
        broker.drop()
        forget_sockets()


@contextmanager
def celery_worker(
    module: str, folder: Path, env: Mapping[str, str], *options: str
) -> Iterator[Process]:
    """``celery -A module worker`` from ``folder`` until the end."""
    name = f"{uuid.uuid4().hex[:12]}@%h"
    quietly = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    command = [sys.executable, "-m", "celery", "-A", module, "worker", "-n", name]
    command += ["-l", "info", *quietly, *options]
    with running(command, folder=folder, env={**os.environ, **env}) as worker:
        yield worker


def as_env(config: Mapping[str, Any]) -> str:
    """The value as an environment variable for ``app.config.from_prefixed_env``."""
    return json.dumps(config)
