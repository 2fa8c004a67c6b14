"""Endpoint: one registered blueprint in one app. AppState: all that belongs to an app.

The blueprint object itself may serve several apps and holds nothing of any of them.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from operator import attrgetter
from typing import Any

from flask import Flask
from flask.sansio.app import App
from sqlalchemy import Engine
from sqlalchemy import MetaData
from sqlalchemy import Table

from .config import Settings
from .config.reader import DISPATCHES
from .config.values import shown
from .errors import BadPayload
from .errors import ConfigError
from .event import Event
from .runtime import keep
from .runtime import Runtime
from .senders.payload import PLAIN_ID
from .senders.payload import read_event
from .senders.payload import unreadable_event
from .senders.samples import Credentials
from .senders.source import Source
from .signals import FIRED
from .signals import resource_event
from .signals import WORK_SIGNALS
from .storage.connections import context_of
from .storage.database import Database
from .storage.database import Mount
from .storage.engines import is_autocommit
from .storage.store import Store
from .subscribers import Subscriber
from .subscribers import Subscribers

#: The key in ``app.extensions``.
EXTENSION = "procore_webhooks"
AUTOCOMMIT = (
    "The app's engine is in AUTOCOMMIT: a failed subscriber's writes stay, and are"
    " repeated with its next attempt, so effects are at-least-once. Remove"
    " isolation_level or autocommit from the engine's options, and set it where a"
    " single connection needs it."
)


class AppState:
    """All that belongs to one app: its endpoints, and the runtime of each process."""

    def __init__(self, app: Flask) -> None:
        self.app = app
        #: By the blueprint name of their requests.
        self.endpoints: dict[str, Endpoint] = {}
        #: For endpoints without ``db=``, ``metadata=`` and ``session=``.
        self.metadata = MetaData()
        #: The process that was prepared to serve.
        self.prepared_pid = 0
        #: Whether the start of serving is watched for.
        self.is_watched = False
        self._is_testing = lambda: bool(app.testing)
        self._runtimes = {os.getpid(): Runtime(None, self._is_testing)}

    @property
    def runtime(self) -> Runtime:
        """The runtime of this process.

        It is found by the process id, because uWSGI forks in C and calls no hook of
        Python. A forked child gets a new one and keeps its parent's for ever.
        """
        return self._runtimes.get(os.getpid()) or self._new_runtime()

    def _new_runtime(self) -> Runtime:
        *_, parent = self._runtimes.values()
        keep(parent)
        runtime = Runtime(parent, self._is_testing)
        return self._runtimes.setdefault(os.getpid(), runtime)

    def leave_parent(self) -> None:
        """Use no connection of the parent process, also none of the host's engine."""
        for endpoint in self.endpoints.values():
            # An error is raised again by the next use of the inbox, which reports it.
            with suppress(Exception):
                endpoint.store.database.find_engine()


@dataclass(frozen=True)
class Endpoint:
    """The configuration of one registered blueprint in one app."""

    name: str
    app: Flask = field(repr=False)
    state: AppState = field(repr=False)
    source: Source
    #: ``request.blueprint`` of its deliveries: the name with those of its parents.
    blueprint: str
    #: The path that the sender posts to, below the app's root.
    path: str
    #: The prefix of its keys in ``app.config``.
    config_prefix: str
    settings: Settings
    mount: Mount = field(repr=False)
    subscribers: Subscribers = field(repr=False)
    #: Signs deliveries of tests to an endpoint that has no secret.
    test_secret: str = field(default_factory=secrets.token_urlsafe, repr=False)

    @property
    def settings_in_force(self) -> Settings | None:
        """The settings with their secrets; ``None`` if the endpoint has no secret.

        While ``app.testing`` is true, an endpoint without a secret has a random one.
        Looked up each time: many tests set ``TESTING`` after the app is made.
        """
        settings = self.settings
        if settings.secrets or settings.authorizations:
            return settings
        if self.app.testing:
            return replace(settings, secrets=(self.test_secret.encode(),))
        return None

    @property
    def credentials(self) -> Credentials:
        """What makes a delivery authentic now; empty if the endpoint has no secret."""
        return Credentials.of(self.source, self.settings_in_force or self.settings)

    @property
    def store(self) -> Store:
        """The endpoint's store in this process."""
        runtime = self.state.runtime
        found: Store | None = runtime.parts.get(self.name)
        return found or runtime.part(self.name, self._open_store)

    def _open_store(self) -> Store:
        runtime, mount = self.state.runtime, self.mount
        database = runtime.part(mount.key, lambda: Database(mount, runtime))
        return Store(self.name, database)

    @property
    def dispatch(self) -> str:
        """How subscribers run: ``DISPATCH``, or ``inline`` in tests without it.

        In tests it is looked up each time: many set it after the app is made.
        """
        if self.app.testing:
            configured = self.app.config.get(f"{self.config_prefix}DISPATCH")
            if configured is None:
                return "inline"
            if configured in DISPATCHES:
                return str(configured)
        return self.settings.dispatch

    def read(self, body: bytes, timestamp: str = "") -> tuple[Event, str | None]:
        """Return the event of an authentic body, and why it is unreadable if so.

        :param timestamp: the timestamp header as sent, part of the key without an id.
        """
        try:
            return read_event(body, self.source, timestamp, self.name), None
        except BadPayload as bad:
            event = unreadable_event(body, self.source, timestamp, self.name)
            return event, bad.reason

    def ignores(self, event: Event) -> bool:
        """Whether the loop filter ignores the event: the app's own change."""
        return (
            event.user_id in self.settings.ignore_user_ids
            or event.application_id in self.settings.ignore_application_ids
        )

    def subscribers_for(self, event: Event) -> list[Subscriber]:
        """The event's subscribers, each name once, in order of registration."""
        found = self.subscribers.matching(event)
        for signal in FIRED.get(event.reason or "", (resource_event,)):
            if signal.receivers:
                found += signal.subscribers_for(self.app)
        found.sort(key=attrgetter("order"))
        return list({subscriber.name: subscriber for subscriber in found}.values())

    def knows(self, name: str) -> bool:
        """Whether this process has a subscriber of that name, for any event."""
        connected = [s for each in WORK_SIGNALS for s in each.subscribers_for(self.app)]
        return any(each.name == name for each in [*self.subscribers, *connected])


