"""``init-db``: create the inbox's tables, or upgrade those of an older package."""

from __future__ import annotations

import click
from flask.cli import with_appcontext

from ..storage.upgrade import Changes
from ._options import command
from ._options import endpoints_named
from ._options import one_endpoint


@command("init-db")
@one_endpoint
@with_appcontext
def init_db(endpoint: str | None) -> None:
    """Create the tables that are missing, and upgrade those of an older package.

    Columns and indexes are added, with rows in the tables. Receipts and attempts of an
    older package become jobs: stop its processes first. Safe to repeat.
    """
    for each in endpoints_named(endpoint):
        database = each.store.database
        try:
            changes = database.upgrade()
        except Exception as error:
            reason = database.explain(error)
            raise click.ClickException(f"{each.name}: {reason}") from None
        click.echo(f"{each.name}: {_described(changes)}")


def _described(changes: Changes) -> str:
    done = [f"created {', '.join(changes.created)}"] if changes.created else []
    done += [f"added {each}" for each in changes.added]
    done += changes.others
    return "; ".join(done) or "all tables exist"
