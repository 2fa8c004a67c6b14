"""Plan: what Procore has for an endpoint, beside what the endpoint asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field

from ..config.api import Scope
from .calls import ACTIVE
from .calls import Hook
from .calls import Pair
from .calls import ScopeAPI
from .calls import Trigger
from .wishes import Wishes

#: How Procore shows an Authorization value: this and the last characters of it.
MASK, SHOWN = "*****", 5


@dataclass(frozen=True)
class Desired:
    """The hook that an endpoint asks for in every one of its scopes."""

    url: str
    namespace: str
    version: str
    wishes: Wishes
    authorization: str | None = field(repr=False)

    @property
    def parallel_namespace(self) -> str:
        """The namespace of a second hook, beside one of another payload version."""
        return f"{self.namespace}-{self.version.replace('.', '-')}"


@dataclass
class ScopePlan:
    """The difference in one scope. Without any, both are the same."""

    scope: Scope
    #: The hook of our namespace, if there is one.
    hook: Hook | None = None
    #: Whether a hook is to be created.
    creates: bool = False
    #: Whether the hook has to be deleted and created again: its payload version.
    replaces: bool = False
    #: Fields to change: what the hook has, and what it is to have, as they are shown.
    changes: dict[str, tuple[str | None, str | None]] = field(default_factory=dict)
    #: Triggers to create.
    missing: list[Pair] = field(default_factory=list)
    #: Triggers, and hooks of our namespace, that nothing asks for.
    surplus: list[Trigger] = field(default_factory=list)
    surplus_hooks: list[Hook] = field(default_factory=list)
    #: Every trigger that the hook is to have.
    wanted: list[Pair] = field(default_factory=list)
    #: What to know, one sentence each; no difference.
    notes: list[str] = field(default_factory=list)
    #: Why Procore's side could not be read.
    error: str | None = None

    @property
    def differs(self) -> bool:
        return bool(
            self.creates
            or self.replaces
            or self.changes
            or self.missing
            or self.surplus
            or self.surplus_hooks
        )


def compare(calls: ScopeAPI, desired: Desired, wanted: list[Pair]) -> ScopePlan:
    """Compare what Procore has in a scope with what is desired there.

    :param wanted: every trigger that the hook is to have.
    :raises APIError: Procore's side could not be read.
    """
    plan = ScopePlan(calls.scope, wanted=wanted)
    hooks = calls.hooks(desired.namespace)
    mine = [each for each in hooks if each.namespace == desired.namespace]
    _note_others(plan, desired, [each for each in hooks if each not in mine])
    if not plan.wanted:
        plan.surplus_hooks = mine
        return plan
    if not mine:
        plan.creates, plan.missing = True, plan.wanted
        return plan
    plan.hook, *plan.surplus_hooks = mine
    if not _same_version(plan.hook.version, desired.version):
        plan.replaces, plan.missing = True, plan.wanted
        plan.notes.append(_gap(plan.hook, desired))
        return plan
    plan.changes = _changes(plan, desired, plan.hook)
    _compare_triggers(plan, calls.triggers(plan.hook))
    return plan


def _compare_triggers(plan: ScopePlan, triggers: Sequence[Trigger]) -> None:
    wanted = {pair.key for pair in plan.wanted}
    there: dict[tuple[str, str], Trigger] = {}
    for trigger in triggers:
        if trigger.key in wanted and trigger.key not in there:
            there[trigger.key] = trigger
        else:
            plan.surplus.append(trigger)
    plan.missing = [pair for pair in plan.wanted if pair.key not in there]


def authorization_problem(authorization: str | None) -> str | None:
    """Why the value cannot be written to hooks, if so."""
    if authorization is not None and len(authorization) <= SHOWN:
        return (
            f"has at most {SHOWN} characters, and Procore shows the last {SHOWN} of it:"
            " take a long random value."
        )
    return None


def _changes(
    plan: ScopePlan, desired: Desired, hook: Hook
) -> dict[str, tuple[str | None, str | None]]:
    found: dict[str, tuple[str | None, str | None]] = {}
    if hook.url != desired.url:
        found["destination_url"] = hook.url, desired.url
    if hook.status != ACTIVE:
        found["status"] = hook.status, ACTIVE
    if (difference := _authorization(plan, desired.authorization, hook)) is not None:
        found["authorization"] = difference
    return found


def _authorization(
    plan: ScopePlan, ours: str | None, hook: Hook
) -> tuple[str | None, str | None] | None:
    """The two values, masked, if they differ; the plan notes what is not compared."""
    theirs = hook.authorization
    if ours is None:
        if theirs is not None:
            plan.notes.append(
                "The hook sends an Authorization value, and AUTHORIZATION is not set:"
                " it is not compared."
            )
        return None
    if theirs is None or not _may_be(theirs, ours):
        return theirs and masked(theirs), masked(ours)
    if theirs != ours:
        plan.notes.append(
            "The Authorization value cannot be compared: Procore shows its last"
            f" {SHOWN} characters, which are equal. --rotate writes it."
        )
    return None


def _may_be(shown: str, value: str) -> bool:
    """Whether Procore may show the value so."""
    if shown.startswith(MASK):
        return value.endswith(shown[len(MASK) :])
    return shown == value


def masked(value: str) -> str:
    """An Authorization value as it is shown: with its last characters only."""
    return MASK + value.removeprefix(MASK)[-SHOWN:] if len(value) > SHOWN else MASK


def _same_version(one: str, other: str) -> bool:
    """Whether both spellings are one version: Procore accepts ``v2`` for ``v2.0``."""
    return one.removesuffix(".0") == other.removesuffix(".0")


def _note_others(plan: ScopePlan, desired: Desired, others: list[Hook]) -> None:
    for hook in others:
        if hook.url == desired.url:
            plan.notes.append(
                f"The hook of namespace {hook.namespace!r} ({hook.version}) sends to"
                " this address too: each event comes twice. Delete it with hooks"
                f" delete --namespace {hook.namespace}."
            )


def _gap(hook: Hook, desired: Desired) -> str:
    return (
        f"Payload version {hook.version} is to be {desired.version}, which Procore does"
        " not change: apply deletes the hook and creates it again. Events between, and"
        " those that the hook has queued, are lost. apply --parallel creates a second"
        f" hook instead, of namespace {desired.parallel_namespace!r}."
    )
