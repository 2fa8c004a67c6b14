"""The blueprints: the one place where the parts meet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from typing import cast
from typing import ClassVar

from flask import Blueprint
from flask import Flask
from flask.blueprints import BlueprintSetupState
from flask.cli import AppGroup
from flask.sansio.app import App
from sqlalchemy import MetaData
from sqlalchemy.orm import Session
from sqlalchemy.orm import sessionmaker

from .background import start_once
from .background import warn_of_no_threads
from .celery import set_up
from .cli import COMMANDS
from .database import Database
from .database import FlaskSQLAlchemy
from .database import host_database
from .database import own_database
from .database import session_database
from .endpoint import Endpoint
from .endpoint import endpoints
from .engines import checked_url
from .errors import ConfigError
from .errors import DeliveryError
from .events import PLAIN_ID
from .guarantees import tell_once
from .inbox import Inbox
from .sessions import SessionSource
from .settings import read_settings
from .settings import Settings
from .sources import PROCORE
from .sources import PRUDRA
from .sources import Source
from .subscribers import ANY
from .subscribers import F
from .subscribers import new_subscriber
from .subscribers import Subscribers
from .tables import define_tables
from .views import receive
from .views import refuse
from .views import take_body


class ProcoreWebhooks(Blueprint):
    """A blueprint that receives Procore's deliveries.

    Made once, at import, and registered in any number of apps; it keeps nothing of any
    of them. Registration reads the app's configuration and raises :class:`ConfigError`
    with everything that is wrong with it.

    :param name: of the endpoint. Events are kept under it, so it should not change.
    :param db: a ``flask_sqlalchemy.SQLAlchemy``: the tables live in its metadata, and
        what subscribers write through ``db.session`` is committed with their receipt.
    :param metadata: the same for plain SQLAlchemy, together with ``session``.
    :param session: a ``scoped_session``, or a callable that returns the session in use.
    :param url_prefix: the path that the sender posts to.
    :param config_prefix: what the endpoint's keys in ``app.config`` begin with.
    :param cli_group: the group of its commands, ``flask procore-webhooks``.
    :raises ConfigError: the arguments do not go together.
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
    ) -> None:
        _check_arguments(name, db, metadata, session)
        super().__init__(name, __name__, url_prefix=url_prefix, cli_group=cli_group)
        self.db = db
        self.metadata = metadata
        self.session = session
        self.config_prefix = config_prefix
        self.subscribers = Subscribers()
        # Both with and without a slash: a redirect counts as a failed delivery.
        self.add_url_rule(
            "", "receive", receive, methods=["POST", "HEAD"], strict_slashes=False
        )
        self.url_value_preprocessor(take_body)
        self.register_error_handler(DeliveryError, refuse)
        for command in COMMANDS:
            self.cli.add_command(command)
        self.record(self._mount)
        tables_on = metadata if db is None else db.metadata
        if tables_on is not None:
            # Now, so that migrations and db.create_all() see them before any app does.
            define_tables(tables_on)

    def init_app(self, app: Flask) -> None:
        """The same as ``app.register_blueprint(webhooks)``."""
        app.register_blueprint(self)

    def on(
        self,
        resource_type: str = ANY,
        reason: str = ANY,
        *,
        name: str | None = None,
        latest_only: bool = False,
    ) -> Callable[[F], F]:
        """Make the decorated function a subscriber: it is called with ``(event)``.

        :param resource_type: as in :attr:`Event.resource_type`, whatever the case;
            ``"*"`` for any.
        :param reason: as in :attr:`Event.reason`, whatever the case; ``"*"`` for any.
        :param name: what receipts are kept under, instead of ``module:qualname``.
        :param latest_only: leave an event to a newer one of the same resource (and of
            the same reason, if ``reason`` is given) that is in the inbox when the run
            begins. For subscribers that fetch the resource and need no history: many
            changes cost one fetch, and the last one wins whatever order they came in.
        :raises ConfigError: a different function of that name is registered.
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
                )
            )
            return function

        return decorator

    def register(self, app: App, options: dict[str, Any]) -> None:
        """Called by ``app.register_blueprint``; see there."""
        _check_name(app, options.get("name", self.name))
        group = options.get("cli_group", self.cli_group) or self.name
        there = getattr(app.cli.commands.get(group), "commands", {})
        super().register(app, options)
        # A group of the app's own: another blueprint may have commands in it, and what
        # this app has must not show in another that shares this blueprint.
        commands = {**there, **self.cli.commands}
        help = "See and steer the webhooks that the app receives."
        app.cli.add_command(AppGroup(group, commands=commands, help=help))

    def _mount(self, state: BlueprintSetupState) -> None:
        """Give ``state.app`` an endpoint of its own, at each registration."""
        app = cast(Flask, state.app)
        settings = read_settings(
            app.config,
            self.config_prefix,
            own_database=self._owns_database,
            check_uri=checked_url,
        )
        _at_requests(app, tell_once)
        if settings.dispatch == "background":
            _at_requests(app, start_once)
            warn_of_no_threads()
        elif settings.dispatch == "celery":
            set_up(app)
        blueprint = f"{state.name_prefix}.{state.name}".lstrip(".")
        endpoints(app)[blueprint] = Endpoint(
            name=state.name,
            app=app,
            source=self.source,
            blueprint=blueprint,
            path=state.url_prefix or "/",
            config_prefix=self.config_prefix,
            settings=settings,
            inbox=Inbox(state.name, self._database(app, settings)),
            subscribers=self.subscribers,
        )

    @property
    def _owns_database(self) -> bool:
        return self.db is None and self.session is None

    def _database(self, app: Flask, settings: Settings) -> Database:
        if self.db is not None:
            return host_database(app, self.db)
        metadata = MetaData() if self.metadata is None else self.metadata
        if self.session is not None:
            return session_database(app, metadata, self.session)
        uri = checked_url(settings.database_uri) if settings.database_uri else None
        return own_database(app, metadata, uri, creates_tables=self.metadata is None)


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


def _at_requests(app: Flask, call: Callable[..., None]) -> None:
    """Have ``call`` called at every request, once however often this is said."""
    # Ahead of every before_request: a login check may end a request there.
    if call not in app.url_value_preprocessors.get(None, ()):
        app.url_value_preprocessor(call)


def _check_arguments(
    name: str,
    db: FlaskSQLAlchemy | None,
    metadata: MetaData | None,
    session: SessionSource | None,
) -> None:
    problems = _name_problems(name)
    if db is not None and (metadata is not None or session is not None):
        problems.append("Pass either db= or metadata= and session=, not both.")
    if session is not None and metadata is None:
        problems.append("Pass metadata= with session=: the tables are defined on it.")
    if isinstance(session, (Session, sessionmaker)):
        problems.append(
            "session= is one session, or makes a new one at each call; pass a"
            " scoped_session, or a callable that returns the session in use."
        )
    if problems:
        raise ConfigError(problems)


def _name_problems(name: str) -> list[str]:
    if PLAIN_ID.fullmatch(name):
        return []
    return [f"The endpoint name {name!r} is not 1 to 80 visible ASCII characters."]


def _check_name(app: App, name: str) -> None:
    problems = _name_problems(name)
    if any(name == endpoint.name for endpoint in endpoints(app).values()):
        problems.append(
            f"The app has an endpoint named {name!r}; their events would be mixed."
            " Give one of the blueprints another name, as in"
            f" {ProcoreWebhooks.__name__}({name + '_2'!r}, ...)."
        )
    if problems:
        raise ConfigError(problems)
