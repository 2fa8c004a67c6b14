"""Hooks, triggers, events and deliveries, their ids, and their JSON.

The shapes are those of the webhooks API v2.0 and of the payload formats v2.0, v3.0 and
v4.0; see https://developers.procore.com/documentation/content/webhooks.
"""

from __future__ import annotations

import secrets
from collections import deque
from dataclasses import dataclass
from dataclasses import field
from datetime import datetime
from itertools import count
from typing import Any
from typing import NamedTuple

from .switches import Switches

#: Payload versions by the spellings that a request may use.
VERSIONS = {
    spelling: f"v{number}.0"
    for number in (2, 3, 4)
    for spelling in (f"v{number}", f"v{number}.0")
}

STATUSES = ("enqueued", "retrying", "delivered", "failed", "discarded")


CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


class Ids:
    """Ids of the kinds that Procore has, unique in one fake."""

    def __init__(self) -> None:
        self._rows = count(598134000000001)
        # Random, so that the events of two fakes have different ids.
        self._events = count(5981 * 10**15 + secrets.randbelow(10**14))

    def row(self) -> str:
        """Return an id of 15 digits: of a hook, a trigger, a delivery or a record."""
        return str(next(self._rows))

    def event(self) -> int:
        """Return an id of 19 digits: of an event in the payload format v2.0."""
        return next(self._events)

    def ulid(self, when: datetime) -> str:
        """Return a new ULID (https://github.com/ulid/spec) of the time ``when``."""
        value = int(when.timestamp() * 1000) << 80 | secrets.randbits(80)
        digits = [CROCKFORD[value >> 5 * place & 31] for place in range(26)]
        return "".join(reversed(digits))


class Scope(NamedTuple):
    """A company, or a project of it."""

    company: str
    project: str | None = None


@dataclass
class Trigger:
    """The subscription of a hook to one action of one resource."""

    id: str
    resource: str
    action: str

    @property
    def pair(self) -> tuple[str, str]:
        """The resource, and the action in lower case: unique in a hook."""
        return self.resource, self.action.lower()


@dataclass
class Hook:
    """A hook, its triggers, and the deliveries that wait for it."""

    id: str
    scope: Scope
    namespace: str
    destination_url: str
    payload_version: str
    headers: dict[str, str] = field(repr=False)
    created: datetime
    updated: datetime
    status: str = "active"
    triggers: dict[str, Trigger] = field(default_factory=dict)
    queue: deque[Delivery] = field(default_factory=deque, repr=False)

    def subscribes(self, resource: str, action: str) -> bool:
        """Whether a trigger names the pair."""
        wanted = resource, action.lower()
        return any(trigger.pair == wanted for trigger in self.triggers.values())

    def to_json(self, *, masked: bool) -> dict[str, Any]:
        """Return the hook as the API has it."""
        owner = self.scope
        return {
            "id": self.id,
            "status": self.status,
            "payload_version": self.payload_version,
            "namespace": self.namespace,
            "destination_url": self.destination_url,
            "destination_headers": self._headers(masked),
            "trigger_count": len(self.triggers),
            "company_id": None if owner.project else owner.company,
            "project_id": owner.project,
            "created_at": to_seconds(self.created),
            "updated_at": to_seconds(self.updated),
            "hook_type": "classic",
        }

    def trigger_json(self, trigger: Trigger, case: str) -> dict[str, Any]:
        """Return one of the triggers as the API has it."""
        return {
            "id": trigger.id,
            "webhook_hook_id": self.id,
            "resource_name": trigger.resource,
            "event_type": cased(trigger.action, case),
            "company_id": None if self.scope.project else self.scope.company,
            "project_id": self.scope.project,
        }

    def _headers(self, masked: bool) -> dict[str, str]:
        return {
            name: "*****" + value[-5:] if masked and len(value) > 5 else value
            for name, value in self.headers.items()
        }


