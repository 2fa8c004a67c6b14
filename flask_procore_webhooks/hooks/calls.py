"""Hooks at Procore: hooks, triggers, resources and deliveries of one scope.

Procore's API of webhooks, version 2.0:
https://developers.procore.com/reference/rest/webhooks
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from typing import Any
from typing import TypeVar

from ..api.answers import item_of
from ..api.answers import items_of
from ..api.answers import NotDocumented
from ..api.client import ProcoreAPI
from ..api.errors import APIError
from ..api.transport import reading
from ..config.api import Scope
from ..senders.payload import normalize_reason
from ..senders.payload import text_id

#: Triggers of one bulk call. Procore's limit of version 1.0 is 500.
BULK = 100
ID = re.compile(r"[0-9A-Za-z_-]+", re.ASCII)
ACTIVE, DISABLED = "active", "disabled"

T = TypeVar("T")


@dataclass(frozen=True)
class Pair:
    """A resource and an action, which a trigger asks for."""

    resource: str
    #: As Procore lists it in ``actions`` of the resource, or shows it in a trigger.
    action: str

    @property
    def key(self) -> tuple[str, str]:
        """What is compared: Procore shows ``UPDATE`` for ``update``."""
        return self.resource.casefold(), normalize_reason(self.action)

    def __str__(self) -> str:
        return f"{self.resource}.{normalize_reason(self.action)}"


@dataclass(frozen=True)
class Trigger(Pair):
    """A trigger of a hook."""

    id: str = ""


@dataclass(frozen=True)
class Hook:
    """A hook as Procore has it."""

    id: str
    scope: Scope
    namespace: str
    url: str
    version: str
    status: str
    #: As Procore shows it: ``*****`` and the last five characters; ``None`` without.
    authorization: str | None = field(repr=False)


@dataclass(frozen=True)
class Resource:
    """A resource whose changes a hook of the scope can send."""

    name: str
    actions: tuple[str, ...]

    def is_named(self, name: str) -> bool:
        """Whether that is its name, whatever the case."""
        return self.name.casefold() == name.casefold()


class ScopeAPI:
    """The calls on the hooks of one scope."""

    def __init__(self, api: ProcoreAPI, scope: Scope) -> None:
        self.scope = scope
        self._api = api
        place = f"/companies/{scope.company}"
        if scope.project is not None:
            place += f"/projects/{scope.project}"
        self._root = f"/rest/v2.0{place}/webhooks"

    def hooks(self, namespace: str) -> list[Hook]:
        """The hooks of every namespace, or of this namespace if Procore requires it.

        Procore may require the filter for the hooks of a company.
        """
        try:
            return self._hooks({})
        except APIError as error:
            if error.status != 400:
                raise
        return self._hooks({"namespace": namespace})

    def create(self, fields: Mapping[str, Any]) -> Hook:
        """Create a hook."""
        return self._hook("POST", "/hooks", fields)

    def change(self, hook: Hook, fields: Mapping[str, Any]) -> Hook:
        """Change fields of a hook; the others stay."""
        return self._hook("PATCH", f"/hooks/{hook.id}", fields)

    def delete(self, hook: Hook) -> None:
        """Delete a hook with its triggers and what it has queued."""
        self._call("DELETE", f"/hooks/{hook.id}")

    def triggers(self, hook: Hook) -> list[Trigger]:
        """The triggers of a hook."""
        path = f"/hooks/{hook.id}/triggers"
        return [self._trigger(path, each) for each in self._list(path)]

    def add(self, hook: Hook, pairs: Sequence[Pair]) -> list[str]:
        """Create at most ``BULK`` triggers; return what Procore refused."""
        body = [
            {"resource_name": each.resource, "event_type": each.action}
            for each in pairs
        ]
        return self._bulk("POST", hook, body)

    def remove(self, hook: Hook, triggers: Sequence[Trigger]) -> list[str]:
        """Delete at most ``BULK`` triggers; return what Procore refused."""
        return self._bulk("DELETE", hook, [each.id for each in triggers])

    def resources(self, version: str) -> list[Resource]:
        """The resources whose changes hooks of this scope can send."""
        path = "/resources"
        listed = self._list(path, {"payload_version": version})
        return [self._resource(path, each) for each in listed]

    def deliveries(self, hook: Hook, day: str, until: str) -> Iterator[list[Any]]:
        """The pages of the deliveries of some days, each page when it was read.

        :param day: the first day, as ``2026-11-26``.
        :param until: the last day.
        """
        # Without a status: rows change theirs, and a page of such a list skips some.
        given = {"filter[start]": day, "filter[end]": until}
        path = f"{self._root}/hooks/{hook.id}/deliveries"
        return self._api.whole_pages(path, given, company_id=self.scope.company)

    def _hooks(self, params: Mapping[str, Any]) -> list[Hook]:
        return [
            self._read_hook("GET", "/hooks", e) for e in self._list("/hooks", params)
        ]

    def _list(
        self, path: str, params: Mapping[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        company = self.scope.company
        return [*self._api.pages(self._root + path, params, company_id=company)]

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        return self._api.request(
            method, self._root + path, json=body, company_id=self.scope.company
        )

    def _hook(self, method: str, path: str, fields: Mapping[str, Any]) -> Hook:
        answer = self._call(method, path, dict(fields))
        return self._read_hook(method, path, answer.value)

    def _bulk(self, method: str, hook: Hook, body: Sequence[Any]) -> list[str]:
        path = f"/hooks/{hook.id}/triggers/bulk"
        answer = self._call(method, path, body)
        if answer.status != 207:
            return []
        with reading(method, self._root + path, answer.status):
            return [*map(self._api.shown, _refused(answer.value))]

    def _read_hook(self, method: str, path: str, value: Any) -> Hook:
        with reading(method, self._root + path, 200):
            value = item_of(value)
            headers = value.get("destination_headers")
            shown = headers.get("Authorization") if isinstance(headers, dict) else None
            return Hook(
                _id(value),
                self.scope,
                _shown(value, "namespace"),
                _shown(value, "destination_url"),
                _shown(value, "payload_version"),
                str(value.get("status") or ACTIVE).lower(),
                shown if isinstance(shown, str) and shown else None,
            )

    def _trigger(self, path: str, value: Any) -> Trigger:
        with reading("GET", self._root + path, 200):
            return Trigger(
                _text(value, "resource_name"), _text(value, "event_type"), _id(value)
            )

    def _resource(self, path: str, value: Any) -> Resource:
        with reading("GET", self._root + path, 200):
            actions = value.get("actions")
            if not isinstance(actions, list):
                raise NotDocumented("a resource has no list of actions")
            return Resource(_text(value, "name"), tuple(map(str, actions)))


def _refused(value: Any) -> Iterator[str]:
    """What a 207 says was refused: of triggers that were created, or deleted."""
    if isinstance(value, dict) and isinstance(value.get("data"), dict):
        failed = value["data"].get("failed") or []
        if not isinstance(failed, list):
            raise NotDocumented("the answer has no list of what has failed")
        yield from (f"trigger {each}" for each in failed)
        return
    for each in items_of(value):
        if not each.get("id"):
            trigger = each.get("trigger")
            named = trigger if isinstance(trigger, dict) else each
            what = [named.get("resource_name"), named.get("event_type")]
            why = each.get("message") or each.get("errors") or each.get("error")
            yield f"{'.'.join(str(e) for e in what if e)}: {why}"


def parts(values: Sequence[T]) -> Iterable[Sequence[T]]:
    """The values in parts, each for one bulk call."""
    return (values[start : start + BULK] for start in range(0, len(values), BULK))


def _id(value: Mapping[str, Any]) -> str:
    found = text_id(value.get("id"))
    # It becomes a part of paths.
    if found is None or not ID.fullmatch(found):
        raise NotDocumented("an object has no id")
    return found


def _shown(value: Mapping[str, Any], key: str) -> str:
    """A text of a hook; ``""`` where another integration's hook has none."""
    found = value.get(key)
    return found if isinstance(found, str) else ""


def _text(value: Mapping[str, Any], key: str) -> str:
    found = value.get(key)
    if not isinstance(found, str):
        raise NotDocumented(f"an object has no {key}")
    return found
