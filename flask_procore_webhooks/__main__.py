"""``python -m flask_procore_webhooks``: the commands that need no app."""

from __future__ import annotations

import click

from .cli._options import without_app
from .cli.secret import secret
from .cli.trigger import trigger
from .cli.verify import verify_request


@click.group()
@click.pass_context
def main(context: click.Context) -> None:
    """Send and check deliveries without an app.

    The other commands need the app: flask procore-webhooks --help.
    """
    without_app(context)


for command in (secret, trigger, verify_request):
    main.add_command(command)

if __name__ == "__main__":
    main(prog_name="python -m flask_procore_webhooks")
