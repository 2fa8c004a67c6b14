"""The REST calls for records of resources, and for the lists of companies."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from datetime import timezone
from typing import Any

from flask import Flask
from flask import request
from flask import Response

from .access import check_scope
from .answers import body_object
from .answers import json_answer
from .answers import page_answer
from .answers import Refusal
from .catalogue import RECORDS
from .catalogue import Records
from .model import number
from .model import Scope
from .switches import aware
from .world import Actor
from .world import Record
from .world import World

#: Fields of a body that name the scope of a record.
SCOPE_FIELDS = ("company_id", "project_id")


class RecordsApi:
    """The calls for the records of every resource that has paths.

    :param client_id: the application that makes a change.
    """

    def __init__(self, world: World, client_id: str) -> None:
        self._world = world
        self._client_id = client_id

    def register(self, app: Flask) -> None:
        """Add the routes."""
        for resource, records in RECORDS.items():
            for place, path in enumerate(records.paths):
                views = _Views(self, resource, records)
                name = f"{resource} {place}"
                app.add_url_rule(path, f"{name} all", views.all, methods=ALL)
                app.add_url_rule(f"{path}/<id>", f"{name} one", views.one, methods=ONE)
        app.add_url_rule("/rest/v1.0/companies", "companies", self.companies)
        app.add_url_rule("/rest/v1.0/me", "me", self.me)

    def companies(self) -> Response:
        """List the companies that the application is connected to."""
        world = self._world
        with world.lock:
            known = [c for c in world.companies if Scope(c) not in world.forbidden]
        rows = [{"id": self.shown(c), "name": f"Company {c}"} for c in known]
        return page_answer(rows, world.switches, bare=True)

    def me(self) -> Response:
        """Return the service account."""
        id = self.shown(self._world.switches.app_user_id)
        return json_answer({"id": id, "login": "service-account@example.com"})

    def in_scope(
        self, view: Callable[..., Response], ids: dict[str, str], body: dict[str, Any]
    ) -> Response:
        """Call the view under the lock, with the scope that the request names."""
        given = {**request.args, **body}
        company = ids.pop("company", None) or given.get("company_id")
        project = ids.pop("project", None) or given.get("project_id")
        company = company or request.headers["Procore-Company-Id"]
        with self._world.lock:
            owner = str(project) if project else None
            scope = check_scope(self._world, str(company), owner)
            return view(scope, **ids)

    def actor(self) -> Actor:
        """Return the service account, with the application that it works for."""
        return Actor(self._world.switches.app_user_id, self._client_id)

    def shown(self, id: str) -> Any:
        """Return an id of a record as the API shows it."""
        return number(id) if self._world.switches.record_ids == "number" else id

    def to_json(self, record: Record) -> dict[str, Any] | None:
        """Return the record as the API shows it, or ``None`` if it shows none."""
        fields = self._world.read(record)
        return None if fields is None else {**fields, "id": self.shown(record.id)}

    @property
    def world(self) -> World:
        """The world that holds the records."""
        return self._world


class _Views:
    """The calls for the records of one resource."""

    def __init__(self, api: RecordsApi, resource: str, records: Records) -> None:
        self._api = api
        self._resource = resource
        self._records = records
        self._of_company = resource in api.world.company_resources

    def all(self, **ids: str) -> Response:
        """List the records of a scope, or create one."""
        if request.method == "POST":
            body = body_object()
            return self._api.in_scope(self._create(body), ids, body)
        return self._api.in_scope(self._list, ids, {})

    def one(self, **ids: str) -> Response:
        """Return, change or delete a record."""
        if request.method == "PATCH":
            body = body_object()
            return self._api.in_scope(self._change(body), ids, body)
        view = self._delete if request.method == "DELETE" else self._get
        return self._api.in_scope(view, ids, {})

    def _list(self, scope: Scope) -> Response:
        self._check(scope)
        records = self._api.world.all_records(self._resource, scope)
        shown = [self._api.to_json(record) for record in records]
        rows = [row for row in shown if row is not None and _is_wanted(row)]
        return page_answer(rows, self._api.world.switches, bare=True)

    def _get(self, scope: Scope, id: str) -> Response:
        for record in self._api.world.all_records(self._resource, self._check(scope)):
            shown = self._api.to_json(record)
            if record.id == id and shown is not None:
                return json_answer(shown)
        raise Refusal(404, "Not Found")

    def _create(self, body: dict[str, Any]) -> Callable[..., Response]:
        def create(scope: Scope) -> Response:
            world = self._api.world
            owner = self._check(scope)
            fields = self._fields(body)
            record = world.create(self._resource, owner, fields, self._api.actor())
            shown = {**(record.fields or {}), "id": self._api.shown(record.id)}
            return json_answer(shown, 201)

        return create

    def _change(self, body: dict[str, Any]) -> Callable[..., Response]:
        def change(scope: Scope, id: str) -> Response:
            record = self._found(scope, id)
            self._api.world.update(record, self._fields(body), self._api.actor())
            shown = {**(record.fields or {}), "id": self._api.shown(record.id)}
            return json_answer(shown)

        return change

    def _delete(self, scope: Scope, id: str) -> Response:
        record = self._found(scope, id)
        self._api.world.update(record, None, self._api.actor())
        return Response(status=204)

    def _found(self, scope: Scope, id: str) -> Record:
        try:
            record = self._api.world.record(self._resource, id)
        except LookupError as error:
            raise Refusal(404, "Not Found") from error
        if record.scope != self._check(scope):
            raise Refusal(404, "Not Found")
        return record

    def _check(self, scope: Scope) -> Scope:
        """Return the scope that records of the resource have."""
        if self._of_company:
            return Scope(scope.company)
        if scope.project is None:
            raise Refusal(400, "project_id is missing", source="project_id")
        return scope

    def _fields(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the record's fields, which may stand under the resource's key."""
        inner = body.get(self._records.key)
        if isinstance(inner, dict):
            return {k: v for k, v in inner.items() if k != "id"}
        return {k: v for k, v in body.items() if k not in ("id", *SCOPE_FIELDS)}


def _time(text: str) -> datetime:
    """Return the time of an ISO 8601 text; UTC, if it has no zone.

    :raises ValueError: the text is not a time.
    """
    when = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
    return aware(when if when.tzinfo else when.replace(tzinfo=timezone.utc))


def _is_wanted(row: dict[str, Any]) -> bool:
    """Whether the filters by time leave the record in the list."""
    for name in ("updated_at", "created_at"):
        text = request.args.get(f"filters[{name}]")
        if not text:
            continue
        start, dots, end = text.strip("\"'").partition("...")
        try:
            first, last = _time(start), _time(end if dots else start)
        except ValueError as error:
            message = f"filters[{name}] is not a range of times"
            raise Refusal(400, message, source=name) from error
        if not first <= _time(row[name]) <= last:
            return False
    return True


ALL = ["GET", "POST"]
ONE = ["GET", "PATCH", "DELETE"]
