"""``init-db``: create the inbox's tables."""

from __future__ import annotations

import click
from flask.cli import with_appcontext

from ._options import command
from ._options import endpoints_named
from ._options import one_endpoint


@command("init-db")
@one_endpoint
@with_appcontext
def init_db(endpoint: str | None) -> None:
    """Create the tables that are missing."""
    for each in endpoints_named(endpoint):
        try:
            created = each.store.database.create_tables()
        except Exception as error:
            text = each.store.database.explain(error)
            raise click.ClickException(f"{each.name}: {text}") from None
        done = f"created {', '.join(created)}" if created else "all tables exist"
        click.echo(f"{each.name}: {done}")
