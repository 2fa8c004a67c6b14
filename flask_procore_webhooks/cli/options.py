"""What the commands have in common."""

from __future__ import annotations

from functools import partial
from typing import Any

import click
from flask import current_app

from ..endpoint import Endpoint
from ..endpoint import endpoints
from ..errors import ProcoreWebhooksError


class Command(click.Command):
    """A command that tells our errors in a sentence, without a traceback."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except ProcoreWebhooksError as error:
            raise click.ClickException(str(error)) from None


command = partial(click.command, cls=Command)
one_endpoint = click.option("--endpoint", help="Only the endpoint of this name.")
as_json = click.option("--json", "as_json", is_flag=True, help="For machines.")


def endpoints_named(name: str | None) -> list[Endpoint]:
    """All endpoints of the app, or the one of that name."""
    mounted = list(endpoints(current_app).values())
    found = [each for each in mounted if name in (None, each.name)]
    if not found:
        names = ", ".join(each.name for each in mounted)
        raise click.ClickException(f"There is no endpoint {name!r}; there is: {names}.")
    return found
