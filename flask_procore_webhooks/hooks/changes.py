"""Changes of hooks without a plan: delete, pause and resume those of a namespace."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
from dataclasses import dataclass

from ..api.errors import APIError
from ..config.api import Scope
from .apply import Step
from .calls import ACTIVE
from .calls import DISABLED
from .calls import Hook
from .calls import ScopeAPI
from .survey import Survey

DELETE, PAUSE, RESUME = "delete", "pause", "resume"


@dataclass(frozen=True)
class Target:
    """A hook to change."""

    #: The name of the endpoint.
    endpoint: str
    calls: ScopeAPI
    hook: Hook


@dataclass(frozen=True)
class Unread:
    """A scope whose hooks could not be read."""

    #: The name of the endpoint.
    endpoint: str
    scope: Scope
    error: str


def targets_of(
    surveys: Iterable[Survey], namespace: str | None
) -> tuple[list[Target], list[Unread]]:
    """The hooks of the namespace, each once, and the scopes that cannot be read.

    :param namespace: by default that of each endpoint.
    """
    found: dict[tuple[str, Scope, str], Target] = {}
    unread = []
    for survey in surveys:
        name, wanted = survey.endpoint.name, namespace or survey.desired.namespace
        for scope in survey.scopes:
            calls = survey.calls(scope)
            try:
                hooks = calls.hooks(wanted)
            except APIError as error:
                unread.append(Unread(name, scope, str(error)))
                continue
            for hook in hooks:
                if hook.namespace == wanted:
                    key = survey.endpoint.settings.api.api_url, scope, hook.id
                    found.setdefault(key, Target(name, calls, hook))
    return [*found.values()], unread


def change(targets: Iterable[Target], action: str) -> Iterator[tuple[Target, Step]]:
    """Delete, pause or resume the hooks; yield each step after its call."""
    for each in targets:
        yield each, _step(each.calls, each.hook, action)


def _step(calls: ScopeAPI, hook: Hook, action: str) -> Step:
    text = f"{action} hook {hook.id} of {hook.namespace!r}"
    try:
        if action == DELETE:
            calls.delete(hook)
            return Step(text, hook=hook)
        wanted = DISABLED if action == PAUSE else ACTIVE
        changed = calls.change(hook, {"status": wanted})
    except APIError as error:
        return Step(text, str(error), hook=hook)
    if changed.status == wanted:
        return Step(text, hook=changed)
    refused = f"Procore answers with the status {changed.status!r}."
    return Step(text, refused, hook=changed)
