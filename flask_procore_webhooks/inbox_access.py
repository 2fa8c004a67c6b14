"""What the app itself does with its inbox: enqueue events, list them."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from datetime import timezone
from functools import partial
from typing import Any

from flask import current_app
from flask import has_app_context
from sqlalchemy import event as listeners
from sqlalchemy.orm import Session

from .dispatching.background import background_of
from .dispatching.dispatch import notify_others
from .endpoint import Endpoint
from .endpoint import endpoints
from .event import Event
from .inbox.enqueued import EnqueueResult
from .inbox.enqueued import insert_event
from .inbox.enqueued import insert_in_session
from .inbox.enqueued import ORIGIN
from .inbox.status import Status
from .log import log
from .operations.filters import Filter
from .operations.queries import last_delivery
from .operations.queries import newest
from .storage import tally
from .subscribers import Subscribers

#: The outcome in the tally.
ENQUEUED = "enqueued"
#: In ``Session.info``: endpoints and row ids of the events in its transaction.
WAITING = "flask_procore_webhooks.enqueued"

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
        endpoint = self._endpoint()
        ids = {"resource_id": resource_id, "project_id": project_id}
        event = _new_event(endpoint, type, id, {**ids, "company_id": company_id}, data)
        store = endpoint.store
        if source := store.session:
            session = source()
            result = insert_in_session(store, event, session)
            if result and result.is_new:
                _dispatch_after_commit(session, endpoint, result.row_id)
        else:
            store.traits()  # with a connection of its own, so not within the next
            result = store.run(partial(insert_event, store, event))
            if result and result.is_new:
                _dispatch(endpoint, [result.row_id])
        return _stored(endpoint, event, result)

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


def _new_event(
    endpoint: Endpoint,
    type: str,
    id: str | None,
    ids: Mapping[str, str | int | None],
    data: object,
) -> Event:
    """The event as every run reads it again from its body."""
    resource_type, dot, reason = type.rpartition(".")
    if not dot:
        resource_type, reason = type, ""
    if not resource_type.strip():
        raise ValueError(f"The type {type!r} names no resource: 'Submittals.update'.")
    content: dict[str, object] = {"id": id or f"{ORIGIN}:{secrets.token_hex(16)}"}
    # The keys of the shape ENQUEUED.
    content |= {"enqueued": resource_type, "reason": reason, **ids}
    content |= {"timestamp": endpoint.store.now().isoformat(), "data": data}
    sent = {name: value for name, value in content.items() if value is not None}
    try:
        body = json.dumps(sent, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"The data is no JSON value: {error}") from error
    event, unreadable = endpoint.read(body)
    if unreadable or len(body) > endpoint.settings.max_bytes:
        raise ValueError(f"The event is refused: {unreadable or 'over MAX_BYTES'}")
    return replace(event, origin=ORIGIN)


def _stored(endpoint: Endpoint, event: Event, result: EnqueueResult | None) -> Event:
    """The event as the inbox has it, which may be an earlier one of the same id."""
    if result is None:
        return event
    if result.body is not None:
        event = replace(endpoint.read(result.body)[0], id=event.id)
    received_at = _aware(result.received_at)
    return replace(event, origin=result.origin, received_at=received_at)


def _dispatch_after_commit(session: Session, endpoint: Endpoint, row_id: int) -> None:
    if WAITING not in session.info:
        session.info[WAITING] = []
        listeners.listen(session, "after_commit", _after_commit)
        listeners.listen(session, "after_transaction_end", _after_end)
    session.info[WAITING].append((endpoint, row_id))


def _after_commit(session: Session) -> None:
    # It is called after the release of a savepoint, too.
    if session.in_nested_transaction():
        return
    waiting: list[tuple[Endpoint, int]] = session.info[WAITING]
    by_name: dict[str, tuple[Endpoint, list[int]]] = {}
    for endpoint, row_id in waiting:
        by_name.setdefault(endpoint.name, (endpoint, []))[1].append(row_id)
    waiting.clear()
    for endpoint, rows in by_name.values():
        # The transaction is committed, so its caller gets no error.
        try:
            _dispatch(endpoint, rows)
        except Exception:
            log.exception("%s: enqueued events wait for the next poll", endpoint.name)


def _after_end(session: Session, transaction: Any) -> None:
    if transaction.parent is None:
        # After a rollback the events do not exist.
        session.info[WAITING].clear()


def _dispatch(endpoint: Endpoint, rows: list[int]) -> None:
    """Have committed events run by this process, or notify another one."""
    tally.count(endpoint.store, ENQUEUED, len(rows))
    mode, state = endpoint.dispatch, endpoint.state
    if mode != "background":
        notify_others(endpoint, mode, rows, is_new=True)
    elif state.prepared_pid == os.getpid():
        # A process that does not serve starts no thread.
        background_of(state).wake()


def _aware(value: Any) -> Any:
    is_time = isinstance(value, datetime)
    return value.replace(tzinfo=timezone.utc) if is_time else value


def _text(id: str | int | None) -> str | None:
    return None if id is None else str(id)
