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
from .calls import parts
from .calls import ScopeAPI
from .plan import compare
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

    def leaves(self, plan: ScopePlan) -> bool:
        """Whether the plan has a difference that these choices are to remove."""
        if plan.replaces:
            return not self.parallel
        surplus = plan.surplus or plan.surplus_hooks
        return bool(
            plan.creates or plan.changes or plan.missing or (self.prune and surplus)
        )

    def changes(self, plan: ScopePlan, desired: Desired) -> bool:
        """Whether the plan with these choices has a step."""
        has_value = desired.authorization is not None
        rotates = self.rotate and has_value and plan.hook is not None
        return plan.replaces or rotates or self.leaves(plan)


@dataclass(frozen=True)
class Step:
    """What was done, or what Procore refused."""

    text: str
    #: Why it was not done; ``None`` if it was.
    refused: str | None = None


def carry_out(
    calls: ScopeAPI, desired: Desired, plan: ScopePlan, choices: Choices
) -> Iterator[Step]:
    """Carry the plan out; yield each step after its call."""
    return _Apply(calls, desired, plan, choices).steps()


class _Apply:
    """The steps of one scope."""

    def __init__(
        self, calls: ScopeAPI, desired: Desired, plan: ScopePlan, choices: Choices
    ) -> None:
        self._calls = calls
        self._desired = desired
        self._plan = plan
        self._choices = choices
        value = desired.authorization
        self._headers = {"destination_headers": {"Authorization": value}}
        self._rotates = choices.rotate and value is not None

    def steps(self) -> Iterator[Step]:
        plan, namespace = self._plan, self._desired.namespace
        for hook in plan.surplus_hooks if self._choices.prune else ():
            yield self._delete(hook)
        if plan.creates:
            yield from self._create(namespace)
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
                yield from self._create(namespace)

    def _create(self, namespace: str) -> Iterator[Step]:
        desired, made = self._desired, list[Hook]()
        fields: dict[str, Any] = {
            "payload_version": desired.version,
            "namespace": namespace,
            "destination_url": desired.url,
        }
        if desired.authorization is not None:
            fields |= self._headers
        create = partial(self._calls.create, fields)
        yield _step(f"create a hook of {namespace!r}", lambda: made.append(create()))
        for hook in made:
            yield from self._add(hook)

    def _create_beside(self, hook: Hook) -> Iterator[Step]:
        """Create the second hook, or what it lacks; the first one stays."""
        desired = replace(self._desired, namespace=self._desired.parallel_namespace)
        if self._rotates:
            yield self._patch(hook, self._headers)
        try:
            plan = compare(self._calls, desired, self._plan.wanted)
        except APIError as error:
            yield Step(f"look for a hook of {desired.namespace!r}", refused=str(error))
            return
        choices = replace(self._choices, prune=False, parallel=False)
        yield from carry_out(self._calls, desired, plan, choices)

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
        return _step(what, partial(self._calls.change, hook, fields))

    def _add(self, hook: Hook) -> Iterator[Step]:
        for part in parts(self._plan.missing):
            what = f"create {_triggers(part)} of hook {hook.id}"
            yield from _bulk(what, partial(self._calls.add, hook, part))

    def _delete(self, hook: Hook) -> Step:
        what = f"delete hook {hook.id} of {hook.namespace!r}, {hook.version}"
        return _step(what, partial(self._calls.delete, hook))


def _triggers(part: Sequence[object]) -> str:
    return f"{len(part)} trigger{'s' * (len(part) != 1)}"


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