@dataclass(frozen=True)
class Event:
    """One event, whatever hooks deliver it."""

    id: int
    ulid: str
    v4_id: str
    timestamp: datetime
    resource: str
    action: str
    resource_id: str
    company: str
    project: str | None
    user_id: str | None
    application_id: str | None = None
    related: tuple[tuple[str, str], ...] = ()

    @property
    def names(self) -> set[str]:
        """Every id of the event, as text."""
        return {str(self.id), self.ulid, self.v4_id}

    def payload(self, version: str) -> dict[str, Any]:
        """Return the payload in the format ``"v2.0"``, ``"v3.0"`` or ``"v4.0"``."""
        if version == "v4.0":
            return self._v4()
        related = [{"id": number(id), "name": name} for id, name in self.related]
        more = {"related_resources": related} if version == "v3.0" else {}
        return {**self._v2(version), **more}

    def _v2(self, version: str) -> dict[str, Any]:
        user, company = number(self.user_id), number(self.company)
        project = number(self.project)
        return {
            "id": self.id,
            "ulid": self.ulid,
            "timestamp": to_microseconds(self.timestamp),
            "metadata": {
                "source_user_id": user,
                "source_company_id": company,
                "source_project_id": project,
                "source_application_id": self.application_id,
                "source_operation_id": None,
            },
            "user_id": user,
            "company_id": company,
            "project_id": project,
            "api_version": version,
            "event_type": self.action,
            "resource_name": self.resource,
            "resource_id": number(self.resource_id),
        }

    def _v4(self) -> dict[str, Any]:
        return {
            "id": self.v4_id,
            "reason": self.action,
            "user_id": self.user_id or "",
            "timestamp": to_microseconds(self.timestamp),
            "company_id": self.company,
            "project_id": self.project or "",
            "resource_id": self.resource_id,
            "resource_type": self.resource,
            "payload_version": "v4.0",
        }


@dataclass(frozen=True)
class Reply:
    """What came back from a destination; without a status, nothing did."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None

    @property
    def succeeded(self) -> bool:
        """Whether the status is 2xx."""
        return self.status is not None and 200 <= self.status < 300


@dataclass(frozen=True)
class Attempt:
    """One request to a destination, and its reply."""

    id: str
    reply: Reply
    started: datetime
    completed: datetime

    def to_json(self) -> dict[str, Any]:
        """Return the attempt as the API has it."""
        return {
            "id": self.id,
            "success": self.reply.succeeded,
            "response_status": self.reply.status,
            "response_body": self.reply.body,
            "response_headers": self.reply.headers,
            "started_at": to_microseconds(self.started),
            "completed_at": to_microseconds(self.completed),
        }


@dataclass(eq=False)
class Delivery:
    """An event on its way to a hook; the body stays the same in every attempt."""

    id: str
    number: int
    hook_id: str
    event: Event
    sent: dict[str, Any]
    body: bytes
    enqueued: datetime
    status: str = "enqueued"
    attempts: list[Attempt] = field(default_factory=list)

    def when(self, filter_by: str) -> datetime:
        """Return the time of the ``"event"`` or of the ``"delivery"``."""
        if filter_by == "event":
            return self.event.timestamp
        return self.attempts[-1].started if self.attempts else self.enqueued

    def to_json(self, switches: Switches) -> dict[str, Any]:
        """Return the delivery as the API has it."""
        as_sent = switches.delivery_payload == "sent"
        return {
            "id": self.id,
            "status": self.status,
            "payload": self.sent if as_sent else self.event.payload("v2.0"),
            "delivery_attempts": [attempt.to_json() for attempt in self.attempts],
        }


def number(id: str | None) -> int | str | None:
    """Return the id as a number, if it is one."""
    return int(id) if id is not None and id.isascii() and id.isdigit() else id


def cased(text: str, case: str) -> str:
    """Return the text in ``"upper"`` or ``"lower"`` case."""
    return text.upper() if case == "upper" else text.lower()


def to_microseconds(when: datetime) -> str:
    """Return the time as in payloads: with microseconds and ``Z``."""
    return when.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def to_seconds(when: datetime) -> str:
    """Return the time as in answers of the API: with whole seconds and ``Z``."""
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")
