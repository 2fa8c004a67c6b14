"""Changes: what Procore's lists say was updated since a time."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from datetime import timedelta
from datetime import timezone
from typing import Any
from typing import Protocol

from ..senders.payload import text_id
from ..senders.payload import to_datetime
from .lists import LISTS
from .lists import ResourceList

#: A range of times has two ends. Procore's clock may be ahead of this host's, and that
#: of a fake may be days ahead.
AHEAD = timedelta(days=366)
_FIELDS = re.compile(r"{(\w+)}")


@dataclass(frozen=True)
class Change:
    """A resource that was created or updated."""

    resource_type: str
    resource_id: str
    company_id: str | None
    project_id: str | None
    #: Aware, UTC; ``None`` if the list does not say.
    updated_at: datetime | None
    #: The object in the list.
    item: Mapping[str, Any]


class Lists(Protocol):
    """What reads lists: a :class:`ProcoreAPI`."""

    company_id: str | None

    def pages(
        self, path: str, params: Mapping[str, Any] | None = None, **options: Any
    ) -> Iterator[dict[str, Any]]: ...


def changed_since(
    api: Lists,
    resource_type: str,
    since: datetime,
    *,
    project_id: str | int | None = None,
    company_id: str | int | None = None,
) -> Iterator[Change]:
    """Page through the list of a resource; see :meth:`ProcoreAPI.changed_since`."""
    listed = _list_of(resource_type)
    company = api.company_id if company_id is None else str(company_id)
    project = None if project_id is None else str(project_id)
    ids = {"project_id": project, "company_id": company}
    for name in ids:
        if name in (*listed.query, *_FIELDS.findall(listed.path)) and not ids[name]:
            raise ValueError(f"The list of {resource_type} needs {name}=.")
    params = dict(listed.extra) | {name: ids[name] for name in listed.query}
    params[listed.filter] = _range(since)
    path = listed.path.format_map(ids)
    items = api.pages(path, params, company_id=company)
    return _changes(items, resource_type, company, project)


def _changes(
    items: Iterator[dict[str, Any]],
    resource_type: str,
    company: str | None,
    project: str | None,
) -> Iterator[Change]:
    for item in items:
        id = text_id(item.get("id"))
        if id is not None:
            at = to_datetime(item.get("updated_at"))
            yield Change(resource_type, id, company, project, at, item)


def _range(since: datetime) -> str:
    """The value of a filter: from a time to after now.

    :raises ValueError: the time has no zone.
    """
    if since.tzinfo is None:
        raise ValueError("since= has no time zone: datetime.now(timezone.utc) has one.")
    return f"{_text(since)}...{_text(datetime.now(timezone.utc) + AHEAD)}"


def _text(when: datetime) -> str:
    return f"{when.astimezone(timezone.utc):%Y-%m-%dT%H:%M:%SZ}"


def _list_of(resource_type: str) -> ResourceList:
    if resource_type in LISTS:
        return LISTS[resource_type]
    near = difflib.get_close_matches(resource_type, LISTS, 1, 0.5)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise ValueError(
        f"No list of {resource_type!r} is known that filters by update time. {hint}Page"
        " through the list with pages(), and call enqueue() for what has changed."
    )
