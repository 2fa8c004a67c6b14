"""What the commands ``hooks …`` print, as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import click

from ..config.api import Scope
from ..hooks.calls import Hook
from ..hooks.plan import masked
from ..hooks.plan import ScopePlan
from ._output import on_one_line


def print_changes(action: str, steps: Sequence[dict[str, Any]]) -> None:
    """Print what has become of each hook."""
    done = {"delete": "deleted", "pause": "paused", "resume": "resumed"}[action]
    for step in steps:
        where = Scope(step["company"], step["project"])
        if "error" in step:
            click.secho(on_one_line(f"{where}: refused, {step['error']}"), fg="red")
        else:
            click.echo(f"{where}: {done} hook {step['hook']} of {step['namespace']!r}")


def print_plan(plan: ScopePlan) -> None:
    """Print the plan of a scope."""
    if plan.error:
        line = f"  {plan.scope}: could not look: {plan.error}"
        click.secho(on_one_line(line), fg="red")
        return
    click.echo(f"  {plan.scope}: {'differs' if plan.differs else 'same'}")
    for line in _lines(plan):
        click.echo(on_one_line(f"    {line}"))


def _lines(plan: ScopePlan) -> Iterator[str]:
    if plan.creates:
        yield "create a hook"
    if plan.replaces:
        yield "replace the hook"
    for name, (old, new) in plan.changes.items():
        yield f"change {name}: {old or 'none'} to {new or 'none'}"
    for pair in plan.missing:
        yield f"add trigger {pair}"
    for trigger in plan.surplus:
        yield f"surplus trigger {trigger}; --prune deletes it"
    for hook in plan.surplus_hooks:
        yield f"surplus hook {hook.id} of {hook.namespace!r}; --prune deletes it"
    for note in plan.notes:
        yield f"note: {note}"


def print_problems(problems: Sequence[str]) -> None:
    """Print the patterns that Procore has no trigger for."""
    for problem in problems:
        click.secho(on_one_line(f"  error: {problem}"), fg="red")


def print_notes(notes: Sequence[str]) -> None:
    """Print what to know of the subscriptions."""
    for note in notes:
        click.echo(on_one_line(f"  note: {note}"))


def print_after(plans: Sequence[ScopePlan], left: Sequence[ScopePlan]) -> None:
    """Print what Procore has after the changes, and the scopes where some are left."""
    click.echo("  at Procore now:")
    for each in plans:
        print_plan(each)
    for each in left:
        line = f"  {each.scope}: not everything was changed; run apply again"
        click.secho(line, fg="red")


def print_hook(row: dict[str, Any]) -> None:
    where = Scope(row["company"], row["project"])
    if "error" in row:
        click.secho(on_one_line(f"  {where}: {row['error']}"), fg="red")
        return
    what = (
        f"hook {row['hook']} of {row['namespace']!r}, {row['version']}, {row['status']}"
    )
    click.echo(on_one_line(f"  {where}: {what}, to {row['url']}"))
    click.echo(on_one_line(f"    {', '.join(row['triggers']) or 'no triggers'}"))


def scope_json(scope: Scope) -> dict[str, Any]:
    """The scope as JSON."""
    return {"company": scope.company, "project": scope.project}


def hook_json(hook: Hook) -> dict[str, Any]:
    """The hook as JSON, with the last characters of its Authorization value."""
    return {
        **scope_json(hook.scope),
        "hook": hook.id,
        "namespace": hook.namespace,
        "url": hook.url,
        "version": hook.version,
        "status": hook.status,
        "authorization": hook.authorization and masked(hook.authorization),
    }


def plan_json(plan: ScopePlan) -> dict[str, Any]:
    """The plan as JSON."""
    state = "differs" if plan.differs else "same"
    return {
        **scope_json(plan.scope),
        "state": "error" if plan.error else state,
        "hook": plan.hook and plan.hook.id,
        "creates": plan.creates,
        "replaces": plan.replaces,
        "changes": {
            name: {"from": a, "to": b} for name, (a, b) in plan.changes.items()
        },
        "missing": [*map(str, plan.missing)],
        "surplus": [*map(str, plan.surplus)],
        "surplus_hooks": [hook_json(each) for each in plan.surplus_hooks],
        "notes": plan.notes,
        "error": plan.error,
    }