def app_state(app: App) -> AppState:
    """The state of ``app``; :class:`KeyError` without a registered blueprint."""
    state: AppState = app.extensions[EXTENSION]
    return state


def endpoints(app: App) -> dict[str, Endpoint]:
    """The endpoints registered in ``app``, by the blueprint name of their requests."""
    state: AppState | None = app.extensions.get(EXTENSION)
    return {} if state is None else state.endpoints


def route_problems(app: Flask, endpoint: str) -> list[str]:
    """A problem if the route of the endpoint has a variable, wherever it comes from."""
    for rule in app.url_map.iter_rules(endpoint):
        parts = (rule.rule, rule.subdomain, rule.host)
        if found := [part for part in parts if part and "<" in part]:
            return [
                f"The route {shown(found[0])} has a variable, which would be ignored:"
                " all its values would share one secret, and events with one id would"
                " be duplicates of each other. Register one blueprint for each tenant,"
                " with a name, url_prefix and config_prefix of its own."
            ]
    return []


def check_name(app: App, name: str) -> None:
    """Return if the app has no endpoint of that name.

    :raises ConfigError: it has one, or the name is not valid.
    """
    problems = name_problems(name)
    if any(name == endpoint.name for endpoint in endpoints(app).values()):
        problems.append(
            f"The app has an endpoint named {name!r}; both would share their events."
            " Give one of the blueprints another name, as in"
            f" ProcoreWebhooks({name + '_2'!r}, ...)."
        )
    if problems:
        raise ConfigError(problems)


def name_problems(name: str) -> list[str]:
    """A problem if the name cannot be that of an endpoint."""
    if PLAIN_ID.fullmatch(name):
        return []
    return [f"The endpoint name {name!r} is not 1 to 80 visible ASCII characters."]


def by_database(endpoints: Iterable[Endpoint]) -> list[list[Endpoint]]:
    """Group endpoints by the database that they share."""
    groups: dict[int, list[Endpoint]] = {}
    for endpoint in endpoints:
        groups.setdefault(id(endpoint.store.database), []).append(endpoint)
    return list(groups.values())


def at_least_once_warnings(endpoint: Endpoint) -> Iterator[str]:
    """Where effects are at-least-once instead of exactly-once, and what to change."""
    if endpoint.store.session is None and "sqlalchemy" in endpoint.app.extensions:
        yield (
            "The app has Flask-SQLAlchemy, and the blueprint was made without db=."
            " Writes of subscribers through db.session are lost unless they commit, and"
            " are at-least-once if they do. Pass db=."
        )
    engine = session_engine(endpoint)
    if engine is not None and is_autocommit(engine):
        yield AUTOCOMMIT
    if tables := sorted(_tables_on_other_engines(endpoint)):
        yield (
            f"The tables {', '.join(tables)} are on another engine than the inbox:"
            " writes of subscribers to them are at-least-once, because they may repeat"
            " after a crash."
        )


def session_engine(endpoint: Endpoint) -> Engine | None:
    """The engine of the host's session for the inbox; ``None`` without a session."""
    store = endpoint.store
    if store.session is None:
        return None
    with context_of(endpoint.app):
        bind = store.session().get_bind(clause=store.database.tables.event)
        engine: Engine = bind.engine
        return engine


def _tables_on_other_engines(endpoint: Endpoint) -> Iterator[str]:
    store = endpoint.store
    if store.session is None:
        return
    with context_of(endpoint.app):
        session = store.session()
        ours = session.get_bind(clause=store.database.tables.event).engine
        for table in _host_tables(endpoint):
            if session.get_bind(clause=table).engine is not ours:
                yield table.name


def _host_tables(endpoint: Endpoint) -> Iterable[Table]:
    # Flask-SQLAlchemy has a metadata for each of its binds.
    db: Any = endpoint.app.extensions.get("sqlalchemy")
    metadata = endpoint.store.database.tables.event.metadata
    metadatas = getattr(db, "metadatas", {}).values() or [metadata]
    return [table for each in metadatas for table in each.tables.values()]
