"""A fake of Procore for tests: its REST side, and its sender of webhooks.

:class:`FakeProcore` is a Flask app. It is called with its test client, served on
loopback, or mounted into a session of ``requests``. Its clock stands still until a test
moves it.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from datetime import timedelta
from typing import Any
from typing import TYPE_CHECKING

from .app import ApiApp
from .catalogue import Resources
from .model import Hook
from .model import Scope
from .switches import Switches
from .world import Actor

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

__all__ = ["FakeProcore", "Switches"]


class FakeProcore(ApiApp):
    """Procore, as far as webhooks and the records that they name need it.

    A new fake has no companies; see :meth:`add_company`. Its rate limits end on its
    clock: let a client sleep with ``fake.clock.advance``, or set ``spike_limit=None``.

    :param now: the time at which its clock stands. ``None`` lets it run from now.
    :param switches: fields of :class:`Switches`.
    """

    def __init__(
        self,
        client_id: str = "client",
        client_secret: str = "secret",
        *,
        now: datetime | None = None,
        **switches: Any,
    ) -> None:
        super().__init__(client_id, client_secret, Switches(**switches), now)
        self._stood = False

    # Companies and projects

    def add_company(self, id: str, projects: Iterable[str] = ()) -> None:
        """Connect the application to a company with these projects, or add projects."""
        with self._world.lock:
            known = self._world.companies.setdefault(str(id), [])
            for project in map(str, projects):
                if project not in known:
                    known.append(project)
                    fields = {"name": f"Project {project}", "active": True}
                    scope = Scope(str(id))
                    self._world.add_record("Projects", project, scope, fields)

    def forbid(
        self, company: str, project: str | None = None, status: int = 403
    ) -> None:
        """Answer every call in the scope with the status 403 or 404.

        A company's calls include those in its projects.
        """
        with self._world.lock:
            self._world.forbidden[_scope(company, project)] = status

    def permit(self, company: str, project: str | None = None) -> None:
        """Undo :meth:`forbid` of the same scope."""
        with self._world.lock:
            self._world.forbidden.pop(_scope(company, project), None)

    @property
    def company_resources(self) -> Resources:
        """The resources of companies with their actions; a test may change them."""
        return self._world.company_resources

    @property
    def project_resources(self) -> Resources:
        """The resources of projects with their actions; a test may change them."""
        return self._world.project_resources

    # Hooks

    def add_hook(
        self,
        *,
        company: str | None = None,
        project: str | None = None,
        namespace: str = "flask-procore-webhooks",
        destination_url: str,
        payload_version: str = "v4.0",
        authorization: str | None = None,
        triggers: Iterable[tuple[str, str]] = (),
        status: str = "active",
    ) -> str:
        """Add a hook as the API would; return its id.

        :raises LookupError: the scope has no such resource, or does not exist.
        :raises ValueError: the namespace has a hook in the scope.
        """
        with self._world.lock:
            scope = self._world.scope(company, project)
            if self._world.find_hook(scope, namespace) is not None:
                raise ValueError(f"{namespace!r} has a hook in {scope}")
            pairs, known = [*triggers], self._world.resources(project is not None)
            unknown = sorted({name for name, _ in pairs} - {*known})
            if unknown:
                raise LookupError(f"{scope} has no resources {', '.join(unknown)}")
            headers = {"Authorization": authorization} if authorization else {}
            hook = self._world.add_hook(
                scope, namespace, destination_url, payload_version, headers
            )
            hook.status = status
            for resource, action in pairs:
                self._world.add_trigger(hook, resource, action)
            return hook.id

    def hooks(self) -> list[dict[str, Any]]:
        """Return every hook as the API has it, with the whole ``Authorization``."""
        with self._world.lock:
            return [hook.to_json(masked=False) for hook in self._world.hooks.values()]

    def triggers(self, hook_id: str) -> list[dict[str, Any]]:
        """Return the triggers of a hook as the API has them."""
        with self._world.lock:
            hook, case = self._hook(hook_id), self.switches.trigger_case
            return [hook.trigger_json(each, case) for each in hook.triggers.values()]

    def deliveries(self, hook_id: str | None = None) -> list[dict[str, Any]]:
        """Return the deliveries as the API has them, oldest first, of any age."""
        with self._world.lock:
            rows = self._world.deliveries
            chosen = [row for row in rows if hook_id in (None, row.hook_id)]
            return [row.to_json(self.switches) for row in chosen]

    # Records and events

    def create(
        self,
        resource: str,
        *,
        company: str | None = None,
        project: str | None = None,
        user_id: str | None = None,
        application_id: str | None = None,
        **fields: Any,
    ) -> str:
        """Create a record, as a user does; return its id."""
        with self._world.lock:
            scope = self._world.scope(company, project)
            actor = self._actor(user_id, application_id)
            return self._world.create(resource, scope, fields, actor).id

    def update(
        self,
        resource: str,
        id: str,
        *,
        user_id: str | None = None,
        application_id: str | None = None,
        **fields: Any,
    ) -> None:
        """Change fields of a record, as a user does.

        :raises LookupError: there is no such record.
        """
        self._change(resource, id, fields, self._actor(user_id, application_id))

    # Flask has a decorator of that name, which the fake does not need.
    def delete(  # type: ignore[override]
        self,
        resource: str,
        id: str,
        *,
        user_id: str | None = None,
        application_id: str | None = None,
    ) -> None:
        """Delete a record, as a user does.

        :raises LookupError: there is no such record.
        """
        self._change(resource, id, None, self._actor(user_id, application_id))

    def records(
        self, resource: str, *, company: str | None = None, project: str | None = None
    ) -> list[dict[str, Any]]:
        """Return the records that there are now, whatever a stale read shows."""
        with self._world.lock:
            return [
                dict(record.fields)
                for record in self._world.all_records(resource)
                if company in (None, record.scope.company)
                and project in (None, record.scope.project)
                and record.fields is not None
            ]

    def emit(
        self,
        resource: str,
        action: str,
        *,
        company: str | None = None,
        project: str | None = None,
        resource_id: str | None = None,
        user_id: str | None = None,
        application_id: str | None = None,
        related: Iterable[tuple[str, str]] = (),
    ) -> str:
        """Make one event without a record; return its id in payloads v4.0.

        :param related: id and name of each related resource, for payloads v3.0.
        :raises LookupError: the catalogue does not have the resource, or no company
            or project matches.
        """
        with self._world.lock:
            scope = self._world.scope(company, project)
            id = str(resource_id or self._world.ids.row())
            actor = self._actor(user_id, application_id)
            made = self._world.emit(resource, action, id, scope, actor, related)
            return made.v4_id

    # The sender

    def receive(self, url: str, app: WSGIApplication) -> None:
        """Call the app in process for every destination with the URL's host.

        Any other destination gets a request over a socket if it is on this machine.
        An attempt at another machine fails without a connection.
        """
        self._sender.receive(url, app)

    def deliver(self) -> int:
        """Make every attempt that is due now; return how many were made.

        :raises RuntimeError: the deliveries cause ever more events.
        """
        return self._sender.deliver()

    def advance(self, **delta: float) -> int:
        """Move the clock by a ``timedelta``, with the attempts due on the way.

        :return: how many attempts were made.
        """
        return self._sender.advance(timedelta(**delta))

    def redeliver(self, event_id: str) -> int:
        """Queue an event again for its hooks; return for how many.

        :param event_id: any of its ids: ``id`` or ``ulid``, of any payload version.
        :raises LookupError: no delivery has the event.
        """
        with self._world.lock:
            rows = self._world.deliveries
            found = [row for row in rows if str(event_id) in row.event.names]
            if not found:
                raise LookupError(f"no delivery has the event {event_id!r}")
            for row in found:
                self._world.enqueue_again(row)
            return len(found)

    def discard(self, hook_id: str, status: str | None = None) -> int:
        """Flush the queue of the hook now; return how many deliveries were in it."""
        return self._sender.discard(self._hook(hook_id), status)

    def start_sending(self, every: float = 0.05) -> None:
        """Deliver in a thread; the clock runs with the real time meanwhile."""
        if self._sender.start(every):
            self._stood = not self.clock.running
            self.clock.run()

    def stop_sending(self) -> None:
        """End the thread; the clock stands again if it stood before."""
        if self._sender.stop() and self._stood:
            self.clock.stop()

    def _hook(self, hook_id: str) -> Hook:
        return self._world.hooks[hook_id]

    def _change(
        self, resource: str, id: str, fields: dict[str, Any] | None, actor: Actor
    ) -> None:
        with self._world.lock:
            self._world.update(self._world.record(resource, id), fields, actor)

    def _actor(self, user_id: str | None, application_id: str | None) -> Actor:
        return Actor(user_id or self.switches.user_id, application_id)


def _scope(company: str, project: str | None) -> Scope:
    return Scope(str(company), None if project is None else str(project))
