"""The webhooks API v2.0: its two scopes, and the lists that only Procore changes.

Every call exists for a company and for a project; see
https://developers.procore.com/documentation/webhooks-api.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from datetime import date
from datetime import timedelta
from functools import wraps
from typing import Any

from flask import Flask
from flask import request
from flask import Response

from .access import check_scope
from .answers import page_answer
from .answers import Refusal
from .model import cased
from .model import Delivery
from .model import Hook
from .model import Scope
from .model import STATUSES
from .model import VERSIONS
from .world import World

COMPANY = "/rest/v2.0/companies/<company>/webhooks"
PROJECT = "/rest/v2.0/companies/<company>/projects/<project>/webhooks"

View = Callable[..., Response]

#: Method, path below the scope, and view, which takes a hook or a scope first.
Route = tuple[str, str, View]


def register_views(app: Flask, world: World, routes: Iterable[Route]) -> None:
    """Add the routes for companies and for projects."""
    for method, path, view in routes:
        for name, base in (("company", COMPANY), ("project", PROJECT)):
            endpoint = f"{name}_{view.__name__}"
            app.add_url_rule(
                base + path, endpoint, _in_scope(world, view), methods=[method]
            )


def _in_scope(world: World, view: View) -> View:
    """Call the view under the lock, with its hook, or else with its scope."""

    @wraps(view)
    def call(
        company: str,
        project: str | None = None,
        hook_id: str | None = None,
        **ids: str,
    ) -> Response:
        with world.lock:
            scope = check_scope(world, company, project)
            if hook_id is None:
                return view(scope, **ids)
            hook = world.hooks.get(hook_id)
            if hook is None or hook.scope != scope:
                raise Refusal(404, "Not Found", source="hook_id")
            return view(hook, **ids)

    return call


class ListsApi:
    """The lists of deliveries and of resources."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._switches = world.switches

    def register(self, app: Flask) -> None:
        """Add the routes of both scopes."""
        routes: list[Route] = [
            ("GET", "/hooks/<hook_id>/deliveries", self.list_deliveries),
            ("GET", "/resources", self.list_resources),
        ]
        register_views(app, self._world, routes)

    def list_deliveries(self, hook: Hook) -> Response:
        """List the deliveries that the filters leave."""
        rows = self._world.listed(hook)
        if self._switches.fresh_deliveries == 404:
            if not any(row.hook_id == hook.id for row in self._world.deliveries):
                raise Refusal(404, "Not Found")
        status = _filter("status")
        status = "delivered" if status == "succeeded" else status
        if status not in (None, *STATUSES):
            raise Refusal(400, "filter[status] is invalid", source="status")
        resource, action = _filter("resource_name"), _filter("event_type")
        within = self._days()
        found = [
            row
            for row in rows
            if status in (None, row.status)
            and resource in (None, row.event.resource)
            and (action is None or action.lower() == row.event.action.lower())
            and within(row)
        ]
        found.sort(key=self._position, reverse=self._newest_first())
        shown = [row.to_json(self._switches) for row in found]
        return page_answer(shown, self._switches, bare=False)

    def _position(self, row: Delivery) -> tuple[Any, int]:
        return row.event.timestamp, row.number

    def _newest_first(self) -> bool:
        sort = request.args.get("sort")
        return sort.startswith("-") if sort else self._switches.order == "newest"

    def _days(self) -> Callable[[Delivery], bool]:
        """The filter by day, in the zone that the switches name."""
        switches = self._switches
        start, end = _day("start"), _day("end")
        one = timedelta(days=1)
        if start and not switches.filter_start_inclusive:
            start += one
        if end and not switches.filter_end_inclusive:
            end -= one
        ahead = timedelta(hours=switches.filter_zone)

        def within(row: Delivery) -> bool:
            day = (row.when(switches.filter_by) + ahead).date()
            return (start is None or start <= day) and (end is None or day <= end)

        return within

    def list_resources(self, scope: Scope) -> Response:
        """List the resources of the scope with their actions."""
        version = request.args.get("payload_version")
        if version not in VERSIONS:
            message = "payload_version is missing or invalid"
            raise Refusal(400, message, source="payload_version")
        category = "Project Management" if scope.project else "Company"
        case = self._switches.action_case
        rows = [
            {
                "category": category,
                "tool": name,
                "name": name,
                "payload_version": VERSIONS[version],
                "actions": [cased(action, case) for action in actions],
            }
            for name, actions in self._world.resources(bool(scope.project)).items()
        ]
        return page_answer(rows, self._switches, bare=False)


def _filter(name: str) -> str | None:
    """Return the filter of that name, in either spelling."""
    for spelling in (f"filters[{name}]", f"filter[{name}]"):
        if request.args.get(spelling):
            return request.args[spelling]
    return None


def _day(name: str) -> date | None:
    text = _filter(name)
    try:
        return date.fromisoformat(text) if text else None
    except ValueError as error:
        raise Refusal(400, f"filter[{name}] is not a day", source=name) from error
