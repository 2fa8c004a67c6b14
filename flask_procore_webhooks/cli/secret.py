"""``secret``: make a new secret."""

from __future__ import annotations

import secrets

import click

from ._options import command


@command()
def secret() -> None:
    """Print a new secret: 32 random bytes as URL-safe text."""
    click.echo(secrets.token_urlsafe(32))
