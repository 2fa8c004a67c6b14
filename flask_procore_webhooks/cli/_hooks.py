"""The work of the commands ``hooks …``, and of what they print."""

from __future__ import annotations

from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import replace
from typing import Any

import click

from ..api import APIError
from ..api.configured import api_of
from ..api.configured import PATIENCE
from ..config.api import Scope
from ..endpoint import Endpoint
from ..errors import ConfigError
from ..hooks.apply import carry_out
from ..hooks.apply import Choices
from ..hooks.apply import Step
from ..hooks.calls import ACTIVE
from ..hooks.calls import DISABLED
from ..hooks.calls import Hook
from ..hooks.calls import ScopeAPI
from ..hooks.plan import ScopePlan
from ..hooks.survey import shared_hooks
from ..hooks.survey import Survey
from ..senders.procore import PROCORE
from ._changes import confirm
from ._hook_texts import hook_json
from ._hook_texts import plan_json
from ._hook_texts import print_after
from ._hook_texts import print_changes
from ._hook_texts import print_hook
from ._hook_texts import print_notes
from ._hook_texts import print_plan
from ._hook_texts import print_problems
from ._hook_texts import scope_json
from ._options import endpoints_named
from ._output import on_one_line
from ._output import print_json
from ._preview import plural


@dataclass(frozen=True)
class Where:
    """The endpoints and scopes of a command."""

    endpoint: str | None
    company: str | None
    project: str | None

    def endpoints(self) -> list[Endpoint]:
        """Procore's endpoints that have an API configured; one that has none if all."""
        found = [e for e in endpoints_named(self.endpoint) if e.source is PROCORE]
        if not found:
            raise click.UsageError("Hooks are Procore's: name an --endpoint of it.")
        able = [each for each in found if each.settings.api.is_configured]
        return able or found[:1]

    def surveys(self) -> list[Survey]:
        """The surveys of the endpoints that have an API configured, and such scopes.

        :raises ConfigError: none has, or two ask for one hook.
        """
        endpoints = self.endpoints()
        found = [Survey(e, api_of(e, wait=PATIENCE), self._has) for e in endpoints]
        if not any(survey.scopes for survey in found):
            keys = ", ".join(f"{each.config_prefix}SCOPES" for each in endpoints)
            raise ConfigError([f"{keys} has no such company or project."])
        if problems := shared_hooks(found):
            raise ConfigError(problems)
        return [survey for survey in found if survey.scopes]

    def _has(self, scope: Scope) -> bool:
        return self.company in (None, scope.company) and (
            self.project in (None, scope.project)
        )


def show_plan(where: Where, as_json: bool) -> None:
    """Print the plan of every scope, and exit with its code."""
    found = [Found.of(survey) for survey in where.surveys()]
    if as_json:
        print_json({each.name: each.to_json() for each in found})
    else:
        for each in found:
            each.print()
    plans = [plan for each in found for plan in each.plans]
    if any(each.problems for each in found) or any(plan.error for plan in plans):
        raise SystemExit(1)
    if any(plan.differs for plan in plans):
        raise SystemExit(2)


def apply(where: Where, choices: Choices, yes: bool, as_json: bool) -> None:
    """Carry out the plans of every scope, and print what Procore has afterwards."""
    shown, failed = {}, False
    for survey in where.surveys():
        run = _Apply(survey, choices, as_json)
        run.ask(yes)
        shown[survey.endpoint.name] = run.perform()
        failed |= run.has_failed
    if as_json:
        print_json(shown)
    if failed:
        raise SystemExit(1)


@dataclass(frozen=True)
class Found:
    """What the survey of an endpoint has found."""

    name: str
    plans: list[ScopePlan]
    problems: list[str]
    notes: list[str]

    @classmethod
    def of(cls, survey: Survey) -> Found:
        """Look at every scope."""
        plans = [*survey.plans()]
        return cls(survey.endpoint.name, plans, survey.problems(), survey.notes())

    def print(self) -> None:
        """Print it as text."""
        click.secho(self.name, bold=True)
        for each in self.plans:
            print_plan(each)
        print_problems(self.problems)
        print_notes(self.notes)

    def to_json(self) -> dict[str, Any]:
        """It as JSON."""
        return {
            "scopes": [*map(plan_json, self.plans)],
            "problems": self.problems,
            "notes": self.notes,
        }


