"""Plan: what Procore has for an endpoint, beside what the endpoint asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace

from ..config.api import LONGEST_NAMESPACE
from ..config.api import Scope
from ..senders.payload import normalize_reason
from .calls import ACTIVE
from .calls import Hook
from .calls import Pair
from .calls import ScopeAPI
from .calls import Trigger
from .wanted import ENDED
from .wanted import Wanted

#: How Procore shows an Authorization value: this and the last characters of it.
MASK, SHOWN = "*****", 5
#: Why an Authorization value is not compared.
NOT_SET = (
    "The hook sends an Authorization value, and AUTHORIZATION is not set: it is not"
    " compared."
)
NOT_COMPARED = (
    f"The Authorization value cannot be compared: Procore shows its last {SHOWN}"
    " characters, which are equal. --rotate writes it."
)


@dataclass(frozen=True)
class Desired:
    """The hook that an endpoint asks for in every one of its scopes."""

    url: str
    namespace: str
    version: str
    wanted: Wanted
    authorization: str | None = field(repr=False)

    @property
    def parallel_namespace(self) -> str:
        """The namespace of a second hook, beside one of another payload version."""
        version = self.version if "." in self.version else f"{self.version}.0"
        end = f"-{version.replace('.', '-')}"
        return self.namespace[: LONGEST_NAMESPACE - len(end)] + end


@dataclass
class ScopePlan:
    """The difference in one scope; ``differs`` is False if there is no difference."""

    scope: Scope
    #: The hook of our namespace, if there is one.
    hook: Hook | None = None
    #: Whether a hook is to be created.
    creates: bool = False
    #: Whether the hook has to be deleted and created again: its payload version.
    replaces: bool = False
    #: Fields to change: what the hook has, and what it is to have, as they are shown.
    changes: dict[str, tuple[str | None, str | None]] = field(default_factory=dict)
    #: Triggers to create; of :attr:`parallel` if that is the hook to go on with.
    missing: list[Pair] = field(default_factory=list)
    #: Triggers, and hooks of our namespace, that nothing asks for.
    surplus: list[Trigger] = field(default_factory=list)
    surplus_hooks: list[Hook] = field(default_factory=list)
    #: Every trigger that the hook is to have.
    wanted: list[Pair] = field(default_factory=list)
    #: What to know, one sentence each; no difference.
    notes: list[str] = field(default_factory=list)
    #: Why the hook's Authorization value is not compared, if so; no difference.
    authorization_note: str | None = None
    #: The plan of the hook of :attr:`Desired.parallel_namespace`, if the hook is to be
    #: replaced and there is one.
    parallel: ScopePlan | None = None
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

    @property
    def has_parallel(self) -> bool:
        """Whether a second hook has the payload version that is desired."""
        return self.parallel is not None and not self.parallel.replaces

    @property
    def carried(self) -> list[Pair]:
        """The triggers that nothing asks for, which a new hook lacks.

        Without those that Procore has ended.
        """
        beside = self.parallel.surplus if self.parallel and self.has_parallel else []
        there = {pair.key for pair in [*self.wanted, *beside]} | ENDED
        found = {
            each.key: Pair(each.resource, normalize_reason(each.action))
            for each in self.surplus
            if each.key not in there
        }
        return [*found.values()]


def compare(calls: ScopeAPI, desired: Desired, wanted: list[Pair]) -> ScopePlan:
    """Compare what Procore has in a scope with what is desired there.

    :param wanted: every trigger that the hook is to have.
    :raises APIError: Procore's side could not be read.
    """
    hooks = calls.hooks(desired.namespace)
    plan = _compare_hook(calls, desired, wanted, hooks)
    if plan.replaces:
        beside = replace(desired, namespace=desired.parallel_namespace)
        others = calls.hooks(beside.namespace)
        found = _compare_hook(calls, beside, wanted, others)
        plan.parallel = None if found.hook is None else found
        if plan.has_parallel:
            plan.missing = found.missing
        plan.notes.append(_gap(plan, desired))
    _note_others(plan, desired, hooks)
    return plan


def _compare_hook(
    calls: ScopeAPI, desired: Desired, wanted: list[Pair], hooks: Sequence[Hook]
) -> ScopePlan:
    plan = ScopePlan(calls.scope, wanted=wanted)
    mine = [each for each in hooks if each.namespace == desired.namespace]
    if not wanted:
        plan.surplus_hooks = mine
        return plan
    if not mine:
        plan.creates, plan.missing = True, wanted
        return plan
    plan.hook, *plan.surplus_hooks = mine
    _compare_triggers(plan, calls.triggers(plan.hook))
    if _same_version(plan.hook.version, desired.version):
        plan.changes = _changes(plan, desired, plan.hook)
    else:
        plan.replaces, plan.missing = True, wanted
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
    """The reason why the value is refused, or None."""
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
            plan.authorization_note = NOT_SET
        return None
    if theirs is None or not _may_be(theirs, ours):
        return theirs and masked(theirs), masked(ours)
    if theirs != ours:
        plan.authorization_note = NOT_COMPARED
    return None


def _may_be(shown: str, value: str) -> bool:
    """Whether the shown text fits the value."""
    if shown.startswith(MASK):
        return value.endswith(shown[len(MASK) :])
    return shown == value


def masked(value: str) -> str:
    """An Authorization value as it is shown: with its last characters only."""
    return MASK + value.removeprefix(MASK)[-SHOWN:] if len(value) > SHOWN else MASK


def _same_version(one: str, other: str) -> bool:
    """Whether both spellings are one version: Procore accepts ``v2`` for ``v2.0``."""
    return one.removesuffix(".0") == other.removesuffix(".0")


def _note_others(plan: ScopePlan, desired: Desired, hooks: Sequence[Hook]) -> None:
    """Note hooks of other namespaces that send to the same address."""
    for hook in hooks:
        if hook.namespace == desired.namespace or hook.url != desired.url:
            continue
        is_parallel = hook.namespace == desired.parallel_namespace
        if is_parallel and _same_version(hook.version, desired.version):
            if plan.has_parallel:
                continue  # the note of the version is about it
            if plan.creates:
                plan.notes.append(_only_parallel(hook))
                continue
        plan.notes.append(
            f"The hook of namespace {hook.namespace!r} ({hook.version}) sends to this"
            " address too: each event comes twice. Delete it with hooks delete"
            f" --namespace {hook.namespace}."
        )


def _only_parallel(hook: Hook) -> str:
    return (
        f"The hook of namespace {hook.namespace!r} ({hook.version}) is one of apply"
        " --parallel, and sends to this address: set NAMESPACE to it, and deploy. With"
        " a second hook, each event comes twice."
    )


def _gap(plan: ScopePlan, desired: Desired) -> str:
    """What becomes of a hook whose payload version is another one."""
    there = plan.hook.version if plan.hook else ""
    text = f"Payload version {there} is to be {desired.version}, which Procore does"
    name = desired.parallel_namespace
    if not plan.has_parallel:
        return (
            f"{text} not change: apply deletes the hook and creates it again. Events"
            " between, and those that the hook has queued, are lost. apply --parallel"
            f" creates a second hook instead, of namespace {name!r}."
        )
    first = ""
    if plan.parallel and (plan.parallel.changes or plan.parallel.missing):
        first = " The second one is not as it is to be: run apply --parallel first."
    return (
        f"{text} not change. The hook of namespace {name!r} has it, and each event"
        f" comes twice.{first} When it delivers, set NAMESPACE to {name!r}, deploy, and"
        f" delete the old hook with hooks delete --namespace {desired.namespace}."
    )
