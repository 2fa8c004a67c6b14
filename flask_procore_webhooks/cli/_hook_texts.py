"""What the commands ``hooks …`` print, as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import click

from ..config.api import Scope
from ..hooks.apply import Choices
from ..hooks.apply import Step
from ..hooks.calls import Hook
from ..hooks.plan import masked
from ..hooks.plan import ScopePlan
from ._output import on_one_line


def print_change(action: str, row: dict[str, Any]) -> None:
    """Print the result for a hook, or for a scope that could not be read."""
    done = {"delete": "deleted", "pause": "paused", "resume": "resumed"}[action]
    where = Scope(row["company"], row["project"])
    if "error" in row:
        click.secho(on_one_line(f"{where}: refused, {row['error']}"), fg="red")
    else:
        click.echo(f"{where}: {done} hook {row['hook']} of {row['namespace']!r}")


def print_plans(plans: Sequence[ScopePlan], keeps_surplus: str | None) -> None:
    """Print the plans of an endpoint, and once what is the same in each.

    :param keeps_surplus: why ``--prune`` deletes nothing, if so.
    """
    for plan in plans:
        _print_plan(plan, keeps_surplus is None)
    if keeps_surplus and any(plan.surplus or plan.surplus_hooks for plan in plans):
        click.echo(f"  --prune deletes nothing, because {keeps_surplus}")
    found = [plan.authorization_note for plan in plans if plan.authorization_note]
    print_notes([*dict.fromkeys(found)])


def _print_plan(plan: ScopePlan, prunes: bool) -> None:
    if plan.error:
        line = f"  {plan.scope}: could not look: {plan.error}"
        click.secho(on_one_line(line), fg="red")
        return
    click.echo(f"  {plan.scope}: {'differs' if plan.differs else 'same'}")
    for line in _lines(plan, prunes):
        click.echo(on_one_line(f"    {line}"))


def _lines(plan: ScopePlan, prunes: bool) -> Iterator[str]:
    if plan.creates:
        yield "create a hook"
    if plan.replaces:
        second = plan.parallel.hook if plan.parallel and plan.has_parallel else None
        beside = (
            f"; beside it is hook {second.id} of {second.namespace!r}" if second else ""
        )
        yield f"replace the hook{beside}"
    for name, (old, new) in plan.changes.items():
        yield f"change {name}: {old or 'none'} to {new or 'none'}"
    for pair in plan.missing:
        yield f"add trigger {pair}"
    more = "; --prune deletes it" if prunes else ""
    for trigger in plan.surplus:
        yield f"surplus trigger {trigger}{more}"
    for hook in plan.surplus_hooks:
        yield f"surplus hook {hook.id} of {hook.namespace!r}{more}"
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


def print_step(scope: Scope, step: Step) -> None:
    """Print what was done, or why not."""
    line = f"  {scope}: {step.text}"
    if step.refused is None:
        click.echo(on_one_line(line))
    else:
        click.secho(on_one_line(f"{line}: refused, {step.refused}"), fg="red")


def print_left(plans: Sequence[ScopePlan], choices: Choices) -> None:
    """Print the scopes where differences are left, and what to do."""
    for each in plans:
        click.secho(f"  {each.scope}: {_left_text(each, choices)}", fg="red")


def _left_text(plan: ScopePlan, choices: Choices) -> str:
    if plan.parallel and plan.parallel.hook and choices.keeps_both(plan):
        text = "set NAMESPACE to it, deploy, and delete the old hook"
        if Choices(parallel=True).is_unfinished(plan):
            text = "run apply --parallel first"
        name = plan.parallel.hook.namespace
        return f"nothing was changed beside the hook of {name!r}: {text}"
    if not choices.is_unfinished(plan):
        return "what looks like surplus was kept"
    return "not everything was changed; run apply again"


def print_hook(row: dict[str, Any]) -> None:
    """Print a hook with its triggers, or why a scope could not be read."""
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
        "parallel": plan.parallel and plan.parallel.hook and plan.parallel.hook.id,
        "changes": {
            name: {"from": a, "to": b} for name, (a, b) in plan.changes.items()
        },
        "missing": [*map(str, plan.missing)],
        "surplus": [*map(str, plan.surplus)],
        "surplus_hooks": [hook_json(each) for each in plan.surplus_hooks],
        "notes": [*plan.notes, *filter(None, [plan.authorization_note])],
        "error": plan.error,
    }
