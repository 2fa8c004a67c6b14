"""The blueprints: their arguments, subscribing, and registration in an app."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
from functools import partial
from typing import Any
from typing import cast
from typing import ClassVar

from flask import Blueprint
from flask import Flask
from flask.blueprints import BlueprintSetupState
from flask.sansio.app import App
from sqlalchemy import MetaData

from .cli import prints_json
from .cli import WebhooksGroup
from .config import read_settings
from .config import Settings
from .config.options import Key
from .config.options import Pattern
from .config.options import pattern_problems
from .config.values import without_secret
from .dispatching.background import prepare_process
from .dispatching.modes import prepare_mode
from .endpoint import app_state
from .endpoint import AppState
from .endpoint import check_name
from .endpoint import Endpoint
from .endpoint import name_problems
from .endpoint import route_problems
from .errors import ConfigError
from .errors import DeliveryError
from .event import Event
from .inbox_access import InboxAccess
from .log import log
from .schema.tables import define_tables
from .senders.procore import PROCORE
from .senders.prudra import PRUDRA
from .senders.source import Source
from .storage.database import argument_problems
from .storage.database import FlaskSQLAlchemy
from .storage.database import host_mount
from .storage.database import Mount
from .storage.database import own_mount
from .storage.database import session_mount
from .storage.database import SessionSource
from .storage.engines import checked_url
from .subscribers import after_problems
from .subscribers import ANY
from .subscribers import F
from .subscribers import new_subscriber
from .subscribers import Subscribers
from .views import prepare_app
from .views import receive
from .views import refuse
from .views import take_body


class ProcoreWebhooks(InboxAccess, Blueprint):
    """A blueprint that receives Procore's deliveries.

    Make it once, at import, and register it in any number of apps; it holds nothing of
    any app. Registration reads the app's configuration and raises
    :class:`ConfigError` with every problem found. Without a secret the app starts, and
    deliveries are answered 503.

    :param name: the endpoint's name. Events are stored under it, so it must not change.
    :param db: a ``flask_sqlalchemy.SQLAlchemy``: the tables are in its metadata, and
        writes of a subscriber through ``db.session`` are committed with its job.
    :param metadata: the same for plain SQLAlchemy, together with ``session``.
    :param session: a ``scoped_session``, or a callable that returns the session in use.
    :param url_prefix: the path that the sender posts to, without variables.
    :param config_prefix: the prefix of the endpoint's keys in ``app.config``.
    :param cli_group: the group of its commands, ``flask procore-webhooks``.
    :param hooks_for: what its hooks ask for besides ``on``: ``["RFIs.update"]``. With
        it, a subscriber to any resource asks for nothing.
    :raises ConfigError: the arguments exclude each other.
    """

    source: ClassVar[Source] = PROCORE

    def __init__(
        self,
        name: str = "procore_webhooks",
        *,
        db: FlaskSQLAlchemy | None = None,
        metadata: MetaData | None = None,
        session: SessionSource | None = None,
        url_prefix: str = "/webhooks/procore",
        config_prefix: str = "PROCORE_WEBHOOK_",
        cli_group: str = "procore-webhooks",
        hooks_for: Sequence[Pattern] = (),
    ) -> None:
        problems = name_problems(name) + argument_problems(db, metadata, session)
        problems += pattern_problems(hooks_for)
        if problems:
            raise ConfigError(problems)
        super().__init__(name, __name__, url_prefix=url_prefix, cli_group=cli_group)
        self.cli = WebhooksGroup()
        self.db = db
        self.metadata = metadata
        self.session = session
        self.config_prefix = config_prefix
        self.hooks_for = hooks_for
        self.subscribers = Subscribers()
        # With and without a slash: a redirect counts as a failed delivery.
        self.add_url_rule(
            "", "receive", receive, methods=["POST", "HEAD"], strict_slashes=False
        )
        self.url_value_preprocessor(take_body)
        self.register_error_handler(DeliveryError, refuse)
        self.record(self._mount)
        tables_on = metadata if db is None else db.metadata
        if tables_on is not None:
            # Now, so that migrations and db.create_all() find the tables.
            define_tables(tables_on)

    def init_app(self, app: Flask) -> None:
        """Register the blueprint, like ``app.register_blueprint(webhooks)``."""
        app.register_blueprint(self)

    def start(self, app: Flask) -> None:
        """Start the background thread of ``app`` in this process, without a request.

        For the hooks of servers that give no sign when they begin to serve. Call it in
        each process that serves, after its fork and after the app is loaded. Safe to
        repeat. In other modes than ``background`` it starts no thread.

        :raises KeyError: the blueprint is not registered in ``app``.
        """
        prepare_process(app_state(app))

    def on(
        self,
        resource_type: str = ANY,
        reason: str = ANY,
        *,
        name: str | None = None,
        latest_only: bool = False,
        settle: float | None = None,
        settle_max: float | None = None,
        lag: float | None = None,
        after: float | None = None,
        key: Key = "resource",
        one_at_a_time: bool = False,
        when: Callable[[Event], object] | None = None,
        timeout: float | None = None,
        durable: bool = False,
    ) -> Callable[[F], F]:
        """Make the decorated function a subscriber: it is called with ``(event)``.

        All times are seconds. ``docs/subscribing.md`` has an example of each option.

        :param resource_type: as in :attr:`Event.resource_type`, whatever the case;
            ``"*"`` for any.
        :param reason: as in :attr:`Event.reason`, whatever the case; ``"*"`` for any.
            ``"created"`` is the same as ``"create"``, and so on.
        :param name: the subscriber's name instead of ``module:qualname``.
        :param latest_only: an event is superseded once a newer event of its key is
            done: for subscribers that fetch the resource and need no history.
        :param settle: with ``latest_only``: due that long after the last event of the
            key came in.
        :param settle_max: the longest wait for a newer event; by default 10 times
            ``settle``, and 60 without it.
        :param lag: with ``latest_only``: an event is also superseded by a finished run
            of its key that began later than its timestamp and ``lag``. The events
            of 8 seconds after a call began wait for their end, and one of them runs.
        :param after: first due that long after the event was recorded.
        :param key: what counts as the same: ``"resource"``, ``"project"``,
            ``"company"``, or a function of the event that returns text or ``None``.
            Any but ``"resource"`` needs ``settle`` or ``one_at_a_time``.
        :param one_at_a_time: two jobs of one key never run at the same time.
        :param when: a function of the event; if it returns false, the job ends as
            ``suppressed``.
        :param timeout: what one call may take, functions of ``when`` and ``key``
            included, instead of the setting ``TIMEOUT``.
        :param durable: settle each job by itself instead of with others of its batch.
        :raises ConfigError: a different function of that name is registered, it is a
            generator function, or an option is wrong.
        """
        if not isinstance(resource_type, str) or not isinstance(reason, str):
            raise ConfigError(
                ['Write @webhooks.on("RFIs", "update") or @webhooks.on().']
            )

        def decorator(function: F) -> F:
            self.subscribers.add(
                new_subscriber(
                    function,
                    name,
                    takes_app=False,
                    resource_type=resource_type,
                    reason=reason,
                    latest_only=latest_only,
                    settle=settle,
                    settle_max=settle_max,
                    lag=lag,
                    after=after,
                    key=key,
                    one_at_a_time=one_at_a_time,
                    when=when,
                    timeout=timeout,
                    durable=durable,
                )
            )
            return function

        return decorator

    def register(self, app: App, options: dict[str, Any]) -> None:
        """Register commands and routes; ``app.register_blueprint`` calls it."""
        check_name(app, options.get("name", self.name))
        group = options.get("cli_group", self.cli_group) or self.name
        there = getattr(app.cli.commands.get(group), "commands", {})
        super().register(app, options)
        # A new group for each app: apps that share this blueprint may differ.
        commands = {**there, **self.cli.commands}
        help = "Inspect and operate the webhooks that the app receives."
        app.cli.add_command(WebhooksGroup(group, commands=commands, help=help))

    def _mount(self, state: BlueprintSetupState) -> None:
        """Give ``state.app`` an endpoint of its own, at each registration."""
        app = cast(Flask, state.app)
        blueprint = f"{state.name_prefix}.{state.name}".lstrip(".")
        settings = read_settings(
            app.config,
            self.config_prefix,
            own_database=self.db is None and self.session is None,
            check_uri=checked_url,
            problems=route_problems(app, f"{blueprint}.receive"),
            further=partial(after_problems, self.subscribers),
        )
        self.subscribers.mount(settings)
        shared = prepare_app(app)
        prepare_mode(shared, settings.dispatch)
        shared.endpoints[blueprint] = endpoint = Endpoint(
            name=state.name,
            app=app,
            state=shared,
            source=self.source,
            blueprint=blueprint,
            path=state.url_prefix or "/",
            config_prefix=self.config_prefix,
            settings=settings,
            mount=self._database_mount(shared, settings),
            subscribers=self.subscribers,
        )
        _log_weaknesses(endpoint)

    def _database_mount(self, state: AppState, settings: Settings) -> Mount:
        app = state.app
        if self.db is not None:
            return host_mount(app, self.db)
        metadata = state.metadata if self.metadata is None else self.metadata
        if self.session is not None:
            return session_mount(app, metadata, self.session)
        uri = checked_url(settings.database_uri) if settings.database_uri else None
        return own_mount(app, metadata, uri, creates_tables=self.metadata is None)


class PrudraWebhooks(ProcoreWebhooks):
    """The same for Prudra's deliveries."""

    source = PRUDRA

    def __init__(
        self,
        name: str = "prudra_webhooks",
        *,
        db: FlaskSQLAlchemy | None = None,
        metadata: MetaData | None = None,
        session: SessionSource | None = None,
        url_prefix: str = "/webhooks/prudra",
        config_prefix: str = "PRUDRA_WEBHOOK_",
        cli_group: str = "prudra-webhooks",
    ) -> None:
        super().__init__(
            name,
            db=db,
            metadata=metadata,
            session=session,
            url_prefix=url_prefix,
            config_prefix=config_prefix,
            cli_group=cli_group,
        )


def _log_weaknesses(endpoint: Endpoint) -> None:
    """Log what is allowed and makes deliveries fail or easier to forge."""
    if prints_json():
        return  # check --json reports them
    if endpoint.settings_in_force is None:
        log.warning("%s: %s", endpoint.name, without_secret(endpoint.config_prefix))
    for text in endpoint.settings.warnings:
        log.warning("%s: %s", endpoint.name, text)
