"""``flask procore-webhooks …``: one command a file, for every endpoint of the app."""

from __future__ import annotations

import sys
from importlib import import_module

import click
from flask.cli import AppGroup

from ..serving import flask_command

#: Where each command is: its module, and its name there.
COMMANDS = {
    "init-db": ("init_db", "init_db"),
    "check": ("check", "check"),
    "trigger": ("trigger", "trigger"),
    "verify": ("verify", "verify_request"),
    "list": ("list", "list_events"),
    "show": ("show", "show"),
    "errors": ("errors", "show_errors"),
    "stats": ("stats", "stats"),
    "worker": ("worker", "worker"),
    "replay": ("replay", "replay_events"),
    "progress": ("progress", "show_progress"),
    "discard": ("discard", "discard_events"),
    "prune": ("prune", "prune"),
    "pause": ("pause", "pause_events"),
    "resume": ("pause", "resume_events"),
    "journal": ("journal", "show_journal"),
    "secret": ("secret", "secret"),
    "hooks": ("hooks", "hooks"),
    "reconcile": ("reconcile", "reconcile"),
}


def prints_json() -> bool:
    """Whether the process runs a command of an app that prints JSON and nothing else.

    For the registration, which runs before the command and its options are known.
    """
    return flask_command() is not None and "--json" in sys.argv


class WebhooksGroup(AppGroup):
    """A group that imports each command of the package when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *COMMANDS})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = super().get_command(ctx, cmd_name)
        if found is not None or cmd_name not in COMMANDS:
            return found
        module, name = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(f".{module}", __name__), name)
        return command
