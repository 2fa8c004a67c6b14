"""Options and endpoint selection of the commands."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from typing import Any

import click
from flask import current_app
from flask.cli import with_appcontext

from ..endpoint import Endpoint
from ..endpoint import endpoints
from ..errors import ProcoreWebhooksError
from ..inbox.status import Status
from ..operations.filters import Filter
from ..senders.procore import PROCORE
from ._output import SILENCE
from ._output import silence
from ._values import date
from ._values import secret as secret_value


class Command(click.Command):
    """A command that shows the package's errors as a sentence, without a traceback.

    With ``--json`` it prints one document, and nothing that the app prints or logs.
    """

    def invoke(self, context: click.Context) -> Any:
        if context.params.get("as_json"):
            # Until the context ends, which pops the app's context before.
            context.meta[SILENCE] = context.with_resource(silence())
        try:
            return super().invoke(context)
        except ProcoreWebhooksError as error:
            raise click.ClickException(str(error)) from None


#: The key in the context of a command that has no app.
WITHOUT_APP = "flask_procore_webhooks.without_app"
#: Variables of the environment that are read where there is no app.
CREDENTIALS = ("PROCORE_WEBHOOK_SECRET", "PROCORE_WEBHOOK_AUTHORIZATION")

command = partial(click.command, cls=Command)
one_endpoint = click.option("--endpoint", help="Only the endpoint of this name.")
all_events = click.option("--all", "every", is_flag=True, help="All of them.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def filters(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the filter options; the function gets a :class:`Filter` as ``wanted``."""

    @functools.wraps(function)
    def with_filter(*arguments: Any, **options: Any) -> Any:
        names = [each.name for each in fields(Filter)]
        values = {name: options.pop(name) for name in names}
        return function(*arguments, wanted=Filter(**values), **options)

    for option in reversed(_FILTERS):
        with_filter = option(with_filter)
    return with_filter


def _text(name: str, help: str, field: str | None = None) -> Callable[..., Any]:
    names = [name] if field is None else [name, field]
    return click.option(*names, metavar="TEXT", help=help)


_FILTERS = (
    click.option(
        "--status",
        "statuses",
        multiple=True,
        type=click.Choice([str(status) for status in Status]),
        help="Of the event; may be given several times.",
    ),
    _text("--type", "As in RFIs.update."),
    _text("--resource-type", "As in RFIs."),
    _text("--reason", "As in update."),
    _text("--subscriber", "With a job of this subscriber."),
    _text("--error", "With a job whose error holds this text, or a line of errors."),
    _text("--project", "Of the project with this id.", "project_id"),
    _text("--company", "Of the company with this id.", "company_id"),
    _text("--user", "Of the user with this id.", "user_id"),
    _text("--resource", "Of the resource with this id.", "resource_id"),
    click.option(
        "--since",
        type=date,
        metavar="TIME",
        help="Received at this time or later: 2026-11-26, 2026-11-26T09:30, or -8h for"
        " eight hours ago (also -30m, -2d). UTC without a zone.",
    ),
    click.option(
        "--until", type=date, metavar="TIME", help="Received before this time."
    ),
    click.option(
        "--died-since",
        type=date,
        metavar="TIME",
        help="With a job that died at this time or later.",
    ),
)


def with_app_if_any(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run the command in the app's context; without one after :func:`without_app`."""
    in_context = with_appcontext(function)

    @functools.wraps(function)
    def command(*arguments: Any, **options: Any) -> Any:
        call = in_context if has_app() else function
        return call(*arguments, **options)

    return command


def group_path() -> str:
    """The words before the name of a command, as in ``flask procore-webhooks``."""
    above = click.get_current_context().parent
    return above.command_path if above else ""


def has_app() -> bool:
    """Whether the command belongs to an app: not in ``python -m``."""
    return not click.get_current_context().meta.get(WITHOUT_APP)


def without_app(context: click.Context) -> None:
    """Let the commands of this context work without an app."""
    context.meta[WITHOUT_APP] = True


def given_credentials(
    secret: bytes | None, authorization: bytes | None
) -> tuple[bytes | None, bytes | None]:
    """The options, or without an app what the environment has in their place.

    :raises click.UsageError: there is no app, and nothing is given.
    """
    if has_app() or secret is not None or authorization is not None:
        return secret, authorization
    found = [os.environ.get(name) for name in CREDENTIALS]
    if not any(found):
        raise click.UsageError(
            "There is no app here to take a secret from: give --secret or"
            f" --authorization, or set {' or '.join(CREDENTIALS)} in the environment."
        )
    first, second = [
        _from_environment(name, value)
        for name, value in zip(CREDENTIALS, found, strict=True)
    ]
    return first, second


def _from_environment(name: str, value: str | None) -> bytes | None:
    try:
        return secret_value(value) if value else None
    except click.BadParameter as error:
        raise click.UsageError(
            f"{name} in the environment is {error.message}"
        ) from None


def endpoints_named(name: str | None) -> list[Endpoint]:
    """All endpoints of the app, or the one of that name; none without an app."""
    if not has_app():
        if name is not None:
            raise click.UsageError("There is no app here: leave out --endpoint.")
        return []
    mounted = list(endpoints(current_app).values())
    found = [each for each in mounted if name in (None, each.name)]
    if not found:
        names = ", ".join(each.name for each in mounted)
        raise click.ClickException(
            f"There is no endpoint {name!r}; the app has: {names}."
        )
    return found


def procore_endpoints(name: str | None) -> list[Endpoint]:
    """Procore endpoints with API credentials; if none has them, the first.

    The first, so that the error names its keys.
    """
    found = [each for each in endpoints_named(name) if each.source is PROCORE]
    if not found:
        raise click.UsageError("Hooks are Procore's: name an --endpoint of it.")
    able = [each for each in found if each.settings.api.is_configured]
    return able or found[:1]


@contextmanager
def needs_extra() -> Iterator[None]:
    """Show the error of an import that needs an extra as a sentence."""
    try:
        yield
    except ImportError as error:
        if error.name != "requests":
            raise
        raise click.ClickException(str(error)) from None
