"""Commands to set an app up: ``init-db``, ``check``, ``secret``."""

from __future__ import annotations

import secrets as random_secrets

import click
from flask.cli import with_appcontext

from ..store import explain
from .checks import examine
from .options import as_json as as_json_option
from .options import command
from .options import endpoints_named
from .options import one_endpoint
from .output import print_json
from .output import printable
from .report import Report


@command("init-db")
@one_endpoint
@with_appcontext
def init_db(endpoint: str | None) -> None:
    """Create the inbox's tables where they are missing."""
    for each in endpoints_named(endpoint):
        try:
            created = each.inbox.database.create_tables()
        except Exception as error:
            raise click.ClickException(f"{each.name}: {explain(error)}") from None
        done = f"created {', '.join(created)}" if created else "nothing was missing"
        click.echo(f"{each.name}: {done}")


@command()
@one_endpoint
@as_json_option
@with_appcontext
def check(endpoint: str | None, as_json: bool) -> None:
    """Show the settings in force and everything that would fail.

    The command fails while there is an ERROR: deliveries would not be worked on.
    """
    reports = {each.name: examine(each) for each in endpoints_named(endpoint)}
    if as_json:
        print_json(reports)
    else:
        for name, report in reports.items():
            _print_report(name, report)
    if any(report["errors"] for report in reports.values()):
        raise SystemExit(1)
    if not as_json:
        click.secho("Deliveries can come in.", fg="green")


@command()
def secret() -> None:
    """Print a new secret: 32 random bytes as URL-safe text."""
    click.echo(random_secrets.token_urlsafe(32))


def _print_report(name: str, report: Report) -> None:
    click.secho(f"{name} ({report['source']})", bold=True)
    click.echo(f"  POST {report['path']}")
    click.echo(f"  database {printable(report['database'])}")
    click.echo(f"  tables {report['tables']}")
    for key, value in report["settings"].items():
        click.echo(f"  {key} = {printable(value)}")
    for subscriber in report["subscribers"]:
        click.echo(printable(f"  subscriber {subscriber['name']} ({subscriber['to']})"))
    for text in report["errors"]:
        click.secho(f"  ERROR: {_sentence(text)}", fg="red")
    for text in report["warnings"]:
        click.secho(f"  warning: {_sentence(text)}", fg="yellow")


def _sentence(text: str) -> str:
    # What drivers say has line breaks and tabs in it.
    return printable(" ".join(text.split()))
