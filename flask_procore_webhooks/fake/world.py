"""The state of the fake: companies, hooks, records and deliveries, under one lock."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from dataclasses import field
from datetime import datetime
from datetime import timedelta
from itertools import count
from typing import Any

from .catalogue import COMPANY_RESOURCES
from .catalogue import PROJECT_RESOURCES
from .catalogue import Resources
from .model import Delivery
from .model import Event
from .model import Hook
from .model import Ids
from .model import Scope
from .model import to_seconds
from .model import Trigger
from .model import VERSIONS
from .switches import Clock
from .switches import Switches


@dataclass
class Record:
    """A record of a resource, with its past."""

    id: str
    resource: str
    scope: Scope
    #: Each time with the fields from then on; ``None`` where it is deleted.
    versions: list[tuple[datetime, dict[str, Any] | None]] = field(default_factory=list)

    @property
    def fields(self) -> dict[str, Any] | None:
        """The fields now, or ``None`` if the record is deleted."""
        return self.versions[-1][1]

    def fields_at(self, when: datetime) -> dict[str, Any] | None:
        """Return the fields as they were, or ``None`` if there was no such record."""
        past = (fields for start, fields in reversed(self.versions) if start <= when)
        return next(past, None)


@dataclass(frozen=True)
class Actor:
    """The user that makes a change, and the application that makes it for them."""

    user_id: str | None
    application_id: str | None = None


class World:
    """Everything that Procore knows; callers of several methods hold ``lock``."""

    def __init__(self, switches: Switches, clock: Clock, ids: Ids) -> None:
        self.switches = switches
        self.clock = clock
        self.ids = ids
        self.lock = threading.RLock()
        self.company_resources: Resources = dict(COMPANY_RESOURCES)
        self.project_resources: Resources = dict(PROJECT_RESOURCES)
        #: The projects of each company.
        self.companies: dict[str, list[str]] = {}
        #: Scopes in which every call is refused, with the status of the refusal.
        self.forbidden: dict[Scope, int] = {}
        self.hooks: dict[str, Hook] = {}
        self.deliveries: list[Delivery] = []
        self._records: dict[str, dict[str, Record]] = {}
        self._numbers = count(1)

    # Companies and projects

    def scope(self, company: str | None, project: str | None) -> Scope:
        """Return the scope, with the company of the project or the only company.

        :raises LookupError: there is no such company or project, or several companies.
        """
        company = None if company is None else str(company)
        project = None if project is None else str(project)
        owners = [
            id
            for id, projects in self.companies.items()
            if company in (None, id) and (project is None or project in projects)
        ]
        if len(owners) != 1:
            asked = f"company {company!r}, project {project!r}"
            raise LookupError(f"{len(owners)} companies match {asked}; use add_company")
        return Scope(owners[0], project)

    def resources(self, project: bool) -> Resources:
        """Return the resources of a project, or of a company."""
        return self.project_resources if project else self.company_resources

    # Hooks

    def find_hook(self, scope: Scope, namespace: str) -> Hook | None:
        """Return the hook of the namespace in the scope, of which there is one."""
        found = (h for h in self.hooks.values() if h.scope == scope)
        return next((h for h in found if h.namespace == namespace), None)

    def add_hook(
        self,
        scope: Scope,
        namespace: str,
        destination_url: str,
        payload_version: str,
        headers: dict[str, str],
    ) -> Hook:
        """Add an active hook without triggers."""
        now = self.clock.now()
        version = VERSIONS[payload_version]
        owner, id = scope, self.ids.row()
        hook = Hook(id, owner, namespace, destination_url, version, headers, now, now)
        self.hooks[id] = hook
        return hook

    def add_trigger(self, hook: Hook, resource: str, action: str) -> Trigger:
        """Add a trigger to the hook."""
        trigger = Trigger(self.ids.row(), resource, action)
        hook.triggers[trigger.id] = trigger
        return trigger

    def delete_hook(self, hook: Hook) -> None:
        """Delete the hook with its triggers and its deliveries."""
        del self.hooks[hook.id]
        hook.queue.clear()
        self.deliveries = [d for d in self.deliveries if d.hook_id != hook.id]

    # Events

    def emit(
        self,
        resource: str,
        action: str,
        resource_id: str,
        scope: Scope,
        actor: Actor,
        related: Iterable[tuple[str, str]] = (),
    ) -> Event:
        """Make an event, and queue it for every active hook with its trigger.

        :raises LookupError: the catalogue does not have the resource in the scope.
        """
        place, now = self._place(resource, scope), self.clock.now()
        ulid = self.ids.ulid(now)
        event = Event(
            self.ids.event(),
            ulid,
            ulid if self.switches.same_id else self.ids.ulid(now),
            now,
            resource,
            action,
            resource_id,
            scope.company,
            scope.project,
            actor.user_id,
            actor.application_id,
            tuple(related),
        )
        for hook in self.hooks.values():
            if hook.scope == place and hook.status == "active":
                if hook.subscribes(resource, action):
                    self._enqueue(hook, event)
        return event

    def _place(self, resource: str, scope: Scope) -> Scope:
        """The scope of the hooks and records of the resource."""
        if resource in self.company_resources:
            return Scope(scope.company)
        if resource not in self.project_resources:
            raise LookupError(f"the catalogue has no resource {resource!r}")
        if scope.project is None:
            raise LookupError(f"{resource} are a resource of projects: name one")
        return scope

    def _enqueue(self, hook: Hook, event: Event) -> None:
        sent = event.payload(hook.payload_version)
        if self.switches.company_project == "absent" and sent["project_id"] is None:
            del sent["project_id"]
        body = json.dumps(sent, separators=(",", ":")).encode()
        row = Delivery(
            self.ids.row(),
            next(self._numbers),
            hook.id,
            event,
            sent,
            body,
            self.clock.now(),
        )
        self.deliveries.append(row)
        hook.queue.append(row)

    def enqueue_again(self, row: Delivery) -> None:
        """Queue the delivery once more, unless it still waits."""
        hook = self.hooks[row.hook_id]
        if row not in hook.queue:
            row.status = "enqueued"
            hook.queue.append(row)

    def finish(self, row: Delivery, status: str) -> None:
        """Give the delivery its last status, in its own row or in a new one."""
        if self.switches.discards_same_row:
            row.status = status
            return
        self.deliveries.remove(row)
        new = Delivery(
            self.ids.row(),
            next(self._numbers),
            row.hook_id,
            row.event,
            row.sent,
            row.body,
            row.enqueued,
            status,
            row.attempts,
        )
        self.deliveries.append(new)

    def listed(self, hook: Hook) -> list[Delivery]:
        """Return the deliveries of the hook that are not too old for the list."""
        oldest = self.clock.now() - timedelta(days=self.switches.listed_days)
        rows = (row for row in self.deliveries if row.hook_id == hook.id)
        return [row for row in rows if row.event.timestamp >= oldest]

    # Records

    def add_record(
        self, resource: str, id: str, scope: Scope, fields: dict[str, Any]
    ) -> Record:
        """Add a record; its change makes no event."""
        now = self.clock.now()
        times = {"created_at": to_seconds(now), "updated_at": to_seconds(now)}
        record = Record(id, resource, scope)
        record.versions.append((now, {"id": id, **fields, **times}))
        self._records.setdefault(resource, {})[id] = record
        return record

    def create(
        self, resource: str, scope: Scope, fields: dict[str, Any], actor: Actor
    ) -> Record:
        """Create a record, with the events of that change."""
        id = str(fields.pop("id", None) or self.ids.row())
        record = self.add_record(resource, id, self._place(resource, scope), fields)
        if resource == "Projects":
            self.companies[scope.company].append(id)
        self._announce(record, "create", actor)
        return record

    def update(
        self, record: Record, fields: dict[str, Any] | None, actor: Actor
    ) -> None:
        """Change fields of the record, or delete it, with the events of that change."""
        now = self.clock.now()
        action = "delete" if fields is None else "update"
        if fields is not None:
            times = {"updated_at": to_seconds(now)}
            fields = {**(record.fields or {}), **fields, **times}
        record.versions.append((now, fields))
        self._announce(record, action, actor)

    def _announce(self, record: Record, action: str, actor: Actor) -> None:
        scope = record.scope
        if record.resource == "Projects" and action != "create":
            # Procore leaves the project's id out of its first event only.
            scope = Scope(scope.company, record.id)
        for _ in range(self.switches.events_per_change):
            self.emit(record.resource, action, record.id, scope, actor)

    def record(self, resource: str, id: str) -> Record:
        """Return a record that is not deleted.

        :raises LookupError: there is no such record.
        """
        record = self._records.get(resource, {}).get(id)
        if record is None or record.fields is None:
            raise LookupError(f"there is no {id!r} in {resource}")
        return record

    def all_records(self, resource: str, scope: Scope | None = None) -> list[Record]:
        """Return the records of the resource in order of creation, deleted ones too."""
        records = self._records.get(resource, {}).values()
        return [each for each in records if scope in (None, each.scope)]

    def read(self, record: Record) -> dict[str, Any] | None:
        """Return the fields as the API shows them: stale after a change."""
        seconds = self.switches.stale_seconds
        if not seconds:
            return record.fields
        return record.fields_at(self.clock.now() - timedelta(seconds=seconds))
