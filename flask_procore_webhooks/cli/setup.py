"""Commands to set an app up: ``init-db``, ``check``, ``secret``."""

from __future__ import annotations

import secrets as random_secrets

import click
from flask.cli import with_appcontext

from ..endpoint import Endpoint
from .checks import all_subscribers
from .checks import describe
from .checks import findings
from .options import command
from .options import endpoints_named
from .options import one_endpoint


@command("init-db")
@one_endpoint
@with_appcontext
def init_db(endpoint: str | None) -> None:
    """Create the inbox's tables where they are missing."""
    for each in endpoints_named(endpoint):
        try:
            created = each.inbox.database.create_tables()
        except Exception as error:
            raise click.ClickException(f"{each.name}: {error}") from None
        done = f"created {', '.join(created)}" if created else "nothing was missing"
        click.echo(f"{each.name}: {done}")


@command()
@one_endpoint
@with_appcontext
def check(endpoint: str | None) -> None:
    """Show the settings in force and everything that would fail."""
    failed = False
    for each in endpoints_named(endpoint):
        _print_endpoint(each)
        for finding in findings(each):
            failed = failed or finding.error
            word, colour = ("ERROR", "red") if finding.error else ("warning", "yellow")
            click.secho(f"  {word}: {finding.text}", fg=colour)
    if failed:
        raise SystemExit(1)
    click.secho("Deliveries can come in.", fg="green")


@command()
def secret() -> None:
    """Print a new secret: 32 random bytes as URL-safe text."""
    click.echo(random_secrets.token_urlsafe(32))


def _print_endpoint(endpoint: Endpoint) -> None:
    click.secho(f"{endpoint.name} ({endpoint.source.name})", bold=True)
    click.echo(f"  POST {endpoint.path}")
    for key, value in describe(endpoint).items():
        click.echo(f"  {key} = {value}")
    for subscriber in all_subscribers(endpoint):
        pattern = f"{subscriber.resource_type} {subscriber.reason}"
        click.echo(f"  subscriber {subscriber.name} ({pattern})")