class _Apply:
    """The changes of one endpoint's hooks."""

    def __init__(self, survey: Survey, choices: Choices, as_json: bool) -> None:
        self._survey = survey
        self._found = Found.of(survey)
        self._as_json = as_json
        # What a misspelt pattern asks for would look like surplus.
        self._choices = replace(
            choices, prune=choices.prune and not self._found.problems
        )
        self._keeps_surplus = choices.prune and not self._choices.prune
        self.has_failed = False

    def ask(self, yes: bool) -> None:
        """Print the plans, and ask unless there is nothing to change."""
        desired = self._survey.desired
        if not self._as_json:
            self._found.print()
            if self._keeps_surplus:
                click.echo("  nothing is pruned, because of the errors")
        number = sum(self._choices.changes(each, desired) for each in self._found.plans)
        if number and not yes:
            question = f"Change {plural(number, 'scope')} at Procore?"
            confirm(question, as_json=self._as_json, look="hooks plan")

    def perform(self) -> dict[str, Any]:
        """Carry the plans out, and look again."""
        plans = self._found.plans
        steps: list[tuple[ScopePlan, Step]] = []
        for each in plans:
            calls = self._survey.calls(each.scope)
            if each.error is None:
                for step in carry_out(calls, self._survey.desired, each, self._choices):
                    self._print_step(each, step)
                    steps.append((each, step))
        changed = {plan.scope for plan, _ in steps}
        after = [
            self._survey.plan(each.scope) if each.scope in changed else each
            for each in plans
        ]
        left = [each for each in after if self._choices.leaves(each)]
        if not self._as_json:
            print_after(after, left)
        refused = any(step.refused for _, step in steps)
        errors = any(each.error for each in after)
        self.has_failed = bool(refused or errors or left or self._found.problems)
        return {
            "steps": [
                {**scope_json(plan.scope), **asdict(step)} for plan, step in steps
            ],
            "after": [*map(plan_json, after)],
            "problems": self._found.problems,
            "notes": self._found.notes,
        }

    def _print_step(self, plan: ScopePlan, step: Step) -> None:
        if self._as_json:
            return
        line = f"  {plan.scope}: {step.text}"
        if step.refused is None:
            click.echo(on_one_line(line))
        else:
            click.secho(on_one_line(f"{line}: refused, {step.refused}"), fg="red")


def list_hooks(where: Where, as_json: bool) -> None:
    """Print the hooks of all namespaces."""
    shown: dict[str, list[dict[str, Any]]] = {}
    failed = False
    for survey in where.surveys():
        rows = shown.setdefault(survey.endpoint.name, [])
        for scope in survey.scopes:
            calls = survey.calls(scope)
            try:
                for hook in calls.hooks(survey.desired.namespace):
                    triggers = sorted(map(str, calls.triggers(hook)))
                    rows.append({**hook_json(hook), "triggers": triggers})
            except APIError as error:
                failed = True
                rows.append({**scope_json(scope), "error": str(error)})
    if as_json:
        print_json(shown)
    else:
        for name, rows in shown.items():
            click.secho(name, bold=True)
            for row in rows:
                print_hook(row)
    if failed:
        raise SystemExit(1)


def change_hooks(
    where: Where, action: str, namespace: str | None, yes: bool, as_json: bool
) -> None:
    """Delete, pause or resume the hooks of a namespace."""
    found, steps = _hooks_of(where, namespace)
    if not as_json:
        print_changes(action, steps)
    if found and not yes:
        names = ", ".join(f"{hook.scope}" for _, hook in found)
        question = f"{action.capitalize()} {plural(len(found), 'hook')} ({names})?"
        confirm(question, as_json=as_json, look="hooks list")
    for calls, hook in found:
        step = _step(calls, hook, action)
        steps.append(step)
        if not as_json:
            print_changes(action, [step])
    if as_json:
        print_json(steps)
    elif not steps:
        click.echo("No hook of this namespace.")
    if any(step.get("error") for step in steps):
        raise SystemExit(1)


def _hooks_of(
    where: Where, namespace: str | None
) -> tuple[list[tuple[ScopeAPI, Hook]], list[dict[str, Any]]]:
    """The hooks of the namespace, and the scopes that cannot be read, as JSON."""
    found, failed = [], []
    for survey in where.surveys():
        wanted = namespace or survey.desired.namespace
        for scope in survey.scopes:
            calls = survey.calls(scope)
            try:
                hooks = calls.hooks(wanted)
            except APIError as error:
                failed.append({**scope_json(scope), "error": str(error)})
            else:
                found += [(calls, each) for each in hooks if each.namespace == wanted]
    return found, failed


def _step(calls: ScopeAPI, hook: Hook, action: str) -> dict[str, Any]:
    """Change the hook; return what it is then, as JSON."""
    try:
        if action == "delete":
            calls.delete(hook)
            return hook_json(hook)
        wanted = DISABLED if action == "pause" else ACTIVE
        changed = calls.change(hook, {"status": wanted})
    except APIError as error:
        return {**hook_json(hook), "error": str(error)}
    if changed.status == wanted:
        return hook_json(changed)
    error_text = f"Procore answers with the status {changed.status!r}."
    return {**hook_json(changed), "error": error_text}
