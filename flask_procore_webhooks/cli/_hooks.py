"""The work of the commands ``hooks …``, and of what they print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace
from typing import Any

import click

from ..api import APIError
from ..api.configured import api_of
from ..api.configured import PATIENCE
from ..config.api import Scope
from ..errors import ConfigError
from ..hooks.apply import carry_out
from ..hooks.apply import Choices
from ..hooks.apply import Step
from ..hooks.changes import change
from ..hooks.changes import Target
from ..hooks.changes import targets_of
from ..hooks.plan import ScopePlan
from ..hooks.survey import shared_hooks
from ..hooks.survey import Survey
from ._changes import confirm
from ._hook_texts import hook_json
from ._hook_texts import plan_json
from ._hook_texts import print_change
from ._hook_texts import print_hook
from ._hook_texts import print_left
from ._hook_texts import print_notes
from ._hook_texts import print_plans
from ._hook_texts import print_problems
from ._hook_texts import print_step
from ._hook_texts import scope_json
from ._options import procore_endpoints
from ._output import print_json
from ._preview import plural


@dataclass(frozen=True)
class Selection:
    """The endpoints and scopes of a command."""

    endpoint: str | None
    company: str | None
    project: str | None

    def surveys(self) -> list[Survey]:
        """The surveys of the endpoints that have an API configured, and such scopes.

        :raises ConfigError: none has, or two ask for one hook.
        """
        endpoints = procore_endpoints(self.endpoint)
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


def show_plan(selection: Selection, as_json: bool) -> None:
    """Print the plan of every scope, and exit with its code."""
    found = [Found.of(survey) for survey in selection.surveys()]
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


def apply_plans(
    selection: Selection, choices: Choices, yes: bool, as_json: bool
) -> None:
    """Carry out the plans of every scope, and print what Procore has afterwards."""
    shown, failed = {}, False
    for survey in selection.surveys():
        run = _EndpointRun(survey, choices, as_json)
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
    #: Why ``--prune`` deletes nothing, if so.
    keeps_surplus: str | None

    @classmethod
    def of(cls, survey: Survey) -> Found:
        """Look at every scope."""
        plans, problems = [*survey.plans()], survey.problems()
        kept = survey.keeps_surplus(problems)
        return cls(survey.endpoint.name, plans, problems, survey.notes(), kept)

    def print(self) -> None:
        """Print it as text."""
        click.secho(self.name, bold=True)
        print_problems(self.problems)
        print_plans(self.plans, self.keeps_surplus)
        print_notes(self.notes)

    def to_json(self) -> dict[str, Any]:
        """The survey as JSON."""
        return {
            "scopes": [*map(plan_json, self.plans)],
            "problems": self.problems,
            "notes": self.notes,
            "keeps_surplus": self.keeps_surplus,
        }


class _EndpointRun:
    """One run of ``hooks apply`` for the hooks of one endpoint."""

    def __init__(self, survey: Survey, choices: Choices, as_json: bool) -> None:
        self._survey = survey
        self._found = Found.of(survey)
        self._as_json = as_json
        self._asked = choices
        prunes = choices.prune and self._found.keeps_surplus is None
        self._choices = replace(choices, prune=prunes)
        self.has_failed = False

    def ask(self, yes: bool) -> None:
        """Print the plans, and ask unless there is nothing to change."""
        desired, plans = self._survey.desired, self._found.plans
        if not self._as_json:
            self._found.print()
        number = sum(self._choices.has_changes(each, desired) for each in plans)
        if number and not yes:
            question = f"Change {plural(number, 'scope')} at Procore?"
            confirm(question, as_json=self._as_json, look="hooks plan")

    def perform(self) -> dict[str, Any]:
        """Carry the plans out, and look again."""
        found, steps = self._found, self._carry_out()
        after = self._look_again(steps)
        # With what the command was told: also what --prune was not allowed to delete.
        left = [each for each in after if self._asked.is_unfinished(each)]
        if not self._as_json:
            click.echo("  at Procore now:")
            print_plans(after, found.keeps_surplus)
            print_left(left, self._choices)
        refused = any(step.refused for _, step in steps)
        errors = any(each.error for each in after)
        self.has_failed = bool(refused or errors or left or found.problems)
        return {
            "steps": [_step_json(plan.scope, step) for plan, step in steps],
            "after": [*map(plan_json, after)],
            "problems": found.problems,
            "notes": found.notes,
            "keeps_surplus": found.keeps_surplus,
        }

    def _carry_out(self) -> list[tuple[ScopePlan, Step]]:
        steps = []
        for each in self._found.plans:
            calls = self._survey.calls(each.scope)
            if each.error is None:
                for step in carry_out(calls, self._survey.desired, each, self._choices):
                    if not self._as_json:
                        print_step(each.scope, step)
                    steps.append((each, step))
        return steps

    def _look_again(self, steps: Sequence[tuple[ScopePlan, Step]]) -> list[ScopePlan]:
        """What Procore has where something was changed."""
        changed = {plan.scope for plan, _ in steps}
        after = [
            self._survey.plan(each.scope) if each.scope in changed else each
            for each in self._found.plans
        ]
        written = {
            plan.scope
            for plan, step in steps
            if step.writes_authorization and step.refused is None
        }
        for each in after:
            if each.scope in written:
                each.authorization_note = None
        return after


def _step_json(scope: Scope, step: Step) -> dict[str, Any]:
    return {**scope_json(scope), "text": step.text, "refused": step.refused}


def show_hooks(selection: Selection, as_json: bool) -> None:
    """Print the hooks of all namespaces."""
    shown: dict[str, list[dict[str, Any]]] = {}
    failed = False
    for survey in selection.surveys():
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
    selection: Selection,
    action: str,
    namespace: str | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Delete, pause or resume the hooks of a namespace."""
    surveys = selection.surveys()
    targets, unread = targets_of(surveys, namespace)
    rows: dict[str, list[dict[str, Any]]] = {s.endpoint.name: [] for s in surveys}
    for each in unread:
        rows[each.endpoint].append({**scope_json(each.scope), "error": each.error})
        if not as_json:
            print_change(action, rows[each.endpoint][-1])
    if targets and not yes:
        names = ", ".join(f"{each.hook.scope}" for each in targets)
        question = f"{action.capitalize()} {plural(len(targets), 'hook')} ({names})?"
        confirm(question, as_json=as_json, look="hooks list")
    for target, step in change(targets, action):
        rows[target.endpoint].append(_change_json(target, step))
        if not as_json:
            print_change(action, rows[target.endpoint][-1])
    every = [row for found in rows.values() for row in found]
    if as_json:
        print_json(rows)
    elif not every:
        click.echo("No hook of this namespace.")
    if any("error" in row for row in every):
        raise SystemExit(1)


def _change_json(target: Target, step: Step) -> dict[str, Any]:
    """The hook as it is then, and why it was not changed."""
    shown = hook_json(step.hook or target.hook)
    return shown if step.refused is None else {**shown, "error": step.refused}
