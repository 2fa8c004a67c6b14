"""What the app does with its inbox: enqueue events, list them, ask Procore's API."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from datetime import timezone
from typing import Any
from typing import TYPE_CHECKING

from flask import current_app
from flask import has_app_context

from .dispatching.enqueue import enqueue
from .dispatching.enqueue import enqueue_changes
from .endpoint import Endpoint
from .endpoint import endpoints
from .event import Event
from .inbox.status import Status
from .operations.filters import Filter
from .operations.queries import last_delivery
from .operations.queries import newest
from .subscribers import Subscribers

if TYPE_CHECKING:
    import requests

    from .api import Change
    from .api import ProcoreAPI

NO_CONTEXT = (
    "The inbox belongs to an app: call this in a request, a command or a subscriber of"
    " the app, or inside of 'with app.app_context():'."
)


class InboxAccess:
    """The methods of a blueprint that read and fill the inbox of the current app."""

    name: str
    subscribers: Subscribers

    def enqueue(
        self,
        type: str,
        *,
        id: str | None = None,
        resource_id: str | int | None = None,
        project_id: str | int | None = None,
        company_id: str | int | None = None,
        data: object = None,
    ) -> Event:
        """Record an event that the sender never sent, for the same subscribers.

        With ``db=`` or ``session=`` the event is inserted in the transaction of the
        current session: it exists exactly if that is committed. Its subscribers run
        after the commit. Without a session it is committed at once.

        With ``DISPATCH`` ``inline``, also that of tests, it waits for
        ``flask procore-webhooks worker`` or ``drain()``. With ``background``, the
        threads of another process find it at their next poll, within 30 s. The loop
        filter does not apply.

        :param type: ``"Submittals.update"``: resource type and reason, normalised as
            those of received events.
        :param id: identifies the event: while the inbox has an event of that id, no
            other is recorded, and that one is returned. By default a random id.
        :param data: a JSON value for ``event.data``; by default the whole payload.
        :raises RuntimeError: outside of an app context, or of a registered app.
        :raises ValueError: the type is empty, or the data is no JSON value or too
            large.
        :raises InboxUnavailable: without a session: nothing was recorded.
        """
        ids = {"resource_id": resource_id, "project_id": project_id}
        ids["company_id"] = company_id
        return enqueue(self._endpoint(), type, id, ids, data)

    def enqueue_changes(self, changes: Iterable[Change]) -> list[Event]:
        """Enqueue an ``update`` of each change that the inbox has not seen.

        The inbox has seen a change if it has an event of the resource that happened or
        was received later. As with :meth:`enqueue`, with a session the events exist if
        its transaction is committed. Safe to repeat: a change is enqueued once.

        :param changes: as from :meth:`ProcoreAPI.changed_since`; ``event.data`` is the
            object in Procore's list.
        :return: the enqueued events.
        """
        return [*enqueue_changes(self._endpoint(), changes)]

    def api(
        self,
        *,
        company_id: str | int | None = None,
        shares_token: bool = False,
        session: requests.Session | None = None,
    ) -> ProcoreAPI:
        """Procore's REST API with the credentials in ``app.config``.

        Without ``session``, the clients of one process share token, connections and
        rate limits, also those of other companies.

        :param company_id: sent as ``Procore-Company-Id`` where a call names no other.
        :param shares_token: keep the access token in the inbox's database, for every
            process of the app. By default each process has a token of its own.
        :param session: sends the requests.
        :raises ConfigError: ``API_CLIENT_ID`` or ``API_CLIENT_SECRET`` is missing.
        :raises ImportError: the extra ``procore`` is not installed.
        """
        from .api.configured import client_of

        return client_of(self._endpoint(), company_id, shares_token, session)

    def events(
        self,
        *,
        status: str | Iterable[str] = (),
        type: str | None = None,
        resource_type: str | None = None,
        reason: str | None = None,
        resource_id: str | int | None = None,
        project_id: str | int | None = None,
        company_id: str | int | None = None,
        user_id: str | int | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 100,
    ) -> list[dict[str, Any]]:
        """The newest recorded events that have every given value, newest first.

        An event is a dictionary, keyed by the columns of ``procore_webhook_event``
        without its body: ``id`` (the row id), ``event_id``, ``type``, ``status``,
        ``received_at`` and so on. Times are aware, UTC. Filters are those of
        ``flask procore-webhooks list``.

        :param status: one status or several.
        :param since: received at this time or later; aware.
        :param until: received before this time; aware.
        :raises RuntimeError: outside of an app context, or of a registered app.
        :raises InboxUnavailable: the database cannot be used.
        """
        statuses = [status] if isinstance(status, str) else status
        wanted = Filter(
            statuses=tuple(Status(each).value for each in statuses),
            type=type,
            resource_type=resource_type,
            reason=reason,
            resource_id=_text(resource_id),
            project_id=_text(project_id),
            company_id=_text(company_id),
            user_id=_text(user_id),
            since=since,
            until=until,
        )
        found = newest(self._endpoint().store, wanted, limit=limit)
        return [{name: _aware(value) for name, value in row.items()} for row in found]

    def last_received(self) -> datetime | None:
        """When the newest delivered event was recorded: aware, UTC; ``None`` without.

        Repeats and enqueued events do not count.

        :raises RuntimeError: outside of an app context, or of a registered app.
        :raises InboxUnavailable: the database cannot be used.
        """
        found = last_delivery(self._endpoint().store)
        return found and found.replace(tzinfo=timezone.utc)

    def _endpoint(self) -> Endpoint:
        """The endpoint of this blueprint in the current app."""
        if not has_app_context():
            raise RuntimeError(NO_CONTEXT)
        every = endpoints(current_app).values()
        mine = [each for each in every if each.subscribers is self.subscribers]
        # Registered twice, the other one has another name.
        found = [each for each in mine if each.name == self.name] or mine
        if len(found) != 1:
            raise RuntimeError(
                f"The app {current_app.name!r} has {len(found)} endpoints of this"
                f" blueprint: register it once as {self.name!r},"
                " app.register_blueprint(webhooks)."
            )
        return found[0]


def _aware(value: Any) -> Any:
    is_time = isinstance(value, datetime)
    return value.replace(tzinfo=timezone.utc) if is_time else value


def _text(id: str | int | None) -> str | None:
    return None if id is None else str(id)
