"""The webhooks API v2.0: hooks and triggers.

See https://developers.procore.com/documentation/webhooks-api.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from flask import Flask
from flask import request
from flask import Response

from .answers import body_array
from .answers import body_object
from .answers import data_answer
from .answers import page_answer
from .answers import Refusal
from .lists_api import register_views
from .lists_api import Route
from .model import Hook
from .model import Scope
from .model import Trigger
from .model import VERSIONS
from .sender import Sender
from .transport import stays_here
from .world import World

NAMESPACE = re.compile(r"[a-z0-9-]{1,80}")


class HooksApi:
    """The calls of the webhooks API, on the hooks of a world."""

    def __init__(self, world: World, sender: Sender) -> None:
        self._world = world
        self._switches = world.switches
        self._sender = sender

    def register(self, app: Flask) -> None:
        """Add the routes of both scopes."""
        one, triggers = "/hooks/<hook_id>", "/hooks/<hook_id>/triggers"
        routes: list[Route] = [
            ("GET", "/hooks", self.list_hooks),
            ("POST", "/hooks", self.create_hook),
            ("GET", one, self.get_hook),
            ("PATCH", one, self.change_hook),
            ("DELETE", one, self.delete_hook),
            ("GET", triggers, self.list_triggers),
            ("POST", triggers, self.create_trigger),
            ("DELETE", f"{triggers}/<trigger_id>", self.delete_trigger),
            ("POST", f"{triggers}/bulk", self.create_triggers),
            ("DELETE", f"{triggers}/bulk", self.delete_triggers),
        ]
        register_views(app, self._world, routes)

    # Hooks

    def list_hooks(self, scope: Scope) -> Response:
        """List the hooks of the scope, of one namespace or one payload version."""
        namespace = request.args.get("namespace")
        if namespace is None and not scope.project:
            if self._switches.namespace_required:
                raise Refusal(400, "namespace is missing", source="namespace")
        version = request.args.get("payload_version")
        rows = [
            self._hook_json(hook)
            for hook in self._world.hooks.values()
            if hook.scope == scope
            and namespace in (None, hook.namespace)
            and (version is None or VERSIONS.get(version) == hook.payload_version)
        ]
        return page_answer(rows, self._switches, bare=False)

    def create_hook(self, scope: Scope) -> Response:
        """Create a hook, unless the namespace has a hook in the scope."""
        body = body_object()
        for name in ("payload_version", "namespace", "destination_url"):
            if not body.get(name):
                raise Refusal(400, f"{name} is missing", source=name)
        fields = self._checked(body, scope, None)
        hook = self._world.add_hook(
            scope,
            fields["namespace"],
            fields["destination_url"],
            fields["payload_version"],
            fields.get("headers", {}),
        )
        return data_answer(self._hook_json(hook), 201)

    def get_hook(self, hook: Hook) -> Response:
        """Return the hook."""
        return data_answer(self._hook_json(hook))

    def change_hook(self, hook: Hook) -> Response:
        """Change the fields that the body has."""
        fields = self._checked(body_object(), hook.scope, hook)
        version = fields.get("payload_version", hook.payload_version)
        if version != hook.payload_version and self._switches.patch_version == 400:
            message = "payload_version cannot be changed"
            raise Refusal(400, message, source="payload_version")
        for name, value in fields.items():
            setattr(hook, name, value)
        hook.updated = self._world.clock.now()
        if hook.status == "disabled" and not self._switches.pause_keeps_queue:
            self._sender.discard(hook)
        return data_answer(self._hook_json(hook))

    def delete_hook(self, hook: Hook) -> Response:
        """Delete the hook, its triggers and its deliveries."""
        self._world.delete_hook(hook)
        return Response(status=204)

    def _hook_json(self, hook: Hook) -> dict[str, Any]:
        return hook.to_json(masked=self._switches.masks_authorization)

    def _checked(
        self, body: dict[str, Any], scope: Scope, hook: Hook | None
    ) -> dict[str, Any]:
        """Return the fields of a hook that the body has, with the hook's own names."""
        fields: dict[str, Any] = {}
        checks: dict[str, Callable[[str], str | None]] = {
            "payload_version": VERSIONS.get,
            "namespace": _namespace,
            "destination_url": self._destination,
            "status": {"active": "active", "disabled": "disabled"}.get,
        }
        for name, check in checks.items():
            if name not in body:
                continue
            given = body[name]
            value = check(given) if isinstance(given, str) else None
            if value is None:
                raise Refusal(400, f"{name} is invalid", source=name)
            fields[name] = value
        if "destination_headers" in body:
            others = self._switches.sends_other_headers
            fields["headers"] = _headers(body["destination_headers"], others)
        other = self._world.find_hook(scope, fields.get("namespace", ""))
        if other is not None and other is not hook:
            message = "Namespace has already been taken"
            raise Refusal(400, message, source="namespace")
        return fields

    def _destination(self, url: str) -> str | None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            return None
        plain = parts.scheme == "http" and not stays_here(url)
        return None if plain and self._switches.https_required else url

    # Triggers

    def list_triggers(self, hook: Hook) -> Response:
        """List the triggers of the hook."""
        rows = [self._trigger_json(hook, each) for each in hook.triggers.values()]
        return page_answer(rows, self._switches, bare=False)

    def create_trigger(self, hook: Hook) -> Response:
        """Create a trigger for an action that the resource has in the scope."""
        trigger = self._create(hook, body_object())
        return data_answer(self._trigger_json(hook, trigger), 201)

    def delete_trigger(self, hook: Hook, trigger_id: str) -> Response:
        """Delete the trigger."""
        if hook.triggers.pop(trigger_id, None) is None:
            raise Refusal(404, "Not Found", source="trigger_id")
        return Response(status=204)

    def create_triggers(self, hook: Hook) -> Response:
        """Create triggers; a refused trigger does not stop the others."""
        rows, status = [], 201
        for item in self._bulk():
            try:
                if not isinstance(item, dict):
                    raise Refusal(400, "The item is not an object")
                trigger = self._create(hook, item)
                rows.append(self._trigger_json(hook, trigger))
            except Refusal as refusal:
                status = 207
                errors = {refusal.source or "base": refusal.message}
                message = refusal.message
                row = {"code": str(refusal.status), "message": message}
                rows.append({**row, "trigger": item, "errors": errors})
        return data_answer(rows, status)

    def delete_triggers(self, hook: Hook) -> Response:
        """Delete triggers; unknown ids do not keep the others from it."""
        succeeded: list[Any] = []
        failed: list[Any] = []
        for id in self._bulk():
            known = isinstance(id, str) and hook.triggers.pop(id, None) is not None
            (succeeded if known else failed).append(id)
        if not failed:
            return data_answer({"succeeded": succeeded})
        return data_answer({"succeeded": succeeded, "failed": failed}, 207)

    def _bulk(self) -> list[Any]:
        items = body_array()
        limit = self._switches.bulk_limit
        if len(items) > limit:
            raise Refusal(400, f"There are more than {limit} triggers")
        return items

    def _create(self, hook: Hook, body: dict[str, Any]) -> Trigger:
        resource, action = body.get("resource_name"), body.get("event_type")
        for name, value in (("resource_name", resource), ("event_type", action)):
            if not isinstance(value, str) or not value:
                raise Refusal(400, f"{name} is missing", source=name)
        assert isinstance(resource, str) and isinstance(action, str)
        resources = self._world.resources(hook.scope.project is not None)
        if resource not in resources:
            message = f"{resource} is not a resource of this scope"
            raise Refusal(400, message, source="resource_name")
        listed = {each.lower() for each in resources[resource]}
        if action.lower() not in listed:
            message = f"{action} is not an event of {resource}"
            raise Refusal(400, message, source="event_type")
        if hook.subscribes(resource, action):
            raise Refusal(400, "Trigger already exists", source="event_type")
        return self._world.add_trigger(hook, resource, action)

    def _trigger_json(self, hook: Hook, trigger: Trigger) -> dict[str, Any]:
        return hook.trigger_json(trigger, self._switches.trigger_case)


def _namespace(text: str) -> str | None:
    return text if NAMESPACE.fullmatch(text) else None


def _headers(given: Any, others: bool) -> dict[str, str]:
    """Return the headers to send: ``Authorization``, and others if they are allowed."""
    found = {}
    for name, value in (given if isinstance(given, dict) else {"": given}).items():
        if value is None or value == "":
            continue
        if not isinstance(value, str) or not name:
            source = "destination_headers"
            raise Refusal(400, f"{source} is invalid", source=source)
        if others or name == "Authorization":
            found[name] = value
    return found
