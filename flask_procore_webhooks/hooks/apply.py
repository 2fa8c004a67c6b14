"""Apply: carry a plan out at Procore, one scope at a time. It can be repeated.

Each step is one call. A step that Procore refuses is reported, and the others are done.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace
from functools import partial
from typing import Any

from ..api.errors import APIError
from .calls import ACTIVE
from .calls import Hook
from .calls import Pair
from .calls import parts
from .calls import ScopeAPI
from .plan import Desired
from .plan import ScopePlan


@dataclass(frozen=True)
class Choices:
    """What the operator has allowed."""

    #: Delete triggers and hooks that nothing asks for.
    prune: bool = False
    #: Write the current Authorization value to every hook.
    rotate: bool = False
    #: For another payload version, create a second hook and keep the first.
    parallel: bool = False

    def is_unfinished(self, plan: ScopePlan) -> bool:
        """Whether the plan has a difference that these choices remove."""
        if plan.replaces:
            if not self.parallel or plan.parallel is None or not plan.has_parallel:
                return True
            return replace(self, prune=False).is_unfinished(plan.parallel)
        surplus = plan.surplus or plan.surplus_hooks
        return bool(
            plan.creates or plan.changes or plan.missing or (self.prune and surplus)
        )

    def has_changes(self, plan: ScopePlan, desired: Desired) -> bool:
        """Whether these choices change something in this plan."""
        if self.keeps_both(plan):
            return False
        has_value = desired.authorization is not None
        rotates = self.rotate and has_value and plan.hook is not None
        carries = plan.replaces and not self.prune and bool(plan.carried)
        return rotates or carries or self.is_unfinished(plan)

    def keeps_both(self, plan: ScopePlan) -> bool:
        """Whether a second hook keeps the first one from being replaced."""
        return plan.has_parallel and not self.parallel


@dataclass(frozen=True)
class Step:
    """What was done, or what Procore refused."""

    text: str
    #: Why it was not done; ``None`` if it was.
    refused: str | None = None
    #: Whether it writes the Authorization value.
    writes_authorization: bool = False
    #: The hook as Procore has it then, of a step that changes one field of it.
    hook: Hook | None = None


def carry_out(
    calls: ScopeAPI, desired: Desired, plan: ScopePlan, choices: Choices
) -> Iterator[Step]:
    """Carry the plan out; yield each step after its call."""
    return _Apply(calls, desired, plan, choices).steps()


class _Apply:
    """The steps of one scope."""

    def __init__(
        self,
        calls: ScopeAPI,
        desired: Desired,
        plan: ScopePlan,
        choices: Choices,
        carried: Sequence[Pair] = (),
    ) -> None:
        self._calls = calls
        self._desired = desired
        self._plan = plan
        self._choices = choices
        #: Surplus triggers of another hook that the hook is to have as well.
        self._carried = carried
        value = desired.authorization
        self._headers = {"destination_headers": {"Authorization": value}}
        self._rotates = choices.rotate and value is not None

    def steps(self) -> Iterator[Step]:
        plan = self._plan
        if self._choices.keeps_both(plan):
            return
        for hook in plan.surplus_hooks if self._choices.prune else ():
            yield self._delete(hook)
        if plan.creates:
            yield from self._create()
        elif plan.hook is None:
            return
        elif not plan.replaces:
            yield from self._change(plan.hook)
        elif self._choices.parallel:
            yield from self._create_beside(plan.hook)
        else:
            deleted = self._delete(plan.hook)
            yield deleted
            if deleted.refused is None:
                self._carried = self._carries()
                yield from self._create()

    def _carries(self) -> Sequence[Pair]:
        """What is surplus, and stays so in a new hook."""
        return () if self._choices.prune else self._plan.carried

    def _create(self) -> Iterator[Step]:
        desired, made = self._desired, list[Hook]()
        fields: dict[str, Any] = {
            "payload_version": desired.version,
            "namespace": desired.namespace,
            "destination_url": desired.url,
        }
        has_value = desired.authorization is not None
        if has_value:
            fields |= self._headers
        create = partial(self._calls.create, fields)
        step = _step(
            f"create a hook of {desired.namespace!r}", lambda: made.append(create())
        )
        yield replace(step, writes_authorization=has_value)
        for hook in made:
            yield from self._add(hook)
        if self._carried and not made:
            # The next run finds no hook that has them.
            refused = "The hook was not created: name them in hooks_for=."
            yield Step(f"create {_named(self._carried)}", refused)

    def _create_beside(self, hook: Hook) -> Iterator[Step]:
        """Create the second hook, or what it lacks; the first one stays."""
        plan, namespace = self._plan, self._desired.parallel_namespace
        if self._rotates:
            yield self._patch(hook, self._headers)
        beside = plan.parallel or ScopePlan(plan.scope, creates=True)
        if beside.hook is not None and beside.replaces:
            version = beside.hook.version
            yield Step(
                f"create a hook of {namespace!r}",
                f"The namespace has a hook of payload version {version}: delete it with"
                f" hooks delete --namespace {namespace}.",
            )
            return
        if beside.creates:
            beside.missing = beside.wanted = plan.wanted
        desired = replace(self._desired, namespace=namespace)
        choices = replace(self._choices, prune=False, parallel=False)
        second = _Apply(self._calls, desired, beside, choices, self._carries())
        yield from second.steps()

    def _change(self, hook: Hook) -> Iterator[Step]:
        plan, fields = self._plan, dict[str, Any]()
        if "destination_url" in plan.changes:
            fields["destination_url"] = self._desired.url
        if "status" in plan.changes:
            fields["status"] = ACTIVE
        if "authorization" in plan.changes or self._rotates:
            fields |= self._headers
        if fields:
            yield self._patch(hook, fields)
        yield from self._add(hook)
        for part in parts(plan.surplus) if self._choices.prune else ():
            what = f"delete {_triggers(part)} of hook {hook.id}"
            yield from _bulk(what, partial(self._calls.remove, hook, part))

    def _patch(self, hook: Hook, fields: dict[str, Any]) -> Step:
        what = f"change {', '.join(fields)} of hook {hook.id}"
        step = _step(what, partial(self._calls.change, hook, fields))
        return replace(step, writes_authorization=self._headers.keys() <= fields.keys())

    def _add(self, hook: Hook) -> Iterator[Step]:
        for part in parts(self._plan.missing):
            what = f"create {_triggers(part)} of hook {hook.id}"
            yield from _bulk(what, partial(self._calls.add, hook, part))
        # Apart: Procore may refuse those of an older payload version.
        for part in parts(self._carried):
            what = f"create {_named(part)} of hook {hook.id}"
            yield from _bulk(what, partial(self._calls.add, hook, part))

    def _delete(self, hook: Hook) -> Step:
        what = f"delete hook {hook.id} of {hook.namespace!r}, {hook.version}"
        return _step(what, partial(self._calls.delete, hook))


def _triggers(part: Sequence[object]) -> str:
    return f"{len(part)} trigger{'s' * (len(part) != 1)}"


def _named(surplus: Sequence[Pair]) -> str:
    plural = "s" * (len(surplus) != 1)
    return f"surplus trigger{plural} {', '.join(map(str, surplus))}"


def _bulk(what: str, call: Callable[[], list[str]]) -> Iterator[Step]:
    refused: list[str] = []
    yield _step(what, lambda: refused.extend(call()))
    for text in refused:
        yield Step(what, refused=text)


def _step(text: str, call: Callable[[], object]) -> Step:
    try:
        call()
    except APIError as error:
        return Step(text, refused=str(error))
    return Step(text)
