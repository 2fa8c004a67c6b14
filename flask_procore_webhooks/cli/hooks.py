"""``hooks``: the app's hooks and triggers at Procore."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any
from typing import TYPE_CHECKING

import click
from flask.cli import with_appcontext

from ._changes import yes as yes_option
from ._options import as_json as as_json_option
from ._options import Command
from ._options import needs_extra
from ._options import one_endpoint

if TYPE_CHECKING:
    from ._hooks import Selection


@click.group("hooks", help="Manage the hooks that Procore sends this app's events by.")
def hooks() -> None:
    """The group; its help is above."""


def hook_command(name: str) -> Callable[[Callable[..., None]], click.Command]:
    """A command with the options of every command of the group."""

    def decorator(function: Callable[..., None]) -> click.Command:
        @wraps(function)
        def with_selection(
            endpoint: str | None, company: str | None, project: str | None, **rest: Any
        ) -> None:
            with needs_extra():
                from ._hooks import Selection
            function(Selection(endpoint, company, project), **rest)

        made: Any = with_appcontext(with_selection)
        for option in (as_json_option, _project, _company, one_endpoint):
            made = option(made)
        return hooks.command(name, cls=Command)(made)

    return decorator


_company = click.option("--company", metavar="ID", help="Only scopes of this company.")
_project = click.option("--project", metavar="ID", help="Only this project.")
_namespace = click.option(
    "--namespace",
    metavar="TEXT",
    help="By default the setting NAMESPACE.",
)


@hook_command("plan")
def plan(selection: Selection, as_json: bool) -> None:
    """Compare Procore's hooks with what the app subscribes to.

    The exit code is 0 if both are the same, 2 if they differ, and 1 if a scope could
    not be read or Procore has no such resource. It changes nothing.
    """
    from ._hooks import show_plan

    show_plan(selection, as_json)


@hook_command("apply")
@click.option("--prune", is_flag=True, help="Delete triggers and hooks not asked for.")
@click.option(
    "--rotate", is_flag=True, help="Write the current AUTHORIZATION to every hook."
)
@click.option(
    "--parallel",
    is_flag=True,
    help="For another payload version, create a second hook beside the first.",
)
@yes_option
def apply(selection: Selection, yes: bool, as_json: bool, **choices: bool) -> None:
    """Carry the plan out, and show what Procore has afterwards.

    The exit code is 1 if something was refused; the rest is done. It can be repeated.
    Deploy the subscribers before.
    """
    from ..hooks.apply import Choices
    from ._hooks import apply_plans

    apply_plans(selection, Choices(**choices), yes, as_json)


@hook_command("list")
def list_hooks(selection: Selection, as_json: bool) -> None:
    """List the hooks of every namespace in the app's scopes, with their triggers."""
    from ._hooks import show_hooks

    show_hooks(selection, as_json)


@hook_command("delete")
@_namespace
@yes_option
def delete(
    selection: Selection, namespace: str | None, yes: bool, as_json: bool
) -> None:
    """Delete the hooks of the namespace, with what they have queued."""
    from ._hooks import change_hooks

    change_hooks(selection, "delete", namespace, yes, as_json)


@hook_command("pause")
@_namespace
@yes_option
def pause(
    selection: Selection, namespace: str | None, yes: bool, as_json: bool
) -> None:
    """Disable the hooks: Procore sends nothing, and may drop what it has queued.

    To record events and run none, use the command pause instead.
    """
    from ._hooks import change_hooks

    change_hooks(selection, "pause", namespace, yes, as_json)


@hook_command("resume")
@_namespace
@yes_option
def resume(
    selection: Selection, namespace: str | None, yes: bool, as_json: bool
) -> None:
    """Enable the hooks again."""
    from ._hooks import change_hooks

    change_hooks(selection, "resume", namespace, yes, as_json)
