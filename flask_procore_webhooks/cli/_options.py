"""Options and endpoint selection of the commands."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

import click
from flask import current_app

from ..endpoint import Endpoint
from ..endpoint import endpoints
from ..errors import ProcoreWebhooksError
from ..inbox.queries import Filter
from ..inbox.tables import Status
from ._values import date


class Command(click.Command):
    """A command that shows the package's errors as a sentence, without a traceback."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except ProcoreWebhooksError as error:
            raise click.ClickException(str(error)) from None


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


_FILTERS = (
    click.option("--status", type=click.Choice([str(status) for status in Status])),
    click.option("--type", help="Only events of this type, as in RFIs.update."),
    click.option("--resource-type", metavar="TEXT", help="As in RFIs."),
    click.option("--reason", metavar="TEXT", help="As in update."),
    click.option("--resource-id", metavar="TEXT"),
    click.option("--company-id", metavar="TEXT"),
    click.option("--project-id", metavar="TEXT"),
    click.option(
        "--since",
        type=date,
        metavar="TIME",
        help="Received at this time or later: Unix seconds, ISO 8601, or -3600 for an"
        " hour ago.",
    ),
    click.option(
        "--until", type=date, metavar="TIME", help="Received before this time."
    ),
)


def endpoints_named(name: str | None) -> list[Endpoint]:
    """All endpoints of the app, or the one of that name."""
    mounted = list(endpoints(current_app).values())
    found = [each for each in mounted if name in (None, each.name)]
    if not found:
        names = ", ".join(each.name for each in mounted)
        raise click.ClickException(
            f"There is no endpoint {name!r}; the app has: {names}."
        )
    return found
